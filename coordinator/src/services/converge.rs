//! Brings the instances of a service to what is wanted of them: the shell around
//! [`plan`](super::plan).

use hop3_common::{
    codes::Problem,
    id::{InstanceId, NodeId, ServiceName, UnixMs},
    wire::Down,
};

use super::{
    SERVICES_MAX, failover, leases, moves, place,
    plan::{self, Instance, Moving, Need, Where},
    routes,
    table::{self, Copying, Service, Serving},
};
use crate::{
    Core,
    decisions::Decision,
    reconcile::instance_on,
    records::{Batch, MoveRecord, MoveStage, ServiceInstanceRecord},
};

/// Steps of one convergence: each of 256 instances may be ended, placed and renewed.
const STEPS_MAX: usize = 256 * 3;
/// How long a target may take to fetch what goes ahead; then the rest is fetched at the end.
const COPY_WAIT_MS: u64 = 120_000;
/// How long source or target of a move may be away before it is given up.
const AWAY_MS_MAX: u64 = 30_000;
/// How long a source may take for the checkpoint that goes ahead.
const CHECKPOINT_MS_MAX: u64 = 120_000;

/// The key of an instance's record.
pub(super) fn instance_key(service: &Service, index: usize) -> String {
    format!("{}/{index}", service.record.name)
}

/// Converges every service. Cheap where nothing is to be done.
pub(crate) async fn converge_all(core: &Core) {
    for service in core.services.all() {
        converge(core, &service.record.name).await;
    }
}

/// What time brings about: failed instances are tried again, copies take too long, lost nodes of
/// replicas are replaced.
pub(crate) async fn sweep(core: &Core, now: UnixMs) {
    let mut due = Vec::new();
    for service in core.services.all() {
        let instances: Vec<_> = facts_of(core, &service, now);
        if !plan::needs(service.wanted(), &instances).is_empty()
            || instances.iter().any(|i| i.moving.is_some())
        {
            due.push(service.record.name.clone());
        }
    }
    debug_assert!(due.len() <= SERVICES_MAX);
    for name in due {
        converge(core, &name).await;
    }
}

/// Converges one service, as far as it goes now.
pub(super) async fn converge(core: &Core, name: &ServiceName) {
    for _ in 0..STEPS_MAX {
        match step(core, name).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(problem) => {
                tracing::warn!(service = %name, %problem, "not converged");
                break;
            }
        }
    }
    if let Some(service) = core.services.get(name) {
        ask_sources(core, &service);
        tell_targets(core, &service);
    }
    routes::refresh(core, name);
}

/// Renews what is shown and routed of services that have an instance on `node`.
pub(crate) fn refresh_node(core: &Core, node: &NodeId) {
    for service in core.services.all() {
        let there = |instance: &ServiceInstanceRecord| instance.own.owner.as_ref() == Some(node);
        if service.instances.iter().any(there) {
            routes::refresh(core, &service.record.name);
        }
    }
}

fn facts_of(core: &Core, service: &Service, now: UnixMs) -> Vec<Instance> {
    let all = 0..service.instances.len();
    all.map(|index| facts(core, service, index, now)).collect()
}

/// Where the node of an instance is.
pub(super) fn whereabouts(core: &Core, node: Option<&NodeId>) -> Where {
    let Some(name) = node else {
        return Where::Nowhere;
    };
    let Some(node) = core.nodes.get(name) else {
        return Where::Removed;
    };
    let live = node.live();
    match &live.session {
        Some(session) if session.known && session.link.is_open() => Where::Here,
        _ if live.lost => Where::Lost,
        _ => Where::Away,
    }
}

