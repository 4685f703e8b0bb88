//! What becomes of a request: too late, repeated, answered, failed; and its deadline.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use hop3_common::{
    codes::{Code, Problem},
    id::UnixMs,
    wire::{CallResult, ServiceReply},
};
use hop3_runtime::{
    service::{Failure, Reply},
    wasm::CancelToken,
};

use super::{
    actor::Actor,
    desk::replies::Known,
    wheel::{Sleeper, SleeperId},
};

pub(super) fn too_late(until: Instant, cancel: &CancelToken) -> Option<Problem> {
    if cancel.is_cancelled() {
        let message = "the request was given up before it began";
        return Some(Problem::new(Code::TaskCancelled, message));
    }
    let message = "the deadline passed while the request waited; it did not begin";
    (Instant::now() >= until).then(|| Problem::new(Code::Deadline, message))
}

pub(super) fn repeated(known: Known) -> Result<CallResult, Problem> {
    match known {
        Known::Reply(reply) => Ok(CallResult::Service(reply)),
        Known::TooLarge => Err(Problem::new(
            Code::OutputGone,
            "the request was done under this idempotency key; its reply was too large to be kept",
        )),
    }
}

pub(super) fn service_reply(reply: Reply) -> ServiceReply {
    ServiceReply {
        // A handler that sets no status means 200.
        status: if reply.status == 0 { 200 } else { reply.status },
        headers: reply.headers,
        body: reply.body,
        stream: reply.stream,
    }
}

/// Why a handler failed, in words.
pub(super) fn failed(failure: Failure, until: Instant, cancel: &CancelToken) -> Problem {
    if matches!(failure, Failure::Ended(_)) && cancel.is_cancelled() {
        return if Instant::now() >= until {
            let message = "the deadline passed while the handler ran; its changes were undone";
            Problem::new(Code::Deadline, message)
        } else {
            let message = "the request was given up while the handler ran; its changes were undone";
            Problem::new(Code::TaskCancelled, message)
        };
    }
    let code = match failure {
        Failure::Reply(_) => Code::ReplyInvalid,
        Failure::Quarantined(_) => Code::InputQuarantined,
        _ => Code::HandlerFailed,
    };
    Problem::new(code, failure.to_string())
}

/// Ends a call at its deadline, if that comes before the call's own limit.
pub(super) struct Deadline<'a> {
    actor: &'a Actor,
    id: SleeperId,
    _alarm: Arc<Alarm>,
}

struct Alarm(CancelToken);

impl Sleeper for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.cancel();
    }
}

impl<'a> Deadline<'a> {
    pub(super) fn set(actor: &'a Actor, until: Instant, cancel: &CancelToken) -> Option<Self> {
        let left = until.saturating_duration_since(Instant::now());
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX / 2);
        if left_ms >= actor.work().limits.deadline.0 {
            return None;
        }
        let wheel = &actor.parts.wheel;
        let id = wheel.register();
        let alarm = Arc::new(Alarm(cancel.clone()));
        let at_ms = UnixMs::now().0 + left_ms + 1;
        let sleeper: Weak<dyn Sleeper> = Arc::downgrade(&(alarm.clone() as Arc<dyn Sleeper>));
        wheel.set(id, Some(at_ms), sleeper);
        Some(Self {
            actor,
            id,
            _alarm: alarm,
        })
    }
}

impl Drop for Deadline<'_> {
    fn drop(&mut self) {
        let nobody: Weak<Alarm> = Weak::new();
        self.actor.parts.wheel.set(self.id, None, nobody);
    }
}
