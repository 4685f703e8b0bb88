//! One run of an instance, from its assignment to its end: module, state, guest, service.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId, UnixMs},
    ownership::Token,
    spec::{ServiceLimits, VolumeGrant},
    wire::{Event, ServiceFacts, ServiceWork},
};
use hop3_runtime::{
    service::{Called, Image, Instance, Limits, ServiceModule, Setup, StartError},
    wasm::{CancelToken, Grants, Volume},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Live, Services,
    actor::{Actor, Parts},
    desk::Desk,
    keeper::{Ended, Keeper, ORDERS_MAX, Order, Owner},
    lock,
    recover::{Recovered, recover},
    replica::Replica,
    storage::{Policy, Storage},
    turn::Cell,
};
use crate::{exec::convert, supervisor::core::Progress};

/// Largest module of a service, bytes: it is in memory while it is compiled.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Between tries while every worker is taken and their queue full.
const AGAIN: Duration = Duration::from_millis(5);
/// Between tries to begin a replica.
const REPLICA_RETRY: Duration = Duration::from_millis(200);
/// Between tries to begin while the disk is full.
const DISK_RETRY: Duration = Duration::from_secs(2);

/// A module that can be instantiated, and what it took.
pub(super) struct Module {
    pub(super) module: Arc<ServiceModule>,
    fetch_us: u64,
    load_us: u64,
}

/// What an instance that serves is kept by.
type Begun<H> = (Option<Storage>, Option<Replica<H>>, ServiceFacts);

/// A guest, and what its start said.
type Made = Result<(Instance, Called), Problem>;

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn internal(message: &str) -> Problem {
    Problem::new(Code::Internal, message)
}

