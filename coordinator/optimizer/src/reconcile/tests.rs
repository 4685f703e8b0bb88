//! Single plans, and a simulated node behind a network that loses, repeats and reorders.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Id = u8;
type Wanted = BTreeMap<Id, Desired<u8>>;
type Inventory = BTreeMap<Id, Observed>;
type Case<'a> = (Wanted, Inventory, Vec<Action<'a, Id, u8>>);

fn wanted(epoch: u64, stop: bool) -> Wanted {
    BTreeMap::from([(
        1,
        Desired {
            epoch: Epoch(epoch),
            spec: 7,
            stop,
            seal: false,
        },
    )])
}

fn found(epoch: u64, phase: Phase) -> Inventory {
    BTreeMap::from([(
        1,
        Observed {
            epoch: Epoch(epoch),
            incarnation: 1,
            phase,
        },
    )])
}

#[test]
fn each_pair_of_desired_and_observed_has_its_plan() {
    use Action::{Adopt, Assign, Forget, Raise, Stop};
    use Phase::{Exited, Running, Starting, Stopped, Stopping};
    use StopReason::{NotDesired, Requested, Stale};

    let one = &1;
    let stop = |epoch, reason| Stop {
        instance: one,
        epoch: Epoch(epoch),
        reason,
    };
    let forget = |epoch| Forget {
        instance: one,
        epoch: Epoch(epoch),
    };
    let assign = |epoch| Assign {
        instance: one,
        epoch: Epoch(epoch),
        spec: &7,
    };
    let nothing = Wanted::new;
    let run = || wanted(5, false);
    let halt = || wanted(5, true);
    let cases: [Case<'_>; 17] = [
        (run(), Inventory::new(), vec![assign(5)]),
        (run(), found(5, Starting), vec![]),
        (run(), found(5, Running), vec![]),
        (run(), found(5, Stopping), vec![]),
        (run(), found(5, Exited), vec![]),
        (
            run(),
            found(5, Stopped),
            vec![Raise {
                instance: one,
                above: Epoch(5),
            }],
        ),
        (run(), found(4, Running), vec![stop(4, Stale), assign(5)]),
        (run(), found(4, Exited), vec![assign(5)]),
        (
            run(),
            found(6, Running),
            vec![Adopt {
                instance: one,
                epoch: Epoch(6),
            }],
        ),
        (halt(), Inventory::new(), vec![]),
        (halt(), found(5, Running), vec![stop(5, Requested)]),
        (halt(), found(4, Starting), vec![stop(4, Stale)]),
        (halt(), found(5, Stopped), vec![forget(5)]),
        (
            halt(),
            found(6, Running),
            vec![Adopt {
                instance: one,
                epoch: Epoch(6),
            }],
        ),
        (nothing(), found(5, Running), vec![stop(5, NotDesired)]),
        (nothing(), found(5, Stopping), vec![]),
        (nothing(), found(5, Exited), vec![forget(5)]),
    ];
    for (desired, observed, expected) in cases {
        assert_eq!(
            plan(&desired, &observed),
            expected,
            "{desired:?} {observed:?}"
        );
    }
}

#[test]
fn a_seal_is_sent_once_and_waits_for_its_answer() {
    let seal = Desired {
        epoch: Epoch(5),
        spec: 7,
        stop: false,
        seal: true,
    };
    let desired = BTreeMap::from([(1, seal.clone())]);
    let asked = Action::Seal {
        instance: &1,
        epoch: Epoch(5),
    };
    for phase in [Phase::Starting, Phase::Running] {
        assert_eq!(plan(&desired, &found(5, phase)), [asked]);
    }
    for phase in [Phase::Sealing, Phase::Stopping, Phase::Exited] {
        assert_eq!(plan(&desired, &found(5, phase)), [], "{phase:?}");
    }
    // What is not there yet comes first; what is wanted nowhere is stopped, sealing or not.
    let empty = Inventory::new();
    let lost = plan(&desired, &empty);
    assert!(matches!(lost[..], [Action::Assign { .. }]));
    let nothing = Wanted::new();
    let unwanted = found(5, Phase::Sealing);
    let ended = plan(&nothing, &unwanted);
    assert!(matches!(ended[..], [Action::Stop { .. }]));
    let stop = BTreeMap::from([(1, Desired { stop: true, ..seal })]);
    let running = found(5, Phase::Running);
    assert!(matches!(plan(&stop, &running)[..], [Action::Stop { .. }]));
}

