//! Handling one item: what the guest is told, what its answer means, what is noted beside its
//! state. Runs on a worker, with the guest in hand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    id::UnixMs,
    wire::{CALL_KEY, CallResult, ServiceReply, ServiceRequest, TopicMessage},
};
use hop3_runtime::{
    service::{Called, Done, Effect, Failure, Image, Input, Instance, LogLine, Reply},
    wasm::{CancelToken, Usage},
};

use super::{
    actor::Actor,
    desk::{
        Desk,
        calls::Call,
        letters::Letter,
        lines::{Piece, Refused},
    },
    inbox::{Ask, Item, not_here},
    release::Release,
    verdict::{Deadline, failed, repeated, service_reply, too_late},
};

/// Close code of a stream whose client did not come back.
const ABNORMAL: u16 = 1006;
/// Close code of a stream whose client is too slow.
const TRY_LATER: u16 = 1013;
/// Pause after a timer whose handler failed, doubled each time up to [`TIMER_PAUSE_MAX`]: the
/// failed call has put the timer back, and it is due at once.
const TIMER_PAUSE: Duration = Duration::from_secs(1);
const TIMER_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Without a call for this long, a guest gives up its memory until the next; its image stays.
const REST_AFTER: Duration = Duration::from_secs(60);

/// The guest and what is noted beside it.
pub(super) struct Cell {
    guest: Instance,
    desk: Desk,
    /// Number of the newest change that was handed on.
    seq: u64,
    /// Messages published in this run.
    published: u64,
    timers: TimerPause,
    /// The last step was a timer's.
    timed: bool,
    /// When the guest was last called, if it has memory of its own since.
    used: Option<Instant>,
}

/// What a guest made of something that nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Well,
    /// It has no handler for it.
    Unheard,
    /// It is not given this any more.
    Quarantined,
    /// Its state is as before.
    Failed,
}

#[derive(Default)]
struct TimerPause {
    until: Option<Instant>,
    failures: u32,
}

impl Cell {
    pub(super) fn new(guest: Instance, desk: Desk) -> Self {
        let seq = guest.image().seq();
        Self {
            guest,
            desk,
            seq,
            published: 0,
            timers: TimerPause::default(),
            timed: false,
            used: Some(Instant::now()),
        }
    }

    /// What the guest wanted while it was made or put back.
    pub(super) fn started(&mut self, actor: &Arc<Actor>, done: Done) {
        let mut releases = Vec::new();
        // They are durable, and may have been on their way before.
        for (number, letter) in self.desk.letters().iter() {
            actor.post(number, letter.clone());
        }
        releases.extend(self.repeated_calls(actor));
        self.effects(actor, done.effects, &mut releases);
        self.settle(actor, releases);
    }

    /// Calls that were under way when the instance was last stored, and are not made again: nobody
    /// knows what came of them.
    pub(super) fn lost_calls(&self) -> Vec<Item> {
        let lost = self.desk.calls().iter();
        let lost = lost.filter(|(_, call)| call.is_none());
        lost.map(|(call, _)| Item::CallEnded {
            call,
            result: Err(Problem::new(
                Code::OutcomeUnknown,
                "outcome unknown: the instance was started again while the call was under way",
            )),
            refused: false,
        })
        .collect()
    }

    /// The others, under their old keys: whoever did them answers as before.
    fn repeated_calls(&self, actor: &Actor) -> Vec<Release> {
        let again = self.desk.calls().iter();
        again
            .filter_map(|(number, call)| Some((number, call?.clone())))
            .map(|(number, call)| Release::Call {
                call: number,
                service: call.service.clone(),
                request: Box::new(call_request(actor, number, call)),
                again: true,
            })
            .collect()
    }

    /// The image with everything that was noted.
    pub(super) fn flush(&mut self) -> &Image {
        self.write_desk();
        self.guest.image()
    }

    fn write_desk(&mut self) -> bool {
        let writes = self.desk.take_writes();
        let any = !writes.is_empty();
        for (key, value) in writes {
            self.guest.set_desk(key, value);
        }
        any
    }

