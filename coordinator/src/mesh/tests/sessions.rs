//! The life of a session: reports, acknowledgements, breaches, stuck nodes, replacement, ends.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use hop3_common::{
    id::UnixMs,
    ownership::Token,
    wire::{Down, Event, Held, INVENTORY_MAX, NodeFacts, Phase, Report, Up, close},
};

use super::super::{
    Gone,
    testing::{Agent, World, close_code, eventually, node, soon},
};

fn report(seq: u64) -> Up {
    let instance = "task/t1".parse().unwrap();
    let report = Report {
        instance,
        token: Token::default(),
        at: UnixMs(1),
        event: Event::Stopped,
    };
    Up::Report { seq, report }
}

/// The last acknowledgement; asserts that they grow.
async fn acked_up_to(agent: &mut Agent, seq: u64) -> usize {
    let (mut last, mut acks) = (0, 0);
    while last < seq {
        let Down::Ack { seq } = agent.down().await else {
            panic!("not an ack")
        };
        assert!(seq > last, "{seq} after {last}");
        (last, acks) = (seq, acks + 1);
    }
    assert_eq!(last, seq);
    acks
}

#[tokio::test]
async fn reports_are_taken_in_order_and_acknowledged_in_bursts() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    let mut burst = bytes::BytesMut::new();
    for seq in 1..=200 {
        hop3_common::wire::frame::encode(&report(seq), 1 << 16, &mut burst).unwrap();
    }
    agent.send.write_all(&burst).await.unwrap();
    let acks = acked_up_to(&mut agent, 200).await;
    assert!(acks < 200, "one acknowledgement for each of {acks}");
    let seen = world.brain.seen.lock().unwrap();
    let expected: Vec<_> = (1..=200).map(|seq| (node("a"), seq)).collect();
    assert_eq!(seen.reports, expected);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    let permits = world.brain.durable.available_permits();
    assert_eq!(world.brain.durable.forget_permits(permits), permits);
    agent.up(&report(1)).await;
    agent.up(&report(2)).await;
    // Something later on the same stream arrives without an acknowledgement before it.
    world
        .link("a")
        .send(Down::Telemetry {
            sample_ms: 9,
            batch_ms: 9,
        })
        .unwrap();
    assert_eq!(
        agent.down().await,
        Down::Telemetry {
            sample_ms: 9,
            batch_ms: 9
        }
    );
    world.brain.durable.add_permits(1);
    eventually("one is durable", || {
        (world.brain.seen.lock().unwrap().reports.len() == 1).then_some(())
    })
    .await;
    world.brain.durable.add_permits(1);
    acked_up_to(&mut agent, 2).await;
}

#[tokio::test]
async fn a_report_that_is_not_durable_ends_the_session_unacknowledged() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    *world.brain.fail_from.lock().unwrap() = Some(2);
    agent.up(&report(1)).await;
    acked_up_to(&mut agent, 1).await;
    agent.up(&report(2)).await;
    assert_eq!(close_code(&agent.connection).await, u64::from(close::BUSY));
    assert_eq!(world.gone("a", 0).await, "report 2 is not durable");
    *world.brain.fail_from.lock().unwrap() = None;
    *world.brain.acked.lock().unwrap() = 1;
    let mut again = world.agent("a").await;
    again.up(&report(1)).await;
    again.up(&report(2)).await;
    loop {
        match again.down().await {
            Down::Ack { seq: 1 } => {}
            Down::Ack { seq: 2 } => break,
            other => panic!("{other:?}"),
        }
    }
    let seen = world.brain.seen.lock().unwrap();
    assert_eq!(
        seen.reports,
        [(node("a"), 1), (node("a"), 2)],
        "a repeat is taken once"
    );
}

