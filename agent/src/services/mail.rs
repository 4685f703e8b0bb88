//! Messages of durable instances on their way to everybody who subscribes, until they are there.
//!
//! ```text
//! desk (durable) ─► here: to instances of this node ─► away: over the coordinator ─► arrived
//! ```
//!
//! Two lanes for each publisher, each in order and one message at a time: without a coordinator the
//! instances of this node still hear each other. What the first lane delivered the second leaves
//! out. A message leaves the desk when every subscriber has it; until then it survives whatever
//! the publisher's state survives, and is sent again after a restart. Subscribers with state know
//! numbers that they have heard; those without may hear a message twice after a restart.
//!
//! A message that an instance of this node does not take waits for it as long as it is here; is it
//! not, the coordinator knows where it is. As long as a subscriber is owed a message by the second
//! lane, the first gives it none: it would take the earlier one for a repeat.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    spec::{State, Topic},
    topics,
    wire::{CallResult, TopicMessage},
};
use hop3_runtime::wasm::CancelToken;
use tokio::sync::oneshot;

use super::{Services, actor::Actor, desk::letters::Letter, inbox::Ask};

/// Pause after a try that failed, doubled each time up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// One publisher's messages. Pure but for its lock.
#[derive(Debug, Default)]
pub(super) struct Mail(Mutex<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    here: VecDeque<(u64, Letter)>,
    away: VecDeque<Sent>,
    /// A task serves the lane.
    here_runs: bool,
    away_runs: bool,
    /// All up to this number are there, which the desk does not know yet.
    arrived: Option<u64>,
}

/// One that instances of this node have.
#[derive(Debug, Clone)]
struct Sent {
    number: u64,
    letter: Letter,
    has: BTreeSet<ServiceName>,
}

impl Mail {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Changed in single steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; `true`: somebody must begin to carry.
    #[must_use]
    pub(super) fn post(&self, number: u64, letter: Letter) -> bool {
        let mut lanes = self.lanes();
        lanes.here.push_back((number, letter));
        !std::mem::replace(&mut lanes.here_runs, true)
    }

    /// Messages that not every subscriber has.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        let lanes = self.lanes();
        lanes.here.len() + lanes.away.len()
    }

    /// The number up to which all arrived since the last time.
    pub(super) fn take_arrived(&self) -> Option<u64> {
        self.lanes().arrived.take()
    }

    /// The first one for this node; without one its lane ends.
    fn here(&self) -> Option<(u64, Letter)> {
        let mut lanes = self.lanes();
        let first = lanes.here.front().cloned();
        lanes.here_runs = first.is_some();
        first
    }

    /// The first one for this node goes on to the other lane; `true`: somebody must begin it.
    fn passed(&self, has: BTreeSet<ServiceName>) -> bool {
        let mut lanes = self.lanes();
        let Some((number, letter)) = lanes.here.pop_front() else {
            return false;
        };
        lanes.away.push_back(Sent {
            number,
            letter,
            has,
        });
        !std::mem::replace(&mut lanes.away_runs, true)
    }

    /// The first one for the coordinator; without one its lane ends.
    fn away(&self) -> Option<Sent> {
        let mut lanes = self.lanes();
        let first = lanes.away.front().cloned();
        lanes.away_runs = first.is_some();
        first
    }

    /// More services have the first one for the coordinator.
    fn has(&self, services: Vec<ServiceName>) {
        if let Some(first) = self.lanes().away.front_mut() {
            first.has.extend(services);
        }
    }

    /// The first one for the coordinator is everywhere. Whether none waits.
    fn arrived(&self) -> bool {
        let mut lanes = self.lanes();
        if let Some(first) = lanes.away.pop_front() {
            lanes.arrived = Some(first.number);
        }
        lanes.away.is_empty() && lanes.here.is_empty()
    }

    /// Whether the coordinator still has to bring a service something to which it subscribes. What
    /// has the newest of them needs no earlier one.
    fn owes(&self, service: &ServiceName, subscribes: &[Topic]) -> bool {
        let lanes = self.lanes();
        let mut newest = lanes.away.iter().rev();
        let newest = newest.find(|sent| {
            let topic = &sent.letter.topic;
            subscribes.iter().any(|granted| granted.covers(topic))
        });
        newest.is_some_and(|sent| !sent.has.contains(service))
    }
}

