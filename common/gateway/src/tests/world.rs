//! A router with instances that follow a script, and client streams with a durable far side.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    spec::{KeyFrom, Millis, State, nearest},
    wire::{ClientUp, ServiceReply, ServiceRequest},
};
use tokio::sync::watch;

use super::streams::{Far, FarLink};
use crate::{Attempt, Gateway, Instance, Link, Options, Pick, Router, ServiceInfo};

pub(super) const TOKEN: &str = "tok-en";

/// What an instance does at one attempt.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Reply,
    Answer(ServiceReply),
    NotDelivered(Code),
    Unknown {
        happened: bool,
    },
    Failed,
    /// Never answers.
    Hang,
}

pub(super) struct Scripted {
    index: u32,
    pub(super) script: Mutex<VecDeque<Step>>,
    /// What it does when the script is over.
    pub(super) then: Mutex<Step>,
    /// All attempts: method and path.
    pub(super) attempts: Mutex<Vec<String>>,
    /// Requests that really happened.
    pub(super) happened: Mutex<Vec<ServiceRequest>>,
    pub(super) far: Arc<Far>,
}

pub(super) fn reply(status: u16, body: &'static str) -> ServiceReply {
    ServiceReply {
        status,
        headers: Vec::new(),
        body: Bytes::from_static(body.as_bytes()),
        stream: None,
    }
}

pub(super) fn request(method: &str, path: &str) -> ServiceRequest {
    ServiceRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        body: Bytes::new(),
        more: false,
        idempotency_key: None,
        from: None,
    }
}

impl Scripted {
    pub(super) fn new(index: u32, steps: &[Step]) -> Arc<Self> {
        Self::with_far(index, steps, Arc::new(Far::default()))
    }

    pub(super) fn with_far(index: u32, steps: &[Step], far: Arc<Far>) -> Arc<Self> {
        Arc::new(Self {
            index,
            script: Mutex::new(steps.iter().cloned().collect()),
            then: Mutex::new(Step::Reply),
            attempts: Mutex::default(),
            happened: Mutex::default(),
            far,
        })
    }

    pub(super) fn always(index: u32, step: Step) -> Arc<Self> {
        let instance = Self::new(index, &[]);
        *instance.then.lock().unwrap() = step;
        instance
    }

    pub(super) fn paths(&self) -> Vec<String> {
        let happened = self.happened.lock().unwrap();
        happened
            .iter()
            .map(|request| request.path.clone())
            .collect()
    }

    pub(super) fn attempts(&self) -> usize {
        self.attempts.lock().unwrap().len()
    }

    pub(super) fn last(&self) -> ServiceRequest {
        self.happened.lock().unwrap().last().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Instance for Scripted {
    fn index(&self) -> u32 {
        self.index
    }
    fn in_flight(&self) -> u32 {
        0
    }
    async fn call(&self, request: &ServiceRequest, _deadline: Instant) -> Attempt {
        let line = format!("{} {}", request.method, request.path);
        self.attempts.lock().unwrap().push(line);
        let step = self.script.lock().unwrap().pop_front();
        let step = step.unwrap_or_else(|| self.then.lock().unwrap().clone());
        let happen = || self.happened.lock().unwrap().push(request.clone());
        // As over a network: the answer does not come at once.
        tokio::task::yield_now().await;
        match step {
            Step::Reply => {
                happen();
                Attempt::Replied(reply(200, "done"))
            }
            Step::Answer(reply) => {
                happen();
                Attempt::Replied(reply)
            }
            Step::NotDelivered(code) => Attempt::NotDelivered(Problem::new(code, "not now")),
            Step::Unknown { happened } => {
                if happened {
                    happen();
                }
                Attempt::Unknown(Problem::new(Code::NodeUnreachable, "the node is away"))
            }
            Step::Failed => Attempt::Failed(Problem::new(Code::HandlerFailed, "it trapped")),
            Step::Hang => std::future::pending().await,
        }
    }
    async fn attach(&self, first: ClientUp, _deadline: Instant) -> Result<Box<dyn Link>, Problem> {
        Ok(Box::new(FarLink::attach(&self.far, &first)?))
    }
}

pub(super) struct World {
    service: Mutex<Option<Arc<ServiceInfo>>>,
    instances: Mutex<Vec<Arc<Scripted>>>,
    version: watch::Sender<u64>,
}

pub(super) fn info(state: State, count: u32) -> ServiceInfo {
    ServiceInfo {
        name: name(),
        state,
        count,
        key: KeyFrom::Path(1),
        public: true,
        deadline: Millis::secs(10),
        request_bytes_max: 1_000,
    }
}

pub(super) fn name() -> ServiceName {
    "shop".parse().unwrap()
}

impl World {
    pub(super) fn new(info: ServiceInfo, instances: &[Arc<Scripted>]) -> Arc<Self> {
        Arc::new(Self {
            service: Mutex::new(Some(Arc::new(info))),
            instances: Mutex::new(instances.to_vec()),
            version: watch::Sender::new(1),
        })
    }

    pub(super) fn gateway(self: &Arc<Self>) -> Gateway {
        Gateway::new(Arc::clone(self) as Arc<dyn Router>, Options::default())
    }

    pub(super) fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn place(&self, instances: &[Arc<Scripted>]) {
        *self.instances.lock().unwrap() = instances.to_vec();
        self.bump();
    }

    pub(super) fn remove(&self) {
        *self.service.lock().unwrap() = None;
        self.place(&[]);
    }
}

#[async_trait::async_trait]
impl Router for World {
    fn service(&self, name: &ServiceName) -> Result<Arc<ServiceInfo>, Problem> {
        let known = self.service.lock().unwrap().clone();
        known.filter(|info| info.name == *name).ok_or_else(|| {
            let near = nearest(name.as_str(), ["shop"]).unwrap_or("nothing");
            let message = format!("there is no service `{name}`; did you mean `{near}`?");
            Problem::new(Code::ServiceUnknown, message)
        })
    }
    fn pick(&self, _name: &ServiceName, index: Option<u32>) -> Pick {
        let instances = self.instances.lock().unwrap();
        let fit = |i: &&Arc<Scripted>| index.is_none_or(|index| i.index == index);
        let ready: Vec<_> = instances
            .iter()
            .filter(fit)
            .map(|instance| Arc::clone(instance) as Arc<dyn Instance>)
            .collect();
        if ready.is_empty() {
            return Pick::Wait("it is being moved".to_owned());
        }
        Pick::Ready(ready)
    }
    fn version(&self) -> u64 {
        *self.version.borrow()
    }
    async fn changed(&self, seen: u64) {
        let mut version = self.version.subscribe();
        // The sender lives as long as this.
        let _ = version.wait_for(|version| *version > seen).await;
    }
    fn authenticate(&self, token: &str) -> Result<(), Problem> {
        if token == TOKEN {
            return Ok(());
        }
        Err(Problem::new(
            Code::Unauthenticated,
            "the token is not valid",
        ))
    }
}
