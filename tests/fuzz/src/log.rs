//! The change log of a service's instance: what comes back of a damaged one is the beginning of
//! what was written, and it can be written on.

use std::path::Path;

use hop3_agent::services::log::{Error, Head, Log, LogId};
use hop3_common::store::{Cipher, MasterKey, crypt::Purpose};

use crate::{disk::MemoryDisk, input::Input};

const ID: LogId = LogId([7; 16]);
const DELTAS: [&[u8]; 4] = [b"one", b"two", b"", b"four"];
const PATH: &str = "/logs/a";

fn cipher() -> Cipher {
    MasterKey::from_bytes([3; 32]).cipher(Purpose::ServiceLog)
}

fn head() -> Head {
    Head {
        instance: "service/s/0".parse().unwrap(),
        base: Vec::new(),
    }
}

type Recovered = (Log, Vec<Vec<u8>>);

fn recover(disk: &MemoryDisk, head_must_be: Option<&Head>) -> Result<Recovered, Error> {
    let mut deltas = Vec::new();
    let begin = |found: Head| {
        assert!(head_must_be.is_none_or(|head| *head == found), "{found:?}");
        Ok(())
    };
    let each = |delta: &[u8]| {
        deltas.push(delta.to_vec());
        Ok(())
    };
    let path = Path::new(PATH);
    let recovered = Log::recover::<Head, Error>(disk, path, cipher(), ID, begin, each)?;
    Ok((recovered.0, deltas))
}

/// A log's file, damaged; or one whose head is anything in a right seal.
pub fn log(data: &[u8]) -> bool {
    let mut input = Input(data);
    let disk = MemoryDisk::default();
    let path = Path::new(PATH);
    if input.u8() % 2 == 1 {
        disk.put(path, &file(&[(0, input.0), (1, b"one")]));
        return recover(&disk, None).is_ok();
    }
    disk.put(path, input.0);
    let (mut log, deltas) = match recover(&disk, Some(&head())) {
        Ok(recovered) => recovered,
        Err(Error::Damaged { .. }) => {
            assert_eq!(
                disk.get(path).as_deref(),
                Some(input.0),
                "damage was touched"
            );
            return false;
        }
        Err(error) => panic!("damage is called so: {error}"),
    };
    assert!(DELTAS.starts_with(&deltas.iter().map(|of| &of[..]).collect::<Vec<_>>()));
    let left = disk.get(path).unwrap();
    assert!(input.0.starts_with(&left), "more than cut");
    log.append(b"next").unwrap();
    let (_, again) = recover(&disk, Some(&head())).unwrap();
    assert_eq!(again.split_last(), Some((&b"next".to_vec(), &deltas[..])));
    deltas.len() == DELTAS.len()
}

/// A log's file by the documented form.
fn file(frames: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = b"HOP3SLG\x01".to_vec();
    out.extend(ID.0);
    for (number, plain) in frames {
        let context = [&ID.0[..], &number.to_le_bytes()].concat();
        let body = cipher().seal(&context, plain).unwrap();
        out.extend(b"H3S\x01");
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(body);
    }
    out
}

/// Seeds of [`log`]: the first is written by the log itself.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let disk = MemoryDisk::default();
    let path = Path::new(PATH);
    let (first, rest) = DELTAS.split_first().unwrap();
    let mut log = Log::create(&disk, path, cipher(), ID, &head(), Some(first)).unwrap();
    for delta in rest {
        log.append(delta).unwrap();
    }
    let written = disk.get(path).unwrap();
    let plain = postcard::to_allocvec(&head()).unwrap();
    let gap = file(&[(0, &plain), (1, DELTAS[0]), (3, DELTAS[2])]);
    let raw = |file: &[u8]| [&[0][..], file].concat();
    let mut damaged = written.clone();
    damaged[150] ^= 1;
    vec![
        ("ok-written".into(), raw(&written)),
        ("ok-head".into(), [vec![1], plain].concat()),
        ("torn".into(), raw(&written[..written.len() - 5])),
        ("bad-damaged".into(), raw(&damaged)),
        ("gap".into(), raw(&gap)),
        ("bad-head-only".into(), raw(&file(&[]))),
    ]
}
