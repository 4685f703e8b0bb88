//! [`LocalStore`] after power cuts and disk faults: with its index gone, old, half or garbage.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, sync::atomic::Ordering};

use super::{
    Error, IndexRecovery, Key, LocalStore, MasterKey, Options, Precondition, Range, Recovery,
    Result, Revision, Txn, VALUE_BYTES_MAX,
    powercut::{Fault, Report, Rng, SimDisk, is_long, seed},
};

type State = BTreeMap<Key, (Revision, Vec<u8>)>;

fn open(dir: &Path, disk: &SimDisk) -> Result<(LocalStore, Recovery)> {
    let options = Options {
        disk: Arc::new(disk.clone()),
        ..Options::default()
    };
    LocalStore::open(dir, &MasterKey::from_bytes([1; 32]), options)
}

fn key(text: impl Into<String>) -> Key {
    Key::new(text.into()).unwrap()
}

fn contents(store: &LocalStore) -> State {
    let page = store.range_blocking(&Range::prefix("")).unwrap();
    assert!(!page.more);
    let entries = page.entries.into_iter();
    entries
        .map(|e| (e.key, (e.revision, e.value.to_vec())))
        .collect()
}

struct Run {
    states: Vec<State>,
    acknowledged: Vec<(usize, Revision)>,
}

impl Run {
    fn acknowledged(&self, recorded: usize) -> Revision {
        let told = self.acknowledged.iter().filter(|(at, _)| *at <= recorded);
        told.map(|(_, last)| *last).max().unwrap_or_default()
    }
}

/// Transactions with and without preconditions, reopening, and (`large`) compaction.
fn work(dir: &Path, disk: &SimDisk, rng: &mut Rng, large: bool) -> Run {
    let mut run = Run {
        states: vec![State::new()],
        acknowledged: Vec::new(),
    };
    let (mut store, _) = open(dir, disk).unwrap();
    for step in 0..if large { 45 } else { 14 } {
        let state = run.states.last().unwrap().clone();
        let (a, b) = (
            key(format!("a{}", rng.below(4))),
            key(format!("b{}", rng.below(4))),
        );
        let len = if large {
            VALUE_BYTES_MAX - 10
        } else {
            rng.below(1500)
        };
        let value = |n: u8| {
            let mut value = format!("{step}.{n} ").into_bytes();
            value.resize(value.len() + len, n);
            value
        };
        let holds = match state.get(&a) {
            Some((revision, _)) => Precondition::RevisionIs(*revision),
            None => Precondition::Absent,
        };
        let mut next = state.clone();
        let revision = Revision(run.states.len() as u64);
        let txn = match rng.below(5) {
            0 => {
                // Must fail as a whole.
                let txn = Txn::new()
                    .put(b.clone(), value(0))
                    .require(a, Precondition::RevisionIs(revision));
                assert!(store.commit_blocking(txn).unwrap_err().is_conflict());
                continue;
            }
            1 => {
                next.remove(&a);
                Txn::new().delete(a)
            }
            _ => {
                next.insert(a.clone(), (revision, value(1)));
                next.insert(b.clone(), (revision, value(2)));
                Txn::new()
                    .require(a.clone(), holds)
                    .put(a, value(1))
                    .put(b, value(2))
            }
        };
        let durable = store.commit_blocking(txn).unwrap();
        if next != state {
            assert_eq!(*durable.get(), revision);
            run.states.push(next);
        }
        run.acknowledged.push((disk.recorded(), *durable.get()));
        if rng.one_in(6) {
            drop(store);
            store = open(dir, disk).unwrap().0;
        }
    }
    run
}

/// Leaves the index as a power cut may; says what.
fn spoil_index(dir: &Path, rng: &mut Rng) -> &'static str {
    let index = dir.join("index");
    fs::write(dir.join("index.trust"), "another-boot 0\n").unwrap();
    match rng.below(4) {
        0 => fs::remove_dir_all(&index).map(|()| "gone"),
        1 => Ok("old"),
        2 => {
            let len = fs::metadata(index.join("db")).unwrap().len();
            let file = fs::File::options().write(true).open(index.join("db"));
            file.unwrap().set_len(len / 2).map(|()| "half")
        }
        _ => {
            fs::write(index.join("snap.00000000.generating"), b"half").unwrap();
            fs::write(index.join("db"), vec![0xA5; 70_000]).map(|()| "garbage")
        }
    }
    .unwrap()
}

