//! Tasks from submission to result, over pretended nodes and real records.
#![allow(clippy::unwrap_used)]

use hop3_common::{
    api::{ArtifactKind, NodePatch, NodeStatus, TaskPhase, TaskRequest, TaskView},
    codes::Code,
    id::{InstanceId, UnixMs},
    ownership::Epoch,
    spec::{Retry, Stdin, TaskSpec, Tier},
    wire::{Down, End, Event, Held, Phase, attach::Frame, close},
};
use tokio::io::AsyncReadExt as _;

use crate::{
    Core,
    core::TaskFilter,
    registry,
    testing::{FakeNode, World, eventually, exited, module, push, token},
};

const STARTED: Event = Event::Started {
    fetch_us: 3,
    load_us: 4,
};

fn request(spec: TaskSpec) -> TaskRequest {
    TaskRequest { name: None, spec }
}

async fn submit(core: &Core, change: impl FnOnce(&mut TaskSpec)) -> TaskView {
    let mut spec = TaskSpec::new("m");
    change(&mut spec);
    core.submit_task(request(spec)).await.unwrap()
}

async fn phase(core: &Core, task: &TaskView) -> TaskPhase {
    core.task(task.id.as_str()).await.unwrap().phase
}

/// A time at which every node that is away counts as lost.
fn later() -> UnixMs {
    UnixMs::now().plus(60_000)
}

#[tokio::test]
async fn a_task_is_placed_run_and_its_result_survives_a_restart() {
    let world = World::on_disk();
    let core = world.core().await;
    let digest = push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "edge-1", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let task = submit(&core, |_| {}).await;
    assert_eq!((task.phase, task.module), (TaskPhase::Assigned, digest));
    let instance = InstanceId::task(&task.id);
    assert_eq!(link.assigned(), [(instance.clone(), Epoch(1))]);
    node.report(&core, &link, &instance, token(1, 1), STARTED)
        .await;
    assert_eq!(phase(&core, &task).await, TaskPhase::Running);
    let seq = node
        .report(&core, &link, &instance, token(1, 1), exited(0))
        .await;
    let done = core.task(task.id.as_str()).await.unwrap();
    assert_eq!(
        (done.phase, done.prepare_us),
        (TaskPhase::Succeeded, Some((3, 4)))
    );
    assert!(matches!(
        link.take()[..],
        [Down::Forget {
            epoch: Epoch(1),
            ..
        }]
    ));
    assert_eq!(core.node(&node.name).await.unwrap().allocated.tasks, 0);
    drop((link, core));

    let core = world.core().await;
    assert_eq!(core.task(task.id.as_str()).await.unwrap(), done);
    assert_eq!(core.artifact("m").await.unwrap().digest, digest);
    assert_eq!(
        core.node(&node.name).await.unwrap().status,
        NodeStatus::Disconnected
    );
    let subject = format!("task/{}", task.id);
    let decisions = core.decisions(Some(&subject), 10).await.unwrap();
    assert_eq!(decisions[0].action, "place");
    assert_eq!(decisions[0].node.as_deref(), Some("edge-1"));
    assert!(decisions[0].placement.is_some());
    let link = crate::testing::FakeLink::new(&node.name);
    let hello = node.hello();
    let welcome = registry::connected(&core, &node.identity, hello, link)
        .await
        .unwrap();
    assert_eq!(
        welcome.acked_seq, seq,
        "the cursor came back with the result"
    );
}

#[tokio::test]
async fn what_runs_is_adopted_after_a_restart_and_what_is_missing_is_sent() {
    let world = World::on_disk();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let (kept, lost) = (submit(&core, |_| {}).await, submit(&core, |_| {}).await);
    drop((link, core));

    let core = world.core().await;
    let stray: InstanceId = "task/tstray".parse().unwrap();
    let held = |instance, phase| Held {
        instance,
        token: token(1, 1),
        phase,
    };
    let inventory = vec![
        held(InstanceId::task(&kept.id), Phase::Running),
        held(stray.clone(), Phase::Running),
    ];
    let link = node.connect(&core, inventory).await;
    let sent = link.take();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(matches!(&sent[0], Down::Stop { instance, .. } if *instance == stray));
    let missing = InstanceId::task(&lost.id);
    assert!(matches!(&sent[1], Down::Assign(a) if a.instance == missing && a.epoch == Epoch(1)));
    assert_eq!(core.node(&node.name).await.unwrap().allocated.tasks, 2);
}

