//! Artifacts, models, invocations and enrolment over pretended nodes and real records.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use hop3_common::{
    api::{ArtifactKind, JoinTokenRequest, ModelPush, TaskRequest},
    codes::{Code, Problem},
    id::{Digest, InstanceId, ModelName, UnixMs},
    identity::{
        JoinToken, NodeKey,
        enroll::{EnrollReply, EnrollRequest, Join},
        renew,
    },
    ownership::Epoch,
    spec::{ModelSpec, TaskSpec, Tier},
    tensor::Tensor,
    wire::{CallResult, Down, Event, Held, ModelFacts, PROTOCOL, Phase, Target},
};
use tokio::io::AsyncReadExt as _;

use crate::{
    Core,
    core::InvokeTarget,
    enroll, registry,
    testing::{FakeLink, FakeNode, World, module, onnx, push, token},
};

async fn refused(core: &Core, bytes: &[u8], kind: ArtifactKind) -> Problem {
    let mut upload = core
        .artifact_writer(Digest::of(bytes), kind, None, None)
        .await
        .unwrap();
    match upload.append(Bytes::copy_from_slice(bytes)).await {
        Err(problem) => problem,
        Ok(()) => upload.finish().await.unwrap_err(),
    }
}

#[tokio::test]
async fn uploads_are_checked_and_refusals_leave_nothing() {
    let world = World::new();
    let core = world.core().await;
    let reactor = wat::parse_str(r#"(module (func (export "_initialize")))"#).unwrap();
    let cases: [(&[u8], ArtifactKind, Code); 5] = [
        (b"\x7fELF", ArtifactKind::Wasm, Code::NotWasm),
        (&module()[..12], ArtifactKind::Wasm, Code::NotWasm),
        (&reactor, ArtifactKind::Wasm, Code::WasmExport),
        (b"PK\x03\x04", ArtifactKind::Onnx, Code::NotOnnx),
        (&vec![0; 2 << 20], ArtifactKind::Data, Code::TooLarge),
    ];
    for (bytes, kind, code) in cases {
        assert_eq!(refused(&core, bytes, kind).await.code, code);
        assert!(!core.blobs.contains(&Digest::of(bytes)), "{code}");
    }
    let other = Digest::of(b"other");
    let mut upload = core
        .artifact_writer(other, ArtifactKind::Data, None, None)
        .await
        .unwrap();
    upload.append(Bytes::from_static(b"bytes")).await.unwrap();
    assert_eq!(
        upload.finish().await.unwrap_err().code,
        Code::DigestMismatch
    );
    assert!(core.artifacts().await.unwrap().is_empty());
    let bad_name = core
        .artifact_writer(other, ArtifactKind::Data, Some("../x y".into()), None)
        .await;
    assert_eq!(bad_name.err().unwrap().code, Code::InvalidField);
    let too_large = core
        .artifact_writer(other, ArtifactKind::Data, None, Some(1 << 40))
        .await;
    assert_eq!(too_large.err().unwrap().code, Code::TooLarge);
}

#[tokio::test]
async fn artifacts_are_found_read_renamed_and_kept_while_used() {
    let world = World::new();
    let core = world.core().await;
    let digest = push(&core, &module(), ArtifactKind::Wasm, "m").await;
    for reference in [
        "m",
        &digest.to_string(),
        &digest.hex()[..6],
        &digest.hex().to_uppercase()[..8],
    ] {
        assert_eq!(
            core.artifact(reference).await.unwrap().digest,
            digest,
            "{reference}"
        );
    }
    assert_eq!(
        core.artifact(&digest.hex()[..5]).await.unwrap_err().code,
        Code::ArtifactUnknown
    );
    let mut read = core.read_artifact(&digest, 4).await.unwrap();
    let mut bytes = Vec::new();
    read.reader.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(
        (read.size, &bytes[..]),
        (module().len() as u64, &module()[4..])
    );
    let spec = TaskSpec::new("m");
    let task = core
        .submit_task(TaskRequest { name: None, spec })
        .await
        .unwrap();
    let in_use = core.remove_artifact("m").await.unwrap_err();
    assert_eq!(in_use.code, Code::ArtifactInUse);
    assert!(in_use.message.contains(task.id.as_str()), "{in_use}");
    core.cancel_task(&task.id).await.unwrap();
    // The newest push of a name has it.
    let data = push(&core, b"data", ArtifactKind::Data, "m").await;
    assert_eq!(core.artifact("m").await.unwrap().digest, data);
    assert!(core.artifact(&digest.hex()).await.unwrap().names.is_empty());
    let core = world.core().await;
    assert_eq!(core.artifact("m").await.unwrap().digest, data);
    core.remove_artifact(&digest.hex()).await.unwrap();
    assert_eq!(core.artifacts().await.unwrap().len(), 1);
}

fn name() -> ModelName {
    "digits".parse().unwrap()
}

async fn pushed(core: &Core) -> u32 {
    let artifact = push(core, &onnx(), ArtifactKind::Onnx, "o").await;
    let version = core
        .push_model(
            &name(),
            ModelPush {
                artifact,
                inputs: Vec::new(),
            },
        )
        .await;
    version.unwrap().version
}

async fn ready(core: &Core, node: &FakeNode, link: &FakeLink, replica: u32, epoch: u64) {
    let instance = InstanceId::model(&name(), replica);
    let facts = ModelFacts {
        inputs: Vec::new(),
        outputs: Vec::new(),
        load_us: 1,
    };
    node.report(
        core,
        link,
        &instance,
        token(epoch, 1),
        Event::ModelReady(facts),
    )
    .await;
}

fn x() -> Vec<(String, Tensor)> {
    vec![("x".into(), Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap())]
}

fn inferred() -> Result<CallResult, Problem> {
    let outputs = vec![Tensor::from_f32(vec![2], &[3.0, 4.0]).unwrap()];
    Ok(CallResult::Model {
        outputs,
        infer_us: 9,
    })
}

#[tokio::test]
async fn a_model_is_admitted_deployed_and_asked() {
    let world = World::new();
    let core = world.core().await;
    let artifact = push(&core, &onnx(), ArtifactKind::Onnx, "o").await;
    let nobody = core
        .push_model(
            &name(),
            ModelPush {
                artifact,
                inputs: Vec::new(),
            },
        )
        .await;
    let nobody = nobody.unwrap_err();
    assert_eq!(nobody.code, Code::Unavailable);
    assert!(nobody.message.contains("connect a node"), "{nobody}");
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let unsupported = Problem::new(Code::OnnxUnsupported, "operator Foo");
    *link.checked.lock().unwrap() = Some(Err(unsupported.clone()));
    let told = core
        .push_model(
            &name(),
            ModelPush {
                artifact,
                inputs: Vec::new(),
            },
        )
        .await;
    assert_eq!(told.unwrap_err(), unsupported);
    assert_eq!(
        core.model(&name()).await.unwrap_err().code,
        Code::ModelUnknown
    );
    *link.checked.lock().unwrap() = None;
    assert_eq!(pushed(&core).await, 1);
    let undeployed = core.infer(&name(), x()).await.unwrap_err();
    assert_eq!(undeployed.code, Code::ModelNotReady);
    let view = core
        .deploy_model(&name(), ModelSpec::default())
        .await
        .unwrap();
    assert_eq!(
        (view.deployed, view.replicas[0].status.as_str()),
        (Some(1), "starting")
    );
    let instance = InstanceId::model(&name(), 0);
    assert_eq!(link.assigned(), [(instance.clone(), Epoch(1))]);
    ready(&core, &node, &link, 0, 1).await;
    assert_eq!(
        core.model(&name()).await.unwrap().replicas[0].status,
        "ready"
    );
    link.answers.lock().unwrap().push_back(inferred());
    let inference = core.infer(&name(), x()).await.unwrap();
    assert_eq!(
        (inference.version, inference.outputs[0].0.as_str()),
        (1, "y")
    );
    assert!(matches!(
        link.calls.lock().unwrap().pop(),
        Some(Target::Model { .. })
    ));
    let wrong = vec![("z".to_owned(), x()[0].1.clone())];
    assert_eq!(
        core.infer(&name(), wrong).await.unwrap_err().code,
        Code::TensorShape
    );
    let used = core.remove_artifact("o").await.unwrap_err();
    assert!(used.message.contains("model/digits version 1"), "{used}");
    core.remove_model(&name()).await.unwrap();
    assert!(matches!(link.take().last(), Some(Down::Stop { .. })));
    assert_eq!(
        core.node(&node.name).await.unwrap().allocated.memory_bytes,
        0
    );
    core.remove_artifact("o").await.unwrap();
}

#[tokio::test]
async fn replicas_spread_fail_over_roll_and_come_back() {
    let world = World::new();
    let core = world.core().await;
    let (a, b) = (
        FakeNode::join(&core, "a", Tier::Edge).await,
        FakeNode::join(&core, "b", Tier::Edge).await,
    );
    let link_a = a.connect(&core, Vec::new()).await;
    let link_b = b.connect(&core, Vec::new()).await;
    pushed(&core).await;
    let spec = ModelSpec {
        replicas: 3,
        ..ModelSpec::default()
    };
    let view = core.deploy_model(&name(), spec).await.unwrap();
    assert_eq!(view.replicas.iter().filter(|r| r.node.is_some()).count(), 2);
    assert_eq!(view.replicas[2].status, "pending");
    assert!(
        view.replicas[2].reason.contains("avoid"),
        "{}",
        view.replicas[2].reason
    );
    let spec = ModelSpec {
        replicas: 2,
        ..ModelSpec::default()
    };
    core.deploy_model(&name(), spec).await.unwrap();
    let epochs = |view: &hop3_common::api::ModelView| -> Vec<u64> {
        view.replicas.iter().map(|r| r.epoch.0).collect()
    };
    // The deployment changed while nothing served: both are renewed, one after the other.
    let view = core.model(&name()).await.unwrap();
    let on_a = u32::from(view.replicas[0].node != Some(a.name.clone()));
    for _ in 0..3 {
        for (n, e) in epochs(&core.model(&name()).await.unwrap())
            .into_iter()
            .enumerate()
        {
            let n = n as u32;
            let (node, link) = if n == on_a {
                (&a, &link_a)
            } else {
                (&b, &link_b)
            };
            ready(&core, node, link, n, e).await;
        }
    }
    let view = core.model(&name()).await.unwrap();
    assert!(
        view.replicas.iter().all(|r| r.status == "ready"),
        "{view:?}"
    );
    let gone = Err(Problem::new(Code::NodeUnreachable, "gone"));
    for link in [&link_a, &link_b] {
        link.answers.lock().unwrap().extend([gone.clone()]);
    }
    let both = core.infer(&name(), x()).await.unwrap_err();
    assert_eq!(both.code, Code::NodeUnreachable);
    link_a.answers.lock().unwrap().extend([gone.clone(), gone]);
    link_b
        .answers
        .lock()
        .unwrap()
        .extend([inferred(), inferred()]);
    for _ in 0..2 {
        assert_eq!(core.infer(&name(), x()).await.unwrap().node, b.name);
    }

    // After a restart the inventories say what serves; nothing is started anew.
    let epochs_before = epochs(&core.model(&name()).await.unwrap());
    let core = world.core().await;
    for (node, n) in [(&a, on_a), (&b, 1 - on_a)] {
        let instance = InstanceId::model(&name(), n);
        let token = token(epochs_before[n as usize], 1);
        let held = vec![Held {
            instance,
            token,
            phase: Phase::Running,
        }];
        let link = node.connect(&core, held).await;
        assert_eq!(link.take(), [], "it runs as wanted");
    }
    let view = core.model(&name()).await.unwrap();
    assert!(
        view.replicas.iter().all(|r| r.status == "ready"),
        "{view:?}"
    );
    assert_eq!(epochs(&view), epochs_before);
}

#[tokio::test]
async fn rollback_goes_to_the_version_before_and_a_failed_replica_is_tried_again() {
    let world = World::new();
    let core = world.core().await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    pushed(&core).await;
    core.deploy_model(&name(), ModelSpec::default())
        .await
        .unwrap();
    assert_eq!(
        core.rollback_model(&name()).await.unwrap_err().code,
        Code::NoRollback
    );
    ready(&core, &node, &link, 0, 1).await;
    assert_eq!(pushed(&core).await, 2);
    core.deploy_model(&name(), ModelSpec::default())
        .await
        .unwrap();
    ready(&core, &node, &link, 0, 2).await;
    let view = core.rollback_model(&name()).await.unwrap();
    assert_eq!((view.deployed, view.previous), (Some(1), Some(2)));
    assert_eq!(
        (view.replicas[0].version, view.replicas[0].epoch),
        (1, Epoch(3))
    );
    link.take();
    let instance = InstanceId::model(&name(), 0);
    let failed = Event::Failed(Problem::new(Code::ModelMemory, "too small"));
    node.report(&core, &link, &instance, token(3, 1), failed)
        .await;
    let view = core.model(&name()).await.unwrap();
    assert_eq!(view.replicas[0].status, "failed");
    assert!(
        view.replicas[0].reason.contains("too small"),
        "{}",
        view.replicas[0].reason
    );
    core.sweep_once(UnixMs::now()).await;
    assert_eq!(link.assigned(), [], "not before its time");
    let unknown = ModelSpec {
        version: Some(9),
        ..ModelSpec::default()
    };
    let refused = core.deploy_model(&name(), unknown).await.unwrap_err();
    assert_eq!(refused.code, Code::ModelVersionUnknown);
    let view = core.undeploy_model(&name()).await.unwrap();
    assert_eq!((view.deployed, view.replicas.len()), (None, 0));
}

#[tokio::test]
async fn a_call_goes_to_a_node_that_fits_by_a_recorded_route() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let target = InvokeTarget {
        module: "m",
        tier: None,
        node: None,
        memory: None,
        timeout_ms: None,
    };
    let nobody = core.invoke(target, Bytes::new()).await.unwrap_err();
    assert_eq!(nobody.code, Code::Unplaceable);
    let (a, b) = (
        FakeNode::join(&core, "a", Tier::Edge).await,
        FakeNode::join(&core, "b", Tier::Iot).await,
    );
    let (link_a, link_b) = (
        a.connect(&core, vec![]).await,
        b.connect(&core, vec![]).await,
    );
    for _ in 0..6 {
        assert_eq!(
            core.invoke(target, Bytes::new()).await.unwrap().output,
            "out"
        );
    }
    let counts = [&link_a, &link_b].map(|link| link.calls.lock().unwrap().len());
    assert_eq!(counts, [3, 3], "equals take turns");
    let routes = core.decisions(Some("module"), 50).await.unwrap();
    assert_eq!(routes.len(), 1, "one decision for all of them");
    let iot = InvokeTarget {
        tier: Some(Tier::Iot),
        ..target
    };
    assert_eq!(core.invoke(iot, Bytes::new()).await.unwrap().node, b.name);
    let busy = || Err(Problem::new(Code::Busy, "full"));
    link_a.answers.lock().unwrap().push_back(busy());
    link_b.answers.lock().unwrap().push_back(busy());
    for _ in 0..2 {
        core.invoke(target, Bytes::new()).await.unwrap();
    }
    link_a.drop_session(&core).await;
    for _ in 0..3 {
        assert_eq!(
            core.invoke(target, Bytes::new()).await.unwrap().node,
            b.name
        );
    }
    let lost = Problem::new(Code::NodeUnreachable, "lost");
    link_b.answers.lock().unwrap().push_back(Err(lost.clone()));
    assert_eq!(
        core.invoke(target, Bytes::new()).await.unwrap_err(),
        lost,
        "said, not repeated"
    );
    let no_node = "c".parse().unwrap();
    let unknown = InvokeTarget {
        node: Some(&no_node),
        ..target
    };
    assert_eq!(
        core.invoke(unknown, Bytes::new()).await.unwrap_err().code,
        Code::NodeUnknown
    );
}

