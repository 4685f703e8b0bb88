#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};

use hop3_common::{id::Digest, wire::Usage};
use proptest::prelude::*;

use super::{
    super::samples::{self, made},
    *,
};

const NOW: UnixMs = UnixMs(1_000);

fn id(n: u8) -> InstanceId {
    format!("task/i{n}").parse().unwrap()
}

fn ready() -> Progress {
    Progress::Ready(ServiceFacts {
        fetch_us: 0,
        load_us: 0,
        restore_us: 0,
        seq: 0,
        schema: 1,
        state_bytes: 0,
        replicated: false,
    })
}

fn task(retry: Retry) -> Work {
    Work::Task(samples::task(retry))
}

fn model() -> Work {
    Work::Model(samples::model())
}

fn service() -> Work {
    Work::Service(Box::new(samples::service()))
}

fn assign(n: u8, epoch: u64, work: Work) -> Input {
    samples::assign(id(n), epoch, work)
}

fn seal(n: u8, epoch: u64) -> Input {
    Input::Seal {
        instance: id(n),
        epoch: Epoch(epoch),
    }
}

fn run(n: u8, token: Token, progress: Progress) -> Input {
    Input::Run {
        instance: id(n),
        token,
        progress,
    }
}

fn ended(outputs: bool) -> Event {
    let output = Output {
        digest: Digest::of(b"out"),
        bytes: 3,
    };
    let stdout = outputs.then_some(output);
    let result = TaskResult {
        end: End::Exited(0),
        usage: Usage::default(),
        stdout,
        stderr: None,
    };
    Event::TaskEnded(Box::new(result))
}

fn started(actions: &[Action]) -> Option<Token> {
    actions.iter().find_map(|a| match a {
        Action::Start { token, .. } => Some(*token),
        _ => None,
    })
}

fn reports(actions: &[Action]) -> Vec<Event> {
    let event = |a: &Action| match a {
        Action::Report(report) => Some(report.event.clone()),
        _ => None,
    };
    actions.iter().filter_map(event).collect()
}

fn reborn(core: &Core) -> (Core, Vec<Action>) {
    let ids = core.instances.keys().chain(core.tombstones.keys());
    let stored: Vec<_> = ids
        .map(|id| (id.clone(), core.stored(id).unwrap()))
        .collect();
    let (core, steps) = Core::restore(stored, NOW);
    (core, steps.concat())
}

#[test]
fn a_task_goes_from_assignment_to_its_report() {
    let mut core = Core::default();
    let actions = core.step(assign(1, 1, task(Retry::Never)), NOW);
    assert!(matches!(
        &actions[..],
        [Action::Persist(_), Action::Start { .. }]
    ));
    let token = started(&actions).unwrap();
    assert!(
        core.step(assign(1, 1, task(Retry::Never)), NOW).is_empty(),
        "a repeat"
    );
    let prepared = Progress::Prepared {
        fetch_us: 1,
        load_us: 2,
    };
    let actions = core.step(run(1, token, prepared), NOW);
    assert!(matches!(
        actions[..],
        [Action::Persist(_), Action::Report(_), Action::Go { .. }]
    ));
    let actions = core.step(run(1, token, Progress::Finished(ended(true))), NOW);
    assert!(
        reports(&actions).is_empty(),
        "not before its output is delivered"
    );
    assert!(matches!(
        actions[..],
        [Action::Persist(_), Action::Deliver { .. }]
    ));
    let (mut core, actions) = reborn(&core);
    assert!(
        actions.iter().any(|a| matches!(a, Action::Deliver { .. })),
        "delivery goes on"
    );
    let actions = core.step(run(1, token, Progress::Delivered { kept: true }), NOW);
    assert_eq!(reports(&actions), [ended(true)]);
    assert_eq!(core.inventory()[0].phase, Phase::Ended);
    let _ = core.step(
        Input::Forget {
            instance: id(1),
            epoch: Epoch(1),
        },
        NOW,
    );
    assert!(core.inventory().is_empty());
    assert!(
        core.step(assign(1, 1, task(Retry::Never)), NOW).is_empty(),
        "a late repeat"
    );
}

#[test]
fn outputs_that_the_coordinator_refuses_are_not_named() {
    let mut core = Core::default();
    let token = started(&core.step(assign(1, 1, task(Retry::Never)), NOW)).unwrap();
    let _ = core.step(run(1, token, Progress::Finished(ended(true))), NOW);
    let actions = core.step(run(1, token, Progress::Delivered { kept: false }), NOW);
    assert_eq!(reports(&actions), [ended(false)]);
}

