#![allow(clippy::unwrap_used)]
use hop3_common::{ownership::Incarnation, wire::Usage};
use proptest::prelude::*;

use super::*;

const NOW: UnixMs = UnixMs(1_000);

fn node(n: u8) -> NodeId {
    format!("n{n}").parse().unwrap()
}

fn token(epoch: u64, incarnation: u64) -> Token {
    Token {
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
    }
}

fn result(end: End) -> Box<TaskResult> {
    Box::new(TaskResult {
        end,
        usage: Usage::default(),
        stdout: None,
        stderr: None,
    })
}

fn placed(n: u8) -> Event {
    Event::Placed {
        node: node(n),
        reason: "it fits".into(),
    }
}

fn report(n: u8, token: Token, event: wire::Event) -> Event {
    Event::Report {
        node: node(n),
        token,
        event,
    }
}

fn after(retry: Retry, events: impl IntoIterator<Item = Event>) -> TaskState {
    events.into_iter().fold(TaskState::new(), |state, event| {
        state
            .step(retry, event, NOW)
            .map_or(state, |step| step.state)
    })
}

const STARTED: wire::Event = wire::Event::Started {
    fetch_us: 1,
    load_us: 2,
};

#[test]
fn a_task_runs_to_its_end() {
    let ran = after(Retry::Never, [placed(1), report(1, token(1, 1), STARTED)]);
    assert_eq!(
        (ran.phase, ran.prepare_us),
        (TaskPhase::Running, Some((1, 2)))
    );
    let end = report(
        1,
        token(1, 1),
        wire::Event::TaskEnded(result(End::Exited(3))),
    );
    let ended = ran.step(Retry::Never, end.clone(), NOW).unwrap().state;
    assert_eq!(
        (ended.phase, ended.reason.as_str()),
        (TaskPhase::Failed, "exited with code 3")
    );
    assert_eq!(
        ended.step(Retry::Never, end, NOW),
        None,
        "a repeat changes nothing"
    );
}

#[test]
fn a_deposed_run_is_not_heard() {
    let lost = Event::NodeLost {
        node: node(1),
        why: "is away".into(),
    };
    let moved = after(
        Retry::OnNodeLoss,
        [placed(1), report(1, token(1, 1), STARTED), lost, placed(2)],
    );
    assert_eq!((moved.epoch, moved.node.clone()), (Epoch(2), Some(node(2))));
    let ended = |t| wire::Event::TaskEnded(result(End::Exited(t)));
    for (n, t) in [
        (1, token(1, 1)),
        (1, token(2, 1)),
        (2, token(1, 9)),
        (2, token(3, 1)),
    ] {
        assert_eq!(
            moved.step(Retry::OnNodeLoss, report(n, t, ended(0)), NOW),
            None,
            "{n} {t}"
        );
    }
    let done = moved
        .step(Retry::OnNodeLoss, report(2, token(2, 1), ended(0)), NOW)
        .unwrap();
    assert_eq!(done.state.phase, TaskPhase::Succeeded);
}

#[test]
fn an_older_incarnation_is_not_heard() {
    let state = after(Retry::Never, [placed(1), report(1, token(1, 2), STARTED)]);
    let old = report(
        1,
        token(1, 1),
        wire::Event::TaskEnded(result(End::Exited(0))),
    );
    assert_eq!(state.step(Retry::Never, old, NOW), None);
}

#[test]
fn a_loss_is_reported_or_mended_as_declared() {
    let lost = Event::NodeLost {
        node: node(1),
        why: "disconnected since 9".into(),
    };
    let removed = Event::NodeRemoved { node: node(1) };
    let waits = after(Retry::Never, [placed(1), lost.clone()]);
    assert_eq!(waits.phase, TaskPhase::Assigned);
    assert!(waits.reason.contains("disconnected since 9"));
    assert_eq!(
        waits.step(Retry::Never, lost.clone(), NOW),
        None,
        "said once"
    );
    let back = waits
        .step(Retry::Never, Event::NodeBack { node: node(1) }, NOW)
        .unwrap()
        .state;
    assert_eq!(back.reason, "assigned to n1");
    let failed = waits
        .step(Retry::Never, removed.clone(), NOW)
        .unwrap()
        .state;
    assert_eq!(failed.phase, TaskPhase::Failed);
    assert!(matches!(failed.result.unwrap().end, End::Failed(p) if p.code == Code::TaskLost));
    for event in [lost, removed] {
        let again = after(Retry::OnNodeLoss, [placed(1), event]);
        assert_eq!((again.phase, again.node), (TaskPhase::Pending, None));
    }
    let restarted = wire::Event::TaskEnded(result(End::Failed(Problem::new(Code::TaskLost, "x"))));
    let again = after(
        Retry::OnNodeLoss,
        [placed(1), report(1, token(1, 1), restarted)],
    );
    assert_eq!(again.phase, TaskPhase::Pending);
}

