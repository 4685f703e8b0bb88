//! What happens to tasks after they were submitted: placements, reports, losses.
//!
//! Each step goes through [`step`]: judge under the task's lock, commit record and decision, show,
//! then act on what the new state implies.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use hop3_common::{
    api::{Allocation, EventView},
    codes::Problem,
    id::{InstanceId, NodeId, TaskId, UnixMs},
    ownership::Epoch,
    spec::Stdin,
    wire::{Report, StdinSource, TaskWork},
};

use super::{
    ENDED_KEPT_MS, Event, Step, TASKS_ENDED_MAX, Task,
    table::{delete, update},
    view_of,
};
use crate::{
    Core, artifacts, decisions::Decision, reconcile::instance_on, records::Batch, registry::Node,
    scheduler,
};

/// Pending tasks tried at once; the sweep goes on with the rest.
const PLACED_AT_ONCE_MAX: usize = 1_000;
/// Pending tasks in a row that do not fit before an event stops trying more.
const MISSES_MAX: usize = 16;
/// Ended tasks dropped in one commit.
const EXPIRED_AT_ONCE_MAX: usize = 8;

/// The decision that a step records about a task.
pub(super) fn decision(task: &Task, step: &Step) -> Option<Decision> {
    let (action, reason) = step.decision.clone()?;
    let subject = InstanceId::task(&task.body.id).to_string();
    let node = step.state.node.as_ref().or(task.state.node.as_ref());
    Some(Decision::new(subject, action, reason).on(node))
}

/// Lets `event` happen to `task`, together with `batch`, which is committed in any case.
pub(super) async fn step(
    core: &Core,
    id: &TaskId,
    event: Event,
    batch: Batch,
) -> Result<Option<Arc<Task>>, Problem> {
    let lock = core.locks.of("task", id.as_str()).await;
    let now = UnixMs::now();
    let before = core.tasks.get(id);
    let next = before.as_ref().and_then(|task| {
        let step = task.state.step(task.body.spec.retry, event, now)?;
        Some((task, step))
    });
    let Some((before, step)) = next else {
        core.records.commit(batch).await?;
        return Ok(None);
    };
    let decision = decision(before, &step);
    let after = Task {
        body: before.body.clone(),
        state: step.state,
    };
    let mut batch = update(batch, &after)?;
    if let Some(decision) = decision {
        batch = core.decisions.record(batch, decision, now)?;
    }
    core.records.commit(batch).await?;
    let after = show(core, before, after);
    drop(lock);
    act(core, before, &after);
    Ok(Some(after))
}

/// Shows what was committed and gives back the room of an owner that it left. Under the task's
/// lock: the next placement may take the same room.
fn show(core: &Core, before: &Task, after: Task) -> Arc<Task> {
    if let Some(node) = before
        .state
        .node
        .as_ref()
        .filter(|node| !after.state.is_on(node))
    {
        core.nodes
            .ledger()
            .release(node, &InstanceId::task(&after.body.id));
    }
    core.tasks.show(after)
}

/// What a new state implies: nodes are told, who watches is told.
pub(super) fn act(core: &Core, before: &Task, after: &Task) {
    let instance = InstanceId::task(&after.body.id);
    let (was, is) = (&before.state, &after.state);
    let left = was
        .node
        .as_ref()
        .filter(|node| !is.is_on(node) && was.is_on(node));
    if let Some(node) = left {
        instance_on(core, node, &instance);
    }
    if let Some(result) = is.result.as_ref().filter(|_| was.result.is_none()) {
        artifacts::claimed(core, is.node.as_ref(), result);
    }
    if let Some(node) = is.node.as_ref().filter(|node| is.is_on(node)) {
        instance_on(core, node, &instance);
    }
    tracing::info!(task = %after.body.id, phase = ?is.phase, epoch = %is.epoch, "{}", is.reason);
    core.events
        .tell(|| EventView::Task(Box::new(view_of(after))));
}

/// Finds a node for a pending task. Commits the choice with its record.
/// Whether it has one now.
async fn place(core: &Core, id: &TaskId) -> Result<bool, Problem> {
    let lock = core.locks.of("task", id.as_str()).await;
    let Some(before) = core.tasks.get(id) else {
        return Ok(true);
    };
    let now = UnixMs::now();
    let Some((after, decision)) = placed(core, &before, now)? else {
        return Ok(false);
    };
    let committed = async {
        let batch = update(Batch::new(), &after)?;
        core.records
            .commit(core.decisions.record(batch, decision, now)?)
            .await
    };
    if let Err(problem) = committed.await {
        release(core, &after);
        return Err(problem);
    }
    let after = core.tasks.show(after);
    drop(lock);
    act(core, &before, &after);
    Ok(after.state.node.is_some())
}

