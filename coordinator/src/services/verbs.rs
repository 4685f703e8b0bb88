//! What operators do to services: apply, scale, remove.

use std::sync::Arc;

use hop3_common::{
    api::{ArtifactKind, ServiceView},
    codes::{Code, Problem},
    id::{ServiceName, UnixMs},
    ownership::Epoch,
    spec::{ServiceSpec, State},
};

use super::{
    SERVICES_MAX,
    converge::{converge, instance_key},
    routes,
    table::Service,
    view,
};
use crate::{
    Core, artifacts,
    decisions::Decision,
    reconcile::instance_on,
    records::{Batch, FLOOR_KEY, ServiceFloorRecord, ServiceInstanceRecord, ServiceRecord},
    tasks,
};

/// Largest spec, encoded: a record takes 32 KiB, and there are other fields.
const SPEC_BYTES_MAX: usize = 24 << 10;

/// Declares a service. The same again changes nothing.
pub(crate) async fn apply(
    core: &Core,
    name: &ServiceName,
    spec: ServiceSpec,
) -> Result<ServiceView, Problem> {
    check(core, &spec)?;
    // From here on the module stays until a record names it.
    let gate = core.artifacts.gate().read().await;
    let module = artifacts::resolve_kind(core, &spec.module, ArtifactKind::Wasm)?;
    let upgrades = artifacts::check_service(core, &module.digest).await?;
    let (digest, bytes) = (module.digest, module.bytes);
    change(core, name, "apply", |known| {
        let Some(known) = known else {
            return Ok(Some(Edited {
                revision: 1,
                reason: format!("made, of module {digest}"),
                spec,
                module: (digest, bytes),
            }));
        };
        let before = &known.record;
        compatible(name, &before.spec, &spec)?;
        if before.spec == spec && before.module == digest {
            return Ok(None);
        }
        if spec.stateful() && before.module != digest && !upgrades {
            let message = format!(
                "service `{name}` has state of module {}, which another build can only take over \
                 with an export `hop3_upgrade`: it gets the key-value data",
                before.module
            );
            return Err(Problem::new(Code::WasmExport, message));
        }
        // More or fewer replicas are no reason to renew those that are there.
        let same = ServiceSpec {
            replicas: spec.replicas,
            ..before.spec.clone()
        };
        let renews = same != spec || before.module != digest;
        let revision = before.revision + u64::from(renews);
        let reason = match (before.module != digest, renews) {
            (true, _) => format!("revision {revision}: module {digest}"),
            (_, true) => format!("revision {revision}"),
            _ => format!("{} replicas", spec.replicas),
        };
        Ok(Some(Edited {
            spec,
            module: (digest, bytes),
            revision,
            reason,
        }))
    })
    .await?;
    drop(gate);
    converge(core, name).await;
    view::view(core, name)
}

fn check(core: &Core, spec: &ServiceSpec) -> Result<(), Problem> {
    let invalid = |why: String| Problem::new(Code::InvalidField, why);
    spec.check().map_err(|error| invalid(error.to_string()))?;
    tasks::check_placement(core, &spec.placement)?;
    let bytes = postcard::to_allocvec(spec).map_or(usize::MAX, |bytes| bytes.len());
    if bytes > SPEC_BYTES_MAX {
        let why = format!(
            "`spec` has {bytes} bytes, at most {SPEC_BYTES_MAX}: pass large settings as a file in \
             a volume, or in requests"
        );
        return Err(invalid(why));
    }
    Ok(())
}

/// What may never change: how state is kept and split.
fn compatible(
    name: &ServiceName,
    before: &ServiceSpec,
    after: &ServiceSpec,
) -> Result<(), Problem> {
    let lower = |state: State| format!("{state:?}").to_lowercase();
    if before.state != after.state {
        let message = format!(
            "service `{name}` has `state: {}`, which cannot become `{}`",
            lower(before.state),
            lower(after.state)
        );
        return Err(Problem::new(Code::StateChange, message));
    }
    if before.state == State::Keyed && before.shards != after.shards {
        let message = format!(
            "service `{name}` has {} shards, which cannot become {}",
            before.shards, after.shards
        );
        return Err(Problem::new(Code::CannotReshard, message));
    }
    Ok(())
}

/// What an operator makes of a service.
struct Edited {
    spec: ServiceSpec,
    module: (hop3_common::id::Digest, u64),
    revision: u64,
    reason: String,
}

