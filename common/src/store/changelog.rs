//! A change log: deltas of a state on top of a base, each on the disk before anything that depends
//! on it leaves the machine.
//!
//! ```text
//! file   magic 8 · log id 16 · frames
//! frame  magic 4 · body length 4 · number 8 · sealed body (XChaCha20-Poly1305)
//! ```
//!
//! The tag is the checksum: it covers log id and number too, so that frames can be neither
//! altered, exchanged nor repeated. Frame 0 is the head: it says what the deltas build on. One frame is in the making at a time, so a crash tears at most the last one: it is
//! cut. A whole frame behind a broken one proves damage, which is an [`Error::Damaged`].
//!
//! A write that fails is undone and may be tried again; after a failed sync the log is broken for
//! good ([`Log::is_broken`]): its owner goes on with a new base and a new log. What recovery gives
//! is durable, also after a process that was killed before its sync. Blocks; numbers are
//! little-endian.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::codes::{Code, Problem};

use super::{
    Cipher,
    crypt::SEAL_OVERHEAD_BYTES,
    disk::{Disk, DiskFile},
};

/// Largest delta: all memory and key-value data that a service may have, with room.
pub const DELTA_BYTES_MAX: usize = 3 << 29;
const FILE_MAGIC: [u8; 8] = *b"HOP3SLG\x01";
const FRAME_MAGIC: [u8; 4] = *b"H3S\x01";
const FILE_HEAD_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 16;
/// Read at a time while looking for frames behind a broken one.
const LOOK_BYTES: usize = 1 << 20;

/// Names a log; part of its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full.
    #[error("no space left for {}: free some space", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What was acknowledged is not there any more.
    #[error(
        "the log {} is damaged at byte {offset}: {what}; change {number} and those after it are \
         affected",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How.
        what: &'static str,
        /// First frame that is affected.
        number: u64,
    },
    /// The system has no randomness.
    #[error(transparent)]
    Seal(super::Error),
}

impl Error {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(Code::Storage, error.to_string())
    }
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    id: LogId,
    cipher: Cipher,
    /// Number of the next frame.
    next: u64,
    /// Everything before is durable.
    end: u64,
    broken: bool,
}

/// What recovery found behind the last whole frame, and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Bytes cut.
    pub bytes: u64,
}

