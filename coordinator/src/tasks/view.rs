//! Tasks as the API shows them.

use std::sync::Arc;

use hop3_common::{
    api::{PAGE_ITEMS_MAX, Page, TaskCounts, TaskPhase, TaskView},
    codes::{Code, Problem},
    id::TaskId,
};

use super::Task;
use crate::Core;

/// Shortest prefix of an id that stands for it.
const PREFIX_CHARS_MIN: usize = 3;

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only of this phase.
    pub phase: Option<TaskPhase>,
    /// At most so many; [`PAGE_ITEMS_MAX`] when absent or more.
    pub limit: Option<usize>,
    /// Continue after this task: `next` of the page before.
    pub after: Option<String>,
}

/// The task with this id, or this unique prefix of it.
pub(crate) fn find(core: &Core, reference: &str) -> Result<Arc<Task>, Problem> {
    let unknown = || Problem::new(Code::TaskUnknown, format!("there is no task `{reference}`"));
    let start: TaskId = reference.parse().map_err(|_| unknown())?;
    let index = core.tasks.read();
    if let Some(task) = index.by_id.get(&start) {
        return Ok(task.clone());
    }
    let mut matches = index
        .by_id
        .range(start..)
        .take_while(|(id, _)| id.as_str().starts_with(reference))
        .map(|(_, task)| task.clone());
    let first = matches
        .next()
        .filter(|_| reference.len() >= PREFIX_CHARS_MIN);
    match (first, matches.count()) {
        (Some(task), 0) => Ok(task),
        (Some(_), more) => {
            let message = format!("`{reference}` begins the ids of {} tasks", more + 1);
            Err(Problem::new(Code::Ambiguous, message))
        }
        (None, _) => Err(unknown()),
    }
}

pub(crate) fn view(core: &Core, reference: &str) -> Result<TaskView, Problem> {
    Ok(view_of(&*find(core, reference)?))
}

pub(crate) fn view_of(task: &Task) -> TaskView {
    let (body, state) = (&task.body, &task.state);
    TaskView {
        id: body.id.clone(),
        name: body.name.clone(),
        spec: body.spec.clone(),
        module: body.module,
        phase: state.phase,
        reason: state.reason.clone(),
        node: state.node.clone(),
        token: state.token(),
        created: body.created,
        started: state.started,
        ended: state.ended,
        prepare_us: state.prepare_us,
        result: state.result.clone(),
    }
}

/// A page of tasks, newest first.
pub(crate) fn list(core: &Core, filter: &TaskFilter) -> Result<Page<TaskView>, Problem> {
    let limit = filter
        .limit
        .unwrap_or(PAGE_ITEMS_MAX)
        .clamp(1, PAGE_ITEMS_MAX);
    let after = filter
        .after
        .as_deref()
        .map(|after| find(core, after))
        .transpose()?;
    let index = core.tasks.read();
    let all = match &after {
        Some(task) => index
            .by_time
            .range(..(task.body.created, task.body.id.clone())),
        None => index.by_time.range(..),
    };
    let wanted = |task: &Arc<Task>| filter.phase.is_none_or(|phase| task.state.phase == phase);
    let mut found = all
        .rev()
        .filter_map(|(_, id)| index.by_id.get(id))
        .filter(|t| wanted(t));
    let items: Vec<TaskView> = found
        .by_ref()
        .take(limit)
        .map(|task| view_of(task))
        .collect();
    let more = found.next().is_some();
    let next = items
        .last()
        .filter(|_| more)
        .map(|task| task.id.to_string());
    Ok(Page { items, next })
}

/// How many tasks are in which phase.
pub(crate) fn counts(core: &Core) -> TaskCounts {
    let mut counts = TaskCounts::default();
    for task in core.tasks.read().by_id.values() {
        let count = match task.state.phase {
            TaskPhase::Pending => &mut counts.pending,
            TaskPhase::Assigned => &mut counts.assigned,
            TaskPhase::Running => &mut counts.running,
            TaskPhase::Succeeded => &mut counts.succeeded,
            TaskPhase::Failed | TaskPhase::Cancelled => &mut counts.failed,
        };
        *count += 1;
    }
    counts
}
