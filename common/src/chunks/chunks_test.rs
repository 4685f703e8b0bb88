//! Blobs against damage, interruption, wrong contents, and restarts.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;

use super::{BlobStore, Collected, Error, SEGMENT_BYTES};
use crate::{id::Digest, store::MasterKey};

const LIMIT: u64 = 10 * 1024 * 1024;

struct Place {
    dir: tempfile::TempDir,
    store: BlobStore,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    Place { dir, store }
}

fn open(dir: &Path) -> BlobStore {
    BlobStore::open(dir, &MasterKey::from_bytes([1; 32])).unwrap()
}

/// Contents that differ in every segment.
fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i / 7 + i / SEGMENT_BYTES * 31) as u8)
        .collect()
}

fn read_from(store: &BlobStore, digest: &Digest, offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    store
        .reader(digest, offset)
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for sub in ["blobs", "partial", "tmp"] {
        found.extend(
            fs::read_dir(dir.join(sub))
                .unwrap()
                .map(|e| e.unwrap().path()),
        );
    }
    found
}

fn make_old(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(then)
        .unwrap();
}

fn inner(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap()
}

#[test]
fn sizes_around_segments_come_back_from_any_offset() {
    let p = place();
    for len in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let contents = bytes(len);
        let digest = p.store.put(&contents).unwrap();
        assert_eq!(digest, Digest::of(&contents));
        assert!(p.store.contains(&digest));
        assert_eq!(p.store.size(&digest).unwrap(), len as u64);
        for offset in [0, 1, 65_535, 65_536, 65_537, 131_072, len]
            .into_iter()
            .filter(|o| *o <= len)
        {
            assert_eq!(
                read_from(&p.store, &digest, offset as u64),
                contents[offset..],
                "{len} {offset}"
            );
        }
        let beyond = p.store.reader(&digest, len as u64 + 1).unwrap_err();
        assert!(matches!(beyond, Error::OutOfRange { .. }), "{beyond}");
    }
    assert_eq!(p.store.list().unwrap().len(), 7);
    assert_eq!(open(p.dir.path()).list().unwrap().len(), 7);
}

#[test]
fn what_is_missing_is_not_found() {
    let p = place();
    let digest = Digest::of(b"nothing");
    assert!(matches!(
        p.store.reader(&digest, 0),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(p.store.size(&digest), Err(Error::NotFound { .. })));
    assert!(!p.store.contains(&digest) && !p.store.remove(&digest).unwrap());
    assert!(!p.store.touch(&digest).unwrap());
}

#[test]
fn wrong_contents_leave_nothing() {
    let p = place();
    let expected = Digest::of(b"right");
    let mut writer = p.store.writer(Some(expected), None, LIMIT).unwrap();
    writer.write_all(b"wrong").unwrap();
    match writer.commit() {
        Err(Error::HashMismatch {
            expected: e,
            actual,
        }) => {
            assert_eq!((e, actual), (expected, Digest::of(b"wrong")));
        }
        other => panic!("{other:?}"),
    }
    let mut writer = p.store.writer(None, Some(6), LIMIT).unwrap();
    writer.append(b"short").unwrap();
    let error = writer.commit().unwrap_err();
    assert!(
        matches!(
            error,
            Error::SizeMismatch {
                expected: 6,
                actual: 5
            }
        ),
        "{error}"
    );
    let mut writer = p.store.writer(None, None, 10).unwrap();
    writer.append(&[0; 10]).unwrap();
    let error = inner(writer.write_all(&[0]).unwrap_err());
    assert!(matches!(error, Error::TooLarge { limit: 10 }), "{error}");
    drop(writer);
    assert!(matches!(
        p.store.writer(None, Some(11), 10),
        Err(Error::TooLarge { .. })
    ));
    assert!(files(p.dir.path()).is_empty());
}

#[test]
fn files_are_private_and_sealed() {
    let p = place();
    let digest = p.store.put(b"a very recognisable secret").unwrap();
    let path = p.store.blob_path(&digest);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
        0o700
    );
    let raw = fs::read(&path).unwrap();
    assert!(!raw.windows(12).any(|w| w == b"recognisable"));
}

