//! Delivers a request to an instance of a service, wherever it is: waits while there is none,
//! follows it when it moves, and never does twice what may not be done twice.
//!
//! Order: requests for one instance that wait are asked for in the order they came in. After a
//! refusal the first of them asks alone, and the others follow once it got through. Two requests
//! in flight at once have no order between them, as in HTTP itself.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    wire::{ServiceReply, ServiceRequest},
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::{
    Attempt, Instance, Pick, Router, ServiceInfo,
    counters::{Counters, Gauge, Snapshot},
    policy::{self, ATTEMPT_FLOOR, Next},
    reply,
    waiting::{Place, Waiting},
};

/// How long after a deadline an instance's own word on it may come in: it knows better than the
/// gateway whether the request began.
pub const ANSWER_GRACE: Duration = Duration::from_millis(250);
/// The first in line asks the router again at least this often, should a change go unannounced.
const PICK_AGAIN: Duration = Duration::from_secs(1);

/// A gateway: delivers requests to services. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) router: Arc<dyn Router>,
    pub(crate) options: Options,
    pub(crate) counters: Counters,
    waiting: Arc<Waiting>,
}

/// How a gateway works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Client streams open at once: each may hold about 2 MiB of data that is under way.
    pub streams_max: u64,
    /// How long a client stream waits for its instance to come back, and how long its end is
    /// tried to be told to it.
    pub stream_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            streams_max: 10_000,
            stream_patience: Duration::from_secs(60),
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The answer.
    pub reply: ServiceReply,
    /// Which instance gave it.
    pub index: u32,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway to the services that `router` knows.
    pub fn new(router: Arc<dyn Router>, options: Options) -> Self {
        let inner = Inner {
            router,
            options,
            counters: Counters::default(),
            waiting: Arc::new(Waiting::new()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        self.inner.counters.snapshot(self.inner.waiting.total())
    }

    /// Delivers `request` to instance `index` of `service`; without one, to the shard that owns
    /// its key, or the least busy replica. Takes as long as the service's deadline says, or
    /// `deadline` if that is shorter, and at most [`ANSWER_GRACE`] more.
    ///
    /// Dropping the future gives up: a request that waits has then not happened, one that an
    /// instance was asked may have.
    ///
    /// # Errors
    /// - [`Code::ServiceUnknown`], or whatever the router says;
    /// - [`Code::InvalidField`]: no key, or no such instance;
    /// - [`Code::Busy`], [`Code::ServiceNotReady`]: it did not happen, and may be repeated;
    /// - [`Code::OutcomeUnknown`]: it may have happened;
    /// - [`Code::Deadline`]: it may have happened, and repeating it changes nothing;
    /// - what the instance failed with.
    pub async fn deliver(
        &self,
        service: &ServiceName,
        index: Option<u32>,
        request: &ServiceRequest,
        deadline: Option<Duration>,
    ) -> Result<Delivered, Problem> {
        let counters = &self.inner.counters;
        let ticket = counters.requests.fetch_add(1, Relaxed);
        let _in_flight = Gauge::up(&counters.in_flight);
        let info = self.inner.router.service(service)?;
        let time = Duration::from_millis(info.deadline.0);
        let time = deadline.map_or(time, |deadline| deadline.min(time));
        let delivery = Delivery {
            inner: &self.inner,
            target: policy::target(&info, index, request)?,
            repeatable: policy::repeatable(request),
            request,
            ticket,
            time,
            deadline: Instant::now() + time,
            info,
            place: None,
            refused: Refused::default(),
        };
        delivery.run().await
    }
}

/// One request on its way.
struct Delivery<'a> {
    inner: &'a Inner,
    info: Arc<ServiceInfo>,
    target: Option<u32>,
    request: &'a ServiceRequest,
    repeatable: bool,
    ticket: u64,
    time: Duration,
    deadline: Instant,
    place: Option<Place>,
    refused: Refused,
}

