//! The output of a background run while it runs: written by the guest's thread, read from any
//! offset by log streams, and kept as a blob at the end.
//!
//! Whole segments go to a file without a name, sealed under a key that exists only in memory: a
//! crash leaves nothing to read and nothing to clean up. Memory: one segment.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hop3_common::{
    chunks::{self, BlobStore},
    store::{
        Cipher, MasterKey,
        crypt::{Purpose, SEAL_OVERHEAD_BYTES},
    },
    wire::Output as Kept,
};
use hop3_runtime::wasm::{CancelToken, Output, Wait, WriteError};
use tokio::sync::Notify;

/// Plain bytes of a segment.
const SEGMENT_BYTES: usize = 64 << 10;
const SEALED_BYTES: u64 = (SEGMENT_BYTES + SEAL_OVERHEAD_BYTES) as u64;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Why an output was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cut {
    /// It reached its limit.
    Limit,
    /// The disk failed.
    Disk(String),
}

/// See the module.
pub(super) struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    cancel: CancelToken,
    cipher: Cipher,
    kept: Mutex<Contents>,
    grown: Notify,
}

#[derive(Default)]
struct Contents {
    file: Option<File>,
    segments: u64,
    /// After the segments.
    tail: Vec<u8>,
    ended: bool,
    cut: Option<Cut>,
}

impl Contents {
    fn len(&self) -> u64 {
        self.segments * SEGMENT_BYTES as u64 + self.tail.len() as u64
    }
}

impl Spool {
    /// An output of at most `bytes_max` bytes; `cancel` ends the run that exceeds it.
    pub(super) fn new(
        dir: &Path,
        bytes_max: u64,
        cancel: CancelToken,
    ) -> Result<Self, hop3_common::store::Error> {
        let cipher = MasterKey::generate()?.cipher(Purpose::Blobs);
        let (kept, grown) = (Mutex::default(), Notify::new());
        Ok(Self {
            dir: dir.into(),
            bytes_max,
            cancel,
            cipher,
            kept,
            grown,
        })
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // A segment counts only once it is written, so the contents are whole after a panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more will be written.
    pub(super) fn end(&self) {
        self.contents().ended = true;
        self.grown.notify_waiters();
    }

    /// Why it was cut off, if it was.
    pub(super) fn cut(&self) -> Option<Cut> {
        self.contents().cut.clone()
    }

    /// Bytes at `offset`, at most a segment: empty means none yet, `None` the end.
    pub(super) fn read(&self, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let contents = self.contents();
        let (index, skip) = (
            offset / SEGMENT_BYTES as u64,
            (offset % SEGMENT_BYTES as u64) as usize,
        );
        if index < contents.segments {
            let mut sealed = vec![0; SEALED_BYTES as usize];
            let file = contents.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            file.read_exact_at(&mut sealed, index * SEALED_BYTES)?;
            drop(contents);
            let mut plain = self
                .cipher
                .open(&index.to_le_bytes(), &sealed)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            return Ok(Some(plain.split_off(skip)));
        }
        if offset >= contents.len() {
            return Ok((!contents.ended).then(Vec::new));
        }
        Ok(Some(contents.tail[skip..].to_vec()))
    }

    /// Waits until there is something to read at `offset`, or nothing more will come.
    pub(super) async fn ready(&self, offset: u64) {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            {
                let contents = self.contents();
                if contents.ended || contents.len() > offset {
                    return;
                }
            }
            grown.await;
        }
    }

