//! The services in memory: records, and what is known of instances.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use hop3_common::{
    clock::boot_now,
    codes::{Code, Problem},
    id::{Digest, InstanceId, NodeId, ServiceName, UnixMs},
    ownership::{Epoch, Leases, Ownership},
    spec::nearest,
    wire::{ServiceFacts, ServiceWork},
};

use super::{outgoing::Messages, routes::Routes};
use crate::{
    Core,
    records::{
        FLOOR_KEY, InstancePhase, MoveStage, Records, ServiceFloorRecord, ServiceInstanceRecord,
        ServiceRecord,
    },
};

/// All services.
pub(crate) struct Services {
    by_name: RwLock<BTreeMap<ServiceName, Arc<Service>>>,
    live: Mutex<HashMap<InstanceId, Serving>>,
    /// Blobs of checkpoints that newer ones took the place of.
    superseded: Mutex<BTreeSet<Digest>>,
    floor: AtomicU64,
    leases: Mutex<Leases<InstanceId>>,
    pub(crate) routes: Routes,
    pub(crate) messages: Messages,
}

/// A service and its instances, by index.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) record: Arc<ServiceRecord>,
    pub(crate) instances: Vec<ServiceInstanceRecord>,
}

/// What is known of an instance's newest run. Learnt anew after a start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Serving {
    pub(crate) epoch: Epoch,
    pub(crate) ready: bool,
    pub(crate) reason: String,
    pub(crate) facts: Option<ServiceFacts>,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// A failed one is tried again from then on.
    pub(crate) retry_at: Option<UnixMs>,
    /// Where it failed last.
    pub(crate) failed_on: Option<NodeId>,
    /// Checkpoints reported since the coordinator began.
    pub(crate) checkpoints: u64,
    /// The move on its way, as far as it is not in the record.
    pub(crate) copy: Copying,
}

/// What a move knows that need not survive: all of it is done again after a start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copying {
    /// The session in which the source was asked for a checkpoint.
    pub(crate) asked: Option<u64>,
    /// When there was a checkpoint for the target to fetch.
    pub(crate) told: Option<UnixMs>,
    /// The session in which the target was told to fetch it.
    pub(crate) sent: Option<u64>,
    /// It has what can be there ahead.
    pub(crate) fetched: bool,
    /// When the source was told to seal.
    pub(crate) sealing: Option<Instant>,
    /// When an abort was asked for, and why.
    pub(crate) abort: Option<String>,
}

impl Service {
    pub(crate) fn instance(&self, index: u32) -> Option<&ServiceInstanceRecord> {
        self.instances.get(index as usize)
    }

