//! Models.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{Digest, InstanceId, ModelName, NodeId, UnixMs},
    ownership::Epoch,
    spec::ModelSpec,
    tensor::TensorSpec,
    wire::ModelFacts,
};

/// `POST /v1/models/{name}/versions`: a pushed artifact becomes a version. It is loaded once on a
/// node that can, so that what cannot run is refused now, not at the first inference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelPush {
    /// The ONNX artifact.
    pub artifact: Digest,
    /// Input facts for free dimensions, `name:dtype[dim,…]`.
    #[serde(default)]
    pub inputs: Vec<String>,
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelVersionView {
    /// Counts from 1.
    pub version: u32,
    /// The ONNX artifact.
    pub artifact: Digest,
    /// Its size.
    pub bytes: u64,
    /// When it was pushed.
    pub created: UnixMs,
    /// What it takes.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
}

/// One instance of a deployed model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelReplicaView {
    /// Which.
    pub instance: InstanceId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The version it serves.
    pub version: u32,
    /// Its node.
    pub node: Option<NodeId>,
    /// `pending`, `starting`, `ready`, `failed`.
    pub status: String,
    /// Why.
    pub reason: String,
    /// What the loaded model says of itself.
    pub facts: Option<ModelFacts>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelView {
    /// Its name.
    pub name: ModelName,
    /// Versions, newest first.
    pub versions: Vec<ModelVersionView>,
    /// The version deployed.
    pub deployed: Option<u32>,
    /// The version before it: where `rollback` goes.
    pub previous: Option<u32>,
    /// How it is deployed.
    pub spec: Option<ModelSpec>,
    /// Its replicas.
    pub replicas: Vec<ModelReplicaView>,
}

/// `POST /v1/models/{name}/infer`: tensors by input name, as nested arrays or as
/// `{dtype, shape, data}` ([`crate::tensor`]'s JSON forms). A body of `application/x-npy` is the
/// model's only input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InferRequest {
    /// Input name → tensor.
    pub inputs: serde_json::Map<String, serde_json::Value>,
}

/// Outputs by name, and where they came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InferResponse {
    /// Output name → tensor.
    pub outputs: serde_json::Map<String, serde_json::Value>,
    /// The version that answered.
    pub version: u32,
    /// The node that answered.
    pub node: NodeId,
    /// Time in the model, microseconds.
    pub infer_us: u64,
    /// From request to answer at the coordinator, microseconds.
    pub total_us: u64,
}
