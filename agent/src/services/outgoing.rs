//! What instances and the local gateway ask of the coordinator: calls to services that are not
//! here, and messages for subscribers elsewhere. One QUIC stream, opened when it is first needed.
//!
//! Limits: [`CALLS_MAX`] calls and messages under way, [`INSTANCE_CALLS_MAX`] of one instance;
//! [`KEPT_MAX`] changes for replicas and kept messages, of which an instance has one each. Without a session everything ends at once, and says so; a
//! message that nobody keeps is dropped and counted ([`super::mail`] is for those that are kept).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, ServiceName},
    ownership::Token,
    wire::{
        self, CALL_FRAME_MAX, HEADER_FRAME_MAX, OutgoingDone, OutgoingReply, OutgoingWhat,
        ReplicaWrite, ServiceReply, ServiceRequest, StreamHeader, TopicMessage, frame,
        io::{self, FrameReader},
    },
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};

use crate::blobs::Link;

/// Calls and messages under way.
pub const CALLS_MAX: usize = 1024;
/// Those of one instance: its neighbours call, too.
pub const INSTANCE_CALLS_MAX: usize = 256;
/// Changes and kept messages under way. Apart from calls, so that no caller keeps others from being
/// durable.
pub const KEPT_MAX: usize = 1024;
/// Encoded frames that wait for the network before no more are taken.
const OUT_BYTES: usize = 1 << 20;
/// How often late calls are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Time that a call gets beyond its deadline: the coordinator's answer says more than ours.
const GRACE: Duration = Duration::from_secs(1);
/// Time that a change gets to be kept: the coordinator's disk may be slow.
const REPLICA: Duration = Duration::from_secs(10);
/// Time that a message gets to be passed on.
const MESSAGE: Duration = Duration::from_secs(10);

/// Who has what under way.
#[derive(Debug, Default)]
struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    kept: usize,
    calls: usize,
    /// Of each instance; of clients of the gateway together.
    by: HashMap<Option<InstanceId>, usize>,
}

