//! Models as the API shows them.

use hop3_common::{
    api::{ModelReplicaView, ModelVersionView, ModelView},
    codes::{Code, Problem},
    id::{InstanceId, ModelName},
    tensor::TensorSpec,
};

use super::table::Model;
use crate::{Core, records::ModelVersionRecord};

pub(crate) fn view(core: &Core, name: &ModelName) -> Result<ModelView, Problem> {
    Ok(view_of(core, &*core.models.find(name)?))
}

pub(crate) fn views(core: &Core) -> Vec<ModelView> {
    core.models
        .all()
        .iter()
        .map(|model| view_of(core, model))
        .collect()
}

/// What the deployed version takes (else the newest).
pub(crate) fn inputs(core: &Core, name: &ModelName) -> Result<Vec<TensorSpec>, Problem> {
    let model = core.models.find(name)?;
    let newest = model.versions.keys().next_back().copied();
    let version = model.record.deployed.or(newest).ok_or_else(|| {
        Problem::new(
            Code::ModelVersionUnknown,
            format!("model `{name}` has no version"),
        )
    })?;
    Ok(model.version(version)?.facts.inputs.clone())
}

pub(super) fn version_view(record: &ModelVersionRecord) -> ModelVersionView {
    ModelVersionView {
        version: record.version,
        artifact: record.artifact,
        bytes: record.bytes,
        created: record.created,
        inputs: record.facts.inputs.clone(),
        outputs: record.facts.outputs.clone(),
    }
}

pub(super) fn view_of(core: &Core, model: &Model) -> ModelView {
    let record = &model.record;
    let wanted = model.wanted() as u32;
    // Also those that are wanted and were never placed.
    let numbers = 0..wanted.max(record.replicas.len() as u32);
    let replicas = numbers.filter_map(|n| replica_view(core, model, n, n < wanted));
    ModelView {
        name: record.name.clone(),
        versions: model
            .versions
            .values()
            .rev()
            .map(|version| version_view(version))
            .collect(),
        deployed: record.deployed,
        previous: record.previous,
        spec: record.spec.clone(),
        replicas: replicas.collect(),
    }
}

fn replica_view(core: &Core, model: &Model, n: u32, wanted: bool) -> Option<ModelReplicaView> {
    let instance = InstanceId::model(&model.record.name, n);
    let record = model.replica(n);
    let node = record.and_then(|record| record.node.clone());
    if node.is_none() && !wanted {
        return None;
    }
    let epoch = record.map(|record| record.epoch).unwrap_or_default();
    let serving = core.models.serving(&instance, epoch);
    let there = node.as_ref().and_then(|node| core.nodes.get(node));
    let connected = there.is_some_and(|node| node.link().is_some());
    let failed = serving
        .as_ref()
        .is_some_and(|serving| serving.retry_at.is_some());
    let ready = serving.as_ref().is_some_and(|serving| serving.ready);
    let status = match (&node, failed, ready && connected) {
        (None, ..) => "pending",
        (_, true, _) => "failed",
        (_, _, true) => "ready",
        _ => "starting",
    };
    let said = serving.as_ref().map(|serving| serving.reason.clone());
    let reason = match &node {
        Some(node) if !connected => format!("node {node} is disconnected"),
        _ => said.unwrap_or_else(|| "waiting to be placed".into()),
    };
    Some(ModelReplicaView {
        instance,
        epoch,
        version: record
            .map(|r| r.version)
            .filter(|v| *v > 0)
            .or(model.record.deployed)?,
        node,
        status: status.to_owned(),
        reason,
        facts: serving.and_then(|serving| serving.facts),
    })
}
