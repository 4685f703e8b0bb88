//! The tasks in memory, in step with their records.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicBool},
};

use hop3_common::{
    api::TaskPhase,
    codes::{Code, Problem},
    id::{TaskId, UnixMs},
};
use tokio::sync::watch;

use super::TaskState;
use crate::records::{Batch, Records, TaskBody, TaskBodyPart, TaskStateRecord};

/// Bytes of a part of a body: well within a record.
const PART_BYTES: usize = 24 << 10;
/// Most parts: arguments and environment (64 KiB), placement and names.
const PARTS_MAX: usize = 8;

/// A task: what never changes, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) body: Arc<TaskBody>,
    pub(crate) state: TaskState,
}

/// All tasks.
pub(crate) struct Tasks {
    index: RwLock<Index>,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
    /// Pending tasks were left untried.
    pub(crate) left_over: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Index {
    pub(crate) by_id: BTreeMap<TaskId, Arc<Task>>,
    pub(crate) by_time: BTreeSet<(UnixMs, TaskId)>,
    pub(crate) pending: BTreeSet<(UnixMs, TaskId)>,
    /// By the time of their end.
    pub(crate) ended: BTreeSet<(UnixMs, TaskId)>,
}

impl Index {
    fn insert(&mut self, task: Arc<Task>) {
        let id = &task.body.id;
        if let Some(before) = self.by_id.get(id).cloned() {
            self.forget(&before);
        }
        let at = (task.body.created, id.clone());
        if task.state.phase == TaskPhase::Pending {
            self.pending.insert(at.clone());
        }
        if let Some(ended) = task.state.ended {
            self.ended.insert((ended, id.clone()));
        }
        self.by_time.insert(at);
        self.by_id.insert(id.clone(), task);
    }

    fn forget(&mut self, task: &Task) {
        let id = &task.body.id;
        let at = (task.body.created, id.clone());
        self.pending.remove(&at);
        if let Some(ended) = task.state.ended {
            self.ended.remove(&(ended, id.clone()));
        }
        self.by_time.remove(&at);
        self.by_id.remove(id);
    }
}

impl Tasks {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (id, part) in records.all::<TaskBodyPart>().await? {
            // Ids sort by task, then part.
            let task = id.split('/').next().unwrap_or_default();
            parts.entry(task.to_owned()).or_default().extend(part.0);
        }
        let mut index = Index::default();
        for (id, TaskStateRecord(state)) in records.all::<TaskStateRecord>().await? {
            let body = parts
                .get(&id)
                .and_then(|bytes| postcard::from_bytes(bytes).ok());
            let body: TaskBody = body.ok_or_else(|| {
                let message = format!("the record of task `{id}` is incomplete; restore a backup");
                Problem::new(Code::Storage, message)
            })?;
            index.insert(Arc::new(Task {
                body: Arc::new(body),
                state,
            }));
        }
        Ok(Self {
            index: RwLock::new(index),
            changes: watch::Sender::new(0),
            left_over: AtomicBool::new(true),
        })
    }

    /// Reads the index. Never held across an await, nor while any other lock is taken.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, task: &TaskId) -> Option<Arc<Task>> {
        self.read().by_id.get(task).cloned()
    }

    /// Shows what was committed.
    pub(crate) fn show(&self, task: Task) -> Arc<Task> {
        let task = Arc::new(task);
        self.write().insert(task.clone());
        self.notify();
        task
    }

    pub(crate) fn drop_shown(&self, task: &Task) {
        self.write().forget(task);
    }

    /// Wakes those who wait for a change of any task or node.
    pub(crate) fn notify(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The records of a new task, in its batch.
pub(crate) fn create(mut batch: Batch, task: &Task) -> Result<Batch, Problem> {
    let bytes = postcard::to_allocvec(&*task.body).map_err(|error| {
        Problem::new(Code::Internal, format!("a task does not encode: {error}"))
    })?;
    if bytes.len() > PART_BYTES * PARTS_MAX {
        let message = format!(
            "`spec` has {} bytes encoded, at most {} are kept: pass bulk as input",
            bytes.len(),
            PART_BYTES * PARTS_MAX
        );
        return Err(Problem::new(Code::InvalidField, message));
    }
    for (n, part) in bytes.chunks(PART_BYTES).enumerate() {
        let id = format!("{}/{n}", task.body.id);
        batch = batch.put(&id, &TaskBodyPart(part.to_vec()))?;
    }
    update(batch, task)
}

/// The record of a task's new state, in its batch.
pub(crate) fn update(batch: Batch, task: &Task) -> Result<Batch, Problem> {
    batch.put(task.body.id.as_str(), &TaskStateRecord(task.state.clone()))
}

/// The removal of a task's records, in a batch.
pub(crate) fn delete(mut batch: Batch, task: &Task) -> Result<Batch, Problem> {
    for n in 0..PARTS_MAX {
        batch = batch.delete::<TaskBodyPart>(&format!("{}/{n}", task.body.id))?;
    }
    batch.delete::<TaskStateRecord>(task.body.id.as_str())
}