#[test]
fn what_frees_comes_before_what_takes() {
    let mut desired = wanted(2, false);
    desired.insert(
        2,
        Desired {
            epoch: Epoch(1),
            spec: 7,
            stop: true,
            seal: false,
        },
    );
    let mut observed = found(1, Phase::Running);
    observed.insert(
        2,
        Observed {
            epoch: Epoch(1),
            incarnation: 1,
            phase: Phase::Stopped,
        },
    );
    observed.insert(
        3,
        Observed {
            epoch: Epoch(1),
            incarnation: 1,
            phase: Phase::Running,
        },
    );
    let ranks: Vec<_> = plan(&desired, &observed).iter().map(rank).collect();
    assert_eq!(ranks, [1, 1, 2, 3]);
}

/// A message to the node.
#[derive(Clone, Copy, Debug)]
enum Command {
    Assign(Id, Epoch),
    Stop(Id, Epoch),
    Seal(Id, Epoch),
    Forget(Id, Epoch),
}

/// The agent's side of the contract in the module head.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Outlives the inventory.
    epoch_max: BTreeMap<Id, Epoch>,
    inventory: Inventory,
    /// Epochs that were sealed, as reported.
    sealed: BTreeMap<Id, Epoch>,
}

impl Node {
    fn take(&mut self, command: Command) {
        match command {
            Command::Assign(id, epoch) => self.assign(id, epoch),
            Command::Stop(id, epoch) => {
                let stops = |run: &&mut Observed| run.live() || run.phase == Phase::Sealing;
                if let Some(run) = self.run(id, epoch).filter(stops) {
                    run.phase = Phase::Stopping;
                }
            }
            Command::Seal(id, epoch) => {
                if let Some(run) = self.run(id, epoch).filter(|run| run.live()) {
                    run.phase = Phase::Sealing;
                }
            }
            Command::Forget(id, epoch) => {
                let ended =
                    |run: &mut Observed| matches!(run.phase, Phase::Stopped | Phase::Exited);
                if self.run(id, epoch).is_some_and(ended) {
                    self.inventory.remove(&id);
                }
            }
        }
    }

    fn run(&mut self, id: Id, epoch: Epoch) -> Option<&mut Observed> {
        self.inventory.get_mut(&id).filter(|run| run.epoch == epoch)
    }

    fn assign(&mut self, id: Id, epoch: Epoch) {
        let highest = self.epoch_max.get(&id).copied();
        if highest.is_none_or(|highest| epoch > highest) {
            self.epoch_max.insert(id, epoch);
            let run = Observed {
                epoch,
                incarnation: 1,
                phase: Phase::Starting,
            };
            self.inventory.insert(id, run);
        } else if let Some(epoch) = highest {
            let ended = Observed {
                epoch,
                incarnation: 0,
                phase: Phase::Stopped,
            };
            self.inventory.entry(id).or_insert(ended);
        }
    }

    /// One step of its own for each run; `chance` decides how a run ends.
    fn step(&mut self, chance: u8) {
        for (id, run) in &mut self.inventory {
            if run.phase == Phase::Sealing && chance % 4 != 3 {
                self.sealed.insert(*id, run.epoch);
            }
            run.phase = match (run.phase, chance % 4) {
                (Phase::Starting, _) => Phase::Running,
                (Phase::Stopping, _) => Phase::Stopped,
                // It could not be sealed: it goes on.
                (Phase::Sealing, 3) => Phase::Running,
                (Phase::Sealing, _) => Phase::Exited,
                (Phase::Running, 1) => Phase::Exited,
                (Phase::Running, 2) => {
                    run.incarnation += 1;
                    Phase::Starting
                }
                (phase, _) => phase,
            };
        }
    }
}

/// A coordinator, a node, and what is on its way between them.
#[derive(Clone, Debug, Default)]
struct World {
    desired: Wanted,
    node: Node,
    /// An inventory that the coordinator may still have in hand.
    stale: Inventory,
    flying: Vec<Command>,
}

impl World {
    /// Plans, changes the coordinator's records, sends the rest. Whether there was anything.
    fn reconcile(&mut self, inventory: &Inventory) -> bool {
        let desired = self.desired.clone();
        let actions = plan(&desired, inventory);
        for action in &actions {
            match *action {
                Action::Adopt { instance, epoch } => self.raise(*instance, epoch),
                Action::Raise { instance, above } => self.raise(*instance, Epoch(above.0 + 1)),
                Action::Stop {
                    instance, epoch, ..
                } => {
                    self.flying.push(Command::Stop(*instance, epoch));
                }
                Action::Seal { instance, epoch } => {
                    self.flying.push(Command::Seal(*instance, epoch));
                }
                Action::Forget { instance, epoch } => {
                    self.flying.push(Command::Forget(*instance, epoch));
                }
                Action::Assign {
                    instance, epoch, ..
                } => {
                    self.flying.push(Command::Assign(*instance, epoch));
                }
            }
        }
        !actions.is_empty()
    }

    /// Epochs only grow, whatever a stale inventory says.
    fn raise(&mut self, id: Id, epoch: Epoch) {
        if let Some(wanted) = self.desired.get_mut(&id) {
            wanted.epoch = wanted.epoch.max(epoch);
        }
    }

