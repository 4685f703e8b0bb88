//! The store interface: ordered keys, transactions with preconditions, revisions, watches.
//!
//! Object-safe and runtime-neutral, so that the local store, the memory store and etcd can stand
//! behind one `Arc<dyn MetaStore>`. One conformance suite holds for all of them.

use std::{collections::HashSet, fmt, future::Future, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Error, Result, Watch};

/// Longest key, in bytes: room for a table name and several ids.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes: what the index keeps well; larger data is a blob.
pub const VALUE_BYTES_MAX: usize = 32 * 1024;
/// Most operations of a transaction, and most preconditions (etcd's default too).
pub const TXN_OPS_MAX: usize = 128;
/// Most key and value bytes of a transaction: what etcd accepts with room for its framing.
pub const TXN_BYTES_MAX: usize = 1024 * 1024;
/// Most entries of a page.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// A page ends when it has this many key and value bytes (one more entry may cross it).
pub const PAGE_BYTES_MAX: usize = 512 * 1024;

/// A future in a box, for object safety.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The number of a commit: grows by one with each, never goes back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a record, 1 to [`KEY_BYTES_MAX`] bytes.
///
/// Keys stay readable on disk (in the index), because ranges need their order: put names and ids
/// in them, never secrets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// A key of these bytes.
    ///
    /// # Errors
    /// [`Error::KeyLength`] when it is empty or too long.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return Err(Error::KeyLength { len: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// One record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// The commit that wrote it last.
    pub revision: Revision,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// Only keys that begin with this (empty: all).
    pub prefix: Vec<u8>,
    /// Only keys after this one: the last key of the page before.
    pub after: Option<Key>,
    /// At most this many entries; capped at [`PAGE_ENTRIES_MAX`].
    pub limit: usize,
}

impl Range {
    /// The first page of everything under `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: prefix.into(),
            after: None,
            limit: PAGE_ENTRIES_MAX,
        }
    }

    /// The same range after `page`, if there is more.
    #[must_use]
    pub fn next(&self, page: &Page) -> Option<Self> {
        let last = page.entries.last().filter(|_| page.more)?;
        Some(Self {
            after: Some(last.key.clone()),
            ..self.clone()
        })
    }

    pub(super) fn entries_max(&self) -> usize {
        self.limit.min(PAGE_ENTRIES_MAX)
    }
}

/// A part of a range, in key order, consistent at `revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether entries follow.
    pub more: bool,
    /// The last commit that this page shows.
    pub revision: Revision,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The key has no value.
    Absent,
    /// The key has a value.
    Exists,
    /// The value was last written by this commit.
    RevisionIs(Revision),
}

impl fmt::Display for Precondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no value"),
            Self::Exists => f.write_str("a value"),
            Self::RevisionIs(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value of a key.
    Put(Key, Bytes),
    /// Removes a key; nothing happens if it is absent.
    Delete(Key),
}

impl Op {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Changes that happen all or not at all, if every precondition holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    /// What must hold.
    pub(super) preconditions: Vec<(Key, Precondition)>,
    /// What changes.
    pub(super) ops: Vec<Op>,
}

impl Txn {
    /// A transaction without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a precondition.
    pub fn require(mut self, key: Key, precondition: Precondition) -> Self {
        self.preconditions.push((key, precondition));
        self
    }

    /// Adds a change.
    pub fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Sets a value.
    pub fn put(self, key: Key, value: impl Into<Bytes>) -> Self {
        self.op(Op::Put(key, value.into()))
    }

    /// Removes a key.
    pub fn delete(self, key: Key) -> Self {
        self.op(Op::Delete(key))
    }

    /// Checks the limits on size and the uniqueness of changed keys.
    pub(super) fn check(&self) -> Result<()> {
        let counts = [
            ("operations", self.ops.len()),
            ("preconditions", self.preconditions.len()),
        ];
        for (what, actual) in counts {
            if actual > TXN_OPS_MAX {
                return Err(Error::TxnTooLarge {
                    what,
                    actual,
                    limit: TXN_OPS_MAX,
                });
            }
        }
        let mut keys = HashSet::with_capacity(self.ops.len());
        let mut bytes = 0;
        for op in &self.ops {
            if !keys.insert(op.key()) {
                return Err(Error::DuplicateKey {
                    key: op.key().clone(),
                });
            }
            bytes += op.key().as_bytes().len();
            if let Op::Put(key, value) = op {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(Error::ValueTooLarge {
                        key: key.clone(),
                        len: value.len(),
                    });
                }
                bytes += value.len();
            }
        }
        if bytes > TXN_BYTES_MAX {
            return Err(Error::TxnTooLarge {
                what: "bytes",
                actual: bytes,
                limit: TXN_BYTES_MAX,
            });
        }
        Ok(())
    }
}

/// Proof that something is on disk. Only the store can make one; an acknowledgement that promises
/// durability should ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    pub(super) fn mint(value: T) -> Self {
        Self(value)
    }

    /// What is durable.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Gives up the proof.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// A store of records.
pub trait MetaStore: fmt::Debug + Send + Sync + 'static {
    /// Reads one record.
    fn get(&self, key: &Key) -> BoxFuture<'_, Result<Option<Entry>>>;

    /// Lists records in key order.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page>>;

    /// Makes all changes, or none if a precondition fails ([`Error::Conflict`]).
    ///
    /// Answers the commit's revision once it is durable. A transaction that changes nothing (no
    /// operations, or only deletions of absent keys) answers the revision at which it was judged.
    /// Dropping the future does not undo a commit that was already handed over.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Durable<Revision>>>;

    /// Follows every commit after [`Watch::start`] that changes keys under `prefix`.
    ///
    /// To mirror a range: watch first, then list, then apply events newer than what was listed.
    ///
    /// # Errors
    /// When the store is closed.
    fn watch(&self, prefix: &[u8]) -> Result<Watch>;
}
