//! Services: the instances of this node that live long, keep state, answer requests.
//!
//! ```text
//! coordinator, clients, other instances
//!        │ requests, messages, stream data
//!        ▼
//!   Actor (inbox · guest · desk) ── images ──► Keeper ──► Storage (log, checkpoints)
//!        ▲                                        │
//!        └── wheel (timers)                       └─ durable ─► replies, effects ─► World
//! ```
//!
//! Invariants: one call at a time per instance; with `durability: node` nothing leaves before
//! what caused it is on the disk; refusals that say so mean that surely nothing began; an idle
//! instance has no thread.
//!
//! Pure: [`desk`], [`inbox`]. Limits are in the modules, next to what they bound.

pub mod actor;
mod ahead;
pub mod client;
pub mod desk;
pub mod inbox;
pub mod keeper;
pub mod kept;
pub mod leases;
pub mod links;
pub mod local;
pub mod log;
mod mail;
pub mod outgoing;
mod recover;
pub mod release;
pub mod replica;
pub mod ring;
mod route;
mod start;
pub mod storage;
pub mod suspects;
mod turn;
mod verdict;
pub mod wheel;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hop3_common::{
    codes::Problem,
    id::{Digest, InstanceId, ServiceName},
    ownership::{Epoch, Token},
    store::{Cipher, disk::Disk},
    wire::ServiceWork,
};
use hop3_runtime::{service::ServiceEngine, wasm::GuestThreads};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use self::{
    actor::Actor, keeper::Order, kept::Kept, leases::Leases, outgoing::Outgoing, ring::Ring,
    storage::Shelf, suspects::Suspects, wheel::Wheel,
};
use crate::{blobs::Blobs, config::Volume};

/// Modules of services compiled at once.
pub(crate) const COMPILES_MAX: usize = 1;
/// Instances made ready at once because an instance may come.
const PREFETCH_MAX: usize = 2;
/// Instances made ready ahead that the coordinator has not been told of.
const PREFETCHED_MAX: usize = 1_024;

/// What services are run with.
pub struct Options {
    /// Runs guests.
    pub engine: ServiceEngine,
    /// On these threads.
    pub threads: GuestThreads,
    /// Directories that may be granted.
    pub volumes: BTreeMap<String, Volume>,
    /// Modules, and parts of checkpoints.
    pub blobs: Blobs,
    /// Checkpoints.
    pub kept: Kept,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Where logs are; it exists.
    pub dir: std::path::PathBuf,
    /// Seals them.
    pub cipher: Cipher,
    /// The way to services elsewhere.
    pub outgoing: Outgoing,
    /// Inputs that are not given to guests.
    pub suspects: Suspects,
}

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Services(Arc<Inner>);

struct Inner {
    engine: ServiceEngine,
    threads: GuestThreads,
    volumes: BTreeMap<String, Volume>,
    blobs: Blobs,
    shelf: Arc<Shelf>,
    wheel: Wheel,
    outgoing: Outgoing,
    suspects: Suspects,
    leases: Leases,
    compiles: Semaphore,
    prefetches: Arc<Semaphore>,
    prefetched: Mutex<VecDeque<InstanceId>>,
    prefetched_more: Notify,
    live: Mutex<BTreeMap<InstanceId, Live>>,
    /// Logs outlive runs.
    rings: Mutex<HashMap<InstanceId, Arc<Ring>>>,
    /// Forgotten instances whose state is being removed.
    discarding: Mutex<HashMap<InstanceId, Arc<Notify>>>,
    /// Grows with every instance that comes or goes.
    version: watch::Sender<u64>,
}

