//! Planned moves: an instance goes on elsewhere, with its state, under a new epoch.
//!
//! ```text
//! Copying ── the source makes a checkpoint, the target fetches it; the source serves
//! Sealing ── the source stops, its final checkpoint is durable here
//!            (one commit: new epoch, new owner, that checkpoint)
//! Starting ─ the target fetches the rest and serves
//! ```
//! Each stage is in the record before anything is sent; whoever starts over goes on from there.
//! Until the swap a move can be given up: the source then goes on. A service without state has no
//! first two stages.

use std::time::Duration;

use hop3_common::{
    api::{MigrateRequest, MoveView},
    codes::{Code, Problem},
    id::{InstanceId, NodeId, ServiceName, UnixMs},
    wire::{Checkpoint, Down},
};

use super::{
    converge::{carry_out, converge, settle, whereabouts},
    place,
    plan::{Need, Where},
    table::{Copying, Service},
    view::move_view,
};
use crate::{
    Core,
    decisions::Decision,
    records::{MoveRecord, MoveStage},
};

/// How long an answer to a request for a checkpoint is waited for.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);

/// Which instance is meant, of a service that may have several.
pub(super) fn index_of(service: &Service, index: Option<u32>) -> Result<u32, Problem> {
    let count = service.record.spec.instances();
    let name = &service.record.name;
    let wrong = |why: String| Err(Problem::new(Code::InvalidField, format!("`index` {why}")));
    match index {
        None if count == 1 => Ok(0),
        None => wrong(format!(
            "is missing: service `{name}` has {count} instances, from 0"
        )),
        Some(index) if index < count => Ok(index),
        Some(index) => wrong(format!(
            "is {index}, and service `{name}` has {count} instances, from 0"
        )),
    }
}

/// Begins a move. Answers as soon as it is recorded.
pub(crate) async fn migrate(
    core: &Core,
    name: &ServiceName,
    request: MigrateRequest,
) -> Result<MoveView, Problem> {
    let lock = core.locks.of("service", name.as_str()).await;
    let service = core.services.find(name)?;
    let index = index_of(&service, request.index)? as usize;
    let now = UnixMs::now();
    let known = service
        .instances
        .get(index)
        .and_then(|instance| instance.moving.clone());
    if let Some(moving) = known {
        if request.to.as_ref().is_none_or(|to| *to == moving.to) {
            return Ok(move_view(&moving, now));
        }
        let message = format!(
            "{} is being moved to {} already",
            moving.instance, moving.to
        );
        return Err(Problem::new(Code::MoveRefused, message));
    }
    let mut next = (*service).clone();
    let asked = "an operator asked for it";
    let decision = begin(core, &mut next, index, request.to.as_ref(), asked, now)?;
    let (before, moving) = (
        service.instances[index].clone(),
        next.instances[index].moving.clone(),
    );
    carry_out(core, next, index, &before, decision, now).await?;
    drop(lock);
    settle(core, name, index, Need::Move, &before);
    converge(core, name).await;
    let view = moving.map(|moving| move_view(&moving, now));
    view.ok_or_else(|| Problem::new(Code::Internal, "a move that began is not on record"))
}

