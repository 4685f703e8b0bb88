//! Brings the replicas of a model to what is wanted of them: the shell around [`plan`](super::plan).

use std::{collections::BTreeSet, sync::Arc, sync::atomic::AtomicUsize};

use hop3_common::{
    api::EventView,
    codes::Problem,
    id::{InstanceId, ModelName, NodeId, UnixMs},
    ownership::Epoch,
    spec::{Millis, model::REPLICAS_MAX},
    wire::{Event, Phase, Report},
};

use super::{
    plan::{self, Need, Replica, backoff_ms, heard},
    table::{Model, Route, RouteReplica, Serving},
    view::view_of,
};
use crate::{
    Core,
    decisions::Decision,
    reconcile::instance_on,
    records::{Batch, ReplicaRecord},
    registry::Node,
    scheduler,
};

/// Steps of one convergence: each replica may be ended, placed and renewed.
const STEPS_MAX: usize = REPLICAS_MAX as usize * 3;

/// Converges every model. Cheap where nothing is to be done.
pub(crate) async fn converge_all(core: &Core) {
    for model in core.models.all() {
        converge(core, &model.record.name).await;
    }
}

/// Converges one model, as far as it goes now.
pub(super) async fn converge(core: &Core, name: &ModelName) {
    for _ in 0..STEPS_MAX {
        match step(core, name).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(problem) => {
                tracing::warn!(model = %name, %problem, "not converged");
                break;
            }
        }
    }
    refresh(core, name);
}

fn replica_of(core: &Core, model: &Model, index: usize, now: UnixMs) -> Replica {
    let record = &model.record.replicas[index];
    let instance = InstanceId::model(&model.record.name, index as u32);
    let serving = core.models.serving(&instance, record.epoch);
    let node = record.node.as_ref().and_then(|node| core.nodes.get(node));
    let retry_at = serving.as_ref().and_then(|serving| serving.retry_at);
    Replica {
        placed: record.node.is_some(),
        current: record.revision == model.record.revision,
        node_ok: node.as_ref().is_some_and(|node| !node.live().lost),
        draining: node
            .as_ref()
            .is_some_and(|node| node.record.load().draining),
        ready: serving.is_some_and(|serving| serving.ready),
        retry: retry_at.is_some_and(|at| at <= now),
        failed: retry_at.is_some(),
    }
}

/// Does the next thing. Whether it changed anything.
async fn step(core: &Core, name: &ModelName) -> Result<bool, Problem> {
    let lock = core.locks.of("model", name.as_str()).await;
    let Some(model) = core.models.get(name) else {
        return Ok(false);
    };
    let now = UnixMs::now();
    let replicas: Vec<Replica> = (0..model.record.replicas.len())
        .map(|n| replica_of(core, &model, n, now))
        .collect();
    let Some((index, need)) = plan::next(model.wanted(), &replicas) else {
        return Ok(false);
    };
    let instance = InstanceId::model(name, index as u32);
    let mut next = (*model).clone();
    if index == next.record.replicas.len() {
        let never = ReplicaRecord {
            epoch: Epoch(0),
            node: None,
            version: 0,
            revision: 0,
        };
        next.record.replicas.push(never);
    }
    let before = next.record.replicas[index].clone();
    let Some(decision) = change(core, &mut next, index, need) else {
        return Ok(false);
    };
    let committed = async {
        let batch = Batch::new().put(name.as_str(), &next.record)?;
        core.records
            .commit(core.decisions.record(batch, decision, now)?)
            .await
    };
    let after = next.record.replicas[index].clone();
    if let Err(problem) = committed.await {
        give_back(core, &instance, after.node.as_ref(), before.node.as_ref());
        return Err(problem);
    }
    give_back(core, &instance, before.node.as_ref(), after.node.as_ref());
    {
        let mut live = core.models.live();
        let serving = Serving::starting(after.epoch, live.get(&instance));
        live.insert(instance.clone(), serving);
    }
    core.models.show(next);
    drop(lock);
    for node in [before.node, after.node.clone()].into_iter().flatten() {
        instance_on(core, &node, &instance);
    }
    tracing::info!(%instance, ?need, epoch = %after.epoch, node = ?after.node, "replica");
    Ok(true)
}

/// Gives back what `from` had promised, unless it is the place that counts.
fn give_back(core: &Core, instance: &InstanceId, from: Option<&NodeId>, counts: Option<&NodeId>) {
    if let Some(from) = from.filter(|_| from != counts) {
        core.nodes.ledger().release(from, instance);
    }
}