#[tokio::test]
async fn statements_reach_the_brain_and_a_renewal_is_answered() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    let held = Held {
        instance: "task/t1".parse().unwrap(),
        token: Token::default(),
        phase: Phase::Running,
    };
    agent.up(&Up::Inventory(vec![held.clone()])).await;
    let facts = NodeFacts {
        cpus: 4,
        ..NodeFacts::default()
    };
    agent.up(&Up::Facts(facts.clone())).await;
    let csr_der = Bytes::from_static(b"csr");
    agent
        .up(&Up::Renew {
            csr_der: csr_der.clone(),
        })
        .await;
    assert_eq!(agent.down().await, Down::Certificate { cert_der: csr_der });
    {
        let seen = world.brain.seen.lock().unwrap();
        assert_eq!(seen.inventories, [(node("a"), vec![held])]);
        assert_eq!(seen.facts, [facts]);
    }
    agent
        .up(&Up::Leaving {
            reason: "reboot\n".into(),
        })
        .await;
    agent.send.finish().unwrap();
    assert_eq!(world.gone("a", 0).await, "the agent is leaving: reboot\\n");
    assert_eq!(world.handle.sessions(), 0);
}

/// Each breach ends its own connection with a code, and nobody else's.
#[tokio::test]
async fn breaches_cost_only_their_own_connection() {
    let world = World::start().await;
    let mut good = world.agent("good").await;
    let held = Held {
        instance: "task/t1".parse().unwrap(),
        token: Token::default(),
        phase: Phase::Ended,
    };
    let frame = |up: &Up| {
        hop3_common::wire::frame::to_bytes(up, 4 << 20)
            .unwrap()
            .to_vec()
    };
    let facts = NodeFacts {
        hostname: "x".repeat(100_000),
        ..NodeFacts::default()
    };
    let cases = [
        b"\x04\0\0\0\xff\xff\xff\xff".to_vec(),
        u32::MAX.to_le_bytes().to_vec(),
        frame(&Up::Inventory(vec![held; INVENTORY_MAX + 1])),
        frame(&Up::Facts(facts)),
        frame(&Up::Hello(super::super::testing::hello("bad"))),
        // A good frame with a byte too much.
        b"\x03\0\0\0\x05\0\0".to_vec(),
    ];
    for (n, bytes) in cases.iter().enumerate() {
        let mut bad = world.agent("bad").await;
        // The coordinator may close before it has all.
        let _ = bad.send.write_all(bytes).await;
        assert_eq!(
            close_code(&bad.connection).await,
            u64::from(close::PROTOCOL),
            "case {n}"
        );
        world.gone("bad", n).await;
        assert_eq!(world.handle.counters().malformed, n as u64 + 1);
        let seq = n as u64 + 1;
        good.up(&report(seq)).await;
        assert_eq!(good.down().await, Down::Ack { seq });
    }
}

#[tokio::test]
async fn a_flood_of_statements_ends_the_session() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    for _ in 0..200 {
        let facts = Up::Facts(NodeFacts::default());
        let frame = hop3_common::wire::frame::to_bytes(&facts, 1 << 16).unwrap();
        if agent.send.write_all(&frame).await.is_err() {
            break;
        }
    }
    assert_eq!(close_code(&agent.connection).await, u64::from(close::BUSY));
    assert!(world.brain.seen.lock().unwrap().facts.len() < 100);
}

#[tokio::test]
async fn a_full_mailbox_closes_its_session_and_delays_nobody() {
    let world = World::start().await;
    let mut good = world.agent("good").await;
    let stuck = world.agent("stuck").await;
    let link = world.link("stuck");
    let big = || Down::Stop {
        instance: "task/t1".parse().unwrap(),
        epoch: hop3_common::ownership::Epoch(1),
        reason: "x".repeat(200_000),
    };
    // The node reads nothing: its window, ours and the mailbox fill up, without any waiting.
    let mut sent = 0;
    let error = loop {
        match link.send(big()) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100, "no bound");
    };
    assert!(matches!(error, Gone::Stuck(_)), "{error}");
    assert!(matches!(link.send(big()), Err(Gone::Closed(_))));
    world.link("good").send(Down::Ack { seq: 3 }).unwrap();
    assert_eq!(good.down().await, Down::Ack { seq: 3 });
    assert_eq!(close_code(&stuck.connection).await, u64::from(close::BUSY));
    assert_eq!(
        world.gone("stuck", 0).await,
        "control messages are not taken"
    );
    assert_eq!(world.handle.counters().sessions_stuck, 1);
}