fn facts(core: &Core, service: &Service, index: usize, now: UnixMs) -> Instance {
    let record = &service.instances[index];
    let serving = core.services.serving(&service.id(index), record.own.epoch);
    let node = record
        .own
        .owner
        .as_ref()
        .and_then(|node| core.nodes.get(node));
    let draining = node.is_some_and(|node| node.record.load().draining);
    let retry_at = serving.as_ref().and_then(|serving| serving.retry_at);
    let moving = record.moving.as_ref().map(|moving| {
        let vain = vain(core, moving, serving.as_ref(), now).is_some();
        match moving.stage {
            MoveStage::Copying => Moving::Copying {
                copied: serving
                    .as_ref()
                    .is_some_and(|serving| copied(&serving.copy, now)),
                vain,
            },
            MoveStage::Sealing => Moving::Sealing { vain },
            _ => Moving::Starting,
        }
    });
    let fenced = service.record.spec.fence().is_some() && record.fence.is_some();
    Instance {
        at: whereabouts(core, record.own.owner.as_ref()),
        tied: record.tied && service.record.spec.stateful(),
        stateful: service.record.spec.stateful(),
        fenced,
        lapsed: fenced && leases::over(core, &service.id(index), record),
        current: record.revision == service.record.revision,
        leaves: draining && !service.pinned(),
        ready: serving.as_ref().is_some_and(|serving| serving.ready),
        failed: retry_at.is_some(),
        retry: retry_at.is_some_and(|at| at <= now),
        moving,
    }
}

/// Whether enough of the state has gone ahead.
fn copied(copy: &Copying, now: UnixMs) -> bool {
    copy.told
        .is_some_and(|told| copy.fetched || now.0.saturating_sub(told.0) > COPY_WAIT_MS)
}

/// Why a move that was not swapped cannot go on.
pub(super) fn vain(
    core: &Core,
    moving: &MoveRecord,
    serving: Option<&Serving>,
    now: UnixMs,
) -> Option<String> {
    if let Some(why) = serving.and_then(|serving| serving.copy.abort.clone()) {
        return Some(why);
    }
    let away = |name: &NodeId| match core.nodes.get(name) {
        None => Some(format!("node {name} was removed")),
        Some(node) => {
            let since = node.live().away_since?;
            let long = now.0.saturating_sub(since.0) > AWAY_MS_MAX;
            long.then(|| format!("node {name} is away for more than {} s", AWAY_MS_MAX / 1000))
        }
    };
    let late = || {
        let asked = moving.stage == MoveStage::Copying
            && serving.is_none_or(|serving| serving.copy.told.is_none());
        let late = asked && now.0.saturating_sub(moving.began.0) > CHECKPOINT_MS_MAX;
        late.then(|| format!("{} made no checkpoint in time", moving.from))
    };
    away(&moving.to)
        .or_else(|| away(&moving.from))
        .or_else(late)
}

/// Asks the sources of moves for the checkpoint that goes ahead, once in each session.
fn ask_sources(core: &Core, service: &Service) {
    for (index, record) in service.instances.iter().enumerate() {
        let copying = record
            .moving
            .as_ref()
            .filter(|moving| moving.stage == MoveStage::Copying);
        let Some(moving) = copying else { continue };
        let Some(link) = core.nodes.get(&moving.from).and_then(|node| node.link()) else {
            continue;
        };
        let id = service.id(index);
        {
            let mut live = core.services.live();
            let serving = live
                .entry(id.clone())
                .or_insert_with(|| Serving::starting(record.own.epoch, None));
            if serving.copy.asked == Some(link.session()) || serving.copy.told.is_some() {
                continue;
            }
            serving.copy.asked = Some(link.session());
        }
        let ask = Down::Checkpoint {
            instance: id.clone(),
            epoch: record.own.epoch,
        };
        if let Err(problem) = link.send(ask) {
            tracing::debug!(instance = %id, %problem, "not asked for a checkpoint");
        }
    }
}

