//! Frames of journal and snapshot files, pure: how bytes become records and back.
//!
//! ```text
//! header  magic 8 · base revision 8 · file id 16 · MAC 16 · CRC32 4
//! frame   magic 4 · body length 4 · CRC32 4 (of length, sequence, body) · sequence 8 · body
//! ```
//!
//! A frame is what one flush makes durable: a torn write damages only the last frame, so a good
//! frame after a bad one proves damage. The body is sealed with file id and sequence as context:
//! frames cannot be exchanged, repeated or forged. Numbers are little-endian.

use zeroize::Zeroizing;

use super::{
    Cipher, MasterKey, Revision,
    crypt::{Forged, Purpose, SEAL_OVERHEAD_BYTES},
    meta::{KEY_BYTES_MAX, TXN_BYTES_MAX, TXN_OPS_MAX},
};

/// Length of a file header.
pub(super) const HEADER_BYTES: usize = 52;
/// Length of a frame without its body.
pub(super) const FRAME_HEAD_BYTES: usize = 20;
/// A group is closed when it has this many bytes, so one more transaction may follow.
pub(super) const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// Longest body: a full group, one more transaction with the seals of its values, and encoding.
pub(super) const BODY_BYTES_MAX: usize = GROUP_BYTES_MAX
    + TXN_BYTES_MAX
    + TXN_OPS_MAX * (SEAL_OVERHEAD_BYTES + KEY_BYTES_MAX)
    + 1024 * 1024;

pub(super) const FRAME_MAGIC: [u8; 4] = *b"H3F\x01";

/// The two kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Journal,
    Snapshot,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Journal => *b"HOP3JRN\x01",
            Self::Snapshot => *b"HOP3SNP\x01",
        }
    }
}

/// Keys of journal files.
#[derive(Debug, Clone)]
pub(super) struct FileKeys {
    frames: Cipher,
    header: Zeroizing<[u8; 32]>,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    WrongKey,
}

/// The head of a file: which commits come before it, and its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) base: Revision,
    pub(super) file_id: [u8; 16],
}

impl FileKeys {
    pub(super) fn new(master: &MasterKey) -> Self {
        Self {
            frames: master.cipher(Purpose::Journal),
            header: master.subkey(Purpose::JournalHeader),
        }
    }