#[tokio::test]
async fn a_node_that_takes_nothing_for_long_is_stuck() {
    let world = World::start_with(|o| o.stuck_after = Duration::from_millis(200)).await;
    let stuck = world.agent("stuck").await;
    let link = world.link("stuck");
    for _ in 0..15 {
        let reason = "x".repeat(200_000);
        let epoch = hop3_common::ownership::Epoch(1);
        let instance = "task/t1".parse().unwrap();
        link.send(Down::Stop {
            instance,
            epoch,
            reason,
        })
        .unwrap();
    }
    assert_eq!(close_code(&stuck.connection).await, u64::from(close::BUSY));
    world.gone("stuck", 0).await;
}

#[tokio::test]
async fn a_message_that_never_fits_ends_nothing() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    let link = world.link("a");
    let reason = "x".repeat(hop3_common::wire::CONTROL_FRAME_MAX);
    let epoch = hop3_common::ownership::Epoch(1);
    let stop = Down::Stop {
        instance: "task/t1".parse().unwrap(),
        epoch,
        reason,
    };
    assert!(matches!(link.send(stop), Err(Gone::TooLarge { .. })));
    link.send(Down::Ack { seq: 1 }).unwrap();
    assert_eq!(agent.down().await, Down::Ack { seq: 1 });
}

#[tokio::test]
async fn a_newer_session_replaces_the_older() {
    let world = World::start().await;
    let older = world.agent("a").await;
    let first = world.link("a");
    let mut newer = world.agent("a").await;
    let second = world.link("a");
    assert!(second.session() > first.session());
    assert_eq!(
        close_code(&older.connection).await,
        u64::from(close::REPLACED)
    );
    assert_eq!(
        world.gone("a", 0).await,
        "a newer session of this node took over"
    );
    assert_eq!(world.brain.seen.lock().unwrap().gone[0].1, first.session());
    assert!(!first.is_open() && second.is_open());
    assert!(matches!(
        first.send(Down::Ack { seq: 1 }),
        Err(Gone::Closed(_))
    ));
    newer.up(&report(1)).await;
    assert_eq!(newer.down().await, Down::Ack { seq: 1 });
    assert_eq!(world.handle.sessions(), 1);
}

#[tokio::test]
async fn revocation_ends_a_live_session_at_once() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    world
        .link("a")
        .close(close::REVOKED, "revoked by an operator");
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::REVOKED)
    );
    assert_eq!(world.gone("a", 0).await, "revoked by an operator");
    assert_eq!(world.handle.sessions(), 0);
}

#[tokio::test]
async fn what_the_brain_has_begun_ends_and_nothing_begins_after_a_close() {
    let world = World::start().await;
    let mut agent = world.agent("a").await;
    let permits = world.brain.durable.available_permits();
    assert_eq!(world.brain.durable.forget_permits(permits), permits);
    let mut both = bytes::BytesMut::new();
    for seq in 1..=2 {
        hop3_common::wire::frame::encode(&report(seq), 1 << 16, &mut both).unwrap();
    }
    agent.send.write_all(&both).await.unwrap();
    eventually("the first is being taken", || {
        (*world.brain.begun.lock().unwrap() == 1).then_some(())
    })
    .await;
    world.link("a").close(close::REVOKED, "revoked");
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::REVOKED)
    );
    assert!(
        world.brain.seen.lock().unwrap().gone.is_empty(),
        "abandoned"
    );
    world.brain.durable.add_permits(9);
    assert_eq!(world.gone("a", 0).await, "revoked");
    assert_eq!(world.brain.seen.lock().unwrap().reports, [(node("a"), 1)]);
}

#[tokio::test]
async fn a_restart_is_announced_to_all_and_smeared() {
    let world = World::start().await;
    let mut agents = Vec::new();
    for i in 0..5 {
        agents.push(world.agent(&format!("n{i}")).await);
    }
    world.shutdown.cancel();
    let mut times = std::collections::BTreeSet::new();
    for agent in &mut agents {
        let Down::Restarting { reconnect_in_ms } = agent.down().await else {
            panic!("no word")
        };
        assert!(times.insert(reconnect_in_ms), "two come back at once");
        assert_eq!(
            close_code(&agent.connection).await,
            u64::from(close::RESTARTING)
        );
    }
    soon("the mesh ends", world.running).await.unwrap();
    assert_eq!(world.brain.seen.lock().unwrap().gone.len(), 5);
}
