#![allow(clippy::unwrap_used)]
use super::*;
use crate::store::powercut::{Fault, Report, Rng, SimDisk, is_long, seed};

const DIR: &str = "/sim";

fn open(disk: &SimDisk) -> Result<(AbFile, Option<Vec<u8>>)> {
    AbFile::open(Arc::new(disk.clone()), Path::new(DIR), "ledger")
}

fn slot(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn random_value(rng: &mut Rng) -> Vec<u8> {
    let len = [0, 1, 100, 511, 1300, 4000][rng.below(6)];
    (0..len).map(|_| rng.number() as u8).collect()
}

struct Run {
    /// Values by generation.
    values: Vec<Option<Vec<u8>>>,
    acknowledged: Vec<(usize, u64)>,
}

/// Writes and opens anew, at random.
fn work(disk: &SimDisk, rng: &mut Rng, steps: usize) -> Run {
    let (mut file, value) = open(disk).unwrap();
    let begin = file.generation();
    let mut run = Run {
        values: vec![None; usize::try_from(begin).unwrap()],
        acknowledged: vec![(0, begin)],
    };
    run.values.push(value);
    for _ in 0..steps {
        let value = random_value(rng);
        run.values.push(Some(value.clone()));
        let generation = file.write(&value).unwrap().into_inner();
        run.acknowledged.push((disk.recorded(), generation));
        if rng.one_in(4) {
            let found;
            (file, found) = open(disk).unwrap();
            assert_eq!((file.generation(), found), (generation, Some(value)));
        }
    }
    run
}

fn check(image: &SimDisk, run: &Run, at: usize, context: &str) {
    let (file, value) = open(image).unwrap_or_else(|e| panic!("{context}: {e}"));
    let told = run.acknowledged.iter().filter(|(told, _)| *told <= at);
    let acknowledged = told.map(|(_, generation)| *generation).max().unwrap();
    let generation = file.generation();
    assert!(
        generation >= acknowledged,
        "{context}: {generation} of {acknowledged}"
    );
    assert_eq!(
        value,
        run.values[usize::try_from(generation).unwrap()],
        "{context}"
    );
}

#[test]
fn a_power_cut_at_every_operation_leaves_the_value_before_or_the_new_one() {
    let mut report = Report::default();
    let max = if is_long() { 16 } else { 3 };
    for workload in seed()..seed() + if is_long() { 100 } else { 50 } {
        let (disk, mut rng) = (SimDisk::default(), Rng::new(workload));
        let run = work(&disk, &mut rng, 8);
        for (at, cut) in disk.cuts() {
            for image in cut.images(&mut rng, max) {
                let context = format!("HOP3_SEED={workload}, cut after {at}");
                check(&image, &run, at, &context);
                report.images += 1;
                if rng.one_in(30) {
                    let next = work(&image, &mut rng, 3);
                    for (at, cut) in image.cuts() {
                        for second in cut.images(&mut rng, 2) {
                            check(&second, &next, at, &format!("{context}, then after {at}"));
                            report.images += 1;
                        }
                    }
                }
            }
        }
        report.workloads += 1;
    }
    report.print("ab");
    assert!(report.images > 1_000, "{report:?}");
}

#[test]
fn every_failed_operation_is_survived_and_tried_again() {
    let full = io::ErrorKind::StorageFull;
    let operations = {
        let disk = SimDisk::default();
        work(&disk, &mut Rng::new(3), 4);
        disk.operations()
    };
    let faults = [
        Fault::Error(full),
        Fault::Short(full),
        Fault::Late(io::ErrorKind::Other),
    ];
    for (at, fault) in (0..operations).flat_map(|at| faults.map(|fault| (at, fault))) {
        let disk = SimDisk::default();
        disk.fail(at, fault);
        let opened = open(&disk).or_else(|_| open(&disk));
        let (mut file, mut value) = opened.unwrap();
        for n in 0..4 {
            let new = vec![n; 700 + usize::from(n)];
            let context = format!("{fault:?} at {at}, write {n}");
            if let Err(error) = file.write(&new) {
                let typed = matches!(
                    error,
                    Error::NoSpace { .. } | Error::Io { .. } | Error::SyncFailed { .. }
                );
                assert!(
                    typed && error.to_string().contains(DIR),
                    "{context}: {error}"
                );
                // After a power cut it is one of the two; a process that is killed sees the old.
                for image in disk.cut().images(&mut Rng::new(1), 8) {
                    let (_, found) = open(&image).unwrap_or_else(|e| panic!("{context}: {e}"));
                    assert!(found == value || found.as_ref() == Some(&new), "{context}");
                }
                let killed = disk.killed();
                let (_, shown) = open(&killed).unwrap();
                for image in killed.cut().images(&mut Rng::new(1), 8) {
                    let found = open(&image).unwrap().1;
                    assert!(found == shown, "{context}: shown, then gone");
                }
                file.write(&new)
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            value = Some(new);
            for image in disk.cut().images(&mut Rng::new(2), 4) {
                assert_eq!(open(&image).unwrap().1, value, "{context}");
            }
        }
    }
}

#[test]
fn one_broken_slot_is_named_and_two_are_an_error() {
    let disk = SimDisk::default();
    let (mut file, value) = open(&disk).unwrap();
    assert_eq!((value, file.generation()), (None, 0));
    file.write(b"one").unwrap();
    file.write(b"two").unwrap();
    let [a, b] = ["ledger.a", "ledger.b"].map(slot);
    let (whole_a, whole_b) = (disk.contents(&a).unwrap(), disk.contents(&b).unwrap());
    for bit in 0..whole_b.len() * 8 {
        let mut bytes = whole_b.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        disk.plant(&b, &bytes);
        let (file, value) = open(&disk).unwrap();
        assert_eq!(value.unwrap(), b"one", "bit {bit}");
        assert_eq!(file.damaged(), Some(&*b));
    }
    disk.plant(&a, &whole_a[..whole_a.len() - 1]);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    for name in ["ledger.a", "ledger.b"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    // One alone that does not verify is damage too: it was whole when it got its name.
    disk.remove(&b).unwrap();
    assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
    disk.plant(&b, &whole_b);
    disk.remove(&a).unwrap();
    let (mut file, value) = open(&disk).unwrap();
    assert_eq!(
        (value.unwrap(), file.damaged()),
        (b"two".to_vec(), Some(&*a))
    );
    file.write(b"three").unwrap();
    let (file, value) = open(&disk).unwrap();
    assert_eq!((value.unwrap(), file.damaged()), (b"three".to_vec(), None));
    assert_eq!(file.generation(), 3);
}

#[test]
fn the_file_has_golden_bytes_and_a_limit() {
    let disk = SimDisk::default();
    let (mut file, _) = open(&disk).unwrap();
    file.write(b"hop").unwrap();
    let bytes = disk.contents(&slot("ledger.a")).unwrap();
    assert_eq!(&bytes[..20], b"HOP3ABF\x01\x01\0\0\0\0\0\0\0\x03\0\0\0");
    assert_eq!(bytes.len(), HEAD_BYTES + 3);
    assert_eq!(&bytes[HEAD_BYTES..], b"hop");
    let error = file.write(&vec![0; AB_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::FileTooLarge { .. }), "{error}");
    file.write(&vec![7; AB_BYTES_MAX]).unwrap();
    assert_eq!(open(&disk).unwrap().1.unwrap().len(), AB_BYTES_MAX);
}

#[test]
fn it_works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let open = || AbFile::open(Arc::new(crate::store::disk::OsDisk), dir.path(), "ledger").unwrap();
    let mut file = open().0;
    for n in 0..5 {
        file.write(&[n; 10]).unwrap();
    }
    assert_eq!(open().1.unwrap(), [4; 10]);
}
