//! The frame that images and deltas share: a magic, then sections in a fixed order, each with
//! its length and checksum. All numbers are little-endian.
//!
//! A section is read only when its checksum is right, and nothing is allocated by a number that
//! was read: only as the bytes themselves allow.

use super::Error;

const MAGIC_BYTES: usize = 8;
const SUM_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 8;

/// The checksum of a section, over its tag and length too.
fn sum(head: &[u8], payload: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    let hash = hasher.update(head).update(payload).finalize();
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&hash.as_bytes()[..SUM_BYTES]);
    sum
}

/// Writes sections one after the other.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    /// Begins with what it is, and the number of its format.
    pub(super) fn new(magic: &[u8; MAGIC_BYTES], format: u16) -> Self {
        let mut bytes = magic.to_vec();
        bytes.extend(format.to_le_bytes());
        Self(bytes)
    }

    /// Writes one section, whose payload `fill` appends.
    pub(super) fn section(&mut self, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.0.len();
        self.0.push(tag);
        self.0.extend([0; 8]);
        fill(&mut self.0);
        let len = (self.0.len() - at - HEAD_BYTES) as u64;
        self.0[at + 1..at + HEAD_BYTES].copy_from_slice(&len.to_le_bytes());
        let (head, payload) = self.0[at..].split_at(HEAD_BYTES);
        let sum = sum(head, payload);
        self.0.extend(sum);
    }
}

/// Reads what [`Writer`] wrote.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the magic and the format: formats from 1 to `known` are read.
    pub(super) fn new(
        bytes: &'a [u8],
        (magic, known): (&[u8; MAGIC_BYTES], u16),
        what: &'static str,
    ) -> Result<Self, Error> {
        let rest = bytes.strip_prefix(magic).ok_or(Error::Magic(what))?;
        let (version, rest) = rest.split_first_chunk().ok_or(Error::Truncated("head"))?;
        let found = u16::from_le_bytes(*version);
        if !(1..=known).contains(&found) {
            return Err(Error::Version { found, known });
        }
        Ok(Self(rest))
    }

    /// The next section, which must be this one.
    pub(super) fn section(&mut self, tag: u8, name: &'static str) -> Result<Fields<'a>, Error> {
        let truncated = || Error::Truncated(name);
        let (head, rest) = self
            .0
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(truncated)?;
        let mut len = [0; 8];
        len.copy_from_slice(&head[1..]);
        let len = usize::try_from(u64::from_le_bytes(len)).map_err(|_| truncated())?;
        let (payload, rest) = rest.split_at_checked(len).ok_or_else(truncated)?;
        let (found, rest) = rest
            .split_first_chunk::<SUM_BYTES>()
            .ok_or_else(truncated)?;
        if sum(head, payload) != *found {
            return Err(Error::Checksum(name));
        }
        if head[0] != tag {
            let why = "another section is in its place";
            return Err(Error::Invalid { section: name, why });
        }
        self.0 = rest;
        Ok(Fields {
            section: name,
            bytes: payload,
        })
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (section, why) = ("end", "bytes after the last section");
        Err(Error::Invalid { section, why })
    }
}

/// The payload of a section, read field by field.
pub(super) struct Fields<'a> {
    section: &'static str,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    #[cfg(test)]
    pub(super) fn of(section: &'static str, bytes: &'a [u8]) -> Self {
        Self { section, bytes }
    }

    pub(super) fn invalid(&self, why: &'static str) -> Error {
        let section = self.section;
        Error::Invalid { section, why }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Error> {
        let missing = self.invalid("a field is cut short");
        let (array, rest) = self.bytes.split_first_chunk().ok_or(missing)?;
        self.bytes = rest;
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| *byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(|bytes| u16::from_le_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Bytes after their length.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let missing = self.invalid("a field is cut short");
        let (bytes, rest) = self.bytes.split_at_checked(len).ok_or(missing)?;
        self.bytes = rest;
        Ok(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn end(self) -> Result<(), Error> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(self.invalid("bytes after its last field"))
    }
}

/// Appends bytes after their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Longer ones cannot be: they come out of a 32-bit memory or a bounded desk entry.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    debug_assert_eq!(len as usize, bytes.len());
    out.extend(len.to_le_bytes());
    out.extend_from_slice(bytes);
}