    /// What happened to client streams since the last turn. Needs no commit of its own: it goes
    /// with the next.
    pub(super) fn begin(&mut self, actor: &Arc<Actor>) {
        for (stream, seq) in actor.links.take_acks() {
            if self.desk.acked(stream, seq) {
                actor.links.remove(stream);
            }
        }
        self.write_desk();
        if let Some(number) = actor.mail.take_arrived()
            && self.desk.arrived(number)
        {
            self.settle(actor, Vec::new());
        }
        if self.used.is_some_and(|used| used.elapsed() >= REST_AFTER) {
            self.guest.rest();
            self.used = None;
        }
        for stream in actor.links.take_absent(Instant::now()) {
            let code = ABNORMAL;
            actor.push(Item::Gone { stream, code });
        }
    }

    /// Handles one thing; `false` if there was none.
    pub(super) fn step(&mut self, actor: &Arc<Actor>) -> bool {
        // By turns: a timer that is always due again would keep everything else waiting.
        let item = std::mem::take(&mut self.timed)
            .then(|| actor.pop())
            .flatten();
        if item.is_none()
            && let Some(timer) = self.due_timer()
        {
            self.timer(actor, timer);
            self.timed = true;
            return true;
        }
        match item.or_else(|| actor.pop()) {
            None => return false,
            Some(Item::Request(request, ask)) => self.request(actor, *request, ask),
            Some(Item::Message(message, ask)) => self.message(actor, *message, ask),
            Some(Item::Client { stream, seq, piece }) => self.client(actor, stream, seq, piece),
            Some(Item::Gone { stream, code }) => self.gone(actor, stream, code),
            Some(Item::CallEnded {
                call,
                result,
                refused,
            }) => self.call_ended(actor, call, result, refused),
        }
        true
    }