#[test]
fn cancel_is_final_at_once_only_where_nobody_can_be_told() {
    let cancel = |reachable| Event::Cancel { reachable };
    assert_eq!(
        after(Retry::Never, [cancel(true)]).phase,
        TaskPhase::Cancelled
    );
    assert_eq!(
        after(Retry::Never, [placed(1), cancel(false)]).phase,
        TaskPhase::Cancelled
    );
    let asked = after(Retry::Never, [placed(1), cancel(true)]);
    assert_eq!((asked.phase, asked.cancel), (TaskPhase::Assigned, true));
    let stopped = report(1, token(1, 1), wire::Event::Stopped);
    let gone = asked.step(Retry::Never, stopped, NOW).unwrap().state;
    assert_eq!(gone.phase, TaskPhase::Cancelled);
    // It was faster than the cancellation: the truth counts.
    let done = report(
        1,
        token(1, 1),
        wire::Event::TaskEnded(result(End::Exited(0))),
    );
    assert_eq!(
        asked.step(Retry::Never, done, NOW).unwrap().state.phase,
        TaskPhase::Succeeded
    );
}

#[test]
fn a_busy_node_is_left_alone_the_next_time() {
    let busy = wire::Event::Failed(Problem::new(Code::Busy, "full"));
    let state = after(Retry::Never, [placed(1), report(1, token(1, 0), busy)]);
    assert_eq!(
        (state.phase, state.avoid),
        (TaskPhase::Pending, Some(node(1)))
    );
}

#[test]
fn placing_is_bounded() {
    let lost = |n| Event::NodeLost {
        node: node(n),
        why: "is away".into(),
    };
    let flapping = (0..40).flat_map(|_| [placed(1), lost(1)]);
    let state = after(Retry::OnNodeLoss, flapping);
    assert_eq!(
        (state.phase, state.placements),
        (TaskPhase::Failed, PLACEMENTS_MAX)
    );
}

#[test]
fn a_restored_record_adopts_what_its_node_holds() {
    let state = after(Retry::Never, [placed(1)]);
    let held = |n, e| Event::Held {
        node: node(n),
        epoch: Epoch(e),
    };
    assert_eq!(state.step(Retry::Never, held(2, 7), NOW), None);
    assert_eq!(state.step(Retry::Never, held(1, 1), NOW), None);
    let adopted = state.step(Retry::Never, held(1, 7), NOW).unwrap().state;
    let end = wire::Event::TaskEnded(result(End::Exited(0)));
    assert_eq!(
        adopted.step(Retry::Never, report(1, token(1, 1), end.clone()), NOW),
        None
    );
    let done = adopted
        .step(Retry::Never, report(1, token(7, 1), end), NOW)
        .unwrap()
        .state;
    assert_eq!(done.phase, TaskPhase::Succeeded);
}

fn any_wire_event() -> impl Strategy<Value = wire::Event> {
    prop_oneof![
        Just(STARTED),
        Just(wire::Event::Stopped),
        (-1i32..3).prop_map(|code| wire::Event::TaskEnded(result(End::Exited(code)))),
        Just(wire::Event::TaskEnded(result(End::Cancelled))),
        prop_oneof![
            Just(Code::TaskLost),
            Just(Code::Busy),
            Just(Code::TaskTrapped)
        ]
        .prop_map(|code| wire::Event::Failed(Problem::new(code, "why"))),
        Just(wire::Event::TaskEnded(result(End::Failed(Problem::new(
            Code::TaskLost,
            "gone"
        ))))),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0u8..3).prop_map(placed),
        1 => Just(Event::Unplaceable { reason: "full".into() }),
        6 => (0u8..3, 0u64..5, 0u64..3, any_wire_event())
            .prop_map(|(n, e, i, event)| report(n, token(e, i), event)),
        1 => any::<bool>().prop_map(|reachable| Event::Cancel { reachable }),
        2 => (0u8..3).prop_map(|n| Event::NodeLost { node: node(n), why: "is away".into() }),
        1 => (0u8..3).prop_map(|n| Event::NodeRemoved { node: node(n) }),
        1 => (0u8..3).prop_map(|n| Event::NodeBack { node: node(n) }),
    ]
}

proptest! {
    /// Whatever comes in whatever order, once or twice: the invariants of the module hold after
    /// every event.
    #[test]
    fn invariants_hold(
        events in prop::collection::vec((any_event(), 1u8..3), 0..60),
        retried in any::<bool>(),
    ) {
        let retry = if retried { Retry::OnNodeLoss } else { Retry::Never };
        let mut state = TaskState::new();
        for (event, times) in events {
            for _ in 0..times {
                let next = state.step(retry, event.clone(), NOW).map(|step| step.state);
                let Some(next) = next else { continue };
                prop_assert!(!state.phase.is_final(), "a final phase changed: {event:?}");
                prop_assert!(next != state, "a step without change: {event:?}");
                prop_assert!(next.token() >= state.token());
                let placed = matches!(event, Event::Placed { .. });
                prop_assert_eq!(next.epoch > state.epoch, placed, "epochs grow by placement only");
                prop_assert!(next.epoch.0 <= state.epoch.0 + 1);
                prop_assert_eq!(next.epoch.0, u64::from(next.placements));
                if let Event::Report { node, token, .. } = &event {
                    prop_assert_eq!(state.node.as_ref(), Some(node));
                    prop_assert_eq!(token.epoch, state.epoch);
                }
                let owned = matches!(next.phase, TaskPhase::Assigned | TaskPhase::Running);
                prop_assert!(!owned || next.node.is_some());
                prop_assert!(next.phase != TaskPhase::Pending || next.node.is_none());
                prop_assert_eq!(next.phase.is_final(), next.ended.is_some());
                prop_assert_eq!(next.phase.is_final(), next.result.is_some());
                prop_assert!(next.placements <= PLACEMENTS_MAX);
                state = next;
            }
        }
    }
}
