//! Services over pretended nodes and real records: placement, moves, and what may come in between.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use hop3_common::{
    api::{ArtifactKind, MigrateRequest, NodePatch, ServiceView},
    codes::{Code, Problem},
    id::{Digest, InstanceId, ServiceName, UnixMs},
    ownership::{Epoch, Token},
    spec::{ServiceSpec, State, Tier, VolumeGrant},
    wire::{
        CallResult, Checkpoint, Down, Event, Held, Outgoing, OutgoingWhat, Output, Phase,
        ServiceFacts, ServiceReply, ServiceRequest, Target, TopicMessage, Work,
    },
};

use crate::{
    Core,
    testing::{FakeLink, FakeNode, World, eventually, push, token},
};

fn guest() -> Vec<u8> {
    let wat = r#"(module (memory (export "memory") 1)
        (func (export "hop3_request") (result i32) (i32.const 0)))"#;
    wat::parse_str(wat).unwrap()
}

fn name() -> ServiceName {
    "counter".parse().unwrap()
}

fn instance(index: u32) -> InstanceId {
    InstanceId::service(&name(), index)
}

fn spec(state: State) -> ServiceSpec {
    ServiceSpec {
        state,
        ..ServiceSpec::new("guest")
    }
}

fn facts() -> Event {
    Event::ServiceReady(ServiceFacts {
        fetch_us: 1,
        load_us: 1,
        restore_us: 1,
        seq: 0,
        schema: 1,
        state_bytes: 0,
        replicated: false,
    })
}

fn checkpoint(token: Token, seq: u64) -> Checkpoint {
    let digest = Digest::of(format!("{token} {seq}").as_bytes());
    Checkpoint {
        token,
        seq,
        at: UnixMs::now(),
        schema: 1,
        parts: vec![Output { digest, bytes: 100 }],
    }
}

/// Nodes a and b with one service on a.
struct Stage {
    world: World,
    core: Arc<Core>,
    a: FakeNode,
    b: FakeNode,
    on_a: Arc<FakeLink>,
    on_b: Arc<FakeLink>,
}

impl Stage {
    async fn new(spec: ServiceSpec) -> Self {
        let world = World::new();
        let core = world.core().await;
        push(&core, &guest(), ArtifactKind::Wasm, "guest").await;
        let a = FakeNode::join(&core, "a", Tier::Edge).await;
        let on_a = a.connect(&core, vec![]).await;
        core.apply_service(&name(), spec).await.unwrap();
        let b = FakeNode::join(&core, "b", Tier::Edge).await;
        let on_b = b.connect(&core, vec![]).await;
        Self {
            world,
            core,
            a,
            b,
            on_a,
            on_b,
        }
    }

    /// With its instance serving on a under epoch 1.
    async fn serving() -> Self {
        let stage = Self::new(spec(State::Single)).await;
        assert_eq!(stage.on_a.assigned(), [(instance(0), Epoch(1))]);
        stage.say_a(token(1, 1), facts()).await;
        stage
    }

    async fn say_a(&self, token: Token, event: Event) {
        let (core, link) = (&self.core, &*self.on_a);
        self.a.report(core, link, &instance(0), token, event).await;
    }

    async fn say_b(&self, token: Token, event: Event) {
        let (core, link) = (&self.core, &*self.on_b);
        self.b.report(core, link, &instance(0), token, event).await;
    }

    async fn migrate(&self) -> Result<(), Problem> {
        let request = MigrateRequest {
            index: None,
            to: Some("b".parse().unwrap()),
        };
        self.core.migrate_service(&name(), request).await.map(drop)
    }

    /// As far as the order to seal.
    async fn sealing(&self) {
        self.migrate().await.unwrap();
        assert!(asked(&self.on_a.take(), "checkpoint"));
        let copied = checkpoint(token(1, 1), 5);
        self.say_a(token(1, 1), Event::Checkpointed(copied)).await;
        assert!(asked(&self.on_b.take(), "fetch"));
        assert!(!asked(&self.on_a.take(), "seal"), "not before it is there");
        self.fetched().await;
        assert!(asked(&self.on_a.take(), "seal"));
    }

    /// The target has what goes ahead.
    async fn fetched(&self) {
        let b = "b".parse().unwrap();
        super::fetched(&self.core, &b, &instance(0)).await;
    }

