//! One real message of every kind and variant, as seeds.

use std::collections::BTreeMap;

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId, NodeId, TaskId, UnixMs},
    identity::{
        TokenId, TokenSecret,
        enroll::{EnrollReply, EnrollRequest, Granted, Join, Renew},
    },
    ownership::{Epoch, Incarnation, Token},
    spec::{
        ByteSize, Durability, KeyFrom, Limits, Millis, Retry, ServiceLimits, State, VolumeGrant,
    },
    tensor::Tensor,
    wire::{
        attach::{Channel, Frame},
        frame,
        telemetry::{Batch, Sample},
        *,
    },
};

use crate::{input::put_part, wire::message};

type Seeds = Vec<(String, Vec<u8>)>;

fn digest() -> Digest {
    Digest([0xab; 32])
}

fn instance() -> InstanceId {
    InstanceId::task(&TaskId::from_random(7))
}

fn service() -> InstanceId {
    InstanceId::service(&"shop".parse().unwrap(), 1)
}

const TOKEN: Token = Token {
    epoch: Epoch(3),
    incarnation: Incarnation(2),
};

fn problem() -> Problem {
    Problem::new(Code::TaskLost, "the agent restarted")
}

fn output() -> Output {
    let (digest, bytes) = (digest(), 5);
    Output { digest, bytes }
}

fn usage() -> Usage {
    Usage {
        cpu_us: 1,
        wall_us: 300,
        memory_peak_bytes: 65_536,
        output_bytes: 4,
        host_calls: 5,
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "edge-1".into(),
        cpus: 4,
        memory_kib: 1 << 20,
        capabilities: vec!["wasm".into(), "onnx".into()],
        volumes: vec!["data".into()],
        ..NodeFacts::default()
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        token: TOKEN,
        seq: 1_000,
        at: UnixMs(1_800_000_000_000),
        schema: 2,
        parts: vec![output(), output()],
    }
}

fn model_facts() -> ModelFacts {
    ModelFacts {
        inputs: vec!["X:f32[batch,64]".parse().unwrap()],
        outputs: vec!["Y:f32[_,10]".parse().unwrap()],
        load_us: 900,
    }
}

fn task_work() -> TaskWork {
    TaskWork {
        module: digest(),
        module_bytes: 66,
        program: "empty".into(),
        args: vec!["a".into()],
        env: [("K".to_owned(), "V".to_owned())].into(),
        stdin: StdinSource::Blob {
            digest: digest(),
            bytes: 5,
        },
        limits: Limits::default(),
        volumes: vec![VolumeGrant {
            name: "data".into(),
            path: "/data".into(),
            writable: true,
        }],
        retry: Retry::OnNodeLoss,
    }
}

fn model_work() -> ModelWork {
    ModelWork {
        name: "digits".parse().unwrap(),
        version: 2,
        model: digest(),
        model_bytes: 70_000,
        inputs: vec!["X:f32[batch,64]".parse().unwrap()],
        memory: ByteSize::mib(512),
        deadline: Millis::secs(10),
    }
}

fn service_work() -> ServiceWork {
    ServiceWork {
        name: "shop".parse().unwrap(),
        index: 1,
        count: 4,
        revision: 7,
        module: digest(),
        module_bytes: 1_000,
        state: State::Keyed,
        key: KeyFrom::Header("x-device".into()),
        durability: Durability::Replicated,
        fence: Some(Millis::secs(3)),
        checkpoint_every: Millis::secs(60),
        checkpoint_keep: 3,
        env: BTreeMap::new(),
        subscribe: vec!["plant/*".parse().unwrap()],
        publish: vec!["alarms".parse().unwrap()],
        calls: vec!["stock".parse().unwrap()],
        volumes: Vec::new(),
        public: true,
        limits: ServiceLimits::default(),
        restore: Some(checkpoint()),
    }
}

