//! One suite for every [`MetaStore`]: what users of the interface may rely on.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Change, Entry, Error, KEY_BYTES_MAX, Key, MasterKey, MemoryStore, MetaStore, Op,
    PAGE_BYTES_MAX, Page, Precondition, Range, Result, Revision, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX,
    WATCH_EVENTS_MAX, WatchError,
    local::{LocalStore, Options, block_on},
};

/// A store and what must live as long as it.
struct Subject {
    store: Arc<dyn MetaStore>,
    _dir: Option<tempfile::TempDir>,
}

impl Subject {
    fn memory() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            _dir: None,
        }
    }

    fn local() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = MasterKey::from_bytes([1; 32]);
        let (store, _) = LocalStore::open(&dir.path().join("s"), &key, Options::default()).unwrap();
        Self {
            store: Arc::new(store),
            _dir: Some(dir),
        }
    }

    fn commit(&self, txn: Txn) -> Result<Revision> {
        block_on(self.store.commit(txn)).map(super::Durable::into_inner)
    }

    fn put(&self, k: &str, v: &str) -> Revision {
        self.commit(Txn::new().put(key(k), v.to_owned())).unwrap()
    }

    fn get(&self, k: &str) -> Option<Entry> {
        block_on(self.store.get(&key(k))).unwrap()
    }

    fn range(&self, range: Range) -> Page {
        block_on(self.store.range(range)).unwrap()
    }

    fn names(&self, prefix: &[u8]) -> Vec<String> {
        let page = self.range(Range::prefix(prefix));
        page.entries.iter().map(|e| e.key.to_string()).collect()
    }
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

