//! All live records as one stream, and back: for backups and for moving to another kind of store.
//!
//! ```text
//! header   magic 8
//! record   length 4 · kind 1 (put, delete) · key length 2 · key · value
//! trailer  length 0, 4 · number of records 8 · BLAKE3 of everything before 32
//! ```
//!
//! An export is the store at one revision, though commits go on meanwhile: pages of records come
//! first, then every change that was made since the first page, so that applying all in order
//! gives the end. Import reads its input twice: it is verified as a whole before anything is
//! written. Memory: a page, and one transaction. Numbers are little-endian.
//!
//! **Values are in the clear** (the other store has another key): who writes an export to a disk
//! or a network encrypts the stream. Revisions are not kept; they belong to a store.

mod import;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{Change, Key, MetaStore, Range, Revision, Watch, WatchError};
pub use import::import;

const MAGIC: [u8; 8] = *b"HOP3EXP\x01";
const PUT: u8 = 1;
const DELETE: u8 = 2;
/// Kind and key length.
const RECORD_HEAD_BYTES: usize = 3;
/// Under this key an import that was begun has its hash. It is no record: export leaves it out.
const UNFINISHED_KEY: &[u8] = b"~import";

/// A failed export or import.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] super::Error),
    /// The stream failed.
    #[error("cannot {action} the export")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// More was committed during the export than could be followed; it may be tried again.
    #[error("the store changed faster than it could be exported")]
    Watch(#[from] WatchError),
    /// The input is no export, was altered or is not whole. Nothing was imported.
    #[error("the export is damaged at byte {offset}: {what}; nothing was imported")]
    Damaged {
        /// Where, in bytes.
        offset: u64,
        /// How.
        what: &'static str,
    },
    /// The input was altered while it was imported. The store is not whole; begin with an empty
    /// one.
    #[error("the export was altered while it was imported: begin with an empty store")]
    Altered,
    /// The store has records already.
    #[error("the store is not empty: import into a new one")]
    NotEmpty,
}

impl Error {
    fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// What was exported or imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Records and later changes of them in the stream.
    pub records: u64,
    /// The revision of the store that the stream shows (import: that it led to).
    pub revision: Revision,
    /// The stream's hash, as in its trailer.
    pub hash: [u8; 32],
}

struct Writer<'a, W> {
    out: &'a mut W,
    hasher: blake3::Hasher,
    records: u64,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        let written = self.out.write_all(bytes).await;
        written.map_err(Error::io("write"))
    }

    async fn record(&mut self, kind: u8, key: &Key, value: &[u8]) -> Result<(), Error> {
        let key = key.as_bytes();
        if key == UNFINISHED_KEY {
            return Ok(());
        }
        let len = RECORD_HEAD_BYTES + key.len() + value.len();
        let mut bytes = Vec::with_capacity(4 + len);
        let len = u32::try_from(len).expect("limits on keys and values");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.push(kind);
        let key_len = u16::try_from(key.len()).expect("KEY_BYTES_MAX fits 16 bits");
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        self.records += 1;
        self.write(&bytes).await
    }

    async fn change(&mut self, key: &Key, change: &Change) -> Result<(), Error> {
        match change {
            Change::Put(value) => self.record(PUT, key, value).await,
            Change::Delete => self.record(DELETE, key, &[]).await,
        }
    }
}

/// Writes all records of `store`, as of one revision, and flushes `out`.
///
/// # Errors
/// [`Error::Store`], [`Error::Io`], [`Error::Watch`]; what was written is then no export: it has
/// no trailer.
pub async fn export<W: AsyncWrite + Unpin>(
    store: &dyn MetaStore,
    out: &mut W,
) -> Result<Summary, Error> {
    let mut writer = Writer {
        out,
        hasher: blake3::Hasher::new(),
        records: 0,
    };
    writer.write(&MAGIC).await?;
    let mut watch = store.watch(b"")?;
    let mut shown = watch.start();
    let mut told = watch.start();
    let mut range = Some(Range::prefix(Bytes::new()));
    while let Some(now) = range {
        let page = store.range(now.clone()).await?;
        for entry in &page.entries {
            writer.record(PUT, &entry.key, &entry.value).await?;
        }
        shown = shown.max(page.revision);
        // As it goes, so that the watch does not lag.
        while let Some(event) = watch.try_next()? {
            writer.change(&event.key, &event.change).await?;
            told = told.max(event.revision);
        }
        range = now.next(&page);
    }
    let revision = catch_up(store, &mut writer, &mut watch, shown, told).await?;
    writer.write(&0_u32.to_le_bytes()).await?;
    writer.write(&writer.records.to_le_bytes()).await?;
    let hash = *writer.hasher.finalize().as_bytes();
    let (records, out) = (writer.records, writer.out);
    out.write_all(&hash).await.map_err(Error::io("write"))?;
    out.flush().await.map_err(Error::io("flush"))?;
    Ok(Summary {
        records,
        revision,
        hash,
    })
}

/// Writes the changes up to a revision, whole, that no page is ahead of.
async fn catch_up<W: AsyncWrite + Unpin>(
    store: &dyn MetaStore,
    writer: &mut Writer<'_, W>,
    watch: &mut Watch,
    shown: Revision,
    mut told: Revision,
) -> Result<Revision, Error> {
    while told < shown {
        let event = watch.next().await?;
        writer.change(&event.key, &event.change).await?;
        told = told.max(event.revision);
    }
    // A watch never begins within a commit: up to here all events are in the queue.
    let end = store.watch(b"")?.start().max(told);
    while let Some(event) = watch.try_next()? {
        if event.revision > end {
            break;
        }
        writer.change(&event.key, &event.change).await?;
    }
    Ok(end)
}
