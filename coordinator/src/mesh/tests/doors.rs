//! Who is let in, who is not, and what that costs the others.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use hop3_common::{
    codes::Code,
    id::UnixMs,
    identity::{
        NodeKey, TokenId, TokenSecret,
        enroll::{EnrollReply, EnrollRequest, Join},
        renew::{EXPORTER_BYTES, EXPORTER_LABEL},
        tls::mesh_client,
    },
    wire::{ALPN_SESSION, Down, ENROLL_FRAME_MAX, PROTOCOL, Up, close, io},
};

use super::super::testing::{
    Agent, World, close_code, eventually, hello, new_ca, node, soon, time,
};

fn join() -> Join {
    Join {
        protocol: PROTOCOL,
        token: TokenId::generate().unwrap(),
        secret: TokenSecret::generate().unwrap(),
        csr_der: NodeKey::generate().unwrap().csr().unwrap(),
        hostname: "pi".into(),
        facts: [].into(),
    }
}

#[tokio::test]
async fn a_session_needs_a_certificate() {
    let world = World::start().await;
    let mut tls =
        hop3_common::identity::tls::enroll_client(world.ca.certificate().pin(), time()).unwrap();
    tls.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    let connection = world.connect(tls).await.unwrap();
    assert_eq!(
        close_code(&connection).await,
        u64::from(close::UNAUTHENTICATED)
    );
    assert_eq!(world.handle.counters().unauthenticated, 1);
    assert!(world.brain.seen.lock().unwrap().hellos.is_empty());
}

#[tokio::test]
async fn another_protocol_is_refused_in_the_handshake() {
    let world = World::start().await;
    let mut tls =
        hop3_common::identity::tls::enroll_client(world.ca.certificate().pin(), time()).unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    assert!(world.connect(tls).await.is_err());
    eventually("it is counted", || {
        (world.handle.counters().handshakes_failed == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_meshs_certificate_is_refused() {
    let world = World::start().await;
    let stranger = new_ca("test");
    // TLS 1.3 tells the client after its own end of the handshake.
    if let Ok(connection) = world.connect_as("a", &stranger).await {
        let closed = soon("it is refused", connection.closed()).await;
        assert!(
            !matches!(closed, quinn::ConnectionError::ApplicationClosed(_)),
            "{closed}"
        );
    }
    assert!(world.brain.seen.lock().unwrap().hellos.is_empty());
    world.agent("a").await;
}

#[tokio::test]
async fn a_coordinators_certificate_makes_no_node() {
    let world = World::start().await;
    let key = NodeKey::generate().unwrap();
    let now = UnixMs::now();
    let cert = world
        .ca
        .issue_coordinator(&[], &key.public_key(), now, 3600)
        .unwrap();
    let tls = mesh_client(world.ca.certificate(), cert.der, &key, time()).unwrap();
    if let Ok(connection) = world.connect(tls).await {
        soon("it is refused", connection.closed()).await;
    }
    assert!(world.brain.seen.lock().unwrap().hellos.is_empty());
}

#[tokio::test]
async fn the_certificate_names_the_node() {
    let world = World::start().await;
    let mut agent = Agent::open(world.connect_as("a", &world.ca).await.unwrap()).await;
    agent.up(&Up::Hello(hello("b"))).await;
    let Down::Refused(problem) = agent.down().await else {
        panic!("not refused")
    };
    assert_eq!(problem.code, Code::Unauthenticated);
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::UNAUTHENTICATED)
    );
    assert!(world.brain.seen.lock().unwrap().hellos.is_empty());
}

#[tokio::test]
async fn a_foreign_version_gets_a_typed_refusal() {
    let world = World::start().await;
    let mut agent = Agent::open(world.connect_as("a", &world.ca).await.unwrap()).await;
    let protocol = (PROTOCOL.1 + 1, PROTOCOL.1 + 2);
    agent
        .up(&Up::Hello(hop3_common::wire::Hello {
            protocol,
            ..hello("a")
        }))
        .await;
    let Down::Refused(problem) = agent.down().await else {
        panic!("not refused")
    };
    assert_eq!(problem.code, Code::VersionUnsupported);
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::PROTOCOL)
    );
}

#[tokio::test]
async fn a_revoked_node_is_told_so() {
    let world = World::start().await;
    world.brain.refused.lock().unwrap().insert(node("a"));
    let mut agent = Agent::open(world.connect_as("a", &world.ca).await.unwrap()).await;
    agent.up(&Up::Hello(hello("a"))).await;
    let Down::Refused(problem) = agent.down().await else {
        panic!("not refused")
    };
    assert_eq!(problem.code, Code::NodeRevoked);
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::REVOKED)
    );
    assert_eq!(world.handle.counters().sessions_refused, 1);
    assert_eq!(world.handle.sessions(), 0);
}

