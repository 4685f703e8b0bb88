//! What nodes say of instances.

use std::sync::Arc;

use hop3_common::{
    codes::Problem,
    id::{InstanceId, NodeId, ServiceName, UnixMs},
    ownership::Epoch,
    spec::Millis,
    wire::{Checkpoint, Event, Phase, Report, ServiceFacts},
};

use super::{
    converge::{converge, instance_key},
    place,
    plan::backoff_ms,
    swap::Outcome,
    table::{Copying, Service, Serving},
    takeover,
};
use crate::{
    Core, artifacts,
    decisions::Decision,
    reconcile::instance_on,
    records::{Batch, InstancePhase, MoveRecord, MoveStage},
    registry::Node,
};

/// A node reports about an instance. Durable with `batch` when it returns `Ok`.
pub(crate) async fn reported(
    core: &Core,
    node: &Node,
    name: &ServiceName,
    index: u32,
    report: Report,
    batch: Batch,
) -> Result<(), Problem> {
    if let Event::Checkpointed(checkpoint) | Event::Sealed(checkpoint) = &report.event {
        artifacts::claimed_bytes(core, &node.id, checkpoint.bytes());
    }
    let lock = core.locks.of("service", name.as_str()).await;
    let service = core.services.get(name);
    let heard = service.as_ref().filter(|service| {
        let newest = service.instance(index);
        newest.is_some_and(|newest| newest.own.hears(&node.id, report.token))
    });
    let Some(heard) = heard else {
        // Of a run that is over, or of a service that is gone: nothing to learn, unless its owner
        // was replaced unheard.
        let batch = match &service {
            Some(of) => {
                let (token, event) = (report.token, &report.event);
                takeover::deposed(core, node, of, index, token, event, batch).await?
            }
            None => batch,
        };
        return core.records.commit(batch).await;
    };
    let service = heard;
    let now = UnixMs::now();
    let taken = take(core, node, service, index, report, batch, now).await?;
    drop(lock);
    for node in &taken.nodes {
        instance_on(core, node, &taken.instance);
    }
    converge(core, name).await;
    Ok(())
}

/// What has to be looked at after a report.
struct Taken {
    instance: InstanceId,
    nodes: Vec<NodeId>,
}

async fn take(
    core: &Core,
    node: &Node,
    service: &Arc<Service>,
    index: u32,
    report: Report,
    mut batch: Batch,
    now: UnixMs,
) -> Result<Taken, Problem> {
    let instance = report.instance;
    let mut next = (**service).clone();
    let record = &mut next.instances[index as usize];
    let before = record.clone();
    let facts = match &report.event {
        Event::ServiceReady(facts) => Some(facts.clone()),
        _ => None,
    };
    let started = matches!(report.event, Event::Started { .. });
    let mut outcome = record.report(report.token, report.event, service.record.revision, now);
    if let Outcome::Ready { moved: Some(moved) } = &mut outcome {
        moved.downtime_us = downtime(core, &instance, moved, now);
    }
    let record = record.clone();
    if record != before {
        batch = batch.put(&instance_key(&next, index as usize), &record)?;
    }
    if let Some(moved) = ended_move(&outcome) {
        let mut of = (*next.record).clone();
        of.last_move = Some(moved.clone());
        batch = batch.put(next.record.name.as_str(), &of)?;
        next.record = Arc::new(of);
    }
    if let Some(decision) = decision_of(&instance, &node.id, &outcome, before.checkpoint.as_ref()) {
        batch = core.decisions.record(batch, decision, now)?;
    }
    core.records.commit(batch).await?;
    core.services.show(next);
    learn(
        core,
        node,
        &instance,
        record.own.epoch,
        &outcome,
        facts,
        started,
    );
    let mut nodes = vec![node.id.clone()];
    match &outcome {
        Outcome::Swapped { to, .. } if *to != node.id => {
            core.nodes.ledger().release(&node.id, &instance);
            nodes.push(to.clone());
        }
        Outcome::Ready { moved: Some(moved) } if moved.to != node.id => {
            core.nodes.ledger().release(&moved.to, &instance);
        }
        Outcome::Failed {
            aborted: Some(moved),
            ..
        }
        | Outcome::NotSealed {
            aborted: Some(moved),
            ..
        } => drop(core.nodes.ledger().release(&moved.to, &instance)),
        _ => {}
    }
    supersede(core, &outcome, record.checkpoint.as_ref());
    if let (Outcome::Checkpointed { .. }, Some(moving)) = (&outcome, &record.moving) {
        // Whoever converges next tells the target.
        if moving.stage == MoveStage::Copying
            && let Some(serving) = core.services.live().get_mut(&instance)
        {
            (serving.copy.told, serving.copy.sent) = (Some(now), None);
            serving.copy.fetched = false;
        }
    }
    Ok(Taken { instance, nodes })
}