impl Log {
    /// Makes a log with its head and, if given, a first delta: durable when this returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn create<H: Serialize>(
        disk: &dyn Disk,
        path: &Path,
        cipher: Cipher,
        id: LogId,
        head: &H,
        first: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let file = disk
            .create(path)
            .map_err(|e| Error::io("create", path, e))?;
        let mut log = Self {
            path: path.into(),
            file,
            id,
            cipher,
            next: 0,
            end: FILE_HEAD_BYTES as u64,
            broken: false,
        };
        let mut bytes = FILE_MAGIC.to_vec();
        bytes.extend_from_slice(&id.0);
        let head = postcard::to_allocvec(head).expect("a head is plain data");
        log.frame(0, &head, &mut bytes)?;
        log.next = 1;
        if let Some(delta) = first {
            log.frame(1, delta, &mut bytes)?;
            log.next = 2;
        }
        let write = log.file.write_all_at(&bytes, 0);
        write.map_err(|e| Error::io("write", path, e))?;
        log.file.sync().map_err(|e| Error::io("sync", path, e))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        disk.sync_dir(dir)
            .map_err(|e| Error::io("sync the directory of", path, e))?;
        log.end = bytes.len() as u64;
        Ok(log)
    }

    /// Opens a log; gives its head, then every delta in order to `each`.
    ///
    /// # Errors
    /// The disk's; [`Error::Damaged`]; what `each` says.
    pub fn recover<H: DeserializeOwned, E: From<Error>>(
        disk: &dyn Disk,
        path: &Path,
        cipher: Cipher,
        id: LogId,
        begin: impl FnOnce(H) -> Result<(), E>,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(Self, Option<Torn>), E> {
        let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
        let mut log = Self {
            path: path.into(),
            file,
            id,
            cipher,
            next: 0,
            end: FILE_HEAD_BYTES as u64,
            broken: false,
        };
        let size = log.file.size().map_err(|e| Error::io("read", path, e))?;
        let mut head = [0; FILE_HEAD_BYTES];
        if size < FILE_HEAD_BYTES as u64 {
            return Err(log.damaged("it has no head").into());
        }
        let read = log.file.read_exact_at(&mut head, 0);
        read.map_err(|e| Error::io("read", path, e))?;
        if head[..8] != FILE_MAGIC || head[8..] != id.0 {
            return Err(log.damaged("its head is another's").into());
        }
        // The head was durable before anything referred to the log.
        let first = log.read(log.end, size)?;
        let first = first.filter(|(number, ..)| *number == 0);
        let head =
            first.and_then(|(_, plain, end)| Some((postcard::from_bytes(&plain).ok()?, end)));
        let Some((head, end)) = head else {
            return Err(log.damaged("its first frame does not verify").into());
        };
        begin(head)?;
        (log.next, log.end) = (1, end);
        while log.end < size {
            match log.read(log.end, size)? {
                Some((number, delta, end)) if number == log.next => {
                    each(&delta)?;
                    (log.next, log.end) = (number + 1, end);
                }
                _ => break,
            }
        }
        let torn = log.cut_tail(size)?;
        Ok((log, torn))
    }

    /// Cuts what is behind the last whole frame, unless that proves damage, and makes the rest
    /// durable: a process that was killed leaves frames that can be read and were never synced.
    fn cut_tail(&mut self, size: u64) -> Result<Option<Torn>, Error> {
        let bytes = size - self.end;
        let path = self.path.clone();
        if bytes > 0 {
            if self.has_frame_after(self.end + 1, size)? {
                return Err(self.damaged("a frame does not verify, and later ones do"));
            }
            let cut = self.file.set_size(self.end);
            cut.map_err(|e| Error::io("cut", &path, e))?;
        }
        self.file.sync().map_err(|e| Error::io("sync", &path, e))?;
        Ok((bytes > 0).then_some(Torn { bytes }))
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            offset: self.end,
            what,
            number: self.next,
        }
    }

    fn context(&self, number: u64) -> [u8; 24] {
        let mut context = [0; 24];
        context[..16].copy_from_slice(&self.id.0);
        context[16..].copy_from_slice(&number.to_le_bytes());
        context
    }

    fn frame(&self, number: u64, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let at = out.len();
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&number.to_le_bytes());
        let sealed = self.cipher.seal_into(&self.context(number), plain, out);
        sealed.map_err(Error::Seal)?;
        let len = out.len() - at - FRAME_HEAD_BYTES;
        let len = u32::try_from(len).expect("limits on state keep a delta below 4 GiB");
        out[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// The frame at `offset`: its number, what is in it and where it ends; `None` if there is
    /// none that verifies.
    fn read(&self, offset: u64, size: u64) -> Result<Option<(u64, Vec<u8>, u64)>, Error> {
        let fail = |e| Error::io("read", &self.path, e);
        let Some(body_at) = offset
            .checked_add(FRAME_HEAD_BYTES as u64)
            .filter(|at| *at <= size)
        else {
            return Ok(None);
        };
        let mut head = [0; FRAME_HEAD_BYTES];
        self.file.read_exact_at(&mut head, offset).map_err(fail)?;
        let (magic, rest) = head.split_at(4);
        let (len, number) = rest.split_at(4);
        let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let number = u64::from_le_bytes(number.try_into().expect("eight bytes"));
        let end = body_at + u64::from(len);
        let plausible = magic == FRAME_MAGIC && end <= size;
        if !plausible || len as usize > DELTA_BYTES_MAX + SEAL_OVERHEAD_BYTES {
            return Ok(None);
        }
        let mut body = vec![0; len as usize];
        self.file.read_exact_at(&mut body, body_at).map_err(fail)?;
        let opened = self.cipher.open(&self.context(number), &body);
        Ok(opened.ok().map(|plain| (number, plain, end)))
    }

    /// Whether a frame of this log begins anywhere from `from` on.
    fn has_frame_after(&self, from: u64, size: u64) -> Result<bool, Error> {
        let mut at = from;
        while at < size {
            let len = usize::try_from(size - at).map_or(LOOK_BYTES, |left| left.min(LOOK_BYTES));
            let mut piece = vec![0; len];
            let read = self.file.read_exact_at(&mut piece, at);
            read.map_err(|e| Error::io("read", &self.path, e))?;
            for (n, _) in piece
                .windows(FRAME_MAGIC.len())
                .enumerate()
                .filter(|(_, window)| **window == FRAME_MAGIC)
            {
                let found = self.read(at + n as u64, size)?;
                if found.is_some_and(|(number, ..)| number > self.next) {
                    return Ok(true);
                }
            }
            // A magic may lie across two pieces.
            at += len.saturating_sub(FRAME_MAGIC.len() - 1).max(1) as u64;
        }
        Ok(false)
    }

    /// Adds a delta: durable when this returns.
    ///
    /// # Errors
    /// The disk's. Nothing of the delta stays, and it may be tried again unless the log is broken.
    pub fn append(&mut self, delta: &[u8]) -> Result<(), Error> {
        debug_assert!(!self.broken, "a broken log takes nothing more");
        let mut bytes = Vec::with_capacity(delta.len() + FRAME_HEAD_BYTES + SEAL_OVERHEAD_BYTES);
        self.frame(self.next, delta, &mut bytes)?;
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            self.broken = self.file.set_size(self.end).is_err();
            return Err(Error::io("write", &self.path, error));
        }
        if let Err(error) = self.file.sync() {
            // What the disk has of it is not known, and the next sync would not say. The next
            // process must not see it as if it were there.
            self.broken = true;
            let _ = self.file.set_size(self.end);
            return Err(Error::io("sync", &self.path, error));
        }
        self.next += 1;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Whether nothing can be added any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Its length, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Its file was renamed.
    pub fn renamed(&mut self, path: &Path) {
        self.path = path.into();
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
#[path = "changelog_power_test.rs"]
mod power_tests;
#[cfg(test)]
#[path = "changelog_test.rs"]
mod tests;
