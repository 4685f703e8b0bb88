//! What operators do to models: deploy, roll back, undeploy, remove.

use hop3_common::{
    api::ModelView,
    codes::{Code, Problem},
    id::{ModelName, UnixMs},
    spec::ModelSpec,
};

use super::{
    converge::{converge, refresh},
    push::parse_inputs,
    table::Model,
    view,
};
use crate::{
    Core,
    decisions::Decision,
    records::{Batch, ModelRecord, ModelVersionRecord},
    tasks,
};

/// Declares how the model is served. The same again changes nothing.
pub(crate) async fn deploy(
    core: &Core,
    name: &ModelName,
    spec: ModelSpec,
) -> Result<ModelView, Problem> {
    spec.check()
        .map_err(|invalid| Problem::new(Code::InvalidField, invalid.to_string()))?;
    parse_inputs(&spec.inputs)?;
    tasks::check_placement(core, &spec.placement)?;
    change(core, name, "deploy", |model| {
        let newest = model.versions.keys().next_back().copied();
        let version = spec.version.or(newest).ok_or_else(|| {
            let message = format!("model `{name}` has no version: push one");
            Problem::new(Code::ModelVersionUnknown, message)
        })?;
        given(model, version, &spec)?;
        let record = &mut model.record;
        if record.deployed == Some(version) && record.spec.as_ref() == Some(&spec) {
            return Ok(None);
        }
        if record.deployed != Some(version) {
            record.previous = record.deployed.or(record.previous);
        }
        record.deployed = Some(version);
        let replicas = spec.replicas;
        record.spec = Some(spec);
        record.revision += 1;
        Ok(Some(format!("version {version}, {replicas} replicas")))
    })
    .await
}

/// Input facts belong to a version, where they were checked.
fn given(model: &Model, version: u32, spec: &ModelSpec) -> Result<(), Problem> {
    let inputs = parse_inputs(&spec.inputs)?;
    let checked = &model.version(version)?.inputs;
    if inputs.is_empty() || inputs == *checked {
        return Ok(());
    }
    let message = "`spec.inputs` differs from what version was pushed with: push it again with \
                   these input facts, so that they are checked";
    Err(Problem::new(Code::InvalidField, message))
}

/// Back to the version before. Doing it twice is where it began.
pub(crate) async fn rollback(core: &Core, name: &ModelName) -> Result<ModelView, Problem> {
    change(core, name, "rollback", |model| {
        let none = || {
            let message = format!("model `{name}` was never deployed with another version");
            Problem::new(Code::NoRollback, message)
        };
        let previous = model.record.previous.ok_or_else(none)?;
        model.version(previous)?;
        let record = &mut model.record;
        let from = record.deployed.replace(previous);
        record.previous = from;
        if let Some(spec) = &mut record.spec {
            spec.version = Some(previous);
            spec.inputs.clear();
        }
        record.revision += 1;
        Ok(Some(format!("back to version {previous}")))
    })
    .await
}

/// Serves it no more. Its versions stay.
pub(crate) async fn undeploy(core: &Core, name: &ModelName) -> Result<ModelView, Problem> {
    change(core, name, "undeploy", |model| {
        let record = &mut model.record;
        let Some(version) = record.deployed.take() else {
            return Ok(None);
        };
        record.previous = Some(version);
        record.revision += 1;
        Ok(Some(format!("version {version} is served no more")))
    })
    .await
}

/// Commits what `edit` makes of the model (and says of it), then converges.
async fn change(
    core: &Core,
    name: &ModelName,
    action: &'static str,
    edit: impl FnOnce(&mut Model) -> Result<Option<String>, Problem>,
) -> Result<ModelView, Problem> {
    let lock = core.locks.of("model", name.as_str()).await;
    let mut model = (*core.models.find(name)?).clone();
    if let Some(reason) = edit(&mut model)? {
        let decision = Decision::new(format!("model/{name}"), action, reason);
        let batch = Batch::new().put(name.as_str(), &model.record)?;
        core.records
            .commit(core.decisions.record(batch, decision, UnixMs::now())?)
            .await?;
        core.models.show(model);
    }
    drop(lock);
    converge(core, name).await;
    view(core, name)
}

/// Ends its replicas and forgets it.
pub(crate) async fn remove(core: &Core, name: &ModelName) -> Result<(), Problem> {
    undeploy(core, name).await?;
    let lock = core.locks.of("model", name.as_str()).await;
    let model = core.models.find(name)?;
    if model
        .record
        .replicas
        .iter()
        .any(|replica| replica.node.is_some())
    {
        let message = format!("model `{name}` was deployed again meanwhile");
        return Err(Problem::new(Code::Conflict, message));
    }
    let mut batch = Batch::new().delete::<ModelRecord>(name.as_str())?;
    for version in model.versions.keys() {
        batch = batch.delete::<ModelVersionRecord>(&format!("{name}/{version}"))?;
    }
    let decision = Decision::new(format!("model/{name}"), "remove", "by an operator".into());
    core.records
        .commit(core.decisions.record(batch, decision, UnixMs::now())?)
        .await?;
    core.models.drop_shown(name);
    core.models
        .live()
        .retain(|id, _| id.as_model().is_none_or(|(model, _)| model != *name));
    drop(lock);
    refresh(core, name);
    Ok(())
}