#[test]
fn every_damage_is_seen_and_named() {
    let p = place();
    let contents = bytes(2 * SEGMENT_BYTES + 100);
    let digest = p.store.put(&contents).unwrap();
    let path = p.store.blob_path(&digest);
    let raw = fs::read(&path).unwrap();
    let segment_of = |damaged: &[u8]| -> Option<u64> {
        fs::write(&path, damaged).unwrap();
        let error = match p.store.reader(&digest, 0) {
            Err(error) => error,
            Ok(mut reader) => inner(io::copy(&mut reader, &mut io::sink()).unwrap_err()),
        };
        match error {
            Error::Corrupt { digest: d, segment } if d == digest => segment,
            other => panic!("{other}"),
        }
    };
    let flipped = |at: usize| {
        let mut damaged = raw.clone();
        damaged[at] ^= 1;
        damaged
    };
    for at in 0..96 {
        assert_eq!(segment_of(&flipped(at)), None, "header byte {at}");
    }
    let sealed = SEGMENT_BYTES + 40;
    assert_eq!(segment_of(&flipped(96)), Some(0));
    assert_eq!(segment_of(&flipped(96 + sealed - 1)), Some(0));
    assert_eq!(segment_of(&flipped(96 + sealed)), Some(1));
    assert_eq!(segment_of(&flipped(raw.len() - 1)), Some(2));
    assert_eq!(segment_of(&raw[..raw.len() - 1]), None, "shorter");
    assert_eq!(segment_of(&[&raw[..], b"x"].concat()), None, "longer");
    assert_eq!(segment_of(&raw[..50]), None, "cut in the header");
    let mut exchanged = raw.clone();
    exchanged[96..96 + 2 * sealed].rotate_left(sealed);
    assert_eq!(segment_of(&exchanged), Some(0), "segments exchanged");
    // A reader that begins after the damage is not disturbed by it.
    fs::write(&path, flipped(96)).unwrap();
    let offset = SEGMENT_BYTES as u64;
    assert_eq!(
        read_from(&p.store, &digest, offset),
        contents[SEGMENT_BYTES..]
    );
}

#[test]
fn blobs_cannot_stand_in_for_one_another() {
    let p = place();
    let (a, b) = (p.store.put(b"aaaa").unwrap(), p.store.put(b"bbbb").unwrap());
    fs::copy(p.store.blob_path(&a), p.store.blob_path(&b)).unwrap();
    assert!(matches!(
        p.store.reader(&b, 0),
        Err(Error::Corrupt { segment: None, .. })
    ));
    // Putting it again mends it.
    p.store.put(b"bbbb").unwrap();
    assert_eq!(p.store.read(&b, 4).unwrap(), b"bbbb");
    assert!(matches!(
        p.store.read(&b, 3),
        Err(Error::TooLarge { limit: 3 })
    ));
}

#[test]
fn a_wrong_key_is_said_and_changes_nothing() {
    let p = place();
    let digest = p.store.put(b"x").unwrap();
    let mut partial = p.store.resume(&Digest::of(b"y"), 1).unwrap();
    partial.append(b"").unwrap();
    drop(partial);
    let before = files(p.dir.path());
    let error = BlobStore::open(p.dir.path(), &MasterKey::from_bytes([2; 32])).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
    assert_eq!(files(p.dir.path()), before);
    assert_eq!(read_from(&open(p.dir.path()), &digest, 0), b"x");
}

#[test]
fn a_partial_blob_goes_on_after_a_restart() {
    let mut p = place();
    let contents = bytes(3 * SEGMENT_BYTES + 5);
    let (digest, total) = (Digest::of(&contents), contents.len() as u64);
    let mut partial = p.store.resume(&digest, total).unwrap();
    partial.append(&contents[..2 * SEGMENT_BYTES + 9]).unwrap();
    assert_eq!(partial.offset(), 2 * SEGMENT_BYTES as u64 + 9);
    assert!(matches!(
        p.store.resume(&digest, total),
        Err(Error::Busy { .. })
    ));
    assert!(matches!(
        partial.append(&contents),
        Err(Error::TooLarge { .. })
    ));
    drop(partial);

    p.store = open(p.dir.path());
    let partial = p.store.resume(&digest, total).unwrap();
    assert_eq!(
        partial.offset(),
        2 * SEGMENT_BYTES as u64,
        "whole segments are kept"
    );
    let error = partial.commit().unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");

    let mut partial = p.store.resume(&digest, total).unwrap();
    let offset = usize::try_from(partial.offset()).unwrap();
    assert_eq!(offset, 2 * SEGMENT_BYTES);
    partial.append(&contents[offset..]).unwrap();
    assert!(partial.complete());
    drop(partial);

    // All is here, but it was not committed.
    let partial = p.store.resume(&digest, total).unwrap();
    assert!(partial.complete());
    assert_eq!(partial.commit().unwrap(), digest);
    assert_eq!(read_from(&p.store, &digest, 0), contents);
    assert_eq!(files(p.dir.path()), [p.store.blob_path(&digest)]);
}