/// One of them, until it is dropped.
struct Place {
    places: Arc<Places>,
    /// None: kept.
    caller: Option<Option<InstanceId>>,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Changed in single steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, kept: bool, caller: Option<&InstanceId>) -> Option<Place> {
        let mut taken = self.taken();
        let caller = caller.cloned();
        if kept {
            taken.kept = (taken.kept < KEPT_MAX).then_some(taken.kept + 1)?;
        } else {
            let calls = (taken.calls < CALLS_MAX).then_some(taken.calls + 1)?;
            let mine = taken.by.entry(caller.clone()).or_default();
            // The gateway's clients are many.
            let most = caller.as_ref().map_or(CALLS_MAX, |_| INSTANCE_CALLS_MAX);
            *mine = (*mine < most).then_some(*mine + 1)?;
            taken.calls = calls;
        }
        drop(taken);
        Some(Place {
            places: self.clone(),
            caller: (!kept).then_some(caller),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        let Some(caller) = self.caller.take() else {
            taken.kept -= 1;
            return;
        };
        taken.calls -= 1;
        if let Some(mine) = taken.by.get_mut(&caller) {
            *mine -= 1;
            if *mine == 0 {
                taken.by.remove(&caller);
            }
        }
    }
}

/// Where the end of a call goes.
pub type Done = Box<dyn FnOnce(Result<ServiceReply, Problem>) + Send>;
/// Where any answer goes.
type Answered = Box<dyn FnOnce(Result<OutgoingDone, Problem>) + Send>;

struct Request {
    until: Instant,
    from: Option<(InstanceId, Token)>,
    what: OutgoingWhat,
    /// `None`: a message.
    done: Option<Answered>,
    _place: Place,
}

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Outgoing {
    requests: mpsc::Sender<Request>,
    places: Arc<Places>,
    dropped: Arc<AtomicU64>,
    link: Link,
}

/// The task behind it.
pub struct Task {
    requests: mpsc::Receiver<Request>,
    dropped: Arc<AtomicU64>,
    link: Link,
}

impl Outgoing {
    /// A way out over the session in `link`, and the task that must run for it.
    #[must_use]
    pub fn new(link: Link) -> (Self, Task) {
        let (sender, requests) = mpsc::channel(CALLS_MAX + KEPT_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let outgoing = Self {
            requests: sender,
            places: Arc::default(),
            dropped: dropped.clone(),
            link: link.clone(),
        };
        let task = Task {
            requests,
            dropped,
            link,
        };
        (outgoing, task)
    }

    /// Whether there is a session.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Messages dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Calls a service by name.
    pub fn call(
        &self,
        from: Option<(InstanceId, Token)>,
        service: ServiceName,
        request: ServiceRequest,
        until: Instant,
        done: Done,
    ) {
        if !self.stands() {
            return done(Err(away()));
        }
        let what = OutgoingWhat::Call { service, request };
        let answered: Answered = Box::new(|answer| {
            done(answer.and_then(|answer| match answer {
                OutgoingDone::Reply(reply) => Ok(reply),
                _ => Err(wrong_answer()),
            }));
        });
        if let Err((Some(answered), problem)) = self.send(from, what, until, Some(answered)) {
            answered(Err(problem));
        }
    }

    /// Adds to the replica of an instance; durable at the coordinator when this returns `Ok`. After
    /// an error it may be there or not.
    ///
    /// # Errors
    /// There is no session, or the coordinator does not take it.
    pub async fn replicate(
        &self,
        from: (InstanceId, Token),
        write: ReplicaWrite,
    ) -> Result<(), Problem> {
        let what = OutgoingWhat::Replica(write);
        self.ask(from, what, REPLICA).await.map(drop)
    }

    /// Brings a message to every subscriber elsewhere but those that have it. Gives who has it now,
    /// and who does not yet.
    ///
    /// # Errors
    /// There is no session, or the coordinator does not take it: who has it is not known.
    pub async fn mail(
        &self,
        from: (InstanceId, Token),
        message: TopicMessage,
        has: Vec<ServiceName>,
    ) -> Result<(Vec<ServiceName>, Vec<ServiceName>), Problem> {
        let what = OutgoingWhat::Mail { message, has };
        match self.ask(from, what, MESSAGE).await? {
            OutgoingDone::Mail { has, waits } => Ok((has, waits)),
            _ => Err(wrong_answer()),
        }
    }

    async fn ask(
        &self,
        from: (InstanceId, Token),
        what: OutgoingWhat,
        within: Duration,
    ) -> Result<OutgoingDone, Problem> {
        if !self.stands() {
            let message = "there is no session with the coordinator";
            return Err(Problem::new(Code::Unavailable, message));
        }
        let (tell, told) = oneshot::channel();
        let answered: Answered = Box::new(|answer| drop(tell.send(answer)));
        let until = Instant::now() + within;
        if let Err((_, problem)) = self.send(Some(from), what, until, Some(answered)) {
            return Err(problem);
        }
        let lost = |_| Problem::new(Code::Unavailable, "the session with the coordinator ended");
        told.await.map_err(lost)?
    }

    /// Waits until the session begins or ends.
    pub async fn changed(&self) {
        let mut link = self.link.clone();
        link.mark_unchanged();
        if link.changed().await.is_err() {
            // The agent goes down.
            std::future::pending().await
        }
    }

    /// Passes a message on, if it can be.
    pub fn publish(&self, from: (InstanceId, Token), message: TopicMessage) {
        let what = OutgoingWhat::Publish(message);
        let until = Instant::now() + MESSAGE;
        if !self.stands() || self.send(Some(from), what, until, None).is_err() {
            drop_message(&self.dropped);
        }
    }

    fn send(
        &self,
        from: Option<(InstanceId, Token)>,
        what: OutgoingWhat,
        until: Instant,
        done: Option<Answered>,
    ) -> Result<(), (Option<Answered>, Problem)> {
        let busy = || {
            let message = "too many calls and messages of this instance or node are under way";
            Problem::new(Code::Busy, message)
        };
        let kept = matches!(what, OutgoingWhat::Replica(_) | OutgoingWhat::Mail { .. });
        let caller = from.as_ref().map(|(instance, _)| instance);
        let Some(place) = self.places.take(kept, caller) else {
            return Err((done, busy()));
        };
        let request = Request {
            until,
            from,
            what,
            done,
            _place: place,
        };
        self.requests.try_send(request).map_err(|error| {
            let request = error.into_inner();
            (request.done, busy())
        })
    }
}

fn wrong_answer() -> Problem {
    Problem::new(
        Code::Protocol,
        "the coordinator's answer is not one to what was asked",
    )
}

fn away() -> Problem {
    Problem::new(
        Code::Unavailable,
        "the service is not on this node, and there is no session with the coordinator: the call \
         was not made",
    )
}

fn drop_message(dropped: &AtomicU64) {
    let before = dropped.fetch_add(1, Ordering::Relaxed);
    if before.is_power_of_two() || before == 0 {
        tracing::warn!(
            dropped = before + 1,
            "messages for other nodes were dropped"
        );
    }
}

/// One that the coordinator has not answered.
struct Pending {
    until: Instant,
    done: Option<Answered>,
    _place: Place,
}

impl Pending {
    fn end(self, result: Result<OutgoingDone, Problem>, dropped: &AtomicU64) {
        match (self.done, result) {
            (Some(done), result) => done(result),
            (None, Ok(_)) => {}
            (None, Err(_)) => drop_message(dropped),
        }
    }
}

impl Task {
    /// Passes on what comes, until nobody can ask any more.
    pub async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            let connection = self.link.borrow().clone();
            let Some(connection) = connection else {
                self.refuse(request);
                continue;
            };
            match open(&connection).await {
                Ok((send, recv)) => {
                    let mut lane = Lane::new(send, recv, self.dropped.clone());
                    lane.take(request);
                    lane.serve(&mut self.requests, &connection).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "no stream to the coordinator");
                    self.refuse(request);
                }
            }
        }
    }

    fn refuse(&self, request: Request) {
        match request.done {
            Some(done) => done(Err(away())),
            None => drop_message(&self.dropped),
        }
    }
}