fn request() -> ServiceRequest {
    ServiceRequest {
        method: "POST".into(),
        path: "/a?b=c".into(),
        headers: vec![("accept".into(), Bytes::from_static(b"*/*"))],
        body: Bytes::from_static(b"body"),
        more: false,
        idempotency_key: Some("k1".into()),
        from: Some(service()),
    }
}

fn reply() -> ServiceReply {
    ServiceReply {
        status: 200,
        headers: vec![("content-type".into(), Bytes::from_static(b"text/plain"))],
        body: Bytes::from_static(b"yes"),
        stream: Some(3),
    }
}

fn topic() -> TopicMessage {
    TopicMessage {
        topic: "plant/line-1".into(),
        payload: Bytes::from_static(b"21.5"),
        from: Some((service(), 9)),
    }
}

fn headers() -> Vec<StreamHeader> {
    let (digest, instance, epoch) = (digest(), instance(), Epoch(3));
    vec![
        StreamHeader::Control,
        StreamHeader::Telemetry,
        StreamHeader::BlobGet { digest, offset: 4 },
        StreamHeader::BlobPut { digest, size: 9 },
        StreamHeader::Calls,
        StreamHeader::Attach {
            instance: instance.clone(),
            epoch,
        },
        StreamHeader::Logs {
            instance,
            channel: Channel::Stderr,
            offset: 300,
            follow: true,
        },
        StreamHeader::CheckModel,
        StreamHeader::Client {
            instance: service(),
            epoch,
        },
        StreamHeader::Outgoing,
    ]
}

fn events() -> Vec<Event> {
    let ended = TaskResult {
        end: End::Exited(-1),
        usage: usage(),
        stdout: Some(output()),
        stderr: None,
    };
    let ready = ServiceFacts {
        fetch_us: 1,
        load_us: 2,
        restore_us: 3,
        seq: 4,
        schema: 5,
        state_bytes: 6,
        replicated: true,
    };
    vec![
        Event::Started {
            fetch_us: 1,
            load_us: 2,
        },
        Event::TaskEnded(Box::new(ended)),
        Event::ModelReady(model_facts()),
        Event::Failed(problem()),
        Event::Stopped,
        Event::ServiceReady(ready),
        Event::Checkpointed(checkpoint()),
        Event::Sealed(checkpoint()),
        Event::NotSealed(problem()),
    ]
}

fn ups() -> Vec<Up> {
    let hello = Hello {
        protocol: PROTOCOL,
        node: "edge-1".parse().unwrap(),
        agent_version: "0.1.0".into(),
        boot_id: [1; 16],
        outbox: [2; 16],
        facts: facts(),
    };
    let held = Held {
        instance: instance(),
        token: TOKEN,
        phase: Phase::Running,
    };
    let reports = events().into_iter().map(|event| Up::Report {
        seq: 12,
        report: Report {
            instance: instance(),
            token: TOKEN,
            at: UnixMs(9),
            event,
        },
    });
    let csr_der = Bytes::from_static(b"csr");
    let others = [
        Up::Hello(hello),
        Up::Inventory(vec![held.clone(), held]),
        Up::Facts(facts()),
        Up::Renew { csr_der },
        Up::Leaving {
            reason: "stop".into(),
        },
        Up::Leases {
            number: 9,
            runs: vec![(service(), TOKEN)],
        },
        Up::Fetched {
            instance: service(),
        },
    ];
    reports.chain(others).collect()
}