    async fn view(&self) -> ServiceView {
        self.core.service(&name()).await.unwrap()
    }

    /// Stops the coordinator and starts it over what is stored; both nodes come back.
    async fn restart(&mut self, held_a: Vec<Held>, held_b: Vec<Held>) {
        self.core = self.world.core().await;
        self.on_a = self.a.connect(&self.core, held_a).await;
        self.on_b = self.b.connect(&self.core, held_b).await;
    }
}

fn held(epoch: u64, phase: Phase) -> Vec<Held> {
    vec![Held {
        instance: instance(0),
        token: token(epoch, 1),
        phase,
    }]
}

/// Whether exactly one of these was sent.
fn asked(sent: &[Down], what: &str) -> bool {
    let is = |down: &&Down| match down {
        Down::Checkpoint { .. } => what == "checkpoint",
        Down::Seal { .. } => what == "seal",
        Down::Fetch { .. } => what == "fetch",
        Down::Forget { .. } => what == "forget",
        Down::Stop { .. } => what == "stop",
        _ => false,
    };
    sent.iter().filter(is).count() == 1
}

/// The epoch and starting point of the only assignment among what was sent.
fn assignment(sent: Vec<Down>) -> (Epoch, Option<Checkpoint>) {
    let mut found = sent.into_iter().filter_map(|down| match down {
        Down::Assign(assignment) => match assignment.work {
            Work::Service(work) => Some((assignment.epoch, work.restore)),
            _ => None,
        },
        _ => None,
    });
    let first = found.next().unwrap();
    assert!(found.next().is_none(), "assigned twice");
    first
}

#[tokio::test]
async fn a_move_takes_the_state_along_under_a_new_epoch() {
    let stage = Stage::serving().await;
    stage.sealing().await;
    assert_eq!(stage.view().await.instances[0].status, "moving");
    let last = checkpoint(token(1, 1), 9);
    stage.say_a(token(1, 1), Event::Sealed(last.clone())).await;
    assert!(asked(&stage.on_a.take(), "forget"));
    assert_eq!(
        assignment(stage.on_b.take()),
        (Epoch(2), Some(last.clone()))
    );
    // Repeated and late words of the source change nothing.
    stage.say_a(token(1, 1), Event::Sealed(last)).await;
    stage.say_a(token(1, 1), facts()).await;
    assert!(stage.on_b.take().is_empty());
    stage.say_b(token(2, 1), facts()).await;
    let view = stage.view().await;
    let moved = view.last_move.unwrap();
    assert_eq!(
        (moved.phase.as_str(), view.status.as_str()),
        ("done", "ready")
    );
    assert_eq!((moved.copied_bytes, moved.final_bytes), (100, 100));
    assert!(moved.downtime_us.is_some());
    assert_eq!(view.instances[0].node.as_ref().unwrap().as_str(), "b");
    assert_eq!(stage.core.nodes.ledger().instances(&stage.a.name), []);
}

#[tokio::test]
async fn a_move_goes_on_from_its_record_after_a_restart() {
    let mut stage = Stage::serving().await;
    stage.migrate().await.unwrap();
    stage.restart(held(1, Phase::Running), vec![]).await;
    assert!(asked(&stage.on_a.take(), "checkpoint"), "asked again");
    let copied = checkpoint(token(1, 1), 5);
    stage.say_a(token(1, 1), Event::Checkpointed(copied)).await;
    stage.fetched().await;
    assert!(asked(&stage.on_a.take(), "seal"));
    stage.restart(held(1, Phase::Running), vec![]).await;
    assert!(asked(&stage.on_a.take(), "seal"), "told again");
    // The source sealed, and comes back before its report is there.
    stage.restart(held(1, Phase::Ended), vec![]).await;
    assert!(stage.on_a.take().is_empty(), "its report is on its way");
    let last = checkpoint(token(1, 1), 9);
    stage.say_a(token(1, 1), Event::Sealed(last.clone())).await;
    assert_eq!(
        assignment(stage.on_b.take()),
        (Epoch(2), Some(last.clone()))
    );
    stage.restart(vec![], vec![]).await;
    assert_eq!(assignment(stage.on_b.take()), (Epoch(2), Some(last)));
    stage.say_b(token(2, 1), facts()).await;
    let moved = stage.view().await.last_move.unwrap();
    assert_eq!(moved.phase, "done");
    assert!(moved.downtime_us.is_some(), "from the record");
}