    /// When something is to be done without being asked.
    pub(super) fn next_wake(&self, actor: &Arc<Actor>) -> Option<u64> {
        let from_now = |at: Instant| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up, so that it is due when it is woken.
            UnixMs::now().0 + u64::try_from(left.as_millis()).unwrap_or(u64::MAX / 2) + 1
        };
        let timer = self.guest.image().next_timer().map(|(_, at_ms)| at_ms);
        let timer = timer.map(|at_ms| match self.timers.until {
            Some(until) => at_ms.max(from_now(until)),
            None => at_ms,
        });
        let absence = actor.links.next_absence().map(from_now);
        let rest = self.used.map(|used| from_now(used + REST_AFTER));
        [timer, absence, rest].into_iter().flatten().min()
    }

    fn call(&mut self, actor: &Arc<Actor>, input: Input, cancel: &CancelToken) -> Called {
        self.used = Some(Instant::now());
        let what = described(&input);
        self.guest.set_calls(self.desk.calls().count());
        let kept = actor.is_durable().then(|| self.desk.letters().size());
        self.guest.set_letters(kept);
        let module = &actor.work().module;
        let called = match actor.parts.suspects.enter(actor.instance(), module, &input) {
            Ok(_in_hand) => {
                actor.set_running(Some(cancel.clone()));
                let called = self.guest.call(input, UnixMs::now().0, cancel);
                actor.set_running(None);
                called
            }
            Err(problem) => Called {
                result: Err(Failure::Quarantined(problem.message)),
                log: Vec::new(),
                usage: Usage::default(),
            },
        };
        actor.log(&called.log);
        if let Err(failure) = &called.result {
            tracing::debug!(instance = %actor.instance(), what, %failure, "a handler failed");
            // For whoever wrote the guest: it cannot say so itself.
            let text = format!("{what} failed: {failure}");
            actor.log(&[LogLine { level: 0, text }]);
        }
        called
    }

    /// Hands on what a handled item changed, and what it leads to.
    fn settle(&mut self, actor: &Arc<Actor>, releases: Vec<Release>) {
        let noted = self.write_desk();
        let image = self.guest.image();
        let changed = actor.is_stateful() && (noted || image.seq() != self.seq);
        self.seq = image.seq();
        let image = changed.then(|| image.clone());
        actor.settle(image, releases);
    }

    // ---- requests ----

    fn request(&mut self, actor: &Arc<Actor>, request: ServiceRequest, ask: Ask) {
        let Ask {
            until,
            cancel,
            reply: to,
        } = ask;
        if let Some(problem) = too_late(until, &cancel) {
            return to(Err(problem));
        }
        let key = request.idempotency_key.clone();
        let known = key
            .as_ref()
            .and_then(|key| self.desk.replies().get(key, UnixMs::now().0));
        if let Some(known) = known {
            let result = repeated(known);
            return self.settle(actor, vec![Release::Reply { to, result }]);
        }
        let input = Input::Request {
            method: request.method,
            path: request.path,
            headers: request.headers,
            body: request.body,
            more: request.more,
            from: request.from.map(|from| from.to_string()),
        };
        let _deadline = Deadline::set(actor, until, &cancel);
        let called = self.call(actor, input, &cancel);
        let mut releases = Vec::new();
        let result = match called.result {
            Ok(done) => {
                let Done { reply, effects } = done;
                let reply = service_reply(reply.unwrap_or_default());
                if let Some(stream) = reply.stream {
                    self.desk.open_line(stream);
                    releases.push(Release::Open(stream));
                }
                self.effects(actor, effects, &mut releases);
                if let Some(key) = key {
                    self.desk.keep_reply(&key, &reply, UnixMs::now().0);
                }
                Ok(CallResult::Service(reply))
            }
            // Undone, and the instance goes on elsewhere or later: surely not begun.
            Err(_) if actor.is_lost() => Err(not_here()),
            Err(failure) => Err(failed(failure, until, &cancel)),
        };
        releases.push(Release::Reply { to, result });
        self.settle(actor, releases);
    }

    fn message(&mut self, actor: &Arc<Actor>, message: TopicMessage, ask: Ask) {
        let Ask {
            until,
            cancel,
            reply: to,
        } = ask;
        if let Some(problem) = too_late(until, &cancel) {
            // Not begun, so it may come again.
            return to(Err(Problem::new(Code::Busy, problem.message)));
        }
        let TopicMessage {
            topic,
            payload,
            from,
        } = message;
        if let Some((from, seq)) = &from
            && !self.desk.hear(from, *seq)
        {
            let result = Ok(CallResult::Delivered);
            return self.settle(actor, vec![Release::Reply { to, result }]);
        }
        let input = Input::Topic {
            topic,
            payload,
            from: from.map(|(from, _)| from.to_string()),
        };
        let _deadline = Deadline::set(actor, until, &cancel);
        let called = self.call(actor, input, &cancel);
        let mut releases = Vec::new();
        let result = match called.result {
            Ok(done) => {
                self.effects(actor, done.effects, &mut releases);
                Ok(CallResult::Delivered)
            }
            // Undone, and the instance goes on elsewhere or later: surely not begun.
            Err(_) if actor.is_lost() => Err(not_here()),
            Err(failure) => Err(failed(failure, until, &cancel)),
        };
        releases.push(Release::Reply { to, result });
        self.settle(actor, releases);
    }

    // ---- what has no asker ----

    /// Tells the guest something that nobody waits for.
    fn tell(&mut self, actor: &Arc<Actor>, input: Input, releases: &mut Vec<Release>) -> Told {
        match self.call(actor, input, &CancelToken::new()).result {
            Ok(done) => {
                self.effects(actor, done.effects, releases);
                Told::Well
            }
            // A guest need not listen to everything.
            Err(Failure::NoHandler(_)) => Told::Unheard,
            Err(Failure::Quarantined(_)) => Told::Quarantined,
            Err(failure) => {
                tracing::info!(instance = %actor.instance(), %failure, "a handler failed");
                Told::Failed
            }
        }
    }

    fn client(&mut self, actor: &Arc<Actor>, stream: u64, seq: u64, piece: Piece) {
        actor.links.taken(stream);
        let line = self.desk.lines().get(stream);
        // Handled before, or of a stream that ended meanwhile.
        if line.is_none_or(|line| line.received() + 1 != seq) {
            return;
        }
        let mut releases = Vec::new();
        let close = match piece {
            Piece::Data { text, bytes } => {
                let input = Input::StreamData {
                    stream,
                    text,
                    bytes,
                };
                self.tell(actor, input, &mut releases);
                None
            }
            Piece::Close { code } => {
                self.closed(actor, stream, code, &mut releases);
                Some(code)
            }
        };
        // Whatever came of it: it is not told a second time.
        self.desk.received(stream, seq);
        releases.push(Release::Handled { stream, seq });
        if let Some(code) = close {
            self.close_line(actor, stream, code, &mut releases);
        }
        self.settle(actor, releases);
    }

    /// Tells the guest that a stream is closed; it is, whatever the guest makes of that.
    fn closed(&mut self, actor: &Arc<Actor>, stream: u64, code: u16, releases: &mut Vec<Release>) {
        let told = self.tell(actor, Input::StreamClosed { stream, code }, releases);
        if matches!(told, Told::Failed | Told::Quarantined) {
            self.guest.drop_stream(stream);
        }
    }

    /// A client stream ends without its client's word.
    fn gone(&mut self, actor: &Arc<Actor>, stream: u64, code: u16) {
        let Some(line) = self.desk.lines().get(stream) else {
            return actor.links.remove(stream);
        };
        let mut releases = Vec::new();
        // The guest has closed it itself: only the client's acknowledgement was missing.
        if !line.is_closed() || code == TRY_LATER {
            self.closed(actor, stream, code, &mut releases);
        }
        if code == ABNORMAL {
            self.desk.drop_line(stream);
            releases.push(Release::Over(stream));
        }
        self.settle(actor, releases);
    }

    fn call_ended(
        &mut self,
        actor: &Arc<Actor>,
        call: u64,
        result: Result<ServiceReply, Problem>,
        refused: bool,
    ) {
        if !refused && !self.desk.end_call(call) {
            return;
        }
        let result = match result {
            Ok(reply) => Ok(Reply {
                status: reply.status,
                headers: reply.headers,
                body: reply.body,
                stream: None,
            }),
            Err(problem) => Err(problem.to_string()),
        };
        let mut releases = Vec::new();
        self.tell(actor, Input::CallEnded { call, result }, &mut releases);
        self.settle(actor, releases);
    }

    // ---- timers ----

    fn due_timer(&self) -> Option<u64> {
        if self
            .timers
            .until
            .is_some_and(|until| Instant::now() < until)
        {
            return None;
        }
        let (timer, at_ms) = self.guest.image().next_timer()?;
        (at_ms <= UnixMs::now().0).then_some(timer)
    }

    fn timer(&mut self, actor: &Arc<Actor>, timer: u64) {
        let mut releases = Vec::new();
        let told = self.tell(actor, Input::Timer { timer }, &mut releases);
        if matches!(told, Told::Unheard | Told::Quarantined) {
            // It would be due for ever.
            self.guest.drop_timer(timer);
        }
        if told != Told::Failed {
            self.timers = TimerPause::default();
        } else {
            let pause = TIMER_PAUSE * 2u32.saturating_pow(self.timers.failures.min(8));
            self.timers.failures += 1;
            self.timers.until = Some(Instant::now() + pause.min(TIMER_PAUSE_MAX));
        }
        self.settle(actor, releases);
    }

    // ---- effects ----

    fn effects(&mut self, actor: &Arc<Actor>, effects: Vec<Effect>, releases: &mut Vec<Release>) {
        for effect in effects {
            match effect {
                Effect::Publish {
                    seq,
                    topic,
                    payload,
                } => {
                    self.published += 1;
                    let seq = message_number(actor, seq, self.published);
                    if actor.is_durable() {
                        let letter = Letter {
                            topic: topic.clone(),
                            payload: payload.clone(),
                        };
                        self.desk.keep_letter(seq, letter);
                    }
                    releases.push(Release::Publish {
                        seq,
                        topic,
                        payload,
                    });
                }
                Effect::Call {
                    call,
                    service,
                    method,
                    path,
                    body,
                } => {
                    // Only of an upgraded guest, whose earlier calls end in a moment: any other is
                    // refused when it calls.
                    let asked = Call {
                        epoch: actor.token().epoch.0,
                        service: service.clone(),
                        method,
                        path,
                        body,
                    };
                    let kept = actor.is_durable().then(|| asked.clone());
                    if !self.desk.begin_call(call, kept) {
                        let message = "too many calls of the instance are under way";
                        actor.push(Item::CallEnded {
                            call,
                            result: Err(Problem::new(Code::Busy, message)),
                            refused: true,
                        });
                        continue;
                    }
                    releases.push(Release::Call {
                        call,
                        service,
                        request: Box::new(call_request(actor, call, asked)),
                        again: false,
                    });
                }
                Effect::StreamSend {
                    stream,
                    text,
                    bytes,
                } => self.send(actor, stream, Piece::Data { text, bytes }, releases),
                Effect::StreamClose { stream, code } => {
                    self.close_line(actor, stream, code, releases);
                }
            }
        }
    }

    fn close_line(
        &mut self,
        actor: &Arc<Actor>,
        stream: u64,
        code: u16,
        releases: &mut Vec<Release>,
    ) {
        self.send(actor, stream, Piece::Close { code }, releases);
    }

    fn send(&mut self, actor: &Arc<Actor>, stream: u64, piece: Piece, releases: &mut Vec<Release>) {
        match self.desk.push(stream, piece.clone()) {
            Ok(seq) => releases.push(Release::Piece { stream, seq, piece }),
            Err(Refused::Closed) => {}
            Err(Refused::Full) => {
                self.close_line(actor, stream, TRY_LATER, releases);
                let code = TRY_LATER;
                actor.push(Item::Gone { stream, code });
            }
        }
    }
}

