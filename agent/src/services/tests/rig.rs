//! A node's services on a directory of the test's, and runs of one instance.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hop3_common::{
    chunks::BlobStore,
    codes::Problem,
    id::{Digest, InstanceId},
    ownership::{Epoch, Incarnation, Token},
    spec::{Millis, ServiceLimits},
    store::{
        BoxFuture, MasterKey, MemoryStore, MetaStore,
        crypt::Purpose,
        disk::{Disk, OsDisk},
    },
    wire::{CallResult, Checkpoint, Event, Output, ServiceReply, ServiceRequest, ServiceWork},
};
use hop3_runtime::{
    service::{ServiceEngine, ServiceOptions},
    wasm::{CancelToken, EngineOptions, GuestThreads, ThreadOptions},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    blobs::Blobs,
    services::{
        Options, Services,
        actor::Actor,
        inbox::Ask,
        keeper::{Order, Owner},
        kept::Kept,
        outgoing::Outgoing,
        suspects::Suspects,
        wheel::Wheel,
    },
    supervisor::{core::Progress, samples},
};

/// A generous deadline of whatever should happen at once.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// Waits until something holds.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "it never came to hold");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The coordinator and supervisor of the tests.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) heard: Mutex<Vec<Progress>>,
    pub(super) delivered: Mutex<Vec<Output>>,
    /// It refuses checkpoints.
    pub(super) refuses: AtomicBool,
}

impl Owner for Outside {
    fn hear(&self, progress: Progress) -> BoxFuture<'_, ()> {
        self.heard.lock().unwrap().push(progress);
        Box::pin(std::future::ready(()))
    }

    fn deliver(&self, part: Output) -> BoxFuture<'_, bool> {
        let takes = !self.refuses.load(Ordering::SeqCst);
        if takes {
            self.delivered.lock().unwrap().push(part);
        }
        Box::pin(std::future::ready(takes))
    }
}

impl Outside {
    pub(super) fn checkpoints(&self) -> Vec<Checkpoint> {
        let heard = self.heard.lock().unwrap();
        let made = heard.iter().filter_map(|progress| match progress {
            Progress::Checkpointed(made) => Some(made.clone()),
            _ => None,
        });
        made.collect()
    }

    pub(super) fn not_sealed(&self) -> Option<Problem> {
        let heard = self.heard.lock().unwrap();
        heard.iter().find_map(|progress| match progress {
            Progress::NotSealed(problem) => Some(problem.clone()),
            _ => None,
        })
    }

    fn is_ready(&self) -> bool {
        let heard = self.heard.lock().unwrap();
        heard.iter().any(|p| matches!(p, Progress::Ready(_)))
    }
}

pub(super) struct Rig {
    dir: tempfile::TempDir,
    store: Arc<dyn MetaStore>,
    pub(super) blobs: Blobs,
    link: watch::Sender<Option<quinn::Connection>>,
    engine: ServiceEngine,
    threads: GuestThreads,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) outside: Arc<Outside>,
    pub(super) instance: InstanceId,
    pub(super) work: ServiceWork,
}

