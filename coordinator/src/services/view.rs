//! Services as the API shows them, and in words.

use hop3_common::{
    api::{BranchView, MoveView, ReplicaView, ServiceInstanceView, ServiceView},
    codes::Problem,
    id::{NodeId, ServiceName, UnixMs},
};

use super::{converge::whereabouts, leases, place, plan::Where, table::Service};
use crate::{
    Core,
    records::{MoveRecord, MoveStage, ServiceInstanceRecord},
    tasks::clock,
};

pub(crate) fn view(core: &Core, name: &ServiceName) -> Result<ServiceView, Problem> {
    let service = core.services.find(name)?;
    let mut view = view_of(core, &service);
    foresee(core, &service, &mut view);
    Ok(view)
}

/// Adds what would happen if nodes died: a placement for each instance, so only for whoever looks
/// at one service.
fn foresee(core: &Core, service: &Service, view: &mut ServiceView) {
    for instance in &mut view.instances {
        let index = instance.instance.as_service().map(|(_, index)| index);
        let known = index.and_then(|index| Some((index, service.instance(index)?)));
        instance.if_lost = known.and_then(|(index, record)| if_lost(core, service, index, record));
    }
}

pub(crate) fn views(core: &Core) -> Vec<ServiceView> {
    let all = core.services.all();
    all.iter().map(|service| view_of(core, service)).collect()
}

/// Moves on their way, and the last one of each service.
pub(crate) fn moves(core: &Core) -> Vec<MoveView> {
    let now = UnixMs::now();
    let mut moves = Vec::new();
    for service in core.services.all() {
        let going = service.instances.iter().filter_map(|i| i.moving.as_ref());
        moves.extend(going.map(|moving| move_view(moving, now)));
        moves.extend(
            service
                .record
                .last_move
                .iter()
                .map(|moved| move_view(moved, now)),
        );
    }
    moves.sort_by_key(|moving| std::cmp::Reverse(moving.began));
    moves
}

pub(super) fn move_view(moving: &MoveRecord, now: UnixMs) -> MoveView {
    let phase = match moving.stage {
        MoveStage::Copying => "copying",
        MoveStage::Sealing => "sealing",
        MoveStage::Starting => "starting",
        MoveStage::Done => "done",
        MoveStage::Aborted => "aborted",
    };
    MoveView {
        instance: moving.instance.clone(),
        from: moving.from.clone(),
        to: moving.to.clone(),
        phase: phase.to_owned(),
        reason: moving.reason.clone(),
        began: moving.began,
        took_ms: moving.ended.unwrap_or(now).0.saturating_sub(moving.began.0),
        copied_bytes: moving.copied_bytes,
        final_bytes: moving.final_bytes,
        downtime_us: moving.downtime_us,
    }
}

pub(super) fn view_of(core: &Core, service: &Service) -> ServiceView {
    let record = &service.record;
    let wanted = record.spec.instances();
    let instances: Vec<_> = (0..wanted.max(service.instances.len() as u32))
        .filter_map(|index| instance_view(core, service, index))
        .collect();
    let (status, reason) = overall(service, &instances);
    ServiceView {
        name: record.name.clone(),
        spec: record.spec.clone(),
        module: record.module,
        revision: record.revision,
        created: record.created,
        status: status.to_owned(),
        reason,
        path: format!("/{}/", record.name),
        instances,
        last_move: record
            .last_move
            .as_ref()
            .map(|moved| move_view(moved, UnixMs::now())),
    }
}

/// Where the whole stands: as its worst instance.
fn overall(service: &Service, instances: &[ServiceInstanceView]) -> (&'static str, String) {
    let said = |view: &ServiceInstanceView| {
        let (id, status, reason) = (&view.instance, &view.status, &view.reason);
        format!("{id} is {status}: {reason}")
    };
    if let Some(failed) = instances.iter().find(|view| view.status == "failed") {
        return ("failed", said(failed));
    }
    if let Some(waits) = instances.iter().find(|view| view.status != "ready") {
        return ("progressing", said(waits));
    }
    let revision = service.record.revision;
    if let Some(old) = instances.iter().find(|view| view.revision != revision) {
        let (id, has) = (&old.instance, old.revision);
        let reason = format!("{id} is at revision {has} and will be renewed to {revision}");
        return ("progressing", reason);
    }
    let reason = match instances.len() {
        1 => "it serves".to_owned(),
        n => format!("all {n} instances serve"),
    };
    ("ready", reason)
}

