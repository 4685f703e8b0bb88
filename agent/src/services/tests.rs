//! Whole instances with real guests on a real disk; only the coordinator is the test's own.
#![allow(clippy::unwrap_used)]
mod faults;
mod moves;
mod rig;
mod streams;

use std::time::{Duration, Instant};

use hop3_common::{
    codes::Code,
    spec::Durability,
    wire::{CallResult, Event, TopicMessage},
};

use self::rig::{Rig, SOON, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_everything_was_dropped() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    for n in 1..=20 {
        assert_eq!(run.number("/inc").await, n);
    }
    run.drop_everything();
    let run = rig.run(2).await;
    assert_eq!(run.number("/").await, 20);
    assert_eq!(run.number("/inc").await, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_commits_and_none_is_lost() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let asked: Vec<_> = (0..200).map(|_| run.ask("/inc", None)).collect();
    for answer in asked {
        answer.await.unwrap().unwrap();
    }
    run.drop_everything();
    assert_eq!(rig.run(2).await.number("/").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_leaves_the_state_as_it_was() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    assert_eq!(run.number("/inc").await, 1);
    let problem = run.ask("/trap", None).await.unwrap().unwrap_err();
    assert_eq!(problem.code, Code::HandlerFailed);
    assert_eq!(run.number("/").await, 1);
    run.drop_everything();
    assert_eq!(rig.run(2).await.number("/").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_answers_the_same_across_a_restart() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    // Both wait at once: the second is answered by the first.
    let (first, second) = (run.ask("/inc", Some("k")), run.ask("/inc", Some("k")));
    let first = first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap(), first);
    assert_eq!(run.number("/inc").await, 2);
    run.drop_everything();
    let run = rig.run(2).await;
    assert_eq!(run.ask("/inc", Some("k")).await.unwrap().unwrap(), first);
    assert_eq!(run.number("/").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_kept_by_an_orderly_end_and_else_goes_back_to_a_checkpoint() {
    let mut rig = Rig::new();
    rig.work.durability = Durability::Memory;
    let run = rig.run(1).await;
    assert_eq!(run.number("/inc").await, 1);
    assert!(matches!(run.stop().await, Event::Stopped));
    let run = rig.run(2).await;
    assert_eq!(run.number("/inc").await, 2);
    run.drop_everything();
    assert_eq!(rig.run(3).await.number("/").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_a_deadline_ends_what_runs_and_what_waits() {
    let mut rig = Rig::new();
    rig.work.limits.queue = 2;
    let run = rig.run(1).await;
    let short = Duration::from_millis(300);
    let spins = run.ask_for("/spin", None, short);
    until(|| run.waiting() == 0).await;
    let shorter = Duration::from_millis(50);
    let waits = [run.ask_for("/inc", None, shorter), run.ask("/inc", None)];
    let refused = run.ask("/inc", None).await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::Busy);
    let ended = spins.await.unwrap().unwrap_err();
    assert_eq!(ended.code, Code::Deadline, "{ended}");
    let [late, inc] = waits;
    assert_eq!(late.await.unwrap().unwrap_err().code, Code::Deadline);
    inc.await.unwrap().unwrap();
    assert_eq!(run.number("/").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_by_themselves_and_after_a_restart() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    run.number("/alarm").await;
    let began = Instant::now();
    while run.number("/").await < 100 {
        assert!(began.elapsed() < SOON);
    }
    run.number("/alarm").await;
    run.drop_everything();
    let run = rig.run(2).await;
    let began = Instant::now();
    while run.number("/").await < 200 {
        assert!(began.elapsed() < SOON);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_handled_once_however_often_it_comes() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let message = |seq| TopicMessage {
        topic: "t".into(),
        payload: "x".into(),
        from: Some(("service/other/0".parse().unwrap(), seq)),
    };
    for seq in [1, 1, 2] {
        let delivered = run.message(message(seq)).await.unwrap();
        assert_eq!(delivered, CallResult::Delivered);
    }
    run.drop_everything();
    let run = rig.run(2).await;
    run.message(message(2)).await.unwrap();
    assert_eq!(run.number("/").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_under_way_ends_as_unknown_after_a_restart() {
    let rig = Rig::new();
    let services = rig.services();
    // Whoever is called is busy, so that the call waits.
    let other = rig.run_as(&services, "service/other/0", 1).await;
    let _spins = other.ask("/spin", None);
    until(|| other.waiting() == 0).await;
    let run = rig.run_as(&services, rig.instance.as_str(), 1).await;
    run.number("/call").await;
    until(|| other.waiting() == 1).await;
    run.drop_everything();
    let run = rig.run(2).await;
    let began = Instant::now();
    while run.number("/").await < 1_000 {
        assert!(began.elapsed() < SOON);
    }
    run.drop_everything();
    assert_eq!(rig.run(3).await.number("/").await, 1_000, "told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_logs_can_be_read() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    run.number("/").await;
    let ring = run.services.ring(&rig.instance).unwrap();
    assert!(String::from_utf8_lossy(&ring.read(0).0).contains("INFO hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_instances_have_no_threads() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let mut rig = Rig::new();
    rig.work.state = hop3_common::spec::State::None;
    let services = rig.services();
    let first = rig.run_as(&services, "service/many/0", 1).await;
    let before = threads();
    let mut runs = vec![first];
    for n in 1..1_000 {
        runs.push(rig.run_as(&services, &format!("service/many/{n}"), 1).await);
    }
    assert_eq!(services.running(), 1_000);
    for run in runs.iter().step_by(100) {
        assert_eq!(run.number("/inc").await, 1);
    }
    // The runtime's blocking threads come and go; a thread each would be a thousand.
    let after = threads();
    assert!(after < before + 100, "{before} threads, then {after}");
}
