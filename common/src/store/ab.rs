//! A small file that is kept twice, for what must never be half there: the A/B ledger.
//!
//! ```text
//! <name>.a, <name>.b    magic 8 · generation 8 · length 4 · BLAKE3 of these and the data 32 · data
//! ```
//!
//! Writes alternate: a new value goes to the slot that does not hold the current one, and counts
//! when its sync is done. So at every moment one slot is whole, and a power cut leaves the value
//! before or the new one. Each slot is made under a temporary name, so one that has its name was
//! whole once: two slots that do not verify are damage, never an empty file.
//!
//! What it cannot see: damage to the newer slot after it was written looks like a write that was
//! cut off. The value before is then read, and [`AbFile::damaged`] names the slot.
//!
//! The data is opaque; who has secrets in it seals it. Blocks. One process at a time.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Durable, Error, Result,
    disk::{Disk, DiskFile},
};

/// Most bytes of a value.
pub const AB_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: [u8; 8] = *b"HOP3ABF\x01";
const HEAD_BYTES: usize = 52;

/// See the module.
pub struct AbFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    name: String,
    slots: [Option<Box<dyn DiskFile>>; 2],
    /// The slot of the current value.
    current: usize,
    generation: u64,
    damaged: Option<PathBuf>,
}

impl fmt::Debug for AbFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbFile")
            .field("path", &self.path(self.current))
            .field("generation", &self.generation)
            .finish()
    }
}

/// What a slot holds.
enum Slot {
    Absent,
    Broken,
    Whole(u64, Vec<u8>),
}

impl Slot {
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Whole(generation, _) => Some(*generation),
            _ => None,
        }
    }
}