fn instance_view(core: &Core, service: &Service, index: u32) -> Option<ServiceInstanceView> {
    let id = service.id(index as usize);
    let wanted = index < service.record.spec.instances();
    let record = service.instance(index);
    let node = record.and_then(|record| record.own.owner.clone());
    if node.is_none() && !wanted {
        return None;
    }
    let (status, reason) = status_of(core, service, index);
    let facts = record
        .and_then(|record| core.services.serving(&id, record.own.epoch))
        .and_then(|serving| serving.facts);
    Some(ServiceInstanceView {
        instance: id,
        token: record.map(|record| record.own.token).unwrap_or_default(),
        revision: record.map_or(0, |record| record.revision),
        node,
        moving_to: record.and_then(|record| Some(record.moving.as_ref()?.to.clone())),
        status: status.to_owned(),
        reason,
        facts,
        checkpoint: record.and_then(|record| record.checkpoint.clone()),
        replica: core
            .replicas
            .standing(&service.id(index as usize))
            .map(|standing| ReplicaView {
                seq: standing.end.seq,
                at: standing.at,
                changes: standing.changes,
                bytes: standing.bytes,
            }),
        branches: record.map(branches).unwrap_or_default(),
        if_lost: None,
    })
}

fn branches(record: &ServiceInstanceRecord) -> Vec<BranchView> {
    let deposed = record.deposed.iter();
    let view = deposed.map(|deposed| BranchView {
        node: deposed.node.clone(),
        at: deposed.at,
        state: deposed.branch.clone(),
    });
    view.collect()
}

/// What would happen if the node of an instance died now.
fn if_lost(
    core: &Core,
    service: &Service,
    index: u32,
    record: &ServiceInstanceRecord,
) -> Option<String> {
    let node = record.own.owner.as_ref()?;
    let spec = &service.record.spec;
    if !spec.stateful() {
        return Some(format!("it is placed anew when {node} is lost"));
    }
    if service.pinned() {
        return Some(format!(
            "it waits for {node}: its state is in directories there"
        ));
    }
    let id = service.id(index as usize);
    if let Some(lease) = spec.fence() {
        if record.tied {
            return Some(format!(
                "it waits for {node}: its state is not all at the coordinator yet"
            ));
        }
        let replica = core.replicas.standing(&id).map(|standing| standing.end.seq);
        let checkpoint = record.checkpoint.as_ref().map(|cp| cp.seq);
        let seq = replica.max(checkpoint).unwrap_or(0);
        let elsewhere = match place::preview(core, service, index as usize, node) {
            Some(to) => format!("at {to}, as things stand"),
            None => "as soon as a node fits it: none does now".to_owned(),
        };
        return Some(format!(
            "within about {lease} it goes on {elsewhere}, from change {seq}: nothing acknowledged \
             is lost"
        ));
    }
    let point = match &record.checkpoint {
        Some(cp) => format!("from change {} of {}", cp.seq, clock(cp.at)),
        None => "from nothing: there is no checkpoint of it here".to_owned(),
    };
    Some(format!(
        "it waits for {node}; an operator may take it over, {point} (`hop3 service takeover`)"
    ))
}

/// Where an instance stands, and why.
pub(super) fn status_of(core: &Core, service: &Service, index: u32) -> (&'static str, String) {
    let record = service.instance(index);
    // One that was never placed has no record yet, but may have a reason.
    let epoch = record.map(|record| record.own.epoch).unwrap_or_default();
    let serving = core.services.serving(&service.id(index as usize), epoch);
    let said = serving.as_ref().map(|serving| serving.reason.clone());
    let placed = record.and_then(|record| Some((record, record.own.owner.as_ref()?)));
    let Some((record, node)) = placed else {
        let waiting = || "waiting to be placed".to_owned();
        return ("pending", said.unwrap_or_else(waiting));
    };
    if serving
        .as_ref()
        .is_some_and(|serving| serving.retry_at.is_some())
    {
        return ("failed", said.unwrap_or_default());
    }
    let at = whereabouts(core, Some(node));
    let fenced = service.record.spec.fence().is_some() && !record.tied;
    if fenced && matches!(at, Where::Away | Where::Lost | Where::Removed) {
        let id = service.id(index as usize);
        let reason = if leases::over(core, &id, record) {
            said.unwrap_or_else(|| format!("its lease on {node} is over; it goes on elsewhere"))
        } else {
            format!("{node} does not answer; it goes on elsewhere when its lease there is over")
        };
        return ("away", reason);
    }
    if matches!(at, Where::Away | Where::Lost | Where::Removed) {
        return ("away", away(service, record, node, at));
    }
    let ready = serving.as_ref().is_some_and(|serving| serving.ready);
    match &record.moving {
        Some(moving) if moving.stage != MoveStage::Starting || !ready => {
            let phase = move_view(moving, UnixMs::now()).phase;
            let reason = format!("moves from {} to {}: {phase}", moving.from, moving.to);
            ("moving", reason)
        }
        _ if ready => match core.services.routes.refusal(&service.record.name, index) {
            Some(why) => ("ready", format!("refused what it was asked last: {why}")),
            None => ("ready", said.unwrap_or_default()),
        },
        _ => ("starting", said.unwrap_or_else(|| "starting".into())),
    }
}

