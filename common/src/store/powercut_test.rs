//! The journal after a power cut at every operation of many workloads: each image opens, holds
//! everything acknowledged, and no half of a commit.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    Key, MasterKey, Op, Result, Revision,
    disk::Disk,
    journal::{Journal, Replayed},
    powercut::{Fault, Report, Rng, SimDisk, is_long, seed},
};

pub(super) type State = BTreeMap<Key, (Revision, Bytes)>;

pub(super) const DIR: &str = "/sim";

pub(super) fn open(disk: &SimDisk) -> Result<Journal> {
    let mut journal = Journal::open(
        Arc::new(disk.clone()),
        Path::new(DIR),
        &MasterKey::from_bytes([2; 32]),
    )?;
    journal.repair()?;
    Ok(journal)
}

pub(super) fn contents(journal: &Journal) -> State {
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

pub(super) fn apply(state: &mut State, revision: Revision, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put(key, value) => state.insert(key.clone(), (revision, value.clone())),
            Op::Delete(key) => state.remove(key),
        };
    }
}

/// States by revision, of everything that was ever tried, and what was told to be durable when.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) history: Vec<State>,
    /// After so many recorded operations.
    acknowledged: Vec<(usize, Revision)>,
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            history: vec![State::new()],
            acknowledged: Vec::new(),
        }
    }

    /// The run that goes on from an image at `last`.
    fn resumed_at(&self, last: Revision) -> Self {
        let end = usize::try_from(last.0).unwrap() + 1;
        Self {
            history: self.history[..end].to_vec(),
            acknowledged: vec![(0, last)],
        }
    }

    pub(super) fn acknowledge(&mut self, disk: &SimDisk, last: Revision) {
        self.acknowledged.push((disk.recorded(), last));
    }

    /// What was acknowledged by then.
    pub(super) fn acknowledged(&self, recorded: usize) -> Revision {
        let told = self.acknowledged.iter().filter(|(at, _)| *at <= recorded);
        told.map(|(_, last)| *last).max().unwrap_or(Revision::ZERO)
    }

    /// Notes the states that `group` leads to; what was tried and did not happen is forgotten.
    pub(super) fn attempt(&mut self, last: Revision, group: &[Vec<Op>]) {
        self.history.truncate(usize::try_from(last.0).unwrap() + 1);
        for ops in group {
            let mut state = self.history.last().unwrap().clone();
            apply(&mut state, Revision(self.history.len() as u64), ops);
            self.history.push(state);
        }
    }

    /// Demands everything up to `acknowledged`, and nothing that was never tried.
    pub(super) fn check(&self, image: &SimDisk, acknowledged: Revision, context: &str) -> Revision {
        let journal = open(image).unwrap_or_else(|e| panic!("{context}: {e}"));
        let last = journal.last();
        assert!(
            last >= acknowledged,
            "{context}: {last} of {acknowledged} is left"
        );
        let expected = self.history.get(usize::try_from(last.0).unwrap());
        let expected = expected.unwrap_or_else(|| panic!("{context}: {last} was never tried"));
        assert_eq!(&contents(&journal), expected, "{context}: at {last}");
        last
    }
}

fn random_group(rng: &mut Rng, revision: u64) -> Vec<Vec<Op>> {
    let commit = |n: usize, rng: &mut Rng| {
        let mut keys: Vec<usize> = (0..8).collect();
        (0..1 + rng.below(3))
            .map(|_| {
                let key = keys.swap_remove(rng.below(keys.len()));
                let key = Key::new(format!("key{key}")).unwrap();
                if rng.one_in(4) {
                    return Op::Delete(key);
                }
                let len = [0, 20, 200, 900, 3000][rng.below(5)];
                let mut value = format!("{revision}+{n} ").into_bytes();
                value.resize(value.len() + len, rng.number() as u8);
                Op::Put(key, value.into())
            })
            .collect()
    };
    (0..1 + rng.below(3)).map(|n| commit(n, rng)).collect()
}

/// Commits, compacts and opens anew, at random.
fn work(disk: &SimDisk, run: &mut Run, rng: &mut Rng, steps: usize) -> Result<()> {
    let mut journal = open(disk)?;
    run.acknowledge(disk, journal.last());
    for _ in 0..steps {
        let group = random_group(rng, journal.last().0);
        run.attempt(journal.last(), &group);
        journal.append(&group)?;
        run.acknowledge(disk, journal.last());
        match rng.below(8) {
            0 | 1 => journal.compact()?,
            2 => {
                drop(journal);
                journal = open(disk)?;
                run.acknowledge(disk, journal.last());
            }
            _ => {}
        }
    }
    Ok(())
}

/// How much of everything is tried.
struct Depth {
    workloads: u64,
    images: usize,
    /// One in so many images is worked on, and cut again.
    again: usize,
}

