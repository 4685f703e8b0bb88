//! Calls: many at once, in any order, with deadlines, losses and breaches.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use hop3_common::{
    codes::Code,
    id::Digest,
    wire::{
        CALL_FRAME_MAX, Call, CallResult, Reply, StreamHeader, Target, Usage, close,
        io::{self, FrameReader},
    },
};
use quinn::{RecvStream, SendStream};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::super::testing::{Agent, World, close_code, eventually, soon};

const LONG: Duration = Duration::from_secs(30);

fn target(input: impl Into<Bytes>) -> Target {
    Target::Module {
        module: Digest::of(b"m"),
        module_bytes: 1,
        memory_bytes: 1 << 20,
        cpu_ms: 0,
        input: input.into(),
    }
}

fn echo(call: &Call) -> Reply {
    let Target::Module { input, .. } = &call.target else {
        panic!("not a module")
    };
    let usage = Usage::default();
    Reply {
        id: call.id,
        result: Ok(CallResult::Module {
            exit: 0,
            output: input.clone(),
            usage,
        }),
    }
}

fn output(result: CallResult) -> Bytes {
    match result {
        CallResult::Module { output, .. } => output,
        _ => panic!("not a module's"),
    }
}

async fn calls_stream(agent: &Agent) -> (SendStream, FrameReader<RecvStream>) {
    let (header, send, recv) = agent.accept().await;
    assert_eq!(header, StreamHeader::Calls);
    (send, FrameReader::new(recv, CALL_FRAME_MAX))
}

async fn next(calls: &mut FrameReader<RecvStream>) -> Call {
    soon("a call", calls.next()).await.unwrap().unwrap()
}

async fn answer(send: &mut SendStream, reply: &Reply) {
    io::write(send, reply, CALL_FRAME_MAX).await.unwrap();
}

/// Answers every call on every stream with its input, until the connection ends.
fn echo_for_ever(agent: &Agent) -> tokio::task::JoinHandle<()> {
    let connection = agent.connection.clone();
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let header: StreamHeader = io::read(&mut recv, 1 << 14).await.unwrap().unwrap();
            assert_eq!(header, StreamHeader::Calls);
            tokio::spawn(async move {
                let mut calls = FrameReader::new(recv, CALL_FRAME_MAX);
                while let Ok(Some(call)) = calls.next::<Call>().await {
                    if io::write(&mut send, &echo(&call), CALL_FRAME_MAX)
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    })
}

#[tokio::test]
async fn a_thousand_in_flight_end_in_any_order() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let calls: FuturesUnordered<_> = (0..1000u32)
        .map(|i| {
            let link = link.clone();
            async move {
                let result = link
                    .call(target(i.to_le_bytes().to_vec()), LONG)
                    .await
                    .unwrap();
                assert_eq!(output(result)[..], i.to_le_bytes(), "another call's reply");
                i
            }
        })
        .collect();
    let callers = tokio::spawn(calls.collect::<BTreeSet<u32>>());
    // A few streams carry them all; the replies are held back until all calls are here.
    let (mut lanes, mut held) = (Vec::new(), Vec::new());
    while held.len() < 1000 {
        tokio::select! {
            lane = calls_stream(&agent) => lanes.push(lane),
            (index, call) = next_of(&mut lanes), if !lanes.is_empty() => held.push((index, call)),
        }
    }
    assert!(lanes.len() <= 4, "{} streams", lanes.len());
    held.shuffle(&mut StdRng::seed_from_u64(7));
    for (index, call) in held {
        answer(&mut lanes[index].0, &echo(&call)).await;
    }
    assert_eq!(soon("all replies", callers).await.unwrap().len(), 1000);
    assert_eq!(world.handle.counters().calls, 1000);
}

async fn next_of(lanes: &mut [(SendStream, FrameReader<RecvStream>)]) -> (usize, Call) {
    let mut all: FuturesUnordered<_> = lanes
        .iter_mut()
        .enumerate()
        .map(|(i, (_, calls))| async move { (i, next(calls).await) })
        .collect();
    all.next().await.unwrap()
}

#[tokio::test]
async fn a_deadline_is_kept_here_and_the_call_cancelled_there() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let call = link.call(target("slow"), Duration::from_millis(100));
    let (problem, (mut send, mut calls, first)) = tokio::join!(call, async {
        let (send, mut calls) = calls_stream(&agent).await;
        let first = next(&mut calls).await;
        (send, calls, first)
    });
    assert_eq!(problem.unwrap_err().code, Code::Deadline);
    assert!(
        (1..=100).contains(&first.deadline_ms),
        "{}",
        first.deadline_ms
    );
    assert_eq!(
        next(&mut calls).await.target,
        Target::Cancel { id: first.id }
    );
    // Its late reply disturbs nobody.
    answer(&mut send, &echo(&first)).await;
    let (result, ()) = tokio::join!(link.call(target("next"), LONG), async {
        let call = next(&mut calls).await;
        answer(&mut send, &echo(&call)).await;
    });
    assert_eq!(output(result.unwrap()), "next");
    assert_eq!(world.handle.counters().calls_abandoned, 1);
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_its_call() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let caller = tokio::spawn(async move { link.call(target("x"), LONG).await });
    let (_send, mut calls) = calls_stream(&agent).await;
    let call = next(&mut calls).await;
    caller.abort();
    assert_eq!(
        next(&mut calls).await.target,
        Target::Cancel { id: call.id }
    );
}

