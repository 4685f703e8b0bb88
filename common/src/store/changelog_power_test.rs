//! The log after a power cut at every operation, and on a disk that fails.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use crate::store::{
    MasterKey,
    ab::AbFile,
    crypt::Purpose,
    powercut::{Fault, Report, Rng, SimDisk, is_long, seed},
};

use super::*;

const DIR: &str = "/logs";

/// A service whose state is how many changes were made. What names its log is a record of its
/// own, as in the product.
struct Service {
    disk: SimDisk,
    names: AbFile,
    log: Log,
    id: LogId,
    changes: u64,
}

fn cipher() -> Cipher {
    MasterKey::from_bytes([3; 32]).cipher(Purpose::ServiceLog)
}

fn head() -> String {
    "what it is about".into()
}

fn path(id: LogId) -> PathBuf {
    Path::new(DIR).join(id.to_string())
}

/// A change or a checkpoint: what number it leads to, and some bytes.
fn delta(number: u64, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    let len = [0, 30, 480, 1500][rng.below(4)];
    bytes.extend((0..len).map(|_| rng.number() as u8));
    bytes
}

fn names(disk: &SimDisk) -> crate::store::Result<(AbFile, Option<Vec<u8>>)> {
    AbFile::open(Arc::new(disk.clone()), Path::new(DIR), "names")
}

/// The log that the record names and its changes; `None` before the first.
fn recover(disk: &SimDisk) -> Result<Option<Service>, Error> {
    let (names, id) = names(disk).map_err(Error::Seal)?;
    let Some(id) = id else { return Ok(None) };
    let id = LogId(id.try_into().unwrap());
    let mut changes = 0;
    let each = |delta: &[u8]| {
        let number = u64::from_le_bytes(delta[..8].try_into().unwrap());
        // The first one stands for everything before.
        assert!(
            changes == 0 || number == changes + 1,
            "{number} after {changes}"
        );
        changes = number;
        Ok(())
    };
    let begin = |found: String| {
        assert_eq!(found, head());
        Ok(())
    };
    let (log, _) = Log::recover::<String, Error>(disk, &path(id), cipher(), id, begin, each)?;
    let disk = disk.clone();
    Ok(Some(Service {
        disk,
        names,
        log,
        id,
        changes,
    }))
}

impl Service {
    fn create(disk: &SimDisk, rng: &mut Rng) -> Self {
        let (names, _) = names(disk).unwrap();
        let id = LogId([0; 16]);
        let first = delta(1, rng);
        let log = Log::create(disk, &path(id), cipher(), id, &head(), Some(&first)).unwrap();
        let mut service = Self {
            disk: disk.clone(),
            names,
            log,
            id,
            changes: 1,
        };
        service.names.write(&id.0).unwrap();
        service
    }

    /// Begins a new log with everything so far and `more` changes, then drops the old one.
    fn roll(&mut self, rng: &mut Rng, more: u64) -> Result<(), Error> {
        let id = LogId(std::array::from_fn(|_| rng.number() as u8));
        let first = delta(self.changes + more, rng);
        let path_new = path(id);
        let log = Log::create(&self.disk, &path_new, cipher(), id, &head(), Some(&first));
        let log = log.inspect_err(|_| drop(self.disk.remove(&path_new)))?;
        while self.names.write(&id.0).is_err() {}
        let old = std::mem::replace(&mut self.id, id);
        self.log = log;
        self.changes += more;
        let _ = self.disk.remove(&path(old));
        Ok(())
    }
}

#[derive(Default)]
struct Run {
    acknowledged: Vec<(usize, u64)>,
    attempted: u64,
}

impl Run {
    fn acknowledged(&self, at: usize) -> u64 {
        let told = self.acknowledged.iter().filter(|(told, _)| *told <= at);
        told.map(|(_, number)| *number).max().unwrap_or(0)
    }

    fn check(&self, image: &SimDisk, acknowledged: u64, context: &str) -> u64 {
        let found = recover(image).unwrap_or_else(|e| panic!("{context}: {e}"));
        let changes = found.map_or(0, |service| service.changes);
        let right = (acknowledged..=self.attempted).contains(&changes);
        assert!(
            right,
            "{context}: {changes}, {acknowledged} were acknowledged"
        );
        changes
    }
}

