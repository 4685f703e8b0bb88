//! The journal on a disk that fails at every operation, in every way.

#![allow(clippy::unwrap_used)]

use std::{io, path::Path};

use bytes::Bytes;

use super::{
    Error, Key, Op, Revision,
    disk::Disk,
    journal::Journal,
    powercut::{Fault, Rng, SimDisk},
    powercut_test::{DIR, Run, State, apply, contents, open},
};

/// A fixed history: groups of commits, with overwriting and deleting.
fn group(step: u64) -> Vec<Vec<Op>> {
    let key = |n: u64| Key::new(format!("key{}", n % 5)).unwrap();
    let put = |n: u64| Op::Put(key(n), Bytes::from(format!("value {n} of step {step}")));
    match step % 3 {
        0 => vec![vec![put(step)], vec![put(step + 1), put(step + 2)]],
        1 => vec![vec![Op::Delete(key(step)), put(step + 3)]],
        _ => vec![vec![put(step)]],
    }
}

/// Demands that a failure says what failed and why.
fn is_typed(error: &Error) -> bool {
    let named = error.to_string().contains(DIR) || error.to_string().contains("flush");
    let typed = matches!(
        error,
        Error::NoSpace { .. }
            | Error::Io { .. }
            | Error::SyncFailed { .. }
            | Error::Poisoned { .. }
    );
    named && typed
}

