//! A disk in memory for tests: it keeps what it was told to do, fails on demand, and shows every
//! image that a power cut may leave.
//!
//! Model. A file is what was synced plus the changes since; a directory is the names that were
//! synced plus the changes since. A power cut keeps any of the changes, in any combination: each
//! write whole, not at all, or torn at sectors of 512 bytes with garbage or nothing in place of
//! the rest; a length without its data; a name without the one before it. Only bytes that were
//! being written are ever harmed. What a failed sync covered is forgotten: a later sync that
//! succeeds says nothing about it (Linux marks such pages clean). A killed process loses nothing
//! of this: what it wrote is still seen, and still not durable.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod image;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::disk::{Disk, DiskFile, Info, parent};
use image::{Change, NameChange};
pub use image::{Cut, Rng};
pub use report::{Report, is_long, seed};

/// What goes wrong at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and does nothing.
    Error(io::ErrorKind),
    /// It fails; half of what was to be written is there.
    Short(io::ErrorKind),
    /// It fails although all of it was done (a sync: nothing was).
    Late(io::ErrorKind),
    /// It and everything after it fails and does nothing: the disk is gone, or the process.
    Dead,
}

/// One recorded operation.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Data { file: usize, change: Change },
    Sync { file: usize },
    SyncFailed { file: usize },
    Name(NameChange),
    SyncDir { dir: PathBuf },
}

#[derive(Debug, Default)]
struct Sim {
    /// What was there at the beginning.
    start: Cut,
    now: Cut,
    /// What the process sees.
    seen: Vec<Vec<u8>>,
    /// Locked files: a lock ends with the file that took it.
    locked: BTreeSet<usize>,
    events: Vec<Event>,
    operations: usize,
    syncs: usize,
    faults: BTreeMap<usize, Fault>,
    space: Option<u64>,
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Sim>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
    has_lock: AtomicBool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.has_lock.load(Ordering::Relaxed) {
            self.disk.with(|sim| sim.locked.remove(&self.id));
        }
    }
}

impl Sim {
    /// Counts an operation; says what is wrong with it.
    fn operate(&mut self) -> Option<Fault> {
        let now = self.operations;
        self.operations += 1;
        let dead = self.faults.range(..=now).any(|(_, f)| *f == Fault::Dead);
        if dead {
            return Some(Fault::Dead);
        }
        self.faults.get(&now).copied()
    }

    /// An operation that happens or not.
    fn simple(&mut self, act: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        match self.operate() {
            None => act(self),
            Some(Fault::Late(kind)) => act(self).and(Err(kind.into())),
            Some(fault) => Err(fault.error()),
        }
    }

    fn record(&mut self, event: Event) {
        if let Event::Data { file, change } = &event {
            change.apply(&mut self.seen[*file]);
        }
        self.now.apply(&event);
        self.events.push(event);
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let found = self.now.names.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        let named = self.now.names.values();
        named.map(|id| self.seen[*id].len() as u64).sum()
    }

    /// How much of a write fits.
    fn fits(&self, file: usize, at: usize, len: usize) -> usize {
        let Some(space) = self.space else { return len };
        let old = self.seen[file].len();
        let free = space.saturating_sub(self.used());
        let limit = old + usize::try_from(free).unwrap_or(usize::MAX - old);
        len.min(limit.saturating_sub(at))
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Error(kind) | Self::Short(kind) | Self::Late(kind) => kind.into(),
            Self::Dead => io::Error::other("the disk is gone"),
        }
    }
}

impl SimDisk {
    fn with<T>(&self, act: impl FnOnce(&mut Sim) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn from_cut(start: Cut) -> Self {
        let seen: Vec<Vec<u8>> = start.files.iter().map(image::File::seen).collect();
        Self(Arc::new(Mutex::new(Sim {
            now: start.clone(),
            start,
            seen,
            ..Sim::default()
        })))
    }

    /// Operations so far that change something or make it durable.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.with(|sim| sim.operations)
    }

    /// Syncs of files so far that succeeded.
    #[must_use]
    pub fn syncs(&self) -> usize {
        self.with(|sim| sim.syncs)
    }

    /// How many operations were recorded: a position for [`SimDisk::cuts`].
    #[must_use]
    pub fn recorded(&self) -> usize {
        self.with(|sim| sim.events.len())
    }

    /// Has operation `at`, counted as by [`SimDisk::operations`], go wrong.
    pub fn fail(&self, at: usize, fault: Fault) {
        self.with(|sim| sim.faults.insert(at, fault));
    }

    /// Forgets the faults that were set.
    pub fn heal(&self) {
        self.with(|sim| sim.faults.clear());
    }

