//! Client streams across detachments and restarts.
use hop3_common::wire::{ClientDown, ClientUp};

use super::rig::{Rig, Run, SOON};
use crate::services::client::Attached;

async fn next(attached: &mut Attached) -> ClientDown {
    let next = tokio::time::timeout(SOON, attached.next()).await;
    next.unwrap().expect("the stream goes on")
}

async fn opened(run: &Run) -> u64 {
    let reply = run.ask("/open", None).await.unwrap().unwrap();
    reply.stream.unwrap()
}

fn data(seq: u64, text: &'static str) -> ClientUp {
    ClientUp::Data {
        seq,
        text: false,
        bytes: text.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_across_a_restart_without_loss_or_repeat() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let stream = opened(&run).await;
    let mut attached = Attached::new(&run.actor, stream, 0).unwrap();
    assert_eq!(
        next(&mut attached).await,
        ClientDown::Attached { received: 0 }
    );
    assert!(matches!(next(&mut attached).await,
        ClientDown::Data { seq: 1, text: true, bytes } if &bytes[..] == b"hello"));
    attached.up().take(data(1, "one")).await.unwrap();
    let mut acked = false;
    let mut echoed = false;
    while !(acked && echoed) {
        match next(&mut attached).await {
            ClientDown::Ack { seq: 1 } => acked = true,
            ClientDown::Data { seq: 2, bytes, .. } => echoed = &bytes[..] == b"one",
            other => panic!("{other:?}"),
        }
    }
    run.drop_everything();
    let run = rig.run(2).await;
    // The client has the greeting, not the echo; and repeats what was acknowledged already.
    let mut attached = Attached::new(&run.actor, stream, 1).unwrap();
    assert_eq!(
        next(&mut attached).await,
        ClientDown::Attached { received: 1 }
    );
    assert!(matches!(next(&mut attached).await,
        ClientDown::Data { seq: 2, bytes, .. } if &bytes[..] == b"one"));
    attached.up().take(data(1, "one")).await.unwrap();
    attached.up().take(data(2, "two")).await.unwrap();
    let mut echo = None;
    while echo.is_none() {
        if let ClientDown::Data { seq, bytes, .. } = next(&mut attached).await {
            echo = Some((seq, bytes));
        }
    }
    assert_eq!(echo.unwrap(), (3, "two".into()));
    assert_eq!(run.number("/").await, 2, "each piece once");
    attached.up().take(ClientUp::Ack { seq: 3 }).await.unwrap();
    attached
        .up()
        .take(ClientUp::Close { seq: 3, code: 1000 })
        .await
        .unwrap();
    loop {
        if let ClientDown::Close { seq, code } = next(&mut attached).await {
            assert_eq!((seq, code), (4, 1000));
            break;
        }
    }
    assert_eq!(run.number("/").await, 52, "the guest knows that it closed");
    attached.up().take(ClientUp::Ack { seq: 4 }).await.unwrap();
    run.number("/").await;
    assert!(Attached::new(&run.actor, stream, 4).is_err(), "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attachment_replaces_the_older() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    let stream = opened(&run).await;
    let mut older = Attached::new(&run.actor, stream, 0).unwrap();
    let mut newer = Attached::new(&run.actor, stream, 0).unwrap();
    assert!(older.next().await.is_none());
    drop(older);
    assert_eq!(next(&mut newer).await, ClientDown::Attached { received: 0 });
    assert!(Attached::new(&run.actor, 99, 0).is_err());
}
