//! The journal on a disk that crashes, tears writes and fails at every operation.
//!
//! [`SimDisk`] keeps two images: what the process sees, and what is durable. A crash leaves the
//! durable image, with unflushed writes dropped, kept, or torn.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{
    Error, Key, MasterKey, Op, Result, Revision,
    disk::{Disk, DiskFile},
    journal::{Journal, Replayed},
};

/// What becomes of unflushed work in a crash.
#[derive(Debug, Clone, Copy)]
enum Unflushed {
    Dropped,
    Kept,
    /// Of each file's unflushed bytes, the first half is there and the rest is garbage.
    Torn,
    /// As torn, but only the file's length got there.
    Zeroed,
}

/// What goes wrong at one operation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// It fails once, a write half done.
    Error(io::ErrorKind),
    /// It and everything after it fails: the process is dead.
    Crash,
}

#[derive(Debug, Default, Clone)]
struct Contents {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug, Default)]
struct Sim {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    syncs: usize,
}

#[derive(Debug, Clone, Default)]
struct SimDisk(Arc<Mutex<Sim>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl Sim {
    /// Counts an operation; says whether it must fail.
    fn operate(&mut self) -> io::Result<()> {
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::Error(kind))) if at == now => Err(kind.into()),
            Some((at, Fault::Crash)) if at <= now => Err(io::Error::other("crashed")),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SimDisk {
    fn with<T>(&self, act: impl FnOnce(&mut Sim) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// The disk after a power cut.
    fn after_crash(&self, unflushed: Unflushed) -> Self {
        self.with(|sim| {
            let survive = |c: &Contents| {
                let mut bytes = match unflushed {
                    Unflushed::Dropped => c.durable.clone(),
                    _ => c.seen.clone(),
                };
                let common = c
                    .durable
                    .iter()
                    .zip(&c.seen)
                    .take_while(|(a, b)| a == b)
                    .count();
                let middle = common + (bytes.len() - common) / 2;
                match unflushed {
                    Unflushed::Torn => bytes[middle..].iter_mut().for_each(|b| *b ^= 0x5A),
                    Unflushed::Zeroed => bytes[common..].fill(0),
                    _ => {}
                }
                Contents {
                    seen: bytes.clone(),
                    durable: bytes,
                }
            };
            let names = match unflushed {
                Unflushed::Dropped => sim.durable_names.clone(),
                _ => sim.names.clone(),
            };
            Self(Arc::new(Mutex::new(Sim {
                files: sim.files.iter().map(survive).collect(),
                durable_names: names.clone(),
                names,
                ..Sim::default()
            })))
        })
    }

    fn file(&self, id: usize) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            disk: self.clone(),
            id,
        })
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = self.with(|sim| {
            sim.operate()?;
            sim.files.push(Contents::default());
            sim.names.insert(path.into(), sim.files.len() - 1);
            io::Result::Ok(sim.files.len() - 1)
        })?;
        Ok(self.file(id))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.with(|sim| sim.find(path))?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|sim| {
            sim.operate()?;
            let id = sim.find(from)?;
            sim.names.remove(from);
            sim.names.insert(to.into(), id);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|sim| {
            sim.operate()?;
            sim.find(path)?;
            sim.names.remove(path);
            Ok(())
        })
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.with(|sim| {
            sim.operate()?;
            sim.durable_names = sim.names.clone();
            Ok(())
        })
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let name = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(self.with(|sim| sim.names.keys().map(name).collect()))
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.with(|sim| sim.files[self.id].seen.len() as u64))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.with(|sim| {
            let start = usize::try_from(offset).unwrap();
            let bytes = sim.files[self.id].seen.get(start..start + buf.len());
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.with(|sim| {
            let result = sim.operate();
            let buf = if result.is_ok() {
                buf
            } else {
                &buf[..buf.len() / 2]
            };
            let start = usize::try_from(offset).unwrap();
            let seen = &mut sim.files[self.id].seen;
            seen.resize(seen.len().max(start + buf.len()), 0);
            seen[start..start + buf.len()].copy_from_slice(buf);
            result
        })
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.disk.with(|sim| {
            sim.operate()?;
            sim.files[self.id]
                .seen
                .resize(usize::try_from(size).unwrap(), 0);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.with(|sim| {
            sim.operate()?;
            sim.syncs += 1;
            let file = &mut sim.files[self.id];
            file.durable = file.seen.clone();
            Ok(())
        })
    }
}

type State = BTreeMap<Key, (Revision, Bytes)>;

const DIR: &str = "/sim";

fn open(disk: &SimDisk) -> Result<Journal> {
    let mut journal = Journal::open(
        Arc::new(disk.clone()),
        Path::new(DIR),
        &MasterKey::from_bytes([2; 32]),
    )?;
    journal.repair()?;
    Ok(journal)
}

fn contents(journal: &Journal) -> State {
    let mut state = State::new();
    journal
        .replay(None, &mut |replayed| {
            match replayed {
                Replayed::Record(key, revision, value) => {
                    state.insert(key, (revision, value));
                }
                Replayed::SnapshotEnd(_) => {}
                Replayed::Commit(revision, ops) => apply(&mut state, revision, &ops),
            }
            Ok(())
        })
        .unwrap();
    state
}

fn apply(state: &mut State, revision: Revision, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put(key, value) => state.insert(key.clone(), (revision, value.clone())),
            Op::Delete(key) => state.remove(key),
        };
    }
}

