//! A service on an agent, as its coordinator sees it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

// The other test uses the rest.
#[allow(dead_code)]
mod coordinator;

use std::collections::BTreeMap;

use coordinator::{Agent, Coordinator, Session, soon};
use hop3_common::{
    codes::{Code, Problem},
    id::InstanceId,
    ownership::Epoch,
    spec::{Durability, KeyFrom, Millis, ServiceLimits, State},
    wire::{
        Assignment, CALL_FRAME_MAX, CLIENT_FRAME_MAX, Call, CallResult, Checkpoint, ClientDown,
        ClientUp, Down, Event, HEADER_FRAME_MAX, Reply, ServiceReply, ServiceRequest, ServiceWork,
        StreamHeader, Target, Work, io,
    },
};
use quinn::{RecvStream, SendStream};

const GUEST: &str = include_str!("../src/services/tests/guest.wat");

fn instance() -> InstanceId {
    "service/s/0".parse().unwrap()
}

fn work(coordinator: &Coordinator, restore: Option<Checkpoint>) -> Work {
    let wasm = wat::parse_str(GUEST).unwrap();
    Work::Service(Box::new(ServiceWork {
        name: "s".parse().unwrap(),
        index: 0,
        count: 1,
        revision: 1,
        module: coordinator.blobs.put(&wasm).unwrap(),
        module_bytes: wasm.len() as u64,
        state: State::Single,
        key: KeyFrom::default(),
        durability: Durability::Node,
        fence: None,
        checkpoint_every: Millis(0),
        checkpoint_keep: 2,
        env: BTreeMap::new(),
        subscribe: vec![],
        publish: vec![],
        calls: vec!["other".parse().unwrap()],
        volumes: vec![],
        public: false,
        limits: ServiceLimits::default(),
        restore,
    }))
}

fn assign(epoch: u64, work: Work) -> Down {
    Down::Assign(Box::new(Assignment {
        instance: instance(),
        epoch: Epoch(epoch),
        work,
    }))
}

async fn ready(session: &mut Session) -> u64 {
    match session.report().await.1.event {
        Event::ServiceReady(facts) => facts.seq,
        other => panic!("{other:?}"),
    }
}

/// A stream of calls.
struct Calls(SendStream, io::FrameReader<RecvStream>, u64);

impl Calls {
    async fn open(session: &Session) -> Self {
        let (mut send, recv) = session.connection.open_bi().await.unwrap();
        let header = StreamHeader::Calls;
        io::write(&mut send, &header, HEADER_FRAME_MAX)
            .await
            .unwrap();
        Self(send, io::FrameReader::new(recv, CALL_FRAME_MAX), 0)
    }

    async fn ask(&mut self, epoch: u64, path: &str) -> Result<ServiceReply, Problem> {
        self.2 += 1;
        let request = ServiceRequest {
            method: "POST".into(),
            path: path.into(),
            headers: vec![],
            body: Default::default(),
            more: false,
            idempotency_key: None,
            from: None,
        };
        let call = Call {
            id: self.2,
            deadline_ms: 10_000,
            target: Target::Service {
                instance: instance(),
                epoch: Epoch(epoch),
                request,
            },
        };
        io::write(&mut self.0, &call, CALL_FRAME_MAX).await.unwrap();
        let reply: Reply = soon("a reply", self.1.next()).await.unwrap().unwrap();
        assert_eq!(reply.id, self.2);
        reply.result.map(|result| match result {
            CallResult::Service(reply) => reply,
            other => panic!("{other:?}"),
        })
    }