#[tokio::test]
async fn the_first_message_is_hello_and_comes_in_time() {
    let world = World::start_with(|o| o.handshake_timeout = Duration::from_millis(300)).await;
    let mut agent = Agent::open(world.connect_as("a", &world.ca).await.unwrap()).await;
    agent
        .up(&Up::Leaving {
            reason: String::new(),
        })
        .await;
    assert_eq!(
        close_code(&agent.connection).await,
        u64::from(close::PROTOCOL)
    );
    let silent = world.connect_as("b", &world.ca).await.unwrap();
    assert_eq!(close_code(&silent).await, u64::from(close::PROTOCOL));
}

#[tokio::test]
async fn enrolment_is_one_request_and_one_reply_over_the_same_tls_session() {
    let world = World::start().await;
    let connection = world.connect_stranger().await;
    let mut exporter = [0; EXPORTER_BYTES];
    connection
        .export_keying_material(&mut exporter, EXPORTER_LABEL, &[])
        .unwrap();
    let request = EnrollRequest::Join(join());
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    io::write(&mut send, &request, ENROLL_FRAME_MAX)
        .await
        .unwrap();
    let reply: EnrollReply = io::read(&mut recv, ENROLL_FRAME_MAX)
        .await
        .unwrap()
        .unwrap();
    let EnrollReply::Refused(problem) = reply else {
        panic!("granted")
    };
    assert_eq!(problem.code, Code::TokenUsed, "what the brain said");
    assert_eq!(
        world.brain.seen.lock().unwrap().enrolled,
        [(request, exporter)]
    );
    assert_eq!(close_code(&connection).await, u64::from(close::DONE));
}

#[tokio::test]
async fn malformed_enrolments_are_refused_with_a_reason_and_never_reach_the_brain() {
    let world = World::start().await;
    let oversize = (u32::try_from(ENROLL_FRAME_MAX).unwrap() + 1)
        .to_le_bytes()
        .to_vec();
    let too_long = EnrollRequest::Join(Join {
        hostname: "x".repeat(300),
        ..join()
    });
    let too_long = hop3_common::wire::frame::to_bytes(&too_long, ENROLL_FRAME_MAX).unwrap();
    let old = EnrollRequest::Join(Join {
        protocol: (0, 0),
        ..join()
    });
    let old = hop3_common::wire::frame::to_bytes(&old, ENROLL_FRAME_MAX).unwrap();
    let cases = [
        (b"\x05\0\0\0\xff\xff\xff\xff\xff".to_vec(), Code::Protocol),
        (oversize, Code::Protocol),
        (Vec::new(), Code::Protocol),
        (too_long.to_vec(), Code::TooLarge),
        (old.to_vec(), Code::VersionUnsupported),
    ];
    for (bytes, expected) in cases {
        let connection = world.connect_stranger().await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let _ = send.finish();
        let reply = io::read(&mut recv, ENROLL_FRAME_MAX)
            .await
            .unwrap()
            .unwrap();
        let EnrollReply::Refused(problem) = reply else {
            panic!("granted")
        };
        assert_eq!(problem.code, expected, "{problem}");
        soon("it is closed", connection.closed()).await;
    }
    assert!(world.brain.seen.lock().unwrap().enrolled.is_empty());
    assert_eq!(world.handle.counters().malformed, 4);
}

#[tokio::test]
async fn an_empty_budget_sheds_and_loses_nobody_who_is_in() {
    let world = World::start_with(|o| (o.handshakes_per_s, o.handshakes_burst) = (1, 1)).await;
    let mut inside = world.agent("a").await;
    let mut shed = 0;
    while world.connect_as("b", &world.ca).await.is_err() {
        shed += 1;
        assert!(shed < 1000, "never let in");
        if world.handle.counters().handshakes_shed > 0 && shed > 2 {
            break;
        }
    }
    let counted = world.handle.counters();
    assert!(counted.handshakes_shed > 0, "{counted:?}");
    world.link("a").send(Down::Ack { seq: 7 }).unwrap();
    assert_eq!(inside.down().await, Down::Ack { seq: 7 });
}

#[tokio::test]
async fn under_load_strangers_must_prove_their_address() {
    let world = World::start_with(|o| o.retry_above = 0).await;
    world.agent("a").await;
    let counted = world.handle.counters();
    assert_eq!((counted.retries, counted.sessions), (1, 1));
}