/// A fixed history: groups of commits, with overwriting and deleting.
fn group(step: u64) -> Vec<Vec<Op>> {
    let key = |n: u64| Key::new(format!("key{}", n % 5)).unwrap();
    let put = |n: u64| Op::Put(key(n), Bytes::from(format!("value {n} of step {step}")));
    match step % 3 {
        0 => vec![vec![put(step)], vec![put(step + 1), put(step + 2)]],
        1 => vec![vec![Op::Delete(key(step)), put(step + 3)]],
        _ => vec![vec![put(step)]],
    }
}

/// States by revision, of everything that was ever tried.
struct Run {
    history: Vec<State>,
    acknowledged: Revision,
}

/// Works through the history, compacting now and then, until the disk is dead or it is done.
fn work(disk: &SimDisk) -> Run {
    let mut run = Run {
        history: vec![State::new()],
        acknowledged: Revision::ZERO,
    };
    let Ok(mut journal) = open(disk) else {
        return run;
    };
    for step in 0..12 {
        let group = group(step);
        // A failed write may be followed by another try, which takes the same revisions.
        run.history
            .truncate(usize::try_from(journal.last().0).unwrap() + 1);
        for ops in &group {
            let mut state = run.history.last().unwrap().clone();
            apply(&mut state, Revision(run.history.len() as u64), ops);
            run.history.push(state);
        }
        if journal.append(&group).is_ok() {
            run.acknowledged = journal.last();
        } else if matches!(journal.append(&group), Err(Error::Poisoned { .. })) {
            return run;
        } else {
            run.acknowledged = journal.last();
        }
        if step % 4 == 3 {
            let _ = journal.compact();
        }
    }
    run
}

/// Opens the disk and demands everything that was acknowledged, and nothing that never was.
fn check(disk: &SimDisk, run: &Run, context: &str) {
    let journal = open(disk).unwrap_or_else(|e| panic!("{context}: {e}"));
    let last = journal.last();
    assert!(
        last >= run.acknowledged,
        "{context}: lost {last}..{}",
        run.acknowledged
    );
    let expected = &run.history[usize::try_from(last.0).unwrap()];
    assert_eq!(&contents(&journal), expected, "{context}: at {last}");
    // It works again.
    let mut journal = journal;
    journal.append(&group(0)).unwrap();
    journal.compact().unwrap();
    assert_eq!(
        open(disk).unwrap().last(),
        Revision(last.0 + 2),
        "{context}"
    );
}