#[test]
fn a_damaged_partial_goes_on_before_the_damage() {
    let p = place();
    let contents = bytes(3 * SEGMENT_BYTES);
    let (digest, total) = (Digest::of(&contents), contents.len() as u64);
    let mut partial = p.store.resume(&digest, total).unwrap();
    partial.append(&contents[..2 * SEGMENT_BYTES]).unwrap();
    drop(partial);
    let path = p.store.partial_path(&digest);
    let mut raw = fs::read(&path).unwrap();
    assert_eq!(raw.len(), 96 + 2 * (SEGMENT_BYTES + 40));
    raw[96 + SEGMENT_BYTES + 40 + 7] ^= 1;
    fs::write(&path, &raw).unwrap();
    let partial = p.store.resume(&digest, total).unwrap();
    assert_eq!(partial.offset(), SEGMENT_BYTES as u64);
    drop(partial);
    // Another announced size, or a damaged header: from the beginning.
    assert_eq!(p.store.resume(&digest, total + 1).unwrap().offset(), 0);
    fs::write(&path, b"not a header").unwrap();
    let mut partial = p.store.resume(&digest, total).unwrap();
    assert_eq!(partial.offset(), 0);
    partial.append(&contents).unwrap();
    partial.commit().unwrap();
}

#[test]
fn a_partial_with_wrong_contents_is_dropped() {
    let p = place();
    let mut partial = p.store.resume(&Digest::of(b"right"), 5).unwrap();
    partial.append(b"wrong").unwrap();
    assert!(matches!(partial.commit(), Err(Error::HashMismatch { .. })));
    assert!(files(p.dir.path()).is_empty());
    let huge = p.store.resume(&Digest::of(b"right"), u64::MAX);
    assert!(matches!(huge, Err(Error::TooLarge { .. })));
    let empty = p.store.resume(&Digest::of(b""), 0).unwrap();
    assert_eq!(empty.commit().unwrap(), Digest::of(b""));
    p.store
        .resume(&Digest::of(b"right"), 5)
        .unwrap()
        .discard()
        .unwrap();
    assert_eq!(files(p.dir.path()), [p.store.blob_path(&Digest::of(b""))]);
}

#[test]
fn collection_removes_only_what_is_old_and_unwanted() {
    let p = place();
    let day = Duration::from_secs(600);
    let (wanted, old, young) = (
        p.store.put(b"wanted").unwrap(),
        p.store.put(b"old").unwrap(),
        p.store.put(b"young").unwrap(),
    );
    let mut live = p.store.writer(None, None, LIMIT).unwrap();
    live.append(b"going on").unwrap();
    let live_partial = p.store.resume(&Digest::of(b"live"), 4).unwrap();
    drop(p.store.resume(&Digest::of(b"dead"), 4).unwrap());
    fs::write(p.dir.path().join("tmp/left-by-a-crash"), b"rest").unwrap();
    for path in files(p.dir.path()) {
        make_old(&path);
    }
    assert!(p.store.touch(&young).unwrap());
    let bytes = 96 + 40 + 3;
    let collected = p.store.gc(|d| *d == wanted, day).unwrap();
    assert_eq!(
        collected,
        Collected {
            blobs: 1,
            rests: 2,
            bytes: bytes + 96 + 4
        }
    );
    assert_eq!(p.store.list().unwrap().len(), 2);
    assert!(!p.store.contains(&old));
    assert_eq!(live.commit().unwrap(), Digest::of(b"going on"));
    live_partial.discard().unwrap();
    let second = p.store.gc(|_| false, day).unwrap();
    assert_eq!(
        second.blobs, 1,
        "what is left but the formerly wanted one is young"
    );
    assert!(!p.store.contains(&wanted) && p.store.contains(&young));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_pieces_make_the_same_blob(
        len in 0..200_000usize,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        restart in any::<bool>(),
        offset in any::<prop::sample::Index>(),
    ) {
        let p = place();
        let contents = bytes(len);
        let digest = Digest::of(&contents);
        let mut cuts: Vec<_> = cuts.iter().map(|c| c.index(len + 1)).collect();
        cuts.sort_unstable();
        if restart {
            for cut in cuts {
                let mut partial = p.store.resume(&digest, len as u64).unwrap();
                let from = usize::try_from(partial.offset()).unwrap();
                partial.append(&contents[from..cut.max(from)]).unwrap();
            }
            let mut partial = p.store.resume(&digest, len as u64).unwrap();
            let from = usize::try_from(partial.offset()).unwrap();
            partial.append(&contents[from..]).unwrap();
            prop_assert_eq!(partial.commit().unwrap(), digest);
        } else {
            let mut writer = p.store.writer(Some(digest), Some(len as u64), LIMIT).unwrap();
            let mut at = 0;
            for cut in cuts.into_iter().chain([len]) {
                writer.append(&contents[at..cut]).unwrap();
                at = cut;
            }
            prop_assert_eq!(writer.commit().unwrap(), digest);
        }
        let offset = offset.index(len + 1);
        prop_assert_eq!(read_from(&p.store, &digest, offset as u64), &contents[offset..]);
    }
}
