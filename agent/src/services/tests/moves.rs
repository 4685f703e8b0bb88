//! Checkpoints, seals, and going on elsewhere.
use std::sync::atomic::Ordering;

use hop3_common::{
    codes::Code,
    wire::{Checkpoint, Event},
};

use super::rig::{Rig, Run, token, until};
use crate::services::keeper::Order;

/// What the coordinator's blob store would do.
fn bring(from: &Rig, to: &Rig, made: &Checkpoint) {
    for part in &made.parts {
        let bytes = from.blobs.store().read(&part.digest, 1 << 30).unwrap();
        assert_eq!(to.blobs.store().put(&bytes).unwrap(), part.digest);
    }
}

async fn sealed(run: Run) -> Checkpoint {
    run.order(Order::Seal);
    match run.ended().await {
        Event::Sealed(made) => made,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_instance_goes_on_elsewhere_from_its_parts() {
    let (from, mut to) = (Rig::new(), Rig::new());
    let run = from.run(1).await;
    for _ in 0..3 {
        run.number("/inc").await;
    }
    run.order(Order::Checkpoint);
    until(|| !run.outside.checkpoints().is_empty()).await;
    let ahead = run.outside.checkpoints().remove(0);
    run.number("/inc").await;
    let outside = run.outside.clone();
    let made = sealed(run).await;
    assert!(made.seq > ahead.seq && made.token == token(1, 1));
    // What was there ahead need not travel again.
    assert_eq!(made.parts.len(), 2, "a base and what changed since");
    assert_eq!(made.parts[0], ahead.parts[0]);
    let delivered = outside.delivered.lock().unwrap().clone();
    assert!(made.parts.iter().all(|part| delivered.contains(part)));
    bring(&from, &to, &made);
    to.work.restore = Some(made);
    let services = to.services();
    let run = to
        .start(&services, "service/s/0", token(2, 1))
        .await
        .unwrap();
    assert_eq!(run.number("/inc").await, 5);
    run.drop_everything();
    // Its own state is newer now than what it was given.
    let services = to.services();
    let run = to
        .start(&services, "service/s/0", token(2, 2))
        .await
        .unwrap();
    assert_eq!(run.number("/").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_given_up_goes_on_from_what_is_here() {
    let mut rig = Rig::new();
    let run = rig.run(1).await;
    run.number("/inc").await;
    let made = sealed(run).await;
    rig.work.restore = Some(made);
    // Without the blobs of the checkpoint the coordinator would have to be asked: it is away.
    let services = rig.services();
    let run = rig
        .start(&services, "service/s/0", token(2, 1))
        .await
        .unwrap();
    assert_eq!(run.number("/inc").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sealed_goes_on_with_nothing_lost() {
    let rig = Rig::new();
    rig.outside.refuses.store(true, Ordering::SeqCst);
    let run = rig.run(1).await;
    assert_eq!(run.number("/inc").await, 1);
    run.order(Order::Seal);
    until(|| run.outside.not_sealed().is_some()).await;
    until(|| run.actor.serves()).await;
    assert_eq!(run.number("/inc").await, 2);
    run.outside.refuses.store(false, Ordering::SeqCst);
    run.order(Order::Seal);
    assert!(matches!(run.ended().await, Event::Sealed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_sealed_requests_have_surely_not_begun() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let spins = run.ask_for("/spin", None, std::time::Duration::from_millis(500));
    until(|| run.waiting() == 0).await;
    let waits = run.ask("/inc", None);
    run.order(Order::Seal);
    let refused = waits.await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::ServiceNotReady);
    let refused = run.ask("/inc", None).await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::ServiceNotReady);
    assert_eq!(spins.await.unwrap().unwrap_err().code, Code::Deadline);
    let actor = run.actor.clone();
    assert!(matches!(run.ended().await, Event::Sealed(_)));
    let (tell, told) = tokio::sync::oneshot::channel();
    let ask = crate::services::inbox::Ask {
        until: std::time::Instant::now(),
        cancel: Default::default(),
        reply: Box::new(move |result| drop(tell.send(result))),
    };
    let message = hop3_common::wire::TopicMessage {
        topic: "t".into(),
        payload: Default::default(),
        from: None,
    };
    actor.message(message, ask);
    assert_eq!(told.await.unwrap().unwrap_err().code, Code::NotHere);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_kept_as_many_as_asked_for_and_old_ones_go() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let first: Vec<_> = run.services.references().into_iter().collect();
    for n in 1..=5 {
        run.number("/inc").await;
        run.order(Order::Checkpoint);
        until(|| run.outside.checkpoints().len() == n).await;
    }
    let kept = run.services.references();
    assert!(kept.iter().all(|part| rig.blobs.store().contains(part)));
    let made = run.outside.checkpoints();
    let newest: Vec<_> = made[3..].iter().flat_map(|made| &made.parts).collect();
    assert!(newest.iter().all(|part| kept.contains(&part.digest)));
    let oldest = made[0].parts.last().unwrap().digest;
    assert!(!kept.contains(&oldest) || first.contains(&oldest));
    assert!(kept.len() <= 3, "a base and two deltas at most: {kept:?}");
    let logs = std::fs::read_dir(rig.dir().join("services"))
        .unwrap()
        .count();
    assert_eq!(logs, 1);
    assert!(matches!(run.stop().await, Event::Stopped));
    let services = rig.services();
    services.sweep(&Default::default()).await.unwrap();
    assert!(services.references().is_empty());
    let logs = std::fs::read_dir(rig.dir().join("services"))
        .unwrap()
        .count();
    assert_eq!(logs, 0, "what belongs to the forgotten is removed");
}