    /// Results of current epochs are recorded, and then nothing more is desired of them: a sealed
    /// one goes on elsewhere, or here under a new epoch if the move was given up meanwhile.
    fn record(&mut self, inventory: &Inventory) {
        for (id, wanted) in &mut self.desired {
            let ended = inventory
                .get(id)
                .is_some_and(|run| run.phase == Phase::Exited);
            let sealed = self.node.sealed.get(id) == Some(&wanted.epoch);
            if ended && sealed && !wanted.seal && !wanted.stop {
                wanted.epoch = Epoch(wanted.epoch.0 + 1);
            }
        }
        self.desired.retain(|id, wanted| {
            let done = |run: &Observed| run.phase == Phase::Exited && run.epoch == wanted.epoch;
            !inventory.get(id).is_some_and(done)
        });
    }

    /// One disturbance, read from random bytes.
    fn disturb(&mut self, (kind, index, detail): (u8, u8, u8)) {
        let at = usize::from(index) % self.flying.len().max(1);
        match kind % 8 {
            0 | 1 if !self.flying.is_empty() => {
                let command = self.flying.swap_remove(at);
                self.deliver(command);
            }
            2 if !self.flying.is_empty() => self.deliver(self.flying[at]),
            3 if !self.flying.is_empty() => drop(self.flying.swap_remove(at)),
            4 => self.node.step(detail),
            5 => self.stale = self.node.inventory.clone(),
            6 => {
                let inventory = if detail % 2 == 0 {
                    self.stale.clone()
                } else {
                    self.node.inventory.clone()
                };
                self.record(&inventory);
                self.reconcile(&inventory);
            }
            7 => self.change_mind(index % 4, detail),
            _ => {}
        }
    }

    fn change_mind(&mut self, id: Id, detail: u8) {
        match (self.desired.get_mut(&id), detail % 5) {
            (Some(_), 0) => drop(self.desired.remove(&id)),
            (Some(wanted), 1) => wanted.stop = true,
            (Some(wanted), 3) => wanted.seal = true,
            (Some(wanted), 4) => wanted.seal = false,
            (Some(wanted), _) => wanted.epoch = Epoch(wanted.epoch.0 + 1),
            // May be an epoch that the node has seen: a restored backup.
            (None, _) => {
                let desired = Desired {
                    epoch: Epoch(1 + u64::from(detail % 4)),
                    spec: 7,
                    stop: false,
                    seal: false,
                };
                self.desired.insert(id, desired);
            }
        }
    }

    /// Delivers, and checks what must hold after every event at the node.
    fn deliver(&mut self, command: Command) {
        let before = self.node.epoch_max.clone();
        self.node.take(command);
        for (id, highest) in &before {
            assert!(
                self.node.epoch_max[id] >= *highest,
                "the highest epoch shrank"
            );
        }
        for (id, run) in &self.node.inventory {
            assert_eq!(run.epoch, self.node.epoch_max[id], "an old epoch is kept");
        }
    }

    /// A quiet spell: everything arrives, in order, nothing changes. Rounds until at rest.
    fn settle(&mut self) -> Option<u32> {
        /// Learn of a refusal, adopt, stop, assign, start, record, forget, with room to spare.
        const ROUNDS_MAX: u32 = 12;
        (0..ROUNDS_MAX).find(|_| {
            for command in std::mem::take(&mut self.flying) {
                self.deliver(command);
            }
            self.node.step(0);
            let inventory = self.node.inventory.clone();
            self.record(&inventory);
            !self.reconcile(&inventory)
                && !inventory.values().any(|run| {
                    matches!(
                        run.phase,
                        Phase::Starting | Phase::Stopping | Phase::Sealing
                    )
                })
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_a_quiet_spell_brings_the_desired_state(
        events in prop::collection::vec(any::<(u8, u8, u8)>(), 0..120),
    ) {
        let mut world = World::default();
        for event in events {
            world.disturb(event);
        }
        prop_assert!(world.settle().is_some(), "no fixed point: {world:?}");
        for (id, wanted) in &world.desired {
            match world.node.inventory.get(id) {
                None => prop_assert!(wanted.stop),
                Some(run) => {
                    prop_assert!(!wanted.stop && !wanted.seal);
                    prop_assert_eq!((run.epoch, run.phase), (wanted.epoch, Phase::Running));
                }
            }
        }
        for id in world.node.inventory.keys() {
            prop_assert!(world.desired.contains_key(id), "{id} is not desired");
        }
        // At rest it stays so.
        let at_rest = world.node.inventory.clone();
        prop_assert!(!world.reconcile(&at_rest));
        prop_assert!(world.flying.is_empty());
    }
}
