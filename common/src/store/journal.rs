//! The journal: the truth of a local store.
//!
//! ```text
//! snapshot-<N>  every live record at revision N        (absent while N = 0)
//! journal-<N>   every commit after N, one frame per group of commits
//! ```
//!
//! Files are made under a temporary name, flushed, renamed, and their directory flushed, so a file
//! with a name is whole. Compaction writes the next snapshot from the old one and the journal,
//! never from the index; then an empty next journal; renaming the snapshot is the commit point.
//! At every moment the highest snapshot and the journal of the same number are the state.
//!
//! Limits: compaction is due at 1 to 8 MiB of journal (as large as the snapshot, within that), and
//! holds the journal's last values in memory while it runs. It holds up commits meanwhile.

mod compact;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Error, Key, MasterKey, Op, Result, Revision,
    disk::{Disk, DiskFile},
    frame::{FileKeys, FileKind, HEADER_BYTES, Header},
    group::{decode_group, decode_ops, encode_group},
    layout::{Files, journal_path, older, snapshot_path, temp_path},
    scan::{Scan, Step, create_file, open_file},
    snapshot::SnapshotReader,
};

/// An unfinished write at the end of the journal, left by a crash; no one was told it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The journal file.
    pub path: PathBuf,
    /// Where the good records end, in bytes.
    pub offset: u64,
    /// How much was cut, in bytes.
    pub bytes: u64,
}

/// What replay tells.
pub(super) enum Replayed {
    /// A live record at the snapshot's revision.
    Record(Key, Revision, Bytes),
    /// All records of the snapshot were told.
    SnapshotEnd(Revision),
    /// The changes of one later commit; values are sealed.
    Commit(Revision, Vec<Op>),
}

pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: FileKeys,
    log: Box<dyn DiskFile>,
    header: Header,
    /// Where the next frame goes.
    end: u64,
    /// The last commit on disk.
    last: Revision,
    snapshot_bytes: u64,
    /// Compaction is due at this journal size.
    compact_at: u64,
    torn: Option<TornTail>,
    /// Files that no state needs: rests of interrupted work.
    rests: Vec<PathBuf>,
    poisoned: Option<Arc<str>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.dir)
            .field("last", &self.last)
            .finish()
    }
}

