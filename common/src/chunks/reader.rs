//! Reading a blob from any offset, one verified segment at a time.

use std::io::{self, Read};

use super::{
    Error,
    segment::{BlobKeys, Header, SEGMENT_BYTES, sealed_bytes, segment_offset},
};
use crate::{id::Digest, store::disk::DiskFile};

/// The contents of a blob, as [`Read`].
#[derive(Debug)]
pub struct BlobReader {
    file: Box<dyn DiskFile>,
    keys: BlobKeys,
    header: Header,
    /// Where the next byte comes from, in the contents.
    at: u64,
    /// The opened segment, and which one it is.
    segment: Option<(u64, Vec<u8>)>,
    sealed: Vec<u8>,
}

impl BlobReader {
    pub(super) fn new(
        file: Box<dyn DiskFile>,
        keys: BlobKeys,
        header: Header,
        offset: u64,
    ) -> Self {
        Self {
            file,
            keys,
            header,
            at: offset,
            segment: None,
            sealed: Vec::new(),
        }
    }

    /// The blob's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.header.digest
    }

    /// The size of the blob's contents, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// How much is left to read, in bytes.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.header.size - self.at
    }

    fn load(&mut self, index: u64) -> io::Result<&[u8]> {
        if self
            .segment
            .as_ref()
            .is_none_or(|(loaded, _)| *loaded != index)
        {
            self.sealed.resize(sealed_bytes(self.header.size, index), 0);
            self.file
                .read_exact_at(&mut self.sealed, segment_offset(index))?;
            let plain = self
                .keys
                .open(&self.header, index, &self.sealed)
                .map_err(|_| Error::Corrupt {
                    digest: self.header.digest,
                    segment: Some(index),
                })?;
            self.segment = Some((index, plain));
        }
        Ok(self.segment.as_ref().map_or(&[], |(_, plain)| plain))
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.at == self.header.size {
            return Ok(0);
        }
        let (index, skip) = (
            self.at / SEGMENT_BYTES as u64,
            (self.at % SEGMENT_BYTES as u64) as usize,
        );
        let plain = &self.load(index)?[skip..];
        let len = plain.len().min(out.len());
        out[..len].copy_from_slice(&plain[..len]);
        self.at += len as u64;
        Ok(len)
    }
}
