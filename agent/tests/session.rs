//! The agent against a coordinator of the test's own: enrolment, session, work, restarts.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod coordinator;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use coordinator::{Agent, Coordinator, Enrolment, Session, soon, welcome};
use hop3_agent::identity::Error;
use hop3_common::{
    chunks::BlobStore,
    codes::{Code, Problem},
    id::{Digest, InstanceId},
    identity::enroll::EnrollRequest,
    ownership::Epoch,
    spec::{Limits, Retry},
    wire::{
        Assignment, CALL_FRAME_MAX, Call, CallResult, Down, End, Event, HEADER_FRAME_MAX, Reply,
        StdinSource, StreamHeader, Target, TaskWork, Up, Work,
        attach::{Channel, FRAME_MAX, Frame},
        close, frame, io,
    },
};

const ECHO: &str = include_str!("echo.wat");
const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))"#;

fn module(blobs: &BlobStore, wat: &str) -> (Digest, u64) {
    let wasm = wat::parse_str(wat).unwrap();
    (blobs.put(&wasm).unwrap(), wasm.len() as u64)
}

fn task(module: (Digest, u64), stdin: StdinSource, retry: Retry) -> Work {
    Work::Task(TaskWork {
        module: module.0,
        module_bytes: module.1,
        program: "guest".into(),
        args: vec![],
        env: BTreeMap::new(),
        stdin,
        limits: Limits::default(),
        volumes: vec![],
        retry,
    })
}

fn assign(id: &str, epoch: u64, work: Work) -> Down {
    let instance = id.parse().unwrap();
    Down::Assign(Box::new(Assignment {
        instance,
        epoch: Epoch(epoch),
        work,
    }))
}

