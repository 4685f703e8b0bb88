//! Reading all of a closed store without changing it: is it whole, and what is in it?

use std::{path::Path, sync::Arc};

use super::{
    Error, Key, MasterKey, Op, Result, Revision, TornTail,
    crypt::Purpose,
    disk::Disk,
    journal::{Journal, Replayed},
    layout::Files,
};

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The last commit.
    pub revision: Revision,
    /// An unfinished write at the end, which opening the store would cut.
    pub torn_tail: Option<TornTail>,
}

/// Who is told of a record: its key, its commit, and its value (none: deleted).
pub type Told<'a> = dyn FnMut(&Key, Revision, Option<&[u8]>) + 'a;

/// Reads journal and snapshot of the store in `dir`, which no process has open, and tells every
/// record of the snapshot, then every later change, in order: the key, its commit, and the value
/// (none: deleted). Leaves the index aside: it holds nothing of its own.
///
/// # Errors
/// As [`LocalStore::open`](super::LocalStore::open); [`Error::Corrupt`] also for a value that does
/// not verify, and for a directory without a store.
pub fn verify(
    disk: Arc<dyn Disk>,
    dir: &Path,
    key: &MasterKey,
    each: &mut Told<'_>,
) -> Result<Verified> {
    let corrupt = |affected: String| Error::Corrupt {
        path: dir.into(),
        offset: 0,
        affected,
    };
    let names = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let files = Files::sort(dir, &names);
    if files.snapshots.is_empty() && files.journals.is_empty() {
        return Err(corrupt("there is no store".into()));
    }
    let values = key.cipher(Purpose::Values);
    let open = |key: &Key, sealed: &[u8]| {
        let opened = values.open(key.as_bytes(), sealed);
        opened.map_err(|forged| corrupt(format!("the value of key `{key}`: {forged}")))
    };
    let journal = Journal::open(disk, dir, key)?;
    journal.replay(None, &mut |replayed| {
        match replayed {
            Replayed::Record(key, revision, sealed) => {
                each(&key, revision, Some(&open(&key, &sealed)?));
            }
            Replayed::SnapshotEnd(_) => {}
            Replayed::Commit(revision, ops) => {
                for op in &ops {
                    match op {
                        Op::Put(key, sealed) => each(key, revision, Some(&open(key, sealed)?)),
                        Op::Delete(key) => each(key, revision, None),
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(Verified {
        revision: journal.last(),
        torn_tail: journal.torn().cloned(),
    })
}