impl Journal {
    /// Opens the journal in `dir` and verifies all of it. Changes nothing that exists.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, master: &MasterKey) -> Result<Self> {
        let keys = FileKeys::new(master);
        let names = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
        let files = Files::sort(dir, &names);
        let base = files.snapshots.last().copied().unwrap_or(Revision::ZERO);
        let fresh = files.snapshots.is_empty() && files.journals.is_empty();
        if fresh {
            install_empty_journal(&*disk, dir, &keys, base)?;
        }
        let path = journal_path(dir, base);
        let snapshot_bytes = if base == Revision::ZERO {
            0
        } else {
            verify_snapshot(&*disk, &snapshot_path(dir, base), &keys, base)?
        };
        let mut rests = files.rests;
        for &number in files.journals.iter().filter(|n| **n > base) {
            rests.push(check_unused(&*disk, dir, &keys, number)?);
        }
        if !fresh && !files.journals.contains(&base) {
            return Err(Error::Corrupt {
                affected: format!("it is missing, and with it every commit after {base}"),
                path,
                offset: 0,
            });
        }
        rests.extend(older(&files.snapshots, base).map(|n| snapshot_path(dir, n)));
        rests.extend(older(&files.journals, base).map(|n| journal_path(dir, n)));
        let (log, header, size) = open_file(&*disk, &path, FileKind::Journal, &keys)?;
        check_base(&path, &header, base)?;
        let mut journal = Self {
            disk,
            dir: dir.into(),
            keys,
            log,
            header,
            end: size,
            last: base,
            snapshot_bytes,
            compact_at: 0,
            torn: None,
            rests,
            poisoned: None,
        };
        journal.verify()?;
        journal.compact_at = journal.compact_threshold();
        Ok(journal)
    }

    /// The last commit on disk.
    pub(super) fn last(&self) -> Revision {
        self.last
    }

    /// The revision of the snapshot.
    pub(super) fn base(&self) -> Revision {
        self.header.base
    }

    /// The report that commits up to `known` were acknowledged and are gone.
    pub(super) fn lost_after(&self, last: Revision, known: Revision) -> Error {
        let affected = format!(
            "commits {} to {known} were acknowledged and are not in it (to accept their loss, \
             delete the folder `{}` beside it)",
            last.next(),
            super::index::INDEX_DIR
        );
        Error::Corrupt {
            path: self.path(),
            offset: self.end,
            affected,
        }
    }

    pub(super) fn torn(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Cuts a torn tail, makes what was read durable, and removes rests. The first change that
    /// recovery makes.
    ///
    /// A process that was killed leaves commits and names that can be read and are not durable
    /// yet; what is shown from now on must outlive a power cut.
    pub(super) fn repair(&mut self) -> Result<()> {
        let path = self.path();
        if self.torn.is_some() {
            self.log
                .set_size(self.end)
                .map_err(|e| Error::io("cut", &path, e))?;
        }
        self.log.sync().map_err(|e| Error::io("flush", &path, e))?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(|e| Error::io("flush directory", &self.dir, e))?;
        for rest in std::mem::take(&mut self.rests) {
            match self.disk.remove(&rest) {
                // Its name was used again, by a file that has another one now.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(|e| Error::io("remove", &rest, e))?,
            }
        }
        Ok(())
    }

    /// Tells everything after `after`: if that is before the snapshot, all of the snapshot first.
    pub(super) fn replay(
        &self,
        after: Option<Revision>,
        sink: &mut dyn FnMut(Replayed) -> Result<()>,
    ) -> Result<()> {
        let base = self.header.base;
        if after.is_none_or(|after| after < base) {
            if base != Revision::ZERO {
                let path = snapshot_path(&self.dir, base);
                let opened = open_file(&*self.disk, &path, FileKind::Snapshot, &self.keys)?;
                let mut reader = SnapshotReader::new(scan(&path, &opened, &self.keys));
                while let Some(stored) = reader.next()? {
                    let key = Key::new(stored.key)?;
                    sink(Replayed::Record(
                        key,
                        Revision(stored.revision),
                        stored.sealed,
                    ))?;
                }
            }
            sink(Replayed::SnapshotEnd(base))?;
        }
        let mut last = base;
        let path = self.path();
        let mut scan = self.scan(&path);
        while let Some((offset, group)) = next_group(&mut scan, last)? {
            for ops in group {
                last = last.next();
                if after.is_none_or(|after| last > after) {
                    sink(Replayed::Commit(last, decode_ops(&scan, offset, ops)?))?;
                }
            }
        }
        Ok(())
    }

    /// Makes a group of commits durable with one flush. Their revisions follow [`Journal::last`].
    ///
    /// A failed write is undone and may be tried again; a failed flush, or a write that cannot be
    /// undone, poisons the journal until [`Journal::renew`].
    pub(super) fn append(&mut self, group: &[Vec<Op>]) -> Result<()> {
        if let Some(reason) = self.poisoned() {
            return Err(Error::Poisoned { reason });
        }
        let path = self.path();
        let commits = group.len() as u64;
        assert!(commits > 0, "a group has at least one commit");
        let plain = encode_group(group);
        let sequence = self.last.next().0;
        let frame = self
            .keys
            .encode_frame(&self.header.file_id, sequence, &plain)?;
        if let Err(error) = self.log.write_all_at(&frame, self.end) {
            if let Err(undo) = self.log.set_size(self.end) {
                let reason = self.poison("undo a failed write of", &path, &undo);
                return Err(Error::SyncFailed { reason });
            }
            return Err(Error::io("write", &path, error));
        }
        if let Err(error) = self.log.sync() {
            // The system may show this frame to the next process though the disk never gets it.
            let _ = self.log.set_size(self.end);
            let reason = self.poison("flush", &path, &error);
            return Err(Error::SyncFailed { reason });
        }
        self.end += frame.len() as u64;
        self.last = Revision(self.last.0 + commits);
        Ok(())
    }

    /// Why it takes nothing, if it does not.
    pub(super) fn poisoned(&self) -> Option<Arc<str>> {
        self.poisoned.clone()
    }

    fn poison(&mut self, action: &str, path: &Path, error: &std::io::Error) -> Arc<str> {
        let reason: Arc<str> = format!("cannot {action} {}: {error}", path.display()).into();
        tracing::error!(%reason, "the store refuses writes until its files can be written anew");
        self.poisoned.get_or_insert(reason).clone()
    }

    /// Walks all frames, sets `last` and `end`, finds a torn tail.
    fn verify(&mut self) -> Result<()> {
        let path = self.path();
        let size = self.end;
        let mut last = self.header.base;
        let mut scan = self.scan(&path);
        loop {
            match scan.step()? {
                Step::End => break,
                Step::Bad { offset } => {
                    if let Some((good, sequence)) = scan.resync(offset)? {
                        return Err(scan.corrupt(offset, lost(last, sequence, good)));
                    }
                    self.torn = Some(TornTail {
                        path,
                        offset,
                        bytes: size - offset,
                    });
                    self.end = offset;
                    break;
                }
                Step::Frame {
                    offset,
                    sequence,
                    plain,
                } => {
                    let group = decode_group(&scan, offset, sequence, last, &plain)?;
                    last = Revision(last.0 + group.len() as u64);
                    for ops in group {
                        decode_ops(&scan, offset, ops)?;
                    }
                }
            }
        }
        self.last = last;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        journal_path(&self.dir, self.header.base)
    }

    fn scan<'a>(&'a self, path: &'a Path) -> Scan<'a> {
        Scan {
            path,
            file: &*self.log,
            keys: &self.keys,
            header: self.header,
            offset: HEADER_BYTES as u64,
            end: self.end,
        }
    }
}