impl Rig {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = MasterKey::from_bytes([5; 32]);
        let store = BlobStore::open(&dir.path().join("blobs"), &key).unwrap();
        let wasm = wat::parse_str(include_str!("guest.wat")).unwrap();
        let module = store.put(&wasm).unwrap();
        std::fs::create_dir(dir.path().join("services")).unwrap();
        let (link, seen) = watch::channel(None);
        let options = ServiceOptions {
            engine: EngineOptions {
                instances_max: 1_100,
                memory_bytes_max: 16 << 20,
                ..ServiceOptions::default().engine
            },
            ..ServiceOptions::default()
        };
        let engine = ServiceEngine::new(options, None).unwrap();
        let threads = GuestThreads::new(ThreadOptions {
            workers: 2,
            stand_ins_max: 0,
            queue_max: 2_048,
            tasks_max: 4,
            worker_niceness: 0,
            task_niceness: 0,
            stack_bytes: engine.native_stack_bytes(),
        });
        Self {
            store: Arc::new(MemoryStore::new()),
            blobs: Blobs::new(store, seen, 1 << 30),
            link,
            engine,
            threads: threads.unwrap(),
            disk: Arc::new(OsDisk),
            outside: Arc::default(),
            instance: "service/s/0".parse().unwrap(),
            work: work(module, wasm.len() as u64),
            dir,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn services(&self) -> Services {
        let kept = futures(Kept::load(self.store.clone(), self.blobs.clone())).unwrap();
        let (outgoing, task) = Outgoing::new(self.link.subscribe());
        tokio::spawn(task.run());
        let services = Services::new(Options {
            engine: self.engine.clone(),
            threads: self.threads.clone(),
            volumes: BTreeMap::new(),
            blobs: self.blobs.clone(),
            kept,
            disk: self.disk.clone(),
            dir: self.dir.path().join("services"),
            cipher: MasterKey::from_bytes([5; 32]).cipher(Purpose::ServiceLog),
            outgoing,
            suspects: Suspects::open(
                self.dir.path(),
                MasterKey::from_bytes([5; 32]).mac(Purpose::Suspects),
            ),
        });
        let wheel: Wheel = services.0.wheel.clone();
        tokio::spawn(wheel.run());
        services
    }

    /// Runs the instance in a fresh agent, under this incarnation of epoch 1.
    pub(super) async fn run(&self, incarnation: u64) -> Run {
        let services = self.services();
        self.run_as(&services, self.instance.as_str(), incarnation)
            .await
    }

    pub(super) async fn run_as(
        &self,
        services: &Services,
        instance: &str,
        incarnation: u64,
    ) -> Run {
        self.start(services, instance, token(1, incarnation))
            .await
            .unwrap_or_else(|event| panic!("it did not start: {event:?}"))
    }

    pub(super) async fn start(
        &self,
        services: &Services,
        instance: &str,
        token: Token,
    ) -> Result<Run, Event> {
        let instance: InstanceId = instance.parse().unwrap();
        let outside = Arc::new(Outside::default());
        let refuses = self.outside.refuses.load(Ordering::SeqCst);
        outside.refuses.store(refuses, Ordering::SeqCst);
        let stop = CancellationToken::new();
        let mut work = self.work.clone();
        (work.name, work.index) = instance.as_service().unwrap();
        let mut task = tokio::spawn({
            let (services, instance) = (services.clone(), instance.clone());
            let (outside, stop) = (outside.clone(), stop.clone());
            async move {
                match services.run(&instance, token, &work, outside, &stop).await {
                    Progress::Finished(event) => event,
                    other => panic!("{other:?}"),
                }
            }
        });
        let began = Instant::now();
        while !outside.is_ready() {
            assert!(began.elapsed() < SOON, "it did not start in time");
            let wait = Duration::from_millis(2);
            if let Ok(ended) = tokio::time::timeout(wait, &mut task).await {
                return Err(ended.unwrap());
            }
        }
        let actor = services.actor(&instance, token.epoch).unwrap();
        Ok(Run {
            services: services.clone(),
            actor,
            outside,
            stop,
            task,
        })
    }
}

pub(super) fn token(epoch: u64, incarnation: u64) -> Token {
    Token {
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
    }
}

/// Waits for a future that never really waits.
fn futures<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

fn work(module: Digest, module_bytes: u64) -> ServiceWork {
    ServiceWork {
        module,
        module_bytes,
        checkpoint_keep: 2,
        subscribe: vec!["t".parse().unwrap()],
        calls: vec!["other".parse().unwrap()],
        limits: ServiceLimits {
            cpu_time: Millis::secs(20),
            ..ServiceLimits::default()
        },
        ..samples::service()
    }
}

/// One run of the instance.
pub(super) struct Run {
    pub(super) services: Services,
    pub(super) actor: Arc<Actor>,
    pub(super) outside: Arc<Outside>,
    stop: CancellationToken,
    task: JoinHandle<Event>,
}

pub(super) type Answer = oneshot::Receiver<Result<ServiceReply, Problem>>;

impl Run {
    pub(super) fn ask_for(&self, path: &str, key: Option<&str>, limit: Duration) -> Answer {
        let (tell, told) = oneshot::channel();
        let reply = move |result| {
            let _ = tell.send(crate::services::route::service_reply(result));
        };
        let ask = Ask {
            until: Instant::now() + limit,
            cancel: CancelToken::new(),
            reply: Box::new(reply),
        };
        let request = ServiceRequest {
            method: "POST".into(),
            path: path.into(),
            headers: vec![],
            body: Default::default(),
            more: false,
            idempotency_key: key.map(str::to_owned),
            from: None,
        };
        self.actor.request(request, ask);
        told
    }

    pub(super) fn ask(&self, path: &str, key: Option<&str>) -> Answer {
        self.ask_for(path, key, SOON)
    }

    /// Asks, and gives the number that it answers.
    pub(super) async fn number(&self, path: &str) -> u32 {
        let answer = tokio::time::timeout(SOON, self.ask(path, None)).await;
        let reply = answer.unwrap().unwrap().unwrap();
        u32::from_le_bytes(reply.body[..].try_into().unwrap())
    }

    pub(super) async fn message(
        &self,
        message: hop3_common::wire::TopicMessage,
    ) -> Result<CallResult, Problem> {
        let (tell, told) = oneshot::channel();
        let ask = Ask {
            until: Instant::now() + SOON,
            cancel: CancelToken::new(),
            reply: Box::new(move |result| drop(tell.send(result))),
        };
        self.actor.message(message, ask);
        told.await.unwrap()
    }

    pub(super) fn waiting(&self) -> usize {
        self.actor.waiting()
    }

    pub(super) fn order(&self, order: Order) {
        let (instance, token) = (self.actor.instance(), self.actor.token());
        self.services.order(instance, token, order);
    }

    /// The agent is killed: nothing is said to anybody.
    pub(super) fn drop_everything(self) {
        self.task.abort();
    }

    /// The orderly end.
    pub(super) async fn stop(self) -> Event {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    /// The end that comes by itself.
    pub(super) async fn ended(self) -> Event {
        tokio::time::timeout(SOON, self.task)
            .await
            .unwrap()
            .unwrap()
    }
}