/// A run in hand.
#[derive(Clone)]
struct Live {
    actor: Arc<Actor>,
    orders: mpsc::Sender<Order>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps change in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    /// The services of a node. Nothing runs yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let Options {
            engine,
            threads,
            volumes,
            blobs,
            kept,
            disk,
            dir,
            cipher,
            outgoing,
            suspects,
        } = options;
        let shelf = Shelf {
            ahead: Mutex::default(),
            kept,
            blobs: blobs.clone(),
            disk,
            dir,
            cipher,
        };
        Self(Arc::new(Inner {
            engine,
            threads,
            volumes,
            blobs,
            shelf: Arc::new(shelf),
            wheel: Wheel::default(),
            outgoing,
            suspects,
            leases: Leases::default(),
            compiles: Semaphore::new(COMPILES_MAX),
            prefetches: Arc::new(Semaphore::new(PREFETCH_MAX)),
            prefetched: Mutex::default(),
            prefetched_more: Notify::new(),
            live: Mutex::default(),
            rings: Mutex::default(),
            discarding: Mutex::default(),
            version: watch::Sender::new(0),
        }))
    }

    /// Removes what is kept of instances that are not `held` any more. To be called before
    /// anything runs.
    ///
    /// # Errors
    /// The store's.
    pub async fn sweep(
        &self,
        held: &BTreeSet<InstanceId>,
    ) -> Result<(), hop3_common::store::Error> {
        let shelf = &self.0.shelf;
        for instance in shelf.kept.instances() {
            if !held.contains(&instance) {
                tracing::info!(%instance, "the state of a forgotten instance is removed");
                shelf.forget(&instance).await?;
            }
        }
        let shelf = shelf.clone();
        let _ = tokio::task::spawn_blocking(move || shelf.sweep()).await;
        Ok(())
    }

    /// Wakes sleeping instances, until dropped.
    pub async fn tick(self) {
        self.0.wheel.clone().run().await;
    }

    /// Blobs that kept checkpoints refer to.
    #[must_use]
    pub fn references(&self) -> BTreeSet<Digest> {
        self.0.shelf.kept.references()
    }

    /// The leases of fenced instances.
    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.0.leases
    }

    /// Runs in hand.
    #[must_use]
    pub fn running(&self) -> usize {
        lock(&self.0.live).len()
    }

    /// A number that grows when instances come or go.
    #[must_use]
    pub fn version(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// The instance, if this node runs it in that epoch.
    ///
    /// # Errors
    /// [`Code::NotHere`](hop3_common::codes::Code::NotHere).
    pub fn actor(&self, instance: &InstanceId, epoch: Epoch) -> Result<Arc<Actor>, Problem> {
        let live = lock(&self.0.live);
        let actor = live.get(instance).map(|live| live.actor.clone());
        let here = actor.filter(|actor| actor.token().epoch == epoch);
        here.ok_or_else(inbox::not_here)
    }

    /// Every instance in hand.
    #[must_use]
    pub fn actors(&self) -> Vec<Arc<Actor>> {
        let live = lock(&self.0.live);
        live.values().map(|live| live.actor.clone()).collect()
    }

    /// The instances in hand of one service.
    #[must_use]
    pub fn of(&self, service: &ServiceName) -> Vec<Arc<Actor>> {
        let first = InstanceId::service(service, 0);
        let live = lock(&self.0.live);
        // They are next to each other: their names begin alike.
        let mine = live.range(first..).map(|(_, live)| &live.actor);
        let mine = mine.take_while(|actor| actor.work().name == *service);
        mine.cloned().collect()
    }

    /// Whether an instance of the service has its state here, in hand or not.
    #[must_use]
    pub fn keeps(&self, service: &ServiceName) -> bool {
        let kept = self.0.shelf.kept.instances();
        let of = |id: &InstanceId| id.as_service().is_some_and(|(name, _)| name == *service);
        kept.iter().any(of)
    }

    /// What an instance logged, if it ran since the agent started.
    #[must_use]
    pub fn ring(&self, instance: &InstanceId) -> Option<Arc<Ring>> {
        lock(&self.0.rings).get(instance).cloned()
    }

    /// Passes an order on; one too many is dropped, and repeated by whoever gave it.
    pub fn order(&self, instance: &InstanceId, token: Token, order: Order) {
        let live = lock(&self.0.live).get(instance).cloned();
        if let Some(live) = live.filter(|live| live.actor.token() == token) {
            let _ = live.orders.try_send(order);
        }
    }

    /// Removes what is kept of an instance, in the background; its next start waits for that.
    pub fn discard(&self, instance: &InstanceId) {
        lock(&self.0.rings).remove(instance);
        let done = Arc::new(Notify::new());
        lock(&self.0.discarding).insert(instance.clone(), done.clone());
        let (services, instance) = (self.clone(), instance.clone());
        tokio::spawn(async move {
            if let Err(error) = services.0.shelf.forget(&instance).await {
                // The next start of the agent tries again.
                tracing::warn!(%instance, %error, "its state was not removed");
            }
            lock(&services.0.discarding).remove(&instance);
            done.notify_waiters();
        });
    }

    async fn discarded(&self, instance: &InstanceId) {
        loop {
            let done = lock(&self.0.discarding).get(instance).cloned();
            let Some(done) = done else { return };
            let notified = done.notified();
            if !lock(&self.0.discarding).contains_key(instance) {
                return;
            }
            notified.await;
        }
    }

    /// Makes an instance ready that may come, in the background: module, state, guest.
    pub fn prefetch(&self, instance: InstanceId, work: ServiceWork) {
        let services = self.clone();
        tokio::spawn(async move {
            let _place = services.0.prefetches.clone().acquire_owned().await;
            if let Err(problem) = services.make_ahead(&instance, &work).await {
                tracing::info!(%instance, %problem, "it is not ready ahead");
            }
            let mut done = lock(&services.0.prefetched);
            // Nobody asked for more than wait; a coordinator that misses one goes on without.
            if done.len() < PREFETCHED_MAX {
                done.push_back(instance);
            }
            drop(done);
            services.0.prefetched_more.notify_one();
        });
    }

    /// The next instance for which [`prefetch`](Self::prefetch) is done. Cancel-safe.
    pub async fn prefetched(&self) -> InstanceId {
        loop {
            if let Some(instance) = lock(&self.0.prefetched).pop_front() {
                return instance;
            }
            self.0.prefetched_more.notified().await;
        }
    }

    fn changed(&self) {
        self.0.version.send_modify(|version| *version += 1);
    }
}

/// Makes the directory of logs.
///
/// # Errors
/// The disk's.
pub fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(hop3_common::store::disk::DIR_MODE);
    builder.create(dir)
}

#[cfg(test)]
mod tests;
