//! The control plane's handle: every verb that the API has, one line each, and the state they
//! share. The work is in the modules named after the nouns.
//!
//! Invariants
//! - Records in memory are never ahead of the store: commit first, then show, then act.
//! - Changes of one record are serialised by [`Locks`]; commits of different records share a flush.
//! - No lock is held while a node is waited for.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use hop3_common::{
    api::*,
    chunks::BlobStore,
    codes::Problem,
    id::{Digest, MeshId, ModelName, NodeId, ServiceName, TaskId, UnixMs},
    identity::{CertificateAuthority, CoordinatorAddr},
    spec::{ModelSpec, ServiceSpec},
    tensor::Tensor,
    wire::{Checkpoint, attach::Channel},
};
use hop3_gateway::Gateway;
use hop3_optimizer::placement::Registry as Strategies;
use tokio::sync::broadcast;

use crate::{
    access, artifacts, attach, decisions::Decisions, enroll, events::Events, explain, invoke,
    locks::Locks, models, registry, scheduler, services, tasks,
};
pub use crate::{
    access::Principal,
    artifacts::{ArtifactUpload, BlobRead},
    attach::AttachSession,
    invoke::{InvokeOutcome, InvokeTarget},
    models::Inference,
    records::Records,
    tasks::{ByteStream, TaskFilter},
};

/// What the core must know from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A node away for longer is lost to tasks that may be retried, milliseconds.
    pub lost_after_ms: u64,
    /// Life of node certificates, seconds.
    pub certificate_ttl_s: u64,
    /// Largest artifact, bytes.
    pub artifact_bytes_max: u64,
    /// The placement strategy where none is named.
    pub strategy: Option<String>,
}

/// The control plane. Shared as `Arc<Core>`.
pub struct Core {
    pub(crate) this: Weak<Core>,
    pub(crate) mesh: MeshId,
    pub(crate) started: UnixMs,
    pub(crate) settings: Settings,
    advertised: ArcSwap<Vec<CoordinatorAddr>>,
    pub(crate) ca: CertificateAuthority,
    pub(crate) records: Records,
    pub(crate) blobs: Arc<BlobStore>,
    pub(crate) locks: Locks,
    pub(crate) access: access::Tokens,
    pub(crate) join_tokens: enroll::JoinTokens,
    pub(crate) nodes: registry::Nodes,
    pub(crate) tasks: tasks::Tasks,
    pub(crate) models: models::Models,
    pub(crate) services: services::Services,
    pub(crate) replicas: Arc<services::Replicas>,
    pub(crate) gateway: Gateway,
    pub(crate) artifacts: artifacts::Artifacts,
    pub(crate) decisions: Decisions,
    pub(crate) events: Events,
    pub(crate) strategies: Strategies,
    pub(crate) routes: invoke::Routes,
    /// Held while a joining node gets its name.
    pub(crate) join_names: tokio::sync::Mutex<()>,
}

type Answer<T> = Result<T, Problem>;

impl Core {
    /// Loads the records into memory: the control plane as it was when it stopped. Nothing is sent
    /// before nodes come and say what they hold.
    ///
    /// # Errors
    /// Storage; a record that does not decode is named.
    pub async fn open(
        records: Records,
        blobs: Arc<BlobStore>,
        replicas: services::Replicas,
        ca: CertificateAuthority,
        settings: Settings,
    ) -> Result<Arc<Self>, Problem> {
        let strategies = Strategies::default();
        if let Some(name) = &settings.strategy {
            strategies.get(Some(name)).map_err(|unknown| {
                Problem::new(
                    hop3_common::codes::Code::StrategyUnknown,
                    unknown.to_string(),
                )
            })?;
        }
        let started = UnixMs::now();
        let access = access::Tokens::load(&records).await?;
        let join_tokens = enroll::JoinTokens::load(&records).await?;
        let nodes = registry::Nodes::load(&records, started).await?;
        let tasks = tasks::Tasks::load(&records).await?;
        let models = models::Models::load(&records).await?;
        let services = services::Services::load(&records).await?;
        let artifacts = artifacts::Artifacts::load(&records).await?;
        let decisions = Decisions::load(&records).await?;
        let core = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            mesh: ca.certificate().mesh().clone(),
            started,
            settings,
            advertised: ArcSwap::default(),
            ca,
            records,
            blobs,
            locks: Locks::new(),
            access,
            join_tokens,
            nodes,
            tasks,
            models,
            services,
            replicas: Arc::new(replicas),
            gateway: Gateway::new(
                Arc::new(services::ServiceRouter(this.clone())),
                hop3_gateway::Options::default(),
            ),
            artifacts,
            decisions,
            events: Events::new(),
            strategies,
            routes: invoke::Routes::default(),
            join_names: tokio::sync::Mutex::default(),
        });
        tasks::reserve_all(&core);
        models::reserve_all(&core);
        services::reserve_all(&core);
        models::converge_all(&core).await;
        services::converge_all(&core).await;
        Ok(core)
    }

    /// Where agents connect from now on, as written into join tokens: known once the port is bound.
    pub fn set_advertised(&self, addresses: Vec<CoordinatorAddr>) {
        self.advertised.store(Arc::new(addresses));
    }

    pub(crate) fn advertised(&self) -> Arc<Vec<CoordinatorAddr>> {
        self.advertised.load_full()
    }

    /// The mesh's CA.
    pub(crate) fn certificate_authority(&self) -> &CertificateAuthority {
        &self.ca
    }
}

