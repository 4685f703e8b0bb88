//! What users declare: documents with `kind`, `name` and `spec`, in YAML or JSON.
//!
//! Parsing is strict: an unknown field is an error that names the nearest known one, and every
//! error names the field (`spec.limits.memory`) and the fix.

mod document;
pub mod model;
pub mod placement;
pub mod quantity;
pub mod service;
pub mod task;

pub use document::{DOCUMENT_BYTES_MAX, Resource, nearest, parse_documents, parse_json};
pub use model::ModelSpec;
pub use placement::{Labels, Placement, Resources, Selector, Tier};
pub use quantity::{ByteSize, CpuMilli, Millis};
pub use service::{CheckpointSpec, Durability, KeyFrom, ServiceLimits, ServiceSpec, State, Topic};
pub use task::{Limits, Retry, Stdin, TaskSpec, VolumeGrant};

/// What is wrong with a document: the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct Invalid {
    /// Path of the field (`spec.limits.memory`).
    pub field: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl Invalid {
    /// A problem with `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}
