//! The file form of a blob, and the writing of it.
//!
//! ```text
//! header   magic 8 · file id 32 · size 8 · digest 32 · MAC 16
//! segment  sealed text of 64 KiB (the last one: the rest, at least one segment)
//! ```
//!
//! Each segment has its own random nonce; its context is the file id, its index, and whether it is
//! the last one. So segments cannot be moved, exchanged between files, dropped or appended. The
//! header's MAC ties the file id to digest and size. Numbers are little-endian.

use std::path::Path;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Error, Result};
use crate::{
    id::Digest,
    store::{
        Cipher, MasterKey,
        crypt::{Forged, Purpose, SEAL_OVERHEAD_BYTES},
        disk::DiskFile,
    },
};

/// Contents of a segment, in bytes; what a reader or writer holds in memory.
pub const SEGMENT_BYTES: usize = 64 * 1024;
/// Length of the header.
pub(super) const HEADER_BYTES: usize = 96;

const MAGIC: [u8; 8] = *b"HOP3BLB\x01";
const SEALED_BYTES: u64 = (SEGMENT_BYTES + SEAL_OVERHEAD_BYTES) as u64;

/// Keys of a blob store.
#[derive(Debug, Clone)]
pub(super) struct BlobKeys {
    segments: Cipher,
    header: Zeroizing<[u8; 32]>,
}

/// The head of a blob file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) file_id: [u8; 32],
    pub(super) size: u64,
    pub(super) digest: Digest,
}

impl BlobKeys {
    pub(super) fn new(master: &MasterKey) -> Self {
        Self {
            segments: master.cipher(Purpose::Blobs),
            header: master.subkey(Purpose::BlobHeader),
        }
    }

    pub(super) fn encode_header(&self, header: &Header) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..40].copy_from_slice(&header.file_id);
        out[40..48].copy_from_slice(&header.size.to_le_bytes());
        out[48..80].copy_from_slice(&header.digest.0);
        let mac = blake3::keyed_hash(&self.header, &out[..80]);
        out[80..].copy_from_slice(&mac.as_bytes()[..16]);
        out
    }

    /// Reads and verifies a header; `None` if it is not authentic.
    pub(super) fn decode_header(&self, bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let mut header = Header {
            file_id: [0; 32],
            size: 0,
            digest: Digest([0; 32]),
        };
        header.file_id.copy_from_slice(&bytes[8..40]);
        header.size = u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"));
        header.digest.0.copy_from_slice(&bytes[48..80]);
        let authentic = self.encode_header(&header) == *bytes;
        authentic.then_some(header)
    }

    /// Opens segment `index` of the file that `header` heads.
    pub(super) fn open(
        &self,
        header: &Header,
        index: u64,
        sealed: &[u8],
    ) -> std::result::Result<Vec<u8>, Forged> {
        let last = index + 1 == segments(header.size);
        self.segments
            .open(&context(&header.file_id, index, last), sealed)
    }

    /// A text by which a wrong key is noticed.
    pub(super) fn key_check(&self) -> [u8; 32] {
        *blake3::keyed_hash(&self.header, b"hop3 blob store key check").as_bytes()
    }
}

/// The number of segments of a blob: an empty one has one too.
pub(super) fn segments(size: u64) -> u64 {
    size.div_ceil(SEGMENT_BYTES as u64).max(1)
}

/// The length of the file of a blob; `None` for sizes that no file can have.
pub(super) fn file_bytes(size: u64) -> Option<u64> {
    let overhead = segments(size).checked_mul(SEAL_OVERHEAD_BYTES as u64)?;
    size.checked_add(overhead)?.checked_add(HEADER_BYTES as u64)
}

/// Where segment `index` begins in the file.
pub(super) fn segment_offset(index: u64) -> u64 {
    HEADER_BYTES as u64 + index * SEALED_BYTES
}

/// The sealed length of segment `index` of a blob.
pub(super) fn sealed_bytes(size: u64, index: u64) -> usize {
    let plain = (size - index * SEGMENT_BYTES as u64).min(SEGMENT_BYTES as u64);
    usize::try_from(plain).expect("a segment fits memory") + SEAL_OVERHEAD_BYTES
}

fn context(file_id: &[u8; 32], index: u64, last: bool) -> [u8; 41] {
    let mut context = [0; 41];
    context[..32].copy_from_slice(file_id);
    context[32..40].copy_from_slice(&index.to_le_bytes());
    context[40] = u8::from(last);
    context
}

/// Seals contents into segments as they come, and hashes them.
///
/// A full segment is held back until more comes or the end is told, because only then it is known
/// whether it is the last.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    keys: BlobKeys,
    file_id: [u8; 32],
    hasher: Sha256,
    pending: Vec<u8>,
    sealed: Vec<u8>,
    index: u64,
    size: u64,
}

impl SegmentWriter {
    pub(super) fn new(keys: BlobKeys, file_id: [u8; 32]) -> Self {
        Self {
            keys,
            file_id,
            hasher: Sha256::new(),
            pending: Vec::new(),
            sealed: Vec::new(),
            index: 0,
            size: 0,
        }
    }

    pub(super) fn file_id(&self) -> [u8; 32] {
        self.file_id
    }

    /// Contents so far, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes in a segment that is already in the file.
    pub(super) fn adopt(&mut self, plain: &[u8]) {
        assert!(
            self.pending.is_empty(),
            "segments are adopted before anything is written"
        );
        self.hasher.update(plain);
        self.size += plain.len() as u64;
        self.index += 1;
    }

    pub(super) fn write(
        &mut self,
        file: &mut dyn DiskFile,
        path: &Path,
        mut bytes: &[u8],
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.pending.len() == SEGMENT_BYTES {
                self.seal(file, path, false)?;
            }
            let room = SEGMENT_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            self.hasher.update(now);
            self.size += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Seals what is held back as a segment. After an error it is still held back.
    pub(super) fn seal(&mut self, file: &mut dyn DiskFile, path: &Path, last: bool) -> Result<()> {
        self.sealed.clear();
        self.keys
            .segments
            .seal_into(
                &context(&self.file_id, self.index, last),
                &self.pending,
                &mut self.sealed,
            )
            .map_err(|e| Error::Seal(Box::new(e)))?;
        file.write_all_at(&self.sealed, segment_offset(self.index))
            .map_err(|e| Error::io("write", path, e))?;
        self.pending.clear();
        self.index += 1;
        Ok(())
    }

    /// Whether a full segment is held back.
    pub(super) fn full(&self) -> bool {
        self.pending.len() == SEGMENT_BYTES
    }

    /// The next segment to be sealed.
    pub(super) fn index(&self) -> u64 {
        self.index
    }

    /// The digest of all contents.
    pub(super) fn digest(&self) -> Digest {
        Digest(self.hasher.clone().finalize().into())
    }
}
