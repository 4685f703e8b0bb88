//! Where requests to services go: instances over sessions, as gateways see them.
//!
//! The table is made anew for a service whenever something about it or its nodes changes; a version
//! counts these changes, and whoever waits for an instance waits on it. A request takes a snapshot:
//! no lock is held while a node is asked.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use hop3_common::{
    api::EventView,
    codes::{Code, Problem},
    id::{InstanceId, ServiceName},
    ownership::Epoch,
    spec::State,
    wire::{CallResult, ClientUp, ServiceRequest, Target, attach::Channel},
};
use hop3_gateway::{Attempt, Instance, Link as ClientLink, Pick, Router, ServiceInfo};
use tokio::sync::watch;

use super::{
    moves::index_of,
    table::Service,
    view::{status_of, view_of},
};
use crate::{Core, records::MoveStage, registry::Link, tasks::ByteStream};

/// Where requests go.
pub(crate) struct Routes {
    table: ArcSwap<HashMap<ServiceName, Arc<Route>>>,
    version: watch::Sender<u64>,
}

/// A service as gateways see it.
struct Route {
    info: Arc<ServiceInfo>,
    instances: Vec<Stop>,
}

/// Where requests for one instance go.
enum Stop {
    Ready(Arc<Remote>),
    Wait(String),
}

/// An instance on a node that is connected.
pub(crate) struct Remote {
    index: u32,
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Epoch,
    pub(crate) link: Arc<dyn Link>,
    flying: Arc<AtomicU32>,
    /// Why its node refuses requests, while it cannot store what they change.
    refusal: Arc<ArcSwapOption<Problem>>,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            version: watch::Sender::new(1),
        }
    }
}

impl Routes {
    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Returns when the version is above `seen`.
    pub(crate) async fn changed(&self, seen: u64) {
        // Fails only when the sender is gone, and it is our own.
        let _ = self
            .version
            .subscribe()
            .wait_for(|version| *version > seen)
            .await;
    }

    fn get(&self, name: &ServiceName) -> Option<Arc<Route>> {
        self.table.load().get(name).cloned()
    }

    /// Why an instance that serves refused what it was asked last, if its node could not store
    /// changes then.
    pub(super) fn refusal(&self, name: &ServiceName, index: u32) -> Option<Arc<Problem>> {
        match self.get(name)?.instances.get(index as usize)? {
            Stop::Ready(remote) => remote.refusal.load_full(),
            Stop::Wait(_) => None,
        }
    }

    /// The instances that serve now.
    pub(crate) fn ready(&self, name: &ServiceName) -> Vec<Arc<Remote>> {
        let route = self.get(name);
        let stops = route.iter().flat_map(|route| &route.instances);
        stops
            .filter_map(|stop| match stop {
                Stop::Ready(remote) => Some(remote.clone()),
                Stop::Wait(_) => None,
            })
            .collect()
    }
}

impl Remote {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn busy(&self) -> u32 {
        self.flying.load(Relaxed)
    }

    /// Remembers what an answer says about its node's disk.
    fn note(&self, answer: &Result<CallResult, Problem>) {
        match answer {
            Err(problem) if problem.code == Code::Storage => {
                self.refusal.store(Some(Arc::new(problem.clone())));
            }
            Ok(_) if self.refusal.load().is_some() => self.refusal.store(None),
            _ => {}
        }
    }
}

/// Renews the routes of a service, and tells who watches.
pub(super) fn refresh(core: &Core, name: &ServiceName) {
    let service = core.services.get(name);
    let before = core.services.routes.get(name);
    let route = service
        .as_ref()
        .map(|service| Arc::new(route(core, service, before.as_deref())));
    core.services.routes.table.rcu(|table| {
        let mut table = (**table).clone();
        match &route {
            Some(route) => table.insert(name.clone(), route.clone()),
            None => table.remove(name),
        };
        table
    });
    core.services
        .routes
        .version
        .send_modify(|version| *version += 1);
    match service {
        Some(service) => core
            .events
            .tell(|| EventView::Service(Box::new(view_of(core, &service)))),
        None => core.events.tell(|| EventView::ServiceRemoved {
            service: name.to_string(),
        }),
    }
}

