//! The records. Ids are what the `id` column says.
//!
//! | kind | id | changes |
//! | --- | --- | --- |
//! | `mesh` | `mesh` | never |
//! | `node` | node | by operators, at renewal, when its facts change |
//! | `cursor` | node | with each report |
//! | `revoked` | key hash | never |
//! | `join-token`, `api-token` | token id | when used, revoked |
//! | `artifact` | digest in hex | when named |
//! | `task-body` | `<task>/<part>` | never |
//! | `task` | task | with each step |
//! | `model`, `model-version` | model, `<model>/<version>` | by operators, when placed |
//! | `service` | service | by operators |
//! | `service-instance` | `<service>/<index>` | when placed, ready, moved; with each checkpoint |
//! | `service-floor` | `floor` | when a service is removed |
//! | `decision` | number, 20 digits | never; the oldest go |

use hop3_common::{
    api::ArtifactKind,
    id::{Digest, InstanceId, MeshId, ModelName, NodeId, ServiceName, TaskId, UnixMs},
    identity::{KeyHash, TokenRecord},
    ownership::{Epoch, Ownership},
    spec::{Labels, Millis, ModelSpec, ServiceSpec, TaskSpec, Tier},
    store::{Record, RecordError},
    tensor::TensorSpec,
    wire::{Checkpoint, ModelFacts, NodeFacts},
};
use serde::{Deserialize, Serialize};

use super::past;
use crate::tasks::TaskState;

/// The id of the only `mesh` record.
pub const MESH_KEY: &str = "mesh";

macro_rules! record {
    ($ty:ty, $kind:literal, $version:literal) => {
        impl Record for $ty {
            const KIND: &'static str = $kind;
            const VERSION: u16 = $version;
        }
    };
}

/// The mesh and its CA. The key is sealed by the store's encryption like every value.
#[derive(Clone, Serialize, Deserialize)]
pub struct MeshRecord {
    /// The mesh's name.
    pub mesh: MeshId,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// The CA's key, PEM.
    pub key_pem: String,
    /// When it was made.
    pub created: UnixMs,
}
record!(MeshRecord, "mesh", 1);

/// A member of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Its tier.
    pub tier: Tier,
    /// Its labels.
    pub labels: Labels,
    /// No new work.
    pub cordoned: bool,
    /// Being emptied.
    pub draining: bool,
    /// When it enrolled.
    pub enrolled: UnixMs,
    /// Its newest certified key.
    pub key: KeyHash,
    /// The key before: good until the node has shown the newest.
    pub key_before: Option<KeyHash>,
    /// When its newest certificate ends.
    pub certificate_expires: UnixMs,
    /// What it said of itself last.
    pub facts: NodeFacts,
    /// Its agent's version.
    pub agent_version: String,
    /// When its last session began; absent before the first.
    pub connected: Option<UnixMs>,
}
record!(NodeRecord, "node", 1);

/// How far a node's outbox was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorRecord {
    /// Names the outbox.
    pub outbox: [u8; 16],
    /// Its last durable report.
    pub seq: u64,
}
record!(CursorRecord, "cursor", 1);

/// A key that was thrown out. Only for a clear answer: no key is let in that a node lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokedRecord {
    /// The node it was.
    pub node: NodeId,
    /// When.
    pub at: UnixMs,
}
record!(RevokedRecord, "revoked", 1);

/// A join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinTokenRecord(pub TokenRecord);
record!(JoinTokenRecord, "join-token", 1);

/// An API token; of its secret only the hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiTokenRecord {
    /// For people.
    pub name: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created: UnixMs,
}
record!(ApiTokenRecord, "api-token", 1);

/// An artifact; its bytes are a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// Its digest.
    pub digest: Digest,
    /// What it is.
    pub kind: ArtifactKind,
    /// Its names.
    pub names: Vec<String>,
    /// Its size.
    pub bytes: u64,
    /// When it was pushed first.
    pub created: UnixMs,
}
record!(ArtifactRecord, "artifact", 1);

/// What of a task never changes. Stored in parts: arguments may be larger than a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskBody {
    /// Its id.
    pub id: TaskId,
    /// For people.
    pub name: Option<String>,
    /// As submitted.
    pub spec: TaskSpec,
    /// The module.
    pub module: Digest,
    /// The module's size.
    pub module_bytes: u64,
    /// The module's name as the user wrote it, for `argv[0]`.
    pub program: String,
    /// The size of an input artifact.
    pub stdin_bytes: u64,
    /// When it was submitted.
    pub created: UnixMs,
}

/// A part of an encoded [`TaskBody`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskBodyPart(pub Vec<u8>);
record!(TaskBodyPart, "task-body", 1);

/// Where a task stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskStateRecord(pub TaskState);
record!(TaskStateRecord, "task", 1);

