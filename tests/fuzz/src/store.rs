//! Records, journals and snapshots: from disk, damaged in any way.
//!
//! What is sealed cannot be forged, so mutated files alone would never reach the decoders behind
//! the seals. The targets therefore also seal what the fuzzer makes up: by the documented form,
//! which this module writes on its own.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hop3_common::store::{
    Error, Key, LocalStore, MasterKey, MemoryStore, MetaStore as _, Options, Record, RecordError,
    Revision, Table, Txn, Verified, crypt::Purpose, decode_body, verify,
};
use serde::{Deserialize, Serialize};

use crate::{
    disk::MemoryDisk,
    input::{Input, put_part},
};

type Seeds = Vec<(String, Vec<u8>)>;

/// A record with everything that records have, and an older version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lamp {
    name: String,
    watts: Vec<u32>,
    bulb: Option<Bytes>,
}

impl Record for Lamp {
    const KIND: &'static str = "lamp";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        match from {
            1 => decode_body(Self::KIND, body).map(|name| Self {
                name,
                watts: Vec::new(),
                bulb: None,
            }),
            _ => Err(RecordError::Version {
                kind: Self::KIND,
                found: from,
                known: Self::VERSION,
            }),
        }
    }
}

fn lamp() -> Lamp {
    Lamp {
        name: "desk".into(),
        watts: vec![9, 40_000],
        bulb: Some(Bytes::from_static(b"E27")),
    }
}

