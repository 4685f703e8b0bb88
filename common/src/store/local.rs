//! The store of one process on one disk: journal in front, sled behind, one writer thread.
//!
//! Reads come from the index on the caller's thread: usually from its cache, else one small read
//! from disk. Values are sealed on the caller's thread before they are queued.

use std::{
    fs::{File, OpenOptions},
    future::Future,
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    task::{Context, Poll, Wake, Waker},
    thread::{self, JoinHandle, Thread},
};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot};

use super::{
    BoxFuture, Durable, Entry, Error, Key, MasterKey, MetaStore, Op, Page, Range, Result, Revision,
    TornTail, Txn, Watch,
    crypt::Purpose,
    disk::{self, Disk, OsDisk},
    index::{Batch, Index, Indexed},
    journal::{Journal, Replayed},
    watch::Watchers,
    writer::{QUEUE_MAX, Request, Shared, Writer},
};

/// The file whose lock says that a process has the store open.
const LOCK_FILE: &str = "lock";
/// A batch of a rebuild is applied at this size, in bytes.
const REBUILD_BATCH_BYTES: usize = 256 * 1024;

/// How to open a [`LocalStore`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for cached index pages, in bytes.
    pub cache_bytes: u64,
    /// The file layer under the journal; tests put faults here.
    pub disk: Arc<dyn Disk>,
}

impl Default for Options {
    /// A small cache (2 MiB: an agent's records fit many times) on the machine's file system.
    fn default() -> Self {
        Self {
            cache_bytes: 2 * 1024 * 1024,
            disk: Arc::new(OsDisk),
        }
    }
}

/// What opening found and mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The last commit.
    pub revision: Revision,
    /// An unfinished write that was cut.
    pub torn_tail: Option<TornTail>,
    /// What became of the index.
    pub index: IndexRecovery,
}

/// What became of the index at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexRecovery {
    /// It had every commit.
    Current,
    /// The journal supplied this many commits.
    CaughtUp {
        /// How many.
        commits: u64,
    },
    /// The store is new.
    Created,
    /// It was deleted and built from the journal.
    Rebuilt {
        /// Why.
        reason: String,
    },
}

/// A durable [`MetaStore`] in a directory. One process at a time.
///
/// Dropping it waits for commits that are under way.
#[derive(Debug)]
pub struct LocalStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    // Last: the lock outlives the writer.
    _lock: File,
}

impl LocalStore {
    /// Opens the store in `dir`, making it if there is none, and recovers it.
    ///
    /// Blocks: reads the whole journal, and builds the index if it is not usable.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::WrongKey`] and [`Error::Corrupt`] change nothing;
    /// [`Error::Io`] and [`Error::NoSpace`] from the file system.
    pub fn open(dir: &Path, key: &MasterKey, options: Options) -> Result<(Self, Recovery)> {
        disk::create_dir(dir).map_err(|e| Error::io("create directory", dir, e))?;
        let lock = lock(dir)?;
        let mut journal = Journal::open(options.disk, dir, key)?;
        let (index, index_recovery) = recover(dir, &mut journal, options.cache_bytes)?;
        let recovery = Recovery {
            revision: journal.last(),
            torn_tail: journal.torn().cloned(),
            index: index_recovery,
        };
        report(dir, &recovery);
        let shared = Arc::new(Shared {
            index: RwLock::new(Arc::new(index)),
            values: key.cipher(Purpose::Values),
            watchers: Mutex::new(Watchers::new(journal.last())),
        });
        let (requests, receiver) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            journal,
            shared: shared.clone(),
            requests: receiver,
            broken: None,
        };
        let writer = thread::Builder::new()
            .name("hop3-store".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::io("start the writer of", dir, e))?;
        let store = Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
            _lock: lock,
        };
        Ok((store, recovery))
    }

    /// The last commit that watchers were told of.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .revision()
    }

    /// How many transactions wait for the writer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.requests
            .as_ref()
            .map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }

    /// [`MetaStore::get`] for callers that may block.
    ///
    /// # Errors
    /// [`Error::Index`] when the index is damaged.
    pub fn get_blocking(&self, key: &Key) -> Result<Option<Entry>> {
        self.shared
            .index()
            .get(key)?
            .map(|indexed| self.open_entry(indexed))
            .transpose()
    }

    /// [`MetaStore::range`] for callers that may block.
    ///
    /// # Errors
    /// [`Error::Index`] when the index is damaged.
    pub fn range_blocking(&self, range: &Range) -> Result<Page> {
        let (found, more, revision) = self.shared.index().range(range)?;
        let entries = found
            .into_iter()
            .map(|i| self.open_entry(i))
            .collect::<Result<_>>()?;
        Ok(Page {
            entries,
            more,
            revision,
        })
    }

    /// [`MetaStore::commit`] for callers that may block.
    ///
    /// # Errors
    /// As [`MetaStore::commit`].
    pub fn commit_blocking(&self, txn: Txn) -> Result<Durable<Revision>> {
        block_on(self.submit(txn))
    }

    #[cfg(test)]
    pub(super) fn index(&self) -> Arc<Index> {
        self.shared.index()
    }

    async fn submit(&self, txn: Txn) -> Result<Durable<Revision>> {
        txn.check()?;
        let txn = self.seal(txn)?;
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests
            .send(Request { txn, reply })
            .await
            .map_err(|_| Error::Closed)?;
        let revision = answer.await.map_err(|_| Error::Closed)??;
        Ok(Durable::mint(revision))
    }

    fn seal(&self, mut txn: Txn) -> Result<Txn> {
        for op in &mut txn.ops {
            if let Op::Put(key, value) = op {
                *value = self.shared.values.seal(key.as_bytes(), value)?.into();
            }
        }
        Ok(txn)
    }

    fn open_entry(
        &self,
        Indexed {
            key,
            revision,
            sealed,
        }: Indexed,
    ) -> Result<Entry> {
        match self.shared.values.open(key.as_bytes(), &sealed) {
            Ok(value) => Ok(Entry {
                key,
                value: value.into(),
                revision,
            }),
            Err(forged) => {
                self.shared.index().distrust();
                let reason = format!("key `{key}`: {forged}");
                Err(Error::Index {
                    action: "read",
                    reason,
                })
            }
        }
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the store panicked");
        }
    }
}