    /// Bytes that all files together may have; `None`: any.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.with(|sim| sim.space = bytes);
    }

    /// Bytes that all files together have.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.with(|sim| sim.used())
    }

    /// What a power cut now finds.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.with(|sim| sim.now.clone())
    }

    /// What a power cut finds after each recorded operation, from none on.
    pub fn cuts(&self) -> impl Iterator<Item = (usize, Cut)> + use<> {
        let (start, events) = self.with(|sim| (sim.start.clone(), sim.events.clone()));
        let mut now = start.clone();
        let later = events.into_iter().enumerate().map(move |(n, event)| {
            now.apply(&event);
            (n + 1, now.clone())
        });
        std::iter::once((0, start)).chain(later)
    }

    /// What a power cut finds after the first `recorded` operations.
    #[must_use]
    pub fn cut_at(&self, recorded: usize) -> Cut {
        self.with(|sim| {
            let mut cut = sim.start.clone();
            let events = sim.events.iter().take(recorded);
            events.for_each(|event| cut.apply(event));
            cut
        })
    }

    /// The disk as the next process sees it when this one was killed: nothing is lost, and what
    /// was not durable still is not.
    #[must_use]
    pub fn killed(&self) -> Self {
        Self::from_cut(self.cut())
    }

    /// The contents of a file as seen.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        self.with(|sim| sim.find(path).ok().map(|id| sim.seen[id].clone()))
    }

    /// Replaces a file behind the back of whoever uses it, durably: damage.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        let id = self.create_id(path).unwrap();
        self.with(|sim| {
            let change = Change::Write(0, bytes.into());
            sim.record(Event::Data { file: id, change });
            sim.record(Event::Sync { file: id });
            sim.record(Event::SyncDir {
                dir: parent(path).into(),
            });
        });
    }

    fn create_id(&self, path: &Path) -> io::Result<usize> {
        self.with(|sim| {
            let mut id = 0;
            sim.simple(|sim| {
                id = match sim.find(path) {
                    Ok(id) => {
                        let change = Change::Size(0);
                        sim.record(Event::Data { file: id, change });
                        id
                    }
                    Err(_) => {
                        let id = sim.seen.len();
                        sim.seen.push(Vec::new());
                        sim.record(Event::Name(NameChange::Set(path.into(), id)));
                        id
                    }
                };
                Ok(())
            })?;
            Ok(id)
        })
    }

    fn file(&self, id: usize) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            disk: self.clone(),
            id,
            has_lock: AtomicBool::new(false),
        })
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.create_id(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.with(|sim| sim.find(path))?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|sim| {
            sim.simple(|sim| {
                let id = sim.find(from)?;
                let change = NameChange::Move(from.into(), to.into(), id);
                sim.record(Event::Name(change));
                Ok(())
            })
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|sim| {
            sim.simple(|sim| {
                sim.find(path)?;
                sim.record(Event::Name(NameChange::Unset(path.into())));
                Ok(())
            })
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|sim| match sim.operate() {
            None => {
                sim.record(Event::SyncDir { dir: dir.into() });
                Ok(())
            }
            Some(fault) => Err(fault.error()),
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inside = |p: &&PathBuf| parent(p) == dir;
        let name = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(self.with(|sim| sim.now.names.keys().filter(inside).map(name).collect()))
    }

    // Directories are always there.
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path).or_else(|_| self.create(path))
    }

    fn info(&self, path: &Path) -> io::Result<Info> {
        self.with(|sim| {
            let bytes = sim.seen[sim.find(path)?].len() as u64;
            // Everything is old: collection is told apart by what it is to keep.
            let modified = Some(SystemTime::UNIX_EPOCH);
            Ok(Info { bytes, modified })
        })
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.with(|sim| sim.find(path).map(drop))
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.with(|sim| sim.seen[self.id].len() as u64))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.with(|sim| {
            let start = usize::try_from(offset).unwrap();
            let bytes = sim.seen[self.id].get(start..start + buf.len());
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (file, at) = (self.id, usize::try_from(offset).unwrap());
        self.disk.with(|sim| {
            let fault = sim.operate();
            let fits = sim.fits(file, at, buf.len());
            let (len, result) = match fault {
                None if fits < buf.len() => (fits, Err(io::ErrorKind::StorageFull.into())),
                None => (buf.len(), Ok(())),
                Some(Fault::Short(kind)) => (fits.min(buf.len() / 2), Err(kind.into())),
                Some(Fault::Late(kind)) => (fits, Err(kind.into())),
                Some(fault) => (0, Err(fault.error())),
            };
            if len > 0 {
                let change = Change::Write(at, buf[..len].into());
                sim.record(Event::Data { file, change });
            }
            result
        })
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        let (file, size) = (self.id, usize::try_from(size).unwrap());
        self.disk.with(|sim| {
            sim.simple(|sim| {
                let change = Change::Size(size);
                sim.record(Event::Data { file, change });
                Ok(())
            })
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let file = self.id;
        self.disk.with(|sim| match sim.operate() {
            None => {
                sim.syncs += 1;
                sim.record(Event::Sync { file });
                Ok(())
            }
            // The process did not get that far.
            Some(Fault::Dead) => Err(Fault::Dead.error()),
            Some(fault) => {
                sim.record(Event::SyncFailed { file });
                Err(fault.error())
            }
        })
    }

    fn try_lock(&self) -> io::Result<bool> {
        let taken = self.disk.with(|sim| sim.locked.insert(self.id));
        self.has_lock.fetch_or(taken, Ordering::Relaxed);
        Ok(taken)
    }

    fn is_at(&self, path: &Path) -> bool {
        self.disk.with(|sim| sim.find(path)).ok() == Some(self.id)
    }
}