/// The envelope of a record, as its documentation has it.
fn envelope(kind: &str, version: u16, body: &[u8]) -> Vec<u8> {
    let mut out = b"H3R\x01".to_vec();
    out.extend_from_slice(&blake3::hash(kind.as_bytes()).as_bytes()[..4]);
    out.extend(version.to_le_bytes());
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(body).to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// A stored record: raw, or any version and body in a right envelope.
pub fn records(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut version = None;
    let value = match input.u8() % 2 {
        0 => input.0.to_vec(),
        _ => {
            let version = version.insert(input.u16());
            envelope(Lamp::KIND, *version, input.0)
        }
    };
    let store = MemoryStore::new();
    let put = Txn::new().put(Key::new("lamp/a").unwrap(), value);
    if store.commit(put).now_or_never().unwrap().is_err() {
        // Larger than a value may be.
        return false;
    }
    let table = Table::<Lamp>::new();
    let item = match table.get(&store, "a").now_or_never().unwrap() {
        Ok(item) => item.unwrap(),
        Err(Error::Record { .. }) => return false,
        Err(error) => panic!("not an error of a record: {error}"),
    };
    let known = version.is_none_or(|version| (1..=Lamp::VERSION).contains(&version));
    assert!(known, "a record of version {version:?} was read");
    let record = item.record;
    let _ = table.put(&store, "a", &record).now_or_never().unwrap();
    let again = table.get(&store, "a").now_or_never().unwrap();
    assert_eq!(again.unwrap().unwrap().record, record);
    true
}

/// Seeds of [`records`].
#[must_use]
pub fn record_seeds() -> Seeds {
    let raw = |value: Vec<u8>| [vec![0], value].concat();
    let sealed = |version: u16, body: &[u8]| {
        let version = version.to_le_bytes();
        [&[1][..], &version, body].concat()
    };
    let body = postcard::to_allocvec(&lamp()).unwrap();
    vec![
        ("ok-record".into(), raw(envelope("lamp", 2, &body))),
        ("ok-body".into(), sealed(2, &body)),
        ("ok-older".into(), sealed(1, b"\x04hall")),
        ("bad-newer".into(), sealed(3, &body)),
        ("bad-other-kind".into(), raw(envelope("rope", 2, &body))),
        (
            "bad-endless-list".into(),
            sealed(2, b"\0\xff\xff\xff\xff\x0f"),
        ),
    ]
}

const FILE_ID: [u8; 16] = [9; 16];

fn key() -> MasterKey {
    MasterKey::from_bytes([3; 32])
}

/// What the seeds' journals say: the key, and its value or none.
fn history() -> Vec<(&'static str, Option<&'static str>)> {
    vec![
        ("a", Some("one")),
        ("b", Some("two")),
        ("a", None),
        ("c", Some("three")),
        ("b", Some("four")),
        ("a", Some("five")),
    ]
}

/// Commits that the snapshot of the seeds holds.
const SNAPSHOT_AT: u64 = 4;

type Told = Vec<(String, u64, Option<String>)>;

fn expected() -> Told {
    let commits = history().into_iter().zip(1u64..);
    let told = |((key, value), n): ((&str, Option<&str>), u64)| {
        (key.to_owned(), n, value.map(str::to_owned))
    };
    commits.map(told).collect()
}

/// The live records after the first `commits`.
fn live(commits: u64) -> Told {
    let mut live = std::collections::BTreeMap::new();
    for (key, n, value) in expected().into_iter().take(commits as usize) {
        live.insert(key, (n, value));
    }
    let live = live.into_iter().filter(|(_, (_, value))| value.is_some());
    live.map(|(key, (n, value))| (key, n, value)).collect()
}

fn header(magic: &[u8; 8], base: u64) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(base.to_le_bytes());
    out.extend(FILE_ID);
    let mac = blake3::keyed_hash(&key().subkey(Purpose::JournalHeader), &out);
    out.extend_from_slice(&mac.as_bytes()[..16]);
    let crc = crc32fast::hash(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn put_frame(out: &mut Vec<u8>, sequence: u64, plain: &[u8]) {
    let context = [&FILE_ID[..], &sequence.to_le_bytes()].concat();
    let body = key()
        .cipher(Purpose::Journal)
        .seal(&context, plain)
        .unwrap();
    let len = (body.len() as u32).to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    for part in [&len[..], &sequence.to_le_bytes(), &body] {
        crc.update(part);
    }
    out.extend(b"H3F\x01");
    out.extend(len);
    out.extend(crc.finalize().to_le_bytes());
    out.extend(sequence.to_le_bytes());
    out.extend(body);
}

/// Whether a whole frame begins anywhere in the bytes.
fn has_frame(bytes: &[u8]) -> bool {
    let whole = |frame: &[u8]| {
        let mut head = Input(frame.strip_prefix(b"H3F\x01")?);
        let (len, crc, sequence): ([u8; 4], [u8; 4], [u8; 8]) =
            (head.array(), head.array(), head.array());
        let body = head.0.get(..u32::from_le_bytes(len) as usize)?;
        let mut hasher = crc32fast::Hasher::new();
        for part in [&len[..], &sequence, body] {
            hasher.update(part);
        }
        Some(hasher.finalize().to_le_bytes() == crc)
    };
    (0..bytes.len()).any(|at| whole(&bytes[at..]) == Some(true))
}

const JOURNAL: &[u8; 8] = b"HOP3JRN\x01";
const SNAPSHOT: &[u8; 8] = b"HOP3SNP\x01";

fn check(snapshot: Option<&[u8]>, journal: &[u8], base: u64) -> (Result<Verified, Error>, Told) {
    let (dir, disk) = (Path::new("/store"), MemoryDisk::default());
    if let Some(snapshot) = snapshot {
        disk.put(&dir.join(format!("snapshot-{base:016x}")), snapshot);
    }
    disk.put(&dir.join(format!("journal-{base:016x}")), journal);
    let mut told = Vec::new();
    let verified = verify(Arc::new(disk), dir, &key(), &mut |key, revision, value| {
        let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
        told.push((key.to_string(), revision.0, value));
    });
    (verified, told)
}

/// A journal, with or without a snapshot before it: damaged files, or anything in right seals.
/// What is read of damaged files is the beginning of what was written, and what is missing is
/// said.
pub fn journal(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => {
            let (verified, told) = check(None, input.0, 0);
            let Ok(verified) = verified else { return false };
            assert!(
                expected().starts_with(&told),
                "not what was written: {told:?}"
            );
            assert_eq!(verified.revision, Revision(told.len() as u64));
            if let Some(torn) = verified.torn_tail {
                let tail = &input.0[torn.offset as usize..];
                assert!(!has_frame(tail), "whole frames were taken for a torn tail");
            }
            told.len() == history().len()
        }
        1 => {
            let snapshot = input.part();
            let (verified, told) = check(Some(snapshot), input.0, SNAPSHOT_AT);
            let Ok(verified) = verified else { return false };
            let all = [&live(SNAPSHOT_AT)[..], &expected()[SNAPSHOT_AT as usize..]].concat();
            assert!(all.starts_with(&told), "not what was written: {told:?}");
            assert!(told.len() >= live(SNAPSHOT_AT).len(), "a snapshot in part");
            assert!(verified.revision >= Revision(SNAPSHOT_AT));
            told == all
        }
        2 => {
            let mut file = header(JOURNAL, 0);
            put_frame(&mut file, 1, input.0);
            check(None, &file, 0).0.is_ok()
        }
        _ => {
            let mut file = header(SNAPSHOT, SNAPSHOT_AT);
            let entries = input.part();
            put_frame(&mut file, 1, entries);
            put_frame(&mut file, 2, input.0);
            let journal = header(JOURNAL, SNAPSHOT_AT);
            check(Some(&file), &journal, SNAPSHOT_AT).0.is_ok()
        }
    }
}

/// A value as stored.
fn sealed(key_text: &str, value: &str) -> Vec<u8> {
    let values = key().cipher(Purpose::Values);
    values.seal(key_text.as_bytes(), value.as_bytes()).unwrap()
}

/// The plain text of a journal frame with these commits.
fn group(commits: &[(String, u64, Option<String>)]) -> Vec<u8> {
    #[derive(Serialize)]
    enum Change {
        Put(Vec<u8>, Vec<u8>),
        Delete(Vec<u8>),
    }
    #[derive(Serialize)]
    enum Group {
        Commits(Vec<Vec<Change>>),
    }
    let change = |(key, _, value): &(String, u64, Option<String>)| match value {
        Some(value) => Change::Put(key.clone().into(), sealed(key, value)),
        None => Change::Delete(key.clone().into()),
    };
    let commits = commits.iter().map(|commit| vec![change(commit)]).collect();
    postcard::to_allocvec(&Group::Commits(commits)).unwrap()
}

/// The plain texts of a snapshot's two frames.
fn snapshot() -> (Vec<u8>, Vec<u8>) {
    #[derive(Serialize)]
    enum Page {
        Entries(Vec<(Vec<u8>, u64, Vec<u8>)>),
        End(u64),
    }
    let live = live(SNAPSHOT_AT);
    let entry = |(key, n, value): &(String, u64, Option<String>)| {
        let value = sealed(key, value.as_deref().unwrap_or_default());
        (key.clone().into_bytes(), *n, value)
    };
    let page = Page::Entries(live.iter().map(entry).collect());
    let end = Page::End(live.len() as u64);
    let encode = |page: &Page| postcard::to_allocvec(page).unwrap();
    (encode(&page), encode(&end))
}

/// Seeds of [`journal`]: the first is written by the store itself.
#[must_use]
pub fn journal_seeds() -> Seeds {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LocalStore::open(dir.path(), &key(), Options::default()).unwrap();
    for (key, value) in history() {
        let key = Key::new(key).unwrap();
        let txn = match value {
            Some(value) => Txn::new().put(key, value),
            None => Txn::new().delete(key),
        };
        let _ = store.commit_blocking(txn).unwrap();
    }
    drop(store);
    let written = std::fs::read(dir.path().join(format!("journal-{:016x}", 0))).unwrap();

    let all = expected();
    let mut two_groups = header(JOURNAL, 0);
    put_frame(&mut two_groups, 1, &group(&all[..2]));
    put_frame(&mut two_groups, 3, &group(&all[2..]));

    let (page, end) = snapshot();
    let mut file = header(SNAPSHOT, SNAPSHOT_AT);
    put_frame(&mut file, 1, &page);
    put_frame(&mut file, 2, &end);
    let mut tail = header(JOURNAL, SNAPSHOT_AT);
    put_frame(
        &mut tail,
        SNAPSHOT_AT + 1,
        &group(&all[SNAPSHOT_AT as usize..]),
    );
    let mut with_snapshot = vec![1];
    put_part(&mut with_snapshot, &file);
    with_snapshot.extend_from_slice(&tail);

    let mut pages = vec![3];
    put_part(&mut pages, &page);
    pages.extend_from_slice(&end);
    let raw = |file: &[u8]| [&[0][..], file].concat();
    // The first frame is damaged, the second is whole.
    let mut damaged = two_groups.clone();
    damaged[90] ^= 1;
    let torn = &two_groups[..two_groups.len() - 7];
    vec![
        ("ok-written".into(), raw(&written)),
        ("ok-groups".into(), raw(&two_groups)),
        ("ok-snapshot".into(), with_snapshot),
        ("ok-plain-group".into(), [vec![2], group(&all)].concat()),
        ("ok-plain-pages".into(), pages),
        ("torn".into(), raw(torn)),
        ("bad-damaged".into(), raw(&damaged)),
        ("bad-header-only".into(), raw(&header(JOURNAL, 0))),
    ]
}