#[test]
fn a_power_cut_with_any_index_loses_nothing() {
    let (workloads, cuts) = if is_long() { (60, 10) } else { (50, 4) };
    let mut report = Report::default();
    for workload in seed()..seed() + workloads {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut rng) = (SimDisk::default(), Rng::new(workload));
        let run = work(dir.path(), &disk, &mut rng, workload % 25 == 0);
        for _ in 0..cuts {
            let at = rng.below(disk.recorded() + 1);
            let images = disk.cut_at(at).images(&mut rng, 8);
            let image = &images[rng.below(images.len())];
            let index = if dir.path().join("index").is_dir() {
                spoil_index(dir.path(), &mut rng)
            } else {
                "gone"
            };
            let context = format!("HOP3_SEED={workload}, cut after {at}, index {index}");
            let opened = open(dir.path(), image);
            let (store, recovery) = opened.unwrap_or_else(|e| panic!("{context}: {e}"));
            let last = recovery.revision;
            assert!(last >= run.acknowledged(at), "{context}: lost after {last}");
            let expected = &run.states[usize::try_from(last.0).unwrap()];
            assert_eq!(&contents(&store), expected, "{context}");
            let told = matches!(recovery.index, IndexRecovery::Rebuilt { .. });
            assert!(told || last == Revision::ZERO, "{context}: {recovery:?}");
            store
                .commit_blocking(Txn::new().put(key("z"), "1"))
                .unwrap();
            report.images += 1;
        }
        report.workloads += 1;
    }
    report.print("store");
}

fn put(store: &LocalStore, k: &str, v: &str) -> Result<Revision> {
    let put = store.commit_blocking(Txn::new().put(key(k), v.to_owned()));
    put.map(super::Durable::into_inner)
}

#[test]
fn every_failed_operation_of_a_commit_is_survived_in_place() {
    let full = io::ErrorKind::StorageFull;
    for fault in [
        Fault::Error(full),
        Fault::Short(full),
        Fault::Late(io::ErrorKind::Other),
    ] {
        for (at, next) in [
            (0, None),
            (1, None),
            (0, Some(Fault::Dead)),
            (1, Some(Fault::Dead)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let disk = SimDisk::default();
            let (store, _) = open(dir.path(), &disk).unwrap();
            put(&store, "a", "1").unwrap();
            let now = disk.operations();
            disk.fail(now + at, fault);
            next.inspect(|next| disk.fail(now + at + 1, *next));
            let error = put(&store, "a", "2").unwrap_err();
            let context = format!("{fault:?} at {at}, then {next:?}: {error}");
            if next.is_some() {
                for _ in 0..2 {
                    let error = put(&store, "a", "2").unwrap_err();
                    assert!(matches!(error, Error::Poisoned { .. }) && error.retryable());
                    assert!(error.to_string().contains("refuses writes"), "{error}");
                }
                assert_eq!(contents(&store)[&key("a")].1, b"1", "{context}");
            }
            // The disk works again; the store is not opened anew.
            disk.heal();
            assert_eq!(contents(&store)[&key("a")].1, b"1", "{context}");
            assert_eq!(put(&store, "b", "3").unwrap(), Revision(2), "{context}");
            let shown = contents(&store);
            assert!(!shown.values().any(|(_, v)| v == b"2"), "{context}");
            let image = disk.cut().dropped();
            drop(store);
            fs::remove_dir_all(dir.path().join("index")).unwrap();
            let (store, _) = open(dir.path(), &image).unwrap();
            assert_eq!(contents(&store), shown, "{context}");
        }
    }
}

#[test]
fn a_failed_index_is_rebuilt_in_place_and_watchers_miss_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::default();
    let (store, _) = open(dir.path(), &disk).unwrap();
    put(&store, "a", "1").unwrap();
    let mut watch = super::MetaStore::watch(&store, b"").unwrap();
    store.index().fail.store(true, Ordering::Relaxed);
    assert_eq!(put(&store, "b", "2").unwrap(), Revision(2));
    // Now it cannot be rebuilt at once: something is in its place.
    store.index().fail.store(true, Ordering::Relaxed);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    fs::write(dir.path().join("index"), b"in the way").unwrap();
    let error = put(&store, "c", "3").unwrap_err();
    assert!(matches!(error, Error::Index { .. }), "{error}");
    let error = put(&store, "d", "4").unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    assert!(watch.try_next().unwrap().is_some(), "of b");
    assert!(watch.try_next().unwrap().is_none());
    fs::remove_file(dir.path().join("index")).unwrap();
    assert_eq!(put(&store, "d", "4").unwrap(), Revision(4));
    let told: Vec<u64> = std::iter::from_fn(|| watch.try_next().unwrap())
        .map(|event| event.revision.0)
        .collect();
    assert_eq!(told, [3, 4]);
    assert_eq!(contents(&store).len(), 4);
}

#[test]
fn deleting_the_index_of_an_open_store_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::default();
    let (store, _) = open(dir.path(), &disk).unwrap();
    for n in 0..40 {
        put(&store, &format!("k{n}"), "v").unwrap();
        if n == 20 {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
    }
    let shown = contents(&store);
    assert_eq!(shown.len(), 40);
    drop(store);
    let (store, recovery) = open(dir.path(), &disk).unwrap();
    assert!(
        matches!(recovery.index, IndexRecovery::Rebuilt { .. }),
        "{recovery:?}"
    );
    assert_eq!(contents(&store), shown);
}