fn downs() -> Vec<Down> {
    let (instance, epoch) = (instance(), Epoch(3));
    let welcome = Welcome {
        protocol: 1,
        mesh: "home".parse().unwrap(),
        coordinator_version: "0.1.0".into(),
        now: UnixMs(1_800_000_000_000),
        acked_seq: 11,
        sample_ms: 10_000,
        batch_ms: 60_000,
    };
    let works = [
        Work::Task(task_work()),
        Work::Model(model_work()),
        Work::Service(Box::new(service_work())),
    ];
    let assigned = works.map(|work| {
        Down::Assign(Box::new(Assignment {
            instance: instance.clone(),
            epoch,
            work,
        }))
    });
    let others = [
        Down::Welcome(welcome),
        Down::Refused(problem()),
        Down::Ack { seq: 12 },
        Down::Stop {
            instance: instance.clone(),
            epoch,
            reason: "cancelled".into(),
        },
        Down::Forget {
            instance: instance.clone(),
            epoch,
        },
        Down::Telemetry {
            sample_ms: 1,
            batch_ms: 2,
        },
        Down::Certificate {
            cert_der: Bytes::from_static(b"cert"),
        },
        Down::Restarting {
            reconnect_in_ms: 500,
        },
        Down::Checkpoint {
            instance: instance.clone(),
            epoch,
        },
        Down::Seal {
            instance: instance.clone(),
            epoch,
        },
        Down::Fetch {
            instance: instance.clone(),
            work: Box::new(service_work()),
        },
        Down::Leases {
            number: 9,
            runs: vec![(instance, TOKEN, 3_000)],
        },
    ];
    assigned.into_iter().chain(others).collect()
}

fn calls() -> Vec<Call> {
    let tensor = Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap();
    let (instance, epoch) = (service(), Epoch(3));
    let targets = [
        Target::Module {
            module: digest(),
            module_bytes: 66,
            memory_bytes: 1 << 26,
            cpu_ms: 0,
            input: Bytes::from_static(b"in"),
        },
        Target::Model {
            instance: instance.clone(),
            epoch,
            inputs: vec![tensor],
        },
        Target::Cancel { id: 299 },
        Target::Service {
            instance: instance.clone(),
            epoch,
            request: request(),
        },
        Target::Message {
            instance,
            epoch,
            message: topic(),
        },
    ];
    let call = |target| Call {
        id: 300,
        deadline_ms: 10_000,
        target,
    };
    targets.into_iter().map(call).collect()
}

fn replies() -> Vec<Reply> {
    let results = [
        Ok(CallResult::Module {
            exit: 0,
            output: Bytes::from_static(b"out"),
            usage: usage(),
        }),
        Ok(CallResult::Model {
            outputs: vec![Tensor::from_i64(vec![1, 2], &[3, -4]).unwrap()],
            infer_us: 80,
        }),
        Ok(CallResult::Service(reply())),
        Ok(CallResult::Delivered),
        Err(problem()),
    ];
    let reply = |result| Reply { id: 300, result };
    results.into_iter().map(reply).collect()
}

fn outgoings() -> Vec<Outgoing> {
    let call = OutgoingWhat::Call {
        service: "stock".parse().unwrap(),
        request: request(),
    };
    let outgoing = |what| Outgoing {
        id: 4,
        deadline_ms: 1_000,
        from: Some((service(), TOKEN)),
        what,
    };
    let change = || ReplicaChange {
        seq: 8,
        delta: Bytes::from_static(b"HOP3DELT"),
    };
    let base = ReplicaWrite::Base {
        stream: 1,
        checkpoint: checkpoint(),
        since: Some(change()),
    };
    let next = ReplicaWrite::Change {
        stream: 1,
        change: change(),
    };
    let replica = [base, next].map(OutgoingWhat::Replica);
    let mail = OutgoingWhat::Mail {
        message: topic(),
        has: vec!["stock".parse().unwrap()],
    };
    let what = [call, OutgoingWhat::Publish(topic())]
        .into_iter()
        .chain(replica)
        .chain([mail]);
    what.map(outgoing).collect()
}

fn client_ups() -> Vec<ClientUp> {
    let (text, bytes) = (true, Bytes::from_static(b"hi"));
    vec![
        ClientUp::Attach {
            stream: 3,
            received: 7,
        },
        ClientUp::Data {
            seq: 1,
            text,
            bytes,
        },
        ClientUp::Ack { seq: 300 },
        ClientUp::Close { seq: 2, code: 1000 },
    ]
}

