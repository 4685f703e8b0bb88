//! Export and import: round trips, every damage, and commits meanwhile.

#![allow(clippy::unwrap_used)]

use std::{
    io::Cursor,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use super::{
    BoxFuture, Durable, Entry, Key, LocalStore, MasterKey, MemoryStore, MetaStore, Options, Page,
    Range, Result, Revision, Txn, VALUE_BYTES_MAX, Watch,
    export::{Error, export, import},
    local::block_on,
};

fn key(text: impl Into<String>) -> Key {
    Key::new(text.into()).unwrap()
}

fn put(store: &dyn MetaStore, k: &str, v: impl Into<Vec<u8>>) {
    block_on(store.commit(Txn::new().put(key(k), v.into()))).unwrap();
}

fn contents(store: &dyn MetaStore) -> Vec<(Key, Vec<u8>)> {
    let mut all = Vec::new();
    let mut range = Some(Range::prefix(""));
    while let Some(now) = range {
        let page = block_on(store.range(now.clone())).unwrap();
        let pair = |e: &Entry| (e.key.clone(), e.value.to_vec());
        all.extend(page.entries.iter().map(pair));
        range = now.next(&page);
    }
    all
}

fn exported(store: &dyn MetaStore) -> Vec<u8> {
    let mut out = Vec::new();
    let summary = block_on(export(store, &mut out)).unwrap();
    assert_eq!(out[out.len() - 32..], summary.hash);
    out
}

fn imported(bytes: &[u8]) -> Result<MemoryStore, Error> {
    let store = MemoryStore::new();
    block_on(import(&store, &mut Cursor::new(bytes)))?;
    Ok(store)
}

fn filled(records: u32) -> MemoryStore {
    let store = MemoryStore::new();
    for n in 0..records {
        put(
            &store,
            &format!("key{n:05}"),
            vec![n as u8; (n * 37 % 900) as usize],
        );
    }
    store
}

#[test]
fn everything_comes_back_between_kinds_of_stores() {
    let store = filled(2500);
    put(&store, "large", vec![7; VALUE_BYTES_MAX]);
    put(&store, "empty", "");
    let bytes = exported(&store);
    let dir = tempfile::tempdir().unwrap();
    let master = MasterKey::from_bytes([4; 32]);
    let (local, _) = LocalStore::open(dir.path(), &master, Options::default()).unwrap();
    let summary = block_on(import(&local, &mut Cursor::new(&bytes))).unwrap();
    assert_eq!(summary.records, 2502);
    assert_eq!(contents(&local), contents(&store));
    assert_eq!(exported(&local), bytes, "the mark of the import is gone");
    // Nothing at all is an export too.
    let none = imported(&exported(&MemoryStore::new())).unwrap();
    assert!(contents(&none).is_empty());
}

#[test]
fn a_small_export_has_golden_bytes() {
    let store = MemoryStore::new();
    put(&store, "k", "va");
    let bytes = exported(&store);
    let before = b"HOP3EXP\x01\x06\0\0\0\x01\x01\0kva\0\0\0\0\x01\0\0\0\0\0\0\0";
    assert_eq!(&bytes[..bytes.len() - 32], before);
    assert_eq!(bytes[bytes.len() - 32..], *blake3::hash(before).as_bytes());
}

#[test]
fn damaged_truncated_or_longer_input_is_refused_whole() {
    let bytes = exported(&filled(8));
    assert_eq!(contents(&imported(&bytes).unwrap()), contents(&filled(8)));
    let refused = |bytes: &[u8], what: &str| {
        let store = MemoryStore::new();
        let error = block_on(import(&store, &mut Cursor::new(bytes))).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
        assert!(contents(&store).is_empty(), "{what}");
        let revision = block_on(store.range(Range::prefix(""))).unwrap().revision;
        assert_eq!(revision, Revision::ZERO, "{what}: nothing was written");
    };
    for len in 0..bytes.len() {
        refused(&bytes[..len], &format!("cut at {len}"));
    }
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        refused(&altered, &format!("byte {at}"));
    }
    refused(&[&bytes[..], b"x"].concat(), "longer");
    let mut newer = bytes;
    newer[7] = 2;
    let error = imported(&newer).unwrap_err().to_string();
    assert!(error.contains("newer version"), "{error}");
}