/// Tells the targets of moves to make the module ready and to fetch the checkpoint that goes ahead,
/// once in each session.
fn tell_targets(core: &Core, service: &Service) {
    for (index, record) in service.instances.iter().enumerate() {
        let copying = record
            .moving
            .as_ref()
            .filter(|moving| moving.stage == MoveStage::Copying);
        let Some(moving) = copying else { continue };
        let Some(link) = core.nodes.get(&moving.to).and_then(|node| node.link()) else {
            continue;
        };
        let id = service.id(index);
        let (name, index) = (&service.record.name, index as u32);
        let Some(work) = table::work(core, name, index, record.own.epoch) else {
            continue;
        };
        {
            let mut live = core.services.live();
            let Some(serving) = live.get_mut(&id) else {
                continue;
            };
            let copy = &mut serving.copy;
            if copy.told.is_none() || copy.fetched || copy.sent == Some(link.session()) {
                continue;
            }
            copy.sent = Some(link.session());
        }
        let fetch = Down::Fetch {
            instance: id.clone(),
            work: Box::new(work),
        };
        if let Err(problem) = link.send(fetch) {
            tracing::debug!(instance = %id, %problem, "not told to fetch ahead");
        }
    }
}

/// Does the next thing that can be done. Whether it changed anything.
async fn step(core: &Core, name: &ServiceName) -> Result<bool, Problem> {
    let lock = core.locks.of("service", name.as_str()).await;
    let Some(service) = core.services.get(name) else {
        return Ok(false);
    };
    let now = UnixMs::now();
    let facts = facts_of(core, &service, now);
    for (index, need) in plan::needs(service.wanted(), &facts) {
        if need == Need::FailOver {
            if failover::fail_over(core, &service, index, now).await? {
                return Ok(true);
            }
            continue;
        }
        let mut next = (*service).clone();
        while next.instances.len() <= index {
            let floor = next.record.floor;
            next.instances.push(ServiceInstanceRecord::new(floor));
        }
        let before = next.instances[index].clone();
        let Some(decision) = change(core, &mut next, index, need, now) else {
            continue;
        };
        carry_out(core, next, index, &before, decision, now).await?;
        drop(lock);
        settle(core, name, index, need, &before);
        return Ok(true);
    }
    Ok(false)
}

/// Commits a change of one instance and shows it; promises of room follow.
pub(super) async fn carry_out(
    core: &Core,
    mut next: Service,
    index: usize,
    before: &ServiceInstanceRecord,
    decision: Decision,
    now: UnixMs,
) -> Result<(), Problem> {
    let id = next.id(index);
    let fence = next.record.spec.fence();
    // It is in the record before it is granted.
    let record = &mut next.instances[index];
    record.fence = record.fence.max(fence);
    let after = next.instances[index].clone();
    let committed = async {
        let mut batch = Batch::new().put(&instance_key(&next, index), &after)?;
        if next.record.last_move != core.services.find(&next.record.name)?.record.last_move {
            batch = batch.put(next.record.name.as_str(), &*next.record)?;
        }
        let batch = core.decisions.record(batch, decision, now)?;
        core.records.commit(batch).await
    };
    if let Err(problem) = committed.await {
        give_back(core, &id, &after, before);
        return Err(problem);
    }
    give_back(core, &id, before, &after);
    if after.own.epoch != before.own.epoch || after.own.owner != before.own.owner {
        let mut live = core.services.live();
        let serving = Serving::starting(after.own.epoch, live.get(&id));
        live.insert(id.clone(), serving);
        drop(live);
        if let Some(ttl) = fence {
            leases::expect(core, &id, ttl);
        }
    }
    core.services.show(next);
    Ok(())
}

/// Nodes on which a record promises room.
fn holders(record: &ServiceInstanceRecord) -> impl Iterator<Item = &NodeId> {
    let target = record.moving.as_ref().map(|moving| &moving.to);
    record.own.owner.iter().chain(target)
}

/// Gives back what `from` had promised and `to` does not.
fn give_back(
    core: &Core,
    id: &InstanceId,
    from: &ServiceInstanceRecord,
    to: &ServiceInstanceRecord,
) {
    for node in holders(from) {
        if !holders(to).any(|kept| kept == node) {
            core.nodes.ledger().release(node, id);
        }
    }
}

