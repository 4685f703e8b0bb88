//! Replicas of instances' changes, for `durability: replicated`: one change log per instance, on
//! top of a checkpoint whose parts are here.
//!
//! A change is on this disk before it is acknowledged to the node. Which changes are taken is
//! [`Replica`]'s to say. A log whose making was cut off, or whose place a newer one took, goes when
//! the directory is opened; one that is damaged is reported, and nothing goes on from it.
//!
//! Limits: a log is [`LOG_BYTES_MAX`] long; the node begins it anew well before that.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hop3_common::{
    chunks::BlobStore,
    codes::{Code, Problem},
    id::{Digest, InstanceId, UnixMs},
    ownership::{Epoch, Position, Replica, ReplicaRefusal, Token},
    store::{
        Cipher, MasterKey,
        changelog::{Error, Log, LogId},
        crypt::Purpose,
        disk::{DIR_MODE, Disk, OsDisk},
    },
    wire::{Checkpoint, Output, ReplicaChange, ReplicaWrite, changes},
};
use serde::{Deserialize, Serialize};

/// How the name of a log ends that is being made.
const NEW: &str = "new";
/// Longest log, bytes.
const LOG_BYTES_MAX: u64 = 2 << 30;

/// What the head of a replica's log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    instance: InstanceId,
    /// The run that writes it.
    token: Token,
    /// How often that run had begun it.
    stream: u64,
    /// What the changes build on.
    base: Checkpoint,
}

/// All replicas. Methods block.
pub struct Replicas {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    cipher: Cipher,
    slots: Mutex<HashMap<InstanceId, Arc<Mutex<Slot>>>>,
}

/// The replica of one instance.
#[derive(Default)]
struct Slot {
    open: Option<Open>,
    /// What is here of it cannot be read.
    damaged: Option<Problem>,
}

struct Open {
    state: Replica,
    head: Head,
    log: Log,
    changes: u64,
    at: UnixMs,
}