    async fn number(&mut self, epoch: u64, path: &str) -> u32 {
        let reply = self.ask(epoch, path).await.unwrap();
        u32::from_le_bytes(reply.body[..].try_into().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_serves_survives_the_agent_and_is_sealed_with_its_state() {
    let mut coordinator = Coordinator::start();
    let mut agent = Agent::new();
    agent.enroll(&coordinator.token()).await.unwrap();
    agent.start();
    let mut session = coordinator.welcome(0).await;
    session.serve_blobs(&coordinator.blobs);
    session.send(&assign(1, work(&coordinator, None))).await;
    ready(&mut session).await;
    let mut calls = Calls::open(&session).await;
    assert_eq!(calls.number(1, "/inc").await, 1);
    let refused = calls.ask(2, "/inc").await.unwrap_err();
    assert_eq!(refused.code, Code::NotHere);
    // A call to a service elsewhere ends with a message to the guest.
    calls.number(1, "/call").await;
    let ended = async { while calls.number(1, "/").await < 1_001 {} };
    soon("the end of the call", ended).await;
    agent.stop().await;

    agent.start();
    let mut session = coordinator.welcome(1).await;
    session.serve_blobs(&coordinator.blobs);
    assert!(ready(&mut session).await >= 3);
    let mut calls = Calls::open(&session).await;
    assert_eq!(calls.number(1, "/").await, 1_001);
    let (instance, epoch) = (instance(), Epoch(1));
    session
        .send(&Down::Checkpoint {
            instance: instance.clone(),
            epoch,
        })
        .await;
    let Event::Checkpointed(made) = session.report().await.1.event else {
        panic!("no checkpoint")
    };
    let has = |made: &Checkpoint| {
        let mut parts = made.parts.iter();
        parts.all(|part| coordinator.blobs.contains(&part.digest))
    };
    assert!(has(&made));
    session
        .send(&Down::Seal {
            instance: instance.clone(),
            epoch,
        })
        .await;
    let Event::Sealed(sealed) = session.report().await.1.event else {
        panic!("not sealed")
    };
    assert!(has(&sealed) && sealed.seq >= made.seq);
    let refused = calls.ask(1, "/inc").await.unwrap_err();
    assert_eq!(refused.code, Code::NotHere);
    // The move is given up: it goes on here.
    session
        .send(&assign(2, work(&coordinator, Some(sealed))))
        .await;
    ready(&mut session).await;
    assert_eq!(calls.number(2, "/inc").await, 1_002);
    session
        .send(&Down::Stop {
            instance: instance.clone(),
            epoch: Epoch(2),
            reason: "the test".into(),
        })
        .await;
    assert_eq!(session.report().await.1.event, Event::Stopped);
    let epoch = Epoch(2);
    session.send(&Down::Forget { instance, epoch }).await;
    let logs = agent.config().data_dir.join("services");
    let left = async {
        while std::fs::read_dir(&logs).unwrap().count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon("the removal of its state", left).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stream_echoes_over_the_session() {
    let mut coordinator = Coordinator::start();
    let mut agent = Agent::new();
    agent.enroll(&coordinator.token()).await.unwrap();
    agent.start();
    let mut session = coordinator.welcome(0).await;
    session.serve_blobs(&coordinator.blobs);
    session.send(&assign(1, work(&coordinator, None))).await;
    ready(&mut session).await;
    let mut calls = Calls::open(&session).await;
    let stream = calls.ask(1, "/open").await.unwrap().stream.unwrap();
    let (mut send, recv) = session.connection.open_bi().await.unwrap();
    let header = StreamHeader::Client {
        instance: instance(),
        epoch: Epoch(1),
    };
    io::write(&mut send, &header, HEADER_FRAME_MAX)
        .await
        .unwrap();
    let data = ClientUp::Data {
        seq: 1,
        text: false,
        bytes: "ping".into(),
    };
    for up in [
        ClientUp::Attach {
            stream,
            received: 0,
        },
        data,
    ] {
        io::write(&mut send, &up, CLIENT_FRAME_MAX).await.unwrap();
    }
    let mut frames = io::FrameReader::new(recv, CLIENT_FRAME_MAX);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let down: ClientDown = soon("a frame", frames.next()).await.unwrap().unwrap();
        seen.push(down);
    }
    assert_eq!(seen[0], ClientDown::Attached { received: 0 });
    assert!(seen.contains(&ClientDown::Ack { seq: 1 }));
    let echo = |down: &ClientDown| matches!(down, ClientDown::Data { seq: 2, bytes, .. } if &bytes[..] == b"ping");
    assert!(seen.iter().any(echo), "{seen:?}");
    agent.stop().await;
}