    /// How many instances are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.record.spec.instances() as usize
    }

    pub(crate) fn id(&self, index: usize) -> InstanceId {
        InstanceId::service(&self.record.name, u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Whether its instances cannot leave their nodes: directories do not move.
    pub(crate) fn pinned(&self) -> bool {
        self.record.spec.stateful() && !self.record.spec.volumes.is_empty()
    }
}

impl ServiceInstanceRecord {
    /// One that was never placed; its first epoch is above `floor`.
    pub(crate) fn new(floor: Epoch) -> Self {
        Self {
            own: Ownership::new(floor),
            fence: None,
            revision: 0,
            phase: InstancePhase::Assigned,
            tied: false,
            checkpoint: None,
            moving: None,
            deposed: Vec::new(),
        }
    }
}

impl Services {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let mut services = BTreeMap::new();
        for (_, record) in records.all::<ServiceRecord>().await? {
            let instances = Vec::new();
            let service = Service {
                record: Arc::new(record),
                instances,
            };
            services.insert(service.record.name.clone(), service);
        }
        for (id, instance) in records.all::<ServiceInstanceRecord>().await? {
            let Some((name, index)) = id.split_once('/') else {
                continue;
            };
            let at = name.parse::<ServiceName>().ok().zip(index.parse().ok());
            let Some((name, index)) = at else { continue };
            if let Some(service) = services.get_mut(&name) {
                let index: usize = index;
                let floor = service.record.floor;
                while service.instances.len() <= index {
                    service.instances.push(ServiceInstanceRecord::new(floor));
                }
                service.instances[index] = instance;
            }
        }
        let floor = records
            .get::<ServiceFloorRecord>(FLOOR_KEY)
            .await?
            .unwrap_or_default();
        let shared = services.into_iter().map(|(name, s)| (name, Arc::new(s)));
        Ok(Self {
            by_name: RwLock::new(shared.collect()),
            live: Mutex::default(),
            superseded: Mutex::default(),
            floor: AtomicU64::new(floor.epoch.0),
            leases: Mutex::new(Leases::new(boot_now())),
            routes: Routes::default(),
            messages: Messages::default(),
        })
    }

    pub(crate) fn get(&self, name: &ServiceName) -> Option<Arc<Service>> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    pub(crate) fn find(&self, name: &ServiceName) -> Result<Arc<Service>, Problem> {
        self.get(name).ok_or_else(|| {
            let all = self.all();
            let near = nearest(name.as_str(), all.iter().map(|s| s.record.name.as_str()));
            let hint = near
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            Problem::new(
                Code::ServiceUnknown,
                format!("there is no service `{name}`{hint}"),
            )
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Service>> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Shows what was committed.
    pub(crate) fn show(&self, service: Service) -> Arc<Service> {
        let service = Arc::new(service);
        let mut services = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        services.insert(service.record.name.clone(), service.clone());
        service
    }

    pub(crate) fn drop_shown(&self, name: &ServiceName) {
        self.by_name
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.live()
            .retain(|id, _| id.as_service().is_none_or(|(of, _)| of != *name));
    }

    /// What is known of instances. Taken last, never across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, HashMap<InstanceId, Serving>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was granted to fenced runs. Taken last, never across an await.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases<InstanceId>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the run `epoch` of `instance`.
    pub(crate) fn serving(&self, instance: &InstanceId, epoch: Epoch) -> Option<Serving> {
        self.live()
            .get(instance)
            .filter(|serving| serving.epoch == epoch)
            .cloned()
    }

    /// Epochs up to this one were given to services that are gone.
    pub(crate) fn floor(&self) -> Epoch {
        Epoch(self.floor.load(Relaxed))
    }

    pub(crate) fn raise_floor(&self, epoch: Epoch) {
        self.floor.fetch_max(epoch.0, Relaxed);
    }

    /// Blobs that nobody needs any more, unless another checkpoint has them too.
    pub(crate) fn supersede(&self, blobs: impl Iterator<Item = Digest>) {
        /// Beyond that, the slow collection of what nothing names takes care of them.
        const SUPERSEDED_MAX: usize = 100_000;
        let mut superseded = self
            .superseded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        superseded.extend(blobs);
        while superseded.len() > SUPERSEDED_MAX {
            superseded.pop_first();
        }
    }

    /// A node stores this blob (again): it is part of a checkpoint that comes.
    pub(crate) fn wanted_again(&self, blob: &Digest) {
        self.superseded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(blob);
    }

    /// What was superseded since the last time.
    pub(crate) fn take_superseded(&self) -> BTreeSet<Digest> {
        std::mem::take(
            &mut *self
                .superseded
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Serving {
    /// A run that has just been assigned. Failures in a row are remembered until it serves.
    pub(crate) fn starting(epoch: Epoch, before: Option<&Self>) -> Self {
        Self {
            epoch,
            reason: "starting".into(),
            failures: before.map_or(0, |before| before.failures),
            failed_on: before.and_then(|before| before.failed_on.clone()),
            checkpoints: before.map_or(0, |before| before.checkpoints),
            copy: before.map(|before| before.copy.clone()).unwrap_or_default(),
            ..Self::default()
        }
    }
}

/// The epoch under which `node` shall run `instance`, and whether it shall be sealed.
pub(crate) fn desired(core: &Core, node: &NodeId, instance: &InstanceId) -> Option<(Epoch, bool)> {
    let (name, index) = instance.as_service()?;
    let service = core.services.get(&name)?;
    let record = service.instance(index)?;
    let seal = record
        .moving
        .as_ref()
        .is_some_and(|moving| moving.stage == MoveStage::Sealing);
    if record.own.owner.as_ref() == Some(node) {
        return Some((record.own.epoch, seal));
    }
    // One that was replaced unheard gives up what it has.
    let mut deposed = record.deposed.iter();
    let deposed = deposed.find(|deposed| deposed.node == *node && deposed.branch.is_none());
    deposed.map(|deposed| (deposed.epoch, true))
}

/// For an instance of a service: the epoch up to which what a node holds is an older service's, and
/// the newest epoch on record.
pub(crate) fn floor_of(core: &Core, instance: &InstanceId) -> Option<(Epoch, Epoch)> {
    let (name, index) = instance.as_service()?;
    let service = core.services.get(&name)?;
    let record = service.instance(index)?;
    Some((service.record.floor, record.own.epoch))
}

/// What a node needs to run the instance.
pub(crate) fn work(
    core: &Core,
    name: &ServiceName,
    index: u32,
    epoch: Epoch,
) -> Option<ServiceWork> {
    let service = core.services.get(name)?;
    let instance = service
        .instance(index)
        .filter(|instance| instance.own.epoch == epoch)?;
    let record = &service.record;
    let spec = &record.spec;
    Some(ServiceWork {
        name: name.clone(),
        index,
        count: spec.instances(),
        revision: instance.revision,
        module: record.module,
        module_bytes: record.module_bytes,
        state: spec.state,
        key: spec.key.clone(),
        durability: spec.durability,
        fence: spec.fence(),
        checkpoint_every: spec.checkpoint.every,
        checkpoint_keep: spec.checkpoint.keep,
        env: spec.env.clone(),
        subscribe: spec.subscribe.clone(),
        publish: spec.publish.clone(),
        calls: spec.calls.clone(),
        volumes: spec.volumes.clone(),
        public: spec.public,
        limits: spec.limits.clone(),
        restore: instance.checkpoint.clone().filter(|_| spec.stateful()),
    })
}

/// Artifacts that services are made of, and whose.
pub(crate) fn artifacts_used(core: &Core) -> BTreeMap<Digest, Vec<String>> {
    let mut used: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for service in core.services.all() {
        let by = format!("service/{}", service.record.name);
        used.entry(service.record.module).or_default().push(by);
    }
    used
}

/// Blobs of recorded checkpoints and of moves; with `node`, only what that node may read: of what
/// it owns, or is told to fetch.
pub(crate) fn checkpoint_blobs(core: &Core, node: Option<&NodeId>) -> BTreeSet<Digest> {
    let mut blobs = BTreeSet::new();
    for service in core.services.all() {
        for instance in &service.instances {
            let moving = instance.moving.as_ref();
            let owner = instance.own.owner.as_ref();
            let target = moving.map(|moving| &moving.to);
            if node.is_none() || owner == node || target == node {
                let parts = instance.checkpoint.iter().flat_map(|cp| &cp.parts);
                blobs.extend(parts.map(|part| part.digest));
                blobs.extend(moving.iter().flat_map(|moving| &moving.copied).copied());
            }
            let branches = instance.deposed.iter().flat_map(|deposed| &deposed.branch);
            if node.is_none() {
                let parts = branches.flat_map(|branch| &branch.parts);
                blobs.extend(parts.map(|part| part.digest));
            }
        }
    }
    if node.is_none() {
        blobs.extend(core.replicas.references());
    }
    blobs
}