#[tokio::test]
async fn an_abort_keeps_the_source_and_a_late_seal_gives_it_a_new_epoch() {
    let stage = Stage::serving().await;
    stage.sealing().await;
    let aborted = stage.core.abort_move(&name(), None).await.unwrap();
    assert_eq!(aborted.phase, "aborted");
    let view = stage.view().await;
    assert_eq!(view.instances[0].token.epoch, Epoch(1), "the same epoch");
    assert_eq!(view.instances[0].moving_to, None);
    assert_eq!(stage.core.nodes.ledger().instances(&stage.b.name), []);
    let last = checkpoint(token(1, 1), 9);
    stage.say_a(token(1, 1), Event::Sealed(last.clone())).await;
    assert_eq!(assignment(stage.on_a.take()), (Epoch(2), Some(last)));
    assert!(stage.on_b.take().is_empty());
    stage.say_a(token(2, 1), facts()).await;
    assert_eq!(stage.view().await.status, "ready");
}

#[tokio::test]
async fn a_source_that_cannot_be_sealed_goes_on_and_may_be_moved_later() {
    let stage = Stage::serving().await;
    stage.sealing().await;
    let problem = Problem::new(Code::MoveFailed, "a call never ends");
    stage.say_a(token(1, 1), Event::NotSealed(problem)).await;
    let view = stage.view().await;
    assert_eq!(
        (view.status.as_str(), view.instances[0].token.epoch),
        ("ready", Epoch(1))
    );
    assert!(view.last_move.unwrap().reason.contains("a call never ends"));
    stage.sealing().await;
}

#[tokio::test]
async fn a_target_that_goes_away_ends_the_move_and_one_that_cannot_start_sends_it_back() {
    let stage = Stage::serving().await;
    stage.migrate().await.unwrap();
    stage.core.remove_node(&stage.b.name).await.unwrap();
    let view = stage.view().await;
    assert_eq!(view.last_move.unwrap().phase, "aborted");
    assert_eq!(view.instances[0].status, "ready");

    let stage = Stage::serving().await;
    stage.sealing().await;
    let last = checkpoint(token(1, 1), 9);
    stage.say_a(token(1, 1), Event::Sealed(last.clone())).await;
    stage.on_a.take();
    stage.on_b.take();
    let broken = || Event::Failed(Problem::new(Code::Internal, "no memory"));
    let later = || UnixMs::now().plus(120_000);
    stage.say_b(token(2, 1), broken()).await;
    eventually_retries(&stage, later()).await;
    // There once more, then elsewhere, from the same checkpoint.
    assert_eq!(
        assignment(stage.on_b.take()),
        (Epoch(3), Some(last.clone()))
    );
    stage.say_b(token(3, 1), broken()).await;
    eventually_retries(&stage, later()).await;
    assert_eq!(assignment(stage.on_a.take()), (Epoch(4), Some(last)));
    stage.say_a(token(4, 1), facts()).await;
    let moved = stage.view().await.last_move.unwrap();
    assert_eq!(moved.phase, "aborted");
}

/// Lets the time of a retry come.
async fn eventually_retries(stage: &Stage, _: UnixMs) {
    let id = instance(0);
    if let Some(serving) = stage.core.services.live().get_mut(&id) {
        serving.retry_at = serving.retry_at.map(|_| UnixMs(0));
    }
    stage.core.sweep_once(UnixMs::now()).await;
}

#[tokio::test]
async fn state_waits_for_its_node_and_a_removed_node_gives_up_what_it_had() {
    let stage = Stage::serving().await;
    let kept = checkpoint(token(1, 1), 7);
    stage
        .say_a(token(1, 1), Event::Checkpointed(kept.clone()))
        .await;
    stage.on_a.drop_session(&stage.core).await;
    stage.core.sweep_once(UnixMs::now().plus(3_600_000)).await;
    let view = stage.view().await;
    assert_eq!(view.instances[0].status, "away");
    assert!(view.instances[0].reason.contains("7 changes"), "{view:?}");
    assert!(stage.on_b.take().is_empty(), "nobody takes it over");
    stage.core.remove_node(&stage.a.name).await.unwrap();
    assert_eq!(assignment(stage.on_b.take()), (Epoch(2), Some(kept)));
    let told = stage.core.explain("service", "counter").await.unwrap();
    let replaced = told.decisions.iter().find(|d| d.action == "replace");
    assert!(replaced.unwrap().reason.contains("is lost"), "{told:?}");
}