impl AbFile {
    /// Opens the pair `name` in `dir`, which must exist; gives the current value, `None` before
    /// the first write. What is given is durable.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when neither slot verifies; [`Error::Io`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, name: &str) -> Result<(Self, Option<Vec<u8>>)> {
        let mut file = Self {
            disk,
            dir: dir.into(),
            name: name.into(),
            slots: [None, None],
            current: 1,
            generation: 0,
            damaged: None,
        };
        let found = [file.read(0)?, file.read(1)?];
        // A killed process leaves what can be read, or is gone, and is not durable yet.
        file.sync_dir()?;
        let [a, b] = [found[0].generation(), found[1].generation()];
        let newest = usize::from(b > a);
        file.damaged = match (&found, a.max(b)) {
            ([Slot::Absent, Slot::Absent], _) => return Ok((file, None)),
            (_, None) => return Err(file.lost()),
            // The second slot is made by the second write.
            ([Slot::Whole(..), Slot::Absent], Some(1)) => None,
            _ if a.is_some() && b.is_some() => None,
            _ => Some(file.path(1 - newest)),
        };
        file.current = newest;
        let [a, b] = found;
        let newest = if newest == 0 { a } else { b };
        let Slot::Whole(generation, value) = newest else {
            return Err(file.lost());
        };
        file.generation = generation;
        for slot in 0..2 {
            let path = file.path(slot);
            if let Some(slot) = &mut file.slots[slot] {
                slot.sync().map_err(|e| Error::io("flush", &path, e))?;
            }
        }
        Ok((file, Some(value)))
    }

    /// Which write the current value is; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The slot that did not verify or was missing at opening: a write that was cut off, or
    /// damage. The next write makes it whole.
    #[must_use]
    pub fn damaged(&self) -> Option<&Path> {
        self.damaged.as_deref()
    }

    /// Replaces the value; durable when this returns, with its generation.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`]; [`Error::NoSpace`], [`Error::Io`], [`Error::SyncFailed`]: the
    /// value before stays, and the write may be tried again. Until one is done, a power cut may
    /// still bring the new value.
    pub fn write(&mut self, value: &[u8]) -> Result<Durable<u64>> {
        let target = 1 - self.current;
        let path = self.path(target);
        if value.len() > AB_BYTES_MAX {
            return Err(Error::FileTooLarge {
                path,
                len: value.len(),
                limit: AB_BYTES_MAX,
            });
        }
        let generation = self.generation + 1;
        let bytes = encode(generation, value);
        match &mut self.slots[target] {
            Some(slot) => {
                if let Err((action, error)) = overwrite(&mut **slot, &bytes) {
                    // The system may show it to the next process though the disk never gets it.
                    let _ = slot.set_size(0);
                    if action != "flush" {
                        return Err(Error::io(action, &path, error));
                    }
                    let reason = format!("cannot flush {}: {error}", path.display()).into();
                    return Err(Error::SyncFailed { reason });
                }
            }
            None => self.slots[target] = Some(self.install(&path, &bytes)?),
        }
        self.current = target;
        self.generation = generation;
        self.damaged = None;
        Ok(Durable::mint(generation))
    }

    /// Makes a slot that is not there.
    fn install(&self, path: &Path, bytes: &[u8]) -> Result<Box<dyn DiskFile>> {
        let temp = self.dir.join(format!("{}.tmp", self.name));
        let create = self.disk.create(&temp);
        let mut file = create.map_err(|e| Error::io("create", &temp, e))?;
        overwrite(&mut *file, bytes).map_err(|(action, e)| Error::io(action, &temp, e))?;
        let rename = self.disk.rename(&temp, path);
        rename.map_err(|e| Error::io("rename", &temp, e))?;
        if let Err(error) = self.sync_dir() {
            // Not shown to the next process as if it were durable.
            let _ = self.disk.remove(path);
            let reason = error_text(&error).into();
            return Err(Error::SyncFailed { reason });
        }
        Ok(file)
    }

    fn read(&mut self, slot: usize) -> Result<Slot> {
        let path = self.path(slot);
        let file = match self.disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Slot::Absent),
            other => other.map_err(|e| Error::io("open", &path, e))?,
        };
        let read = decode(&*file).map_err(|e| Error::io("read", &path, e))?;
        self.slots[slot] = Some(file);
        Ok(read.map_or(Slot::Broken, |(generation, value)| {
            Slot::Whole(generation, value)
        }))
    }

    fn sync_dir(&self) -> Result<()> {
        let synced = self.disk.sync_dir(&self.dir);
        synced.map_err(|e| Error::io("flush directory", &self.dir, e))
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.dir.join(format!("{}.{}", self.name, ["a", "b"][slot]))
    }

    fn lost(&self) -> Error {
        let affected = format!(
            "neither it nor {} verifies, so nothing of the ledger can be read",
            self.path(1).display()
        );
        Error::Corrupt {
            path: self.path(0),
            offset: 0,
            affected,
        }
    }
}

fn error_text(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// Writes all of a slot; says what failed.
fn overwrite(file: &mut dyn DiskFile, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
    file.write_all_at(bytes, 0).map_err(|e| ("write", e))?;
    file.set_size(bytes.len() as u64)
        .map_err(|e| ("resize", e))?;
    file.sync().map_err(|e| ("flush", e))
}

fn encode(generation: u64, value: &[u8]) -> Vec<u8> {
    let len = u32::try_from(value.len()).expect("AB_BYTES_MAX fits 32 bits");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + value.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&hash(&bytes, value));
    bytes.extend_from_slice(value);
    bytes
}

/// Generation and value of a slot; `None` if it does not verify.
fn decode(file: &dyn DiskFile) -> io::Result<Option<(u64, Vec<u8>)>> {
    let size = file.size()?;
    let mut head = [0; HEAD_BYTES];
    if size < HEAD_BYTES as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut head, 0)?;
    let (told, hash_told) = head.split_at(20);
    let generation = u64::from_le_bytes(told[8..16].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(told[16..].try_into().expect("four bytes")) as usize;
    let fits = len <= AB_BYTES_MAX && (HEAD_BYTES + len) as u64 <= size;
    if told[..8] != MAGIC || generation == 0 || !fits {
        return Ok(None);
    }
    let mut value = vec![0; len];
    file.read_exact_at(&mut value, HEAD_BYTES as u64)?;
    Ok((hash(told, &value) == hash_told).then_some((generation, value)))
}

fn hash(told: &[u8], value: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(told);
    hasher.update(value);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
#[path = "ab_test.rs"]
mod tests;