/// What is told of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How far it is.
    pub end: Position,
    /// When it was last written.
    pub at: UnixMs,
    /// Length of its log, bytes.
    pub bytes: u64,
    /// Changes in it.
    pub changes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A slot is replaced whole; a log that panicked in the middle is cut when it is opened.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replicas {
    /// Opens what is in `dir`; makes it if need be.
    ///
    /// # Errors
    /// The disk's; a log that is damaged in the middle is named, and so is what it is of.
    pub fn open(dir: &Path, key: &MasterKey) -> Result<Self, Problem> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|e| storage(format!("cannot make {}: {e}", dir.display())))?;
        let replicas = Self {
            dir: dir.into(),
            disk: Arc::new(OsDisk),
            cipher: key.cipher(Purpose::Replica),
            slots: Mutex::default(),
        };
        let names = replicas.disk.list(dir);
        for name in names.map_err(|e| storage(format!("cannot read {}: {e}", dir.display())))? {
            replicas.take_in(&name)?;
        }
        Ok(replicas)
    }

    /// Opens one log; of two of an instance the one that is further stays.
    fn take_in(&self, name: &str) -> Result<(), Problem> {
        let path = self.dir.join(name);
        if name.ends_with(NEW) {
            // Its making was cut off: nothing was acknowledged.
            self.remove(&path);
            return Ok(());
        }
        let Some((instance, id)) = names(name) else {
            return Ok(());
        };
        let slot = self.slot(&instance);
        let mut slot = lock(&slot);
        let opened = match self.recover(&path, id, |_| Ok(())) {
            Ok(opened) => opened,
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(%instance, %error,
                    "its replica cannot be used before its node writes it anew");
                slot.damaged = Some(error.into());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let gone = match &slot.open {
            Some(other) if further(other) >= further(&opened) => Some(path),
            _ => {
                let before = slot.open.replace(opened);
                before.map(|open| open.log.path().to_owned())
            }
        };
        if let Some(gone) = gone {
            self.remove(&gone);
        }
        Ok(())
    }

    fn recover(
        &self,
        path: &Path,
        id: LogId,
        mut each: impl FnMut(ReplicaChange) -> Result<(), Error>,
    ) -> Result<Open, Error> {
        let mut head = None;
        let (mut changes, mut seq) = (0, 0);
        let begin = |found: Head| {
            seq = found.base.seq;
            head = Some(found);
            Ok(())
        };
        let mut last = 0;
        let read = |bytes: &[u8]| {
            // The frame verified: what was sealed was a change.
            if let Ok(change) = postcard::from_bytes::<ReplicaChange>(bytes) {
                (changes, last) = (changes + 1, change.seq);
                each(change)?;
            }
            Ok(())
        };
        let cipher = self.cipher.clone();
        let (log, _) = Log::recover::<Head, Error>(&*self.disk, path, cipher, id, begin, read)?;
        let Some(head) = head else {
            unreachable!("a log that opens has a head");
        };
        let end = Position {
            token: head.token,
            seq: last.max(seq),
        };
        // A first state of no run's: nothing is in its place yet.
        let state = Replica::begin(None, end).unwrap_or_else(|_| unreachable!("nothing before"));
        Ok(Open {
            state,
            head,
            log,
            changes,
            at: UnixMs::now(),
        })
    }

    fn slot(&self, instance: &InstanceId) -> Arc<Mutex<Slot>> {
        lock(&self.slots)
            .entry(instance.clone())
            .or_default()
            .clone()
    }

    /// Takes what a run writes: durable when this returns `Ok`.
    ///
    /// # Errors
    /// It is not this run's turn; the disk's.
    pub fn write(
        &self,
        instance: &InstanceId,
        token: Token,
        write: ReplicaWrite,
    ) -> Result<(), Problem> {
        let slot = self.slot(instance);
        let mut slot = lock(&slot);
        match write {
            ReplicaWrite::Base {
                stream,
                checkpoint,
                since,
            } => {
                let head = Head {
                    instance: instance.clone(),
                    token,
                    stream,
                    base: checkpoint,
                };
                self.begin(&mut slot, head, since)
            }
            ReplicaWrite::Change { stream, change } => append(&mut slot, token, stream, &change),
        }
    }

    fn begin(
        &self,
        slot: &mut Slot,
        head: Head,
        since: Option<ReplicaChange>,
    ) -> Result<(), Problem> {
        let before = slot.open.as_ref();
        // A base that was late: the run has begun it anew since.
        let newer = |open: &&Open| open.head.token == head.token && open.head.stream >= head.stream;
        if before.filter(newer).is_some() {
            return Err(ReplicaRefusal::Deposed(head.token).into());
        }
        let end = Position {
            token: head.token,
            seq: since.as_ref().map_or(head.base.seq, |change| change.seq),
        };
        let state = Replica::begin(before.map(|open| &open.state), end)?;
        let id = LogId(rand::random());
        let name = head.instance.as_str().replace('/', "_");
        let path = self.dir.join(format!("{name}.{id}.log"));
        let first = since.as_ref().map(encode).transpose()?;
        let log = self.create(&path, id, &head, first.as_deref())?;
        let open = Open {
            state,
            head,
            log,
            changes: u64::from(first.is_some()),
            at: UnixMs::now(),
        };
        // From here on it is the replica; the one before says nothing that this does not.
        slot.damaged = None;
        if let Some(old) = slot.open.replace(open) {
            self.remove(old.log.path());
        }
        Ok(())
    }

    /// Makes a log that is there whole or not at all.
    fn create(
        &self,
        path: &Path,
        id: LogId,
        head: &Head,
        first: Option<&[u8]>,
    ) -> Result<Log, Problem> {
        let new = path.with_extension(NEW);
        let cipher = self.cipher.clone();
        let made = Log::create(&*self.disk, &new, cipher, id, head, first);
        let mut log = made.inspect_err(|_| self.remove(&new))?;
        let renamed = self.disk.rename(&new, path);
        let renamed = renamed.and_then(|()| self.disk.sync_dir(&self.dir));
        renamed.map_err(|e| storage(format!("cannot make {}: {e}", path.display())))?;
        log.renamed(path);
        Ok(log)
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = self.disk.remove(path) {
            tracing::warn!(path = %path.display(), %error, "an old replica was not removed");
        }
    }

    /// Takes nothing more from the run that writes, and makes a checkpoint of what there is; `None`
    /// if there is no replica.
    ///
    /// # Errors
    /// The disk's.
    pub fn seal(
        &self,
        instance: &InstanceId,
        blobs: &BlobStore,
    ) -> Result<Option<Checkpoint>, Problem> {
        let slot = self.slot(instance);
        let mut slot = lock(&slot);
        if let Some(damaged) = &slot.damaged {
            return Err(damaged.clone());
        }
        let Some(open) = &mut slot.open else {
            return Ok(None);
        };
        open.state = open.state.seal();
        let (path, end) = (open.log.path().to_owned(), open.state.end());
        let mut deltas = Vec::new();
        let id = path.file_name().and_then(|name| names(name.to_str()?));
        let (_, id) = id.ok_or_else(|| storage("a replica's name has changed"))?;
        self.recover(&path, id, |change| {
            deltas.push(change.delta);
            Ok(())
        })?;
        let mut made = Checkpoint {
            token: end.token,
            seq: end.seq,
            at: open.at,
            ..open.head.base.clone()
        };
        if !deltas.is_empty() {
            let run = changes::encode(deltas.iter().map(|delta| &delta[..]));
            let digest = blobs.put(&run).map_err(storage)?;
            let bytes = run.len() as u64;
            made.parts.push(Output { digest, bytes });
        }
        Ok(Some(made))
    }

    /// The instance goes on from what the replica of `epoch` was made into, or is gone. What a newer
    /// owner has begun meanwhile stays.
    pub fn forget(&self, instance: &InstanceId, epoch: Epoch) {
        let slot = self.slot(instance);
        let mut slot = lock(&slot);
        slot.damaged = None;
        let old = |open: &mut Open| open.head.token.epoch <= epoch;
        if let Some(open) = slot.open.take_if(old) {
            self.remove(open.log.path());
        }
    }

    /// Blobs that replicas build on.
    #[must_use]
    pub fn references(&self) -> BTreeSet<Digest> {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        let mut blobs = BTreeSet::new();
        for slot in slots {
            let slot = lock(&slot);
            let parts = slot.open.iter().flat_map(|open| &open.head.base.parts);
            blobs.extend(parts.map(|part| part.digest));
        }
        blobs
    }

    /// How far the replica of an instance is.
    #[must_use]
    pub fn standing(&self, instance: &InstanceId) -> Option<Standing> {
        let slot = lock(&self.slots).get(instance).cloned()?;
        let slot = lock(&slot);
        let open = slot.open.as_ref()?;
        Some(Standing {
            end: open.state.end(),
            at: open.at,
            bytes: open.log.bytes(),
            changes: open.changes,
        })
    }
}

