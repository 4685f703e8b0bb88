//! Where effects go: instances of this node directly, everybody else over the coordinator.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, ServiceName},
    ownership::Token,
    spec::{KeyFrom, State, service::shard_of},
    wire::{CallResult, ServiceReply, ServiceRequest, TopicMessage},
};
use hop3_runtime::wasm::CancelToken;

use super::{
    Services,
    actor::Actor,
    inbox::{Ask, Item},
    outgoing::Done,
    release::World,
};

/// Whether nothing began, so that another way may be tried.
pub(crate) fn surely_not_begun(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::NotHere | Code::ServiceNotReady | Code::Busy | Code::Storage
    )
}

/// The key of a request, if it has one.
#[must_use]
pub(crate) fn key_of(key: &KeyFrom, request: &ServiceRequest) -> Option<Vec<u8>> {
    match key {
        KeyFrom::Path(n) => {
            let path = request.path.split(['?', '#']).next().unwrap_or_default();
            // The path begins with a slash.
            let part = path.split('/').nth(usize::from(*n))?;
            Some(part.as_bytes().to_vec())
        }
        KeyFrom::Header(name) => {
            let found = request.headers.iter().find(|(header, _)| header == name);
            found.map(|(_, value)| value.to_vec())
        }
    }
}

/// Before a call whose outcome is not known is made again.
const AGAIN: Duration = Duration::from_millis(200);

impl Services {
    /// An instance of this node that could take a request to `service`.
    #[must_use]
    pub fn pick(&self, service: &ServiceName, request: &ServiceRequest) -> Option<Arc<Actor>> {
        let mine = self.of(service).into_iter();
        let mine = mine.filter(|actor| actor.serves());
        mine.filter(|actor| match actor.work().state {
            State::None | State::Single => true,
            State::Keyed => key_of(&actor.work().key, request)
                .is_some_and(|key| shard_of(&key, actor.work().count) == actor.work().index),
        })
        .min_by_key(|actor| actor.in_flight())
    }

    /// Calls a service: here if it can, else over the coordinator.
    pub fn call_service(
        &self,
        from: Option<(InstanceId, Token)>,
        service: ServiceName,
        request: ServiceRequest,
        until: Instant,
        done: Done,
    ) {
        let Some(actor) = self.pick(&service, &request) else {
            let outgoing = &self.0.outgoing;
            return outgoing.call(from, service, request, until, done);
        };
        let (outgoing, again) = (self.0.outgoing.clone(), request.clone());
        let reply = move |result: Result<CallResult, Problem>| match result {
            Err(problem) if surely_not_begun(&problem) && outgoing.stands() => {
                outgoing.call(from, service, again, until, done);
            }
            result => done(service_reply(result)),
        };
        let ask = Ask {
            until,
            cancel: CancelToken::new(),
            reply: Box::new(reply),
        };
        actor.request(request, ask);
    }
}

/// The reply to a request.
pub(crate) fn service_reply(result: Result<CallResult, Problem>) -> Result<ServiceReply, Problem> {
    match result? {
        CallResult::Service(reply) => Ok(reply),
        _ => Err(Problem::new(
            Code::Internal,
            "a request was answered with something else than a reply",
        )),
    }
}

impl World for Services {
    fn publish(&self, from: &Arc<Actor>, seq: u64, topic: String, payload: Bytes) {
        let message = TopicMessage {
            topic,
            payload,
            from: Some((from.instance().clone(), seq)),
        };
        for service in self.subscribing(&message.topic) {
            let Some(actor) = self.subscriber(&service, &message.topic) else {
                continue;
            };
            let limit = Duration::from_millis(actor.work().limits.deadline.0);
            let to = actor.instance().clone();
            let reply = move |result: Result<CallResult, Problem>| {
                if let Err(problem) = result {
                    tracing::debug!(%to, %problem, "a message was not handled");
                }
            };
            let ask = Ask {
                until: Instant::now() + limit,
                cancel: CancelToken::new(),
                reply: Box::new(reply),
            };
            actor.message(message.clone(), ask);
        }
        let from = (from.instance().clone(), from.token());
        self.0.outgoing.publish(from, message);
    }

    fn carry(&self, from: &Arc<Actor>) {
        super::mail::carry(self, from);
    }

    fn call(
        &self,
        from: &Arc<Actor>,
        call: u64,
        service: &str,
        request: ServiceRequest,
        again: bool,
    ) {
        let until = Instant::now() + Duration::from_millis(from.work().limits.deadline.0);
        let Ok(service) = service.parse::<ServiceName>() else {
            let message = format!("`{service}` is not the name of a service");
            let result = Err(Problem::new(Code::ServiceUnknown, message));
            return from.push(Item::CallEnded {
                call,
                result,
                refused: false,
            });
        };
        let asked = Asked {
            call,
            service,
            request,
            until,
        };
        self.make_call(from, asked, again);
    }
}

/// A call of an instance.
#[derive(Clone)]
struct Asked {
    call: u64,
    service: ServiceName,
    request: ServiceRequest,
    until: Instant,
}

impl Services {
    /// Makes a call, and again while its outcome is not known and its key says that it is done once.
    fn make_call(&self, from: &Arc<Actor>, asked: Asked, again: bool) {
        let (services, caller) = (self.clone(), Arc::downgrade(from));
        let Asked {
            call,
            service,
            request,
            until,
        } = asked.clone();
        let done: Done = Box::new(move |result| {
            // An instance that ended meanwhile finds the call in its desk at its next start.
            let Some(caller) = caller.upgrade() else {
                return;
            };
            let result = result.map_err(|problem| perhaps_made(problem, again));
            let unknown = matches!(&result, Err(problem) if problem.code == Code::OutcomeUnknown);
            let keyed = asked.request.idempotency_key.is_some();
            if unknown && keyed && Instant::now() + AGAIN < until {
                let weak = Arc::downgrade(&caller);
                drop(caller.runtime().spawn(async move {
                    tokio::time::sleep(AGAIN).await;
                    if let Some(caller) = weak.upgrade().filter(|caller| caller.may_act()) {
                        services.make_call(&caller, asked, true);
                    }
                }));
                return;
            }
            caller.push(Item::CallEnded {
                call,
                result,
                refused: false,
            });
        });
        let from = Some((from.instance().clone(), from.token()));
        self.call_service(from, service, request, until, done);
    }
}

/// What did not begin now may have been done before, if the call was made before.
fn perhaps_made(problem: Problem, again: bool) -> Problem {
    let not_now = surely_not_begun(&problem) || problem.code == Code::Unavailable;
    if !again || !not_now {
        return problem;
    }
    let message = format!(
        "outcome unknown: the instance was started again while the call was under way, and to make \
         it once more failed: {}",
        problem.message
    );
    Problem::new(Code::OutcomeUnknown, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_where_the_service_says() {
        let request = ServiceRequest {
            method: "GET".into(),
            path: "/rooms/kitchen?x=/y".into(),
            headers: vec![("x-device".into(), Bytes::from_static(b"d7"))],
            body: Bytes::new(),
            more: false,
            idempotency_key: None,
            from: None,
        };
        let key = |text: &str| key_of(&text.parse().unwrap(), &request);
        assert_eq!(key("path/2").unwrap(), b"kitchen");
        assert_eq!(key("header/x-device").unwrap(), b"d7");
        assert_eq!((key("path/3"), key("header/other")), (None, None));
    }
}
