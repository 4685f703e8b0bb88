//! Services at the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{Digest, InstanceId, NodeId, ServiceName, UnixMs},
    ownership::Token,
    spec::ServiceSpec,
    wire::{Checkpoint, ServiceFacts},
};

/// One replica or shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceInstanceView {
    /// Which.
    pub instance: InstanceId,
    /// Its newest run.
    pub token: Token,
    /// The service's revision that it runs.
    pub revision: u64,
    /// Its node.
    pub node: Option<NodeId>,
    /// Where it is being moved.
    pub moving_to: Option<NodeId>,
    /// `pending`, `starting`, `ready`, `moving`, `away` (its node is not connected), `failed`.
    pub status: String,
    /// Why.
    pub reason: String,
    /// What it said when it began to serve.
    pub facts: Option<ServiceFacts>,
    /// The newest checkpoint that the coordinator has.
    pub checkpoint: Option<Checkpoint>,
    /// The replica of its changes, where they are replicated.
    pub replica: Option<ReplicaView>,
    /// Owners that were replaced unheard, newest first.
    pub branches: Vec<BranchView>,
    /// What would happen if its node died now; only where one service is asked for.
    pub if_lost: Option<String>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// As declared.
    pub spec: ServiceSpec,
    /// The module that its spec named when it was applied.
    pub module: Digest,
    /// Counts changes of spec and module.
    pub revision: u64,
    /// When it was made.
    pub created: UnixMs,
    /// `ready` when all instances are, at this revision; else `progressing` or `failed`.
    pub status: String,
    /// What it waits for.
    pub reason: String,
    /// Its path at gateways.
    pub path: String,
    /// Its instances.
    pub instances: Vec<ServiceInstanceView>,
    /// The last move that ended, if any.
    pub last_move: Option<MoveView>,
}

/// `POST /v1/services/{name}/migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Which replica or shard; may be left out where there is one.
    #[serde(default)]
    pub index: Option<u32>,
    /// Where to; the scheduler chooses if it is left out.
    #[serde(default)]
    pub to: Option<NodeId>,
}

/// `POST /v1/services/{name}/takeover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeOverRequest {
    /// Which replica or shard; may be left out where there is one.
    #[serde(default)]
    pub index: Option<u32>,
    /// Where to; the scheduler chooses if it is left out.
    #[serde(default)]
    pub to: Option<NodeId>,
    /// What only the old owner has is given up. Without it the answer says what that is.
    #[serde(default)]
    pub accept_loss: bool,
}

/// An instance that was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakeOverView {
    /// Which.
    pub instance: InstanceId,
    /// From whom.
    pub from: NodeId,
    /// Where it goes on.
    pub to: NodeId,
    /// What is lost, in words.
    pub lost: String,
}

/// How far the replica of an instance's changes is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaView {
    /// Changes of the instance that it contains.
    pub seq: u64,
    /// When the last one came, on the coordinator's clock; after its restart, when it started.
    pub at: UnixMs,
    /// Changes that are not in its checkpoint.
    pub changes: u64,
    /// Length of its log, bytes.
    pub bytes: u64,
}

/// What an owner that was replaced unheard had accepted by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BranchView {
    /// Which node.
    pub node: NodeId,
    /// When it was replaced.
    pub at: UnixMs,
    /// Its state: artifacts that are kept, never merged. None until it comes back.
    pub state: Option<Checkpoint>,
}

/// `PATCH /v1/services/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// How many replicas.
    pub replicas: u32,
}

/// A move of an instance, as far as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveView {
    /// What moves.
    pub instance: InstanceId,
    /// From where.
    pub from: NodeId,
    /// Where to.
    pub to: NodeId,
    /// `copying` (state goes ahead while it serves), `sealing`, `starting`, `done`, `aborted`.
    pub phase: String,
    /// Why it was aborted, or what it waits for.
    pub reason: String,
    /// When it began.
    pub began: UnixMs,
    /// From its beginning to now, or to its end, milliseconds.
    pub took_ms: u64,
    /// Bytes of state sent while it served.
    pub copied_bytes: u64,
    /// Bytes of state sent while it was stopped.
    pub final_bytes: u64,
    /// From the order to stop at the source to the first readiness at the target, microseconds.
    pub downtime_us: Option<u64>,
}