/// Why an instance does not go on elsewhere although its node is away.
fn away(service: &Service, record: &ServiceInstanceRecord, node: &NodeId, at: Where) -> String {
    if at == Where::Removed {
        return format!("node {node} was removed; waiting to be placed anew");
    }
    if !service.record.spec.stateful() {
        return format!("node {node} is not connected; it is placed anew when the node is lost");
    }
    let point = match &record.checkpoint {
        Some(cp) => format!(
            "the last checkpoint here is of {} with {} changes",
            clock(cp.at),
            cp.seq
        ),
        None => "there is no checkpoint here yet".into(),
    };
    format!(
        "node {node} is not connected and has its state, so it waits for it (it goes on there by \
         itself); {point}; `hop3 node rm {node}` gives the node up and starts from it"
    )
}

/// What ties instances to a node that is being emptied, in words.
pub(crate) fn staying_on(core: &Core, node: &NodeId) -> Vec<String> {
    let mut said = Vec::new();
    for service in core.services.all() {
        for (index, record) in service.instances.iter().enumerate() {
            if record.own.owner.as_ref() != Some(node) {
                continue;
            }
            let (id, index) = (service.id(index), u32::try_from(index).unwrap_or(u32::MAX));
            if service.pinned() {
                let names = service.record.spec.volumes.iter().map(|v| v.name.as_str());
                let names = names.collect::<Vec<_>>().join(", ");
                said.push(format!(
                    "{id} stays: it has state in directories of this node (volume {names})"
                ));
            } else {
                let (status, reason) = status_of(core, &service, index);
                said.push(format!("{id} is {status}: {reason}"));
            }
        }
    }
    said
}

/// A service in words: a summary, and what is known of each instance.
pub(crate) fn explain(core: &Core, name: &ServiceName) -> Result<(String, Vec<String>), Problem> {
    let service = core.services.find(name)?;
    let mut view = view_of(core, &service);
    foresee(core, &service, &mut view);
    let ready = view
        .instances
        .iter()
        .filter(|i| i.status == "ready")
        .count();
    let wanted = service.record.spec.instances();
    let summary = match view.status.as_str() {
        "ready" => format!("It is ready: {}.", view.reason),
        status => format!(
            "It is {status}; {ready} of {wanted} instances serve: {}.",
            view.reason
        ),
    };
    let now = UnixMs::now();
    let mut facts = Vec::new();
    for instance in &view.instances {
        let node = instance.node.as_ref().map_or("no node", NodeId::as_str);
        let (id, status, reason) = (&instance.instance, &instance.status, &instance.reason);
        let (token, revision) = (instance.token, instance.revision);
        facts.push(format!(
            "{id}: {status} on {node}, run {token} (epoch.incarnation), revision {revision}: \
             {reason}"
        ));
        // With a replica the recovery point is its end.
        if service.record.spec.stateful() && instance.replica.is_none() {
            facts.push(match &instance.checkpoint {
                Some(cp) => format!(
                    "{id}: recovery point: checkpoint of {}, {} s old, {} changes, {} bytes in {} \
                     parts",
                    clock(cp.at),
                    now.0.saturating_sub(cp.at.0) / 1000,
                    cp.seq,
                    cp.bytes(),
                    cp.parts.len()
                ),
                None => {
                    format!("{id}: recovery point: none, no checkpoint has reached the coordinator")
                }
            });
        }
        facts.extend(instance.replica.as_ref().map(|replica| {
            format!(
                "{id}: recovery point: change {}, at the coordinator: a checkpoint and {} changes ({} \
                 bytes) since",
                replica.seq, replica.changes, replica.bytes
            )
        }));
        let if_lost = instance.if_lost.as_ref();
        facts.extend(if_lost.map(|what| format!("{id}: if its node died now: {what}")));
        facts.extend(instance.branches.iter().map(|branch| {
            let (node, at) = (&branch.node, clock(branch.at));
            match &branch.state {
                Some(cp) => format!(
                    "{id}: {node} was replaced unheard at {at}; what it had accepted by itself ({} \
                     changes, {} bytes) is kept and not merged",
                    cp.seq,
                    cp.bytes()
                ),
                None => format!("{id}: {node} was replaced unheard at {at} and is not back yet"),
            }
        }));
        facts.extend(instance.facts.as_ref().map(|facts| {
            format!(
                "{id}: began at change {} with {} bytes of state; fetched in {} us, loaded in {} \
                 us, restored in {} us",
                facts.seq, facts.state_bytes, facts.fetch_us, facts.load_us, facts.restore_us
            )
        }));
    }
    if service.pinned() {
        let names = service.record.spec.volumes.iter().map(|v| v.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        facts.push(format!(
            "pinned: its state is in directories of its node (volume {names}), it cannot be moved"
        ));
    }
    let going = service.instances.iter().filter_map(|i| i.moving.as_ref());
    facts.extend(going.chain(&service.record.last_move).map(|moving| {
        let view = move_view(moving, now);
        let down = view.downtime_us.map_or(String::new(), |us| {
            format!(", stood still for {}.{:03} ms", us / 1000, us % 1000)
        });
        format!(
            "move of {} from {} to {}: {} ({}), {} ms, {} bytes ahead and {} at the end{down}",
            view.instance,
            view.from,
            view.to,
            view.phase,
            view.reason,
            view.took_ms,
            view.copied_bytes,
            view.final_bytes
        )
    }));
    Ok((summary, facts))
}