async fn enrolled(coordinator: &Coordinator) -> Agent {
    let agent = Agent::new();
    agent.enroll(&coordinator.token()).await.unwrap();
    agent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_enrolls_once_and_introduces_itself() {
    let mut coordinator = Coordinator::start();
    let mut agent = Agent::new();
    assert_eq!(agent.enroll(&coordinator.token()).await.unwrap(), "node-1");
    let again = agent.enroll(&coordinator.token()).await.unwrap_err();
    assert!(matches!(again, Error::AlreadyEnrolled { .. }), "{again}");
    agent.start();
    let session = coordinator.welcome(0).await;
    assert_eq!(session.hello.node.as_str(), "node-1");
    assert_eq!(session.peer.node().unwrap().as_str(), "node-1");
    assert!(
        session
            .hello
            .facts
            .capabilities
            .contains(&"wasm".to_owned())
    );
    let mut telemetry = soon("telemetry", session.connection.accept_uni())
        .await
        .unwrap();
    let header = io::read::<StreamHeader>(&mut telemetry, HEADER_FRAME_MAX)
        .await
        .unwrap();
    assert_eq!(header, Some(StreamHeader::Telemetry));
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let coordinator = Coordinator::start();
    *coordinator.enrolment.lock().unwrap() = Enrolment::LoseAnswer;
    let (agent, token) = (Agent::new(), coordinator.token());
    assert!(agent.enroll(&token).await.is_err());
    *coordinator.enrolment.lock().unwrap() = Enrolment::Grant { ttl_s: 3600 };
    agent.enroll(&token).await.unwrap();
    let key = |request: &EnrollRequest| match request {
        EnrollRequest::Join(join) => hop3_common::identity::verify_csr(&join.csr_der)
            .unwrap()
            .hash(),
        EnrollRequest::Renew(_) => panic!("a renewal"),
    };
    let requests = coordinator.requests.lock().unwrap();
    assert_eq!(key(&requests[0]), key(&requests[1]));
}

#[tokio::test]
async fn refusals_and_strangers_are_told_apart() {
    let coordinator = Coordinator::start();
    let agent = Agent::new();
    for code in [Code::TokenExpired, Code::TokenUsed] {
        *coordinator.enrolment.lock().unwrap() = Enrolment::Refuse(code);
        let error = agent.enroll(&coordinator.token()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused(problem) if problem.code == code),
            "{error}"
        );
    }
    // The token of another mesh that points here.
    let other = Coordinator::start();
    let stranger = hop3_common::identity::JoinToken::mint(
        hop3_common::identity::TokenId::generate().unwrap(),
        hop3_common::identity::TokenSecret::generate().unwrap(),
        other.ca.certificate(),
        vec![coordinator.address().parse().unwrap()],
    );
    let error = agent.enroll(&stranger.unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Untrusted(_)), "{error}");
    assert!(error.to_string().contains("another mesh"), "{error}");
    let count = coordinator.requests.lock().unwrap().len();
    assert_eq!(count, 2, "a stranger hears nothing");
    let address = coordinator.address();
    let token = coordinator.token();
    coordinator.endpoint.close(0u32.into(), b"");
    drop(coordinator);
    let error = agent.enroll(&token).await.unwrap_err().to_string();
    assert!(error.contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_and_its_report_is_repeated_until_acknowledged() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let mut session = coordinator.welcome(0).await;
    let outbox = session.hello.outbox;
    let serving = session.serve_blobs(&coordinator.blobs);
    let echo = module(&coordinator.blobs, ECHO);
    let input = coordinator.blobs.put(b"hello, mesh").unwrap();
    let stdin = StdinSource::Blob {
        digest: input,
        bytes: 11,
    };
    let order = assign("task/t1", 1, task(echo, stdin, Retry::Never));
    session.send(&order).await;
    session.send(&order).await;
    let (seq, started) = session.report().await;
    assert_eq!(seq, 1);
    assert!(
        matches!(started.event, Event::Started { .. }),
        "{started:?}"
    );
    let (seq, ended) = session.report().await;
    assert_eq!(seq, 2);
    let Event::TaskEnded(result) = &ended.event else {
        panic!("{ended:?}")
    };
    assert_eq!(result.end, End::Exited(7));
    let stdout = result.stdout.unwrap();
    assert_eq!(
        coordinator.blobs.read(&stdout.digest, 100).unwrap(),
        b"hello, mesh"
    );
    // Only the first is acknowledged; the connection breaks.
    session.send(&Down::Ack { seq: 1 }).await;
    serving.abort();
    session.connection.close(0u32.into(), b"broken by the test");
    let mut session = coordinator.welcome(1).await;
    assert_eq!(session.hello.outbox, outbox);
    assert_eq!(session.report().await, (2, ended.clone()));
    // The agent restarts: what is not acknowledged is still there.
    agent.stop().await;
    agent.start();
    let connection = coordinator.connection().await;
    let mut session = Session::open(connection).await;
    session.send(&welcome(1)).await;
    let Up::Inventory(held) = session.up().await else {
        panic!()
    };
    assert_eq!(held.len(), 1);
    assert_eq!(session.report().await, (2, ended));
    session.send(&Down::Ack { seq: 2 }).await;
    let instance = "task/t1".parse().unwrap();
    session
        .send(&Down::Forget {
            instance,
            epoch: Epoch(1),
        })
        .await;
    // Orders are taken in turn: the answer to the next says that the last was heard.
    let (instance, reason) = ("task/none".parse().unwrap(), "never assigned".into());
    session
        .send(&Down::Stop {
            instance,
            epoch: Epoch(1),
            reason,
        })
        .await;
    assert_eq!(session.report().await.1.event, Event::Stopped);
    session.connection.close(0u32.into(), b"broken by the test");
    let mut session = Session::open(coordinator.connection().await).await;
    session.send(&welcome(2)).await;
    assert_eq!(session.up().await, Up::Inventory(vec![]));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_what_ran_once_and_says_so() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let mut session = coordinator.welcome(0).await;
    let _serving = session.serve_blobs(&coordinator.blobs);
    let spin = module(&coordinator.blobs, SPIN);
    session
        .send(&assign(
            "task/once",
            1,
            task(spin, StdinSource::Empty, Retry::Never),
        ))
        .await;
    assert!(matches!(
        session.report().await.1.event,
        Event::Started { .. }
    ));
    session
        .send(&assign(
            "task/again",
            1,
            task(spin, StdinSource::Empty, Retry::OnNodeLoss),
        ))
        .await;
    let (seq, again) = session.report().await;
    assert!(matches!(again.event, Event::Started { .. }));
    session.send(&Down::Ack { seq }).await;
    agent.stop().await;
    agent.start();
    let mut session = coordinator.welcome(seq).await;
    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        let (_, report) = session.report().await;
        seen.insert(report.instance.to_string(), report);
    }
    let lost = &seen["task/once"].event;
    assert!(
        matches!(
            lost,
            Event::Failed(Problem {
                code: Code::TaskLost,
                ..
            })
        ),
        "{lost:?}"
    );
    assert!(matches!(seen["task/again"].event, Event::Started { .. }));
    assert!(seen["task/again"].token > again.token);
    let stop = Down::Stop {
        instance: "task/again".parse().unwrap(),
        epoch: Epoch(1),
        reason: "the test is over".into(),
    };
    session.send(&stop).await;
    let Event::TaskEnded(result) = session.report().await.1.event else {
        panic!()
    };
    assert_eq!(result.end, End::Cancelled);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_frame_ends_the_connection_only() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let mut session = coordinator.welcome(0).await;
    session.send_raw(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).await;
    let reason = soon("the close", session.connection.closed()).await;
    let quinn::ConnectionError::ApplicationClosed(closed) = reason else {
        panic!("{reason:?}")
    };
    assert_eq!(closed.error_code.into_inner(), u64::from(close::PROTOCOL));
    let mut session = coordinator.welcome(0).await;
    // An oversize frame is refused at its length.
    session.send_raw(&[0xff, 0xff, 0xff, 0x7f]).await;
    soon("the close", session.connection.closed()).await;
    coordinator.welcome(0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_stops_dialling_and_keeps_its_state() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let session = coordinator.welcome(0).await;
    session.connection.close(close::REVOKED.into(), b"revoked");
    // Far longer than the first back-off.
    let dialled = tokio::time::timeout(std::time::Duration::from_secs(3), coordinator.connection());
    assert!(dialled.await.is_err(), "a revoked node dialled");
    assert!(agent.is_running());
    agent.stop().await;
    assert!(matches!(
        agent.enroll(&coordinator.token()).await,
        Err(Error::AlreadyEnrolled { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_in_session_and_after_expiry() {
    let mut coordinator = Coordinator::start();
    *coordinator.enrolment.lock().unwrap() = Enrolment::Grant { ttl_s: 4 };
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let mut session = coordinator.welcome(0).await;
    // At two thirds of its life the agent asks; it gets no answer.
    let Up::Renew { csr_der } = session.up().await else {
        panic!("no renewal")
    };
    let key = hop3_common::identity::verify_csr(&csr_der).unwrap();
    assert_eq!(key.hash(), session.peer.key);
    let expiry = session.peer.validity.not_after;
    *coordinator.enrolment.lock().unwrap() = Enrolment::Grant { ttl_s: 3600 };
    soon("the expiry", async {
        while hop3_common::id::UnixMs::now() <= expiry.plus(1000) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    session.connection.close(0u32.into(), b"broken by the test");
    let session = coordinator.welcome(0).await;
    assert!(session.peer.validity.not_after > expiry);
    let last = coordinator.requests.lock().unwrap().pop();
    assert!(matches!(last, Some(EnrollRequest::Renew(_))));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_in_any_order_and_failures_have_codes() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let session = coordinator.welcome(0).await;
    let _serving = session.serve_blobs(&coordinator.blobs);
    let echo = module(&coordinator.blobs, ECHO);
    let spin = module(&coordinator.blobs, SPIN);
    let (mut send, recv) = session.connection.open_bi().await.unwrap();
    io::write(&mut send, &StreamHeader::Calls, HEADER_FRAME_MAX)
        .await
        .unwrap();
    let call = |id: u64, of: (Digest, u64), deadline_ms: u32| Call {
        id,
        deadline_ms,
        target: Target::Module {
            module: of.0,
            module_bytes: of.1,
            memory_bytes: 1 << 20,
            cpu_ms: 0,
            input: Bytes::from(format!("call {id}")),
        },
    };
    let mut out = BytesMut::new();
    frame::encode(&call(0, spin, 300), CALL_FRAME_MAX, &mut out).unwrap();
    for id in 1..200 {
        frame::encode(&call(id, echo, 20_000), CALL_FRAME_MAX, &mut out).unwrap();
    }
    send.write_all(&out).await.unwrap();
    let mut replies = io::FrameReader::new(recv, CALL_FRAME_MAX);
    let mut seen = BTreeMap::new();
    while seen.len() < 200 {
        let reply: Reply = soon("a reply", replies.next()).await.unwrap().unwrap();
        assert!(seen.insert(reply.id, reply.result).is_none());
    }
    for (id, result) in seen {
        if id == 0 {
            let code = result.unwrap_err().code;
            assert!(matches!(code, Code::Deadline | Code::TaskLimit), "{code}");
            continue;
        }
        let Ok(CallResult::Module { exit, output, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((exit, output), (7, Bytes::from(format!("call {id}"))));
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_task_streams_over_a_lost_session() {
    let mut coordinator = Coordinator::start();
    let mut agent = enrolled(&coordinator).await;
    agent.start();
    let mut session = coordinator.welcome(0).await;
    let _serving = session.serve_blobs(&coordinator.blobs);
    let echo = module(&coordinator.blobs, ECHO);
    session
        .send(&assign(
            "task/a",
            1,
            task(echo, StdinSource::Attached, Retry::Never),
        ))
        .await;
    let (seq, _started) = session.report().await;
    session.send(&Down::Ack { seq }).await;
    let instance: InstanceId = "task/a".parse().unwrap();
    let mut got = Vec::new();
    let mut client = Client::attach(&session, &instance, &got).await;
    client.data(0, b"one ", false).await;
    while got.len() < 4 {
        client.take(&mut got).await;
    }
    session.connection.close(0u32.into(), b"broken by the test");
    let mut session = coordinator.welcome(seq).await;
    let mut client = Client::attach(&session, &instance, &got).await;
    client.data(4, b"two", true).await;
    let end = loop {
        if let Some(end) = client.take(&mut got).await {
            break end;
        }
    };
    assert_eq!((end, &got[..]), (End::Exited(7), &b"one two"[..]));
    client.send(&Frame::Bye).await;
    let Event::TaskEnded(result) = session.report().await.1.event else {
        panic!()
    };
    assert_eq!((result.end, result.stdout), (End::Exited(7), None));
    agent.stop().await;
}

/// A client of an attached task.
struct Client {
    send: quinn::SendStream,
    frames: io::FrameReader<quinn::RecvStream>,
}

impl Client {
    async fn attach(session: &Session, instance: &InstanceId, got: &[u8]) -> Self {
        let (mut send, recv) = session.connection.open_bi().await.unwrap();
        let header = StreamHeader::Attach {
            instance: instance.clone(),
            epoch: Epoch(1),
        };
        io::write(&mut send, &header, HEADER_FRAME_MAX)
            .await
            .unwrap();
        let mut client = Self {
            send,
            frames: io::FrameReader::new(recv, FRAME_MAX),
        };
        let stdout = got.len() as u64;
        client.send(&Frame::Resume { stdout, stderr: 0 }).await;
        for channel in [Channel::Stdout, Channel::Stderr] {
            let consumed = if channel == Channel::Stdout {
                stdout
            } else {
                0
            };
            client
                .send(&Frame::Credit {
                    channel,
                    consumed,
                    upto: consumed + 10_000,
                })
                .await;
        }
        // Nothing may be sent before credit.
        while !matches!(
            client.next().await,
            Frame::Credit {
                channel: Channel::Stdin,
                ..
            }
        ) {}
        client
    }

    async fn send(&mut self, frame: &Frame) {
        io::write(&mut self.send, frame, FRAME_MAX).await.unwrap();
    }

    async fn data(&mut self, offset: u64, bytes: &'static [u8], fin: bool) {
        let bytes = Bytes::from_static(bytes);
        self.send(&Frame::Data {
            channel: Channel::Stdin,
            offset,
            bytes,
            fin,
        })
        .await;
    }

    async fn next(&mut self) -> Frame {
        soon("an attach frame", self.frames.next())
            .await
            .unwrap()
            .unwrap()
    }

    async fn take(&mut self, got: &mut Vec<u8>) -> Option<End> {
        match self.next().await {
            Frame::Data {
                channel: Channel::Stdout,
                offset,
                bytes,
                ..
            } => {
                assert_eq!(offset, got.len() as u64, "neither lost nor repeated");
                got.extend_from_slice(&bytes);
                None
            }
            Frame::Exit { end, .. } => Some(end),
            _ => None,
        }
    }
}