/// The task after an attempt to place it, with room reserved if there is; `None` if nothing
/// changed.
pub(super) fn placed(
    core: &Core,
    task: &Task,
    now: UnixMs,
) -> Result<Option<(Task, Decision)>, Problem> {
    if task.state.phase != hop3_common::api::TaskPhase::Pending {
        return Ok(None);
    }
    let spec = &task.body.spec;
    let (request, amount) = scheduler::task_request(spec, task.state.avoid.as_ref());
    let instance = InstanceId::task(&task.body.id);
    let strategy = spec.placement.strategy.as_deref();
    let (placement, node) = scheduler::place(core, &instance, None, &request, amount, strategy)?;
    let reason = placement.to_string();
    let event = match node {
        Some(node) => Event::Placed { node, reason },
        None => Event::Unplaceable { reason },
    };
    let Some(step) = task.state.step(spec.retry, event, now) else {
        return Ok(None);
    };
    let Some(decision) = decision(task, &step) else {
        return Ok(None);
    };
    let after = Task {
        body: task.body.clone(),
        state: step.state,
    };
    Ok(Some((after, decision.by(Some(placement)))))
}

/// Gives back what a placement that was not committed had reserved.
pub(super) fn release(core: &Core, task: &Task) {
    if let Some(node) = &task.state.node {
        core.nodes
            .ledger()
            .release(node, &InstanceId::task(&task.body.id));
    }
}

/// Tries the pending tasks again, oldest first: nodes changed, or room was given back. Stops when
/// several in a row do not fit; the sweep goes on with the rest.
pub(crate) async fn place_pending(core: &Core) {
    if !try_pending(core, MISSES_MAX).await {
        core.tasks.left_over.store(true, Relaxed);
    }
}

/// Tries every pending task again, if [`place_pending`] left some.
pub(crate) async fn place_left_over(core: &Core) {
    if core.tasks.left_over.swap(false, Relaxed) {
        try_pending(core, usize::MAX).await;
    }
}

/// Whether every pending task was tried.
async fn try_pending(core: &Core, misses_max: usize) -> bool {
    let pending: Vec<TaskId> = {
        let index = core.tasks.read();
        index
            .pending
            .iter()
            .take(PLACED_AT_ONCE_MAX)
            .map(|(_, id)| id.clone())
            .collect()
    };
    let mut misses = 0;
    let all = pending.len() < PLACED_AT_ONCE_MAX;
    for id in pending {
        if misses == misses_max {
            return false;
        }
        match place(core, &id).await {
            Ok(true) => misses = 0,
            Ok(false) => misses += 1,
            Err(problem) => {
                tracing::warn!(task = %id, %problem, "not placed");
                return false;
            }
        }
    }
    all
}

/// A node reports about a task. Durable with `batch`, the node's cursor, when it returns `Ok`.
pub(crate) async fn reported(
    core: &Core,
    node: &Node,
    id: &TaskId,
    report: Report,
    batch: Batch,
) -> Result<(), Problem> {
    let Report { token, event, .. } = report;
    let event = Event::Report {
        node: node.id.clone(),
        token,
        event,
    };
    let after = step(core, id, event, batch).await?;
    match after {
        Some(after) if after.state.phase == hop3_common::api::TaskPhase::Pending => {
            place_pending(core).await;
        }
        // Room was given back: somebody may wait for it.
        Some(after) if after.state.phase.is_final() => place_pending(core).await,
        Some(_) => {}
        None => tracing::debug!(task = %id, node = %node.id, %token, "a stale report"),
    }
    Ok(())
}

/// Tasks that `node` owns.
fn tasks_on(core: &Core, node: &NodeId) -> Vec<TaskId> {
    let instances = core.nodes.ledger().instances(node);
    instances.iter().filter_map(InstanceId::as_task).collect()
}

async fn each_on(core: &Core, node: &NodeId, event: impl Fn() -> Event) {
    for id in tasks_on(core, node) {
        if let Err(problem) = step(core, &id, event(), Batch::new()).await {
            tracing::warn!(task = %id, %problem, "not recorded");
        }
    }
}

/// The node was removed from the mesh.
pub(crate) async fn node_removed(core: &Core, node: &NodeId) {
    each_on(core, node, || Event::NodeRemoved { node: node.clone() }).await;
}

/// The node came back.
pub(crate) async fn node_back(core: &Core, node: &NodeId) {
    each_on(core, node, || Event::NodeBack { node: node.clone() }).await;
}