fn depth() -> Depth {
    if is_long() {
        Depth {
            workloads: 50,
            images: 5,
            again: 20,
        }
    } else {
        Depth {
            workloads: 50,
            images: 2,
            again: 60,
        }
    }
}

/// Cuts a run after every operation.
fn cut_everywhere(
    disk: &SimDisk,
    run: &Run,
    rng: &mut Rng,
    depth: &Depth,
    context: &str,
    report: &mut Report,
) {
    for (at, cut) in disk.cuts() {
        for image in cut.images(rng, depth.images) {
            let context = format!("{context}, cut after {at}");
            let last = run.check(&image, run.acknowledged(at), &context);
            report.images += 1;
            if !rng.one_in(depth.again) {
                continue;
            }
            // The recovery itself was recorded, and the work after it: cut it all again.
            let mut next = run.resumed_at(last);
            work(&image, &mut next, rng, 3).unwrap();
            for (at, cut) in image.cuts() {
                for second in cut.images(rng, 2) {
                    let context = format!("{context}, recovered, cut again after {at}");
                    next.check(&second, next.acknowledged(at), &context);
                    report.images += 1;
                }
            }
        }
    }
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing() {
    let depth = depth();
    let mut report = Report::default();
    for workload in seed()..seed() + depth.workloads {
        let (disk, mut run) = (SimDisk::default(), Run::new());
        let mut rng = Rng::new(workload);
        work(&disk, &mut run, &mut rng, 12).unwrap();
        let context = format!("HOP3_SEED={workload}");
        cut_everywhere(&disk, &run, &mut rng, &depth, &context, &mut report);
        report.workloads += 1;
    }
    report.print("journal");
    let enough = if is_long() { 20_000 } else { 1_000 };
    assert!(
        report.images >= enough && report.workloads >= 50,
        "{report:?}"
    );
}

#[test]
fn what_a_killed_process_left_is_durable_once_it_was_shown() {
    let mut report = Report::default();
    for workload in seed()..seed() + if is_long() { 20 } else { 4 } {
        let operations = {
            let (disk, mut run) = (SimDisk::default(), Run::new());
            work(&disk, &mut run, &mut Rng::new(workload), 10).unwrap();
            disk.operations()
        };
        for at in 0..operations {
            let (disk, mut run) = (SimDisk::default(), Run::new());
            let mut rng = Rng::new(workload);
            disk.fail(at, Fault::Dead);
            // What fails after the last commit is only tidying.
            let _ = work(&disk, &mut run, &mut rng, 10);
            // The page cache survives the process; the next one sees what was not flushed.
            let next = disk.killed();
            let context = format!("HOP3_SEED={workload}, killed at {at}");
            let acknowledged = run.acknowledged(usize::MAX);
            let shown = run.check(&next, acknowledged, &context);
            for image in next.cut().images(&mut rng, 4) {
                run.check(&image, shown, &format!("{context}, then cut"));
                report.images += 1;
            }
        }
        report.workloads += 1;
    }
    report.print("journal-killed");
}

#[test]
fn the_simulated_disk_tells_what_is_durable() {
    let disk = SimDisk::default();
    let path = Path::new("/sim/file");
    let mut file = disk.create(path).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    assert_eq!(disk.cut().dropped().contents(path), None);
    assert_eq!(disk.cut().kept().contents(path).unwrap(), b"one");
    file.sync().unwrap();
    assert_eq!(
        disk.cut().dropped().contents(path),
        None,
        "it has no name yet"
    );
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(disk.cut().dropped().contents(path).unwrap(), b"one");
    // A failed sync is not made good by one that succeeds.
    file.write_all_at(b"two", 0).unwrap();
    disk.fail(disk.operations(), Fault::Error(std::io::ErrorKind::Other));
    file.sync().unwrap_err();
    file.sync().unwrap();
    assert_eq!(disk.contents(path).unwrap(), b"two");
    assert_eq!(disk.cut().dropped().contents(path).unwrap(), b"one");
    // Every state of two writes is there, and torn ones.
    file.write_all_at(&[b'x'; 600], 0).unwrap();
    file.write_all_at(b"y", 1000).unwrap();
    let images = disk.cut().images(&mut Rng::new(1), 30);
    let found: Vec<_> = images.iter().map(|i| i.contents(path).unwrap()).collect();
    let has = |what: &dyn Fn(&[u8]) -> bool| found.iter().any(|bytes| what(bytes));
    assert!(has(&|b| b == b"one"));
    assert!(has(&|b| b.len() == 600 && b[599] == b'x'));
    assert!(has(&|b| b.len() == 1001
        && b.starts_with(b"one\0")
        && b[1000] == b'y'));
    assert!(
        has(&|b| b.len() >= 600 && b[0] == b'x' && b[550] != b'x'),
        "torn"
    );
    disk.set_space(Some(1005));
    let error = file.write_all_at(&[b'z'; 10], 1000).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(disk.used(), 1005);
}