async fn open(connection: &Connection) -> Result<(SendStream, RecvStream), io::Error> {
    let opened = connection.open_bi().await;
    let (mut send, recv) = opened.map_err(std::io::Error::from)?;
    io::write(&mut send, &StreamHeader::Outgoing, HEADER_FRAME_MAX).await?;
    Ok((send, recv))
}

/// One stream.
struct Lane {
    send: SendStream,
    frames: FrameReader<RecvStream>,
    out: BytesMut,
    last_id: u64,
    pending: HashMap<u64, Pending>,
    dropped: Arc<AtomicU64>,
}

impl Lane {
    fn new(send: SendStream, recv: RecvStream, dropped: Arc<AtomicU64>) -> Self {
        Self {
            send,
            frames: FrameReader::new(recv, CALL_FRAME_MAX),
            out: BytesMut::new(),
            last_id: 0,
            pending: HashMap::new(),
            dropped,
        }
    }

    fn take(&mut self, request: Request) {
        let Request {
            until,
            from,
            what,
            done,
            _place,
        } = request;
        self.last_id += 1;
        let id = self.last_id;
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
        let pending = Pending {
            until,
            done,
            _place,
        };
        let frame = wire::Outgoing {
            id,
            deadline_ms,
            from,
            what,
        };
        match frame::encode(&frame, CALL_FRAME_MAX, &mut self.out) {
            Ok(()) => drop(self.pending.insert(id, pending)),
            Err(error) => {
                let problem = Problem::new(Code::TooLarge, format!("the request: {error}"));
                pending.end(Err(problem), &self.dropped);
            }
        }
    }

    /// Serves until the stream or its connection ends.
    async fn serve(&mut self, requests: &mut mpsc::Receiver<Request>, connection: &Connection) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                wrote = self.send.write(&self.out), if !self.out.is_empty() => match wrote {
                    Ok(n) => self.out.advance(n),
                    Err(_) => break,
                },
                request = requests.recv(), if self.out.len() < OUT_BYTES => match request {
                    Some(request) => self.take(request),
                    None => break,
                },
                reply = self.frames.next::<OutgoingReply>() => match reply {
                    Ok(Some(reply)) => {
                        if let Some(pending) = self.pending.remove(&reply.id) {
                            pending.end(reply.result, &self.dropped);
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                _ = connection.closed() => break,
                _ = look.tick(), if !self.pending.is_empty() => self.end_late(),
            }
        }
        let lost = Problem::new(
            Code::OutcomeUnknown,
            "the session with the coordinator ended while the call was under way",
        );
        for (_, pending) in self.pending.drain() {
            pending.end(Err(lost.clone()), &self.dropped);
        }
    }

    fn end_late(&mut self) {
        let now = Instant::now();
        let late = self.pending.extract_if(|_, p| now >= p.until + GRACE);
        for (_, pending) in late {
            let message = "no answer came in time; whether the call was made is not known";
            let problem = Problem::new(Code::OutcomeUnknown, message);
            pending.end(Err(problem), &self.dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_caller_takes_the_places_of_others_or_of_what_is_kept() {
        let places = Arc::new(Places::default());
        let instance = |n: usize| format!("service/s/{n}").parse::<InstanceId>().unwrap();
        let take = |kept, n| places.take(kept, Some(&instance(n)));
        let mut held: Vec<Place> = (0..INSTANCE_CALLS_MAX)
            .map_while(|_| take(false, 0))
            .collect();
        assert_eq!(held.len(), INSTANCE_CALLS_MAX);
        assert!(take(false, 0).is_none());
        for n in 1..4 {
            held.extend((0..INSTANCE_CALLS_MAX).map_while(|_| take(false, n)));
        }
        assert_eq!(held.len(), CALLS_MAX);
        assert!(take(false, 5).is_none(), "the node's are taken");
        assert!(take(true, 5).is_some(), "what is kept has its own");
        drop(held);
        assert!(places.taken().by.is_empty() && take(false, 0).is_some());
    }
}
