//! Telemetry, attachments, logs, model checks.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, UnixMs},
    ownership::Epoch,
    spec::ByteSize,
    wire::{
        CONTROL_FRAME_MAX, HEADER_FRAME_MAX, ModelCheck, ModelFacts, StreamHeader,
        TELEMETRY_FRAME_MAX,
        attach::{self, Channel, Frame},
        close, io,
        telemetry::{Batch, Sample},
    },
};
use tokio::io::AsyncReadExt;

use super::super::testing::{Agent, World, close_code, eventually, node, soon};

fn sample(at: u64) -> Sample {
    Sample {
        at: UnixMs(at),
        cpu_permille: 5,
        ..Sample::default()
    }
}

async fn telemetry(agent: &Agent) -> quinn::SendStream {
    let mut send = agent.connection.open_uni().await.unwrap();
    io::write(&mut send, &StreamHeader::Telemetry, HEADER_FRAME_MAX)
        .await
        .unwrap();
    send
}

#[tokio::test]
async fn telemetry_arrives_and_a_flood_of_it_is_thinned() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let mut send = telemetry(&agent).await;
    for at in 0..500 {
        let batch = Batch::encode(&[sample(at)]);
        io::write(&mut send, &batch, TELEMETRY_FRAME_MAX)
            .await
            .unwrap();
    }
    eventually("all are taken or dropped", || {
        let counted = world.handle.counters();
        (counted.samples + counted.telemetry_dropped == 500).then_some(())
    })
    .await;
    assert!(world.handle.counters().telemetry_dropped > 100);
    assert_eq!(
        world.brain.seen.lock().unwrap().samples[0],
        (node("a"), sample(0))
    );
}

#[tokio::test]
async fn malformed_telemetry_and_forbidden_streams_end_the_session() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let mut send = telemetry(&agent).await;
    let bad = Batch {
        count: 3,
        data: vec![1],
    };
    io::write(&mut send, &bad, TELEMETRY_FRAME_MAX)
        .await
        .unwrap();
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::PROTOCOL)
    );
    for header in [
        StreamHeader::Control,
        StreamHeader::Calls,
        StreamHeader::CheckModel,
    ] {
        let agent = world.agent("a").await;
        let _streams = agent.stream(&header).await;
        assert_eq!(
            close_code(&agent.connection).await,
            u64::from(close::PROTOCOL),
            "{header:?}"
        );
    }
    assert_eq!(world.handle.counters().malformed, 4);
}

#[tokio::test]
async fn attach_frames_go_both_ways_and_end() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let instance: hop3_common::id::InstanceId = "task/t1".parse().unwrap();
    let (mut sender, mut receiver) = link.attach(instance.clone(), Epoch(4)).await.unwrap();
    let resume = Frame::Resume {
        stdout: 1,
        stderr: 2,
    };
    sender.send(resume.clone()).await.unwrap();
    let (header, mut send, mut recv) = agent.accept().await;
    assert_eq!(
        header,
        StreamHeader::Attach {
            instance,
            epoch: Epoch(4)
        }
    );
    let got: Frame = io::read(&mut recv, attach::FRAME_MAX)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, resume);
    let bytes = Bytes::from(vec![9; attach::DATA_BYTES_MAX]);
    let data = Frame::Data {
        channel: Channel::Stdout,
        offset: 0,
        bytes,
        fin: true,
    };
    io::write(&mut send, &data, attach::FRAME_MAX)
        .await
        .unwrap();
    send.finish().unwrap();
    assert_eq!(soon("data", receiver.recv()).await, Some(data));
    assert_eq!(soon("the end", receiver.recv()).await, None);
    drop(sender);
    assert!(
        io::read::<Frame>(&mut recv, attach::FRAME_MAX)
            .await
            .unwrap()
            .is_none()
    );
    assert!(link.is_open());
}

#[tokio::test]
async fn an_attach_frame_that_is_too_large_ends_the_session() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let (_sender, mut receiver) = link
        .attach("task/t1".parse().unwrap(), Epoch(1))
        .await
        .unwrap();
    let (_, mut send, _recv) = agent.accept().await;
    send.write_all(&(attach::FRAME_MAX as u32 + 1).to_le_bytes())
        .await
        .unwrap();
    assert_eq!(soon("the end", receiver.recv()).await, None);
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::PROTOCOL)
    );
}

#[tokio::test]
async fn logs_are_raw_bytes() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let mut logs = link
        .logs("task/t1".parse().unwrap(), Channel::Stderr, 7, true)
        .await
        .unwrap();
    let (header, mut send, _recv) = agent.accept().await;
    let instance = "task/t1".parse().unwrap();
    let channel = Channel::Stderr;
    assert_eq!(
        header,
        StreamHeader::Logs {
            instance,
            channel,
            offset: 7,
            follow: true
        }
    );
    send.write_all(b"line\n").await.unwrap();
    send.finish().unwrap();
    let mut text = String::new();
    soon("the log", logs.read_to_string(&mut text))
        .await
        .unwrap();
    assert_eq!(text, "line\n");
}

#[tokio::test]
async fn a_model_check_is_answered_refused_or_late() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let link = world.link("a");
    let check = ModelCheck {
        model: Digest::of(b"m"),
        model_bytes: 1,
        inputs: vec![],
        memory: ByteSize::mib(64),
    };
    let facts = ModelFacts {
        inputs: vec![],
        outputs: vec![],
        load_us: 3,
    };
    let refusal = Problem::new(Code::OnnxUnsupported, "operator Foo");
    for answer in [Ok(facts), Err(refusal)] {
        let asking = link.check_model(check.clone(), Duration::from_secs(30));
        let (got, ()) = tokio::join!(asking, async {
            let (header, mut send, mut recv) = agent.accept().await;
            assert_eq!(header, StreamHeader::CheckModel);
            let asked: ModelCheck = io::read(&mut recv, 1 << 16).await.unwrap().unwrap();
            assert_eq!(asked, check);
            io::write(&mut send, &answer, CONTROL_FRAME_MAX)
                .await
                .unwrap();
        });
        assert_eq!(got, answer);
    }
    let late = link.check_model(check, Duration::from_millis(50)).await;
    assert_eq!(late.unwrap_err().code, Code::Deadline);
    assert!(link.is_open());
}
