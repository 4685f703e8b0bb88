//! A blob that is received in pieces, over restarts.
//!
//! Its file holds the header (digest and size are known from the start) and whole segments. After
//! a restart every segment is verified and hashed again, the first bad one and what follows is
//! dropped, and the transfer goes on from there. Cost of a resume: one read of what is there.

use std::path::{Path, PathBuf};

use super::{
    BlobStore, Error, Result,
    segment::{Header, SegmentWriter, file_bytes, sealed_bytes, segment_offset, segments},
    store::read_header,
    writer::lock_file,
};
use crate::{id::Digest, store::disk::DiskFile};

impl BlobStore {
    /// Begins or goes on with receiving a blob of `total_size` bytes.
    ///
    /// # Errors
    /// [`Error::Busy`] while another transfer of it is under way; [`Error::TooLarge`] for a size
    /// that no file can have; [`Error::Io`].
    pub fn resume(&self, digest: &Digest, total_size: u64) -> Result<PartialBlob> {
        if file_bytes(total_size).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return Err(Error::TooLarge {
                limit: i64::MAX as u64,
            });
        }
        let path = self.partial_path(digest);
        let open = self.disk().open_or_create(&path);
        let mut file = open.map_err(|e| Error::io("open", &path, e))?;
        // The lock is taken before anything is read; a file that was committed or collected in
        // between has lost its name.
        if !lock_file(&*file, &path)? || !file.is_at(&path) {
            return Err(Error::Busy { digest: *digest });
        }
        let fail = |e| Error::io("read", &path, e);
        let len = file.size().map_err(fail)?;
        let found = read_header(&*file, self.keys(), len).map_err(fail)?;
        let header = match found {
            Some(header) if header.digest == *digest && header.size == total_size => header,
            _ => self.begin(&mut *file, &path, digest, total_size)?,
        };
        let mut partial = PartialBlob {
            store: self.clone(),
            segments: SegmentWriter::new(self.keys().clone(), header.file_id),
            file,
            path,
            header,
        };
        partial.adopt_segments()?;
        Ok(partial)
    }

    fn begin(
        &self,
        file: &mut dyn DiskFile,
        path: &Path,
        digest: &Digest,
        size: u64,
    ) -> Result<Header> {
        let mut header = Header {
            file_id: [0; 32],
            size,
            digest: *digest,
        };
        getrandom::fill(&mut header.file_id)
            .map_err(|e| Error::Seal(Box::new(crate::store::Error::Random(e))))?;
        file.set_size(0)
            .and_then(|()| file.write_all_at(&self.keys().encode_header(&header), 0))
            .map_err(|e| Error::io("write", path, e))?;
        Ok(header)
    }
}

/// A blob under way that survives restarts.
#[derive(Debug)]
pub struct PartialBlob {
    store: BlobStore,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    header: Header,
    segments: SegmentWriter,
}

impl PartialBlob {
    /// Where to go on, in bytes. After a restart it is a multiple of a segment, or the end.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.segments.size()
    }

    /// The announced size, in bytes.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.header.size
    }

    /// Adds contents at [`PartialBlob::offset`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the announced size; [`Error::NoSpace`], [`Error::Io`]: what was
    /// sealed before stays.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.header.size - self.offset() {
            return Err(Error::TooLarge {
                limit: self.header.size,
            });
        }
        self.segments.write(&mut *self.file, &self.path, bytes)?;
        // The size is known, so a full segment need not wait.
        if self.segments.full() || self.complete() {
            self.seal_rest()?;
        }
        Ok(())
    }

    /// Whether all contents are here.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.offset() == self.header.size
    }

    /// Checks the digest and makes the blob durable under its name.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] if contents are missing: they may still come after another
    /// [`BlobStore::resume`]. [`Error::HashMismatch`], and a failed flush: everything received is
    /// dropped.
    pub fn commit(mut self) -> Result<Digest> {
        if !self.complete() {
            return Err(Error::SizeMismatch {
                expected: self.header.size,
                actual: self.offset(),
            });
        }
        let (expected, actual) = (self.header.digest, self.segments.digest());
        if expected != actual {
            self.remove()?;
            return Err(Error::HashMismatch { expected, actual });
        }
        self.seal_rest()?;
        let installed = self.store.install(&mut *self.file, &self.path, &expected);
        if installed.is_err() {
            // A resumed transfer would read what the disk perhaps never gets, and trust it.
            let _ = self.remove();
        }
        installed.map(|()| expected)
    }

    /// Gives the transfer up and drops what was received.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(self) -> Result<()> {
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        let removed = self.store.disk().remove(&self.path);
        removed.map_err(|e| Error::io("remove", &self.path, e))
    }

    fn seal_rest(&mut self) -> Result<()> {
        let index = self.segments.index();
        if index < segments(self.header.size) {
            let last = self.complete();
            self.segments.seal(&mut *self.file, &self.path, last)?;
        }
        Ok(())
    }

    /// Takes in the good segments of the file and cuts off the rest.
    fn adopt_segments(&mut self) -> Result<()> {
        let fail = |e| Error::io("read", &self.path, e);
        let len = self.file.size().map_err(fail)?;
        let mut good = segment_offset(0);
        let mut sealed = Vec::new();
        for index in 0..segments(self.header.size) {
            sealed.resize(sealed_bytes(self.header.size, index), 0);
            let end = segment_offset(index) + sealed.len() as u64;
            if end > len {
                break;
            }
            self.file
                .read_exact_at(&mut sealed, segment_offset(index))
                .map_err(fail)?;
            let Ok(plain) = self.store.keys().open(&self.header, index, &sealed) else {
                break;
            };
            self.segments.adopt(&plain);
            good = end;
        }
        if good != len {
            self.file
                .set_size(good)
                .map_err(|e| Error::io("cut", &self.path, e))?;
        }
        Ok(())
    }
}