/// Begins to carry an actor's mail; ends with the actor, or when there is none.
pub(super) fn carry(services: &Services, from: &Arc<Actor>) {
    let (services, weak) = (services.clone(), Arc::downgrade(from));
    from.runtime().spawn(carry_here(services, weak));
}

async fn carry_here(services: Services, from: Weak<Actor>) {
    loop {
        let Some(actor) = from.upgrade() else { return };
        let Some((number, letter)) = actor.mail.here() else {
            return;
        };
        let message = message(&actor, number, letter);
        let names = services.subscribing(&message.topic);
        let offers = names
            .into_iter()
            .map(|name| services.offer(&from, name, &message));
        drop(actor);
        let has = futures_util::future::join_all(offers).await;
        let Some(actor) = from.upgrade().filter(|actor| actor.may_act()) else {
            return;
        };
        if actor.mail.passed(has.into_iter().flatten().collect()) {
            actor
                .runtime()
                .spawn(carry_away(services.clone(), from.clone()));
        }
    }
}

async fn carry_away(services: Services, from: Weak<Actor>) {
    let outgoing = services.0.outgoing.clone();
    let mut pause = Pause::default();
    loop {
        let Some(actor) = from.upgrade().filter(|actor| actor.may_act()) else {
            return;
        };
        let Some(sent) = actor.mail.away() else {
            return;
        };
        let token = (actor.instance().clone(), actor.token());
        let message = message(&actor, sent.number, sent.letter);
        let has = sent.has.into_iter().collect();
        let waits = match outgoing.mail(token, message, has).await {
            Ok((has, waits)) => {
                actor.mail.has(has);
                waits
            }
            Err(problem) => {
                tracing::debug!(instance = %actor.instance(), %problem, "a message waits");
                pause.wait(outgoing.changed()).await;
                continue;
            }
        };
        if waits.is_empty() {
            pause = Pause::default();
            if actor.mail.arrived() {
                actor.schedule();
            }
            continue;
        }
        if pause.tries.is_power_of_two() {
            let names: Vec<&str> = waits.iter().take(10).map(ServiceName::as_str).collect();
            let (instance, messages) = (actor.instance(), actor.mail.waiting());
            tracing::info!(%instance, messages, to = ?names, "messages wait for subscribers");
        }
        drop(actor);
        pause.wait(std::future::pending()).await;
    }
}

/// Between tries.
#[derive(Default)]
struct Pause {
    tries: u32,
}

impl Pause {
    /// Waits a while, or until something happened.
    async fn wait(&mut self, happened: impl Future<Output = ()>) {
        let time = PAUSE * 2u32.saturating_pow(self.tries.min(16));
        self.tries = self.tries.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(time.min(PAUSE_MAX)) => {}
            () = happened => {}
        }
    }
}

fn message(from: &Actor, number: u64, letter: Letter) -> TopicMessage {
    let Letter { topic, payload } = letter;
    let from = Some((from.instance().clone(), number));
    TopicMessage {
        topic,
        payload,
        from,
    }
}

impl Services {
    /// The services of this node's instances that subscribe to `topic`.
    pub(super) fn subscribing(&self, topic: &str) -> BTreeSet<ServiceName> {
        let mut names = BTreeSet::new();
        for actor in self.actors() {
            let work = actor.work();
            if work.subscribe.iter().any(|granted| granted.covers(topic)) {
                names.insert(work.name.clone());
            }
        }
        names
    }

