#![allow(clippy::unwrap_used)]
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn threads(workers: usize, queue_max: usize, tasks_max: usize) -> GuestThreads {
    GuestThreads::new(ThreadOptions {
        workers,
        stand_ins_max: 0,
        queue_max,
        tasks_max,
        worker_niceness: 3,
        task_niceness: 7,
        stack_bytes: 256 * 1024,
    })
    .unwrap()
}

#[test]
fn a_full_queue_refuses_and_a_panic_is_survived() {
    let threads = threads(1, 1, 0);
    let (enter, entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    threads
        .submit(move || {
            enter.send(()).unwrap();
            let _ = released.recv();
            panic!("expected by the test");
        })
        .unwrap();
    entered.recv_timeout(SOON).unwrap();
    let (done, finished) = mpsc::channel();
    threads.submit(move || done.send(()).unwrap()).unwrap();
    assert_eq!(threads.submit(|| {}), Err(Busy::Queue(1)));
    release.send(()).unwrap();
    finished.recv_timeout(SOON).unwrap();
}

#[test]
fn invocations_that_take_long_hold_nobody_up() {
    let threads = GuestThreads::new(ThreadOptions {
        stand_ins_max: 2,
        ..threads(1, 8, 0).0.0.options.clone()
    })
    .unwrap();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let (done, finished) = mpsc::channel();
    // Two that never end, one that does, whichever comes first.
    for _ in 0..2 {
        let released = released.clone();
        let wait = move || drop(released.lock().map(|released| released.recv()));
        threads.submit(wait).unwrap();
    }
    let tell = done.clone();
    threads.submit(move || tell.send(1).unwrap()).unwrap();
    assert_eq!(finished.recv_timeout(SOON).unwrap(), 1);
    // Another two: as many as there may be are held up, and the next has to wait.
    let held = released.clone();
    threads.submit(move || drop(held.lock())).unwrap();
    threads.submit(move || done.send(2).unwrap()).unwrap();
    let deadline = Instant::now() + SOON;
    while lock(&threads.0.0.queue).stand_ins < 2 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    assert!(finished.try_recv().is_err());
    drop(release);
    assert_eq!(finished.recv_timeout(SOON).unwrap(), 2);
    while lock(&threads.0.0.queue).stand_ins > 0 {
        assert!(Instant::now() < deadline + SOON);
        thread::yield_now();
    }
}

#[test]
fn tasks_are_bounded_and_their_places_come_back() {
    let threads = threads(1, 1, 1);
    let (release, released) = mpsc::channel::<()>();
    threads
        .spawn_task("one", move || {
            let _ = released.recv();
            panic!("expected by the test");
        })
        .unwrap();
    assert_eq!(threads.spawn_task("two", || {}), Err(Busy::Tasks(1)));
    release.send(()).unwrap();
    let deadline = Instant::now() + SOON;
    while threads.tasks() > 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    threads.spawn_task("three\0", || {}).unwrap();
}

#[test]
fn guests_run_at_lower_priority_than_their_caller() {
    let own = getpriority_process(None).unwrap();
    let threads = threads(1, 1, 1);
    let (tell, told) = mpsc::channel();
    let tell_task = tell.clone();
    let niceness = || getpriority_process(None).unwrap();
    threads
        .submit(move || tell.send(niceness()).unwrap())
        .unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), (own + 3).min(19));
    threads
        .spawn_task("nice", move || tell_task.send(niceness()).unwrap())
        .unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), (own + 7).min(19));
    assert_eq!(getpriority_process(None).unwrap(), own);
}

#[test]
fn dropping_the_handle_ends_the_workers() {
    let threads = threads(2, 4, 0);
    let shared = Arc::downgrade(&threads.0.0);
    drop(threads);
    let deadline = Instant::now() + SOON;
    while shared.strong_count() > 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}