/// A model and how it is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its name.
    pub name: ModelName,
    /// The last version pushed; versions count from 1 and are never used twice.
    pub version_last: u32,
    /// The version that is served.
    pub deployed: Option<u32>,
    /// The version served before.
    pub previous: Option<u32>,
    /// How it is served.
    pub spec: Option<ModelSpec>,
    /// Counts the changes of version and spec: a replica of an older one is renewed.
    pub revision: u64,
    /// Its replicas, by number.
    pub replicas: Vec<ReplicaRecord>,
}
record!(ModelRecord, "model", 1);

/// One replica. Its epoch outlives its node, and its removal, as long as the model exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// The newest ownership.
    pub epoch: Epoch,
    /// Who owns it.
    pub node: Option<NodeId>,
    /// The version it serves.
    pub version: u32,
    /// The model's revision that it follows.
    pub revision: u64,
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelVersionRecord {
    /// Which.
    pub version: u32,
    /// The ONNX artifact.
    pub artifact: Digest,
    /// Its size.
    pub bytes: u64,
    /// When it was pushed.
    pub created: UnixMs,
    /// Input facts given by its user.
    pub inputs: Vec<TensorSpec>,
    /// What it takes and gives, as the node that checked it says.
    pub facts: ModelFacts,
}
record!(ModelVersionRecord, "model-version", 1);

/// A recorded choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// When.
    pub at: UnixMs,
    /// About what.
    pub subject: String,
    /// What was done.
    pub action: String,
    /// Why.
    pub reason: String,
    /// The node chosen.
    pub node: Option<NodeId>,
    /// All candidates, as JSON.
    pub placement: Option<String>,
}
record!(DecisionRecord, "decision", 1);

/// The id of the only `service-floor` record.
pub const FLOOR_KEY: &str = "floor";

/// The highest epoch of any instance of a service that was removed: a new service begins above it,
/// so that nothing which a node still has of an older one of that name is taken for the new one's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFloorRecord {
    /// That epoch.
    pub epoch: Epoch,
}
record!(ServiceFloorRecord, "service-floor", 1);

/// A service, as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its name.
    pub name: ServiceName,
    /// As declared.
    pub spec: ServiceSpec,
    /// The module that `spec` named when it was applied.
    pub module: Digest,
    /// Its size.
    pub module_bytes: u64,
    /// Counts the changes of spec and module.
    pub revision: u64,
    /// When it was made.
    pub created: UnixMs,
    /// Epochs up to this one are an older service's of that name.
    pub floor: Epoch,
    /// The last move that ended.
    pub last_move: Option<MoveRecord>,
}

impl Record for ServiceRecord {
    const KIND: &'static str = "service";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        past::service(from, body)
    }
}

/// One replica or shard. Its epoch outlives its node, and its removal, as long as the service
/// exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInstanceRecord {
    /// Who owns it.
    pub own: Ownership<NodeId>,
    /// The longest lease that this ownership may have been granted, if it is fenced.
    pub fence: Option<Millis>,
    /// The service's revision that it follows.
    pub revision: u64,
    /// Whether this ownership has served yet.
    pub phase: InstancePhase,
    /// Its node may have state that `checkpoint` lacks: it cannot begin elsewhere.
    pub tied: bool,
    /// The newest checkpoint here.
    pub checkpoint: Option<Checkpoint>,
    /// A move on its way.
    pub moving: Option<MoveRecord>,
    /// Owners that were replaced without having been heard: what they accepted since is a branch.
    pub deposed: Vec<Deposed>,
}

/// An owner that an operator replaced while it could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposed {
    /// Which node.
    pub node: NodeId,
    /// Under which epoch it had the instance.
    pub epoch: Epoch,
    /// When it was replaced.
    pub at: UnixMs,
    /// What it had accepted by itself, once it came back: kept, never merged.
    pub branch: Option<Checkpoint>,
}

/// Most replaced owners remembered; the oldest are forgotten.
pub const DEPOSED_MAX: usize = 8;

impl Record for ServiceInstanceRecord {
    const KIND: &'static str = "service-instance";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        past::instance(from, body)
    }
}

/// Whether an ownership has served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstancePhase {
    /// Not yet.
    Assigned,
    /// It has.
    Running,
}

/// A move of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// What moves.
    pub instance: InstanceId,
    /// From where.
    pub from: NodeId,
    /// Where to.
    pub to: NodeId,
    /// How far it is.
    pub stage: MoveStage,
    /// Why it moves; how it ended.
    pub reason: String,
    /// When it began.
    pub began: UnixMs,
    /// When the source was told to stop.
    pub sealing: Option<UnixMs>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// Blobs sent ahead.
    pub copied: Vec<Digest>,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Bytes of the final checkpoint that were not sent ahead.
    pub final_bytes: u64,
    /// From the order to stop to the first readiness at the target, microseconds.
    pub downtime_us: Option<u64>,
}

/// How far a move is. The record holds for `Draining` in the design: from `Sealing` on the source
/// has been told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStage {
    /// State goes ahead while the source serves.
    Copying,
    /// The source was told to stop.
    Sealing,
    /// The target owns it, and starts.
    Starting,
    /// It serves at the target.
    Done,
    /// Given up.
    Aborted,
}