#[test]
fn only_an_empty_store_takes_an_import_and_an_interrupted_one_goes_on() {
    let bytes = exported(&filled(300));
    let store = MemoryStore::new();
    put(&store, "mine", "1");
    let error = block_on(import(&store, &mut Cursor::new(&bytes))).unwrap_err();
    assert!(matches!(error, Error::NotEmpty), "{error}");
    assert_eq!(contents(&store).len(), 1);
    // As an import of these bytes leaves it when it is interrupted.
    let begun = MemoryStore::new();
    put(&begun, "~import", &bytes[bytes.len() - 32..]);
    put(&begun, "key00000", "old");
    let other = exported(&filled(2));
    let error = block_on(import(&begun, &mut Cursor::new(&other))).unwrap_err();
    assert!(matches!(error, Error::NotEmpty), "another input: {error}");
    block_on(import(&begun, &mut Cursor::new(&bytes))).unwrap();
    assert_eq!(contents(&begun), contents(&filled(300)));
}

#[test]
fn an_export_during_commits_is_the_store_at_one_revision() {
    // Every commit moves one unit between two counters at the two ends of the key space.
    let store = filled(3000);
    block_on(store.commit(pair(0))).unwrap();
    let (going, done) = (AtomicBool::new(true), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while going.load(Ordering::Relaxed) {
                n += 1;
                block_on(store.commit(pair(n))).unwrap();
                done.store(true, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        while !done.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let mut whole = 0;
        for _ in 0..20 {
            let mut out = Vec::new();
            match block_on(export(&store, &mut out)) {
                Ok(_) => {
                    let copy = contents(&imported(&out).unwrap());
                    assert_eq!(copy.len(), 3002);
                    assert_eq!(copy[0].1, copy[3001].1, "half of a commit");
                    whole += 1;
                }
                Err(Error::Watch(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        going.store(false, Ordering::Relaxed);
        let mut out = Vec::new();
        block_on(export(&store, &mut out)).unwrap();
        assert!(whole > 0 || imported(&out).is_ok());
    });
}

/// A store that changes before every page, and tells watchers later than it shows.
#[derive(Debug, Default)]
struct Busy {
    shown: MemoryStore,
    told: Arc<MemoryStore>,
    commits: AtomicU32,
    telling: Mutex<Option<thread::JoinHandle<()>>>,
}

fn pair(n: u32) -> Txn {
    Txn::new()
        .put(key("a"), n.to_string())
        .put(key("z"), n.to_string())
}

impl MetaStore for Busy {
    fn get(&self, key: &Key) -> BoxFuture<'_, Result<Option<Entry>>> {
        self.shown.get(key)
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page>> {
        let mut telling = self.telling.lock().unwrap();
        if let Some(before) = telling.take() {
            before.join().unwrap();
        }
        let n = self.commits.fetch_add(1, Ordering::Relaxed);
        let txn = Txn::new()
            .put(key("a"), n.to_string())
            .put(key(format!("z{n:05}")), "");
        block_on(self.shown.commit(txn.clone())).unwrap();
        let told = self.told.clone();
        *telling = Some(thread::spawn(move || {
            (0..1000).for_each(|_| thread::yield_now());
            block_on(told.commit(txn)).unwrap();
        }));
        self.shown.range(range)
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Durable<Revision>>> {
        block_on(self.told.commit(txn.clone())).unwrap();
        self.shown.commit(txn)
    }

    fn watch(&self, prefix: &[u8]) -> Result<Watch> {
        self.told.watch(prefix)
    }
}

#[test]
fn an_export_waits_for_the_changes_that_its_pages_show() {
    let store = Busy::default();
    for n in 0..3000 {
        put(&store, &format!("key{n:05}"), "v");
    }
    for _ in 0..5 {
        let copy = contents(&imported(&exported(&store)).unwrap());
        let (last, _) = copy.last().unwrap();
        let number = last.as_bytes()[1..].to_vec();
        let number: u32 = String::from_utf8(number).unwrap().parse().unwrap();
        assert_eq!(
            copy[0].1,
            number.to_string().into_bytes(),
            "half of a commit"
        );
        assert_eq!(copy.len(), 3002 + number as usize);
    }
}