/// Runs each test of the suite against each store.
macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod memory { $(#[test] fn $test() { super::$test(&super::Subject::memory()); })* }
        mod local { $(#[test] fn $test() { super::$test(&super::Subject::local()); })* }
    };
}

suite! {
    values_carry_their_revision,
    deleting_what_is_absent_changes_nothing,
    preconditions_decide_all_or_nothing,
    limits_are_typed_errors,
    ranges_are_ordered_and_paged,
    pages_are_bounded_in_bytes,
    prefixes_end_where_they_should,
    watches_see_each_matching_change_once,
    slow_watchers_are_told,
}

fn values_carry_their_revision(s: &Subject) {
    assert_eq!(s.get("a"), None);
    let first = s.put("a", "1");
    let second = s.put("b", "2");
    assert!(Revision::ZERO < first && first < second);
    let entry = Entry {
        key: key("a"),
        value: Bytes::from_static(b"1"),
        revision: first,
    };
    assert_eq!(s.get("a"), Some(entry));
    let third = s.put("a", "3");
    assert_eq!(s.get("a").unwrap().revision, third);
    assert_eq!(s.get("b").unwrap().revision, second);
    s.commit(Txn::new().put(key("empty"), Bytes::new()))
        .unwrap();
    assert_eq!(s.get("empty").unwrap().value, Bytes::new());
}

fn deleting_what_is_absent_changes_nothing(s: &Subject) {
    let revision = s.put("a", "1");
    assert_eq!(s.commit(Txn::new().delete(key("b"))).unwrap(), revision);
    assert_eq!(s.commit(Txn::new()).unwrap(), revision);
    assert!(s.commit(Txn::new().delete(key("a"))).unwrap() > revision);
    assert_eq!(s.get("a"), None);
}

fn preconditions_decide_all_or_nothing(s: &Subject) {
    let a = s.put("a", "1");
    let refused = [
        ("a", Precondition::Absent, Some(a)),
        ("x", Precondition::Exists, None),
        ("a", Precondition::RevisionIs(Revision(a.0 + 1)), Some(a)),
        ("x", Precondition::RevisionIs(a), None),
    ];
    for (name, precondition, found) in refused {
        let txn = Txn::new()
            .require(key("a"), Precondition::Exists)
            .require(key(name), precondition)
            .put(key("new"), "no")
            .delete(key("a"));
        match s.commit(txn) {
            Err(Error::Conflict {
                key: at,
                expected,
                actual,
            }) => {
                assert_eq!((at, expected, actual), (key(name), precondition, found));
            }
            other => panic!("{precondition} on {name}: {other:?}"),
        }
    }
    assert_eq!(s.names(b""), ["a"]);
    let txn = Txn::new()
        .require(key("a"), Precondition::RevisionIs(a))
        .require(key("b"), Precondition::Absent)
        .delete(key("a"))
        .put(key("b"), "2");
    let moved = s.commit(txn).unwrap();
    assert_eq!(s.names(b""), ["b"]);
    assert_eq!(s.get("b").unwrap().revision, moved);
}

fn limits_are_typed_errors(s: &Subject) {
    assert!(matches!(
        Key::new(Bytes::new()),
        Err(Error::KeyLength { len: 0 })
    ));
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    assert!(matches!(Key::new(long), Err(Error::KeyLength { len: 513 })));
    let longest = Key::new(vec![b'k'; KEY_BYTES_MAX]).unwrap();
    s.commit(Txn::new().put(longest, vec![7; VALUE_BYTES_MAX]))
        .unwrap();
    let fat = Txn::new().put(key("fat"), vec![0; VALUE_BYTES_MAX + 1]);
    assert!(matches!(s.commit(fat), Err(Error::ValueTooLarge { len, .. }) if len == 32_769));
    let twice = Txn::new().put(key("a"), "1").delete(key("a"));
    assert!(matches!(s.commit(twice), Err(Error::DuplicateKey { .. })));
    let many = (0..=TXN_OPS_MAX).fold(Txn::new(), |t, i| t.put(key(&format!("{i}")), "v"));
    assert!(matches!(
        s.commit(many),
        Err(Error::TxnTooLarge {
            what: "operations",
            ..
        })
    ));
    let heavy = (0..33).fold(Txn::new(), |t, i| {
        t.put(key(&format!("{i}")), vec![1; 32_768])
    });
    assert!(matches!(
        s.commit(heavy),
        Err(Error::TxnTooLarge { what: "bytes", .. })
    ));
    assert_eq!(s.range(Range::prefix("")).entries.len(), 1);
}

fn ranges_are_ordered_and_paged(s: &Subject) {
    for name in ["t/3", "t/1", "u/1", "s/9", "t/2", "t", "t/20"] {
        s.put(name, name);
    }
    assert_eq!(s.names(b"t/"), ["t/1", "t/2", "t/20", "t/3"]);
    assert_eq!(s.names(b"none"), [""; 0]);
    let mut range = Range {
        limit: 2,
        ..Range::prefix("t/")
    };
    let mut seen = Vec::new();
    loop {
        let page = s.range(range.clone());
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.iter().map(|e| e.key.to_string()));
        match range.next(&page) {
            Some(next) => range = next,
            None => break,
        }
    }
    assert_eq!(seen, ["t/1", "t/2", "t/20", "t/3"]);
    let before = Range {
        after: Some(key("a")),
        ..Range::prefix("t/")
    };
    assert_eq!(s.range(before).entries.len(), 4);
    let beyond = Range {
        after: Some(key("v")),
        ..Range::prefix("t/")
    };
    assert_eq!(s.range(beyond).entries.len(), 0);
}

fn pages_are_bounded_in_bytes(s: &Subject) {
    for i in 0..20 {
        s.commit(Txn::new().put(key(&format!("{i:02}")), vec![i; VALUE_BYTES_MAX]))
            .unwrap();
    }
    let page = s.range(Range::prefix(""));
    assert!(page.more && page.entries.len() < 20);
    let bytes: usize = page.entries.iter().map(|e| e.value.len()).sum();
    assert!(bytes < PAGE_BYTES_MAX + 2 * VALUE_BYTES_MAX);
}

fn prefixes_end_where_they_should(s: &Subject) {
    let keys: [&[u8]; 4] = [b"a", &[0xFF], &[0xFF, 0xFF], &[0xFF, 0xFF, 0]];
    for bytes in keys {
        s.commit(Txn::new().put(Key::new(bytes.to_vec()).unwrap(), "v"))
            .unwrap();
    }
    assert_eq!(s.range(Range::prefix([0xFF, 0xFF])).entries.len(), 2);
    assert_eq!(s.range(Range::prefix([0xFF])).entries.len(), 3);
    assert_eq!(s.range(Range::prefix("")).entries.len(), 4);
}

fn watches_see_each_matching_change_once(s: &Subject) {
    let start = s.put("t/0", "before");
    let mut watch = s.store.watch(b"t/").unwrap();
    assert_eq!(watch.start(), start);
    let both = Txn::new()
        .put(key("t/1"), "one")
        .delete(key("t/0"))
        .put(key("u/1"), "other");
    let both = s.commit(both).unwrap();
    let failed = Txn::new()
        .require(key("t/1"), Precondition::Absent)
        .put(key("t/1"), "no");
    s.commit(failed).unwrap_err();
    let last = s.put("t/1", "two");
    let mut seen = Vec::new();
    for _ in 0..3 {
        let event = block_on(watch.next()).unwrap();
        seen.push((event.key.to_string(), event.change, event.revision));
    }
    let put = |v: &'static [u8]| Change::Put(Bytes::from_static(v));
    assert_eq!(
        seen,
        [
            ("t/1".into(), put(b"one"), both),
            ("t/0".into(), Change::Delete, both),
            ("t/1".into(), put(b"two"), last),
        ]
    );
    assert_eq!(watch.try_next(), Ok(None));
}

fn slow_watchers_are_told(s: &Subject) {
    let mut slow = s.store.watch(b"").unwrap();
    let mut idle = s.store.watch(b"other/").unwrap();
    for i in 0..=WATCH_EVENTS_MAX {
        s.put("k", &i.to_string());
    }
    for _ in 0..WATCH_EVENTS_MAX {
        block_on(slow.next()).unwrap();
    }
    assert_eq!(block_on(slow.next()), Err(WatchError::Lagged));
    assert_eq!(block_on(slow.next()), Err(WatchError::Lagged));
    assert_eq!(idle.try_next(), Ok(None), "others are not disturbed");
}

#[test]
fn a_watch_ends_with_its_store() {
    for subject in [Subject::memory(), Subject::local()] {
        let mut watch = subject.store.watch(b"").unwrap();
        subject.put("a", "1");
        drop(subject);
        block_on(watch.next()).unwrap();
        assert_eq!(block_on(watch.next()), Err(WatchError::Closed));
    }
}

/// A random transaction over few keys, so that they meet.
fn any_txn() -> impl Strategy<Value = Txn> {
    let op = (0..6u8, proptest::option::of(any::<u8>()));
    let precondition = (0..6u8, 0..3u8, 0..12u64);
    let ops = proptest::collection::btree_map(0..6u8, op, 0..4);
    (ops, proptest::option::of(precondition)).prop_map(|(ops, precondition)| {
        let name = |n: u8| key(&format!("k{n}"));
        let mut txn = Txn::new();
        if let Some((n, kind, revision)) = precondition {
            let precondition = match kind {
                0 => Precondition::Absent,
                1 => Precondition::Exists,
                _ => Precondition::RevisionIs(Revision(revision)),
            };
            txn = txn.require(name(n), precondition);
        }
        ops.into_iter()
            .fold(txn, |txn, (n, (_, value))| match value {
                Some(value) => txn.put(name(n), vec![value]),
                None => txn.delete(name(n)),
            })
    })
}

/// The simplest store that can be right.
#[derive(Default)]
struct Model {
    records: BTreeMap<Key, (Bytes, Revision)>,
    revision: Revision,
}

impl Model {
    fn commit(&mut self, txn: &Txn) -> Option<Revision> {
        let revision_of = |k: &Key| self.records.get(k).map(|(_, r)| *r);
        let holds = txn.preconditions.iter().all(|(k, p)| match p {
            Precondition::Absent => revision_of(k).is_none(),
            Precondition::Exists => revision_of(k).is_some(),
            Precondition::RevisionIs(r) => revision_of(k) == Some(*r),
        });
        if !holds {
            return None;
        }
        let real = |op: &&Op| matches!(op, Op::Put(..)) || revision_of(op.key()).is_some();
        let ops: Vec<_> = txn.ops.iter().filter(real).cloned().collect();
        self.revision.0 += u64::from(!ops.is_empty());
        for op in ops {
            match op {
                Op::Put(k, v) => self.records.insert(k, (v, self.revision)),
                Op::Delete(k) => self.records.remove(&k),
            };
        }
        Some(self.revision)
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(k, (v, r)): (&Key, &(Bytes, Revision))| Entry {
            key: k.clone(),
            value: v.clone(),
            revision: *r,
        };
        self.records.iter().map(entry).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn every_store_does_what_the_model_does(
        txns in proptest::collection::vec(any_txn(), 1..40),
    ) {
        for subject in [Subject::memory(), Subject::local()] {
            let mut model = Model::default();
            for txn in &txns {
                prop_assert_eq!(subject.commit(txn.clone()).ok(), model.commit(txn));
                let page = subject.range(Range::prefix("k"));
                prop_assert_eq!(page.entries, model.entries());
                prop_assert_eq!(page.revision, model.revision);
            }
        }
    }

    #[test]
    fn a_reopened_store_is_the_same(
        runs in proptest::collection::vec(
            (proptest::collection::vec(any_txn(), 0..8), any::<bool>()), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let key = MasterKey::from_bytes([1; 32]);
        let mut model = Model::default();
        for (txns, drop_index) in runs {
            let (store, recovery) =
                LocalStore::open(dir.path(), &key, Options::default()).unwrap();
            prop_assert_eq!(recovery.revision, model.revision);
            for txn in txns {
                let revision = store.commit_blocking(txn.clone()).ok();
                prop_assert_eq!(revision.map(|r| r.into_inner()), model.commit(&txn));
            }
            let page = store.range_blocking(&Range::prefix("")).unwrap();
            prop_assert_eq!(page.entries, model.entries());
            drop(store);
            if drop_index {
                std::fs::remove_dir_all(dir.path().join("index")).unwrap();
            }
        }
    }
}
