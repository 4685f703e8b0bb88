//! The index: sled, holding the sealed value and revision of every live record.
//!
//! It is never the truth. The number of the last applied commit is in the same batch as its
//! changes; the journal supplies what is missing. It is used again only if this boot wrote it (sled
//! does not flush to disk, so after a power cut it proves nothing) and if it did not see two
//! crashes in a row (a damaged sled may panic); otherwise it is deleted and built anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Error, Key, Op, Range, Result, Revision, disk, meta::PAGE_BYTES_MAX};

/// The folder of the index in the store's directory.
pub(super) const INDEX_DIR: &str = "index";
/// Says which boot wrote the index and how many opens were not closed.
const TRUST_FILE: &str = "index.trust";
/// An index left open this many times in a row is not trusted: it may be what crashes.
const CRASHES_MAX: u32 = 2;
/// sled gives up its file lock a moment after it was dropped; wait this long for it.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// First byte of a record's key in sled.
const RECORDS: u8 = b'r';
/// The key of the applied revision in sled.
const APPLIED: &[u8] = b"applied";

/// Changes of one step, applied all or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    inner: sled::Batch,
    bytes: usize,
}

impl Batch {
    pub(super) fn put(&mut self, key: &Key, revision: Revision, sealed: &[u8]) {
        let mut value = Vec::with_capacity(8 + sealed.len());
        value.extend_from_slice(&revision.0.to_le_bytes());
        value.extend_from_slice(sealed);
        self.bytes += key.as_bytes().len() + value.len();
        self.inner.insert(index_key(key), value);
    }

    pub(super) fn op(&mut self, op: &Op, revision: Revision) {
        match op {
            Op::Put(key, sealed) => self.put(key, revision, sealed),
            Op::Delete(key) => self.inner.remove(index_key(key)),
        }
    }

    /// Key and value bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A record as indexed.
pub(super) struct Indexed {
    pub(super) key: Key,
    pub(super) revision: Revision,
    pub(super) sealed: Bytes,
}

#[derive(Debug)]
pub(super) struct Index {
    db: sled::Db,
    dir: PathBuf,
    /// The revision that readers see. Held while a batch is applied, so that a page is consistent.
    shown: RwLock<Revision>,
    cache_bytes: u64,
    /// Has the next batch fail, as on a full disk.
    #[cfg(test)]
    pub(super) fail: std::sync::atomic::AtomicBool,
}

impl Index {
    /// Opens the index in the store's directory, or says why it cannot be used. Does not change it
    /// except as sled does.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<(Self, Revision), String> {
        let crashes = trusted(dir)?;
        let db = open_sled(&dir.join(INDEX_DIR), cache_bytes).map_err(|e| e.to_string())?;
        let applied = db.get(APPLIED).map_err(|e| e.to_string())?;
        let applied: [u8; 8] = applied
            .and_then(|bytes| bytes.as_ref().try_into().ok())
            .ok_or("it was never finished")?;
        let applied = Revision(u64::from_le_bytes(applied));
        let index = Self {
            db,
            dir: dir.into(),
            shown: RwLock::new(applied),
            cache_bytes,
            #[cfg(test)]
            fail: Default::default(),
        };
        index.mark(crashes + 1).map_err(|e| e.to_string())?;
        Ok((index, applied))
    }

    /// Deletes what is there and makes an empty index; it counts only after
    /// [`Index::apply`] has said which revision it shows.
    pub(super) fn create(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let path = dir.join(INDEX_DIR);
        for result in [
            remove_if_there(&dir.join(TRUST_FILE)),
            remove_dir_if_there(&path),
        ] {
            result.map_err(|e| Error::io("remove the old index", &path, e))?;
        }
        let db = open_sled(&path, cache_bytes).map_err(|e| Error::index("open", &e))?;
        let index = Self {
            db,
            dir: dir.into(),
            shown: RwLock::new(Revision::ZERO),
            cache_bytes,
            #[cfg(test)]
            fail: Default::default(),
        };
        index
            .mark(1)
            .map_err(|e| Error::io("write", &dir.join(TRUST_FILE), e))?;
        Ok(index)
    }

    /// As [`Index::create`], beside this one, which readers may still use.
    pub(super) fn replace(&self) -> Result<Self> {
        Self::create(&self.dir, self.cache_bytes)
    }

