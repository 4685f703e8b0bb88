//! Models: named, versioned ONNX artifacts served for inference.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Invalid,
    placement::{Placement, Resources},
    quantity::{ByteSize, CpuMilli, Millis},
};

/// Most replicas of a model.
pub const REPLICAS_MAX: u32 = 64;
/// Most inputs (or outputs) of a model.
pub const TENSORS_MAX: usize = 64;

/// How a model is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSpec {
    /// The version to serve; the newest pushed when absent.
    pub version: Option<u32>,
    /// How many nodes serve it.
    pub replicas: u32,
    /// Input facts, `name:dtype[dim,…]`: needed where the model leaves dimensions free
    /// (`X:f32[batch,64]`: a name means free at run time, a number fixes it).
    pub inputs: Vec<String>,
    /// Where it may run.
    pub placement: Placement,
    /// What it asks its node for.
    pub resources: Resources,
    /// Memory of the guarded child process that runs it.
    pub memory: ByteSize,
    /// The longest one inference may take.
    pub deadline: Millis,
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            version: None,
            replicas: 1,
            inputs: Vec::new(),
            placement: Placement::default(),
            resources: Resources {
                cpu: CpuMilli(250),
                memory: ByteSize::mib(128),
                ..Resources::default()
            },
            memory: ByteSize::mib(512),
            deadline: Millis::secs(10),
        }
    }
}

impl ModelSpec {
    /// Checks what types cannot say. Names the field and the fix.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.replicas > REPLICAS_MAX {
            return Err(Invalid::new(
                "spec.replicas",
                format!("must be at most {REPLICAS_MAX}"),
            ));
        }
        if self.inputs.len() > TENSORS_MAX {
            return Err(Invalid::new(
                "spec.inputs",
                format!("has more than {TENSORS_MAX} entries"),
            ));
        }
        if !(32 << 20..=64 << 30).contains(&self.memory.0) {
            return Err(Invalid::new("spec.memory", "must be from 32MiB to 64GiB"));
        }
        if !(1..=3_600_000).contains(&self.deadline.0) {
            return Err(Invalid::new("spec.deadline", "must be from 1ms to 1h"));
        }
        self.placement.check()
    }
}