#[test]
fn a_restart_loses_running_tasks_repeats_the_retriable_and_restarts_models() {
    for (work, running, again) in [
        (task(Retry::Never), true, false),
        (task(Retry::Never), false, true),
        (task(Retry::OnNodeLoss), true, true),
        (model(), true, true),
        (service(), true, true),
    ] {
        let mut core = Core::default();
        let first = started(&core.step(assign(1, 1, work.clone()), NOW)).unwrap();
        if running {
            let progress = match work {
                Work::Task(_) => Progress::Prepared {
                    fetch_us: 0,
                    load_us: 0,
                },
                Work::Model(_) => Progress::Serving(ModelFacts {
                    inputs: vec![],
                    outputs: vec![],
                    load_us: 0,
                }),
                Work::Service(_) => ready(),
            };
            let _ = core.step(run(1, first, progress), NOW);
        }
        let (_, actions) = reborn(&core);
        assert_eq!(started(&actions).is_some_and(|token| token > first), again);
        let lost = matches!(
            &reports(&actions)[..],
            [Event::Failed(Problem {
                code: Code::TaskLost,
                ..
            })]
        );
        assert_eq!(lost, !again);
    }
}

#[test]
fn a_newer_assignment_waits_for_the_older_run() {
    let mut core = Core::default();
    let old = started(&core.step(assign(1, 1, model()), NOW)).unwrap();
    let actions = core.step(assign(1, 2, model()), NOW);
    assert!(actions.contains(&Action::Cancel {
        instance: id(1),
        token: old
    }));
    assert_eq!(started(&actions), None);
    let actions = core.step(run(1, old, Progress::Finished(Event::Stopped)), NOW);
    assert_eq!(started(&actions).unwrap().epoch, Epoch(2));
    assert!(
        reports(&actions).is_empty(),
        "the deposed run has nothing to say"
    );
}

#[test]
fn a_stop_that_overtakes_its_assignment_wins() {
    let mut core = Core::default();
    let actions = core.step(
        Input::Stop {
            instance: id(1),
            epoch: Epoch(3),
        },
        NOW,
    );
    assert_eq!(reports(&actions), [Event::Stopped]);
    assert!(core.step(assign(1, 3, model()), NOW).is_empty());
    assert!(started(&core.step(assign(1, 4, model()), NOW)).is_some());
}

#[test]
fn a_sealed_epoch_is_reported_once_and_never_starts_again() {
    let mut core = Core::default();
    let token = started(&core.step(assign(1, 1, service()), NOW)).unwrap();
    let _ = core.step(run(1, token, ready()), NOW);
    let asked = core.step(seal(1, 1), NOW);
    assert!(matches!(asked[..], [Action::Seal { .. }]));
    assert!(core.step(seal(1, 1), NOW).is_empty(), "a repeat");
    // Killed before the seal was durable: it goes on.
    let (mut killed, actions) = reborn(&core);
    let again = started(&actions).unwrap();
    assert!(again > token && reports(&actions).is_empty());
    let sealed = Event::Sealed(made(again));
    let _ = killed.step(seal(1, 1), NOW);
    let actions = killed.step(run(1, again, Progress::Finished(sealed.clone())), NOW);
    assert!(matches!(
        actions[..],
        [Action::Persist(_), Action::Report(_)]
    ));
    assert_eq!(reports(&actions), [sealed]);
    let (mut killed, actions) = reborn(&killed);
    assert!(actions.is_empty(), "neither started nor reported again");
    assert!(killed.step(seal(1, 1), NOW).is_empty());
    let _ = killed.step(assign(1, 1, service()), NOW);
    assert!(killed.get(&id(1)).unwrap().live.is_none());
    // The move is given up: the source goes on under a new epoch.
    assert!(started(&killed.step(assign(1, 2, service()), NOW)).is_some());
}

