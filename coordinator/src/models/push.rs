//! New versions: an artifact becomes one after a node has loaded it.

use std::{collections::BTreeMap, time::Duration};

use hop3_common::{
    api::{ArtifactKind, ModelPush, ModelVersionView},
    codes::{Code, Problem},
    id::{ModelName, UnixMs},
    spec::{Placement, Resources, model::TENSORS_MAX},
    tensor::TensorSpec,
    wire::{ModelCheck, ModelFacts},
};

use super::{MODELS_MAX, VERSIONS_MAX, table::Model, view::version_view};
use crate::{
    Core, artifacts,
    decisions::Decision,
    records::{ArtifactRecord, Batch, ModelRecord, ModelVersionRecord},
    scheduler,
};

/// Longest check: large models take a while to load and optimise.
const CHECK_DEADLINE: Duration = Duration::from_secs(120);
/// Nodes asked before giving up: each may have gone away meanwhile.
const NODES_ASKED_MAX: usize = 3;
/// Largest facts of a model, encoded: a version must fit its record.
const FACTS_BYTES_MAX: usize = 20 << 10;

pub(crate) async fn push(
    core: &Core,
    name: &ModelName,
    push: ModelPush,
) -> Result<ModelVersionView, Problem> {
    let inputs = parse_inputs(&push.inputs)?;
    let _kept = core.artifacts.gate().read().await;
    let artifact = artifacts::resolve_kind(core, &push.artifact.to_string(), ArtifactKind::Onnx)?;
    room(core, name)?;
    let (facts, node, why) = check(core, &artifact, &inputs).await?;
    let lock = core.locks.of("model", name.as_str()).await;
    let now = UnixMs::now();
    let mut model = match core.models.get(name) {
        Some(model) => (*model).clone(),
        None => new_model(name),
    };
    let version = model.record.version_last + 1;
    model.record.version_last = version;
    let record = ModelVersionRecord {
        version,
        artifact: artifact.digest,
        bytes: artifact.bytes,
        created: now,
        inputs,
        facts,
    };
    let reason = format!("version {version} loaded on {node}; it was {why}");
    let decision = Decision::new(format!("model/{name}"), "admit", reason);
    let batch = Batch::new()
        .put(name.as_str(), &model.record)?
        .put(&format!("{name}/{version}"), &record)?;
    core.records
        .commit(core.decisions.record(batch, decision, now)?)
        .await?;
    let view = version_view(&record);
    model.versions.insert(version, record.into());
    core.models.show(model);
    drop(lock);
    super::converge::refresh(core, name);
    Ok(view)
}

fn new_model(name: &ModelName) -> Model {
    let record = ModelRecord {
        name: name.clone(),
        version_last: 0,
        deployed: None,
        previous: None,
        spec: None,
        revision: 0,
        replicas: Vec::new(),
    };
    Model {
        record,
        versions: BTreeMap::new(),
    }
}

fn room(core: &Core, name: &ModelName) -> Result<(), Problem> {
    let full = match core.models.get(name) {
        Some(model) => (model.versions.len() >= VERSIONS_MAX)
            .then(|| format!("model `{name}` has {VERSIONS_MAX} versions")),
        None => (core.models.all().len() >= MODELS_MAX)
            .then(|| format!("there are {MODELS_MAX} models: remove some")),
    };
    full.map_or(Ok(()), |full| Err(Problem::new(Code::TooLarge, full)))
}

/// Input facts as users write them.
pub(super) fn parse_inputs(inputs: &[String]) -> Result<Vec<TensorSpec>, Problem> {
    if inputs.len() > TENSORS_MAX {
        let message = format!("`inputs` has more than {TENSORS_MAX} entries");
        return Err(Problem::new(Code::InvalidField, message));
    }
    let parse = |text: &String| {
        text.parse::<TensorSpec>()
            .map_err(|error| Problem::new(Code::InvalidField, format!("`inputs`: {error}")))
    };
    inputs.iter().map(parse).collect()
}

/// Has a node load the model. Which node, and why that one.
async fn check(
    core: &Core,
    artifact: &ArtifactRecord,
    inputs: &[TensorSpec],
) -> Result<(ModelFacts, String, String), Problem> {
    let resources = Resources {
        cpu: Default::default(),
        ..Resources::default()
    };
    let mut request = scheduler::request(&Placement::default(), &resources, "onnx");
    let mut last = None;
    for _ in 0..NODES_ASKED_MAX {
        let placement = scheduler::choose(core, &request, None)?;
        let node = placement.node().and_then(|node| node.parse().ok());
        let Some(node) = node else {
            let why = placement.to_string();
            let message = format!(
                "a node must load the model before it becomes a version, and {why}; connect a node \
                 whose agent can run ONNX"
            );
            return Err(last.unwrap_or_else(|| Problem::new(Code::Unavailable, message)));
        };
        let found = core.nodes.find(&node)?;
        if let Some(link) = found.link() {
            let check = ModelCheck {
                model: artifact.digest,
                model_bytes: artifact.bytes,
                inputs: inputs.to_vec(),
                memory: hop3_common::spec::ModelSpec::default().memory,
            };
            match link.check_model(check, CHECK_DEADLINE).await {
                Ok(facts) => {
                    let facts = bounded(facts)?;
                    return Ok((facts, node.to_string(), placement.to_string()));
                }
                // It went away: another one may do.
                Err(problem) if [Code::NodeUnreachable, Code::Busy].contains(&problem.code) => {
                    last = Some(problem);
                }
                Err(problem) => return Err(problem),
            }
        }
        request.avoid.insert(node.to_string());
    }
    Err(last.unwrap_or_else(|| {
        Problem::new(
            Code::Unavailable,
            "no node could check the model: try again",
        )
    }))
}

fn bounded(facts: ModelFacts) -> Result<ModelFacts, Problem> {
    let bytes = postcard::to_allocvec(&facts).map_or(usize::MAX, |bytes| bytes.len());
    let many = facts.inputs.len().max(facts.outputs.len()) > TENSORS_MAX;
    if !many && bytes <= FACTS_BYTES_MAX {
        return Ok(facts);
    }
    let message = format!(
        "the model has {} inputs and {} outputs ({bytes} bytes to describe): at most {TENSORS_MAX} \
         each, and {FACTS_BYTES_MAX} bytes",
        facts.inputs.len(),
        facts.outputs.len()
    );
    Err(Problem::new(Code::OnnxUnsupported, message))
}