/// Sends what follows from a change that was committed.
pub(super) fn settle(
    core: &Core,
    name: &ServiceName,
    index: usize,
    need: Need,
    before: &ServiceInstanceRecord,
) {
    let Some(service) = core.services.get(name) else {
        return;
    };
    let Some(after) = service.instances.get(index) else {
        return;
    };
    let id = service.id(index);
    if let Some(serving) = core.services.live().get_mut(&id) {
        match need {
            Need::Seal => serving.copy.sealing = Some(std::time::Instant::now()),
            Need::Abort | Need::Replace | Need::FailOver => serving.copy = Copying::default(),
            _ => {}
        }
    }
    tracing::info!(instance = %id, ?need, epoch = %after.own.epoch, node = ?after.own.owner, "service");
    if need == Need::Seal {
        // Nobody is sent there any more.
        routes::refresh(core, name);
    }
    for node in before.own.owner.iter().chain(&after.own.owner) {
        instance_on(core, node, &id);
    }
}

/// Changes the instance as needed; `None` when that is not possible now.
fn change(
    core: &Core,
    service: &mut Service,
    index: usize,
    need: Need,
    now: UnixMs,
) -> Option<Decision> {
    let id = service.id(index);
    let owner = service.instances[index].own.owner.clone();
    let said = |action, reason: String| Decision::new(id.to_string(), action, reason);
    match need {
        Need::End => {
            let reason = format!("{} instances are wanted", service.wanted());
            let record = &mut service.instances[index];
            record.own.owner = None;
            record.moving = None;
            Some(said("end", reason).on(owner.as_ref()))
        }
        Need::Seal => {
            service.instances[index].seal(now);
            let reason = "enough of its state has gone ahead: its node was told to seal it";
            Some(said("seal", reason.into()).on(owner.as_ref()))
        }
        Need::Abort => {
            let moving = service.instances[index].moving.clone()?;
            let serving = core.services.live().get(&id).cloned();
            let why = vain(core, &moving, serving.as_ref(), now)?;
            let decision = said("abort", format!("the move was given up: {why}"));
            moves::give_up(service, index, why, now);
            Some(decision.on(owner.as_ref()))
        }
        Need::Move => {
            let why = "its node is being emptied";
            match moves::begin(core, service, index, None, why, now) {
                Ok(decision) => Some(decision),
                Err(problem) => {
                    let on = owner
                        .map(|node| format!("stays on {node}: "))
                        .unwrap_or_default();
                    waits(core, service, index, format!("{on}{}", problem.message));
                    None
                }
            }
        }
        // It takes the replica's end first.
        Need::FailOver => None,
        Need::Renew => Some(renew(core, service, index)?),
        Need::Place | Need::Replace | Need::Retry => assign(core, service, index, need, now),
    }
}

/// Another revision: where it is, if it still fits there or has state there.
fn renew(core: &Core, service: &mut Service, index: usize) -> Option<Decision> {
    let id = service.id(index);
    let owner = service.instances[index].own.owner.clone()?;
    let revision = service.record.revision;
    let fits = place::place(core, service, index, None, Some(&owner)).ok();
    let fits = fits.filter(|(_, node)| node.is_some());
    let there = |reason: String| Decision::new(id.to_string(), "renew", reason);
    let stateful = service.record.spec.stateful();
    if let Some((placement, node)) = fits {
        let reason = format!("revision {revision}, in place");
        service.instances[index].assign(owner, revision);
        return Some(there(reason).on(node.as_ref()).by(Some(placement)));
    }
    if stateful {
        let amount = place::amount(service);
        core.nodes.ledger().reserve(&owner, &id, amount);
        let reason = format!(
            "revision {revision}, in place with its state, though {owner} does not fit any more: \
             move it"
        );
        service.instances[index].assign(owner.clone(), revision);
        return Some(there(reason).on(Some(&owner)));
    }
    let (placement, node) = place::place(core, service, index, None, None).ok()?;
    let Some(node) = node else {
        waits(core, service, index, placement.to_string());
        return None;
    };
    let decision = there(placement.to_string()).on(Some(&node));
    service.instances[index].assign(node, revision);
    Some(decision.by(Some(placement)))
}