/// What came of it so far.
#[derive(Default)]
struct Refused {
    attempts: u32,
    /// Why the last attempt was not the last.
    problem: Option<Problem>,
    /// Whether any attempt may have happened.
    maybe: bool,
    /// Why there is nobody to ask.
    waits: Option<String>,
    /// Who refused since the router last changed.
    tried: Vec<u32>,
    last: Option<Instant>,
}

/// The deadline has passed.
struct Late;

impl Delivery<'_> {
    async fn run(mut self) -> Result<Delivered, Problem> {
        loop {
            match self.round().await {
                Ok(Some(result)) => return result,
                Ok(None) => {}
                Err(Late) => return Err(self.late()),
            }
        }
    }

    /// Waits for its turn, then asks an instance or waits for one.
    async fn round(&mut self) -> Result<Option<Result<Delivered, Problem>>, Late> {
        let (waiting, name) = (&self.inner.waiting, &self.info.name);
        if self.place.is_none()
            && waiting.any(name, self.target)
            && let Err(problem) = self.enter()
        {
            return Ok(Some(Err(problem)));
        }
        if let Some(place) = &self.place {
            let turn = timeout_at(self.deadline, place.turn()).await;
            turn.map_err(|_| Late)?;
            // It may have been removed in the meantime.
            match self.inner.router.service(&self.info.name) {
                Ok(info) => self.info = info,
                Err(problem) => return Ok(Some(Err(problem))),
            }
        }
        let version = self.inner.router.version();
        match self.inner.router.pick(&self.info.name, self.target) {
            Pick::Wait(why) => {
                self.refused.waits = Some(why);
                self.wait(version, Instant::now() + PICK_AGAIN).await
            }
            Pick::Ready(instances) => match self.choose(&instances) {
                Some(instance) => self.ask(instance).await,
                None => {
                    let pause = policy::pause(self.refused.attempts);
                    let from = self.refused.last.unwrap_or_else(Instant::now);
                    self.wait(version, from + pause).await
                }
            },
        }
    }

    fn enter(&mut self) -> Result<(), Problem> {
        let bytes = self.request.body.len();
        let waiting = &self.inner.waiting;
        let place = waiting.enter(&self.info.name, self.target, self.ticket, bytes)?;
        self.place = Some(place);
        Ok(())
    }

    fn choose<'i>(&self, instances: &'i [Arc<dyn Instance>]) -> Option<&'i Arc<dyn Instance>> {
        if let ([only], []) = (instances, self.refused.tried.as_slice()) {
            return Some(only);
        }
        let load = |instance: &Arc<dyn Instance>| (instance.index(), instance.in_flight());
        let loads: Vec<(u32, u32)> = instances.iter().map(load).collect();
        let turn = usize::try_from(self.ticket).unwrap_or_default();
        let at = policy::least_busy(&loads, &self.refused.tried, turn)?;
        instances.get(at)
    }

    /// Waits in line until the router has changed since `version`, or `until`.
    async fn wait(
        &mut self,
        version: u64,
        until: Instant,
    ) -> Result<Option<Result<Delivered, Problem>>, Late> {
        if self.place.is_none() {
            if let Err(problem) = self.enter() {
                return Ok(Some(Err(problem)));
            }
            // Others may have come before it: first its turn.
            return Ok(None);
        }
        let floor = self.refused.last.map(|last| last + ATTEMPT_FLOOR);
        let change = async {
            tokio::select! {
                () = self.inner.router.changed(version) => {}
                () = sleep_until(until) => {}
            }
            if let Some(floor) = floor {
                sleep_until(floor).await;
            }
        };
        timeout_at(self.deadline, change).await.map_err(|_| Late)?;
        self.refused.tried.clear();
        Ok(None)
    }

    async fn ask(
        &mut self,
        instance: &Arc<dyn Instance>,
    ) -> Result<Option<Result<Delivered, Problem>>, Late> {
        let counters = &self.inner.counters;
        if self.refused.attempts > 0 {
            counters.retried.fetch_add(1, Relaxed);
        }
        let index = instance.index();
        self.refused.last = Some(Instant::now());
        let attempt = self.attempt(instance).await;
        if matches!(attempt, Attempt::Unknown(_)) {
            counters.unknown.fetch_add(1, Relaxed);
        }
        match policy::judge(attempt, self.repeatable) {
            Next::Done(result) => {
                if let Some(place) = self.place.take() {
                    place.got_through();
                }
                let checked = result.and_then(|reply| {
                    reply::check(&reply)?;
                    Ok(Delivered { reply, index })
                });
                Ok(Some(checked))
            }
            Next::Again(problem) => Ok(self.again(index, problem, false).err().map(Err)),
            Next::Repeat(problem) => Ok(self.again(index, problem, true).err().map(Err)),
        }
    }

    /// One attempt. The first of a line that is not open keeps the others back meanwhile; in an
    /// open one the next may follow as soon as this one has begun.
    async fn attempt(&mut self, instance: &Arc<dyn Instance>) -> Attempt {
        let call = instance.call(self.request, self.deadline.into_std());
        let mut call = pin!(timeout_at(self.deadline + ANSWER_GRACE, call));
        let alone = |place: &Place| self.target.is_some() && !place.open();
        let answer = if self.place.as_ref().is_none_or(alone) {
            call.await
        } else {
            let begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            self.place = None;
            match begun {
                Poll::Ready(answer) => answer,
                Poll::Pending => call.await,
            }
        };
        answer.unwrap_or_else(|_| {
            let message = format!(
                "instance {} of `{}` did not answer within {:?}",
                instance.index(),
                self.info.name,
                self.time
            );
            Attempt::Unknown(Problem::new(Code::Deadline, message))
        })
    }

    fn again(&mut self, index: u32, problem: Problem, maybe: bool) -> Result<(), Problem> {
        self.refused.attempts = self.refused.attempts.saturating_add(1);
        self.refused.maybe |= maybe;
        self.refused.problem = Some(problem);
        self.refused.waits = None;
        self.refused.tried.push(index);
        if self.place.is_none() && self.target.is_some() {
            self.enter()?;
        }
        if let Some(place) = &self.place {
            place.refused();
        }
        Ok(())
    }

    /// Why it was not delivered in time.
    fn late(&self) -> Problem {
        let Refused {
            attempts,
            problem,
            maybe,
            waits,
            ..
        } = &self.refused;
        let (name, time) = (&self.info.name, self.time);
        let which = match self.target {
            Some(index) => format!("instance {index} of `{name}`"),
            None => format!("an instance of `{name}`"),
        };
        // It may never have had its turn: then for the same reason as those before it.
        let waits = waits.clone().or_else(|| {
            let pick = || self.inner.router.pick(name, self.target);
            match problem.is_none().then(pick)? {
                Pick::Wait(why) => Some(why),
                Pick::Ready(_) => None,
            }
        });
        let why = match (&waits, problem) {
            (Some(waits), _) => waits.clone(),
            (None, Some(problem)) => problem.to_string(),
            (None, None) => "others that came before it still wait".to_owned(),
        };
        let message = format!("waited {time:?} for {which}, in {attempts} attempts: {why}");
        let busy = problem
            .as_ref()
            .is_none_or(|problem| problem.code == Code::Busy);
        let code = match (maybe, waits) {
            (true, _) => Code::Deadline,
            (false, None) if busy => Code::Busy,
            (false, _) => Code::ServiceNotReady,
        };
        Problem::new(code, message)
    }
}

/// Waits until `router` has changed since `version`, at most `at_most`.
pub(crate) async fn changed(router: &dyn Router, version: u64, at_most: Duration) {
    // Either way it is looked at again.
    let _ = timeout(at_most, router.changed(version)).await;
}