/// Begins a move of the instance in `service`: checks, and chooses the target (`to`, or the best).
pub(super) fn begin(
    core: &Core,
    service: &mut Service,
    index: usize,
    to: Option<&NodeId>,
    why: &str,
    now: UnixMs,
) -> Result<Decision, Problem> {
    let id = service.id(index);
    let refuse = |code, why: String| Problem::new(code, format!("{id} is not moved: {why}"));
    let record = service.instances.get(index);
    let Some(from) = record.and_then(|record| record.own.owner.clone()) else {
        return Err(refuse(Code::MoveRefused, "it is not placed yet".into()));
    };
    let record = &service.instances[index];
    if service.pinned() {
        let names = service.record.spec.volumes.iter().map(|v| v.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        let why = format!(
            "it has state in directories of {from} (volume {names}), and directories do not move"
        );
        return Err(refuse(Code::Pinned, why));
    }
    if to == Some(&from) {
        return Err(refuse(
            Code::MoveRefused,
            format!("it is on {from} already"),
        ));
    }
    if let Some(to) = to {
        core.nodes.find(to)?;
    }
    let stateful = service.record.spec.stateful();
    let serving = core.services.serving(&id, record.own.epoch);
    let ready = serving.as_ref().is_some_and(|serving| serving.ready);
    if stateful && whereabouts(core, Some(&from)) != Where::Here {
        let why = format!("its node {from} is not connected, and its state is there");
        return Err(refuse(Code::MoveRefused, why));
    }
    if stateful && !ready {
        let said = serving.map_or("it is starting".into(), |serving| serving.reason);
        return Err(refuse(
            Code::MoveRefused,
            format!("it does not serve: {said}"),
        ));
    }
    let (placement, target) = place::place(core, service, index, Some(&from), to)
        .map_err(|problem| refuse(problem.code, problem.message))?;
    let Some(target) = target else {
        return Err(refuse(Code::MoveRefused, placement.to_string()));
    };
    let revision = service.record.revision;
    let record = &mut service.instances[index];
    record.moving = Some(MoveRecord {
        instance: id.clone(),
        from: from.clone(),
        to: target.clone(),
        stage: MoveStage::Copying,
        reason: why.to_owned(),
        began: now,
        sealing: None,
        ended: None,
        copied: Vec::new(),
        copied_bytes: 0,
        final_bytes: 0,
        downtime_us: None,
    });
    if !stateful {
        if let Some(moving) = &mut record.moving {
            (moving.stage, moving.sealing) = (MoveStage::Starting, Some(now));
        }
        record.assign(target.clone(), revision);
    }
    {
        let mut live = core.services.live();
        if let Some(serving) = live.get_mut(&id) {
            serving.copy = Copying {
                sealing: (!stateful).then(std::time::Instant::now),
                ..Copying::default()
            };
        }
    }
    let reason = format!("{why}; from {from}: {placement}");
    let decision = Decision::new(id.to_string(), "move", reason);
    Ok(decision.on(Some(&target)).by(Some(placement)))
}

/// Ends a move in the record as given up.
pub(super) fn give_up(service: &mut Service, index: usize, why: String, now: UnixMs) {
    if let Some(moved) = service.instances[index].abort(why, now) {
        let mut record = (*service.record).clone();
        record.last_move = Some(moved);
        service.record = record.into();
    }
}

/// Gives up a move that was not swapped yet.
pub(crate) async fn abort(
    core: &Core,
    name: &ServiceName,
    index: Option<u32>,
) -> Result<MoveView, Problem> {
    let service = core.services.find(name)?;
    let index = index_of(&service, index)? as usize;
    let id = service.id(index);
    let moving = service.instances.get(index).and_then(|i| i.moving.clone());
    let Some(moving) = moving else {
        let message = format!("{id} is not being moved");
        return Err(Problem::new(Code::MoveRefused, message));
    };
    if moving.stage == MoveStage::Starting {
        let message = format!("{} owns {id} already: move it back", moving.to);
        return Err(Problem::new(Code::MoveRefused, message));
    }
    if let Some(serving) = core.services.live().get_mut(&id) {
        serving.copy.abort = Some("an operator asked for it".into());
    }
    converge(core, name).await;
    let service = core.services.find(name)?;
    let now = UnixMs::now();
    let last = service.record.last_move.as_ref();
    let ended = last.filter(|last| last.instance == id && last.began == moving.began);
    Ok(move_view(ended.unwrap_or(&moving), now))
}

/// A node has what can be there before an instance moves to it.
pub(crate) async fn fetched(core: &Core, node: &NodeId, id: &InstanceId) {
    let Some((name, index)) = id.as_service() else {
        return;
    };
    let service = core.services.get(&name);
    let record = service.as_ref().and_then(|service| service.instance(index));
    let moving = record.and_then(|record| record.moving.as_ref());
    if moving.is_none_or(|moving| moving.to != *node) {
        return;
    }
    if let Some(serving) = core.services.live().get_mut(id) {
        serving.copy.fetched = true;
    }
    converge(core, &name).await;
}

/// Asks an instance for a checkpoint and waits until it is durable here.
pub(crate) async fn checkpoint(
    core: &Core,
    name: &ServiceName,
    index: Option<u32>,
) -> Result<Checkpoint, Problem> {
    let service = core.services.find(name)?;
    let index = index_of(&service, index)?;
    let id = service.id(index as usize);
    if !service.record.spec.stateful() {
        let message = format!("service `{name}` has no state, and so no checkpoints");
        return Err(Problem::new(Code::InvalidField, message));
    }
    let not_ready = |why: String| Problem::new(Code::ServiceNotReady, format!("{id}: {why}"));
    let record = service
        .instance(index)
        .ok_or_else(|| not_ready("it is not placed yet".into()))?;
    let node = record.own.owner.clone();
    let link = node
        .as_ref()
        .and_then(|node| core.nodes.get(node))
        .and_then(|node| node.link())
        .ok_or_else(|| not_ready("its node is not connected".into()))?;
    let made = || {
        let live = core.services.live();
        live.get(&id).map_or(0, |serving| serving.checkpoints)
    };
    let before = made();
    let mut seen = core.services.routes.version();
    link.send(Down::Checkpoint {
        instance: id.clone(),
        epoch: record.own.epoch,
    })?;
    let waited = tokio::time::timeout(CHECKPOINT_WAIT, async {
        while made() == before {
            core.services.routes.changed(seen).await;
            seen = core.services.routes.version();
        }
    });
    if waited.await.is_err() {
        let message = format!("{id} made no checkpoint within {CHECKPOINT_WAIT:?}");
        return Err(Problem::new(Code::Deadline, message));
    }
    let service = core.services.find(name)?;
    let checkpoint = service.instance(index).and_then(|i| i.checkpoint.clone());
    checkpoint.ok_or_else(|| not_ready("its checkpoint was not kept".into()))
}