fn route(core: &Core, service: &Service, before: Option<&Route>) -> Route {
    let spec = &service.record.spec;
    let info = ServiceInfo {
        name: service.record.name.clone(),
        state: spec.state,
        count: spec.instances(),
        key: spec.key.clone(),
        public: spec.public,
        deadline: spec.limits.deadline,
        request_bytes_max: spec.limits.request.0,
    };
    let all = 0..spec.instances();
    let instances = all
        .map(|index| stop(core, service, index, before))
        .collect();
    Route {
        info: Arc::new(info),
        instances,
    }
}

fn stop(core: &Core, service: &Service, index: u32, before: Option<&Route>) -> Stop {
    let id = service.id(index as usize);
    let Some(record) = service.instance(index) else {
        return Stop::Wait(format!("{id} is not placed yet"));
    };
    let sealing = record
        .moving
        .as_ref()
        .filter(|moving| moving.stage == MoveStage::Sealing);
    if let Some(moving) = sealing {
        return Stop::Wait(format!("{id} moves to {}", moving.to));
    }
    let serving = core.services.serving(&id, record.own.epoch);
    let node = record
        .own
        .owner
        .as_ref()
        .and_then(|node| core.nodes.get(node));
    let link = node.and_then(|node| node.link());
    match link.filter(|_| serving.as_ref().is_some_and(|serving| serving.ready)) {
        Some(link) => {
            let known = before.and_then(|before| before.instances.get(index as usize));
            let (flying, refusal) = match known {
                Some(Stop::Ready(remote)) if remote.epoch == record.own.epoch => {
                    (remote.flying.clone(), remote.refusal.clone())
                }
                Some(Stop::Ready(remote)) => (remote.flying.clone(), Arc::default()),
                _ => Default::default(),
            };
            Stop::Ready(Arc::new(Remote {
                index,
                instance: id,
                epoch: record.own.epoch,
                link,
                flying,
                refusal,
            }))
        }
        None => {
            let (status, reason) = status_of(core, service, index);
            Stop::Wait(format!("{id} is {status}: {reason}"))
        }
    }
}

#[async_trait::async_trait]
impl Instance for Remote {
    fn index(&self) -> u32 {
        self.index
    }

    fn in_flight(&self) -> u32 {
        self.busy()
    }