/// Changes the replica as needed; `None` when that is not possible now.
fn change(core: &Core, model: &mut Model, index: usize, need: Need) -> Option<Decision> {
    let name = model.record.name.clone();
    let instance = InstanceId::model(&name, index as u32);
    let replica = &model.record.replicas[index];
    let (owner, epoch) = (replica.node.clone(), replica.epoch);
    if need == Need::End {
        let reason = format!("{} replicas are wanted", model.wanted());
        model.record.replicas[index].node = None;
        let decision = Decision::new(instance.to_string(), "end", reason);
        return Some(decision.on(owner.as_ref()));
    }
    let spec = model.record.spec.as_ref()?;
    let placed = model
        .record
        .replicas
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != index);
    let others: BTreeSet<NodeId> = placed
        .filter_map(|(_, replica)| replica.node.clone())
        .collect();
    let failed_on = core
        .models
        .serving(&instance, epoch)
        .and_then(|serving| serving.failed_on);
    let avoid = match need {
        Need::Retry => failed_on.as_ref(),
        Need::Move => owner.as_ref(),
        _ => None,
    };
    let place = |avoid: Option<&NodeId>| {
        let (request, amount) = scheduler::model_request(spec, &others, avoid);
        let strategy = spec.placement.strategy.as_deref();
        scheduler::place(core, &instance, owner.as_ref(), &request, amount, strategy)
    };
    let mut placed = place(avoid).ok()?;
    if placed.1.is_none() && need == Need::Retry {
        // No other fits: the same one may have mended.
        placed = place(None).ok()?;
    }
    let (placement, node) = placed;
    let reason = placement.to_string();
    let Some(node) = node else {
        waits(core, &instance, epoch, owner.as_ref(), reason);
        return None;
    };
    let revision = model.record.revision;
    let version = model.record.deployed?;
    let node = Some(node);
    let action = match need {
        Need::Retry => "retry",
        Need::Move => "move",
        Need::Renew => "renew",
        Need::Place | Need::End => "place",
    };
    let decision = Decision::new(instance.to_string(), action, reason);
    let decision = decision.on(node.as_ref()).by(Some(placement));
    model.record.replicas[index] = ReplicaRecord {
        epoch: epoch.next(),
        node,
        version,
        revision,
    };
    Some(decision)
}

/// Remembers why a replica cannot be placed; one that serves goes on.
fn waits(core: &Core, instance: &InstanceId, epoch: Epoch, owner: Option<&NodeId>, why: String) {
    let mut live = core.models.live();
    let serving = live
        .entry(instance.clone())
        .or_insert_with(|| Serving::starting(epoch, None));
    let on = owner
        .map(|node| format!("stays on {node}: "))
        .unwrap_or_default();
    serving.reason = format!("{on}{why}");
}

/// A node reports about a replica. Durable with `batch` when it returns `Ok`.
pub(crate) async fn reported(
    core: &Core,
    node: &Node,
    name: &ModelName,
    replica: u32,
    report: Report,
    batch: Batch,
) -> Result<(), Problem> {
    // What a replica's run says is not recorded: the next inventory says it again.
    core.records.commit(batch).await?;
    let Some(model) = core.models.get(name) else {
        return Ok(());
    };
    let newest = model.replica(replica);
    let ours = newest.is_some_and(|newest| {
        heard(
            newest.node.as_ref(),
            newest.epoch,
            &node.id,
            report.token.epoch,
        )
    });
    if !ours {
        return Ok(());
    }
    let (instance, epoch) = (&report.instance, report.token.epoch);
    match report.event {
        Event::ModelReady(facts) => ready(core, instance, epoch, Some(facts)),
        Event::Started { .. } => {
            let mut live = core.models.live();
            if let Some(serving) = live.get_mut(instance).filter(|serving| !serving.ready) {
                serving.reason = format!("loading on {}", node.id);
            }
        }
        Event::Failed(problem) => failed(core, node, instance, epoch, problem.to_string()),
        Event::Stopped => failed(core, node, instance, epoch, "it was stopped".into()),
        // Only tasks and services say so.
        Event::TaskEnded(_)
        | Event::ServiceReady(_)
        | Event::Checkpointed(_)
        | Event::Sealed(_)
        | Event::NotSealed(_) => {}
    }
    // A roll goes on when a replica is ready.
    converge(core, name).await;
    Ok(())
}

fn ready(
    core: &Core,
    instance: &InstanceId,
    epoch: Epoch,
    facts: Option<hop3_common::wire::ModelFacts>,
) {
    let mut live = core.models.live();
    let serving = live
        .entry(instance.clone())
        .or_insert_with(|| Serving::starting(epoch, None));
    if serving.epoch > epoch {
        return;
    }
    let facts = facts.or_else(|| serving.facts.take());
    let reason = "serving".to_owned();
    *serving = Serving {
        ready: true,
        reason,
        facts,
        ..Serving::starting(epoch, None)
    };
}

fn failed(core: &Core, node: &Node, instance: &InstanceId, epoch: Epoch, why: String) {
    let mut live = core.models.live();
    let serving = live
        .entry(instance.clone())
        .or_insert_with(|| Serving::starting(epoch, None));
    if serving.epoch > epoch || serving.retry_at.is_some() {
        return;
    }
    let failures = serving.failures.saturating_add(1);
    let wait_ms = backoff_ms(failures);
    let wait = Millis(wait_ms);
    *serving = Serving {
        reason: format!("failed on {}, tried again in {wait}: {why}", node.id),
        failures,
        retry_at: Some(UnixMs::now().plus(wait_ms)),
        failed_on: Some(node.id.clone()),
        ..Serving::starting(epoch, None)
    };
}