/// Of two logs of an instance the one that is further took the other's place.
fn further(open: &Open) -> (Position, u64) {
    (open.state.end(), open.head.stream)
}

fn append(
    slot: &mut Slot,
    token: Token,
    stream: u64,
    change: &ReplicaChange,
) -> Result<(), Problem> {
    let Some(open) = &mut slot.open else {
        let message = "there is no replica yet: it begins with a whole state";
        return Err(Problem::new(Code::NotHere, message));
    };
    if stream != open.head.stream {
        return Err(ReplicaRefusal::Deposed(open.head.token).into());
    }
    let state = open.state.change(token, open.state.writer(), change.seq)?;
    if open.log.is_broken() || open.log.bytes() > LOG_BYTES_MAX {
        return Err(storage("the replica must begin anew"));
    }
    open.log.append(&encode(change)?)?;
    (open.state, open.at) = (state, UnixMs::now());
    open.changes += 1;
    Ok(())
}

fn encode(change: &ReplicaChange) -> Result<Vec<u8>, Problem> {
    postcard::to_allocvec(change).map_err(storage)
}

fn storage(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Storage, error.to_string())
}

/// The instance and log that a file name names.
fn names(name: &str) -> Option<(InstanceId, LogId)> {
    let (instance, id) = name.strip_suffix(".log")?.rsplit_once('.')?;
    let id: Vec<u8> = data_encoding::HEXLOWER.decode(id.as_bytes()).ok()?;
    let instance = instance.replace('_', "/").parse().ok()?;
    Some((instance, LogId(id.try_into().ok()?)))
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
