//! Tasks and invocations.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{Digest, NodeId, TaskId, UnixMs},
    ownership::Token,
    spec::TaskSpec,
    wire::TaskResult,
};

/// `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// What to run.
    pub spec: TaskSpec,
}

/// Where a task stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TaskPhase {
    /// No node fits yet: see `reason`.
    Pending,
    /// A node was chosen.
    Assigned,
    /// It runs.
    Running,
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a trap, a limit, a loss.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl TaskPhase {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// For people.
    pub name: Option<String>,
    /// As submitted.
    pub spec: TaskSpec,
    /// The module's digest.
    pub module: Digest,
    /// Where it stands.
    pub phase: TaskPhase,
    /// Why it stands there, in a sentence.
    pub reason: String,
    /// Its node.
    pub node: Option<NodeId>,
    /// Its newest run.
    pub token: Token,
    /// When it was submitted.
    pub created: UnixMs,
    /// When it began to run (coordinator's clock).
    pub started: Option<UnixMs>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// Time to fetch and to compile or load the module, microseconds.
    pub prepare_us: Option<(u64, u64)>,
    /// How it ended.
    pub result: Option<TaskResult>,
}

/// Answer of `POST /v1/invoke` in its headers; the body is the guest's standard output.
///
/// `POST /v1/invoke?module=NAME_OR_DIGEST[&tier=T][&node=N][&memory=BYTES][&timeout_ms=MS]`, the
/// body is the guest's standard input. For short calls: nothing is recorded, the guest starts
/// fresh, and a call whose node is lost is answered as such.
pub mod invoke_headers {
    /// The guest's exit code.
    pub const EXIT: &str = "hop3-exit";
    /// The node that ran it.
    pub const NODE: &str = "hop3-node";
    /// CPU time, microseconds.
    pub const CPU_US: &str = "hop3-cpu-us";
    /// Start to end on the node, microseconds.
    pub const WALL_US: &str = "hop3-wall-us";
}
