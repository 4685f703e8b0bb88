//! The way back: verified as a whole, then written.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};

use super::{DELETE, Error, MAGIC, PUT, RECORD_HEAD_BYTES, Summary, UNFINISHED_KEY};
use crate::store::{
    KEY_BYTES_MAX, Key, MetaStore, Op, Range, Revision, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX,
};

/// A transaction is committed at this size, in bytes: one more record fits its limit.
const TXN_BYTES: usize = 512 * 1024;

struct Reader<'a, R> {
    input: &'a mut R,
    hasher: blake3::Hasher,
    offset: u64,
    records: u64,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    fn damaged(&self, what: &'static str) -> Error {
        let offset = self.offset;
        Error::Damaged { offset, what }
    }

    async fn read(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        match self.input.read_exact(&mut bytes).await {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it ends too early"))
            }
            other => {
                other.map_err(Error::io("read"))?;
                self.offset += len as u64;
                Ok(bytes)
            }
        }
    }

    /// Reads bytes that the hash covers.
    async fn hashed(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.read(len).await?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    async fn begin(&mut self) -> Result<(), Error> {
        let magic = self.hashed(MAGIC.len()).await?;
        if magic == MAGIC {
            return Ok(());
        }
        self.offset = 0;
        Err(self.damaged(if magic[..7] == MAGIC[..7] {
            "it is of a newer version"
        } else {
            "it is no export"
        }))
    }

    /// The next record; `None` at the trailer.
    async fn record(&mut self) -> Result<Option<Op>, Error> {
        let len = self.hashed(4).await?;
        let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
        if len == 0 {
            return Ok(None);
        }
        if !(RECORD_HEAD_BYTES..=RECORD_HEAD_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX).contains(&len)
        {
            return Err(self.damaged("a record has an impossible length"));
        }
        let bytes = Bytes::from(self.hashed(len).await?);
        let (kind, key_len) = (bytes[0], u16::from_le_bytes([bytes[1], bytes[2]]));
        let value_at = RECORD_HEAD_BYTES + usize::from(key_len);
        if value_at > len {
            return Err(self.damaged("a key is longer than its record"));
        }
        let key = Key::new(bytes.slice(RECORD_HEAD_BYTES..value_at));
        let key = key.map_err(|_| self.damaged("a key has an impossible length"))?;
        let value = bytes.slice(value_at..);
        self.records += 1;
        match kind {
            PUT if value.len() <= VALUE_BYTES_MAX => Ok(Some(Op::Put(key, value))),
            DELETE if value.is_empty() => Ok(Some(Op::Delete(key))),
            _ => Err(self.damaged("a record is of an unknown kind")),
        }
    }

    /// Checks the trailer and that nothing follows; gives the hash.
    async fn end(mut self) -> Result<[u8; 32], Error> {
        let count = self.hashed(8).await?;
        if count != self.records.to_le_bytes() {
            return Err(self.damaged("its number of records is another"));
        }
        let hash = *self.hasher.finalize().as_bytes();
        if self.read(hash.len()).await? != hash {
            return Err(self.damaged("its hash is another"));
        }
        let mut more = [0];
        match self
            .input
            .read(&mut more)
            .await
            .map_err(Error::io("read"))?
        {
            0 => Ok(hash),
            _ => Err(self.damaged("bytes follow its end")),
        }
    }
}

fn reader<R>(input: &mut R) -> Reader<'_, R> {
    Reader {
        input,
        hasher: blake3::Hasher::new(),
        offset: 0,
        records: 0,
    }
}

/// Writes what [`super::export`] wrote into an empty store. An import that was interrupted may be
/// done again with the same input.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::NotEmpty`] change nothing; [`Error::Store`], [`Error::Io`],
/// [`Error::Altered`].
pub async fn import<R: AsyncRead + AsyncSeek + Unpin>(
    store: &dyn MetaStore,
    input: &mut R,
) -> Result<Summary, Error> {
    let start = input.stream_position().await.map_err(Error::io("read"))?;
    let (hash, records) = verify(input).await?;
    let mark = Key::new(UNFINISHED_KEY)?;
    demand_empty(store, &mark, &hash).await?;
    let again = std::io::SeekFrom::Start(start);
    input.seek(again).await.map_err(Error::io("read"))?;
    let first = Txn::new().put(mark.clone(), hash.to_vec());
    let _ = store.commit(first).await?;
    let mut reader = reader(input);
    reader.begin().await.map_err(altered)?;
    let mut txn = Vec::new();
    let mut bytes = 0;
    while let Some(op) = reader.record().await.map_err(altered)? {
        let known = txn.iter().any(|old: &Op| old.key() == op.key());
        if known || txn.len() == TXN_OPS_MAX || bytes >= TXN_BYTES {
            commit(store, std::mem::take(&mut txn)).await?;
            bytes = 0;
        }
        if let Op::Put(_, value) = &op {
            bytes += value.len();
        }
        bytes += op.key().as_bytes().len();
        txn.push(op);
    }
    if reader.end().await.map_err(altered)? != hash {
        return Err(Error::Altered);
    }
    commit(store, txn).await?;
    let last = store.commit(Txn::new().delete(mark)).await?;
    Ok(Summary {
        records,
        revision: last.into_inner(),
        hash,
    })
}

/// Reads everything once; gives its hash and the number of records.
async fn verify<R: AsyncRead + Unpin>(input: &mut R) -> Result<([u8; 32], u64), Error> {
    let mut reader = reader(input);
    reader.begin().await?;
    while reader.record().await?.is_some() {}
    let records = reader.records;
    Ok((reader.end().await?, records))
}

/// Nothing is there, or what an interrupted import of the same input left.
async fn demand_empty(store: &dyn MetaStore, mark: &Key, hash: &[u8]) -> Result<(), Error> {
    let begun = store.get(mark).await?;
    if begun.is_some_and(|entry| entry.value == hash) {
        return Ok(());
    }
    let any = Range {
        limit: 1,
        ..Range::prefix("")
    };
    let page = store.range(any).await?;
    if page.entries.is_empty() {
        Ok(())
    } else {
        Err(Error::NotEmpty)
    }
}

async fn commit(store: &dyn MetaStore, ops: Vec<Op>) -> Result<Revision, Error> {
    let txn = ops.into_iter().fold(Txn::new(), Txn::op);
    Ok(store.commit(txn).await?.into_inner())
}

/// What verified a moment ago and does not now.
fn altered(error: Error) -> Error {
    match error {
        Error::Damaged { .. } => Error::Altered,
        other => other,
    }
}
