//! Why a store operation failed: what happened, where, and what to do.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Key, Precondition, RecordError, Revision};

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed store operation. Cloneable, because one failed write fails a whole group of commits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation; nothing of the commit is kept.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk is full; nothing of the commit is kept, and the store works again when space
    /// returns.
    #[error("no space left for {}: free some space and try again", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The flush of this commit failed: whether it is kept is known when the store works again.
    #[error(
        "a flush to disk failed ({reason}), the outcome is unknown; the store recovers by itself \
         when the disk works again"
    )]
    SyncFailed {
        /// What failed.
        reason: Arc<str>,
    },
    /// An earlier failure made the store refuse writes; each commit tries to mend it first.
    #[error(
        "the store refuses writes since an earlier failure ({reason}), and could not be mended \
         yet: mend the disk and try again"
    )]
    Poisoned {
        /// What failed then.
        reason: Arc<str>,
    },
    /// A precondition of a transaction does not hold; nothing was changed.
    #[error("conflict on key `{key}`: expected {expected}, found {}", found(*actual))]
    Conflict {
        /// The key whose precondition failed.
        key: Key,
        /// What the transaction required.
        expected: Precondition,
        /// The revision that the key has.
        actual: Option<Revision>,
    },
    /// A key is empty or too long.
    #[error(
        "a key must have 1 to {} bytes, this one has {len}",
        super::KEY_BYTES_MAX
    )]
    KeyLength {
        /// Its length in bytes.
        len: usize,
    },
    /// A value is too large for a record store.
    #[error(
        "the value of `{key}` has {len} bytes, the limit is {}: store it as a blob",
        super::VALUE_BYTES_MAX
    )]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// The value's length in bytes.
        len: usize,
    },
    /// A value is too large for the file that holds it.
    #[error("{len} bytes are too many for {}, the limit is {limit}", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The value's length in bytes.
        len: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A transaction has too many operations or bytes.
    #[error("a transaction is too large: {what} is {actual}, the limit is {limit}")]
    TxnTooLarge {
        /// What is counted.
        what: &'static str,
        /// How much it is.
        actual: usize,
        /// How much is allowed.
        limit: usize,
    },
    /// A transaction changes one key twice.
    #[error("a transaction changes key `{key}` twice")]
    DuplicateKey {
        /// The key.
        key: Key,
    },
    /// Another process has the store open.
    #[error("{} is already in use by another process; stop it first", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// The master key is not the one that wrote this store; nothing was changed.
    #[error("{} was written under another master key; give the key it was made with",
        path.display())]
    WrongKey {
        /// The file that does not verify.
        path: PathBuf,
    },
    /// The key file cannot be used.
    #[error("cannot use key file {}: {reason}", path.display())]
    KeyFile {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        reason: String,
    },
    /// Data that was acknowledged is damaged. Nothing was changed.
    #[error("{} is damaged at byte {offset}: {affected}; restore it from a backup",
        path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where the damage begins, in bytes.
        offset: u64,
        /// What is affected.
        affected: String,
    },
    /// The index failed. The journal is intact: the next commit or open rebuilds the index.
    #[error("the index failed while it had to {action} ({reason}); it is rebuilt from the journal")]
    Index {
        /// What it was doing.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// A typed record cannot be written or read.
    #[error("record `{key}` is unusable")]
    Record {
        /// Its key.
        key: Key,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// A key of a table is not text.
    #[error("key `{key}` does not belong to a table")]
    NotATableKey {
        /// The key.
        key: Key,
    },
    /// The system's random source failed.
    #[error("the system's random source failed: {0}")]
    Random(getrandom::Error),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Self::NoSpace { path: path.into() };
        }
        Self::Io {
            action,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    pub(super) fn index(action: &'static str, source: &sled::Error) -> Self {
        Self::Index {
            action,
            reason: source.to_string(),
        }
    }

    /// Whether the same call may succeed later without a restart.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. } | Self::Io { .. } | Self::Conflict { .. } | Self::Poisoned { .. }
        )
    }

    /// Whether this is a failed precondition.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

fn found(actual: Option<Revision>) -> String {
    actual.map_or_else(|| "no value".into(), |r| format!("revision {r}"))
}
