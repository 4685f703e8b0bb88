//! Golden bytes of protocol 2: a change here breaks meshes whose sides differ in version.

use bytes::Bytes;

use super::{attach, frame, *};
use crate::{
    codes::{Code, Problem},
    id::{Digest, InstanceId, TaskId, UnixMs},
    ownership::{Epoch, Incarnation, Token},
    spec::{Durability, KeyFrom, Limits, Millis, ServiceLimits, State},
};

fn hex<T: serde::Serialize>(message: &T) -> String {
    let bytes = frame::to_bytes(message, CALL_FRAME_MAX).unwrap_or_default();
    data_encoding::HEXLOWER.encode(&bytes)
}

/// A service's instance, with something in every field.
fn service(digest: Digest, token: Token) -> ServiceWork {
    ServiceWork {
        name: "s".parse().expect("a name"),
        index: 1,
        count: 4,
        revision: 2,
        module: digest,
        module_bytes: 66,
        state: State::Keyed,
        key: KeyFrom::default(),
        durability: Durability::Replicated,
        fence: Some(Millis::secs(3)),
        checkpoint_every: Millis::secs(60),
        checkpoint_keep: 3,
        env: [("K".to_owned(), "V".to_owned())].into(),
        subscribe: vec!["a/b".parse().expect("a topic")],
        publish: vec!["c".parse().expect("a topic")],
        calls: vec!["other".parse().expect("a name")],
        volumes: Vec::new(),
        public: true,
        limits: ServiceLimits::default(),
        restore: Some(Checkpoint {
            token,
            seq: 7,
            at: UnixMs(9),
            schema: 1,
            parts: vec![Output { digest, bytes: 5 }],
        }),
    }
}

/// One message of every kind that a released peer must go on to understand.
#[test]
fn shipped_messages_do_not_change() {
    let instance = InstanceId::task(&TaskId::from_random(7));
    let token = Token {
        epoch: Epoch(3),
        incarnation: Incarnation(2),
    };
    let digest = Digest([0xab; 32]);
    let work = TaskWork {
        module: digest,
        module_bytes: 66,
        program: "empty".to_owned(),
        args: vec!["a".to_owned()],
        env: [("K".to_owned(), "V".to_owned())].into(),
        stdin: StdinSource::Blob { digest, bytes: 5 },
        limits: Limits::default(),
        volumes: Vec::new(),
        retry: crate::spec::Retry::OnNodeLoss,
    };
    let problem = Problem::new(Code::TaskLost, "the agent restarted");
    let event = Event::Failed(problem.clone());
    let report = Report {
        instance: instance.clone(),
        token,
        at: UnixMs(9),
        event,
    };
    let held = Held {
        instance: instance.clone(),
        token,
        phase: Phase::Running,
    };
    let assignment = Assignment {
        instance: instance.clone(),
        epoch: Epoch(3),
        work: Work::Task(work),
    };
    let service = Assignment {
        instance: instance.clone(),
        epoch: Epoch(3),
        work: Work::Service(Box::new(service(digest, token))),
    };
    let call = Call {
        id: 300,
        deadline_ms: 10_000,
        target: Target::Module {
            module: digest,
            module_bytes: 66,
            memory_bytes: 1 << 26,
            cpu_ms: 0,
            input: Bytes::from_static(b"in"),
        },
    };
    let data = attach::Frame::Data {
        channel: attach::Channel::Stdout,
        offset: 1000,
        bytes: Bytes::from_static(b"out"),
        fin: true,
    };
    let lines = [
        ("StreamHeader::Control", hex(&StreamHeader::Control)),
        (
            "StreamHeader::BlobGet",
            hex(&StreamHeader::BlobGet { digest, offset: 4 }),
        ),
        (
            "StreamHeader::Attach",
            hex(&StreamHeader::Attach {
                instance: instance.clone(),
                epoch: Epoch(3),
            }),
        ),
        ("StreamHeader::CheckModel", hex(&StreamHeader::CheckModel)),
        ("Up::Inventory", hex(&Up::Inventory(vec![held]))),
        ("Up::Report", hex(&Up::Report { seq: 12, report })),
        ("Down::Refused", hex(&Down::Refused(problem))),
        ("Down::Assign", hex(&Down::Assign(Box::new(assignment)))),
        (
            "Down::Assign of a service",
            hex(&Down::Assign(Box::new(service))),
        ),
        (
            "Down::Forget",
            hex(&Down::Forget {
                instance,
                epoch: Epoch(3),
            }),
        ),
        (
            "Down::Restarting",
            hex(&Down::Restarting {
                reconnect_in_ms: 500,
            }),
        ),
        ("Call", hex(&call)),
        ("attach::Data", hex(&data)),
        ("attach::Cancel", hex(&attach::Frame::Cancel)),
    ];
    let text: Vec<_> = lines
        .iter()
        .map(|(name, hex)| format!("{name} {hex}"))
        .collect();
    insta::assert_snapshot!("protocol_2", text.join("\n"));
}