    /// Stores everything as a blob; `None` if nothing was written. Blocks.
    pub(super) fn keep(&self, store: &BlobStore) -> chunks::Result<Option<Kept>> {
        let bytes = self.contents().len();
        if bytes == 0 {
            return Ok(None);
        }
        let mut writer = store.writer(None, Some(bytes), bytes)?;
        let broken = |source| chunks::Error::Io {
            action: "read back",
            path: self.dir.clone(),
            source,
        };
        while writer.size() < bytes {
            match self.read(writer.size()).map_err(broken)? {
                Some(piece) if !piece.is_empty() => writer.append(&piece)?,
                _ => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let digest = writer.commit()?;
        Ok(Some(Kept { digest, bytes }))
    }

    fn seal(&self, contents: &mut Contents) -> io::Result<()> {
        if contents.file.is_none() {
            contents.file = Some(nameless(&self.dir)?);
        }
        let index = contents.segments;
        let sealed = self
            .cipher
            .seal(&index.to_le_bytes(), &contents.tail)
            .map_err(io::Error::other)?;
        if let Some(file) = &contents.file {
            file.write_all_at(&sealed, index * SEALED_BYTES)?;
        }
        contents.segments += 1;
        contents.tail.clear();
        Ok(())
    }
}

/// A file that is gone as soon as it is closed.
fn nameless(dir: &Path) -> io::Result<File> {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("spool-{}-{n}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

impl Output for Spool {
    fn write(&self, bytes: &[u8], _wait: &Wait) -> Result<usize, WriteError> {
        let mut contents = self.contents();
        let room = self.bytes_max.saturating_sub(contents.len());
        let space = SEGMENT_BYTES - contents.tail.len();
        let n = bytes
            .len()
            .min(space)
            .min(usize::try_from(room).unwrap_or(usize::MAX));
        if n == 0 && !bytes.is_empty() {
            contents.cut = Some(Cut::Limit);
            drop(contents);
            self.cancel.cancel();
            return Err(WriteError::Closed);
        }
        contents.tail.extend_from_slice(&bytes[..n]);
        if contents.tail.len() == SEGMENT_BYTES
            && let Err(error) = self.seal(&mut contents)
        {
            let len = contents.tail.len() - n;
            contents.tail.truncate(len);
            contents.cut = Some(Cut::Disk(error.to_string()));
            drop(contents);
            self.cancel.cancel();
            return Err(WriteError::Closed);
        }
        drop(contents);
        self.grown.notify_waiters();
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write_all(spool: &Spool, mut bytes: &[u8]) -> Result<(), WriteError> {
        let wait = Wait {
            cancel: CancelToken::new(),
            deadline: None,
        };
        while !bytes.is_empty() {
            bytes = &bytes[spool.write(bytes, &wait)?..];
        }
        Ok(())
    }

    #[test]
    fn what_is_written_is_read_from_any_offset_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1 << 20, CancelToken::new()).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        write_all(&spool, &bytes).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "the file has no name"
        );
        for from in [0, 1, 65_535, 65_536, 131_072, 199_999] {
            let (mut at, mut got) = (from as u64, Vec::new());
            while let Some(piece) = spool.read(at).unwrap().filter(|piece| !piece.is_empty()) {
                at += piece.len() as u64;
                got.extend(piece);
            }
            assert!(got == bytes[from..], "from {from}");
        }
        assert_eq!(spool.read(200_000).unwrap(), Some(vec![]));
        spool.end();
        assert_eq!(spool.read(200_000).unwrap(), None);
        let blobs = BlobStore::open(dir.path(), &MasterKey::generate().unwrap()).unwrap();
        let kept = spool.keep(&blobs).unwrap().unwrap();
        assert_eq!(blobs.read(&kept.digest, kept.bytes).unwrap(), bytes);
    }

    #[test]
    fn the_limit_keeps_what_fits_and_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::new();
        let spool = Spool::new(dir.path(), 10, cancel.clone()).unwrap();
        assert!(write_all(&spool, b"0123456789").is_ok());
        assert!(!cancel.is_cancelled());
        assert!(write_all(&spool, b"x").is_err());
        assert!(cancel.is_cancelled());
        assert_eq!(spool.cut(), Some(Cut::Limit));
        assert_eq!(spool.read(0).unwrap().unwrap(), b"0123456789");
    }

    #[test]
    fn nothing_written_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 10, CancelToken::new()).unwrap();
        let blobs = BlobStore::open(dir.path(), &MasterKey::generate().unwrap()).unwrap();
        assert_eq!(spool.keep(&blobs).unwrap(), None);
    }
}
