//! Snapshot files: every live record at one revision, in key order, in frames of about 64 KiB,
//! closed by a record that counts them. A snapshot without its end is damaged, because a file gets
//! its name only when it is whole and flushed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Error, Result, Revision,
    disk::{Disk, DiskFile},
    frame::{FileKeys, FileKind, HEADER_BYTES, Header},
    scan::{Scan, Step, create_file},
};

/// A page is sealed when it has this many bytes.
const PAGE_BYTES: usize = 64 * 1024;

/// A record of a snapshot. Its value is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) key: Bytes,
    pub(super) revision: u64,
    pub(super) sealed: Bytes,
}

/// What a snapshot frame holds. Variants are only ever appended.
#[derive(Debug, Serialize, Deserialize)]
enum SnapshotRecord {
    Entries(Vec<Stored>),
    End { entries: u64 },
}

/// Reads a snapshot in key order.
pub(super) struct SnapshotReader<'a> {
    scan: Scan<'a>,
    page: std::vec::IntoIter<Stored>,
    sequence: u64,
    entries: u64,
    last: Option<Bytes>,
    done: bool,
}

impl<'a> SnapshotReader<'a> {
    pub(super) fn new(scan: Scan<'a>) -> Self {
        Self {
            scan,
            page: Vec::new().into_iter(),
            sequence: 0,
            entries: 0,
            last: None,
            done: false,
        }
    }

    /// The next record; `None` after the last of a whole snapshot.
    pub(super) fn next(&mut self) -> Result<Option<Stored>> {
        loop {
            if let Some(stored) = self.page.next() {
                self.last = Some(stored.key.clone());
                return Ok(Some(stored));
            }
            if self.done {
                return Ok(None);
            }
            self.load()?;
        }
    }

    fn load(&mut self) -> Result<()> {
        let at = self.scan.offset;
        let Step::Frame {
            sequence, plain, ..
        } = self.scan.step()?
        else {
            return Err(self.damaged(at));
        };
        self.sequence += 1;
        if sequence != self.sequence {
            return Err(self.damaged(at));
        }
        match postcard::from_bytes(&plain) {
            Ok(SnapshotRecord::Entries(page)) => {
                self.entries += page.len() as u64;
                self.page = page.into_iter();
            }
            Ok(SnapshotRecord::End { entries }) if entries == self.entries => {
                if self.scan.offset != self.scan.end {
                    return Err(self.scan.corrupt(self.scan.offset, "bytes follow its end"));
                }
                self.done = true;
            }
            _ => return Err(self.damaged(at)),
        }
        Ok(())
    }

    fn damaged(&self, offset: u64) -> Error {
        let from = self.last.as_ref().map_or_else(
            || "all records".to_owned(),
            |key| format!("all records after key `{}`", key.escape_ascii()),
        );
        let affected = format!(
            "{from} as of revision {} are unreadable",
            self.scan.header.base
        );
        self.scan.corrupt(offset, affected)
    }
}

/// Writes a snapshot; records must come in key order.
pub(super) struct SnapshotWriter<'a> {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    keys: &'a FileKeys,
    header: Header,
    offset: u64,
    sequence: u64,
    entries: u64,
    page: Vec<Stored>,
    page_bytes: usize,
}

impl<'a> SnapshotWriter<'a> {
    pub(super) fn create(
        disk: &dyn Disk,
        path: &Path,
        keys: &'a FileKeys,
        base: Revision,
    ) -> Result<Self> {
        let (file, header) = create_file(disk, path, FileKind::Snapshot, keys, base)?;
        Ok(Self {
            path: path.into(),
            file,
            keys,
            header,
            offset: HEADER_BYTES as u64,
            sequence: 0,
            entries: 0,
            page: Vec::new(),
            page_bytes: 0,
        })
    }

    pub(super) fn push(&mut self, stored: Stored) -> Result<()> {
        self.page_bytes += stored.key.len() + stored.sealed.len();
        self.page.push(stored);
        if self.page_bytes >= PAGE_BYTES {
            self.flush_page()
        } else {
            Ok(())
        }
    }

    /// Closes and flushes the file; answers its size.
    pub(super) fn finish(mut self) -> Result<u64> {
        if !self.page.is_empty() {
            self.flush_page()?;
        }
        self.write(&SnapshotRecord::End {
            entries: self.entries,
        })?;
        self.file
            .sync()
            .map_err(|e| Error::io("flush", &self.path, e))?;
        Ok(self.offset)
    }

    fn flush_page(&mut self) -> Result<()> {
        self.entries += self.page.len() as u64;
        self.page_bytes = 0;
        let page = std::mem::take(&mut self.page);
        self.write(&SnapshotRecord::Entries(page))
    }

    fn write(&mut self, record: &SnapshotRecord) -> Result<()> {
        let plain = postcard::to_allocvec(record).expect("a record in memory can be encoded");
        self.sequence += 1;
        let frame = self
            .keys
            .encode_frame(&self.header.file_id, self.sequence, &plain)?;
        self.file
            .write_all_at(&frame, self.offset)
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.offset += frame.len() as u64;
        Ok(())
    }
}