fn client_downs() -> Vec<ClientDown> {
    let (text, bytes) = (false, Bytes::from_static(b"hello"));
    vec![
        ClientDown::Attached { received: 7 },
        ClientDown::Refused(problem()),
        ClientDown::Data {
            seq: 1,
            text,
            bytes,
        },
        ClientDown::Ack { seq: 300 },
        ClientDown::Close { seq: 2, code: 1000 },
    ]
}

fn attach_frames() -> Vec<Frame> {
    let channel = Channel::Stdout;
    vec![
        Frame::Resume {
            stdout: 1,
            stderr: 2,
        },
        Frame::Data {
            channel,
            offset: 1_000,
            bytes: Bytes::from_static(b"out"),
            fin: true,
        },
        Frame::Credit {
            channel,
            consumed: 1,
            upto: 1 << 18,
        },
        Frame::Exit {
            end: End::Failed(problem()),
            usage: usage(),
        },
        Frame::Status("running on edge-1".into()),
        Frame::Cancel,
        Frame::Bye,
    ]
}

fn enroll_requests() -> Vec<EnrollRequest> {
    let join = Join {
        protocol: PROTOCOL,
        token: TokenId::generate().unwrap(),
        secret: TokenSecret::generate().unwrap(),
        csr_der: vec![0x30, 0],
        hostname: "edge-1".into(),
        facts: [("arch".to_owned(), "x86_64".to_owned())].into(),
    };
    let renew = Renew {
        protocol: PROTOCOL,
        node: "edge-1".parse().unwrap(),
        old_cert_der: vec![0x30, 1, 0],
        csr_der: vec![0x30, 0],
        signature: vec![7; 64],
    };
    vec![EnrollRequest::Join(join), EnrollRequest::Renew(renew)]
}

fn enroll_replies() -> Vec<EnrollReply> {
    let node: NodeId = "edge-1".parse().unwrap();
    let granted = Granted {
        node,
        mesh: "home".parse().unwrap(),
        cert_der: vec![1],
        ca_der: vec![2],
        expires: UnixMs(5),
        server_time: UnixMs(4),
    };
    vec![
        EnrollReply::Granted(granted),
        EnrollReply::Refused(problem()),
    ]
}

fn batch() -> Batch {
    let sample = |n: u64| Sample {
        at: UnixMs(1_800_000_000_000 + n * 10_000),
        cpu_permille: 12,
        memory_used_kib: 4 << 20,
        temperature_decicelsius: Some(-40),
        agent_rss_kib: 12_000,
        ..Sample::default()
    };
    let samples: Vec<_> = (0..4).map(sample).collect();
    Batch::encode(&samples)
}

/// Seeds of `messages`: every variant of every kind.
#[must_use]
pub fn messages() -> Seeds {
    let check = ModelCheck {
        model: digest(),
        model_bytes: 9,
        inputs: vec!["X:f32[batch,64]".parse().unwrap()],
        memory: ByteSize::mib(64),
    };
    let checked: [Result<ModelFacts, Problem>; 2] = [Ok(model_facts()), Err(problem())];
    let blobs = [
        BlobReply::Ready { size: 9, offset: 4 },
        BlobReply::Stored,
        BlobReply::Refused(problem()),
    ];
    let mailed = OutgoingDone::Mail {
        has: vec!["stock".parse().unwrap()],
        waits: vec!["away".parse().unwrap()],
    };
    let outgoing_replies = [
        Ok(OutgoingDone::Reply(reply())),
        Ok(OutgoingDone::Done),
        Err(problem()),
        Ok(mailed),
    ]
    .map(|result| OutgoingReply { id: 4, result });
    let mut out = Vec::new();
    let mut add = |name: &str, bodies: Vec<Vec<u8>>| {
        for (n, body) in bodies.into_iter().enumerate() {
            out.push((format!("ok-{name}-{n:02}"), body));
        }
    };
    add("header", all(0, &headers()));
    add("blob", all(1, &blobs));
    add("up", all(2, &ups()));
    add("down", all(3, &downs()));
    add("call", all(4, &calls()));
    add("reply", all(5, &replies()));
    add("outgoing", all(6, &outgoings()));
    add("outgoing-reply", all(7, &outgoing_replies));
    add("client-up", all(8, &client_ups()));
    add("client-down", all(9, &client_downs()));
    add("attach", all(10, &attach_frames()));
    add("batch", all(11, &[batch()]));
    add("check", all(12, &[check]));
    add("checked", all(13, &checked));
    add("enroll", all(14, &enroll_requests()));
    add("enroll-reply", all(15, &enroll_replies()));
    // A list that claims more members than any frame can hold.
    out.push((
        "bad-endless-inventory".into(),
        b"\x02\x01\xff\xff\xff\xff\x0f".to_vec(),
    ));
    out
}