/// Commits what `edit` makes of the service, if anything.
async fn change(
    core: &Core,
    name: &ServiceName,
    action: &'static str,
    edit: impl FnOnce(Option<&Service>) -> Result<Option<Edited>, Problem>,
) -> Result<(), Problem> {
    let _lock = core.locks.of("service", name.as_str()).await;
    let known = core.services.get(name);
    let Some(edited) = edit(known.as_deref())? else {
        return Ok(());
    };
    if known.is_none() && core.services.all().len() >= SERVICES_MAX {
        let message = format!("there are {SERVICES_MAX} services: remove some");
        return Err(Problem::new(Code::TooLarge, message));
    }
    let now = UnixMs::now();
    let before = known.as_ref().map(|known| &known.record);
    let record = ServiceRecord {
        name: name.clone(),
        spec: edited.spec,
        module: edited.module.0,
        module_bytes: edited.module.1,
        revision: edited.revision,
        created: before.map_or(now, |before| before.created),
        floor: before.map_or(core.services.floor(), |before| before.floor),
        last_move: before.and_then(|before| before.last_move.clone()),
    };
    let decision = Decision::new(format!("service/{name}"), action, edited.reason);
    let batch = Batch::new().put(name.as_str(), &record)?;
    let batch = core.decisions.record(batch, decision, now)?;
    core.records.commit(batch).await?;
    let instances = known.map(|known| known.instances.clone());
    core.services.show(Service {
        record: Arc::new(record),
        instances: instances.unwrap_or_default(),
    });
    Ok(())
}

/// Changes the number of replicas.
pub(crate) async fn scale(
    core: &Core,
    name: &ServiceName,
    replicas: u32,
) -> Result<ServiceView, Problem> {
    change(core, name, "scale", |known| {
        let known = match known {
            Some(known) => &known.record,
            None => return Err(missing(core, name)),
        };
        if known.spec.stateful() {
            let message = format!(
                "service `{name}` has state, in {} instances that stay that many",
                known.spec.instances()
            );
            return Err(Problem::new(Code::CannotScale, message));
        }
        if known.spec.replicas == replicas {
            return Ok(None);
        }
        let spec = ServiceSpec {
            replicas,
            ..known.spec.clone()
        };
        let refused =
            |error: hop3_common::spec::Invalid| Problem::new(Code::InvalidField, error.to_string());
        spec.check().map_err(refused)?;
        Ok(Some(Edited {
            reason: format!("from {} to {replicas} replicas", known.spec.replicas),
            module: (known.module, known.module_bytes),
            revision: known.revision,
            spec,
        }))
    })
    .await?;
    converge(core, name).await;
    view::view(core, name)
}

fn missing(core: &Core, name: &ServiceName) -> Problem {
    match core.services.find(name) {
        Err(problem) => problem,
        Ok(_) => Problem::new(
            Code::Conflict,
            format!("service `{name}` changed meanwhile"),
        ),
    }
}

/// Ends a service that no other one calls, and forgets it with its state.
pub(crate) async fn remove(core: &Core, name: &ServiceName) -> Result<(), Problem> {
    let lock = core.locks.of("service", name.as_str()).await;
    let service = core.services.find(name)?;
    let callers: Vec<String> = core
        .services
        .all()
        .iter()
        .filter(|other| other.record.name != *name && other.record.spec.calls.contains(name))
        .map(|other| format!("`{}`", other.record.name))
        .collect();
    if !callers.is_empty() {
        let message = format!(
            "service `{name}` is called by {} (`spec.calls`)",
            callers.join(", ")
        );
        return Err(Problem::new(Code::InUse, message));
    }
    let newest = service.instances.iter().map(|instance| instance.own.epoch);
    let floor = newest
        .chain([service.record.floor, core.services.floor()])
        .max()
        .unwrap_or(Epoch(0));
    let mut batch = Batch::new()
        .delete::<ServiceRecord>(name.as_str())?
        .put(FLOOR_KEY, &ServiceFloorRecord { epoch: floor })?;
    for index in 0..service.instances.len() {
        batch = batch.delete::<ServiceInstanceRecord>(&instance_key(&service, index))?;
    }
    let reason = "by an operator, with its state".to_owned();
    let decision = Decision::new(format!("service/{name}"), "remove", reason);
    let batch = core.decisions.record(batch, decision, UnixMs::now())?;
    core.records.commit(batch).await?;
    core.services.raise_floor(floor);
    core.services.drop_shown(name);
    let parts = service.instances.iter().flat_map(|i| &i.checkpoint);
    let parts = parts.flat_map(|cp| &cp.parts);
    core.services.supersede(parts.map(|part| part.digest));
    super::failover::forget(core, name, service.instances.len()).await;
    drop(lock);
    for (index, record) in service.instances.iter().enumerate() {
        let id = service.id(index);
        let target = record.moving.as_ref().map(|moving| &moving.to);
        for node in record.own.owner.iter().chain(target) {
            core.nodes.ledger().release(node, &id);
            instance_on(core, node, &id);
        }
    }
    routes::refresh(core, name);
    Ok(())
}