fn join_with(token: &JoinToken, key: &NodeKey) -> EnrollRequest {
    EnrollRequest::Join(Join {
        protocol: PROTOCOL,
        token: token.id(),
        secret: token.secret().clone(),
        csr_der: key.csr().unwrap(),
        hostname: "Pi.local".into(),
        facts: Default::default(),
    })
}

fn code(reply: EnrollReply) -> Result<String, Code> {
    match reply {
        EnrollReply::Granted(granted) => Ok(granted.node.to_string()),
        EnrollReply::Refused(problem) => Err(problem.code),
    }
}

#[tokio::test]
async fn a_join_token_lets_one_key_in_also_over_a_restart() {
    let world = World::new();
    let core = world.core().await;
    let request = |ttl: Option<u64>| JoinTokenRequest {
        tier: Tier::Iot,
        labels: Default::default(),
        node: None,
        ttl: ttl.map(hop3_common::spec::Millis),
    };
    let created = core.create_join_token(request(None)).await.unwrap();
    assert!(created.command.contains(&created.token) && created.command.contains("--run"));
    let token: JoinToken = created.token.parse().unwrap();
    let (key, thief) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let knock = async |core: &Arc<Core>, key: &NodeKey| {
        code(enroll::enroll(core, join_with(&token, key), &[0; 32]).await)
    };
    assert_eq!(knock(&core, &key).await, Ok("pi".into()));
    let core = world.core().await;
    assert_eq!(
        knock(&core, &key).await,
        Ok("pi".into()),
        "its reply may have been lost"
    );
    assert_eq!(knock(&core, &thief).await, Err(Code::TokenUsed));
    let second = core.create_join_token(request(None)).await.unwrap();
    let token2: JoinToken = second.token.parse().unwrap();
    let other = enroll::enroll(&core, join_with(&token2, &thief), &[0; 32]).await;
    assert_eq!(
        code(other),
        Ok("pi-2".into()),
        "a taken host name gets a number"
    );
    let third = core.create_join_token(request(None)).await.unwrap();
    core.revoke_join_token(&third.id).await.unwrap();
    let token3: JoinToken = third.token.parse().unwrap();
    let late = enroll::enroll(&core, join_with(&token3, &key), &[0; 32]).await;
    assert_eq!(code(late), Err(Code::TokenRevoked));
    let statuses: Vec<_> = core
        .join_tokens()
        .await
        .unwrap()
        .into_iter()
        .map(|t| t.status)
        .collect();
    assert_eq!(statuses.iter().filter(|s| *s == "used").count(), 2);
    assert_eq!(
        core.create_join_token(request(Some(0)))
            .await
            .unwrap_err()
            .code,
        Code::InvalidField
    );
    assert_eq!(
        core.revoke_join_token("x").await.unwrap_err().code,
        Code::NotFound
    );
}