/// The verbs. Each answers a view, or a problem with its code and what to do.
impl Core {
    /// The mesh at a glance.
    pub async fn status(&self) -> Answer<StatusView> {
        Ok(registry::status(self))
    }
    /// Live events. A slow subscriber loses the oldest ([`EventView::Missed`] is the API's to say).
    pub fn subscribe(&self) -> broadcast::Receiver<EventView> {
        self.events.subscribe()
    }
    /// Who holds this API token.
    pub async fn authenticate(&self, token: &str) -> Answer<Principal> {
        self.access.authenticate(token)
    }

    /// Every node, by name.
    pub async fn nodes(&self) -> Answer<Vec<NodeView>> {
        Ok(registry::views(self))
    }
    /// One node.
    pub async fn node(&self, node: &NodeId) -> Answer<NodeView> {
        registry::view(self, node)
    }
    /// Changes labels, cordon, drain.
    pub async fn patch_node(&self, node: &NodeId, patch: NodePatch) -> Answer<NodeView> {
        registry::patch(self, node, patch).await
    }
    /// Revokes the node, ends its session within a second, and re-places what may run elsewhere.
    pub async fn remove_node(&self, node: &NodeId) -> Answer<()> {
        registry::remove(self, node).await
    }
    /// The node's ring of samples, oldest first.
    pub async fn telemetry(&self, node: &NodeId) -> Answer<TelemetryView> {
        registry::telemetry(self, node)
    }
    /// Asks for samples every second for the next ten.
    pub async fn watch_node(&self, node: &NodeId) -> Answer<()> {
        registry::watch(self, node)
    }

    /// Makes a join token. Its secret is shown here and never again.
    pub async fn create_join_token(&self, request: JoinTokenRequest) -> Answer<JoinTokenCreated> {
        enroll::create_token(self, request).await
    }
    /// Join tokens, newest first.
    pub async fn join_tokens(&self) -> Answer<Vec<JoinTokenView>> {
        Ok(enroll::tokens(self))
    }
    /// Withdraws a join token.
    pub async fn revoke_join_token(&self, id: &str) -> Answer<()> {
        enroll::revoke_token(self, id).await
    }

    /// Begins an upload. Nothing is kept unless [`ArtifactUpload::finish`] succeeds.
    pub async fn artifact_writer(
        &self,
        expected: Digest,
        kind: ArtifactKind,
        name: Option<String>,
        size: Option<u64>,
    ) -> Answer<ArtifactUpload> {
        artifacts::begin(self, expected, kind, name, size).await
    }
    /// Artifacts, newest first.
    pub async fn artifacts(&self) -> Answer<Vec<ArtifactView>> {
        Ok(artifacts::views(self))
    }
    /// An artifact by digest, unique hex prefix of at least 6 digits, or name.
    pub async fn artifact(&self, reference: &str) -> Answer<ArtifactView> {
        artifacts::view(self, reference)
    }
    /// Removes an artifact that nothing uses.
    pub async fn remove_artifact(&self, reference: &str) -> Answer<()> {
        artifacts::remove(self, reference).await
    }
    /// The bytes of an artifact or kept result, from `offset`.
    pub async fn read_artifact(&self, digest: &Digest, offset: u64) -> Answer<BlobRead> {
        artifacts::read(self, digest, offset).await
    }

    /// Submits a task: durable when this returns.
    pub async fn submit_task(&self, request: TaskRequest) -> Answer<TaskView> {
        tasks::submit(self, request).await
    }
    /// Tasks, newest first.
    pub async fn tasks(&self, filter: TaskFilter) -> Answer<Page<TaskView>> {
        tasks::list(self, &filter)
    }
    /// A task by its id or a unique prefix of at least 3 characters.
    pub async fn task(&self, reference: &str) -> Answer<TaskView> {
        tasks::view(self, reference)
    }
    /// Asks for a task's end. An ended task is `TaskEnded`.
    pub async fn cancel_task(&self, task: &TaskId) -> Answer<TaskView> {
        tasks::cancel(self, task).await
    }
    /// Output from `offset`: live from the node, or the kept result. `follow` = until its end.
    pub async fn task_output(
        &self,
        task: &TaskId,
        channel: Channel,
        offset: u64,
        follow: bool,
    ) -> Answer<ByteStream> {
        tasks::output(self, task, channel, offset, follow).await
    }
    /// Attaches to a task submitted with attached input. Frames both ways, bounded.
    pub async fn attach_task(&self, task: &TaskId) -> Answer<AttachSession> {
        attach::attach(self, task)
    }