    /// Applies a batch and, with it, the revision it leads to (`None` while it is being built).
    pub(super) fn apply(&self, mut batch: Batch, applied: Option<Revision>) -> Result<()> {
        if let Some(revision) = applied {
            batch.inner.insert(APPLIED, &revision.0.to_le_bytes());
        }
        #[cfg(test)]
        if self.fail.swap(false, std::sync::atomic::Ordering::Relaxed) {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(Error::index("apply a commit", &source.into()));
        }
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        self.db
            .apply_batch(batch.inner)
            .map_err(|e| Error::index("apply a commit", &e))?;
        *shown = applied.unwrap_or(*shown);
        Ok(())
    }

    pub(super) fn revision_of(&self, key: &Key) -> Result<Option<Revision>> {
        Ok(self.get(key)?.map(|indexed| indexed.revision))
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Indexed>> {
        let found = self
            .db
            .get(index_key(key))
            .map_err(|e| Error::index("read", &e))?;
        found.map(|value| decode(key.clone(), &value)).transpose()
    }

    /// A page of records, whether more follow, and the revision it shows.
    pub(super) fn range(&self, range: &Range) -> Result<(Vec<Indexed>, bool, Revision)> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let mut start = vec![RECORDS];
        match &range.after {
            // A key and a zero byte is the next possible key.
            Some(after) if after.as_bytes() >= range.prefix.as_slice() => {
                start.extend_from_slice(after.as_bytes());
                start.push(0);
            }
            _ => start.extend_from_slice(&range.prefix),
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for item in self.db.range(start..) {
            let (key, value) = item.map_err(|e| Error::index("list", &e))?;
            let inside = key
                .strip_prefix(&[RECORDS])
                .filter(|k| k.starts_with(&range.prefix));
            let Some(key) = inside else { break };
            if found.len() == range.entries_max() || bytes >= PAGE_BYTES_MAX {
                return Ok((found, true, *shown));
            }
            bytes += key.len() + value.len();
            found.push(decode(Key::new(Bytes::copy_from_slice(key))?, &value)?);
        }
        Ok((found, false, *shown))
    }

    /// Hands what is in memory to the operating system, so that it outlives this process.
    pub(super) fn flush(&self) -> Result<()> {
        self.db
            .flush()
            .map(drop)
            .map_err(|e| Error::index("flush", &e))
    }

    /// Notes a clean close.
    pub(super) fn close(&self) -> Result<()> {
        self.flush()?;
        self.mark(0)
            .map_err(|e| Error::io("write", &self.dir.join(TRUST_FILE), e))
    }

    /// Has the next open build the index anew.
    pub(super) fn distrust(&self) {
        if let Err(error) = remove_if_there(&self.dir.join(TRUST_FILE)) {
            tracing::warn!(%error, "cannot mark the index as broken");
        }
    }

    fn mark(&self, crashes: u32) -> io::Result<()> {
        let Ok(boot) = fs::read_to_string(BOOT_ID_PATH) else {
            return Ok(());
        };
        let temp = self.dir.join(format!("{TRUST_FILE}.tmp"));
        fs::write(&temp, format!("{} {crashes}\n", boot.trim()))?;
        fs::rename(temp, self.dir.join(TRUST_FILE))
    }
}

/// How often in a row the index was left open, if it may be used.
fn trusted(dir: &Path) -> Result<u32, String> {
    if !dir.join(INDEX_DIR).is_dir() {
        return Err("it is missing".into());
    }
    let note = fs::read_to_string(dir.join(TRUST_FILE)).unwrap_or_default();
    let boot = fs::read_to_string(BOOT_ID_PATH).unwrap_or_default();
    let (note_boot, crashes) = note.trim().split_once(' ').unwrap_or_default();
    if note_boot.is_empty() || note_boot != boot.trim() {
        return Err("it was not written by this boot of the machine".into());
    }
    match crashes.parse() {
        Ok(crashes) if crashes < CRASHES_MAX => Ok(crashes),
        _ => Err(format!("it was in use at {CRASHES_MAX} crashes in a row")),
    }
}

fn open_sled(path: &Path, cache_bytes: u64) -> sled::Result<sled::Db> {
    if !path.exists() {
        disk::create_dir(path)?;
    }
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None);
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            // Our own lock file says that no other process has it.
            Err(sled::Error::Io(e))
                if e.to_string().contains("could not acquire lock")
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn index_key(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.as_bytes().len());
    bytes.push(RECORDS);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

fn decode(key: Key, value: &[u8]) -> Result<Indexed> {
    let (revision, sealed) = value.split_first_chunk().ok_or_else(|| Error::Index {
        action: "read",
        reason: format!("the entry of key `{key}` is too short"),
    })?;
    let revision = Revision(u64::from_le_bytes(*revision));
    Ok(Indexed {
        key,
        revision,
        sealed: Bytes::copy_from_slice(sealed),
    })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn remove_dir_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
