#![allow(clippy::unwrap_used)]
use std::fs;

use crate::store::{MasterKey, crypt::Purpose, disk::OsDisk};

use super::*;

const ID: LogId = LogId([7; 16]);

fn cipher() -> Cipher {
    MasterKey::from_bytes([3; 32]).cipher(Purpose::ServiceLog)
}

fn head() -> String {
    "what it is about".into()
}

fn create(path: &Path, first: Option<&[u8]>) -> Log {
    Log::create(&OsDisk, path, cipher(), ID, &head(), first).unwrap()
}

type Recovered = (Log, Vec<Vec<u8>>, Option<Torn>);

fn recover(path: &Path) -> Result<Recovered, Error> {
    let mut deltas = Vec::new();
    let begin = |found: String| {
        assert_eq!(found, head());
        Ok(())
    };
    let each = |delta: &[u8]| {
        deltas.push(delta.to_vec());
        Ok(())
    };
    let (log, torn) = Log::recover::<String, Error>(&OsDisk, path, cipher(), ID, begin, each)?;
    Ok((log, deltas, torn))
}

/// A log with three deltas; where each frame ends.
fn three(path: &Path) -> Vec<usize> {
    let mut log = create(path, Some(b"one"));
    let mut ends = vec![log.bytes() as usize];
    for delta in [&b"two"[..], b"three"] {
        log.append(delta).unwrap();
        ends.push(log.bytes() as usize);
    }
    ends
}

#[test]
fn deltas_come_back_in_order_and_more_can_follow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    three(&path);
    let (mut log, deltas, torn) = recover(&path).unwrap();
    assert_eq!((deltas.len(), torn), (3, None));
    log.append(b"four").unwrap();
    let (_, deltas, _) = recover(&path).unwrap();
    assert_eq!(deltas, [&b"one"[..], b"two", b"three", b"four"]);
    let raw = fs::read(&path).unwrap();
    assert!(
        !raw.windows(5).any(|w| w == b"three"),
        "nothing in the clear"
    );
}

#[test]
fn a_log_torn_anywhere_keeps_its_whole_frames() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let ends = three(&path);
    let whole = fs::read(&path).unwrap();
    // Up to its first end it was durable before anything referred to it.
    for len in ends[0]..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let (mut log, deltas, torn) = recover(&path).unwrap();
        let expected = ends.iter().filter(|end| **end <= len).count();
        assert_eq!(deltas.len(), expected, "cut at {len}");
        assert_eq!(torn.is_some(), !ends.contains(&len));
        log.append(b"next").unwrap();
        assert_eq!(recover(&path).unwrap().1.len(), expected + 1);
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let ends = three(&path);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut altered = whole.clone();
        altered[at] ^= 0x10;
        fs::write(&path, &altered).unwrap();
        match recover(&path) {
            // In the last frame it cannot be told from a torn write.
            Ok((_, deltas, torn)) => {
                assert!(at >= ends[1], "byte {at}");
                assert_eq!((deltas.len(), torn.is_some()), (2, true));
            }
            Err(Error::Damaged { number, .. }) => {
                assert!(at < ends[1], "byte {at}");
                assert!(number <= 2);
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn frames_of_another_log_do_not_verify() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    three(&path);
    let other = LogId([8; 16]);
    let begin = |_| Ok(());
    let opened = Log::recover::<String, Error>(&OsDisk, &path, cipher(), other, begin, |_| Ok(()));
    assert!(matches!(opened, Err(Error::Damaged { .. })));
    let mut renamed = fs::read(&path).unwrap();
    renamed[8..24].copy_from_slice(&other.0);
    fs::write(&path, renamed).unwrap();
    let opened = Log::recover::<String, Error>(&OsDisk, &path, cipher(), other, begin, |_| Ok(()));
    assert!(matches!(opened, Err(Error::Damaged { .. })));
}