    /// Runs a module once, at once, on the node that fits best. Nothing is recorded.
    pub async fn invoke(
        &self,
        target: InvokeTarget<'_>,
        input: bytes::Bytes,
    ) -> Answer<InvokeOutcome> {
        invoke::invoke(self, target, input).await
    }

    /// Makes an ONNX artifact the next version of a model, once a node has loaded it.
    pub async fn push_model(&self, name: &ModelName, push: ModelPush) -> Answer<ModelVersionView> {
        models::push(self, name, push).await
    }
    /// Declares how a model is served.
    pub async fn deploy_model(&self, name: &ModelName, spec: ModelSpec) -> Answer<ModelView> {
        models::deploy(self, name, spec).await
    }
    /// Goes back to the version deployed before.
    pub async fn rollback_model(&self, name: &ModelName) -> Answer<ModelView> {
        models::rollback(self, name).await
    }
    /// Stops serving a model; its versions stay.
    pub async fn undeploy_model(&self, name: &ModelName) -> Answer<ModelView> {
        models::undeploy(self, name).await
    }
    /// Stops serving a model and forgets its versions; artifacts stay.
    pub async fn remove_model(&self, name: &ModelName) -> Answer<()> {
        models::remove(self, name).await
    }
    /// Models, by name.
    pub async fn models(&self) -> Answer<Vec<ModelView>> {
        Ok(models::views(self))
    }
    /// One model.
    pub async fn model(&self, name: &ModelName) -> Answer<ModelView> {
        models::view(self, name)
    }
    /// What the deployed version takes and gives: to read JSON inputs with the right types.
    pub async fn model_inputs(
        &self,
        name: &ModelName,
    ) -> Answer<Vec<hop3_common::tensor::TensorSpec>> {
        models::inputs(self, name)
    }
    /// One inference on a ready replica. Inputs by name, in any order.
    pub async fn infer(
        &self,
        name: &ModelName,
        inputs: Vec<(String, Tensor)>,
    ) -> Answer<Inference> {
        models::infer(self, name, inputs).await
    }

    /// Declares a service, or changes it.
    pub async fn apply_service(
        &self,
        name: &ServiceName,
        spec: ServiceSpec,
    ) -> Answer<ServiceView> {
        services::apply(self, name, spec).await
    }
    /// Changes the number of replicas of a service without state.
    pub async fn scale_service(&self, name: &ServiceName, replicas: u32) -> Answer<ServiceView> {
        services::scale(self, name, replicas).await
    }
    /// Ends a service and forgets it with its state.
    pub async fn remove_service(&self, name: &ServiceName) -> Answer<()> {
        services::remove(self, name).await
    }
    /// Services, by name.
    pub async fn services(&self) -> Answer<Vec<ServiceView>> {
        Ok(services::views(self))
    }
    /// One service.
    pub async fn service(&self, name: &ServiceName) -> Answer<ServiceView> {
        services::view(self, name)
    }
    /// Gives an instance to another node without having heard of its owner.
    pub async fn take_over_service(
        &self,
        name: &ServiceName,
        request: TakeOverRequest,
    ) -> Answer<TakeOverView> {
        services::take_over(self, name, request).await
    }
    /// Begins to move an instance, with its state.
    pub async fn migrate_service(
        &self,
        name: &ServiceName,
        request: MigrateRequest,
    ) -> Answer<MoveView> {
        services::migrate(self, name, request).await
    }
    /// Gives up a move whose source was not sealed yet.
    pub async fn abort_move(&self, name: &ServiceName, index: Option<u32>) -> Answer<MoveView> {
        services::abort(self, name, index).await
    }
    /// Moves on their way, and the last one of each service.
    pub async fn moves(&self) -> Answer<Vec<MoveView>> {
        Ok(services::moves_view(self))
    }
    /// Makes a checkpoint of an instance; durable here when it returns.
    pub async fn checkpoint_service(
        &self,
        name: &ServiceName,
        index: Option<u32>,
    ) -> Answer<Checkpoint> {
        services::checkpoint(self, name, index).await
    }
    /// What an instance logs. `follow` = go on.
    pub async fn service_logs(
        &self,
        name: &ServiceName,
        index: Option<u32>,
        follow: bool,
    ) -> Answer<ByteStream> {
        services::logs(self, name, index, follow).await
    }
    /// The gateway to the services of this mesh.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Why here, why not running: `kind` is `task`, `node`, `model` or `service`.
    pub async fn explain(&self, kind: &str, name: &str) -> Answer<Explanation> {
        explain::explain(self, kind, name).await
    }
    /// Recorded decisions, newest first. A subject also matches what is below it
    /// (`model/digits` matches `model/digits/0`).
    pub async fn decisions(
        &self,
        subject: Option<&str>,
        limit: usize,
    ) -> Answer<Vec<DecisionView>> {
        self.decisions.list(&self.records, subject, limit).await
    }
    /// Names of the placement strategies.
    #[must_use]
    pub fn strategies(&self) -> Vec<String> {
        scheduler::names(self)
    }
    /// Whether the store accepts writes and the coordinator can answer (for `/readyz`).
    pub async fn ready(&self) -> Answer<()> {
        self.records.check().await
    }
}