/// Changes, rolls and recovers, at random; goes on after a failure as a storage does.
fn work(disk: &SimDisk, run: &mut Run, rng: &mut Rng, steps: usize) -> usize {
    let mut failures = 0;
    let found = recover(disk).or_else(|_| recover(disk));
    let mut service = found.unwrap().unwrap_or_else(|| {
        run.attempted = 1;
        Service::create(disk, rng)
    });
    for _ in 0..steps {
        run.acknowledged.push((disk.recorded(), service.changes));
        let next = service.changes + 1;
        run.attempted = next;
        let appended = service.log.append(&delta(next, rng));
        if let Err(error) = &appended {
            failures += 1;
            let typed = matches!(error, Error::NoSpace { .. } | Error::Io { .. });
            assert!(typed && error.to_string().contains(DIR), "{error}");
            for image in disk.cut().images(rng, 4) {
                run.check(&image, service.changes, &format!("cut after {error}"));
            }
        }
        match appended {
            Ok(()) => service.changes = next,
            Err(_) if service.log.is_broken() => service.roll(rng, 1).unwrap(),
            Err(_) => {
                service.log.append(&delta(next, rng)).unwrap();
                service.changes = next;
            }
        }
        run.acknowledged.push((disk.recorded(), service.changes));
        run.check(
            &disk.cut().dropped(),
            service.changes,
            "nothing but what is durable",
        );
        match rng.below(6) {
            0 => failures += usize::from(service.roll(rng, 0).is_err()),
            1 => {
                let changes = service.changes;
                service = match recover(disk) {
                    Ok(found) => found.unwrap(),
                    Err(_) => recover(disk).unwrap().unwrap(),
                };
                assert_eq!(service.changes, changes);
            }
            _ => {}
        }
    }
    failures
}

#[test]
fn a_power_cut_at_every_operation_loses_no_acknowledged_change() {
    let (workloads, max) = if is_long() { (100, 8) } else { (50, 2) };
    let mut report = Report::default();
    for workload in seed()..seed() + workloads {
        let (disk, mut run) = (SimDisk::default(), Run::default());
        let mut rng = Rng::new(workload);
        work(&disk, &mut run, &mut rng, 10);
        for (at, cut) in disk.cuts() {
            for image in cut.images(&mut rng, max) {
                let context = format!("HOP3_SEED={workload}, cut after {at}");
                let left = run.check(&image, run.acknowledged(at), &context);
                report.images += 1;
                // Recovered and at work again, it is cut again.
                if left > 0 && rng.one_in(40) {
                    let mut next = Run::default();
                    next.acknowledged.push((0, left));
                    work(&image, &mut next, &mut rng, 2);
                    for (at, cut) in image.cuts() {
                        for second in cut.images(&mut rng, 2) {
                            let context = format!("{context}, then after {at}");
                            next.check(&second, next.acknowledged(at), &context);
                            report.images += 1;
                        }
                    }
                }
            }
        }
        report.workloads += 1;
    }
    report.print("service-log");
    assert!(report.images > 1_000, "{report:?}");
}

#[test]
fn what_a_killed_process_left_is_durable_once_it_was_recovered() {
    let mut rng = Rng::new(seed());
    let disk = SimDisk::default();
    let mut run = Run::default();
    let mut service = Service::create(&disk, &mut rng);
    service.changes = 2;
    run.attempted = 2;
    // Killed between the write and the sync.
    disk.fail(disk.operations() + 1, Fault::Dead);
    service.log.append(&delta(2, &mut rng)).unwrap_err();
    let next = disk.killed();
    assert_eq!(run.check(&next, 1, "killed"), 2);
    for image in next.cut().images(&mut rng, 8) {
        run.check(&image, 2, "then cut");
    }
}

#[test]
fn any_failed_operation_of_a_running_service_is_survived() {
    let begun = || {
        let disk = SimDisk::default();
        Service::create(&disk, &mut Rng::new(1));
        let before = disk.operations();
        (disk, before)
    };
    let operations = {
        let (disk, before) = begun();
        work(&disk, &mut Run::default(), &mut Rng::new(7), 12);
        disk.operations() - before
    };
    let full = io::ErrorKind::StorageFull;
    let faults = [
        Fault::Error(full),
        Fault::Short(full),
        Fault::Error(io::ErrorKind::Other),
        Fault::Late(io::ErrorKind::Other),
    ];
    let mut failures = 0;
    for (at, fault) in (3..operations).flat_map(|at| faults.map(|fault| (at, fault))) {
        let (disk, before) = begun();
        let mut run = Run::default();
        disk.fail(before + at, fault);
        failures += work(&disk, &mut run, &mut Rng::new(7), 12);
        let last = run.acknowledged(usize::MAX);
        let context = format!("{fault:?} at {at}");
        assert_eq!(last, 13, "{context}");
        for image in disk.cut().images(&mut Rng::new(2), 4) {
            run.check(&image, last, &context);
        }
    }
    assert!(failures > 40, "{failures}");
}
