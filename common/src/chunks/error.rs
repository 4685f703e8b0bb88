//! Why a blob operation failed.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{id::Digest, store};

/// The result of a blob operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed blob operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such blob.
    #[error("there is no blob {digest}")]
    NotFound {
        /// Its digest.
        digest: Digest,
    },
    /// A stored blob does not verify.
    #[error("blob {digest} is damaged{}; remove it and fetch it again", place(*segment))]
    Corrupt {
        /// Its digest.
        digest: Digest,
        /// The first damaged segment of 64 KiB; `None`: its header or its length.
        segment: Option<u64>,
    },
    /// The contents are not what they were announced to be. Nothing is kept.
    #[error("the contents have digest {actual}, expected {expected}")]
    HashMismatch {
        /// The announced digest.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Fewer or more bytes came than announced.
    #[error("{actual} bytes came, expected {expected}")]
    SizeMismatch {
        /// The announced size, in bytes.
        expected: u64,
        /// What came, in bytes.
        actual: u64,
    },
    /// The contents are larger than allowed. Nothing is kept.
    #[error("the contents have more than {limit} bytes, the limit here")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// A read would begin after the end.
    #[error("offset {offset} is beyond the end of blob {digest} of {size} bytes")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// Where the read would begin, in bytes.
        offset: u64,
        /// The blob's size, in bytes.
        size: u64,
    },
    /// Another transfer of the same blob is under way.
    #[error("blob {digest} is already being received")]
    Busy {
        /// The blob.
        digest: Digest,
    },
    /// The master key is not the one that wrote this store; nothing was changed.
    #[error("{} was written under another master key; give the key it was made with",
        path.display())]
    WrongKey {
        /// The store's directory.
        path: PathBuf,
    },
    /// The disk is full. Nothing of the blob is kept, except segments of a partial one.
    #[error("no space left for {}: free some space and try again", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Sealing failed: the system has no randomness.
    #[error("cannot seal a segment")]
    Seal(#[source] Box<store::Error>),
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Self::NoSpace { path: path.into() };
        }
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. } | Self::NoSpace { .. } | Self::Io { .. }
        )
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::NoSpace { .. } => io::ErrorKind::StorageFull,
            Self::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            Self::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        }
    }
}

/// For `impl Read` and `impl Write`; the typed error is inside (`io::Error::downcast`).
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

fn place(segment: Option<u64>) -> String {
    segment.map_or_else(String::new, |n| format!(" in segment {n}"))
}