fn scan<'a>(
    path: &'a Path,
    (file, header, size): &'a (Box<dyn DiskFile>, Header, u64),
    keys: &'a FileKeys,
) -> Scan<'a> {
    Scan {
        path,
        file: &**file,
        keys,
        header: *header,
        offset: HEADER_BYTES as u64,
        end: *size,
    }
}

/// The next group of a journal that was verified before; a bad frame now is new damage.
fn next_group(scan: &mut Scan<'_>, last: Revision) -> Result<Option<(u64, super::group::Group)>> {
    match scan.step()? {
        Step::End => Ok(None),
        Step::Bad { offset } => {
            Err(scan.corrupt(offset, format!("commits after {last} became unreadable")))
        }
        Step::Frame {
            offset,
            sequence,
            plain,
        } => Ok(Some((
            offset,
            decode_group(scan, offset, sequence, last, &plain)?,
        ))),
    }
}

fn lost(last: Revision, next_good: u64, good_at: u64) -> String {
    format!(
        "commits {} to {} are unreadable; a good one follows at byte {good_at}",
        last.next(),
        next_good.saturating_sub(1)
    )
}

fn verify_snapshot(disk: &dyn Disk, path: &Path, keys: &FileKeys, base: Revision) -> Result<u64> {
    let opened = open_file(disk, path, FileKind::Snapshot, keys)?;
    check_base(path, &opened.1, base)?;
    let mut reader = SnapshotReader::new(scan(path, &opened, keys));
    while let Some(stored) = reader.next()? {
        Key::new(stored.key)?;
    }
    Ok(opened.2)
}

/// A journal beyond the last snapshot is the rest of an interrupted compaction, and then empty.
fn check_unused(disk: &dyn Disk, dir: &Path, keys: &FileKeys, number: Revision) -> Result<PathBuf> {
    let path = journal_path(dir, number);
    let (_, _, size) = open_file(disk, &path, FileKind::Journal, keys)?;
    if size == HEADER_BYTES as u64 {
        return Ok(path);
    }
    Err(Error::Corrupt {
        path: snapshot_path(dir, number),
        offset: 0,
        affected: format!("it is missing, and with it every record up to revision {number}"),
    })
}

fn check_base(path: &Path, header: &Header, base: Revision) -> Result<()> {
    if header.base == base {
        return Ok(());
    }
    let affected = format!("it was renamed: it belongs to revision {}", header.base);
    Err(Error::Corrupt {
        path: path.into(),
        offset: 0,
        affected,
    })
}

fn install_empty_journal(
    disk: &dyn Disk,
    dir: &Path,
    keys: &FileKeys,
    base: Revision,
) -> Result<(Box<dyn DiskFile>, Header)> {
    let path = journal_path(dir, base);
    let temp = temp_path(&path);
    let (mut file, header) = create_file(disk, &temp, FileKind::Journal, keys, base)?;
    file.sync().map_err(|e| Error::io("flush", &temp, e))?;
    disk.rename(&temp, &path)
        .map_err(|e| Error::io("rename", &temp, e))?;
    disk.sync_dir(dir)
        .map_err(|e| Error::io("flush directory", dir, e))?;
    Ok((file, header))
}
