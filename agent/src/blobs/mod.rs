//! Artifacts and results on this node: fetched from the coordinator when missing, kept within a
//! quota, sent to the coordinator when they are its.
//!
//! One transfer per digest at a time, [`TRANSFERS_MAX`] in all, below control traffic; what was
//! received survives the session and the agent. Unreferenced blobs go, least recently used first,
//! when room is needed.

mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hop3_common::{
    chunks::{self, BlobStore},
    codes::{Code, Problem},
    id::Digest,
    wire::Output,
};
use tokio::sync::{Semaphore, watch};

use crate::{backoff, supervisor};

/// Threads for what blocks: disk, compilation, inference. Each is made on demand.
pub const BLOCKING_THREADS_MAX: usize = 64;
/// Transfers at once, both ways together.
const TRANSFERS_MAX: usize = 4;
/// Times that a blob is asked for whose bytes come wrong, or that the coordinator cannot give at
/// the moment.
const WRONG_MAX: u32 = 5;

/// The session's connection, while there is one.
pub type Link = watch::Receiver<Option<quinn::Connection>>;

/// See the module. Clones are the same store.
#[derive(Clone)]
pub struct Blobs(Arc<Inner>);

struct Inner {
    store: BlobStore,
    link: Link,
    bytes_max: u64,
    transfers: Semaphore,
    /// Who is fetching what: the others wait for the first.
    fetching: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    usage: Mutex<Usage>,
    uses: AtomicU64,
    /// Held to read while a blob is made and pinned, to write while one is removed: what was
    /// found to be here already does not vanish before its pin counts.
    removing: RwLock<()>,
}

/// What must stay, and what was used when.
#[derive(Default)]
struct Usage {
    pinned: HashMap<Digest, u32>,
    last_use: HashMap<Digest, u64>,
}

/// Keeps a blob from collection while it lives.
pub struct Pin {
    blobs: Blobs,
    digest: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut usage = self.blobs.usage();
        if let Some(count) = usage.pinned.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                usage.pinned.remove(&self.digest);
            }
        }
    }
}

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The session ended, or never stood: try again when it stands.
    #[error("the session broke: {0}")]
    Link(String),
    /// The coordinator says no.
    #[error("refused: {0}")]
    Refused(Problem),
    /// The bytes were not the blob's.
    #[error("the bytes are wrong: {0}")]
    Wrong(String),
    /// The disk.
    #[error("{0}")]
    Disk(Problem),
}

impl Blobs {
    /// Blobs in `store`, at most about `bytes_max` bytes that nothing refers to.
    #[must_use]
    pub fn new(store: BlobStore, link: Link, bytes_max: u64) -> Self {
        Self(Arc::new(Inner {
            store,
            link,
            bytes_max,
            transfers: Semaphore::new(TRANSFERS_MAX),
            fetching: Mutex::default(),
            usage: Mutex::default(),
            uses: AtomicU64::new(0),
            removing: RwLock::default(),
        }))
    }

    /// The files.
    #[must_use]
    pub fn store(&self) -> &BlobStore {
        &self.0.store
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        // Counts are changed in single steps.
        self.0.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `digest` from collection until the pin is dropped.
    #[must_use]
    pub fn pin(&self, digest: Digest) -> Pin {
        let mut usage = self.usage();
        *usage.pinned.entry(digest).or_default() += 1;
        usage
            .last_use
            .insert(digest, self.0.uses.fetch_add(1, Ordering::Relaxed));
        Pin {
            blobs: self.clone(),
            digest,
        }
    }

    /// Stores bytes: durable, and kept from collection by the pin. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, bytes: &[u8]) -> chunks::Result<(Output, Pin)> {
        let _made = self
            .0
            .removing
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let digest = self.0.store.put(bytes)?;
        let output = Output {
            digest,
            bytes: bytes.len() as u64,
        };
        Ok((output, self.pin(digest)))
    }