/// The request of a call. That of a durable instance has a key, so that it is done once however often
/// it is made.
fn call_request(actor: &Actor, number: u64, call: Call) -> ServiceRequest {
    let instance = actor.instance();
    let key = || format!("{CALL_KEY}{instance}:{}.{number}", call.epoch);
    let idempotency_key = actor.is_durable().then(key);
    ServiceRequest {
        method: call.method,
        path: call.path,
        headers: Vec::new(),
        body: call.body,
        more: false,
        idempotency_key,
        from: Some(instance.clone()),
    }
}

/// The number under which subscribers know a message: it only grows, whatever the publisher went
/// back to. What is on the disk cannot go back within an epoch; all else begins anew with every
/// run, after all numbers of the run before (2^28 messages; 2^16 runs of an epoch).
fn message_number(actor: &Actor, seq: u64, in_run: u64) -> u64 {
    let token = actor.token();
    let epoch = token.epoch.0 << 44;
    if actor.is_durable() {
        epoch.saturating_add(seq)
    } else {
        let run = (token.incarnation.0 & 0xffff) << 28;
        epoch.saturating_add(run).saturating_add(in_run)
    }
}

/// An input in a few words, for the log. Without its data, which may be secret.
fn described(input: &Input) -> String {
    match input {
        Input::Request { method, path, .. } => {
            let path = path.split('?').next().unwrap_or_default();
            format!("{method} {}", path.chars().take(200).collect::<String>())
        }
        Input::Topic { topic, .. } => format!("message on {topic}"),
        Input::StreamData { stream, .. } => format!("data on stream {stream}"),
        Input::StreamClosed { stream, .. } => format!("end of stream {stream}"),
        Input::CallEnded { call, .. } => format!("end of call {call}"),
        Input::Timer { timer } => format!("timer {timer}"),
    }
}
