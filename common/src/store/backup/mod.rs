//! A data directory as one sealed file, and back: what an operator keeps elsewhere.
//!
//! ```text
//! sealed frames of: owner · master key 32
//!                   records: [length 4 · part of an export]… 0
//!                   files:   [1 · name length 2 · name · mode 4 · length 8 · bytes]… 0
//! ```
//!
//! In it are the master key, the store's records as [`super::export`] writes them, and every other
//! file of the directory as it is (blobs are sealed under the master key). The whole is sealed
//! under a backup key, a file of 32 bytes that is to be kept apart from it. Numbers are
//! little-endian.
//!
//! Invariants: the directory is locked while it is written; a restore reads the whole backup once
//! before it makes anything, works in a new directory beside the target and renames it at the end:
//! the target is whole or untouched.
//!
//! Limits: names up to [`NAME_BYTES_MAX`]; records pass through memory a frame at a time, and are
//! read twice. Not included: the store's own files, temporary ones, whatever is no plain file.

mod files;
mod frames;
mod records;
mod restore;

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

pub use restore::restore;

use super::{LocalStore, MasterKey, Options, export, local};
use frames::Sealer;

/// Longest name of a file in a backup, in bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// The directory of the records.
const STORE: &str = "store";

/// Whose directory it is: one does not restore as the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A coordinator.
    Coordinator,
}

impl Owner {
    fn code(self) -> u8 {
        match self {
            Self::Coordinator => 1,
        }
    }
}

/// Why a backup was not made or not restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to back up.
    #[error("{} holds no store: give the data directory of a coordinator that has run once",
        path.display())]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// The target is in use.
    #[error("{} is not empty: restore into a directory that is empty or not there", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// Not a whole, unaltered backup.
    #[error("the backup cannot be used: {0}; nothing was restored")]
    Damaged(&'static str),
    /// Sealed under another key, or altered at its beginning.
    #[error(
        "the backup does not open with this backup key: give the one it was made with (or its \
         beginning is damaged); nothing was restored"
    )]
    WrongKey,
    /// A name that cannot be kept.
    #[error("{} has a name that a backup cannot keep: rename or remove it", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The store, or a key file.
    #[error(transparent)]
    Store(#[from] super::Error),
    /// The records.
    #[error(transparent)]
    Records(#[from] export::Error),
    /// The system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        |source| Self::Io { action, source }
    }

    /// What went wrong in reading a sealed stream.
    fn from_read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Damaged("it was altered or cut off"),
            io::ErrorKind::UnexpectedEof => Self::Damaged("it ends too early"),
            _ => Self::io("read the backup")(error),
        }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Records and later changes of them.
    pub records: u64,
    /// Other files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes the data directory `dir` to `out`, sealed under `seal`. `key_file` has its master key.
/// Blocks.
///
/// # Errors
/// [`super::Error::InUse`] while a process runs on it; the rest of [`Error`]. What was written is
/// no backup then.
pub fn write<W: Write>(
    owner: Owner,
    dir: &Path,
    key_file: &Path,
    seal: &MasterKey,
    out: W,
) -> Result<(Summary, W), Error> {
    let store_dir = dir.join(STORE);
    if !store_dir.is_dir() {
        return Err(Error::Absent { path: dir.into() });
    }
    let key = MasterKey::from_file(key_file)?;
    // Open to the end: no other process may change the files meanwhile.
    let (store, _) = LocalStore::open(&store_dir, &key, Options::default())?;
    let mut sealer = Sealer::new(out, seal)?;
    let wrote = Error::io("write the backup");
    let head = sealer.write_all(&[owner.code()]);
    head.and_then(|()| sealer.write_all(key.expose()))
        .map_err(wrote)?;
    let mut parts = records::Parts::new(&mut sealer);
    let exported = local::block_on(export::export(&store, &mut parts))?;
    parts.finish().map_err(Error::io("write the backup"))?;
    let (files, bytes) = files::write(dir, key_file, &mut sealer)?;
    let out = sealer.finish().map_err(Error::io("write the backup"))?;
    let records = exported.records;
    let summary = Summary {
        records,
        files,
        bytes,
    };
    Ok((summary, out))
}

/// Makes `path` appear with what `write` writes, whole or not at all; it must not be there yet.
///
/// # Errors
/// [`Error::Io`], or what `write` says.
pub fn to_file<T>(
    path: &Path,
    write: impl FnOnce(io::BufWriter<fs::File>) -> Result<(T, io::BufWriter<fs::File>), Error>,
) -> Result<T, Error> {
    let failed = || format!("write {}", path.display());
    let temp = path.with_extension(format!("{}.tmp", std::process::id()));
    let made = files::create(&temp, 0o600).map_err(Error::io(failed()))?;
    let written = write(io::BufWriter::new(made)).and_then(|(told, out)| {
        let file = out.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all())
            // Unlike a rename this does not replace what is there.
            .and_then(|()| fs::hard_link(&temp, path))
            .and_then(|()| super::disk::sync_dir(super::disk::parent(path)))
            .map_err(Error::io(failed()))?;
        Ok(told)
    });
    let _ = fs::remove_file(&temp);
    written
}

#[cfg(test)]
#[path = "../backup_test.rs"]
mod tests;
