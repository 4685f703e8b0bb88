//! Writing a new blob from a stream.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BlobStore, Error, Result,
    segment::{Header, SegmentWriter},
};
use crate::{
    id::Digest,
    store::disk::{Disk, DiskFile},
};

impl BlobStore {
    /// Begins a blob of at most `limit` bytes. What is known of it is checked at
    /// [`BlobWriter::commit`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] if `expected_size` exceeds the limit; [`Error::Io`].
    pub fn writer(
        &self,
        expected: Option<Digest>,
        expected_size: Option<u64>,
        limit: u64,
    ) -> Result<BlobWriter> {
        if expected_size.is_some_and(|size| size > limit) {
            return Err(Error::TooLarge { limit });
        }
        let mut file_id = [0; 32];
        getrandom::fill(&mut file_id)
            .map_err(|e| Error::Seal(Box::new(crate::store::Error::Random(e))))?;
        let name = data_encoding::HEXLOWER.encode(&file_id[..16]);
        let path = self.temp_dir().join(name);
        let create = self.disk().create(&path);
        let file = create.map_err(|e| Error::io("create", &path, e))?;
        let temp = TempFile(path, self.disk().clone());
        lock_file(&*file, &temp.0)?;
        let segments = SegmentWriter::new(self.keys().clone(), file_id);
        Ok(BlobWriter {
            store: self.clone(),
            file,
            temp,
            segments,
            expected,
            expected_size,
            limit,
        })
    }

    /// Stores `bytes` and answers their digest.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.size(&digest).is_ok() && self.touch(&digest)? {
            return Ok(digest);
        }
        let size = bytes.len() as u64;
        let mut writer = self.writer(Some(digest), Some(size), size)?;
        writer.append(bytes)?;
        writer.commit()
    }
}

/// A blob under way. Dropped without [`BlobWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: BlobStore,
    file: Box<dyn DiskFile>,
    temp: TempFile,
    segments: SegmentWriter,
    expected: Option<Digest>,
    expected_size: Option<u64>,
    limit: u64,
}

impl BlobWriter {
    /// Adds contents.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Io`]; the blob is then lost.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.limit - self.segments.size() {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.segments.write(&mut *self.file, &self.temp.0, bytes)
    }

    /// Contents so far, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.segments.size()
    }

    /// Checks size and digest, makes the blob durable under its name, and answers its digest.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`], [`Error::HashMismatch`], [`Error::NoSpace`], [`Error::Io`]; nothing
    /// is left then.
    pub fn commit(mut self) -> Result<Digest> {
        let size = self.segments.size();
        if let Some(expected) = self.expected_size.filter(|expected| *expected != size) {
            return Err(Error::SizeMismatch {
                expected,
                actual: size,
            });
        }
        let digest = self.segments.digest();
        if let Some(expected) = self.expected.filter(|expected| *expected != digest) {
            return Err(Error::HashMismatch {
                expected,
                actual: digest,
            });
        }
        let path = &self.temp.0;
        self.segments.seal(&mut *self.file, path, true)?;
        let header = Header {
            file_id: self.segments.file_id(),
            size,
            digest,
        };
        self.file
            .write_all_at(&self.store.keys().encode_header(&header), 0)
            .map_err(|e| Error::io("write", path, e))?;
        self.store.install(&mut *self.file, path, &digest)?;
        Ok(digest)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes its file when dropped; after a rename there is none.
#[derive(Debug)]
struct TempFile(PathBuf, Arc<dyn Disk>);

impl Drop for TempFile {
    fn drop(&mut self) {
        // What cannot be removed now is collected later.
        let _ = self.1.remove(&self.0);
    }
}

/// Marks a file as in use; collection leaves it alone. `false`: someone else has it.
pub(super) fn lock_file(file: &dyn DiskFile, path: &Path) -> Result<bool> {
    file.try_lock().map_err(|e| Error::io("lock", path, e))
}
