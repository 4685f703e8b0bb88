//! The one writer of a local store: takes what waits in the queue as a group, judges it, makes it
//! durable with one flush, shows it, tells watchers, and only then answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Cipher, Error, Event, Key, Op, Result, Revision, Txn,
    frame::GROUP_BYTES_MAX,
    index::{Batch, Index},
    journal::Journal,
    local, plan,
    watch::Watchers,
};

/// Most transactions that wait; a full queue holds callers back.
pub(super) const QUEUE_MAX: usize = 256;

/// What readers and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Replaced when it failed; readers finish with the one that they have.
    pub(super) index: RwLock<Arc<Index>>,
    pub(super) values: Cipher,
    pub(super) watchers: Mutex<Watchers>,
}

impl Shared {
    pub(super) fn index(&self) -> Arc<Index> {
        let index = self.index.read();
        index.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An index that no longer follows the journal.
#[derive(Debug)]
pub(super) struct Broken {
    reason: Arc<str>,
    /// Durable commits that no one was shown, and the revision of the first.
    unshown: (Revision, Vec<Vec<Op>>),
}

/// A transaction whose values are sealed, and who waits for it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) txn: Txn,
    pub(super) reply: oneshot::Sender<Result<Revision>>,
}

impl Request {
    fn bytes(&self) -> usize {
        let op_bytes = |op: &Op| match op {
            Op::Put(key, value) => key.as_bytes().len() + value.len(),
            Op::Delete(key) => key.as_bytes().len(),
        };
        self.txn.ops.iter().map(op_bytes).sum()
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) journal: Journal,
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) broken: Option<Broken>,
}

impl Writer {
    /// Works until the store is dropped, then closes the index.
    pub(super) fn run(mut self) {
        while let Some(group) = self.next_group() {
            self.process(group);
            if self.broken.is_none() && self.journal.compaction_due() {
                self.compact();
            }
        }
        if self.broken.is_some() {
            self.shared.index().distrust();
        } else if let Err(error) = self.shared.index().close() {
            tracing::warn!(%error, "the index was not closed and may be rebuilt");
        }
    }

    fn next_group(&mut self) -> Option<Vec<Request>> {
        let first = self.requests.blocking_recv()?;
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && group.len() < QUEUE_MAX
            && let Ok(request) = self.requests.try_recv()
        {
            bytes += request.bytes();
            group.push(request);
        }
        Some(group)
    }

    /// Has the store work again after a failure. Costs as much as a compaction, and the building
    /// of the index if that failed.
    fn mend(&mut self) -> Result<()> {
        if let Some(reason) = self.journal.poisoned() {
            self.journal.renew().map_err(|error| {
                tracing::warn!(%error, "the store still refuses writes");
                Error::Poisoned { reason }
            })?;
            tracing::warn!(last = %self.journal.last(), "the store works again, in new files");
        }
        if self.broken.is_some() {
            self.rebuild()?;
        }
        Ok(())
    }

    /// Builds the index anew from the journal, and tells what was not told.
    fn rebuild(&mut self) -> Result<()> {
        let Some(broken) = self.broken.take() else {
            return Ok(());
        };
        let old = self.shared.index();
        old.distrust();
        let built = old.replace().and_then(|index| {
            local::fill(&index, &self.journal, None)?;
            Ok(index)
        });
        match built {
            Ok(index) => {
                let shared = &self.shared.index;
                *shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
                let reason = &broken.reason;
                tracing::warn!(%reason, revision = %self.journal.last(), "rebuilt the index");
                let (first, commits) = broken.unshown;
                self.tell(first, &commits);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the store refuses writes until its index can be built");
                let reason = broken.reason.clone();
                self.broken = Some(broken);
                Err(Error::Poisoned { reason })
            }
        }
    }

    fn process(&mut self, group: Vec<Request>) {
        if let Err(error) = self.mend() {
            for Request { reply, .. } in group {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        let index = self.shared.index();
        let mut pending: HashMap<Key, Option<Revision>> = HashMap::new();
        let mut commits = Vec::new();
        let mut last = self.journal.last();
        let mut judged = Vec::with_capacity(group.len());
        for Request { txn, reply } in group {
            let lookup = |key: &Key| match pending.get(key) {
                Some(revision) => Ok(*revision),
                None => index.revision_of(key),
            };
            let verdict = plan::resolve(txn, lookup).map(|ops| {
                if !ops.is_empty() {
                    last = last.next();
                    for op in &ops {
                        let revision = matches!(op, Op::Put(..)).then_some(last);
                        pending.insert(op.key().clone(), revision);
                    }
                    commits.push(ops);
                }
                last
            });
            judged.push((reply, verdict));
        }
        let result = self.make_durable(&commits);
        for (reply, verdict) in judged {
            // A verdict may rest on an earlier commit of the group: it fails with it. No one waits
            // any more if sending fails.
            let _ = reply.send(result.clone().and(verdict));
        }
    }

    fn make_durable(&mut self, commits: &[Vec<Op>]) -> Result<()> {
        if commits.is_empty() {
            return Ok(());
        }
        let first = self.journal.last().next();
        self.journal.append(commits)?;
        let mut batch = Batch::default();
        for (revision, ops) in (first.0..).map(Revision).zip(commits) {
            ops.iter().for_each(|op| batch.op(op, revision));
        }
        let last = self.journal.last();
        if let Err(error) = self.shared.index().apply(batch, Some(last)) {
            self.broken = Some(Broken {
                reason: error.to_string().into(),
                unshown: (first, commits.to_vec()),
            });
            return self.rebuild().map_err(|_| error);
        }
        self.tell(first, commits);
        Ok(())
    }

    /// Tells watchers of durable commits.
    fn tell(&self, first: Revision, commits: &[Vec<Op>]) {
        let watchers = &self.shared.watchers;
        let mut watchers = watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for (revision, ops) in (first.0..).map(Revision).zip(commits) {
            for op in ops
                .iter()
                .filter(|op| watchers.wants(op.key()))
                .collect::<Vec<_>>()
            {
                watchers.publish(&self.event(op, revision));
            }
        }
        watchers.advance(Revision(first.0 + commits.len() as u64 - 1));
    }

    fn event(&self, op: &Op, revision: Revision) -> Event {
        let change = match op {
            Op::Put(key, sealed) => Change::Put(
                self.shared
                    .values
                    .open(key.as_bytes(), sealed)
                    .expect("this process sealed it for this key")
                    .into(),
            ),
            Op::Delete(_) => Change::Delete,
        };
        Event {
            key: op.key().clone(),
            change,
            revision,
        }
    }

    fn compact(&mut self) {
        // The index must not fall behind the snapshot, or a crash now would mean a rebuild.
        let result = self
            .shared
            .index()
            .flush()
            .and_then(|()| self.journal.compact());
        match result {
            Ok(()) => tracing::debug!(revision = %self.journal.last(), "journal compacted"),
            Err(error) => tracing::warn!(%error, "the journal was not compacted"),
        }
    }
}