    async fn call(&self, request: &ServiceRequest, deadline: Instant) -> Attempt {
        let target = Target::Service {
            instance: self.instance.clone(),
            epoch: self.epoch,
            request: request.clone(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let flight = crate::models::InFlight::begin(&self.flying);
        let answer = self.link.call(target, left).await;
        drop(flight);
        self.note(&answer);
        match answer {
            Ok(CallResult::Service(reply)) => Attempt::Replied(reply),
            Ok(_) => {
                let node = self.link.node();
                let message = format!("node `{node}` answered a request with something else");
                Attempt::Unknown(Problem::new(Code::Protocol, message))
            }
            Err(problem) => attempt(problem),
        }
    }

    async fn attach(
        &self,
        first: ClientUp,
        deadline: Instant,
    ) -> Result<Box<dyn ClientLink>, Problem> {
        let opening = async {
            let (instance, epoch) = (self.instance.clone(), self.epoch);
            let mut link = self.link.client(instance, epoch).await?;
            link.send(first).await?;
            Ok(link)
        };
        let until = tokio::time::Instant::from_std(deadline);
        let opened = tokio::time::timeout_at(until, opening).await;
        opened.unwrap_or_else(|_| {
            let message = format!(
                "node `{}` did not attach the client in time",
                self.link.node()
            );
            Err(Problem::new(Code::Deadline, message))
        })
    }
}

/// What a failed call means: whether it began.
fn attempt(problem: Problem) -> Attempt {
    match problem.code {
        Code::NotHere | Code::ServiceNotReady | Code::Busy | Code::NodeUnreachable => {
            Attempt::NotDelivered(problem)
        }
        Code::OutcomeUnknown | Code::Deadline => Attempt::Unknown(problem),
        _ => Attempt::Failed(problem),
    }
}

/// The coordinator's services, for its gateway.
pub(crate) struct ServiceRouter(pub(crate) Weak<Core>);

impl ServiceRouter {
    fn core(&self) -> Result<Arc<Core>, Problem> {
        let gone = || Problem::new(Code::Unavailable, "the coordinator goes down");
        self.0.upgrade().ok_or_else(gone)
    }
}

#[async_trait::async_trait]
impl Router for ServiceRouter {
    fn service(&self, name: &ServiceName) -> Result<Arc<ServiceInfo>, Problem> {
        let core = self.core()?;
        match core.services.routes.get(name) {
            Some(route) => Ok(route.info.clone()),
            None => match core.services.find(name) {
                Err(problem) => Err(problem),
                // Made, and not routed yet.
                Ok(service) => Ok(route(&core, &service, None).info),
            },
        }
    }

    fn pick(&self, name: &ServiceName, index: Option<u32>) -> Pick {
        let Ok(core) = self.core() else {
            return Pick::Wait("the coordinator goes down".into());
        };
        let Some(route) = core.services.routes.get(name) else {
            return Pick::Wait(format!("there is no service `{name}`"));
        };
        let (mut ready, mut waits) = (Vec::<Arc<dyn Instance>>::new(), None);
        for (n, stop) in (0..).zip(&route.instances) {
            match stop {
                _ if index.is_some_and(|index| index != n) => {}
                // A session that has just ended is known to be before the table is.
                Stop::Ready(remote) if remote.link.is_open() => ready.push(remote.clone()),
                Stop::Ready(remote) => {
                    let node = remote.link.node();
                    waits = Some(format!("{} waits for node {node}", remote.instance));
                }
                Stop::Wait(why) => waits = Some(why.clone()),
            }
        }
        if !ready.is_empty() {
            return Pick::Ready(ready);
        }
        let none = || match route.info.state {
            State::None => format!("service `{name}` has no replicas: scale it"),
            _ => format!("service `{name}` has no such instance"),
        };
        Pick::Wait(waits.unwrap_or_else(none))
    }

    fn version(&self) -> u64 {
        self.core().map_or(0, |core| core.services.routes.version())
    }

    async fn changed(&self, seen: u64) {
        match self.core() {
            Ok(core) => core.services.routes.changed(seen).await,
            // Nothing will change any more.
            Err(_) => std::future::pending().await,
        }
    }

    fn authenticate(&self, token: &str) -> Result<(), Problem> {
        self.core()?.access.authenticate(token).map(drop)
    }
}

/// What an instance logs: what its node has, and with `follow` what comes.
pub(crate) async fn logs(
    core: &Core,
    name: &ServiceName,
    index: Option<u32>,
    follow: bool,
) -> Result<ByteStream, Problem> {
    let service = core.services.find(name)?;
    let index = index_of(&service, index)?;
    let id = service.id(index as usize);
    let node = service.instance(index).and_then(|i| i.own.owner.clone());
    let Some(node) = node else {
        return Err(Problem::new(
            Code::ServiceNotReady,
            format!("{id} is not placed yet, and has no log"),
        ));
    };
    let link = core.nodes.get(&node).and_then(|node| node.link());
    let Some(link) = link else {
        let message = format!("the log of {id} is on node `{node}`, which is not connected");
        return Err(Problem::new(Code::NodeUnreachable, message));
    };
    link.logs(id, Channel::Stdout, 0, follow).await
}