/// Makes a group durable on a disk on which one thing goes wrong; without opening anew.
fn append(disk: &SimDisk, journal: &mut Journal, run: &mut Run, group: &[Vec<Op>], context: &str) {
    run.attempt(journal.last(), group);
    let Err(error) = journal.append(group) else {
        return;
    };
    assert!(is_typed(&error), "{context}: {error}");
    // As it is now: the group is there as a whole, or part of it in order, or not at all.
    let acknowledged = run.acknowledged(usize::MAX);
    for image in disk.cut().images(&mut Rng::new(1), 4) {
        run.check(
            &image,
            acknowledged,
            &format!("{context}, cut after {error}"),
        );
    }
    run.check(
        &disk.killed(),
        acknowledged,
        &format!("{context}, killed after {error}"),
    );
    if journal.poisoned().is_some() {
        assert!(
            !matches!(error, Error::NoSpace { .. } | Error::Io { .. }),
            "{error}"
        );
        assert!(matches!(journal.append(group), Err(Error::Poisoned { .. })));
        if let Err(error) = journal.renew() {
            assert!(is_typed(&error), "{context}: {error}");
            let image = disk.cut().kept();
            run.check(&image, acknowledged, &format!("{context}, mended in vain"));
            journal.renew().unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        assert_eq!(
            contents(journal),
            run.history[usize::try_from(journal.last().0).unwrap()],
            "{context}: what failed is not there"
        );
    }
    run.attempt(journal.last(), group);
    journal
        .append(group)
        .unwrap_or_else(|e| panic!("{context}: {e}"));
}

/// Works through the history, compacting now and then.
fn work(disk: &SimDisk, context: &str) -> Run {
    let mut run = Run::new();
    let tries = || open(disk).or_else(|_| open(disk)).or_else(|_| open(disk));
    let mut journal = tries().unwrap_or_else(|e| panic!("{context}: {e}"));
    for step in 0..12 {
        let group = group(step);
        append(disk, &mut journal, &mut run, &group, context);
        run.acknowledge(disk, journal.last());
        if step % 4 == 3
            && let Err(error) = journal.compact()
        {
            assert!(is_typed(&error), "{context}: {error}");
            for image in disk.cut().images(&mut Rng::new(1), 4) {
                run.check(
                    &image,
                    journal.last(),
                    &format!("{context}, cut after {error}"),
                );
            }
            run.check(
                &disk.killed(),
                journal.last(),
                &format!("{context}, killed"),
            );
        }
    }
    run
}

#[test]
fn any_failed_operation_is_survived_without_opening_anew() {
    let disk = SimDisk::default();
    assert_eq!(work(&disk, "").acknowledged(usize::MAX), Revision(16));
    let sites = disk.operations();
    let (full, broken) = (io::ErrorKind::StorageFull, io::ErrorKind::Other);
    let faults = [
        Fault::Error(full),
        Fault::Error(broken),
        Fault::Short(full),
        Fault::Short(broken),
        Fault::Late(broken),
    ];
    let mut seen = 0;
    for (at, fault) in (0..sites).flat_map(|at| faults.map(|fault| (at, fault))) {
        // Alone, and with the next operation failing too: often the undoing.
        for next in [None, Some(Fault::Error(broken))] {
            let disk = SimDisk::default();
            disk.fail(at, fault);
            next.inspect(|next| disk.fail(at + 1, *next));
            let context = format!("{fault:?} at {at}, then {next:?}");
            let run = work(&disk, &context);
            let last = run.acknowledged(usize::MAX);
            for image in disk.cut().images(&mut Rng::new(at as u64), 3) {
                run.check(&image, last, &context);
                seen += 1;
            }
        }
    }
    assert!(seen > 1_000, "{seen} images");
}

#[test]
fn a_disk_that_stays_full_refuses_until_space_returns() {
    let mut refused = 0;
    for free in (0..6_000).step_by(97) {
        let (disk, mut run) = (SimDisk::default(), Run::new());
        let mut journal = open(&disk).unwrap();
        disk.set_space(Some(disk.used() + free));
        for step in 0..20 {
            let group = group(step);
            run.attempt(journal.last(), &group);
            if step % 5 == 4 {
                let _ = journal.compact();
            }
            match journal.append(&group) {
                Ok(()) => run.acknowledge(&disk, journal.last()),
                Err(error) => {
                    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                    refused += 1;
                }
            }
        }
        let last = run.acknowledged(usize::MAX);
        assert_eq!(journal.last(), last);
        run.attempt(last, &[]);
        assert_eq!(contents(&journal), *run.history.last().unwrap());
        for image in disk.cut().images(&mut Rng::new(free), 3) {
            run.attempt(last, &group(19));
            run.check(&image, last, &format!("{free} bytes free"));
        }
        disk.set_space(None);
        run.attempt(last, &group(0));
        journal.append(&group(0)).unwrap();
        journal.compact().unwrap();
        run.check(&disk.cut().dropped(), journal.last(), "space returned");
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_failed_flush_poisons_and_is_never_trusted() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    // An append is a write and a flush.
    disk.fail(disk.operations() + 1, Fault::Error(io::ErrorKind::Other));
    assert!(matches!(
        journal.append(&group(1)),
        Err(Error::SyncFailed { .. })
    ));
    // The next process does not see as there what the disk will never get.
    let next = disk.killed();
    let shown = open(&next).unwrap().last();
    for image in next.cut().images(&mut Rng::new(1), 8) {
        assert_eq!(open(&image).unwrap().last(), shown);
    }
    let operations = disk.operations();
    for _ in 0..3 {
        assert!(matches!(
            journal.append(&group(1)),
            Err(Error::Poisoned { .. })
        ));
    }
    assert!(!journal.compaction_due());
    assert_eq!(
        disk.operations(),
        operations,
        "nothing touches the disk again"
    );
    // It goes on in a new file; the old one, whatever the disk made of it, is not needed.
    journal.renew().unwrap();
    journal.append(&group(2)).unwrap();
    let reopened = open(&disk.cut().dropped()).unwrap();
    assert_eq!(reopened.last(), Revision(3));
    assert_eq!(contents(&reopened), contents(&journal));
}

#[test]
fn a_full_disk_is_no_end() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    disk.fail(disk.operations(), Fault::Error(io::ErrorKind::StorageFull));
    let refused = journal.append(&group(1)).unwrap_err();
    assert!(matches!(refused, Error::NoSpace { .. }) && refused.retryable());
    journal.append(&group(1)).unwrap();
    assert_eq!(open(&disk.cut().dropped()).unwrap().last(), Revision(3));
}

#[test]
fn a_group_costs_one_flush() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    let before = disk.syncs();
    let group: Vec<_> = (0..100).flat_map(group).collect();
    journal.append(&group).unwrap();
    assert_eq!(disk.syncs(), before + 1);
    assert_eq!(journal.last(), Revision(group.len() as u64));
}

#[test]
fn compaction_never_drops_or_revives_a_record() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    let mut state = State::new();
    for step in 0..60 {
        for ops in group(step) {
            apply(&mut state, journal.last().next(), &ops);
            journal.append(&[ops]).unwrap();
        }
        if step % 7 == 0 {
            journal.compact().unwrap();
        }
        assert_eq!(contents(&journal), state, "step {step}");
    }
    let reopened = open(&disk).unwrap();
    assert_eq!(contents(&reopened), state);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names.len(), 2, "old files are gone: {names:?}");
}

#[test]
fn a_lost_snapshot_is_reported() {
    let disk = SimDisk::default();
    let mut journal = open(&disk).unwrap();
    journal.append(&group(0)).unwrap();
    journal.compact().unwrap();
    journal.append(&group(1)).unwrap();
    drop(journal);
    disk.remove(&Path::new(DIR).join("snapshot-0000000000000002"))
        .unwrap();
    let error = open(&disk).unwrap_err().to_string();
    assert!(
        error.contains("snapshot-0000000000000002") && error.contains("missing"),
        "{error}"
    );
}