#[tokio::test]
async fn a_task_without_a_node_says_why_and_is_placed_when_one_comes() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let task = submit(&core, |_| {}).await;
    assert_eq!(task.phase, TaskPhase::Pending);
    assert!(
        task.reason.contains("there are no nodes"),
        "{}",
        task.reason
    );
    let edge = FakeNode::join(&core, "edge-1", Tier::Edge).await;
    let cloudy = submit(&core, |spec| spec.placement.tier = Some(Tier::Cloud)).await;
    let link = edge.connect(&core, Vec::new()).await;
    assert_eq!(phase(&core, &task).await, TaskPhase::Assigned);
    assert_eq!(link.assigned().len(), 1);
    let why = core.task(cloudy.id.as_str()).await.unwrap().reason;
    assert!(why.contains("removed by tier (want cloud)"), "{why}");
    let explained = core.explain("task", cloudy.id.as_str()).await.unwrap();
    assert!(explained.summary.contains("pending") && !explained.decisions.is_empty());
    let cloud = FakeNode::join(&core, "cloud-1", Tier::Cloud).await;
    cloud.connect(&core, Vec::new()).await;
    assert_eq!(
        core.task(cloudy.id.as_str()).await.unwrap().node,
        Some(cloud.name)
    );
}

#[tokio::test]
async fn slots_are_promised_once_and_given_back() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Iot).await;
    let link = node.connect(&core, Vec::new()).await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(submit(&core, |_| {}).await);
    }
    assert_eq!(tasks[2].phase, TaskPhase::Pending);
    assert!(tasks[2].reason.contains("slots"), "{}", tasks[2].reason);
    let first = InstanceId::task(&tasks[0].id);
    node.report(&core, &link, &first, token(1, 1), exited(7))
        .await;
    assert_eq!(phase(&core, &tasks[0]).await, TaskPhase::Failed);
    assert_eq!(phase(&core, &tasks[2]).await, TaskPhase::Assigned);
}

#[tokio::test]
async fn a_lost_node_is_handled_as_declared_and_its_late_words_are_ignored() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let a = FakeNode::join(&core, "a", Tier::Edge).await;
    let link_a = a.connect(&core, Vec::new()).await;
    let moved = submit(&core, |spec| spec.retry = Retry::OnNodeLoss).await;
    let stays = submit(&core, |_| {}).await;
    let b = FakeNode::join(&core, "b", Tier::Edge).await;
    let link_b = b.connect(&core, Vec::new()).await;
    link_a.drop_session(&core).await;
    core.sweep_once(UnixMs::now()).await;
    assert_eq!(
        core.task(moved.id.as_str()).await.unwrap().node,
        Some(a.name.clone())
    );
    core.sweep_once(later()).await;
    let view = core.task(moved.id.as_str()).await.unwrap();
    assert_eq!(
        (view.node, view.token.epoch),
        (Some(b.name.clone()), Epoch(2))
    );
    let instance = InstanceId::task(&moved.id);
    assert_eq!(link_b.assigned(), [(instance.clone(), Epoch(2))]);
    let waits = core.task(stays.id.as_str()).await.unwrap();
    assert!(
        waits.reason.contains("disconnected since"),
        "{}",
        waits.reason
    );

    // The node comes back: it is told to stop, and what it says of the old epoch is not heard.
    let held = |id: &_| Held {
        instance: InstanceId::task(id),
        token: token(1, 1),
        phase: Phase::Running,
    };
    let link_a = a
        .connect(&core, vec![held(&moved.id), held(&stays.id)])
        .await;
    assert!(matches!(&link_a.take()[..], [Down::Stop { instance: i, .. }] if *i == instance));
    a.report(&core, &link_a, &instance, token(1, 1), exited(0))
        .await;
    assert_eq!(phase(&core, &moved).await, TaskPhase::Assigned);
    let stays_now = core.task(stays.id.as_str()).await.unwrap();
    assert_eq!(stays_now.reason, "assigned to a");
    b.report(&core, &link_b, &instance, token(2, 1), exited(0))
        .await;
    assert_eq!(phase(&core, &moved).await, TaskPhase::Succeeded);
}