/// Acts on nodes that are away for longer than is waited.
pub(crate) async fn nodes_lost(core: &Core, now: UnixMs) {
    let mut lost = Vec::new();
    for node in core.nodes.all() {
        let mut live = node.live();
        let since = live.away_since.filter(|since| {
            live.session.is_none() && !live.lost && now.since(*since) >= core.settings.lost_after_ms
        });
        if let Some(since) = since {
            live.lost = true;
            drop(live);
            lost.push((node, since));
        }
    }
    for (node, since) in &lost {
        let why = format!("disconnected since {}", clock(*since));
        let event = || Event::NodeLost {
            node: node.id.clone(),
            why: why.clone(),
        };
        each_on(core, &node.id, event).await;
    }
    if !lost.is_empty() {
        crate::models::converge_all(core).await;
        place_pending(core).await;
    }
}

/// A moment for people: RFC 3339, to the second.
pub(crate) fn clock(at: UnixMs) -> String {
    let format = time::format_description::well_known::Rfc3339;
    i64::try_from(at.secs())
        .ok()
        .and_then(|secs| time::OffsetDateTime::from_unix_timestamp(secs).ok())
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_else(|| format!("{} ms", at.0))
}

/// The node holds a newer epoch than the record (which was restored from a backup): it is taken
/// over, so that the node is heard again.
pub(crate) async fn held_newer(core: &Core, node: &NodeId, id: &TaskId, epoch: Epoch) {
    let event = Event::Held {
        node: node.clone(),
        epoch,
    };
    if let Err(problem) = step(core, id, event, Batch::new()).await {
        tracing::warn!(task = %id, %problem, "not recorded");
    }
}

/// What is wanted of a task on `node`: its epoch, and whether it shall end.
pub(crate) fn desired(core: &Core, node: &NodeId, id: &TaskId) -> Option<(Epoch, bool)> {
    let task = core.tasks.get(id)?;
    task.state
        .is_on(node)
        .then_some((task.state.epoch, task.state.cancel))
}

/// What a node needs to run the task.
pub(crate) fn work(core: &Core, id: &TaskId) -> Option<TaskWork> {
    let task = core.tasks.get(id)?;
    let (body, spec) = (&task.body, &task.body.spec);
    let stdin = match &spec.stdin {
        Stdin::Empty => StdinSource::Empty,
        Stdin::Artifact(digest) => StdinSource::Blob {
            digest: *digest,
            bytes: body.stdin_bytes,
        },
        Stdin::Attached => StdinSource::Attached,
    };
    Some(TaskWork {
        module: body.module,
        module_bytes: body.module_bytes,
        program: body.program.clone(),
        args: spec.args.clone(),
        env: spec.env.clone(),
        stdin,
        limits: spec.limits.clone(),
        volumes: spec.volumes.clone(),
        retry: spec.retry,
    })
}

/// Wakes those who wait for a task or its node.
pub(crate) fn changed(core: &Core) {
    core.tasks.notify();
}

/// Promises the room of every task that is on a node, after a start.
pub(crate) fn reserve_all(core: &Core) {
    let tasks: Vec<Arc<Task>> = core.tasks.read().by_id.values().cloned().collect();
    let mut ledger = core.nodes.ledger();
    for task in tasks {
        let (_, amount): (_, Allocation) = scheduler::task_request(&task.body.spec, None);
        if let Some(node) = task
            .state
            .node
            .as_ref()
            .filter(|node| task.state.is_on(node))
        {
            ledger.reserve(node, &InstanceId::task(&task.body.id), amount);
        }
    }
}

/// Forgets ended tasks that are too many or too old.
pub(crate) async fn expire(core: &Core, now: UnixMs) -> Result<(), Problem> {
    loop {
        let expired: Vec<Arc<Task>> = {
            let index = core.tasks.read();
            let excess = index.ended.len().saturating_sub(TASKS_ENDED_MAX);
            let old = |n: usize, at: UnixMs| n < excess || now.since(at) > ENDED_KEPT_MS;
            let oldest = index.ended.iter().enumerate();
            let expired = oldest.take_while(|(n, (at, _))| old(*n, *at));
            let tasks = expired.filter_map(|(_, (_, id))| index.by_id.get(id).cloned());
            tasks.take(EXPIRED_AT_ONCE_MAX).collect()
        };
        if expired.is_empty() {
            return Ok(());
        }
        // An ended task never changes: no lock is needed.
        let mut batch = Batch::new();
        for task in &expired {
            batch = delete(batch, task)?;
        }
        core.records.commit(batch).await?;
        expired.iter().for_each(|task| core.tasks.drop_shown(task));
    }
}