#[test]
fn an_instance_that_was_not_sealed_can_be_asked_again() {
    let mut core = Core::default();
    let token = started(&core.step(assign(1, 1, service()), NOW)).unwrap();
    let _ = core.step(run(1, token, ready()), NOW);
    let _ = core.step(seal(1, 1), NOW);
    let why = Problem::new(Code::Deadline, "no coordinator");
    let actions = core.step(run(1, token, Progress::NotSealed(why.clone())), NOW);
    assert_eq!(reports(&actions), [Event::NotSealed(why)]);
    assert_eq!(core.inventory()[0].phase, Phase::Running);
    assert!(matches!(
        core.step(seal(1, 1), NOW)[..],
        [Action::Seal { .. }]
    ));
    assert!(core.step(seal(1, 2), NOW).is_empty(), "another epoch");
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut core = Core::default();
    for n in 0..TOMBSTONES_MAX + 5 {
        let instance = format!("task/t{n}").parse().unwrap();
        let _ = core.step(
            Input::Stop {
                instance,
                epoch: Epoch(1),
            },
            NOW,
        );
    }
    assert_eq!(core.tombstones.len(), TOMBSTONES_MAX);
    assert_eq!(core.forgotten.len(), TOMBSTONES_MAX);
}

#[derive(Debug, Clone)]
enum Op {
    Assign {
        n: u8,
        epoch: u64,
        kind: u8,
    },
    Stop {
        n: u8,
        epoch: u64,
    },
    Forget {
        n: u8,
        epoch: u64,
    },
    /// The live executor of `n` takes its next step.
    Advance {
        n: u8,
    },
    /// The live executor of `n` ends.
    End {
        n: u8,
        outputs: bool,
    },
    Deliver {
        n: u8,
    },
    Seal {
        n: u8,
        epoch: u64,
    },
    /// The executor that was asked to seal `n` says how it went.
    SealEnds {
        n: u8,
        well: bool,
    },
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let (n, epoch) = (0u8..3, 1u64..5);
    prop_oneof![
        4 => (n.clone(), epoch.clone(), 0u8..3)
            .prop_map(|(n, epoch, kind)| Op::Assign { n, epoch, kind }),
        2 => (n.clone(), epoch.clone()).prop_map(|(n, epoch)| Op::Stop { n, epoch }),
        2 => (n.clone(), epoch.clone()).prop_map(|(n, epoch)| Op::Forget { n, epoch }),
        3 => (n.clone(), epoch).prop_map(|(n, epoch)| Op::Seal { n, epoch }),
        3 => (n.clone(), any::<bool>()).prop_map(|(n, well)| Op::SealEnds { n, well }),
        6 => n.clone().prop_map(|n| Op::Advance { n }),
        4 => (n.clone(), any::<bool>()).prop_map(|(n, outputs)| Op::End { n, outputs }),
        3 => n.prop_map(|n| Op::Deliver { n }),
        1 => Just(Op::Crash),
    ]
}

/// The world around the core: executors, and what must hold.
#[derive(Default)]
struct World {
    live: BTreeMap<InstanceId, (Token, bool)>,
    undelivered: BTreeMap<InstanceId, Token>,
    tokens: BTreeMap<InstanceId, Token>,
    epoch_max: BTreeMap<InstanceId, Epoch>,
    stopped: BTreeMap<InstanceId, Epoch>,
    gone: BTreeSet<(InstanceId, Epoch)>,
    ends: BTreeSet<(InstanceId, Token)>,
    sealing: BTreeMap<InstanceId, Token>,
    sealed: BTreeMap<InstanceId, Epoch>,
}

