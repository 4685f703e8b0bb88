//! Reading the frames of journal and snapshot files from disk, in bounded memory.

use std::path::Path;

use bytes::Bytes;

use super::{
    Error, Key, Result, Revision,
    disk::{Disk, DiskFile},
    frame::{
        FRAME_HEAD_BYTES, FRAME_MAGIC, FileKeys, FileKind, FrameHead, HEADER_BYTES, Header,
        HeaderError,
    },
};

/// What the next bytes of a file are.
pub(super) enum Step {
    Frame {
        offset: u64,
        sequence: u64,
        plain: Vec<u8>,
    },
    End,
    Bad {
        offset: u64,
    },
}

/// Reads the frames of a file one by one.
pub(super) struct Scan<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a dyn DiskFile,
    pub(super) keys: &'a FileKeys,
    pub(super) header: Header,
    pub(super) offset: u64,
    pub(super) end: u64,
}

impl Scan<'_> {
    /// The next frame; stays where it is after a bad one.
    pub(super) fn step(&mut self) -> Result<Step> {
        let offset = self.offset;
        if offset >= self.end {
            return Ok(Step::End);
        }
        let Some((head, body)) = self.read_frame(offset)? else {
            return Ok(Step::Bad { offset });
        };
        let sequence = head.sequence;
        let opened = self.keys.open_body(&self.header.file_id, sequence, &body);
        let plain = opened.map_err(|_| Error::Corrupt {
            path: self.path.into(),
            offset,
            affected: format!("frame {sequence} has a right checksum but is not authentic"),
        })?;
        self.offset += head.frame_bytes();
        Ok(Step::Frame {
            offset,
            sequence,
            plain,
        })
    }

    /// Where the next whole frame after `offset` begins, and its sequence.
    pub(super) fn resync(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        const WINDOW: u64 = 64 * 1024;
        let mut at = offset + 1;
        while at + FRAME_HEAD_BYTES as u64 <= self.end {
            let len = (self.end - at).min(WINDOW + FRAME_HEAD_BYTES as u64 - 1);
            let window = self.read(at, usize::try_from(len).expect("a window fits memory"))?;
            for (i, bytes) in window.windows(FRAME_HEAD_BYTES).enumerate() {
                if !bytes.starts_with(&FRAME_MAGIC) {
                    continue;
                }
                if let Some((head, _)) = self.read_frame(at + i as u64)? {
                    return Ok(Some((at + i as u64, head.sequence)));
                }
            }
            at += WINDOW;
        }
        Ok(None)
    }

    fn read_frame(&self, offset: u64) -> Result<Option<(FrameHead, Vec<u8>)>> {
        if self.end - offset < FRAME_HEAD_BYTES as u64 {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEAD_BYTES];
        head.copy_from_slice(&self.read(offset, FRAME_HEAD_BYTES)?);
        let Some(head) = FrameHead::decode(&head) else {
            return Ok(None);
        };
        if self.end - offset < head.frame_bytes() {
            return Ok(None);
        }
        let body = self.read(offset + FRAME_HEAD_BYTES as u64, head.len as usize)?;
        Ok(head.matches(&body).then_some((head, body)))
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.file
            .read_exact_at(&mut buf, offset)
            .map_err(|e| Error::io("read", self.path, e))?;
        Ok(buf)
    }

    /// A damage report at `offset`.
    pub(super) fn corrupt(&self, offset: u64, affected: impl Into<String>) -> Error {
        Error::Corrupt {
            path: self.path.into(),
            offset,
            affected: affected.into(),
        }
    }
}

/// Opens a file and checks its header and key. Changes nothing.
pub(super) fn open_file(
    disk: &dyn Disk,
    path: &Path,
    kind: FileKind,
    keys: &FileKeys,
) -> Result<(Box<dyn DiskFile>, Header, u64)> {
    let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
    let size = file.size().map_err(|e| Error::io("inspect", path, e))?;
    let damaged = || Error::Corrupt {
        path: path.into(),
        offset: 0,
        affected: "its header cannot be read, so nothing in it can".into(),
    };
    if size < HEADER_BYTES as u64 {
        return Err(damaged());
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|e| Error::io("read", path, e))?;
    match keys.decode_header(kind, &bytes) {
        Ok(header) => Ok((file, header, size)),
        Err(HeaderError::WrongKey) => Err(Error::WrongKey { path: path.into() }),
        Err(HeaderError::Damaged) => Err(damaged()),
    }
}

/// Makes a file under a temporary name, with its header.
pub(super) fn create_file(
    disk: &dyn Disk,
    path: &Path,
    kind: FileKind,
    keys: &FileKeys,
    base: Revision,
) -> Result<(Box<dyn DiskFile>, Header)> {
    let mut file_id = [0; 16];
    getrandom::fill(&mut file_id).map_err(Error::Random)?;
    let header = Header { base, file_id };
    let mut file = disk
        .create(path)
        .map_err(|e| Error::io("create", path, e))?;
    file.write_all_at(&keys.encode_header(kind, &header), 0)
        .map_err(|e| Error::io("write", path, e))?;
    Ok((file, header))
}

/// A stored key as a key; a stored key that is none is damage.
pub(super) fn stored_key(scan: &Scan<'_>, offset: u64, key: Bytes) -> Result<Key> {
    Key::new(key).map_err(|e| scan.corrupt(offset, e.to_string()))
}