impl Services {
    /// Runs an instance until `stop`, or until it is sealed or cannot go on; the event says how
    /// it ended.
    pub async fn run<H: Owner + 'static>(
        &self,
        instance: &InstanceId,
        token: Token,
        work: &ServiceWork,
        owner: Arc<H>,
        stop: &CancellationToken,
    ) -> Progress {
        owner.hear(Progress::Preparing).await;
        let (orders, wanted) = mpsc::channel(ORDERS_MAX);
        let actor = self.enter(instance, token, work, orders);
        let begun = tokio::select! {
            begun = self.begin(&actor, &owner) => begun,
            () = stop.cancelled() => {
                self.leave(&actor).await;
                return Progress::Finished(Event::Stopped);
            }
        };
        let event = match begun {
            Ok((storage, replica, facts)) => {
                owner.hear(Progress::Ready(facts)).await;
                self.changed();
                let blobs = self.0.blobs.clone();
                let keeper = Keeper::new(actor.clone(), storage, replica, blobs, owner);
                match keeper.run(wanted, stop.cancelled()).await {
                    Ended::Stopped => Event::Stopped,
                    Ended::Sealed(made) => Event::Sealed(made),
                    Ended::Fenced => {
                        self.leave(&actor).await;
                        return Progress::Fenced;
                    }
                    Ended::Lost => {
                        Event::Failed(internal("the runtime lost the guest: see the agent's log"))
                    }
                }
            }
            Err(problem) => Event::Failed(problem),
        };
        self.leave(&actor).await;
        Progress::Finished(event)
    }

    /// Makes the instance known: requests are refused as not ready from now on.
    fn enter(
        &self,
        instance: &InstanceId,
        token: Token,
        work: &ServiceWork,
        orders: mpsc::Sender<Order>,
    ) -> Arc<Actor> {
        let ring = lock(&self.0.rings)
            .entry(instance.clone())
            .or_default()
            .clone();
        let actor = Actor::new(Parts {
            instance: instance.clone(),
            token,
            work: work.clone(),
            threads: self.0.threads.clone(),
            wheel: self.0.wheel.clone(),
            ring,
            world: Arc::new(self.clone()),
            suspects: self.0.suspects.clone(),
            lease: work
                .fence
                .map(|ttl| self.0.leases.want(instance, token, ttl)),
        });
        let live = Live {
            actor: actor.clone(),
            orders,
        };
        lock(&self.0.live).insert(instance.clone(), live);
        actor
    }

    async fn leave(&self, actor: &Arc<Actor>) {
        drop(actor.end().await);
        let mut live = lock(&self.0.live);
        let mine = live.get(actor.instance());
        if mine.is_some_and(|live| Arc::ptr_eq(&live.actor, actor)) {
            live.remove(actor.instance());
        }
        drop(live);
        self.changed();
    }

    /// Everything before the first request.
    async fn begin<H: Owner + 'static>(
        &self,
        actor: &Arc<Actor>,
        owner: &Arc<H>,
    ) -> Result<Begun<H>, Problem> {
        let (instance, work) = (actor.instance(), actor.work());
        self.discarded(instance).await;
        let setup = self.setup(instance, work)?;
        let module = self.module(work.module, work.module_bytes).await?;
        let began = Instant::now();
        let mut found = match actor.is_stateful() {
            true => recover(&self.0.shelf, instance, work.restore.as_ref()).await?,
            false => None,
        };
        let fetch_us = module.fetch_us + micros(began);
        let began = Instant::now();
        let image = found.as_ref().map(|found| found.image().clone());
        let ready = found.as_mut().and_then(|found| found.guest.take());
        let ready = ready.and_then(|ready| ready.take(work));
        let (guest, called) = match (image, ready) {
            (Some(image), Some(ready)) => self.advanced(ready, &module.module, setup, image).await,
            (Some(image), None) => self.restored(&module.module, setup, image).await,
            (None, _) => self.created(&module.module, setup).await,
        }?;
        actor.log(&called.log);
        let done = called.result.map_err(|failure| {
            let message = format!("the guest did not start: {failure}");
            Problem::new(Code::HandlerFailed, message)
        })?;
        let image = guest.image().clone();
        let facts = ServiceFacts {
            fetch_us,
            load_us: module.load_us,
            restore_us: micros(began),
            seq: image.seq(),
            schema: image.schema(),
            state_bytes: image.state_bytes(),
            replicated: actor.is_replicated(),
        };
        let mut storage = self.storage(actor, found, image.clone()).await?;
        if let Some(lease) = &actor.parts.lease {
            lease.held().await;
        }
        let replica = match &mut storage {
            Some(storage) if actor.is_replicated() => {
                Some(self.replica(actor, storage, &image, owner).await)
            }
            _ => None,
        };
        let desk = desk(guest.image())?;
        actor.links.load(desk.lines(), Instant::now());
        let mut cell = Cell::new(guest, desk);
        let lost = cell.lost_calls();
        cell.started(actor, done);
        actor.serve(cell);
        for item in lost {
            actor.push(item);
        }
        Ok((storage, replica, facts))
    }

    /// Begins the replica of an instance; tries until the coordinator has it.
    async fn replica<H: Owner + 'static>(
        &self,
        actor: &Arc<Actor>,
        storage: &mut Storage,
        image: &Image,
        owner: &Arc<H>,
    ) -> Replica<H> {
        let mut replica = Replica::new(self.0.outgoing.clone(), actor.clone(), owner.clone());
        while let Err(problem) = replica.follow(storage, image).await {
            tracing::info!(instance = %actor.instance(), %problem, "its replica cannot begin yet");
            tokio::time::sleep(REPLICA_RETRY).await;
        }
        replica
    }

    /// Begins to store the instance; waits while the disk is full.
    async fn storage(
        &self,
        actor: &Arc<Actor>,
        found: Option<Recovered>,
        image: Image,
    ) -> Result<Option<Storage>, Problem> {
        if !actor.is_stateful() {
            return Ok(None);
        }
        let policy = Policy {
            durable: actor.is_durable(),
            keep: actor.work().checkpoint_keep as usize,
        };
        let (shelf, token) = (self.0.shelf.clone(), actor.token());
        let instance = actor.instance().clone();
        let Some(found) = found else {
            loop {
                let (shelf, instance) = (shelf.clone(), instance.clone());
                let created = Storage::create(shelf, instance, token, policy, image.clone()).await;
                match created {
                    Ok(storage) => return Ok(Some(storage)),
                    Err(problem) if problem.code == Code::Storage => {
                        tracing::error!(instance = %actor.instance(), %problem,
                            "its first state cannot be stored yet");
                        tokio::time::sleep(DISK_RETRY).await;
                    }
                    Err(problem) => return Err(problem),
                }
            }
        };
        let same = found.image().seq() == image.seq() && found.image().schema() == image.schema();
        let mut storage = Storage::go_on(shelf, instance, token, policy, found).await?;
        if !same && policy.durable {
            // An upgrade of the state is a change like any other.
            storage.append(image).await?;
        }
        Ok(Some(storage))
    }

    /// A new guest.
    async fn created(&self, module: &Arc<ServiceModule>, setup: Setup) -> Made {
        let module = module.clone();
        self.make(move |now_ms, cancel| Instance::create(&module, setup.clone(), now_ms, cancel))
            .await
    }

    /// A guest in the state of `image`.
    pub(super) async fn restored(
        &self,
        module: &Arc<ServiceModule>,
        setup: Setup,
        image: Image,
    ) -> Made {
        let module = module.clone();
        self.make(move |now_ms, cancel| {
            Instance::restore(&module, setup.clone(), image.clone(), now_ms, cancel)
        })
        .await
    }

    /// The guest that was made ready in an earlier state, now in that of `image`.
    async fn advanced(
        &self,
        ready: Instance,
        module: &Arc<ServiceModule>,
        setup: Setup,
        image: Image,
    ) -> Made {
        let (ready, module) = (Mutex::new(Some(ready)), module.clone());
        self.make(move |now_ms, cancel| {
            let taken = lock(&ready).take();
            if let Some(mut ready) = taken
                && ready.advance(image.clone()).is_ok()
            {
                return Ok((ready, Called::nothing()));
            }
            Instance::restore(&module, setup.clone(), image.clone(), now_ms, cancel)
        })
        .await
    }

    /// Makes a guest, on a worker.
    async fn make(
        &self,
        how: impl Fn(u64, &CancelToken) -> Result<(Instance, Called), StartError>
        + Send
        + Sync
        + 'static,
    ) -> Made {
        let how = Arc::new(how);
        loop {
            let (reply, answer) = oneshot::channel();
            let how = how.clone();
            let job = move || {
                let _ = reply.send(how(UnixMs::now().0, &CancelToken::new()));
            };
            if self.0.threads.submit(job).is_err() {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let made = answer.await;
            let made = made.map_err(|_| internal("starting the guest panicked"))?;
            return made.map_err(|error| {
                Problem::new(
                    Code::HandlerFailed,
                    format!("the guest cannot start: {error}"),
                )
            });
        }
    }

    /// A module, fetched and compiled if it must be.
    pub(super) async fn module(&self, digest: Digest, bytes: u64) -> Result<Module, Problem> {
        if bytes > MODULE_BYTES_MAX {
            let message = format!("the module has {bytes} bytes; {MODULE_BYTES_MAX} is the limit");
            return Err(Problem::new(Code::TooLarge, message));
        }
        let began = Instant::now();
        if let Some(module) = self.compiled(digest).await {
            return Ok(Module {
                module,
                fetch_us: 0,
                load_us: micros(began),
            });
        }
        let was_here = self.0.blobs.store().contains(&digest);
        let _pin = self.0.blobs.fetch(digest, bytes).await?;
        let fetch_us = if was_here { 0 } else { micros(began) };
        let began = Instant::now();
        let _turn = self.0.compiles.acquire().await;
        // Of many that wait for the same module only the first compiles it.
        if let Some(module) = self.compiled(digest).await {
            return Ok(Module {
                module,
                fetch_us,
                load_us: micros(began),
            });
        }
        let (engine, store) = (self.0.engine.clone(), self.0.blobs.store().clone());
        let compile = move || {
            let wasm = store.read(&digest, MODULE_BYTES_MAX);
            let wasm = wasm.map_err(|e| Problem::new(Code::Storage, e.to_string()))?;
            let loaded = engine.load(&wasm, &digest.0);
            loaded.map_err(|e| convert::module_problem(&e))
        };
        let compiled = self.on_thread("hop3-compile", compile).await;
        let module = compiled.ok_or_else(|| internal("compiling the module panicked"))??;
        Ok(Module {
            module,
            fetch_us,
            load_us: micros(began),
        })
    }

    /// Runs a long job on a guest thread of its own; `None` if it panicked.
    async fn on_thread<T: Send + 'static>(
        &self,
        name: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let slot = Arc::new(Mutex::new(Some((job, reply))));
        loop {
            let mine = slot.clone();
            let job = move || {
                if let Some((job, reply)) = lock(&mine).take() {
                    let _ = reply.send(job());
                }
            };
            if self.0.threads.spawn_task(name, job).is_ok() {
                return answer.await.ok();
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn compiled(&self, digest: Digest) -> Option<Arc<ServiceModule>> {
        let engine = self.0.engine.clone();
        let found = tokio::task::spawn_blocking(move || engine.find(&digest.0));
        found.await.ok().flatten()
    }

    pub(super) fn setup(
        &self,
        instance: &InstanceId,
        work: &ServiceWork,
    ) -> Result<Setup, Problem> {
        let pair = |(key, value): (&String, &String)| (key.clone(), value.clone());
        Ok(Setup {
            name: instance.to_string(),
            index: work.index,
            count: work.count,
            env: work.env.iter().map(pair).collect(),
            grants: self.grants(&work.volumes)?,
            publish: work.publish.iter().map(ToString::to_string).collect(),
            calls: work.calls.iter().map(ToString::to_string).collect(),
            limits: limits(&work.limits),
            stateful: work.state != hop3_common::spec::State::None,
            seed: rand::random(),
        })
    }

    /// What of the asked-for volumes this node offers.
    fn grants(&self, asked: &[VolumeGrant]) -> Result<Grants, Problem> {
        let grant = |grant: &VolumeGrant| {
            let unknown = |why: &str| {
                let message = format!("volume `{}` {why} by this node", grant.name);
                Problem::new(Code::VolumeUnknown, message)
            };
            let volume = self.0.volumes.get(&grant.name);
            let volume = volume.ok_or_else(|| unknown("is not offered"))?;
            if grant.writable && !volume.writable {
                return Err(unknown("is offered read-only"));
            }
            Ok(Volume {
                guest_path: grant.path.clone(),
                host_dir: volume.path.clone(),
                read_only: !grant.writable,
            })
        };
        let volumes = asked.iter().map(grant).collect::<Result<_, _>>()?;
        Ok(Grants { volumes })
    }
}

/// The agent's notes in an image.
fn desk(image: &Image) -> Result<Desk, Problem> {
    let entries = image.desk_range(&[]);
    let entries = entries.map(|(key, value)| (key.to_vec(), value.clone()));
    Desk::load(entries).map_err(|damaged| Problem::new(Code::Storage, damaged.to_string()))
}

/// A service's limits as the runtime takes them.
fn limits(limits: &ServiceLimits) -> Limits {
    Limits {
        memory_bytes: limits.memory.0,
        kv_bytes: limits.kv.0,
        cpu_ms: limits.cpu_time.0,
        wall_ms: limits.deadline.0,
        reply_bytes: limits.reply.0,
        timers: limits.timers,
        streams: limits.streams,
        host_calls_per_s: limits.host_calls_per_s.into(),
    }
}