#[tokio::test]
async fn a_lost_session_fails_all_calls_in_flight_and_all_later_ones() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let link = link.clone();
            tokio::spawn(async move { link.call(target("x"), LONG).await })
        })
        .collect();
    eventually("they are on their way", || {
        (world.handle.counters().calls == 100).then_some(())
    })
    .await;
    let _streams = calls_stream(&agent).await;
    agent.connection.close(0u32.into(), b"");
    for caller in callers {
        let outcome = soon("it fails at once", caller).await.unwrap();
        assert_eq!(outcome.unwrap_err().code, Code::NodeUnreachable);
    }
    let late = soon("a late one", link.call(target("x"), LONG)).await;
    assert_eq!(late.unwrap_err().code, Code::NodeUnreachable);
}

#[tokio::test]
async fn invented_and_malformed_replies_close_only_their_own_connection() {
    let world = World::start().await;
    let good = world.agent("good").await;
    let _echo = echo_for_ever(&good);
    let invented = hop3_common::wire::frame::to_bytes(
        &Reply {
            id: 5,
            result: Ok(CallResult::Model {
                outputs: vec![],
                infer_us: 0,
            }),
        },
        1 << 10,
    )
    .unwrap();
    let oversize = u32::try_from(CALL_FRAME_MAX + 1)
        .unwrap()
        .to_le_bytes()
        .to_vec();
    for bytes in [
        invented.to_vec(),
        b"\x03\0\0\0\xff\xff\xff".to_vec(),
        oversize,
    ] {
        let bad = world.agent("bad").await;
        let link = world.link("bad");
        let (outcome, ()) = tokio::join!(link.call(target("x"), LONG), async {
            let (mut send, _calls) = calls_stream(&bad).await;
            send.write_all(&bytes).await.unwrap();
            assert_eq!(
                close_code(&bad.connection).await,
                u64::from(close::PROTOCOL)
            );
        });
        assert_eq!(outcome.unwrap_err().code, Code::NodeUnreachable);
        let good = world.link("good").call(target("still here"), LONG).await;
        assert_eq!(output(good.unwrap()), "still here");
    }
    assert_eq!(world.handle.counters().malformed, 3);
}

#[tokio::test]
async fn a_stream_that_the_node_ends_is_replaced() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let (outcome, ()) = tokio::join!(link.call(target("x"), LONG), async {
        let (mut send, mut calls) = calls_stream(&agent).await;
        next(&mut calls).await;
        send.reset(0u32.into()).unwrap();
    });
    assert_eq!(outcome.unwrap_err().code, Code::NodeUnreachable);
    let _echo = echo_for_ever(&agent);
    assert_eq!(output(link.call(target("y"), LONG).await.unwrap()), "y");
}

#[tokio::test]
async fn large_inputs_have_their_own_stream_and_a_bound() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let _echo = echo_for_ever(&agent);
    let link = world.link("a");
    let input = Bytes::from(vec![7u8; 1 << 20]);
    assert_eq!(
        output(link.call(target(input.clone()), LONG).await.unwrap()),
        input
    );
    assert_eq!(
        output(link.call(target("small"), LONG).await.unwrap()),
        "small"
    );
    let huge = target(vec![0; CALL_FRAME_MAX + 1]);
    assert_eq!(
        link.call(huge, LONG).await.unwrap_err().code,
        Code::TooLarge
    );
}

#[tokio::test]
async fn the_number_in_flight_is_bounded() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let callers: FuturesUnordered<_> = (0..4 * 1024 + 10)
        .map(|_| {
            let link = link.clone();
            async move { link.call(target(""), LONG).await }
        })
        .collect();
    let mut callers = callers;
    let refused = soon("the last are refused", async {
        let mut refused = 0;
        while refused < 10 {
            assert_eq!(callers.next().await.unwrap().unwrap_err().code, Code::Busy);
            refused += 1;
        }
        refused
    })
    .await;
    assert_eq!(refused, 10);
    agent.connection.close(0u32.into(), b"");
    while let Some(outcome) = soon("the others end", callers.next()).await {
        assert_eq!(outcome.unwrap_err().code, Code::NodeUnreachable);
    }
}
