//! The durable side of one instance: a checkpoint, and for `durability: node` the log on top of
//! it. Owned by the instance's keeper; nothing else writes for it.
//!
//! Order of a new checkpoint: its blobs (durable, pinned), its log with everything since, the
//! record that names both, then the old log goes. A crash at any point leaves a record whose
//! checkpoint and log are whole. The newest checkpoint with its log is the state; older ones are
//! for people.

use std::{path::PathBuf, sync::Arc};

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
    kept::{Kept, KeptRecord},
    log::{self, Head, Log, LogId},
};
use crate::blobs::{Blobs, Pin};

/// Largest part of a checkpoint, bytes: all that a service may have, with room.
const PART_BYTES_MAX: u64 = 3 << 29;
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
}

impl Shelf {
    fn path(&self, instance: &InstanceId, id: LogId) -> PathBuf {
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
    pub async fn forget(
        &self,
        instance: &InstanceId,
    ) -> Result<(), hop3_common::store::Error> {
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

fn storage(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Storage, error.to_string())
}

fn panicked(_: tokio::task::JoinError) -> Problem {
    Problem::new(Code::Internal, "a thread that stores panicked")
}

impl From<log::Error> for Problem {
    fn from(error: log::Error) -> Self {
        storage(error)
    }
}

/// A checkpoint whose blobs are durable, not yet recorded.
pub struct Prepared {
    image: Image,
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

    /// Makes a change durable.
    ///
    /// # Errors
    /// In words; then nothing of it counts, and it may be tried again.
    pub async fn append(&mut self, image: Image) -> Result<(), Problem> {
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
    async fn new_log(
        &self,
        on: Vec<Output>,
        since: Option<(Image, Image)>,
    ) -> Result<(LogId, Log), Problem> {
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
        Ok((id, made.await.map_err(panicked)??))
    }

    /// Replaces the record; the log that only the old one named goes.
    async fn put(&mut self, record: KeptRecord) -> Result<(), Problem> {
        let old = self.record.log.filter(|old| record.log != Some(*old));
        let put = self.shelf.kept.put(&self.instance, record.clone()).await;
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

/// The state that a run begins with.
pub struct Recovered {
    image: Image,
    base: (Output, Image),
    record: KeptRecord,
    log: Option<Log>,
    /// Until the record is stored.
    pins: Vec<Pin>,
}

impl Recovered {
    /// The state.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }
}

/// Where the state of an instance comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// There is none.
    Nowhere,
    /// This node's own.
    Here,
    /// The checkpoint of the assignment.
    There,
    /// Whichever is newer: they are of the same run.
    Newer,
}

/// Decides by who made what: a lower run never has anything newer.
fn source(record: Option<&KeptRecord>, restore: Option<&Checkpoint>) -> Source {
    let record = record.filter(|record| !record.made.is_empty());
    match (record, restore) {
        (None, None) => Source::Nowhere,
        (None, Some(_)) => Source::There,
        (Some(_), None) => Source::Here,
        (Some(record), Some(restore)) => match record.owner.cmp(&restore.token) {
            std::cmp::Ordering::Less => Source::There,
            std::cmp::Ordering::Equal => Source::Newer,
            std::cmp::Ordering::Greater => Source::Here,
        },
    }
}

/// Finds the state of an instance: this node's own, or the assignment's `restore`, whose parts
/// are fetched; `None` for a new one.
///
/// # Errors
/// What is damaged or missing. An older state is never taken silently.
pub async fn recover(
    shelf: &Arc<Shelf>,
    instance: &InstanceId,
    restore: Option<&Checkpoint>,
) -> Result<Option<Recovered>, Problem> {
    let record = shelf.kept.get(instance);
    match (source(record.as_ref(), restore), record, restore) {
        (Source::Here, Some(record), _) => here(shelf, instance, record).await.map(Some),
        (Source::Newer, Some(record), Some(restore)) => {
            let found = here(shelf, instance, record.clone()).await?;
            if found.image.seq() >= restore.seq {
                return Ok(Some(found));
            }
            there(shelf, Some(record), restore).await.map(Some)
        }
        (Source::There, record, Some(restore)) => {
            there(shelf, record, restore).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// This node's own state: the newest checkpoint and its log.
async fn here(
    shelf: &Arc<Shelf>,
    instance: &InstanceId,
    record: KeptRecord,
) -> Result<Recovered, Problem> {
    let (shelf, instance) = (shelf.clone(), instance.clone());
    let read = spawn_blocking(move || {
        let newest = record.made.first().ok_or_else(|| storage("no checkpoint"))?;
        let (base, mut image) = read_parts(&shelf.blobs, newest, &instance)?;
        let mut log = None;
        if let Some(id) = record.log {
            let path = shelf.path(&instance, id);
            let parts = newest.parts.clone();
            let begin = |head: Head| {
                let fits = head.base == parts && head.instance == instance;
                let wrong = || storage(format!("the log {} is another's", path.display()));
                fits.then_some(()).ok_or_else(wrong)
            };
            let each = |delta: &[u8]| {
                let applied = image.apply(delta);
                let what = |e| storage(format!("a change in {}: {e}", path.display()));
                image = applied.map_err(what)?;
                Ok(())
            };
            let cipher = shelf.cipher.clone();
            let opened = Log::recover::<Problem>(&*shelf.disk, &path, cipher, id, begin, each);
            let (opened, torn) = opened?;
            if let Some(torn) = torn {
                let bytes = torn.bytes;
                tracing::info!(%instance, bytes, "a torn end of its log was cut: never acknowledged");
            }
            log = Some(opened);
        }
        Ok(Recovered {
            image,
            base,
            record,
            log,
            pins: Vec::new(),
        })
    });
    read.await.map_err(panicked)?
}

/// A checkpoint from elsewhere.
async fn there(
    shelf: &Arc<Shelf>,
    record: Option<KeptRecord>,
    restore: &Checkpoint,
) -> Result<Recovered, Problem> {
    let mut pins = Vec::new();
    for part in &restore.parts {
        pins.push(shelf.blobs.fetch(part.digest, part.bytes).await?);
    }
    let mut record = record.unwrap_or_default();
    record.made.insert(0, restore.clone());
    // The old log is of an older state; it goes when the record that names it is replaced.
    let (shelf, restore) = (shelf.clone(), restore.clone());
    let read = spawn_blocking(move || {
        let (base, image) = read_parts(&shelf.blobs, &restore, &"the assignment")?;
        Ok(Recovered {
            image,
            base,
            record,
            log: None,
            pins,
        })
    });
    read.await.map_err(panicked)?
}

type Whole = ((Output, Image), Image);

/// Reads a checkpoint. Blocks.
fn read_parts(
    blobs: &Blobs,
    checkpoint: &Checkpoint,
    of: &dyn std::fmt::Display,
) -> Result<Whole, Problem> {
    let wrong = |what: String| {
        let (seq, token) = (checkpoint.seq, checkpoint.token);
        storage(format!(
            "checkpoint {seq} (run {token}) of {of} cannot be read: {what}; the instance does not \
             start from an older one by itself"
        ))
    };
    let mut whole: Option<Whole> = None;
    for part in &checkpoint.parts {
        let read = blobs.store().read(&part.digest, PART_BYTES_MAX);
        let bytes = read.map_err(|e| wrong(e.to_string()))?;
        whole = Some(match whole {
            None => {
                let image = Image::decode(&bytes).map_err(|e| wrong(e.to_string()))?;
                ((*part, image.clone()), image)
            }
            Some((base, image)) => {
                let image = image.apply(&bytes).map_err(|e| wrong(e.to_string()))?;
                (base, image)
            }
        });
    }
    whole.ok_or_else(|| wrong("it has no parts".into()))
}

#[cfg(test)]
mod tests {
    use hop3_common::ownership::{Epoch, Incarnation};

    use super::*;

    fn made(epoch: u64, seq: u64) -> Checkpoint {
        Checkpoint {
            token: token(epoch),
            seq,
            at: UnixMs(0),
            schema: 1,
            parts: vec![],
        }
    }

    fn token(epoch: u64) -> Token {
        Token {
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
        }
    }

    #[test]
    fn the_newer_run_has_the_state() {
        let owned = |epoch| KeptRecord {
            owner: token(epoch),
            log: None,
            made: vec![made(epoch, 5)],
        };
        assert_eq!(source(None, None), Source::Nowhere);
        assert_eq!(source(Some(&KeptRecord::default()), None), Source::Nowhere);
        assert_eq!(source(None, Some(&made(1, 9))), Source::There);
        assert_eq!(source(Some(&owned(1)), None), Source::Here);
        // A move that was given up: the source has what it was sealed with.
        assert_eq!(source(Some(&owned(1)), Some(&made(1, 5))), Source::Newer);
        // It was elsewhere meanwhile.
        assert_eq!(source(Some(&owned(1)), Some(&made(2, 9))), Source::There);
        // It ran here under a newer epoch already.
        assert_eq!(source(Some(&owned(3)), Some(&made(2, 9))), Source::Here);
    }
}
