//! Blobs after a power cut at every operation, and on a disk that fails.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{BlobStore, Error, Result, SEGMENT_BYTES};
use crate::{
    id::Digest,
    store::{
        MasterKey,
        powercut::{Fault, Report, Rng, SimDisk, is_long, seed},
    },
};

fn open(disk: &SimDisk) -> Result<BlobStore> {
    BlobStore::open_on(
        Arc::new(disk.clone()),
        Path::new("/blobs-of"),
        &MasterKey::from_bytes([1; 32]),
    )
}

fn random_contents(rng: &mut Rng) -> Vec<u8> {
    let segments = [0, 0, 0, 0, SEGMENT_BYTES, 2 * SEGMENT_BYTES];
    let len = segments[rng.below(6)] + [0, 1, 700][rng.below(3)];
    let salt = rng.number();
    (0..len as u64).map(|i| (salt >> (i % 56)) as u8).collect()
}

#[derive(Default)]
struct Run {
    contents: BTreeMap<Digest, Vec<u8>>,
    /// After so many recorded operations a blob is durable (or may be gone again).
    told: Vec<(usize, Digest, bool)>,
}

impl Run {
    fn tell(&mut self, disk: &SimDisk, digest: Digest, there: bool) {
        self.told.push((disk.recorded(), digest, there));
    }

    /// What must be there, by then. A removal that began may have happened.
    fn promised(&self, at: usize) -> BTreeSet<Digest> {
        let mut promised = BTreeSet::new();
        for (told, digest, there) in &self.told {
            if *there && *told <= at {
                promised.insert(*digest);
            } else if !*there && *told < at {
                promised.remove(digest);
            }
        }
        promised
    }
}

/// Writes whole blobs and in pieces, resumes, removes, collects and opens anew, at random.
fn work(disk: &SimDisk, run: &mut Run, rng: &mut Rng, steps: usize) -> Result<()> {
    let mut store = open(disk)?;
    for _ in 0..steps {
        let contents = random_contents(rng);
        let digest = Digest::of(&contents);
        run.contents.insert(digest, contents.clone());
        match rng.below(6) {
            0 | 1 => {
                store.put(&contents)?;
                run.tell(disk, digest, true);
            }
            2 | 3 => {
                let size = contents.len() as u64;
                let mut partial = store.resume(&digest, size)?;
                let cut = rng.below(contents.len() + 1);
                partial.append(&contents[..cut])?;
                if rng.one_in(2) {
                    drop(partial);
                    store = open(disk)?;
                    partial = store.resume(&digest, size)?;
                }
                let from = usize::try_from(partial.offset()).unwrap();
                partial.append(&contents[from..])?;
                if rng.one_in(4) {
                    continue;
                }
                partial.commit()?;
                run.tell(disk, digest, true);
            }
            4 => {
                let kept = run.promised(disk.recorded());
                let victim = kept.iter().nth(rng.below(kept.len().max(1))).copied();
                if let Some(digest) = &victim {
                    run.tell(disk, *digest, false);
                }
                store.gc(|d| kept.contains(d) && Some(*d) != victim, Duration::ZERO)?;
            }
            _ => store = open(disk)?,
        }
    }
    Ok(())
}

/// Everything promised reads back; whatever has a name is whole.
fn check(image: &SimDisk, run: &Run, promised: &BTreeSet<Digest>, context: &str) -> BlobStore {
    let store = open(image).unwrap_or_else(|e| panic!("{context}: {e}"));
    let listed = store.list().unwrap();
    for digest in promised {
        assert!(listed.contains(digest), "{context}: {digest} is lost");
    }
    for digest in listed {
        let read = store.read(&digest, u64::MAX);
        let read = read.unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(
            read == run.contents[&digest],
            "{context}: {digest} is another"
        );
    }
    store
}

#[test]
fn a_power_cut_at_every_operation_loses_no_blob() {
    let (workloads, max) = if is_long() { (60, 4) } else { (50, 1) };
    let mut report = Report::default();
    for workload in seed()..seed() + workloads {
        let (disk, mut run) = (SimDisk::default(), Run::default());
        let mut rng = Rng::new(workload);
        work(&disk, &mut run, &mut rng, 8).unwrap();
        for (at, cut) in disk.cuts() {
            let promised = run.promised(at);
            for _ in 0..max {
                let image = &cut.random(&mut rng);
                let context = format!("HOP3_SEED={workload}, cut after {at}");
                let store = check(image, &run, &promised, &context);
                report.images += 1;
                // Transfers that were under way go on.
                for (digest, contents) in run.contents.iter().take(2) {
                    let mut partial = store.resume(digest, contents.len() as u64).unwrap();
                    let from = usize::try_from(partial.offset()).unwrap();
                    partial.append(&contents[from..]).unwrap();
                    partial.commit().unwrap();
                }
                check(&image.cut().dropped(), &run, &promised, &context);
            }
        }
        report.workloads += 1;
    }
    report.print("blobs");
    assert!(report.images > 500, "{report:?}");
}

#[test]
fn any_failed_operation_is_survived_and_the_same_call_works_again() {
    let operations = {
        let disk = SimDisk::default();
        work(&disk, &mut Run::default(), &mut Rng::new(5), 5).unwrap();
        disk.operations()
    };
    let full = io::ErrorKind::StorageFull;
    let faults = [
        Fault::Error(full),
        Fault::Short(full),
        Fault::Error(io::ErrorKind::Other),
        Fault::Late(io::ErrorKind::Other),
    ];
    let mut failed = 0;
    for (at, fault) in (0..operations).flat_map(|at| faults.map(|fault| (at, fault))) {
        let (disk, mut run) = (SimDisk::default(), Run::default());
        disk.fail(at, fault);
        let context = format!("{fault:?} at {at}");
        if let Err(error) = work(&disk, &mut run, &mut Rng::new(5), 5) {
            failed += 1;
            let typed = matches!(error, Error::NoSpace { .. } | Error::Io { .. });
            assert!(typed && error.retryable(), "{context}: {error}");
            assert!(
                error.to_string().contains("/blobs-of"),
                "{context}: {error}"
            );
        }
        // Everything that was promised is there; and everything can be stored now.
        let promised = run.promised(usize::MAX);
        for image in disk.cut().images(&mut Rng::new(1), 3) {
            check(&image, &run, &promised, &context);
        }
        let store = open(&disk).unwrap();
        for (digest, contents) in &run.contents {
            let mut partial = store.resume(digest, contents.len() as u64).unwrap();
            let from = usize::try_from(partial.offset()).unwrap();
            partial.append(&contents[from..]).unwrap();
            partial.commit().unwrap();
            assert_eq!(&store.put(contents).unwrap(), digest, "{context}");
        }
        let all = run.contents.keys().copied().collect();
        check(&disk.cut().dropped(), &run, &all, &context);
    }
    assert!(failed > 40, "{failed}");
}

#[test]
fn a_full_disk_refuses_a_blob_until_space_returns() {
    let disk = SimDisk::default();
    let store = open(&disk).unwrap();
    let first = store.put(b"first").unwrap();
    let large = vec![3; 3 * SEGMENT_BYTES];
    disk.set_space(Some(disk.used() + 100_000));
    let error = store.put(&large).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(store.read(&first, 10).unwrap(), b"first");
    assert!(disk.used() < 1_000, "nothing is left of it");
    disk.set_space(None);
    let digest = store.put(&large).unwrap();
    let image = disk.cut().dropped();
    assert_eq!(open(&image).unwrap().read(&digest, 1 << 20).unwrap(), large);
}
