//! Compaction: a snapshot of all live records from the old snapshot and the journal, then an
//! empty journal. Renaming the snapshot is the commit point.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;

use super::{Journal, Replayed, install_empty_journal, scan};
use crate::store::{
    Error, Op, Result, Revision,
    frame::{FileKind, HEADER_BYTES},
    layout::{journal_path, snapshot_path, temp_path},
    scan::open_file,
    snapshot::{SnapshotReader, SnapshotWriter, Stored},
};

/// A journal smaller than this is never compacted.
const COMPACT_BYTES_MIN: u64 = 1024 * 1024;
/// A journal larger than this is always compacted: bounds memory and time of a compaction.
const COMPACT_BYTES_MAX: u64 = 8 * 1024 * 1024;

impl Journal {
    pub(in crate::store) fn compaction_due(&self) -> bool {
        self.poisoned.is_none() && self.end > self.compact_at
    }

    /// Replaces snapshot and journal by one snapshot of all live records and an empty journal.
    ///
    /// On an error before the commit point the old files stay in use, and the next attempt waits
    /// for the journal to grow by half.
    pub(in crate::store) fn compact(&mut self) -> Result<()> {
        if self.last == self.header.base {
            return Ok(());
        }
        self.replace()
    }

    /// Goes on after a failure that left it unknown what the disk has: everything acknowledged
    /// is written into new files. No flush is tried again, and nothing of the group that failed
    /// stays.
    pub(in crate::store) fn renew(&mut self) -> Result<()> {
        if self.last == self.header.base {
            let base = self.header.base;
            let fresh = install_empty_journal(&*self.disk, &self.dir, &self.keys, base)?;
            (self.log, self.header) = fresh;
            self.end = HEADER_BYTES as u64;
        } else {
            self.replace()?;
        }
        self.poisoned = None;
        Ok(())
    }

    fn replace(&mut self) -> Result<()> {
        let base = self.last;
        self.compact_at = self.end + self.end / 2;
        let temp = temp_path(&snapshot_path(&self.dir, base));
        let written = self.write_snapshot(&temp, base).and_then(|bytes| {
            let fresh = install_empty_journal(&*self.disk, &self.dir, &self.keys, base)?;
            Ok((bytes, fresh))
        });
        let (snapshot_bytes, (log, header)) = match written {
            Ok(written) => written,
            Err(error) => {
                // Both are unused, and removed at the next open if they cannot be now. The new
                // journal is not, if the snapshot before it was perhaps installed.
                let _ = self.disk.remove(&temp);
                if self.poisoned.is_none() {
                    let _ = self.disk.remove(&journal_path(&self.dir, base));
                }
                return Err(error);
            }
        };
        let path = snapshot_path(&self.dir, base);
        let renamed = self.disk.rename(&temp, &path);
        if let Err(error) = renamed.and_then(|()| self.disk.sync_dir(&self.dir)) {
            // Whether the new snapshot counts is now known only to the disk.
            let reason = self.poison("install", &path, &error);
            return Err(Error::SyncFailed { reason });
        }
        let old = [self.path(), snapshot_path(&self.dir, self.header.base)];
        self.log = log;
        self.header = header;
        self.end = HEADER_BYTES as u64;
        self.snapshot_bytes = snapshot_bytes;
        self.compact_at = self.compact_threshold();
        for path in old {
            // A rest is harmless: the next open removes it.
            let _ = self.disk.remove(&path);
        }
        Ok(())
    }

    fn write_snapshot(&self, temp: &Path, base: Revision) -> Result<u64> {
        let mut overlay: BTreeMap<Bytes, Option<(u64, Bytes)>> = BTreeMap::new();
        self.replay(Some(self.header.base), &mut |replayed| {
            if let Replayed::Commit(revision, ops) = replayed {
                for op in ops {
                    match op {
                        Op::Put(key, sealed) => {
                            overlay.insert(key.bytes().clone(), Some((revision.0, sealed)))
                        }
                        Op::Delete(key) => overlay.insert(key.bytes().clone(), None),
                    };
                }
            }
            Ok(())
        })?;
        let mut writer = SnapshotWriter::create(&*self.disk, temp, &self.keys, base)?;
        let mut changed = overlay.into_iter().peekable();
        let mut push = |(key, value): (Bytes, Option<(u64, Bytes)>)| match value {
            Some((revision, sealed)) => writer.push(Stored {
                key,
                revision,
                sealed,
            }),
            None => Ok(()),
        };
        if self.header.base != Revision::ZERO {
            let path = snapshot_path(&self.dir, self.header.base);
            let opened = open_file(&*self.disk, &path, FileKind::Snapshot, &self.keys)?;
            let mut old = SnapshotReader::new(scan(&path, &opened, &self.keys));
            while let Some(stored) = old.next()? {
                while let Some(change) = changed.next_if(|(key, _)| *key < stored.key) {
                    push(change)?;
                }
                match changed.next_if(|(key, _)| *key == stored.key) {
                    Some(change) => push(change)?,
                    None => push((stored.key, Some((stored.revision, stored.sealed))))?,
                }
            }
        }
        changed.try_for_each(push)?;
        writer.finish()
    }

    pub(super) fn compact_threshold(&self) -> u64 {
        self.snapshot_bytes
            .clamp(COMPACT_BYTES_MIN, COMPACT_BYTES_MAX)
    }
}
