//! Nodes and join tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{InstanceId, NodeId, UnixMs},
    ownership::Token,
    spec::{Labels, Millis, Tier},
    wire::{NodeFacts, Phase, telemetry::Sample},
};

/// Whether a node can be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Its session stands.
    Ready,
    /// No session. It may go on by itself.
    Disconnected,
    /// Enrolled, never connected.
    Enrolled,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub id: NodeId,
    /// Its tier.
    pub tier: Tier,
    /// Its labels.
    pub labels: Labels,
    /// Whether it can be given work.
    pub status: NodeStatus,
    /// No new work is placed on it.
    pub cordoned: bool,
    /// Its work is being moved away.
    pub draining: bool,
    /// What the machine is.
    pub facts: NodeFacts,
    /// The agent's version.
    pub agent_version: String,
    /// Newest telemetry.
    pub latest: Option<Sample>,
    /// What work has asked of it.
    pub allocated: Allocation,
    /// What it has to give.
    pub capacity: Allocation,
    /// When it enrolled.
    pub enrolled: UnixMs,
    /// When its session began.
    pub connected: Option<UnixMs>,
    /// When it was last heard.
    pub last_seen: Option<UnixMs>,
    /// Where it connects from.
    pub address: Option<String>,
    /// Round trip to it, microseconds.
    pub rtt_us: Option<u64>,
    /// When its certificate ends.
    pub certificate_expires: UnixMs,
    /// What it holds.
    pub instances: Vec<InstanceView>,
}

/// Amounts of what nodes have and work asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk.
    pub storage_bytes: u64,
    /// Tasks at once.
    pub tasks: u32,
}

/// An instance on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Which.
    pub id: InstanceId,
    /// Its run.
    pub token: Token,
    /// Where it stands.
    pub phase: Phase,
}

/// `PATCH /v1/nodes/{node}`: absent fields stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodePatch {
    /// Labels to set.
    pub set_labels: Labels,
    /// Label keys to remove.
    pub remove_labels: Vec<String>,
    /// Cordon (true) or uncordon (false).
    pub cordoned: Option<bool>,
    /// Drain: cordon, move models away, wait for tasks. `false` ends a drain.
    pub draining: Option<bool>,
}

/// `GET /v1/nodes/{node}/telemetry`: the ring of samples, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TelemetryView {
    /// The samples kept.
    pub samples: Vec<Sample>,
}

/// `POST /v1/join-tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// Tier of the node that will use it.
    pub tier: Tier,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Its name; the agent proposes its host name when absent.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// How long it is valid (default 1 h, at most 30 d).
    #[serde(default)]
    pub ttl: Option<Millis>,
}

/// Answer: the only time the secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenCreated {
    /// Names the token.
    pub id: String,
    /// The token: secret, one use.
    pub token: String,
    /// The line to paste on the node.
    pub command: String,
    /// When it ends.
    pub expires: UnixMs,
}

/// A join token in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenView {
    /// Names the token.
    pub id: String,
    /// Tier it gives.
    pub tier: Tier,
    /// Labels it gives.
    pub labels: Labels,
    /// Name it gives.
    pub node: Option<NodeId>,
    /// When it was made.
    pub created: UnixMs,
    /// When it ends.
    pub expires: UnixMs,
    /// `open`, `used`, `expired`, `revoked`.
    pub status: String,
    /// The node that used it.
    pub used_by: Option<NodeId>,
}
