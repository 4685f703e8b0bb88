//! The durable side of one instance: a checkpoint, and for `durability: node` the log on top of
//! it. Owned by the instance's keeper; nothing else writes for it.
//!
//! Order of a new checkpoint: its blobs (durable, pinned), its log with everything since, the
//! record that names both, then the old log goes. A crash at any point leaves a record whose
//! checkpoint and log are whole. The newest checkpoint with its log is the state; older ones are
//! for people.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, UnixMs},
    ownership::Token,
    store::{Cipher, disk::Disk},
    wire::{Checkpoint, Output},
};
use hop3_runtime::service::Image;
use tokio::task::spawn_blocking;

use super::{
    ahead::Ahead,
    kept::{Kept, KeptRecord},
    log::{Head, Log, LogId},
    recover::Recovered,
};
use crate::blobs::{Blobs, Pin};

/// A log smaller than this is not worth a new checkpoint.
const LOG_BYTES_MIN: u64 = 4 << 20;

/// What the storages of a node share.
pub struct Shelf {
    /// Records.
    pub kept: Kept,
    /// Parts of checkpoints.
    pub blobs: Blobs,
    /// Log files.
    pub disk: Arc<dyn Disk>,
    /// Where they are.
    pub dir: PathBuf,
    /// Seals them.
    pub cipher: Cipher,
    /// The last instance that was made ready before it came.
    pub(super) ahead: Mutex<Option<Ahead>>,
}

impl Shelf {
    pub(super) fn path(&self, instance: &InstanceId, id: LogId) -> PathBuf {
        let name = instance.as_str().replace('/', "_");
        self.dir.join(format!("{name}.{id}.log"))
    }

    /// Removes the log files that no record names.
    pub fn sweep(&self) {
        let used: Vec<String> = self.kept.logs().iter().map(LogId::to_string).collect();
        for name in self.disk.list(&self.dir).unwrap_or_default() {
            let id = name.strip_suffix(".log").and_then(|n| n.rsplit_once('.'));
            if id.is_some_and(|(_, id)| !used.iter().any(|used| used == id)) {
                remove(&*self.disk, &self.dir.join(name));
            }
        }
    }

    /// Forgets an instance: its record, then what the record named.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget(&self, instance: &InstanceId) -> Result<(), hop3_common::store::Error> {
        let Some(record) = self.kept.get(instance) else {
            return Ok(());
        };
        self.kept.remove(instance).await?;
        if let Some(id) = record.log {
            let (disk, path) = (self.disk.clone(), self.path(instance, id));
            let _ = spawn_blocking(move || remove(&*disk, &path)).await;
        }
        Ok(())
    }
}

fn remove(disk: &dyn Disk, path: &std::path::Path) {
    if let Err(error) = disk.remove(path) {
        tracing::warn!(path = %path.display(), %error, "an old log was not removed");
    }
}

pub(super) fn storage(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Storage, error.to_string())
}

pub(super) fn panicked(_: tokio::task::JoinError) -> Problem {
    Problem::new(Code::Internal, "a thread that stores panicked")
}

/// A checkpoint whose blobs are durable, not yet recorded.
pub struct Prepared {
    pub(super) image: Image,
    parts: Vec<Output>,
    pins: Vec<Pin>,
    base: (Output, Image),
    /// Changes that the storage had when the image was taken.
    changes: u64,
}

/// See the module.
pub struct Storage {
    shelf: Arc<Shelf>,
    instance: InstanceId,
    token: Token,
    keep: usize,
    /// Whether changes go to a log.
    durable: bool,
    record: KeptRecord,
    log: Option<Log>,
    /// What is on the disk.
    last: Image,
    /// The newest whole image that is a blob; checkpoints close to it are deltas to it.
    base: (Output, Image),
    /// Changes made durable in this run.
    changes: u64,
    /// It changed since the newest checkpoint.
    stale: bool,
}

/// How an instance is stored.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Every change goes to a log.
    pub durable: bool,
    /// Checkpoints kept.
    pub keep: usize,
}

