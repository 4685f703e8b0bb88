//! Blobs both ways: resumed, checked, refused.
#![allow(clippy::unwrap_used)]

use hop3_common::{
    codes::Code,
    id::Digest,
    wire::{BlobReply, HEADER_FRAME_MAX, StreamHeader, io},
};
use quinn::{RecvStream, SendStream};

use super::super::{
    Brain,
    testing::{Agent, World, eventually, node, soon},
};

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

async fn reply(recv: &mut RecvStream) -> BlobReply {
    soon("a reply", io::read(recv, HEADER_FRAME_MAX))
        .await
        .unwrap()
        .unwrap()
}

async fn refused(recv: &mut RecvStream) -> Code {
    match reply(recv).await {
        BlobReply::Refused(problem) => problem.code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn put(agent: &Agent, digest: Digest, size: u64) -> (SendStream, RecvStream) {
    agent.stream(&StreamHeader::BlobPut { digest, size }).await
}

#[tokio::test]
async fn a_get_goes_on_from_an_offset() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let blob = bytes(700_000);
    let digest = world.brain.blobs().put(&blob).unwrap();
    world.brain.allowed.lock().unwrap().insert(digest);
    for offset in [0usize, 1, 65_536, 300_001, 699_999, 700_000] {
        let header = StreamHeader::BlobGet {
            digest,
            offset: offset as u64,
        };
        let (_send, mut recv) = agent.stream(&header).await;
        let expected = BlobReply::Ready {
            size: 700_000,
            offset: offset as u64,
        };
        assert_eq!(reply(&mut recv).await, expected);
        let rest = soon("its bytes", recv.read_to_end(1 << 20)).await.unwrap();
        assert!(
            rest == blob[offset..],
            "from {offset}: {} bytes",
            rest.len()
        );
    }
}

#[tokio::test]
async fn gets_are_refused_with_their_reason() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let digest = world.brain.blobs().put(b"secret").unwrap();
    let ask = async |digest, offset| {
        let (_send, mut recv) = agent
            .stream(&StreamHeader::BlobGet { digest, offset })
            .await;
        refused(&mut recv).await
    };
    assert_eq!(ask(digest, 0).await, Code::Forbidden);
    let missing = Digest::of(b"missing");
    world
        .brain
        .allowed
        .lock()
        .unwrap()
        .extend([digest, missing]);
    assert_eq!(ask(missing, 0).await, Code::NotFound);
    assert_eq!(ask(digest, 7).await, Code::InvalidField);
}

#[tokio::test]
async fn a_put_is_durable_when_it_is_answered_and_costs_nothing_twice() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let blob = bytes(300_000);
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    world.brain.allowed.lock().unwrap().insert(digest);
    let (mut send, mut recv) = put(&agent, digest, size).await;
    assert_eq!(reply(&mut recv).await, BlobReply::Ready { size, offset: 0 });
    send.write_all(&blob).await.unwrap();
    send.finish().unwrap();
    assert_eq!(reply(&mut recv).await, BlobReply::Stored);
    assert_eq!(world.brain.blobs().read(&digest, 1 << 20).unwrap(), blob);
    assert_eq!(
        world.brain.seen.lock().unwrap().stored,
        [(node("a"), digest, size)]
    );
    let (_send, mut recv) = put(&agent, digest, size).await;
    assert_eq!(
        reply(&mut recv).await,
        BlobReply::Ready { size, offset: size }
    );
    assert_eq!(reply(&mut recv).await, BlobReply::Stored);
    let (_send, mut recv) = put(&agent, digest, size + 1).await;
    assert_eq!(refused(&mut recv).await, Code::DigestMismatch);
}

#[tokio::test]
async fn an_unfinished_put_goes_on_in_the_next_session() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let blob = bytes(500_000);
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    world.brain.allowed.lock().unwrap().insert(digest);
    let (mut send, mut recv) = put(&agent, digest, size).await;
    assert_eq!(reply(&mut recv).await, BlobReply::Ready { size, offset: 0 });
    send.write_all(&blob[..300_000]).await.unwrap();
    eventually("some of it arrived", || {
        (world.handle.counters().blob_bytes_received > 200_000).then_some(())
    })
    .await;
    agent.connection.close(0u32.into(), b"");
    world.gone("a", 0).await;
    let agent = world.agent("a").await;
    // The first transfer may still be letting go of its file.
    let (mut send, mut recv, offset) = loop {
        let (send, mut recv) = put(&agent, digest, size).await;
        match reply(&mut recv).await {
            BlobReply::Ready { offset, .. } => break (send, recv, offset),
            BlobReply::Refused(problem) => assert_eq!(problem.code, Code::Busy),
            BlobReply::Stored => panic!("stored"),
        }
    };
    assert!(offset >= 131_072, "kept only {offset}");
    send.write_all(&blob[offset as usize..]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(reply(&mut recv).await, BlobReply::Stored);
    assert_eq!(world.brain.blobs().read(&digest, 1 << 20).unwrap(), blob);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let world = World::start().await;
    let agent = world.agent("a").await;
    let blob = bytes(100_000);
    let digest = Digest::of(&blob);
    let mut wrong = blob.clone();
    wrong[99_999] ^= 1;
    let mut longer = blob.clone();
    longer.push(0);
    world.brain.allowed.lock().unwrap().insert(digest);
    for (sent, expected) in [(&wrong, Code::DigestMismatch), (&longer, Code::Protocol)] {
        let (mut send, mut recv) = put(&agent, digest, 100_000).await;
        assert!(matches!(reply(&mut recv).await, BlobReply::Ready { .. }));
        // It may be refused before all is sent.
        let _ = send.write_all(sent).await;
        let _ = send.finish();
        assert_eq!(refused(&mut recv).await, expected);
        assert!(!world.brain.blobs().contains(&digest));
    }
    let other = Digest::of(b"not allowed");
    let (_send, mut recv) = put(&agent, other, 11).await;
    assert_eq!(refused(&mut recv).await, Code::Forbidden);
    assert!(world.brain.seen.lock().unwrap().stored.is_empty());
}
