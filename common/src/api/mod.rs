//! The types of the REST API `/v1`: what the CLI, the dashboard and other clients exchange with a
//! coordinator. JSON; errors are RFC 9457 problem details ([`ProblemDetails`]).

mod model;
mod node;
mod service;
mod task;

pub use model::*;
pub use node::*;
use serde::{Deserialize, Serialize};
pub use service::*;
pub use task::*;
use utoipa::ToSchema;

use crate::{
    codes::{Code, Problem},
    id::{Digest, MeshId, UnixMs},
};

/// Most items in one page of a listing.
pub const PAGE_ITEMS_MAX: usize = 500;

/// RFC 9457: what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// Names this kind of problem: `urn:hop3:problem:HOP3-0404`; see `docs/reference/errors.md`.
    pub r#type: String,
    /// Its short name.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, where, and what to do.
    pub detail: String,
    /// Stable code.
    pub code: Code,
    /// The field at fault (`spec.limits.memory`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl ProblemDetails {
    /// The details of `problem`.
    #[must_use]
    pub fn of(problem: &Problem, field: Option<String>) -> Self {
        let code = problem.code;
        Self {
            r#type: format!("urn:hop3:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            detail: problem.message.clone(),
            code,
            field,
        }
    }
}

/// One page of a listing, newest first unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give this as `after` to get the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `GET /v1/status`: the mesh at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// The mesh's name.
    pub mesh: MeshId,
    /// The coordinator's version.
    pub version: String,
    /// The coordinator's clock.
    pub now: UnixMs,
    /// When it started.
    pub started: UnixMs,
    /// Where agents connect.
    pub mesh_addresses: Vec<String>,
    /// Nodes, by name.
    pub nodes: Vec<NodeView>,
    /// Tasks by phase.
    pub tasks: TaskCounts,
    /// Models.
    pub models: Vec<ModelView>,
    /// Artifacts stored.
    pub artifacts: u64,
    /// Bytes of artifacts and results stored.
    pub artifact_bytes: u64,
}

/// How many tasks are in which phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskCounts {
    /// Not placed.
    pub pending: u64,
    /// Placed, not running yet.
    pub assigned: u64,
    /// Running.
    pub running: u64,
    /// Ended with exit code 0.
    pub succeeded: u64,
    /// Ended otherwise.
    pub failed: u64,
}

/// What an artifact is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// A core Wasm module; checked at push.
    Wasm,
    /// An ONNX model.
    Onnx,
    /// Anything else: input files, results.
    Data,
}

/// A stored artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactView {
    /// Its digest.
    pub digest: Digest,
    /// Its names, if any (`hop3 artifact push --name`; the newest push of a name wins).
    pub names: Vec<String>,
    /// What it is.
    pub kind: ArtifactKind,
    /// Its size.
    pub bytes: u64,
    /// When it was pushed.
    pub created: UnixMs,
    /// What uses it (`task/…`, `model/…`), at most a few.
    pub used_by: Vec<String>,
}

/// A recorded choice: `GET /v1/decisions?subject=…`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecisionView {
    /// Grows with time.
    pub id: u64,
    /// When.
    pub at: UnixMs,
    /// About what (`task/tabc…`, `model/digits/0`).
    pub subject: String,
    /// `place`, `retry`, `stop`, `lost`, …
    pub action: String,
    /// One sentence with the numbers that decided.
    pub reason: String,
    /// The node chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// All candidates with filter verdicts and scores, for placements (the optimizer's result).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<serde_json::Value>,
}

/// `GET /v1/explain/{kind}/{name}`: why here, why not running, why moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// About what.
    pub subject: String,
    /// The answer in one or two sentences.
    pub summary: String,
    /// The facts that it rests on, one to a line.
    pub facts: Vec<String>,
    /// The decisions behind it, newest first.
    pub decisions: Vec<DecisionView>,
}

/// A live event on `GET /v1/events` (server-sent).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventView {
    /// A node changed (or its telemetry came).
    Node(Box<NodeView>),
    /// A node is gone.
    NodeRemoved {
        /// Its name.
        node: String,
    },
    /// A task changed.
    Task(Box<TaskView>),
    /// A model changed.
    Model(Box<ModelView>),
    /// A service changed.
    Service(Box<ServiceView>),
    /// A service is gone.
    ServiceRemoved {
        /// Its name.
        service: String,
    },
    /// The client was too slow and missed this many events: list again.
    Missed {
        /// How many.
        events: u64,
    },
}