impl Storage {
    /// Begins to store a new instance.
    ///
    /// # Errors
    /// In words.
    pub async fn create(
        shelf: Arc<Shelf>,
        instance: InstanceId,
        token: Token,
        policy: Policy,
        image: Image,
    ) -> Result<Self, Problem> {
        let prepared = prepare(shelf.blobs.clone(), image, None, 0).await?;
        let record = shelf.kept.get(&instance).unwrap_or_default();
        let mut storage = Self {
            shelf,
            instance,
            token,
            keep: policy.keep,
            durable: policy.durable,
            record,
            log: None,
            last: prepared.image.clone(),
            base: prepared.base.clone(),
            changes: 0,
            stale: true,
        };
        storage.adopt(prepared).await?;
        Ok(storage)
    }

    /// Goes on with what recovery found; the run that owns it is durable when this returns.
    ///
    /// # Errors
    /// In words.
    pub async fn go_on(
        shelf: Arc<Shelf>,
        instance: InstanceId,
        token: Token,
        policy: Policy,
        found: Recovered,
    ) -> Result<Self, Problem> {
        let Recovered {
            image,
            base,
            record,
            log,
            guest: _,
            pins,
        } = found;
        let mut storage = Self {
            shelf,
            instance,
            token,
            keep: policy.keep,
            durable: policy.durable,
            record,
            log,
            last: image,
            base,
            changes: 0,
            stale: true,
        };
        let mut record = storage.record.clone();
        record.owner = token;
        record.made.truncate(policy.keep.max(1));
        if policy.durable && storage.log.is_none() {
            // Nothing but the checkpoint: it is where the log begins.
            let on = record.made.first().map(|made| made.parts.clone());
            let (id, log) = storage.new_log(on.unwrap_or_default(), None).await?;
            record.log = Some(id);
            storage.log = Some(log);
        }
        if !policy.durable && storage.log.is_some() {
            // What the log holds must be in a checkpoint before the log goes.
            let prepared = storage.prepare(storage.last.clone()).await?;
            storage.log = None;
            storage.adopt(prepared).await?;
            return Ok(storage);
        }
        if !policy.durable {
            record.log = None;
        }
        storage.put(record).await?;
        drop(pins);
        Ok(storage)
    }

    /// What is on the disk.
    #[must_use]
    pub fn last(&self) -> &Image {
        &self.last
    }

    /// Whether it changed since the newest checkpoint.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the log is so long that a new checkpoint is due.
    #[must_use]
    pub fn is_long(&self) -> bool {
        let base = self.base.0.bytes.max(LOG_BYTES_MIN);
        self.log.as_ref().is_some_and(|log| log.bytes() > base)
    }

    /// The newest checkpoint, if it is all there is and of this run.
    #[must_use]
    pub fn newest(&self) -> Option<Checkpoint> {
        let newest = self.record.made.first();
        let newest = newest.filter(|made| !self.stale && made.token == self.token);
        newest.cloned()
    }