#[tokio::test]
async fn renewal_needs_a_key_that_is_not_superseded_or_revoked() {
    let world = World::new();
    let core = world.core().await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let (exporter, other) = ([1; 32], [2; 32]);
    let record = core
        .ca
        .issue_node(&node.name, &node.key.public_key(), UnixMs::now(), 600)
        .unwrap();
    let old_cert = record.der.to_vec();
    let ask = |with: &NodeKey, new: &NodeKey| {
        EnrollRequest::Renew(
            renew::request(node.name.clone(), with, &old_cert, new, &exporter).unwrap(),
        )
    };
    let (new, newer) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let stolen = enroll::enroll(&core, ask(&node.key, &new), &other).await;
    assert_eq!(
        code(stolen),
        Err(Code::RenewalRefused),
        "of another connection"
    );
    // Replies may be lost, again and again: the old key goes on until a new one was shown.
    for key in [&new, &newer, &newer] {
        let reply = enroll::enroll(&core, ask(&node.key, key), &exporter).await;
        assert_eq!(code(reply), Ok("n".into()));
    }
    let shown = core
        .ca
        .issue_node(&node.name, &newer.public_key(), UnixMs::now(), 600)
        .unwrap();
    let link = FakeLink::new(&node.name);
    registry::connected(&core, &shown.identity, node.hello(), link.clone())
        .await
        .unwrap();
    let late = enroll::enroll(&core, ask(&node.key, &new), &exporter).await;
    assert_eq!(code(late), Err(Code::RenewalRefused), "superseded");
    let next = NodeKey::generate().unwrap();
    enroll::renew_live(&core, &node.name, &next.csr().unwrap())
        .await
        .unwrap();
    let bad = enroll::renew_live(&core, &node.name, b"no csr")
        .await
        .unwrap_err();
    assert_eq!(bad.code, Code::CsrInvalid);
    core.remove_node(&node.name).await.unwrap();
    let out = enroll::enroll(&core, ask(&node.key, &new), &exporter).await;
    assert!(matches!(
        code(out),
        Err(Code::NodeRevoked | Code::NodeUnknown)
    ));
}