#[tokio::test]
async fn replicas_follow_their_number_and_lost_nodes() {
    let stage = Stage::new(spec(State::None)).await;
    assert_eq!(stage.on_a.assigned(), [(instance(0), Epoch(1))]);
    stage.core.scale_service(&name(), 2).await.unwrap();
    assert_eq!(stage.on_b.assigned(), [(instance(1), Epoch(1))]);
    stage.on_a.drop_session(&stage.core).await;
    stage.core.sweep_once(UnixMs::now().plus(31_000)).await;
    assert_eq!(stage.on_b.assigned(), [(instance(0), Epoch(2))]);
    stage.core.scale_service(&name(), 0).await.unwrap();
    assert_eq!(stage.view().await.instances, []);
}

#[tokio::test]
async fn a_new_revision_is_taken_in_place_with_the_state() {
    let stage = Stage::serving().await;
    let same = stage.core.apply_service(&name(), spec(State::Single)).await;
    assert_eq!(same.unwrap().revision, 1);
    let mut changed = spec(State::Single);
    changed.env.insert("MODE".into(), "new".into());
    let view = stage.core.apply_service(&name(), changed.clone()).await;
    assert_eq!(view.unwrap().revision, 2);
    assert_eq!(assignment(stage.on_a.take()).0, Epoch(2));
    assert!(stage.on_b.take().is_empty());
    // It has state there: it is tried again there, however often it fails.
    let broken = || Event::Failed(Problem::new(Code::Internal, "no"));
    for epoch in 2..5 {
        stage.say_a(token(epoch, 1), broken()).await;
        eventually_retries(&stage, UnixMs(0)).await;
        assert_eq!(assignment(stage.on_a.take()).0, Epoch(epoch + 1));
    }
    let other = spec(State::None);
    let refused = stage.core.apply_service(&name(), other).await.unwrap_err();
    assert_eq!(refused.code, Code::StateChange);
    let refused = stage.core.scale_service(&name(), 3).await.unwrap_err();
    assert_eq!(refused.code, Code::CannotScale);
}

