//! The models in memory: records, what is known of replicas, and routes for inferences.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicUsize},
    },
};

use arc_swap::ArcSwap;
use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId, ModelName, NodeId, UnixMs},
    ownership::Epoch,
    spec::{Millis, nearest},
    wire::{ModelFacts, ModelWork},
};

use crate::{
    Core,
    records::{ModelRecord, ModelVersionRecord, Records, ReplicaRecord},
    registry::Link,
};

/// All models.
pub(crate) struct Models {
    by_name: RwLock<BTreeMap<ModelName, Arc<Model>>>,
    live: Mutex<HashMap<InstanceId, Serving>>,
    pub(crate) routes: ArcSwap<HashMap<ModelName, Arc<Route>>>,
}

/// A model and its versions.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) record: ModelRecord,
    pub(crate) versions: BTreeMap<u32, Arc<ModelVersionRecord>>,
}

/// What is known of a replica's newest run. Learnt anew after a start.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) epoch: Epoch,
    pub(crate) ready: bool,
    pub(crate) reason: String,
    pub(crate) facts: Option<ModelFacts>,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// A failed one is placed anew from then on.
    pub(crate) retry_at: Option<UnixMs>,
    /// Where it failed last.
    pub(crate) failed_on: Option<NodeId>,
}

/// Where inferences of a model go.
pub(crate) struct Route {
    pub(crate) replicas: Vec<RouteReplica>,
    pub(crate) next: AtomicUsize,
    pub(crate) deadline: Millis,
}

/// A replica that serves.
pub(crate) struct RouteReplica {
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Epoch,
    pub(crate) version: Arc<ModelVersionRecord>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) calls: Arc<AtomicU32>,
}

impl Model {
    /// The version with this number.
    pub(crate) fn version(&self, version: u32) -> Result<&Arc<ModelVersionRecord>, Problem> {
        self.versions.get(&version).ok_or_else(|| {
            let known: Vec<_> = self.versions.keys().map(u32::to_string).collect();
            let known = known.join(", ");
            let message = format!(
                "model `{}` has no version {version}, only {known}",
                self.record.name
            );
            Problem::new(Code::ModelVersionUnknown, message)
        })
    }

    pub(crate) fn replica(&self, replica: u32) -> Option<&ReplicaRecord> {
        self.record.replicas.get(replica as usize)
    }

    /// How many replicas are wanted.
    pub(crate) fn wanted(&self) -> usize {
        let spec = self
            .record
            .spec
            .as_ref()
            .filter(|_| self.record.deployed.is_some());
        spec.map_or(0, |spec| spec.replicas as usize)
    }
}

impl Models {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let mut models = BTreeMap::new();
        for (_, record) in records.all::<ModelRecord>().await? {
            let model = Model {
                record,
                versions: BTreeMap::new(),
            };
            models.insert(model.record.name.clone(), model);
        }
        for (id, version) in records.all::<ModelVersionRecord>().await? {
            let name = id
                .split('/')
                .next()
                .and_then(|name| name.parse::<ModelName>().ok());
            if let Some(model) = name.and_then(|name| models.get_mut(&name)) {
                model.versions.insert(version.version, Arc::new(version));
            }
        }
        let shared = models
            .into_iter()
            .map(|(name, model)| (name, Arc::new(model)));
        Ok(Self {
            by_name: RwLock::new(shared.collect()),
            live: Mutex::default(),
            routes: ArcSwap::default(),
        })
    }

    pub(crate) fn get(&self, name: &ModelName) -> Option<Arc<Model>> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    pub(crate) fn find(&self, name: &ModelName) -> Result<Arc<Model>, Problem> {
        self.get(name).ok_or_else(|| {
            let all = self.all();
            let near = nearest(name.as_str(), all.iter().map(|m| m.record.name.as_str()));
            let hint = near
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            Problem::new(
                Code::ModelUnknown,
                format!("there is no model `{name}`{hint}"),
            )
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Model>> {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Shows what was committed.
    pub(crate) fn show(&self, model: Model) -> Arc<Model> {
        let model = Arc::new(model);
        let mut models = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        models.insert(model.record.name.clone(), model.clone());
        model
    }

    pub(crate) fn drop_shown(&self, name: &ModelName) {
        self.by_name
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// What is known of replicas. Taken last, never across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, HashMap<InstanceId, Serving>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the run `epoch` of `instance`.
    pub(crate) fn serving(&self, instance: &InstanceId, epoch: Epoch) -> Option<Serving> {
        self.live()
            .get(instance)
            .filter(|serving| serving.epoch == epoch)
            .cloned()
    }
}

impl Serving {
    pub(crate) fn starting(epoch: Epoch, before: Option<&Self>) -> Self {
        Self {
            epoch,
            ready: false,
            reason: "starting".into(),
            facts: None,
            failures: before.map_or(0, |before| before.failures),
            retry_at: None,
            failed_on: before.and_then(|before| before.failed_on.clone()),
        }
    }
}

/// The epoch under which `node` shall serve `instance`.
pub(crate) fn desired(core: &Core, node: &NodeId, instance: &InstanceId) -> Option<Epoch> {
    let (name, replica) = instance.as_model()?;
    let model = core.models.get(&name)?;
    let replica = model.replica(replica)?;
    (replica.node.as_ref() == Some(node)).then_some(replica.epoch)
}

/// What a node needs to serve the replica.
pub(crate) fn work(core: &Core, name: &ModelName, replica: u32, epoch: Epoch) -> Option<ModelWork> {
    let model = core.models.get(name)?;
    let record = model
        .replica(replica)
        .filter(|replica| replica.epoch == epoch)?;
    let version = model.versions.get(&record.version)?;
    let spec = model.record.spec.as_ref()?;
    Some(ModelWork {
        name: name.clone(),
        version: record.version,
        model: version.artifact,
        model_bytes: version.bytes,
        inputs: version.inputs.clone(),
        memory: spec.memory,
        deadline: spec.deadline,
    })
}

/// Artifacts that versions are made of, and whose.
pub(crate) fn artifacts_used(core: &Core) -> BTreeMap<Digest, Vec<String>> {
    let mut used: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for model in core.models.all() {
        for version in model.versions.values() {
            let by = format!("model/{} version {}", model.record.name, version.version);
            used.entry(version.artifact).or_default().push(by);
        }
    }
    used
}