/// Places an instance that is nowhere, was lost, or failed.
fn assign(
    core: &Core,
    service: &mut Service,
    index: usize,
    need: Need,
    now: UnixMs,
) -> Option<Decision> {
    let id = service.id(index);
    let record = &service.instances[index];
    let stateful = service.record.spec.stateful();
    let owner = record.own.owner.clone();
    let serving = core.services.serving(&id, record.own.epoch);
    let failures = serving.as_ref().map_or(0, |serving| serving.failures);
    let failed_on = serving.and_then(|serving| serving.failed_on);
    // With its state there, only there; after a move first there once more.
    let tied = record.tied || record.fence.is_some();
    let same =
        need == Need::Retry && stateful && (tied || (record.moving.is_some() && failures <= 1));
    let only = owner.as_ref().filter(|_| same);
    let avoid = failed_on.as_ref().filter(|_| need == Need::Retry && !same);
    let mut placed = place::place(core, service, index, avoid, only).ok()?;
    if placed.1.is_none() && avoid.is_some() {
        // No other fits: the same one may have mended.
        placed = place::place(core, service, index, None, None).ok()?;
    }
    let (placement, mut node) = placed;
    if node.is_none() && tied && same {
        // It is there, whatever the filters say now.
        node = owner.clone().inspect(|node| {
            let amount = place::amount(service);
            core.nodes.ledger().reserve(node, &id, amount);
        });
    }
    let Some(node) = node else {
        waits(core, service, index, placement.to_string());
        return None;
    };
    let (action, told) = match need {
        Need::Retry => ("retry", String::new()),
        Need::Replace => ("replace", loss(service, index)),
        _ => ("place", String::new()),
    };
    let decision = Decision::new(id.to_string(), action, format!("{told}{placement}"));
    let revision = service.record.revision;
    if need == Need::Replace {
        moves::give_up(service, index, "its node is gone".into(), now);
    }
    let record = &mut service.instances[index];
    if need != Need::Retry {
        record.tied = false;
    }
    if let Some(moving) = &mut record.moving {
        // Back at the source it is no target: the move will have failed.
        if node != moving.from {
            moving.to = node.clone();
        }
    }
    record.assign(node.clone(), revision);
    Some(decision.on(Some(&node)).by(Some(placement)))
}

/// What is lost with the node of an instance, in words.
fn loss(service: &Service, index: usize) -> String {
    let record = &service.instances[index];
    let gone = record.own.owner.as_ref().map_or("nowhere", NodeId::as_str);
    if !service.record.spec.stateful() {
        return format!("node {gone} is lost; ");
    }
    match &record.checkpoint {
        Some(cp) => format!(
            "node {gone} was removed with its state: it goes on from its checkpoint of {} with {} \
             changes, what came after that is lost; ",
            crate::tasks::clock(cp.at),
            cp.seq
        ),
        None => format!(
            "node {gone} was removed with its state, of which there is no checkpoint here: it \
             begins anew, all of it is lost; "
        ),
    }
}

/// Remembers why an instance cannot be placed; one that serves goes on.
pub(super) fn waits(core: &Core, service: &Service, index: usize, why: String) {
    let epoch = service.instances[index].own.epoch;
    let mut live = core.services.live();
    let serving = live
        .entry(service.id(index))
        .or_insert_with(|| Serving::starting(epoch, None));
    serving.reason = why;
}

/// Promises the room of every instance, after a start.
pub(crate) fn reserve_all(core: &Core) {
    for service in core.services.all() {
        let amount = place::amount(&service);
        for (index, record) in service.instances.iter().enumerate() {
            for node in holders(record) {
                core.nodes
                    .ledger()
                    .reserve(node, &service.id(index), amount);
            }
        }
    }
}