impl MetaStore for LocalStore {
    fn get(&self, key: &Key) -> BoxFuture<'_, Result<Option<Entry>>> {
        let key = key.clone();
        Box::pin(async move { self.get_blocking(&key) })
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move { self.range_blocking(&range) })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Durable<Revision>>> {
        Box::pin(self.submit(txn))
    }

    fn watch(&self, prefix: &[u8]) -> Result<Watch> {
        let watchers = &self.shared.watchers;
        Ok(watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(prefix))
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(disk::FILE_MODE)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: dir.into() }),
        Err(errno) => Err(Error::io("lock", &path, io::Error::from(errno))),
    }
}

/// Repairs the journal and brings the index to its end.
fn recover(dir: &Path, journal: &mut Journal, cache_bytes: u64) -> Result<(Index, IndexRecovery)> {
    let last = journal.last();
    let reason = match Index::open(dir, cache_bytes) {
        Ok((index, applied)) if applied > last => {
            // The index is written after the journal was flushed: the journal lost something.
            index.close()?;
            return Err(journal.lost_after(last, applied));
        }
        Ok((_, applied)) if applied < journal.base() => {
            format!("it ends at revision {applied}, before the snapshot")
        }
        Ok((index, applied)) => {
            journal.repair()?;
            fill(&index, journal, Some(applied))?;
            let commits = last.0 - applied.0;
            return Ok(match commits {
                0 => (index, IndexRecovery::Current),
                _ => (index, IndexRecovery::CaughtUp { commits }),
            });
        }
        Err(reason) => reason,
    };
    journal.repair()?;
    let index = Index::create(dir, cache_bytes)?;
    fill(&index, journal, None)?;
    let fresh = last == Revision::ZERO;
    let what = if fresh {
        IndexRecovery::Created
    } else {
        IndexRecovery::Rebuilt { reason }
    };
    Ok((index, what))
}

/// Applies everything after `after` to the index, in steps.
pub(super) fn fill(index: &Index, journal: &Journal, after: Option<Revision>) -> Result<()> {
    let mut batch = Batch::default();
    journal.replay(after, &mut |replayed| {
        let applied = match replayed {
            Replayed::Record(key, revision, sealed) => {
                batch.put(&key, revision, &sealed);
                None
            }
            Replayed::SnapshotEnd(revision) => {
                return index.apply(std::mem::take(&mut batch), Some(revision));
            }
            Replayed::Commit(revision, ops) => {
                ops.iter().for_each(|op| batch.op(op, revision));
                Some(revision)
            }
        };
        if batch.bytes() >= REBUILD_BATCH_BYTES {
            index.apply(std::mem::take(&mut batch), applied)?;
        }
        Ok(())
    })?;
    index.apply(batch, Some(journal.last()))
}

fn report(dir: &Path, recovery: &Recovery) {
    let dir = dir.display();
    if let Some(TornTail { offset, bytes, .. }) = &recovery.torn_tail {
        tracing::warn!(%dir, offset, bytes, "cut an unfinished write off the journal");
    }
    if let IndexRecovery::Rebuilt { reason } = &recovery.index {
        tracing::warn!(%dir, %reason, revision = %recovery.revision, "rebuilt the index");
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread. Unlike tokio's blocking calls it never panics in a runtime.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