fn ended_move(outcome: &Outcome) -> Option<&MoveRecord> {
    match outcome {
        Outcome::Ready { moved } => moved.as_ref(),
        Outcome::Failed { aborted, .. } | Outcome::NotSealed { aborted, .. } => aborted.as_ref(),
        _ => None,
    }
}

/// From the order to seal to now, on this clock; after a restart as well as the record knows.
fn downtime(core: &Core, id: &InstanceId, moved: &MoveRecord, now: UnixMs) -> Option<u64> {
    let live = core.services.live();
    let exact = live.get(id).and_then(|serving| serving.copy.sealing);
    let exact = exact.map(|at| u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
    exact.or_else(|| {
        moved
            .sealing
            .map(|at| now.0.saturating_sub(at.0).saturating_mul(1000))
    })
}

fn decision_of(
    id: &InstanceId,
    node: &NodeId,
    outcome: &Outcome,
    before: Option<&Checkpoint>,
) -> Option<Decision> {
    let said = |action, reason: String, on: &NodeId| {
        Some(Decision::new(id.to_string(), action, reason).on(Some(on)))
    };
    match outcome {
        Outcome::Ready { moved: Some(moved) } => {
            let down = moved.downtime_us.map_or("unknown".into(), |us| {
                format!("{}.{:03} ms", us / 1000, us % 1000)
            });
            let (from, to) = (&moved.from, &moved.to);
            let (ahead, last) = (moved.copied_bytes, moved.final_bytes);
            let reason = format!(
                "serves on {node} after a move from {from} to {to}: {ahead} bytes of state went \
                 ahead, {last} while it stood still for {down}"
            );
            said("moved", reason, node)
        }
        Outcome::Swapped {
            to, resumed: true, ..
        } => {
            let reason = "the source was sealed when the move was already given up: it goes on \
                          there under a new epoch, with its final state";
            said("resume", reason.into(), to)
        }
        Outcome::Swapped { to, .. } => {
            let newer = before.map_or(0, |cp| cp.seq);
            let reason = format!(
                "{node} was sealed; {to} owns it now, with the final state (the last checkpoint \
                 before held {newer} changes)"
            );
            said("own", reason, to)
        }
        Outcome::Failed {
            why,
            aborted: Some(_),
        }
        | Outcome::NotSealed {
            why,
            aborted: Some(_),
        } => said("abort", format!("the move was given up: {why}"), node),
        _ => None,
    }
}

/// Remembers in memory what a report said.
fn learn(
    core: &Core,
    node: &Node,
    id: &InstanceId,
    epoch: Epoch,
    outcome: &Outcome,
    facts: Option<ServiceFacts>,
    started: bool,
) {
    let mut live = core.services.live();
    let serving = live
        .entry(id.clone())
        .or_insert_with(|| Serving::starting(epoch, None));
    match outcome {
        Outcome::Ready { .. } => set_ready(serving, epoch, facts),
        Outcome::Swapped { resumed, .. } => {
            let copy = serving.copy.clone();
            *serving = Serving::starting(epoch, Some(serving));
            serving.failures = 0;
            serving.failed_on = None;
            if !resumed {
                serving.copy = copy;
            }
            serving.checkpoints += 1;
        }
        Outcome::Checkpointed { .. } => serving.checkpoints += 1,
        Outcome::Failed { why, .. } => set_failed(serving, &node.id, epoch, why),
        Outcome::NotSealed { .. } => serving.copy = Copying::default(),
        Outcome::Nothing if started && !serving.ready => {
            serving.reason = format!("starts on {}", node.id);
        }
        Outcome::Nothing => {}
    }
    drop(live);
    if matches!(outcome, Outcome::NotSealed { .. }) {
        node.unseal(id);
    }
}

fn set_ready(serving: &mut Serving, epoch: Epoch, facts: Option<ServiceFacts>) {
    let facts = facts.or_else(|| serving.facts.take());
    let checkpoints = serving.checkpoints;
    // A move that ended has no more to remember; one that begins keeps what it knows.
    let copy = if serving.copy.sealing.is_some() {
        Copying::default()
    } else {
        serving.copy.clone()
    };
    *serving = Serving {
        epoch,
        ready: true,
        reason: "serving".into(),
        facts,
        checkpoints,
        copy,
        ..Serving::default()
    };
}

fn set_failed(serving: &mut Serving, node: &NodeId, epoch: Epoch, why: &str) {
    if serving.epoch == epoch && serving.retry_at.is_some() {
        return;
    }
    let failures = serving.failures.saturating_add(1);
    let wait_ms = backoff_ms(failures);
    *serving = Serving {
        reason: format!(
            "failed on {node}, tried again in {}: {why}",
            Millis(wait_ms)
        ),
        failures,
        retry_at: Some(UnixMs::now().plus(wait_ms)),
        failed_on: Some(node.clone()),
        ..Serving::starting(epoch, Some(serving))
    };
}

/// The parts of a checkpoint that a newer one does not have are needed no more.
fn supersede(core: &Core, outcome: &Outcome, now: Option<&Checkpoint>) {
    let (Outcome::Checkpointed { before } | Outcome::Swapped { before, .. }) = outcome else {
        return;
    };
    let kept = |digest| now.is_some_and(|cp| cp.parts.iter().any(|part| part.digest == digest));
    let parts = before.iter().flat_map(|cp| &cp.parts);
    let gone = parts
        .map(|part| part.digest)
        .filter(|digest| !kept(*digest));
    core.services.supersede(gone);
}

/// The node's inventory came: what runs there serves.
pub(crate) async fn node_back(core: &Core, node: &Node) {
    let held: Vec<_> = {
        let live = node.live();
        let services = live.held.iter().filter(|(id, _)| id.as_service().is_some());
        services.map(|(id, holds)| (id.clone(), *holds)).collect()
    };
    for (id, holds) in held {
        let Some((name, index)) = id.as_service() else {
            continue;
        };
        let service = core.services.get(&name);
        let record = service.as_ref().and_then(|service| service.instance(index));
        let Some(record) = record.filter(|record| record.own.hears(&node.id, holds.token)) else {
            continue;
        };
        let sealing = record
            .moving
            .as_ref()
            .is_some_and(|moving| moving.stage == MoveStage::Sealing);
        let mut live = core.services.live();
        let serving = live
            .entry(id.clone())
            .or_insert_with(|| Serving::starting(record.own.epoch, None));
        match holds.phase {
            Phase::Running if record.phase == InstancePhase::Running && !serving.ready => {
                set_ready(serving, record.own.epoch, None);
            }
            // It was sealed: the report is on its way.
            Phase::Ended if sealing => {}
            Phase::Ended => set_failed(serving, &node.id, record.own.epoch, "it has ended"),
            _ => {}
        }
    }
}

/// The node holds the instance under a newer epoch than recorded (the record was restored): a
/// still newer one takes its place, there.
pub(crate) async fn held_newer(
    core: &Core,
    node: &NodeId,
    name: &ServiceName,
    index: u32,
    held: Epoch,
) {
    let raise = async {
        let lock = core.locks.of("service", name.as_str()).await;
        let Some(service) = core.services.get(name) else {
            return Ok(());
        };
        let mut next = (*service).clone();
        let id = next.id(index as usize);
        let Some(record) = next.instances.get_mut(index as usize) else {
            return Ok(());
        };
        if record.own.epoch >= held.next() {
            return Ok(());
        }
        let before = record.own.owner.clone();
        record.adopt(node.clone(), held, UnixMs::now());
        let record = record.clone();
        let amount = place::amount(&next);
        let reason = format!("{node} holds epoch {held}, newer than the record's");
        let decision = Decision::new(id.to_string(), "adopt", reason).on(Some(node));
        let batch = Batch::new().put(&instance_key(&next, index as usize), &record)?;
        let batch = core.decisions.record(batch, decision, UnixMs::now())?;
        core.records.commit(batch).await?;
        core.services.show(next);
        for gone in before.iter().filter(|before| *before != node) {
            core.nodes.ledger().release(gone, &id);
        }
        core.nodes.ledger().reserve(node, &id, amount);
        drop(lock);
        for node in before.iter().chain(Some(node)) {
            instance_on(core, node, &id);
        }
        Ok::<(), Problem>(())
    };
    if let Err(problem) = raise.await {
        tracing::warn!(service = %name, %problem, "not recorded");
    }
}
