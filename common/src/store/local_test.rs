//! [`LocalStore`] against damage, loss, wrong keys, and many writers.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{
    Error, IndexRecovery, Key, LocalStore, MasterKey, Options, Precondition, Range, Recovery,
    Result, Revision, Txn, VALUE_BYTES_MAX,
    disk::{Disk, DiskFile, OsDisk},
    local::block_on,
};

fn master() -> MasterKey {
    MasterKey::from_bytes([1; 32])
}

fn try_open(dir: &Path) -> Result<(LocalStore, Recovery)> {
    LocalStore::open(dir, &master(), Options::default())
}

fn open(dir: &Path) -> (LocalStore, Recovery) {
    try_open(dir).unwrap()
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

fn put(store: &LocalStore, k: &str, v: &str) -> Revision {
    store
        .commit_blocking(Txn::new().put(key(k), v.to_owned()))
        .unwrap()
        .into_inner()
}

fn contents(store: &LocalStore) -> BTreeMap<String, String> {
    let page = store.range_blocking(&Range::prefix("")).unwrap();
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    page.entries
        .iter()
        .map(|e| (text(e.key.as_bytes()), text(&e.value)))
        .collect()
}

/// Every file under `dir` with its bytes.
fn image(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path)
            } else {
                drop(files.insert(path.clone(), fs::read(&path).unwrap()))
            }
        }
    }
    files
}

fn restore(dir: &Path, image: &BTreeMap<PathBuf, Vec<u8>>) {
    fs::remove_dir_all(dir).unwrap();
    for (path, bytes) in image {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn file(dir: &Path, prefix: &str) -> PathBuf {
    let path_of = |e: io::Result<fs::DirEntry>| e.unwrap().path();
    let ours = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    fs::read_dir(dir).unwrap().map(path_of).find(ours).unwrap()
}

/// A closed store of a few commits, and its states by revision.
fn small_store(dir: &Path) -> Vec<BTreeMap<String, String>> {
    let (store, recovery) = open(dir);
    assert_eq!(recovery.index, IndexRecovery::Created);
    let mut states = vec![contents(&store)];
    for (k, v) in [("a", "1"), ("b", "2"), ("a", "3")] {
        put(&store, k, v);
        states.push(contents(&store));
    }
    store
        .commit_blocking(Txn::new().delete(key("b")).put(key("c"), "4"))
        .unwrap();
    states.push(contents(&store));
    states
}

#[test]
fn a_clean_reopen_needs_no_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let states = small_store(dir.path());
    let (store, recovery) = open(dir.path());
    assert_eq!(
        recovery,
        Recovery {
            revision: Revision(4),
            torn_tail: None,
            index: IndexRecovery::Current
        }
    );
    assert_eq!(contents(&store), states[4]);
    assert_eq!(put(&store, "d", "5"), Revision(5));
}

#[test]
fn files_are_private_and_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let (store, _) = open(&path);
        for i in 0..50 {
            put(&store, &format!("k{i}"), "a very recognisable secret");
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    assert_eq!(
        fs::metadata(file(&path, "journal-")).unwrap().mode() & 0o777,
        0o600
    );
    for (path, bytes) in image(&path) {
        assert!(
            !bytes.windows(12).any(|w| w == b"recognisable"),
            "{} holds a value in the clear",
            path.display()
        );
    }
}

#[test]
fn deleting_the_index_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let states = small_store(dir.path());
    for round in 0..3 {
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let (store, recovery) = open(dir.path());
        assert!(
            matches!(recovery.index, IndexRecovery::Rebuilt { .. }),
            "{recovery:?}"
        );
        let kept: BTreeMap<_, _> = contents(&store)
            .into_iter()
            .filter(|(k, _)| !k.starts_with("new"))
            .collect();
        assert_eq!(kept, states[4]);
        put(&store, &format!("new{round}"), "x");
    }
}