fn operations_of_a_run() -> usize {
    let disk = SimDisk::default();
    let run = work(&disk);
    assert_eq!(run.acknowledged, Revision(16));
    disk.with(|sim| sim.operations)
}

#[test]
fn power_cut_at_every_operation_loses_nothing() {
    let operations = operations_of_a_run();
    let mut images = 0;
    for at in 0..operations {
        let disk = SimDisk::default();
        disk.with(|sim| sim.fault = Some((at, Fault::Crash)));
        let run = work(&disk);
        for unflushed in [
            Unflushed::Dropped,
            Unflushed::Kept,
            Unflushed::Torn,
            Unflushed::Zeroed,
        ] {
            let image = disk.after_crash(unflushed);
            check(&image, &run, &format!("operation {at}, {unflushed:?}"));
            images += 1;
        }
    }
    assert!(images > 150, "{images} images are too few to mean anything");
}

#[test]
fn any_failed_operation_loses_nothing() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        for at in 0..operations_of_a_run() {
            let disk = SimDisk::default();
            disk.with(|sim| sim.fault = Some((at, Fault::Error(kind))));
            let run = work(&disk);
            for unflushed in [Unflushed::Dropped, Unflushed::Kept] {
                let image = disk.after_crash(unflushed);
                check(
                    &image,
                    &run,
                    &format!("operation {at} {kind:?}, {unflushed:?}"),
                );
            }
        }
    }
}

#[test]
fn a_failed_flush_poisons_and_is_not_tried_again() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    // An append is a write and a flush.
    disk.with(|sim| sim.fault = Some((sim.operations + 1, Fault::Error(io::ErrorKind::Other))));
    assert!(matches!(
        journal.append(&group(1)),
        Err(Error::SyncFailed { .. })
    ));
    let operations = disk.with(|sim| sim.operations);
    for _ in 0..3 {
        assert!(matches!(
            journal.append(&group(1)),
            Err(Error::Poisoned { .. })
        ));
    }
    assert!(!journal.compaction_due());
    assert_eq!(
        disk.with(|sim| sim.operations),
        operations,
        "nothing touches the disk again"
    );
}

#[test]
fn a_full_disk_is_no_end() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    disk.with(|sim| sim.fault = Some((sim.operations, Fault::Error(io::ErrorKind::StorageFull))));
    let refused = journal.append(&group(1)).unwrap_err();
    assert!(matches!(refused, Error::NoSpace { .. }) && refused.retryable());
    journal.append(&group(1)).unwrap();
    assert_eq!(
        open(&disk.after_crash(Unflushed::Dropped)).unwrap().last(),
        Revision(3)
    );
}

#[test]
fn a_group_costs_one_flush() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    let before = disk.with(|sim| sim.syncs);
    let group: Vec<_> = (0..100).flat_map(group).collect();
    journal.append(&group).unwrap();
    assert_eq!(disk.with(|sim| sim.syncs), before + 1);
    assert_eq!(journal.last(), Revision(group.len() as u64));
}

#[test]
fn compaction_never_drops_or_revives_a_record() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    let mut state = State::new();
    for step in 0..60 {
        for ops in group(step) {
            apply(&mut state, journal.last().next(), &ops);
            journal.append(&[ops]).unwrap();
        }
        if step % 7 == 0 {
            journal.compact().unwrap();
        }
        assert_eq!(contents(&journal), state, "step {step}");
    }
    let reopened = open(&disk).unwrap();
    assert_eq!(contents(&reopened), state);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names.len(), 2, "old files are gone: {names:?}");
}

#[test]
fn a_lost_snapshot_is_reported() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    journal.compact().unwrap();
    journal.append(&group(1)).unwrap();
    drop(journal);
    disk.remove(&Path::new(DIR).join("snapshot-0000000000000002"))
        .unwrap();
    let error = open(&disk).unwrap_err().to_string();
    assert!(
        error.contains("snapshot-0000000000000002") && error.contains("missing"),
        "{error}"
    );
}