    /// The instance of this node that gets a service's messages on `topic`.
    pub(super) fn subscriber(&self, service: &ServiceName, topic: &str) -> Option<Arc<Actor>> {
        let mine = self.of(service).into_iter().filter(|actor| {
            let work = actor.work();
            let meant =
                work.state != State::Keyed || work.index == topics::shard(topic, work.count);
            meant && work.subscribe.iter().any(|granted| granted.covers(topic))
        });
        mine.min_by_key(|actor| (!actor.serves(), actor.in_flight()))
    }

    /// Gives a message to the service's instance on this node, as long as there is one: the
    /// service, if it is done with it.
    async fn offer(
        &self,
        from: &Weak<Actor>,
        service: ServiceName,
        message: &TopicMessage,
    ) -> Option<ServiceName> {
        let mut pause = Pause::default();
        let mut version = self.version();
        loop {
            version.mark_unchanged();
            let to = self.subscriber(&service, &message.topic)?;
            let publisher = from.upgrade().filter(|from| from.may_act())?;
            if publisher.mail.owes(&service, &to.work().subscribe) {
                return None;
            }
            drop(publisher);
            let answer = tell(&to, message.clone()).await;
            if topics::settled(&answer, to.work().state) {
                if let Err(problem) = answer {
                    let to = to.instance();
                    tracing::info!(%to, topic = message.topic, %problem, "a message failed");
                }
                return Some(service);
            }
            drop(to);
            pause.wait(async { drop(version.changed().await) }).await;
        }
    }
}

/// Gives an instance a message, and waits for what it makes of it.
async fn tell(to: &Arc<Actor>, message: TopicMessage) -> Result<(), Problem> {
    let (tell, told) = oneshot::channel();
    let ask = Ask {
        until: Instant::now() + Duration::from_millis(to.work().limits.deadline.0),
        cancel: CancelToken::new(),
        reply: Box::new(move |result: Result<CallResult, Problem>| drop(tell.send(result))),
    };
    to.message(message, ask);
    let lost = |_| Problem::new(Code::OutcomeUnknown, "the instance ended");
    told.await.map_err(lost)?.map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;

    fn letter(topic: &str) -> Letter {
        Letter {
            topic: topic.into(),
            payload: Bytes::new(),
        }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_message_passes_both_lanes_and_has_then_arrived() {
        let mail = Mail::default();
        assert!(mail.post(1, letter("a")) && !mail.post(2, letter("a")));
        assert_eq!(mail.here().unwrap().0, 1);
        assert!(mail.passed(BTreeSet::from([name("x")])));
        assert_eq!(mail.here().unwrap().0, 2);
        assert!(!mail.passed(BTreeSet::new()), "the lane runs");
        assert!(mail.here().is_none() && mail.post(3, letter("a")));
        assert_eq!(mail.waiting(), 3);
        mail.has(vec![name("y")]);
        let first = mail.away().unwrap();
        assert_eq!(first.number, 1);
        assert_eq!(first.has, BTreeSet::from([name("x"), name("y")]));
        assert_eq!(mail.take_arrived(), None);
        assert!(!mail.arrived() && !mail.arrived());
        assert_eq!(mail.take_arrived(), Some(2));
        assert!(mail.away().is_none() && mail.waiting() == 1);
    }

    #[test]
    fn nobody_hears_from_here_while_the_coordinator_owes_something_earlier() {
        let (mail, x) = (Mail::default(), name("x"));
        let subscribes = ["plant/*".parse().unwrap()];
        for (number, topic, has) in [(1, "plant/a", true), (2, "else", false)] {
            let _ = mail.post(number, letter(topic));
            let has = has.then(|| x.clone()).into_iter().collect();
            let _ = mail.passed(has);
        }
        assert!(!mail.owes(&x, &subscribes), "it does not want the other");
        let _ = mail.post(3, letter("plant/b"));
        let _ = mail.passed(BTreeSet::new());
        assert!(mail.owes(&x, &subscribes));
        let _ = mail.arrived() || mail.arrived();
        mail.has(vec![x.clone()]);
        assert!(!mail.owes(&x, &subscribes));
    }
}