impl World {
    fn act(&mut self, actions: Vec<Action>) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Start { assignment, token } => {
                    let id = assignment.instance.clone();
                    let last = self.tokens.insert(id.clone(), token).unwrap_or_default();
                    prop_assert!(token > last, "{id:?} {token} after {last}");
                    prop_assert_eq!(token.epoch, self.epoch_max[&id]);
                    prop_assert!(self.stopped.get(&id).is_none_or(|e| *e < token.epoch));
                    prop_assert!(self.sealed.get(&id).is_none_or(|e| *e < token.epoch));
                    self.sealing.remove(&id);
                    prop_assert!(self.live.insert(id, (token, false)).is_none(), "two runs");
                }
                Action::Go { instance, token } => {
                    prop_assert_eq!(self.live[&instance].0, token);
                    let kind_once = instance.as_str().ends_with('0');
                    let first = self.gone.insert((instance, token.epoch));
                    prop_assert!(first || !kind_once, "began twice");
                }
                Action::Cancel { instance, token } => {
                    prop_assert_eq!(self.live[&instance].0, token);
                }
                Action::Deliver {
                    instance, token, ..
                } => {
                    self.undelivered.insert(instance, token);
                }
                Action::Report(report) if crate::session::outbox::is_terminal(&report.event) => {
                    let first = self.ends.insert((report.instance.clone(), report.token));
                    prop_assert!(first, "{report:?} twice");
                }
                Action::Seal { instance, token } => {
                    prop_assert_eq!(self.live[&instance].0, token);
                    let twice = self.sealing.insert(instance, token);
                    prop_assert!(twice.is_none(), "asked twice");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn ownership_holds_in_any_order(ops in prop::collection::vec(op(), 0..120)) {
        let (mut core, mut world) = (Core::default(), World::default());
        for op in ops {
            let actions = match op {
                Op::Assign { n, epoch, kind } => {
                    let max = world.epoch_max.entry(id(n)).or_default();
                    *max = (*max).max(Epoch(epoch));
                    // Instance 0 holds what must not be repeated.
                    let work = match (n, kind) {
                        (0, _) => task(Retry::Never),
                        (_, 0) => service(),
                        _ => task(Retry::OnNodeLoss),
                    };
                    let actions = core.step(assign(n, epoch, work.clone()), NOW);
                    let again = core.step(assign(n, epoch, work), NOW);
                    prop_assert!(again.is_empty(), "a repeat did {again:?}");
                    actions
                }
                Op::Stop { n, epoch } => {
                    if world.epoch_max.get(&id(n)).is_none_or(|max| *max <= Epoch(epoch)) {
                        let stopped = world.stopped.entry(id(n)).or_default();
                        *stopped = (*stopped).max(Epoch(epoch));
                        world.epoch_max.insert(id(n), Epoch(epoch));
                    }
                    core.step(Input::Stop { instance: id(n), epoch: Epoch(epoch) }, NOW)
                }
                Op::Forget { n, epoch } => {
                    core.step(Input::Forget { instance: id(n), epoch: Epoch(epoch) }, NOW)
                }
                Op::Advance { n } => match world.live.get_mut(&id(n)) {
                    Some((token, prepared)) if !*prepared => {
                        *prepared = true;
                        let token = *token;
                        let progress = Progress::Prepared { fetch_us: 0, load_us: 0 };
                        core.step(run(n, token, progress), NOW)
                    }
                    _ => vec![],
                },
                Op::End { n, outputs } => match world.live.remove(&id(n)) {
                    Some((token, _)) => {
                        world.sealing.remove(&id(n));
                        core.step(run(n, token, Progress::Finished(ended(outputs))), NOW)
                    }
                    None => vec![],
                },
                Op::Deliver { n } => match world.undelivered.remove(&id(n)) {
                    Some(token) => {
                        core.step(run(n, token, Progress::Delivered { kept: true }), NOW)
                    }
                    None => vec![],
                },
                Op::Seal { n, epoch } => core.step(seal(n, epoch), NOW),
                Op::SealEnds { n, well } => match world.sealing.remove(&id(n)) {
                    Some(token) if well && world.live.contains_key(&id(n)) => {
                        world.live.remove(&id(n));
                        world.sealed.insert(id(n), token.epoch);
                        let event = Event::Sealed(made(token));
                        let actions = core.step(run(n, token, Progress::Finished(event)), NOW);
                        // The mark is in the record that the step stores with the report.
                        let ledger = core.stored(&id(n)).map(|stored| match stored {
                            Stored::Held { ledger, .. } | Stored::Tombstone { ledger, .. } => ledger,
                        });
                        prop_assert!(ledger.unwrap().sealed_epoch >= token.epoch);
                        prop_assert!(actions.contains(&Action::Persist(id(n))));
                        actions
                    }
                    Some(token) if world.live.contains_key(&id(n)) => {
                        let why = Problem::new(Code::Deadline, "late");
                        core.step(run(n, token, Progress::NotSealed(why)), NOW)
                    }
                    _ => vec![],
                },
                Op::Crash => {
                    world.live.clear();
                    world.undelivered.clear();
                    world.sealing.clear();
                    let (next, actions) = reborn(&core);
                    core = next;
                    actions
                }
            };
            world.act(actions)?;
        }
        // Whatever ended and was not forgotten is held, and reported once its outputs are there.
        for (id, instance) in core.instances() {
            if let Some(outcome) = &instance.outcome {
                let reported = world.ends.contains(&(id.clone(), instance.token()));
                prop_assert_eq!(outcome.reported, reported);
                prop_assert!(reported || world.undelivered.contains_key(id));
            } else {
                prop_assert!(world.live.contains_key(id), "{id:?} neither runs nor ended");
            }
        }
    }
}