#[test]
fn a_broken_index_is_rebuilt_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let states = small_store(dir.path());
    let image = image(dir.path());
    let index = dir.path().join("index");
    let damages: [(&str, &dyn Fn()); 4] = [
        ("stray snapshot", &|| {
            fs::write(index.join("snap.0000000000000000.generating"), b"half").unwrap();
        }),
        ("garbage", &|| {
            fs::write(index.join("db"), vec![0xA5; 700_000]).unwrap()
        }),
        ("another boot", &|| {
            fs::write(dir.path().join("index.trust"), "another-boot 0\n").unwrap();
        }),
        ("crashes", &|| {
            let note = fs::read_to_string(dir.path().join("index.trust")).unwrap();
            fs::write(dir.path().join("index.trust"), note.replace(" 0", " 2")).unwrap();
        }),
    ];
    for (what, damage) in damages {
        restore(dir.path(), &image);
        damage();
        let (store, recovery) = open(dir.path());
        assert!(
            matches!(recovery.index, IndexRecovery::Rebuilt { .. }),
            "{what}: {recovery:?}"
        );
        assert_eq!(contents(&store), states[4], "{what}");
    }
}

#[test]
fn an_index_that_is_behind_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let old_index = image(&dir.path().join("index"));
    let states = small_store_again(dir.path());
    restore(&dir.path().join("index"), &old_index);
    let (store, recovery) = open(dir.path());
    assert_eq!(recovery.index, IndexRecovery::CaughtUp { commits: 4 });
    assert_eq!(contents(&store), states);
}

fn small_store_again(dir: &Path) -> BTreeMap<String, String> {
    let (store, _) = open(dir);
    for (k, v) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        put(&store, k, v);
    }
    contents(&store)
}

#[test]
fn a_journal_cut_at_any_byte_keeps_whole_groups() {
    let dir = tempfile::tempdir().unwrap();
    let states = small_store(dir.path());
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let image = image(dir.path());
    let journal = file(dir.path(), "journal-");
    let bytes = image[&journal].clone();
    let mut reached = 0;
    // Sampled, as each case opens a sled; `fault_test` cuts at every write of the journal.
    for len in (0..=bytes.len()).filter(|n| n % 13 == 0 || *n == bytes.len()) {
        restore(dir.path(), &image);
        fs::write(&journal, &bytes[..len]).unwrap();
        match try_open(dir.path()) {
            Ok((store, recovery)) => {
                let at = usize::try_from(recovery.revision.0).unwrap();
                assert!(at >= reached, "a longer file holds no less");
                reached = at;
                assert_eq!(contents(&store), states[at], "cut at {len}");
                let good = recovery.torn_tail.map_or(len as u64, |t| t.offset);
                assert_eq!(fs::metadata(&journal).unwrap().len(), good);
                put(&store, "z", "after");
            }
            // A header that was cut cannot come from a crash.
            Err(Error::Corrupt { .. }) => assert!(len < super::frame::HEADER_BYTES, "{len}"),
            Err(other) => panic!("cut at {len}: {other}"),
        }
    }
    assert_eq!(reached, 4);
}

#[test]
fn acknowledged_commits_that_vanish_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let states = small_store(dir.path());
    let journal = file(dir.path(), "journal-");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 1]).unwrap();
    for _ in 0..4 {
        let error = try_open(dir.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("commits 4 to 4 were acknowledged"),
            "{error}"
        );
        assert_eq!(
            fs::metadata(&journal).unwrap().len(),
            bytes.len() as u64 - 1,
            "kept as is"
        );
    }
    // The documented way to accept the loss.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (store, recovery) = open(dir.path());
    assert!(recovery.torn_tail.is_some());
    assert_eq!(contents(&store), states[3]);
}