#[tokio::test]
async fn a_drain_moves_state_and_leaves_what_is_pinned() {
    let stage = Stage::serving().await;
    let drain = NodePatch {
        draining: Some(true),
        ..NodePatch::default()
    };
    stage.core.patch_node(&stage.a.name, drain).await.unwrap();
    assert!(asked(&stage.on_a.take(), "checkpoint"));
    assert_eq!(stage.view().await.instances[0].status, "moving");

    let mut pinned = spec(State::Single);
    pinned.volumes.push(VolumeGrant {
        name: "data".into(),
        path: "/data".into(),
        writable: true,
    });
    let world = World::new();
    let core = world.core().await;
    push(&core, &guest(), ArtifactKind::Wasm, "guest").await;
    let mut a = FakeNode::join(&core, "a", Tier::Edge).await;
    a.facts.volumes.push("data".into());
    let link = a.connect(&core, vec![]).await;
    core.apply_service(&name(), pinned).await.unwrap();
    a.report(&core, &link, &instance(0), token(1, 1), facts())
        .await;
    let to = MigrateRequest {
        index: None,
        to: None,
    };
    let refused = core.migrate_service(&name(), to).await.unwrap_err();
    assert_eq!(refused.code, Code::Pinned);
    let drain = NodePatch {
        draining: Some(true),
        ..NodePatch::default()
    };
    core.patch_node(&a.name, drain).await.unwrap();
    let told = core.explain("node", "a").await.unwrap();
    assert!(
        told.facts
            .iter()
            .any(|fact| fact.contains("stays: it has state")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_removed_service_leaves_nothing_to_a_new_one_of_its_name() {
    let mut stage = Stage::serving().await;
    let in_use = stage.core.remove_artifact("guest").await.unwrap_err();
    assert_eq!(in_use.code, Code::ArtifactInUse);
    let mut caller = spec(State::None);
    caller.calls.push(name());
    let other: ServiceName = "caller".parse().unwrap();
    stage.core.apply_service(&other, caller).await.unwrap();
    let in_use = stage.core.remove_service(&name()).await.unwrap_err();
    assert_eq!(in_use.code, Code::InUse);
    assert!(in_use.message.contains("`caller`"), "{in_use}");
    stage.core.remove_service(&other).await.unwrap();
    stage.on_a.drop_session(&stage.core).await;
    stage.on_b.drop_session(&stage.core).await;
    stage.core.remove_service(&name()).await.unwrap();
    let view = stage.core.apply_service(&name(), spec(State::Single)).await;
    assert_eq!(view.unwrap().instances[0].status, "pending");
    // The old one's node comes back with what it had: that goes before the new one comes.
    stage.on_a = stage.a.connect(&stage.core, held(1, Phase::Running)).await;
    let sent = stage.on_a.take();
    assert!(asked(&sent, "stop"), "{sent:?}");
    stage.say_a(token(1, 1), Event::Stopped).await;
    let sent = stage.on_a.take();
    assert!(asked(&sent, "forget"), "{sent:?}");
    assert_eq!(assignment(sent), (Epoch(2), None));
}

fn request(body: &'static [u8]) -> ServiceRequest {
    ServiceRequest {
        method: "POST".into(),
        path: "/add".into(),
        headers: Vec::new(),
        body: Bytes::from_static(body),
        more: false,
        idempotency_key: None,
        from: None,
    }
}

#[tokio::test]
async fn requests_go_to_the_owner_and_what_a_stale_run_asks_is_refused() {
    let stage = Stage::serving().await;
    let reply = ServiceReply {
        status: 201,
        headers: Vec::new(),
        body: Bytes::from_static(b"1"),
        stream: None,
    };
    let answers = [
        Err(Problem::new(Code::Busy, "full")),
        Ok(CallResult::Service(reply.clone())),
        Err(Problem::new(Code::OutcomeUnknown, "lost")),
    ];
    stage.on_a.answers.lock().unwrap().extend(answers);
    let ask = || async {
        let asked = request(b"1");
        stage
            .core
            .gateway()
            .deliver(&name(), None, &asked, None)
            .await
    };
    assert_eq!(
        ask().await.unwrap().reply,
        reply,
        "a full one is asked again"
    );
    assert_eq!(ask().await.unwrap_err().code, Code::OutcomeUnknown);
    let calls = stage.on_a.calls.lock().unwrap().len();
    assert_eq!(calls, 3, "what may have happened is not repeated");

    let from = |token| Some((instance(0), token));
    let publish = |token| Outgoing {
        id: 1,
        deadline_ms: 1000,
        from: from(token),
        what: OutgoingWhat::Publish(TopicMessage {
            topic: "plant/x".into(),
            payload: Bytes::new(),
            from: None,
        }),
    };
    let node = &stage.a.name;
    let ask = |asked| super::outgoing(&stage.core, node, asked);
    assert_eq!(
        ask(publish(token(0, 9))).await.unwrap_err().code,
        Code::NotHere
    );
    assert_eq!(
        ask(publish(token(1, 1))).await.unwrap_err().code,
        Code::Forbidden
    );
    let mut granted = spec(State::Single);
    granted.publish.push("plant/*".parse().unwrap());
    stage.core.apply_service(&name(), granted).await.unwrap();
    let mut reads = spec(State::Keyed);
    reads.subscribe.push("plant/*".parse().unwrap());
    reads.placement.node = Some(stage.b.name.clone());
    let reader: ServiceName = "reader".parse().unwrap();
    stage.core.apply_service(&reader, reads).await.unwrap();
    for index in 0..4 {
        let id = InstanceId::service(&reader, index);
        let (core, link) = (&stage.core, &*stage.on_b);
        stage.b.report(core, link, &id, token(1, 1), facts()).await;
    }
    stage.say_a(token(2, 1), facts()).await;
    ask(publish(token(2, 1))).await.unwrap();
    let got = eventually("the message comes", || {
        let calls = stage.on_b.calls.lock().unwrap();
        calls.iter().find_map(|call| match call {
            Target::Message { instance, .. } => Some(instance.clone()),
            _ => None,
        })
    });
    let shard = hop3_common::spec::service::shard_of(b"x", 4);
    assert_eq!(got.await, InstanceId::service(&reader, shard));
}