    pub(super) fn encode_header(&self, kind: FileKind, header: &Header) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&kind.magic());
        out[8..16].copy_from_slice(&header.base.0.to_le_bytes());
        out[16..32].copy_from_slice(&header.file_id);
        let mac = blake3::keyed_hash(&self.header, &out[..32]);
        out[32..48].copy_from_slice(&mac.as_bytes()[..16]);
        let crc = crc32fast::hash(&out[..48]);
        out[48..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode_header(
        &self,
        kind: FileKind,
        bytes: &[u8; HEADER_BYTES],
    ) -> Result<Header, HeaderError> {
        let mut header = Header {
            base: Revision(le_u64(&bytes[8..16])),
            file_id: [0; 16],
        };
        header.file_id.copy_from_slice(&bytes[16..32]);
        let expected = self.encode_header(kind, &header);
        if expected == *bytes {
            return Ok(header);
        }
        // Whole but made by another key: the checksum holds, the MAC does not.
        let whole = le_u32(&bytes[48..]) == crc32fast::hash(&bytes[..48]);
        if whole && bytes[..32] == expected[..32] {
            return Err(HeaderError::WrongKey);
        }
        Err(HeaderError::Damaged)
    }

    /// Seals `plain` into one frame.
    pub(super) fn encode_frame(
        &self,
        file_id: &[u8; 16],
        sequence: u64,
        plain: &[u8],
    ) -> super::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(FRAME_HEAD_BYTES + SEAL_OVERHEAD_BYTES + plain.len());
        out.resize(FRAME_HEAD_BYTES, 0);
        self.frames
            .seal_into(&context(file_id, sequence), plain, &mut out)?;
        let len = out.len() - FRAME_HEAD_BYTES;
        assert!(
            len <= BODY_BYTES_MAX,
            "limits on groups keep a frame readable"
        );
        let len = u32::try_from(len).expect("BODY_BYTES_MAX fits 32 bits");
        out[..4].copy_from_slice(&FRAME_MAGIC);
        out[4..8].copy_from_slice(&len.to_le_bytes());
        out[12..20].copy_from_slice(&sequence.to_le_bytes());
        let crc = checksum(len, sequence, &out[FRAME_HEAD_BYTES..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Opens the body of a frame.
    pub(super) fn open_body(
        &self,
        file_id: &[u8; 16],
        sequence: u64,
        body: &[u8],
    ) -> Result<Vec<u8>, Forged> {
        self.frames.open(&context(file_id, sequence), body)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) len: u32,
    pub(super) sequence: u64,
    crc: u32,
}

impl FrameHead {
    /// Reads a head; `None` if it cannot be one.
    pub(super) fn decode(bytes: &[u8; FRAME_HEAD_BYTES]) -> Option<Self> {
        let len = le_u32(&bytes[4..8]);
        let plausible = bytes[..4] == FRAME_MAGIC && len as usize <= BODY_BYTES_MAX;
        plausible.then(|| Self {
            len,
            crc: le_u32(&bytes[8..12]),
            sequence: le_u64(&bytes[12..20]),
        })
    }

    /// Whether `body` is the body of this head.
    pub(super) fn matches(&self, body: &[u8]) -> bool {
        body.len() == self.len as usize && checksum(self.len, self.sequence, body) == self.crc
    }

    /// Length of the whole frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        FRAME_HEAD_BYTES as u64 + u64::from(self.len)
    }
}

fn context(file_id: &[u8; 16], sequence: u64) -> [u8; 24] {
    let mut context = [0; 24];
    context[..16].copy_from_slice(file_id);
    context[16..].copy_from_slice(&sequence.to_le_bytes());
    context
}

fn checksum(len: u32, sequence: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keys() -> FileKeys {
        FileKeys::new(&MasterKey::from_bytes([3; 32]))
    }

    #[test]
    fn header_has_golden_bytes() {
        let header = Header {
            base: Revision(0x0102),
            file_id: *b"0123456789abcdef",
        };
        let bytes = keys().encode_header(FileKind::Journal, &header);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&bytes),
            concat!(
                "484f50334a524e010201000000000000",
                "30313233343536373839616263646566",
                "7186ebd913bccc82183a28bc01960251fe7c5d14"
            )
        );
        assert_eq!(keys().decode_header(FileKind::Journal, &bytes), Ok(header));
    }

    #[test]
    fn header_tells_damage_from_a_wrong_key() {
        let header = Header {
            base: Revision(9),
            file_id: [5; 16],
        };
        let bytes = keys().encode_header(FileKind::Snapshot, &header);
        let other = FileKeys::new(&MasterKey::from_bytes([4; 32]));
        assert_eq!(
            other.decode_header(FileKind::Snapshot, &bytes),
            Err(HeaderError::WrongKey)
        );
        assert_eq!(
            keys().decode_header(FileKind::Journal, &bytes),
            Err(HeaderError::Damaged)
        );
        for i in 0..HEADER_BYTES {
            let mut bad = bytes;
            bad[i] ^= 1;
            assert_eq!(
                keys().decode_header(FileKind::Snapshot, &bad),
                Err(HeaderError::Damaged),
                "byte {i}"
            );
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen() {
        let frame = keys().encode_frame(&[1; 16], 7, b"some records").unwrap();
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let head = FrameHead::decode(bad[..FRAME_HEAD_BYTES].try_into().unwrap());
            assert!(
                !head.is_some_and(|h| h.matches(&bad[FRAME_HEAD_BYTES..])),
                "bit {bit}"
            );
        }
        let head = FrameHead::decode(frame[..FRAME_HEAD_BYTES].try_into().unwrap()).unwrap();
        let body = &frame[FRAME_HEAD_BYTES..];
        assert!(head.matches(body));
        assert_eq!(
            keys().open_body(&[1; 16], 7, body).unwrap(),
            b"some records"
        );
        assert_eq!(
            keys().open_body(&[1; 16], 8, body),
            Err(Forged),
            "another position"
        );
        assert_eq!(
            keys().open_body(&[2; 16], 7, body),
            Err(Forged),
            "another file"
        );
    }
}