    /// Prepares a checkpoint of `image`, in the background of everything else.
    pub fn prepare(
        &self,
        image: Image,
    ) -> impl Future<Output = Result<Prepared, Problem>> + Send + 'static {
        let (blobs, base) = (self.shelf.blobs.clone(), self.base.clone());
        prepare(blobs, image, Some(base), self.changes)
    }

    /// A checkpoint of `image`, which is on the disk: the newest one, or a new one.
    ///
    /// # Errors
    /// In words.
    pub async fn checkpoint(&mut self, image: &Image) -> Result<Checkpoint, Problem> {
        if let Some(newest) = self.newest().filter(|_| image.is(&self.last)) {
            return Ok(newest);
        }
        let prepared = self.prepare(image.clone()).await?;
        self.adopt(prepared).await
    }

    /// Makes a change durable.
    ///
    /// # Errors
    /// In words; then nothing of it counts, and it may be tried again.
    pub async fn append(&mut self, image: Image) -> Result<(), Problem> {
        if image.is(&self.last) {
            return Ok(());
        }
        let Some(mut log) = self.log.take().filter(|log| !log.is_broken()) else {
            // Without a usable log a checkpoint does.
            let prepared = self.prepare(image).await?;
            self.adopt(prepared).await?;
            self.changes += 1;
            return Ok(());
        };
        let last = self.last.clone();
        let next = image.clone();
        let written = spawn_blocking(move || {
            let appended = log.append(&next.delta(&last));
            (log, appended)
        });
        let (log, appended) = written.await.map_err(panicked)?;
        self.log = Some(log);
        appended?;
        (self.last, self.stale) = (image, true);
        self.changes += 1;
        Ok(())
    }

    /// Records a prepared checkpoint and begins a new log with what came since.
    ///
    /// # Errors
    /// In words; then the checkpoint before stands.
    pub async fn adopt(&mut self, prepared: Prepared) -> Result<Checkpoint, Problem> {
        let Prepared {
            image,
            parts,
            pins,
            base,
            changes,
        } = prepared;
        let newer = self.changes > changes;
        let made = Checkpoint {
            token: self.token,
            seq: image.seq(),
            at: UnixMs::now(),
            schema: image.schema(),
            parts,
        };
        let log = if self.durable {
            let since = newer.then(|| (self.last.clone(), image.clone()));
            Some(self.new_log(made.parts.clone(), since).await?)
        } else {
            None
        };
        let mut record = self.record.clone();
        record.owner = self.token;
        record.log = log.as_ref().map(|(id, _)| *id);
        record.made.insert(0, made.clone());
        record.made.truncate(self.keep.max(1));
        self.put(record).await?;
        self.log = log.map(|(_, log)| log);
        self.base = base;
        if !newer {
            self.last = image;
        }
        self.stale = newer;
        drop(pins);
        Ok(made)
    }

    /// A log on top of `on`, with the difference of two images as its first change.
    fn new_log(
        &self,
        on: Vec<Output>,
        since: Option<(Image, Image)>,
    ) -> impl Future<Output = Result<(LogId, Log), Problem>> + Send + 'static {
        let (shelf, id) = (self.shelf.clone(), LogId(rand::random()));
        let head = Head {
            instance: self.instance.clone(),
            base: on,
        };
        let made = spawn_blocking(move || {
            let path = shelf.path(&head.instance, id);
            let delta = since.map(|(to, from)| to.delta(&from));
            let cipher = shelf.cipher.clone();
            let log = Log::create(&*shelf.disk, &path, cipher, id, &head, delta.as_deref());
            if log.is_err() {
                // What there is of it would only fill the disk.
                let _ = shelf.disk.remove(&path);
            }
            log
        });
        async move { Ok((id, made.await.map_err(panicked)??)) }
    }

    /// Replaces the record; the log that only the old one named goes.
    async fn put(&mut self, record: KeptRecord) -> Result<(), Problem> {
        let old = self.record.log.filter(|old| record.log != Some(*old));
        let put = self.shelf.kept.put(&self.instance, record.clone()).await;
        if matches!(put, Err(hop3_common::store::Error::SyncFailed { .. })) {
            // After a power cut the new record may be there, and changes in the old log would not
            // count: the next change makes another record first.
            self.log = None;
        }
        put.map_err(storage)?;
        self.record = record;
        if let Some(old) = old {
            let (shelf, instance) = (self.shelf.clone(), self.instance.clone());
            let gone = spawn_blocking(move || {
                remove(&*shelf.disk, &shelf.path(&instance, old));
            });
            let _ = gone.await;
        }
        Ok(())
    }
}

/// Makes a checkpoint's blobs: a delta to `base` if that is much smaller than the whole.
async fn prepare(
    blobs: Blobs,
    image: Image,
    base: Option<(Output, Image)>,
    changes: u64,
) -> Result<Prepared, Problem> {
    let made = spawn_blocking(move || {
        if let Some(base) = base {
            let delta = image.delta(&base.1);
            if (delta.len() as u64) < base.0.bytes / 2 {
                let pin = blobs.pin(base.0.digest);
                if blobs.store().contains(&base.0.digest) {
                    let (part, delta_pin) = blobs.keep(&delta)?;
                    return Ok(Prepared {
                        parts: vec![base.0, part],
                        pins: vec![pin, delta_pin],
                        image,
                        base,
                        changes,
                    });
                }
            }
        }
        let (whole, pin) = blobs.keep(&image.encode())?;
        Ok(Prepared {
            parts: vec![whole],
            pins: vec![pin],
            base: (whole, image.clone()),
            image,
            changes,
        })
    });
    let made: hop3_common::chunks::Result<Prepared> = made.await.map_err(panicked)?;
    made.map_err(storage)
}
