#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;

const ENGINE: [u8; 32] = [1; 32];
const KEY: [u8; 32] = [9; 32];

fn code_of(lookup: Lookup) -> Option<Vec<u8>> {
    match lookup {
        Lookup::Hit(verified) => Some(verified.bytes().to_vec()),
        Lookup::Miss | Lookup::Unusable(_) => None,
    }
}

#[test]
fn what_was_put_is_found_again_by_the_same_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CompiledCache::open(dir.path(), KEY, 1 << 20).unwrap();
    cache.put(&ENGINE, &[2; 32], b"code").unwrap();
    assert_eq!(code_of(cache.get(&ENGINE, &[2; 32])).unwrap(), b"code");
    assert!(matches!(cache.get(&ENGINE, &[3; 32]), Lookup::Miss));
    assert!(matches!(cache.get(&[4; 32], &[2; 32]), Lookup::Miss));
    let reopened = CompiledCache::open(dir.path(), KEY, 1 << 20).unwrap();
    assert_eq!(code_of(reopened.get(&ENGINE, &[2; 32])).unwrap(), b"code");
    let other = CompiledCache::open(dir.path(), [8; 32], 1 << 20).unwrap();
    assert!(matches!(other.get(&ENGINE, &[2; 32]), Lookup::Unusable(_)));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CompiledCache::open(dir.path(), KEY, 1 << 20).unwrap();
    cache.put(&ENGINE, &[2; 32], b"some native code").unwrap();
    let path = cache.path(&ENGINE, &[2; 32]);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        assert!(
            matches!(cache.get(&ENGINE, &[2; 32]), Lookup::Unusable(_)),
            "flip at {at}"
        );
        fs::write(&path, &good[..at]).unwrap();
        assert!(
            matches!(cache.get(&ENGINE, &[2; 32]), Lookup::Unusable(_)),
            "cut at {at}"
        );
    }
    fs::write(&path, [&good[..], b"x"].concat()).unwrap();
    assert!(
        matches!(cache.get(&ENGINE, &[2; 32]), Lookup::Unusable(_)),
        "longer"
    );
}

#[test]
fn a_valid_file_under_another_modules_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CompiledCache::open(dir.path(), KEY, 1 << 20).unwrap();
    cache.put(&ENGINE, &[2; 32], b"code").unwrap();
    fs::copy(cache.path(&ENGINE, &[2; 32]), cache.path(&ENGINE, &[3; 32])).unwrap();
    assert!(matches!(cache.get(&ENGINE, &[3; 32]), Lookup::Unusable(_)));
    let mut other_engine = ENGINE;
    other_engine[31] = 0; // same file name, since only the first bytes are in it
    assert!(matches!(
        cache.get(&other_engine, &[2; 32]),
        Lookup::Unusable(_)
    ));
}

#[test]
fn the_least_recently_used_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CompiledCache::open(dir.path(), KEY, 1_000).unwrap();
    let old = SystemTime::now() - Duration::from_secs(1_000);
    for n in 0..3_u8 {
        cache.put(&ENGINE, &[n; 32], &[n; 200]).unwrap();
        let file = File::options()
            .write(true)
            .open(cache.path(&ENGINE, &[n; 32]))
            .unwrap();
        file.set_modified(old + Duration::from_secs(n.into()))
            .unwrap();
    }
    assert!(code_of(cache.get(&ENGINE, &[0; 32])).is_some()); // now the newest
    cache.put(&ENGINE, &[3; 32], &[3; 200]).unwrap();
    assert!(code_of(cache.get(&ENGINE, &[1; 32])).is_none());
    assert!(code_of(cache.get(&ENGINE, &[0; 32])).is_some());
    cache.put(&ENGINE, &[4; 32], &[4; 2_000]).unwrap(); // larger than the whole cache: not kept
    assert!(code_of(cache.get(&ENGINE, &[4; 32])).is_none());
    assert!(code_of(cache.get(&ENGINE, &[3; 32])).is_some());
}

#[test]
fn leftovers_of_a_crash_are_removed_and_strangers_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("1-0.tmp"), b"half").unwrap();
    fs::write(dir.path().join("README"), b"mine").unwrap();
    CompiledCache::open(dir.path(), KEY, 0).unwrap();
    assert!(!dir.path().join("1-0.tmp").exists());
    assert!(dir.path().join("README").exists());
}