#[tokio::test]
async fn a_removed_node_is_out_at_once_and_for_good() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let task = submit(&core, |_| {}).await;
    core.remove_node(&node.name).await.unwrap();
    assert_eq!(*link.closed.lock().unwrap(), Some(close::REVOKED));
    let view = core.task(task.id.as_str()).await.unwrap();
    assert_eq!(view.phase, TaskPhase::Failed);
    assert!(matches!(view.result.unwrap().end, End::Failed(p) if p.code == Code::TaskLost));
    let again = crate::testing::FakeLink::new(&node.name);
    let refused = registry::connected(&core, &node.identity, node.hello(), again).await;
    assert_eq!(refused.unwrap_err().code, Code::NodeRevoked);
    assert_eq!(
        core.node(&node.name).await.unwrap_err().code,
        Code::NodeUnknown
    );
    // A new node may have the name; the old key stays out.
    let new = FakeNode::join(&core, "n", Tier::Edge).await;
    new.connect(&core, Vec::new()).await;
    let again = crate::testing::FakeLink::new(&node.name);
    let refused = registry::connected(&core, &node.identity, node.hello(), again).await;
    assert_eq!(refused.unwrap_err().code, Code::NodeRevoked);
}

#[tokio::test]
async fn cancelling_stops_the_run_and_the_truth_counts() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let task = submit(&core, |_| {}).await;
    link.take();
    let view = core.cancel_task(&task.id).await.unwrap();
    assert_eq!(
        (view.phase, view.reason.as_str()),
        (TaskPhase::Assigned, "cancelling on n")
    );
    assert!(matches!(
        link.take()[..],
        [Down::Stop {
            epoch: Epoch(1),
            ..
        }]
    ));
    let instance = InstanceId::task(&task.id);
    node.report(&core, &link, &instance, token(1, 1), Event::Stopped)
        .await;
    assert_eq!(phase(&core, &task).await, TaskPhase::Cancelled);
    assert_eq!(
        core.cancel_task(&task.id).await.unwrap_err().code,
        Code::TaskEnded
    );
    let waiting = submit(&core, |spec| spec.placement.tier = Some(Tier::Cloud)).await;
    let view = core.cancel_task(&waiting.id).await.unwrap();
    assert_eq!(view.phase, TaskPhase::Cancelled);
}

#[tokio::test]
async fn draining_keeps_new_work_away_and_lets_tasks_end() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let running = submit(&core, |_| {}).await;
    let patch = NodePatch {
        draining: Some(true),
        ..NodePatch::default()
    };
    let view = core.patch_node(&node.name, patch).await.unwrap();
    assert!(view.cordoned && view.draining);
    let waiting = submit(&core, |_| {}).await;
    assert!(waiting.reason.contains("cordon"), "{}", waiting.reason);
    assert_eq!(phase(&core, &running).await, TaskPhase::Assigned);
    link.take();
    let patch = NodePatch {
        draining: Some(false),
        cordoned: Some(false),
        ..NodePatch::default()
    };
    core.patch_node(&node.name, patch).await.unwrap();
    assert_eq!(phase(&core, &waiting).await, TaskPhase::Assigned);
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_with_the_fix() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    push(&core, b"bytes", ArtifactKind::Data, "d").await;
    let refused = async |change: fn(&mut TaskSpec)| {
        let mut spec = TaskSpec::new("m");
        change(&mut spec);
        core.submit_task(request(spec)).await.unwrap_err()
    };
    let unknown = refused(|spec| spec.module = "mm".into()).await;
    assert_eq!(unknown.code, Code::ArtifactUnknown);
    assert!(unknown.message.contains("did you mean `m`"), "{unknown}");
    assert_eq!(
        refused(|spec| spec.module = "d".into()).await.code,
        Code::NotWasm
    );
    let strategy = refused(|spec| spec.placement.strategy = Some("spraed".into())).await;
    assert_eq!(strategy.code, Code::StrategyUnknown);
    assert!(
        strategy.message.contains("did you mean `spread`"),
        "{strategy}"
    );
    let limit = refused(|spec| spec.limits.memory.0 = 1).await;
    assert_eq!(limit.code, Code::InvalidField);
    assert!(limit.message.contains("spec.limits.memory"), "{limit}");
    assert_eq!(
        core.task("tzzzz").await.unwrap_err().code,
        Code::TaskUnknown
    );
    assert_eq!(
        core.explain("tsk", "x").await.unwrap_err().code,
        Code::InvalidField
    );
}

