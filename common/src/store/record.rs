//! Versioned records: the frozen envelope around every typed value.
//!
//! ```text
//! magic 4 · kind 4 (of its name's BLAKE3) · version 2 · length 4 · CRC32 of the body 4 · body
//! ```
//!
//! The body is postcard. Numbers are little-endian. A shipped structure is frozen: a new form gets
//! the next version, and [`Record::upgrade`] reads the old ones.

use serde::{Serialize, de::DeserializeOwned};

use super::VALUE_BYTES_MAX;

const MAGIC: [u8; 4] = *b"H3R\x01";
const HEAD_BYTES: usize = 18;
/// Longest encoded body of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = VALUE_BYTES_MAX - HEAD_BYTES;

/// A type that is stored in its own table.
pub trait Record: Serialize + DeserializeOwned + Send {
    /// The table's name: lower-case letters, digits and dashes. Frozen once shipped.
    const KIND: &'static str;
    /// The version that is written.
    const VERSION: u16;

    /// Reads a body of an older version (`from` < [`Record::VERSION`]).
    ///
    /// # Errors
    /// [`RecordError::Version`] unless overridden.
    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        let _ = body;
        Err(RecordError::Version {
            kind: Self::KIND,
            found: from,
            known: Self::VERSION,
        })
    }
}

/// Why a record cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a record, or an altered one.
    #[error("it is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// A record of another table.
    #[error("it is not a `{kind}` record")]
    Kind {
        /// The expected kind.
        kind: &'static str,
    },
    /// A version that this program does not know.
    #[error("it is a `{kind}` record of version {found}, this program knows up to {known}")]
    Version {
        /// The kind.
        kind: &'static str,
        /// The version found.
        found: u16,
        /// The newest known one.
        known: u16,
    },
    /// The body does not decode.
    #[error("its body is not a `{kind}`")]
    Body {
        /// The kind.
        kind: &'static str,
        /// The decoder's answer.
        #[source]
        source: postcard::Error,
    },
    /// The body is too long for a record.
    #[error("it has {len} bytes, the limit is {RECORD_BYTES_MAX}: store the bulk as a blob")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
}

/// Decodes a body; for [`Record::upgrade`].
///
/// # Errors
/// [`RecordError::Body`] if it does not decode or has bytes left over.
pub fn decode_body<T: DeserializeOwned>(kind: &'static str, body: &[u8]) -> Result<T, RecordError> {
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|source| RecordError::Body { kind, source })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(RecordError::Damaged {
            what: "bytes follow the body",
        })
    }
}

pub(super) const fn is_kind(kind: &str) -> bool {
    let bytes = kind.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_lowercase() || bytes[i].is_ascii_digit() || bytes[i] == b'-') {
            return false;
        }
        i += 1;
    }
    !bytes.is_empty() && bytes.len() <= 64
}

fn kind_id(kind: &str) -> [u8; 4] {
    let hash = blake3::hash(kind.as_bytes());
    let mut id = [0; 4];
    id.copy_from_slice(&hash.as_bytes()[..4]);
    id
}

pub(super) fn encode<R: Record>(record: &R) -> Result<Vec<u8>, RecordError> {
    let body = postcard::to_allocvec(record).map_err(|source| RecordError::Body {
        kind: R::KIND,
        source,
    })?;
    if body.len() > RECORD_BYTES_MAX {
        return Err(RecordError::TooLarge { len: body.len() });
    }
    let len = u32::try_from(body.len()).expect("RECORD_BYTES_MAX fits 32 bits");
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&kind_id(R::KIND));
    out.extend_from_slice(&R::VERSION.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

pub(super) fn decode<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let damaged = |what| RecordError::Damaged { what };
    let (head, body) = bytes
        .split_first_chunk::<HEAD_BYTES>()
        .ok_or(damaged("it is too short"))?;
    if head[..4] != MAGIC {
        return Err(damaged("it does not begin like a record"));
    }
    if head[4..8] != kind_id(R::KIND) {
        return Err(RecordError::Kind { kind: R::KIND });
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if head[10..14] != u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes() {
        return Err(damaged("its length is wrong"));
    }
    if head[14..18] != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged("its checksum is wrong"));
    }
    match version.cmp(&R::VERSION) {
        std::cmp::Ordering::Equal => decode_body(R::KIND, body),
        std::cmp::Ordering::Less => R::upgrade(version, body),
        std::cmp::Ordering::Greater => Err(RecordError::Version {
            kind: R::KIND,
            found: version,
            known: R::VERSION,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Lamp {
        name: String,
        watts: u32,
    }

    #[derive(Deserialize)]
    struct LampV1 {
        name: String,
    }

    impl Record for Lamp {
        const KIND: &'static str = "lamp";
        const VERSION: u16 = 2;

        fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
            match from {
                1 => decode_body(Self::KIND, body).map(|LampV1 { name }| Self { name, watts: 40 }),
                _ => Err(RecordError::Version {
                    kind: Self::KIND,
                    found: from,
                    known: 2,
                }),
            }
        }
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Rope(Vec<u8>);

    impl Record for Rope {
        const KIND: &'static str = "rope";
        const VERSION: u16 = 1;
    }

    fn lamp() -> Lamp {
        Lamp {
            name: "desk".into(),
            watts: 9,
        }
    }

    fn with_version(version: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = encode(&lamp()).unwrap();
        bytes.truncate(8);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn has_golden_bytes() {
        assert_eq!(
            data_encoding::HEXLOWER.encode(&encode(&lamp()).unwrap()),
            "48335201c330d106020006000000c8e97be3046465736b09"
        );
    }

    #[test]
    fn older_versions_are_upgraded_and_newer_refused() {
        let old = with_version(1, b"\x04hall");
        assert_eq!(
            decode::<Lamp>(&old).unwrap(),
            Lamp {
                name: "hall".into(),
                watts: 40
            }
        );
        let newer = decode::<Lamp>(&with_version(3, b"?")).unwrap_err();
        assert_eq!(
            newer,
            RecordError::Version {
                kind: "lamp",
                found: 3,
                known: 2
            }
        );
        let ancient = decode::<Lamp>(&with_version(0, b"?")).unwrap_err();
        assert!(matches!(ancient, RecordError::Version { found: 0, .. }));
    }

    #[test]
    fn other_kinds_and_left_over_bytes_are_refused() {
        let rope = encode(&Rope(vec![1])).unwrap();
        assert_eq!(
            decode::<Lamp>(&rope).unwrap_err(),
            RecordError::Kind { kind: "lamp" }
        );
        let long = with_version(2, b"\x04desk\x09more");
        assert!(matches!(
            decode::<Lamp>(&long),
            Err(RecordError::Damaged { .. })
        ));
        let lying = with_version(2, b"\xFF\xFF\xFF\xFF\x0Fx");
        assert!(matches!(
            decode::<Lamp>(&lying),
            Err(RecordError::Body { .. })
        ));
    }

    #[test]
    fn size_is_bounded() {
        let encoded = encode(&Rope(vec![0; RECORD_BYTES_MAX - 3])).unwrap();
        assert_eq!(encoded.len(), VALUE_BYTES_MAX);
        let error = encode(&Rope(vec![0; RECORD_BYTES_MAX])).unwrap_err();
        assert!(matches!(error, RecordError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn damage_is_an_error(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = encode(&lamp()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // The version is covered by the store's own sealing, not by the checksum.
            prop_assert!((8..10).contains(&at) || decode::<Lamp>(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode::<Lamp>(&bytes).is_err());
        }
    }
}
