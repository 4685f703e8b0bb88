//! What users do to tasks: submit and cancel.

use std::{collections::BTreeMap, sync::Arc};

use hop3_common::{
    api::{ArtifactKind, EventView, TaskRequest, TaskView},
    codes::{Code, Problem},
    id::{TaskId, UnixMs},
    spec::{Placement, Stdin, TaskSpec},
};

use super::{
    Event, TASKS_LIVE_MAX, Task, TaskState, find,
    life::{act, placed, release, step},
    table::create,
    view_of,
};
use crate::{Core, artifacts, records::Batch, records::TaskBody, scheduler};

/// Longest name of a task, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Largest placement, encoded: selectors may be many and long.
pub(crate) const PLACEMENT_BYTES_MAX: usize = 16 << 10;

/// Checks a placement's size and its strategy's name.
pub(crate) fn check_placement(core: &Core, placement: &Placement) -> Result<(), Problem> {
    let bytes = postcard::to_allocvec(placement).map_or(usize::MAX, |bytes| bytes.len());
    if bytes > PLACEMENT_BYTES_MAX {
        let message = format!("`spec.placement` must be at most {PLACEMENT_BYTES_MAX} bytes");
        return Err(Problem::new(Code::InvalidField, message));
    }
    scheduler::strategy(core, placement.strategy.as_deref()).map(drop)
}

fn check(core: &Core, request: &TaskRequest) -> Result<(), Problem> {
    let spec = &request.spec;
    spec.check()
        .map_err(|invalid| Problem::new(Code::InvalidField, invalid.to_string()))?;
    check_placement(core, &spec.placement)?;
    if let Some(name) = &request.name
        && (name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control))
    {
        let message = format!("`name` must have at most {NAME_BYTES_MAX} bytes, none of control");
        return Err(Problem::new(Code::InvalidField, message));
    }
    let index = core.tasks.read();
    if index.by_id.len() - index.ended.len() >= TASKS_LIVE_MAX {
        let message = format!("{TASKS_LIVE_MAX} tasks have not ended: wait, or cancel some");
        return Err(Problem::new(Code::Busy, message));
    }
    Ok(())
}

fn body(core: &Core, id: TaskId, request: TaskRequest, now: UnixMs) -> Result<TaskBody, Problem> {
    let TaskRequest { name, spec } = request;
    let module = artifacts::resolve_kind(core, &spec.module, ArtifactKind::Wasm)?;
    let stdin_bytes = match &spec.stdin {
        Stdin::Artifact(digest) => artifacts::resolve(core, &digest.to_string())?.bytes,
        Stdin::Empty | Stdin::Attached => 0,
    };
    let program = program_of(&spec, &module.names);
    Ok(TaskBody {
        id,
        name,
        module: module.digest,
        module_bytes: module.bytes,
        program,
        stdin_bytes,
        created: now,
        spec,
    })
}

/// `argv[0]`: the module's name, however it was referred to.
fn program_of(spec: &TaskSpec, names: &[String]) -> String {
    let by_name = names.contains(&spec.module);
    let name = if by_name {
        Some(&spec.module)
    } else {
        names.last()
    };
    name.map_or_else(|| spec.module.chars().take(19).collect(), Clone::clone)
}

/// Accepts a task: placed if a node fits, pending if not, durable in either case.
pub(crate) async fn submit(core: &Core, request: TaskRequest) -> Result<TaskView, Problem> {
    check(core, &request)?;
    // Its artifacts must not be removed before it counts as using them.
    let _kept = core.artifacts.gate().read().await;
    let now = UnixMs::now();
    let id = TaskId::from_random(rand::random());
    let lock = core.locks.of("task", id.as_str()).await;
    let body = Arc::new(body(core, id, request, now)?);
    let new = Task {
        body,
        state: TaskState::new(),
    };
    let (after, decision) = match placed(core, &new, now)? {
        Some((after, decision)) => (after, Some(decision)),
        None => (new.clone(), None),
    };
    let committed = async {
        let mut batch = create(Batch::new(), &after)?;
        if let Some(decision) = decision {
            batch = core.decisions.record(batch, decision, now)?;
        }
        core.records.commit(batch).await
    };
    if let Err(problem) = committed.await {
        release(core, &after);
        return Err(problem);
    }
    let after = core.tasks.show(after);
    drop(lock);
    act(core, &new, &after);
    Ok(view_of(&after))
}

/// Asks for a task's end.
pub(crate) async fn cancel(core: &Core, id: &TaskId) -> Result<TaskView, Problem> {
    let task = find(core, id.as_str())?;
    let ended = |task: &Task| {
        let message = format!("task `{id}` has ended already: {}", task.state.reason);
        Problem::new(Code::TaskEnded, message)
    };
    if task.state.phase.is_final() {
        return Err(ended(&task));
    }
    let node = task
        .state
        .node
        .as_ref()
        .and_then(|node| core.nodes.get(node));
    let reachable = node.is_some_and(|node| node.link().is_some());
    step(core, id, Event::Cancel { reachable }, Batch::new()).await?;
    let task = find(core, id.as_str())?;
    core.events
        .tell(|| EventView::Task(Box::new(view_of(&task))));
    if task.state.phase.is_final() {
        super::place_pending(core).await;
    }
    Ok(view_of(&task))
}

/// What tasks that have not ended use: digest → task.
pub(crate) fn artifacts_used(core: &Core) -> BTreeMap<hop3_common::id::Digest, Vec<String>> {
    let mut used: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let index = core.tasks.read();
    for task in index
        .by_id
        .values()
        .filter(|task| !task.state.phase.is_final())
    {
        let by = || format!("task/{}", task.body.id);
        used.entry(task.body.module).or_default().push(by());
        if let Stdin::Artifact(digest) = &task.body.spec.stdin {
            used.entry(*digest).or_default().push(by());
        }
    }
    used
}