#[tokio::test]
async fn large_arguments_survive_a_restart_and_lists_have_pages() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let big = submit(&core, |spec| spec.args = vec!["x".repeat(60_000)]).await;
    for _ in 0..4 {
        submit(&core, |_| {}).await;
    }
    let core = world.core().await;
    assert_eq!(core.task(big.id.as_str()).await.unwrap().spec, big.spec);
    let mut filter = TaskFilter {
        limit: Some(2),
        ..TaskFilter::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = core.tasks(filter.clone()).await.unwrap();
        seen.extend(page.items.into_iter().map(|task| task.id));
        let Some(next) = page.next else { break };
        filter.after = Some(next);
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(core.status().await.unwrap().tasks.pending, 5);
    let ended = TaskFilter {
        phase: Some(TaskPhase::Failed),
        ..TaskFilter::default()
    };
    assert!(core.tasks(ended).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn output_is_live_while_it_runs_and_kept_after() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let task = submit(&core, |_| {}).await;
    let instance = InstanceId::task(&task.id);
    node.report(&core, &link, &instance, token(1, 1), STARTED)
        .await;
    let read = async |offset| {
        let channel = hop3_common::wire::attach::Channel::Stdout;
        let mut stream = core
            .task_output(&task.id, channel, offset, false)
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    assert_eq!(read(5).await, format!("output of {instance}"));
    let bytes = b"what it said";
    crate::artifacts::may_put(&core, &node.name, bytes.len() as u64).unwrap();
    let digest = core.blobs.put(bytes).unwrap();
    let output = hop3_common::wire::Output {
        digest,
        bytes: bytes.len() as u64,
    };
    let Event::TaskEnded(mut result) = exited(0) else {
        unreachable!()
    };
    result.stdout = Some(output);
    node.report(
        &core,
        &link,
        &instance,
        token(1, 1),
        Event::TaskEnded(result),
    )
    .await;
    assert_eq!(read(5).await, "it said");
    core.collect(UnixMs::now()).await;
    assert_eq!(read(0).await, "what it said");
    assert_eq!(
        crate::artifacts::may_put(&core, &node.name, 1)
            .unwrap_err()
            .code,
        Code::Forbidden,
        "it holds no task any more"
    );
}

#[tokio::test]
async fn an_attached_client_waits_is_relayed_and_gets_the_exit() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let task = submit(&core, |spec| spec.stdin = Stdin::Attached).await;
    let plain = submit(&core, |_| {}).await;
    let refused = core.attach_task(&plain.id).await.err().unwrap();
    assert_eq!(refused.code, Code::TaskNotAttached);
    let mut client = core.attach_task(&task.id).await.unwrap();
    let Some(Frame::Status(status)) = client.recv().await else {
        panic!()
    };
    assert!(status.contains("no node fits"), "{status}");
    let resume = Frame::Resume {
        stdout: 0,
        stderr: 0,
    };
    client.send(resume.clone()).await.unwrap();
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let instance = InstanceId::task(&task.id);
    node.report(&core, &link, &instance, token(1, 1), STARTED)
        .await;
    let take = || link.attached.lock().unwrap().pop();
    let (mut from_client, to_client) = eventually("the node is attached", take).await;
    assert_eq!(
        from_client.recv().await,
        Some(resume.clone()),
        "what came early came"
    );

    // The session is lost: the client's ends without an exit, and it comes back.
    drop(to_client);
    while client.recv().await.is_some() {}
    let mut client = core.attach_task(&task.id).await.unwrap();
    let (mut from_client, to_client) = eventually("attached again", take).await;
    client.send(resume.clone()).await.unwrap();
    assert_eq!(from_client.recv().await, Some(resume));
    node.report(&core, &link, &instance, token(1, 1), exited(0))
        .await;
    let exit = Frame::Exit {
        end: End::Exited(0),
        usage: Default::default(),
    };
    to_client.send(exit.clone()).await.unwrap();
    assert_eq!(client.recv().await, Some(exit.clone()));
    client.send(Frame::Bye).await.unwrap();
    assert_eq!(from_client.recv().await, Some(Frame::Bye));

    // Whoever comes too late hears the exit from the record.
    drop(client);
    let mut late = core.attach_task(&task.id).await.unwrap();
    drop(eventually("asked once more", take).await);
    assert_eq!(late.recv().await, Some(exit));
}

#[tokio::test]
async fn a_repeated_report_changes_nothing() {
    let world = World::new();
    let core = world.core().await;
    push(&core, &module(), ArtifactKind::Wasm, "m").await;
    let node = FakeNode::join(&core, "n", Tier::Edge).await;
    let link = node.connect(&core, Vec::new()).await;
    let task = submit(&core, |_| {}).await;
    let instance = InstanceId::task(&task.id);
    let report = |event| hop3_common::wire::Report {
        instance: instance.clone(),
        token: token(1, 1),
        at: UnixMs(0),
        event,
    };
    registry::report(&core, &*link, 1, report(exited(0)))
        .await
        .unwrap();
    registry::report(&core, &*link, 1, report(exited(9)))
        .await
        .unwrap();
    registry::report(&core, &*link, 2, report(exited(9)))
        .await
        .unwrap();
    assert_eq!(phase(&core, &task).await, TaskPhase::Succeeded);
}