fn all<T: serde::Serialize>(kind: u8, messages: &[T]) -> Vec<Vec<u8>> {
    messages.iter().map(|of| message(kind, of)).collect()
}

/// Seeds of `frames`: streams of several messages, one torn, one with a length that lies.
#[must_use]
pub fn frames() -> Seeds {
    let stream = |kind: u8, cut: u8, bodies: Vec<Bytes>| {
        let mut out = vec![kind, cut];
        out.extend(bodies.into_iter().flatten());
        out
    };
    let ups = ups().into_iter().take(3);
    let ups: Vec<_> = ups
        .map(|of| frame::to_bytes(&of, CONTROL_FRAME_MAX).unwrap())
        .collect();
    let clients = client_ups().into_iter();
    let clients: Vec<_> = clients
        .map(|of| frame::to_bytes(&of, CLIENT_FRAME_MAX).unwrap())
        .collect();
    let mut torn = stream(2, 6, ups.clone());
    torn.truncate(torn.len() - 5);
    let mut long = stream(8, 0, clients.clone());
    long.extend([0xff, 0xff, 0xff, 0x7f, 1, 2, 3]);
    vec![
        ("ok-control".into(), stream(2, 6, ups)),
        ("ok-client".into(), stream(8, 0, clients)),
        ("bad-torn".into(), torn),
        ("bad-too-long".into(), long),
        // More than a stream's header may have, within what other frames may.
        ("bad-long-header".into(), vec![0, 0, 1, 64, 0, 0, 7]),
    ]
}

/// Seeds of `telemetry`.
#[must_use]
pub fn telemetry() -> Seeds {
    let encode = |batch: &Batch| {
        let mut out = batch.count.to_le_bytes().to_vec();
        out.extend_from_slice(&batch.data);
        out
    };
    let many = Batch {
        count: u16::MAX,
        data: vec![0; 64],
    };
    vec![
        ("ok-batch".into(), encode(&batch())),
        ("ok-empty".into(), vec![0, 0]),
        ("bad-too-many".into(), encode(&many)),
    ]
}

/// Seeds of `attach`: an orderly exchange with a reconnect, and a rude one.
#[must_use]
pub fn attach() -> Seeds {
    let orderly = [
        // Push, credit, two frames, credit of what came, the end.
        &[
            0, 0xff, 1, 2, 0, 0, 0, 0x80, 0, 0, 4, 4, 2, 1, 0, 0, 0x90, 0, 0, 1, 4,
        ][..],
        // Credit for the peer, its data, delivery, a repeat.
        &[
            9, 1, 6, 0, 0, 0, 64, 0, 1, 8, 32, 0, 9, 0, 9, 1, 6, 0, 0, 0, 16, 0, 1,
        ],
        // A new connection.
        &[3, 0, 16, 0, 2, 0, 0, 0, 0x40, 0, 0, 4],
    ];
    let mut rude = vec![2, 0xff, 0, 0, 0xff, 0, 0, 3, 0xff, 0, 0];
    put_part(&mut rude, &[6, 0xff, 0, 0, 9, 9, 9, 9]);
    vec![
        ("ok-orderly".into(), orderly.concat()),
        ("rude".into(), rude),
    ]
}