#[test]
fn damage_in_the_middle_names_what_is_affected_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    small_store(dir.path());
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let journal = file(dir.path(), "journal-");
    let bytes = fs::read(&journal).unwrap();
    // A byte in the second of four frames.
    let mut damaged = bytes.clone();
    damaged[super::frame::HEADER_BYTES + (bytes.len() - super::frame::HEADER_BYTES) * 2 / 5] ^= 4;
    fs::write(&journal, &damaged).unwrap();
    let error = try_open(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("commits 2 to 2 are unreadable"),
        "{error}"
    );
    assert_eq!(fs::read(&journal).unwrap(), damaged);
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    small_store(dir.path());
    let index = dir.path().join("index");
    let journal = file(dir.path(), "journal-");
    let bytes = fs::read(&journal).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&journal, &damaged).unwrap();
        // The index knows all four commits, so even damage to the last is seen.
        assert!(index.is_dir());
        match try_open(dir.path()) {
            Err(Error::Corrupt { .. }) => {}
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn a_wrong_key_is_said_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    small_store(dir.path());
    let before = image(dir.path());
    let other = MasterKey::from_bytes([9; 32]);
    let error = LocalStore::open(dir.path(), &other, Options::default()).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("another master key"));
    assert_eq!(image(dir.path()), before);
    open(dir.path());
}

#[test]
fn two_cannot_open_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = open(dir.path());
    let error = try_open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("already in use by another process")
    );
}

#[test]
fn compaction_happens_by_itself_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let value = |n: u32| vec![u8::try_from(n % 251).unwrap(); VALUE_BYTES_MAX];
    {
        let (store, _) = open(dir.path());
        for n in 0..100 {
            let txn = Txn::new().put(key(&format!("k{}", n % 7)), value(n));
            store.commit_blocking(txn).unwrap();
        }
    }
    let journal = fs::metadata(file(dir.path(), "journal-")).unwrap().len();
    assert!(journal < 2 * 1024 * 1024, "the journal has {journal} bytes");
    assert!(file(dir.path(), "snapshot-").exists());
    for damage_index in [false, true] {
        if damage_index {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let (store, recovery) = open(dir.path());
        assert_eq!(recovery.revision, Revision(100));
        for k in 0..7 {
            let last = (0..100).rev().find(|n| n % 7 == k).unwrap();
            let entry = store.get_blocking(&key(&format!("k{k}"))).unwrap().unwrap();
            assert_eq!(
                (entry.revision, &entry.value[..]),
                (Revision(u64::from(last) + 1), &*value(last))
            );
        }
    }
    let snapshot = file(dir.path(), "snapshot-");
    let bytes = fs::read(&snapshot).unwrap();
    for at in [60, 4_000, 100_000, bytes.len() - 3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        fs::write(&snapshot, &damaged).unwrap();
        let error = try_open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "byte {at}: {error}");
    }
}

#[test]
fn many_writers_get_distinct_revisions_and_counters_are_exact() {
    const WRITERS: u64 = 6;
    const ROUNDS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, "counter", "0");
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    put(store, &format!("w{writer}/{round:03}"), "x");
                    increment(store);
                }
            });
        }
    });
    let total = WRITERS * ROUNDS;
    assert_eq!(contents(&store)["counter"], total.to_string());
    assert_eq!(store.revision(), Revision(1 + 2 * total));
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(contents(&store).len() as u64, total + 1);
}

/// Compare-and-swap until it succeeds.
fn increment(store: &LocalStore) {
    loop {
        let entry = store.get_blocking(&key("counter")).unwrap().unwrap();
        let value: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
        let txn = Txn::new()
            .require(key("counter"), Precondition::RevisionIs(entry.revision))
            .put(key("counter"), (value + 1).to_string());
        match store.commit_blocking(txn) {
            Ok(_) => return,
            Err(error) => assert!(error.is_conflict(), "{error}"),
        }
    }
}

/// A disk whose flushes wait for a gate, count, and can fail.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    flushes: Mutex<u64>,
    failing: Mutex<bool>,
}

#[derive(Debug, Clone)]
struct GatedDisk(Arc<Gate>);