/// The node's inventory came: what runs there serves.
pub(crate) async fn node_back(core: &Core, node: &Node) {
    let held: Vec<_> = {
        let live = node.live();
        let models = live.held.iter().filter(|(id, _)| id.as_model().is_some());
        models.map(|(id, holds)| (id.clone(), *holds)).collect()
    };
    for (instance, holds) in held {
        let epoch = holds.token.epoch;
        let ours = super::desired(core, &node.id, &instance) == Some(epoch);
        match holds.phase {
            Phase::Running if ours => ready(core, &instance, epoch, None),
            Phase::Ended if ours => failed(core, node, &instance, epoch, "it has ended".into()),
            _ => {}
        }
    }
    refresh_node(core, &node.id);
}

/// The node holds the replica under a newer epoch than recorded (the record was restored): a still
/// newer one takes its place.
pub(crate) async fn held_newer(core: &Core, name: &ModelName, replica: u32, held: Epoch) {
    let raise = async {
        let lock = core.locks.of("model", name.as_str()).await;
        let Some(model) = core.models.get(name) else {
            return Ok(());
        };
        let mut next = (*model).clone();
        let Some(record) = next.record.replicas.get_mut(replica as usize) else {
            return Ok(());
        };
        if record.epoch >= held.next() {
            return Ok(());
        }
        record.epoch = held.next();
        let instance = InstanceId::model(name, replica);
        let reason = format!("its node holds epoch {held}, newer than the record's");
        let decision =
            Decision::new(instance.to_string(), "adopt", reason).on(record.node.as_ref());
        let node = record.node.clone();
        let batch = Batch::new().put(name.as_str(), &next.record)?;
        core.records
            .commit(core.decisions.record(batch, decision, UnixMs::now())?)
            .await?;
        core.models.show(next);
        drop(lock);
        if let Some(node) = node {
            instance_on(core, &node, &instance);
        }
        Ok::<(), Problem>(())
    };
    if let Err(problem) = raise.await {
        tracing::warn!(model = %name, %problem, "not recorded");
    }
}

/// Tries failed replicas again whose time has come.
pub(crate) async fn retry_due(core: &Core, now: UnixMs) {
    let due: BTreeSet<ModelName> = {
        let live = core.models.live();
        let due = live
            .iter()
            .filter(|(_, s)| s.retry_at.is_some_and(|at| at <= now));
        due.filter_map(|(instance, _)| instance.as_model())
            .map(|(name, _)| name)
            .collect()
    };
    for name in due {
        converge(core, &name).await;
    }
}

/// Renews the routes of the models that have a replica on `node`.
pub(crate) fn refresh_node(core: &Core, node: &NodeId) {
    for model in core.models.all() {
        if model
            .record
            .replicas
            .iter()
            .any(|replica| replica.node.as_ref() == Some(node))
        {
            refresh(core, &model.record.name);
        }
    }
}

/// Renews the routes of a model, and tells who watches.
pub(super) fn refresh(core: &Core, name: &ModelName) {
    let route = core
        .models
        .get(name)
        .map(|model| Arc::new(route(core, &model)));
    core.models.routes.rcu(|routes| {
        let mut routes = (**routes).clone();
        match &route {
            Some(route) => routes.insert(name.clone(), route.clone()),
            None => routes.remove(name),
        };
        routes
    });
    if let Some(model) = core.models.get(name) {
        core.events
            .tell(|| EventView::Model(Box::new(view_of(core, &model))));
    }
}

fn route(core: &Core, model: &Model) -> Route {
    let replicas = (0..).zip(&model.record.replicas).filter_map(|(n, record)| {
        let instance = InstanceId::model(&model.record.name, n);
        core.models
            .serving(&instance, record.epoch)
            .filter(|serving| serving.ready)?;
        let node = core.nodes.get(record.node.as_ref()?)?;
        let version = model.versions.get(&record.version)?.clone();
        let (link, calls) = (node.link()?, node.calls.clone());
        Some(RouteReplica {
            instance,
            epoch: record.epoch,
            version,
            link,
            calls,
        })
    });
    let deadline = model
        .record
        .spec
        .as_ref()
        .map_or(Millis::secs(10), |spec| spec.deadline);
    Route {
        replicas: replicas.collect(),
        next: AtomicUsize::new(0),
        deadline,
    }
}

/// Promises the room of every replica, after a start.
pub(crate) fn reserve_all(core: &Core) {
    for model in core.models.all() {
        let Some(spec) = &model.record.spec else {
            continue;
        };
        let (_, amount) = scheduler::model_request(spec, &BTreeSet::new(), None);
        for (n, replica) in (0..).zip(&model.record.replicas) {
            if let Some(node) = &replica.node {
                let instance = InstanceId::model(&model.record.name, n);
                core.nodes.ledger().reserve(node, &instance, amount);
            }
        }
    }
}