    /// Removes a blob that nothing pins and `referenced` does not want. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn discard(
        &self,
        digest: &Digest,
        referenced: impl Fn(&Digest) -> bool,
    ) -> chunks::Result<()> {
        let _removed = self
            .0
            .removing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let pinned = self.usage().pinned.contains_key(digest);
        if !pinned && !referenced(digest) && self.0.store.remove(digest)? {
            self.usage().last_use.remove(digest);
        }
        Ok(())
    }

    /// Makes sure that the blob is here: at once if it is, else over the session, waiting for one
    /// as long as it takes. Cancelled by dropping; what came stays for the next try.
    ///
    /// # Errors
    /// The coordinator refuses it, its bytes are wrong, or the disk fails.
    pub async fn fetch(&self, digest: Digest, size: u64) -> Result<Pin, Problem> {
        let pin = self.pin(digest);
        if self.has(&digest) {
            return Ok(pin);
        }
        let turn = self.turn(digest);
        let _turn = turn.lock().await;
        let (mut attempt, mut wrong) = (0, 0);
        while !self.has(&digest) {
            let connection = self.connected().await?;
            let permit = self.0.transfers.acquire().await;
            let got = transfer::get(&self.0.store, &connection, digest, size).await;
            drop(permit);
            match got {
                Ok(()) => break,
                Err(Failure::Refused(problem)) if wrong + 1 >= WRONG_MAX || !passes(&problem) => {
                    return Err(problem);
                }
                Err(Failure::Disk(problem)) => return Err(problem),
                Err(Failure::Wrong(why)) if wrong + 1 >= WRONG_MAX => {
                    return Err(Problem::new(Code::DigestMismatch, why));
                }
                Err(failure) => {
                    wrong += u32::from(!matches!(failure, Failure::Link(_)));
                    tracing::info!(?digest, %failure, "a transfer broke; it goes on later");
                    tokio::time::sleep(backoff::delay(attempt, rand::random())).await;
                    attempt += 1;
                }
            }
        }
        Ok(pin)
    }

    fn has(&self, digest: &Digest) -> bool {
        self.0.store.contains(digest)
    }

    fn turn(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self
            .0
            .fetching
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
        fetching.entry(digest).or_default().clone()
    }

    /// Waits for a session.
    async fn connected(&self) -> Result<quinn::Connection, Problem> {
        let mut link = self.0.link.clone();
        let stands = link.wait_for(Option::is_some).await;
        let connection = stands.ok().and_then(|link| link.clone());
        connection.ok_or_else(|| Problem::new(Code::Unavailable, "the agent is going down"))
    }

    /// Brings a blob to the coordinator, over as many sessions as it takes. Whether it has it;
    /// if not, it refused it for good.
    pub async fn deliver(&self, output: Output) -> bool {
        let _pin = self.pin(output.digest);
        let mut attempt = 0;
        loop {
            let Ok(connection) = self.connected().await else {
                // Going down: the next start delivers.
                return std::future::pending().await;
            };
            let permit = self.0.transfers.acquire().await;
            let put = transfer::put(&self.0.store, &connection, output).await;
            drop(permit);
            match put {
                Ok(()) => return true,
                Err(Failure::Refused(problem)) if !passes(&problem) => {
                    tracing::warn!(digest = ?output.digest, %problem, "an output was refused");
                    return false;
                }
                Err(Failure::Disk(problem)) => {
                    tracing::error!(digest = ?output.digest, %problem, "an output is lost");
                    return false;
                }
                Err(failure) => {
                    tracing::info!(digest = ?output.digest, %failure, "delivery is tried again");
                    tokio::time::sleep(backoff::delay(attempt, rand::random())).await;
                    attempt += 1;
                }
            }
        }
    }

    /// Removes unreferenced blobs, least recently used first, until the quota is kept. `wanted` is
    /// asked right before a removal: what became pinned since is found by one or the other. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn collect(
        &self,
        referenced: &BTreeSet<Digest>,
        wanted: impl Fn(&Digest) -> bool,
    ) -> chunks::Result<()> {
        // Rests of transfers that nobody goes on with; a day is longer than any pause we resume.
        const RESTS_AGE: Duration = Duration::from_secs(24 * 3600);
        self.0.store.gc(|_| true, RESTS_AGE)?;
        let mut free: BTreeMap<(u64, Digest), u64> = BTreeMap::new();
        let mut total = 0;
        for digest in self.0.store.list()? {
            let size = self.0.store.size(&digest).unwrap_or(0);
            total += size;
            let usage = self.usage();
            if !referenced.contains(&digest) && !usage.pinned.contains_key(&digest) {
                let last_use = usage.last_use.get(&digest).map_or(0, |at| at + 1);
                free.insert((last_use, digest), size);
            }
        }
        for ((_, digest), size) in free {
            if total <= self.0.bytes_max {
                break;
            }
            let _removed = self
                .0
                .removing
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let pinned = self.usage().pinned.contains_key(&digest);
            if !pinned && !wanted(&digest) && self.0.store.remove(&digest)? {
                total -= size;
                self.usage().last_use.remove(&digest);
                tracing::debug!(?digest, size, "blob removed to keep the quota");
            }
        }
        Ok(())
    }

    /// Collects every now and then, until the supervisor ends. `wanted`
    /// says what else is referred to at the moment.
    pub async fn keep_quota(
        self,
        supervisor: supervisor::Handle,
        wanted: impl Fn(&Digest) -> bool + Clone + Send + 'static,
    ) {
        const EVERY: Duration = Duration::from_secs(300);
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            let Ok(referenced) = supervisor.references().await else {
                return;
            };
            let (blobs, wanted) = (self.clone(), wanted.clone());
            let collect = move || blobs.collect(&referenced, wanted);
            let collected = tokio::task::spawn_blocking(collect).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(%error, "blobs could not be collected");
            }
        }
    }
}

/// Whether a refusal may be gone later: the coordinator's trouble, not the blob's.
fn passes(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::Busy | Code::Unavailable | Code::Storage | Code::Internal
    )
}

/// A disk problem in words.
fn disk(error: &chunks::Error) -> Problem {
    Problem::new(Code::Storage, error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::store::MasterKey;

    use super::*;

    #[test]
    fn collection_keeps_what_is_referenced_pinned_or_recent() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path(), &MasterKey::generate().unwrap()).unwrap();
        let (_sender, link) = watch::channel(None);
        let blobs = Blobs::new(store.clone(), link, 250);
        let put = |n: u8| store.put(&[n; 100]).unwrap();
        let (referenced, pinned, old, recent) = (put(1), put(2), put(3), put(4));
        let _pin = blobs.pin(pinned);
        drop(blobs.pin(old));
        drop(blobs.pin(recent));
        blobs
            .collect(&BTreeSet::from([referenced]), |_| false)
            .unwrap();
        assert!(store.contains(&referenced) && store.contains(&pinned));
        assert!(
            !store.contains(&old) && !store.contains(&recent),
            "the quota counts all"
        );
        let recent = put(5);
        let blobs = Blobs::new(store.clone(), blobs.0.link.clone(), 350);
        let older = put(6);
        drop(blobs.pin(recent));
        blobs
            .collect(&BTreeSet::from([referenced]), |digest| *digest == pinned)
            .unwrap();
        assert!(store.contains(&recent) && !store.contains(&older));
    }
}