#[derive(Debug)]
struct GatedFile(Box<dyn DiskFile>, Arc<Gate>);

impl Disk for GatedDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(GatedFile(OsDisk.create(path)?, self.0.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(GatedFile(OsDisk.open(path)?, self.0.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }
}

impl DiskFile for GatedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn sync(&mut self) -> io::Result<()> {
        *self.1.flushes.lock().unwrap() += 1;
        let closed = self.1.closed.lock().unwrap();
        drop(self.1.opened.wait_while(closed, |closed| *closed).unwrap());
        if *self.1.failing.lock().unwrap() {
            return Err(io::Error::other("the disk is gone"));
        }
        self.0.sync()
    }
}

fn gated(dir: &Path) -> (Arc<LocalStore>, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let disk = Arc::new(GatedDisk(gate.clone()));
    let options = Options {
        disk,
        ..Options::default()
    };
    let (store, _) = LocalStore::open(dir, &master(), options).unwrap();
    (Arc::new(store), gate)
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn commits_that_wait_share_one_flush() {
    const WAITING: usize = 32;
    let dir = tempfile::tempdir().unwrap();
    let (store, gate) = gated(dir.path());
    let flushes = || *gate.flushes.lock().unwrap();
    let before = flushes();
    *gate.closed.lock().unwrap() = true;
    let commit = |n: usize| {
        let store = store.clone();
        thread::spawn(move || put(&store, &format!("k{n}"), "v"))
    };
    let first = commit(0);
    until("the first flush", || flushes() == before + 1);
    let rest: Vec<_> = (1..=WAITING).map(commit).collect();
    until("all wait", || store.waiting() == WAITING);
    assert!(
        store.get_blocking(&key("k0")).unwrap().is_none(),
        "not shown before it is durable"
    );
    *gate.closed.lock().unwrap() = false;
    gate.opened.notify_all();
    assert_eq!(first.join().unwrap(), Revision(1));
    let mut revisions: Vec<_> = rest.into_iter().map(|t| t.join().unwrap().0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..=WAITING as u64 + 1).collect::<Vec<_>>());
    assert_eq!(flushes(), before + 2);
}

#[test]
fn a_failed_flush_is_never_tried_again_and_the_store_goes_on_in_new_files() {
    let dir = tempfile::tempdir().unwrap();
    let (store, gate) = gated(dir.path());
    put(&store, "a", "1");
    *gate.failing.lock().unwrap() = true;
    let commit = || store.commit_blocking(Txn::new().put(key("a"), "2"));
    assert!(matches!(commit(), Err(Error::SyncFailed { .. })));
    let error = commit().unwrap_err();
    assert!(
        matches!(error, Error::Poisoned { .. }) && error.retryable(),
        "mending fails too: {error:?}"
    );
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    assert_eq!(
        contents(&store)["a"],
        "1",
        "what was acknowledged can be read"
    );
    let old = fs::metadata(file(dir.path(), "journal-")).unwrap().ino();
    *gate.failing.lock().unwrap() = false;
    assert_eq!(put(&store, "b", "3"), Revision(2));
    let journal = file(dir.path(), "journal-");
    assert_ne!(fs::metadata(journal).unwrap().ino(), old);
    let shown = contents(&store);
    assert_eq!((&*shown["a"], &*shown["b"]), ("1", "3"));
    drop(store);
    let (store, _) = open(dir.path());
    assert_eq!(contents(&store), shown);
}

#[test]
fn a_future_that_is_dropped_leaves_the_store_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    drop(super::MetaStore::commit(
        &store,
        Txn::new().put(key("a"), "1"),
    ));
    let revision = block_on(super::MetaStore::commit(
        &store,
        Txn::new().put(key("b"), "2"),
    ));
    assert_eq!(revision.unwrap().into_inner(), Revision(1));
    assert_eq!(contents(&store).len(), 1);
}
