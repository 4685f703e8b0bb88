//! What this node owns and what it must do about it. Pure: inputs in, actions out; the shell
//! ([`super::Supervisor`]) makes every [`Action::Persist`] and [`Action::Report`] of a step
//! durable before it acts on the others.
//!
//! Invariants (tested with random orders, repeats and crashes):
//! - a run starts only for the highest epoch known, never for a sealed one, each time under a
//!   token never used before, and never while another run of the instance lives;
//! - a repeated assignment changes nothing;
//! - an ended instance is held, with its outcome, until it is forgotten; its end is reported once
//!   its outputs are where they belong;
//! - a task that may not be repeated begins at most once per epoch;
//! - an epoch whose sealing was reported never runs here again; the mark and the report are of
//!   one step, so they are durable together. A sealing that fails leaves the run as it was.
//!
//! Limits: [`INSTANCES_MAX`] instances, [`TOMBSTONES_MAX`] memories of forgotten ones.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, UnixMs},
    ownership::{Epoch, Incarnation, LedgerEntry, Token},
    spec::Retry,
    wire::{
        Assignment, Checkpoint, End, Event, Held, INVENTORY_MAX, ModelFacts, Output, Phase, Report,
        ServiceFacts, TaskResult, Work,
    },
};
use serde::{Deserialize, Serialize};

/// Most instances held, ended ones included: they fit one inventory.
pub const INSTANCES_MAX: usize = INVENTORY_MAX;
/// Forgotten instances whose epoch is remembered, against late messages.
pub const TOMBSTONES_MAX: usize = 1024;

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The event of its report.
    pub event: Event,
    /// When it ended.
    pub at: UnixMs,
    /// Its outputs are delivered, its report is in the outbox.
    pub reported: bool,
}

/// One instance that is held.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// What to run.
    pub assignment: Arc<Assignment>,
    /// The durable part of its ownership.
    pub ledger: LedgerEntry,
    /// Where it stands.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The run that an executor has in hand; after a new assignment for a while an older one.
    live: Option<Token>,
    /// The live run was asked to end.
    stopping: bool,
    /// The live run was asked for its final checkpoint.
    sealing: bool,
    /// Forget it as soon as the live run ends.
    forgotten: bool,
}

impl Instance {
    /// The newest run.
    #[must_use]
    pub fn token(&self) -> Token {
        Token {
            epoch: self.ledger.epoch_max,
            incarnation: self.ledger.incarnation,
        }
    }

    fn is_sealed(&self) -> bool {
        self.ledger.epoch_max <= self.ledger.sealed_epoch
    }

    /// A newer epoch was assigned, and its assignment was lost: this one must not run.
    fn is_deposed(&self) -> bool {
        self.assignment.epoch < self.ledger.epoch_max
    }

    /// The newest run of what is held, for the coordinator.
    fn held(&self) -> Token {
        if !self.is_deposed() {
            return self.token();
        }
        Token {
            epoch: self.assignment.epoch,
            incarnation: Incarnation(0),
        }
    }

    /// Whether a second run must never begin once one has.
    fn runs_once(&self) -> bool {
        matches!(&self.assignment.work, Work::Task(task) if task.retry == Retry::Never)
    }
}

/// What the stored record of an instance says.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// Held.
    Held {
        /// What to run.
        assignment: Arc<Assignment>,
        /// Its ownership.
        ledger: LedgerEntry,
        /// Where it stood.
        phase: Phase,
        /// How it ended.
        outcome: Option<Outcome>,
    },
    /// Forgotten; `order` grows.
    Tombstone {
        /// Its ownership.
        ledger: LedgerEntry,
        /// When, relative to others.
        order: u64,
    },
}

impl Stored {
    /// Its ownership.
    #[must_use]
    pub fn ledger(&self) -> LedgerEntry {
        let (Self::Held { ledger, .. } | Self::Tombstone { ledger, .. }) = self;
        *ledger
    }

    /// Its ownership.
    pub fn ledger_mut(&mut self) -> &mut LedgerEntry {
        let (Self::Held { ledger, .. } | Self::Tombstone { ledger, .. }) = self;
        ledger
    }
}

/// What happens to the supervisor.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// From the coordinator: own and run this.
    Assign(Box<Assignment>),
    /// From the coordinator: end it, if its epoch is not newer.
    Stop {
        /// Which.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// From the coordinator: its end is durable there.
    Forget {
        /// Which.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// From the coordinator: stop it for good, with a final checkpoint.
    Seal {
        /// Which.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// From the coordinator: make a checkpoint.
    Checkpoint {
        /// Which.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// From its executor.
    Run {
        /// Which.
        instance: InstanceId,
        /// The run that speaks.
        token: Token,
        /// What it says.
        progress: Progress,
    },
}

/// What an executor says about its run.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Its bytes are being fetched or compiled.
    Preparing,
    /// A task could take its first step now; it waits for [`Action::Go`].
    Prepared {
        /// Time to fetch its bytes.
        fetch_us: u64,
        /// Time to compile or load it.
        load_us: u64,
    },
    /// A model serves.
    Serving(ModelFacts),
    /// A service's instance serves.
    Ready(ServiceFacts),
    /// A checkpoint is here and at the coordinator.
    Checkpointed(Checkpoint),
    /// It could not be sealed, and goes on.
    NotSealed(Problem),
    /// The run is over because its lease ended: another may follow.
    Fenced,
    /// The run is over. Nothing follows from this run but `Delivered`.
    Finished(Event),
    /// Its outputs are at the coordinator, or never will be.
    Delivered {
        /// Whether the coordinator has them.
        kept: bool,
    },
}

/// What must be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Store the instance's record (or tombstone) as it is now.
    Persist(InstanceId),
    /// Remove the record: a tombstone too many.
    Erase(InstanceId),
    /// Put a report into the outbox.
    Report(Box<Report>),
    /// Begin a run.
    Start {
        /// What.
        assignment: Arc<Assignment>,
        /// Its token.
        token: Token,
    },
    /// A prepared task may take its first step.
    Go {
        /// Which.
        instance: InstanceId,
        /// Its token.
        token: Token,
    },
    /// End a run; it answers with [`Progress::Finished`].
    Cancel {
        /// Which.
        instance: InstanceId,
        /// Its token.
        token: Token,
    },
    /// Bring outputs to the coordinator; answered with [`Progress::Delivered`].
    Deliver {
        /// Which.
        instance: InstanceId,
        /// Its token.
        token: Token,
        /// What.
        outputs: Vec<Output>,
    },
    /// Make the final checkpoint of a run; answered with [`Progress::Finished`] and
    /// [`Event::Sealed`], or with [`Progress::NotSealed`].
    Seal {
        /// Which.
        instance: InstanceId,
        /// Its token.
        token: Token,
    },
    /// Make a checkpoint of a run; answered with [`Progress::Checkpointed`].
    Checkpoint {
        /// Which.
        instance: InstanceId,
        /// Its token.
        token: Token,
    },
    /// Remove what is kept of a service's instance: it is forgotten.
    Discard(InstanceId),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Core {
    instances: BTreeMap<InstanceId, Instance>,
    tombstones: BTreeMap<InstanceId, (LedgerEntry, u64)>,
    /// Forgotten instances, oldest first.
    forgotten: VecDeque<(u64, InstanceId)>,
}

impl Core {
    /// What was stored when the agent ended, and what to do about it, instance by instance.
    #[must_use]
    pub fn restore(
        stored: impl IntoIterator<Item = (InstanceId, Stored)>,
        now: UnixMs,
    ) -> (Self, Vec<Vec<Action>>) {
        let mut core = Self::default();
        for (id, stored) in stored {
            match stored {
                Stored::Held {
                    assignment,
                    ledger,
                    phase,
                    outcome,
                } => {
                    let instance = Instance {
                        assignment,
                        ledger,
                        phase,
                        outcome,
                        live: None,
                        stopping: false,
                        sealing: false,
                        forgotten: false,
                    };
                    core.instances.insert(id, instance);
                }
                Stored::Tombstone { ledger, order } => {
                    core.tombstones.insert(id.clone(), (ledger, order));
                    core.forgotten.push_back((order, id));
                }
            }
        }
        core.forgotten.make_contiguous().sort();
        let mut steps = Vec::new();
        while let Some(erase) = core.too_many() {
            steps.push(vec![erase]);
        }
        let held: Vec<_> = core.instances.keys().cloned().collect();
        steps.extend(held.iter().map(|id| {
            let mut actions = Vec::new();
            core.resume(id, now, &mut actions);
            actions
        }));
        (core, steps)
    }

    /// Goes on with an instance after a restart of the agent.
    fn resume(&mut self, id: &InstanceId, now: UnixMs, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.is_deposed() {
            // It waits for its assignment, or to be forgotten.
            (instance.phase, instance.outcome) = (Phase::Accepted, None);
            return;
        }
        if let Some(outcome) = instance.outcome.take() {
            if outcome.reported {
                instance.outcome = Some(outcome);
            } else {
                self.end(id, outcome.event, outcome.at, actions);
            }
            return;
        }
        if instance.phase == Phase::Running && instance.runs_once() && !instance.is_sealed() {
            let message = "the agent restarted while it ran";
            let event = Event::Failed(Problem::new(Code::TaskLost, message));
            return self.end(id, event, now, actions);
        }
        self.start(id, now, actions);
    }

    /// Every instance held, for the coordinator.
    #[must_use]
    pub fn inventory(&self) -> Vec<Held> {
        let held = |(id, i): (&InstanceId, &Instance)| Held {
            instance: id.clone(),
            token: i.held(),
            phase: i.phase,
        };
        self.instances.iter().map(held).collect()
    }

    /// One instance, if it is held.
    #[must_use]
    pub fn get(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// The instances held.
    pub fn instances(&self) -> impl Iterator<Item = (&InstanceId, &Instance)> {
        self.instances.iter()
    }

    /// The ownership of everything that is held or remembered.
    pub fn ledger(&self) -> impl Iterator<Item = (&InstanceId, LedgerEntry)> {
        let held = self.instances.iter().map(|(id, i)| (id, i.ledger));
        let buried = self
            .tombstones
            .iter()
            .map(|(id, (ledger, _))| (id, *ledger));
        held.chain(buried)
    }

    /// What to store of an instance; `None` if nothing is known of it.
    #[must_use]
    pub fn stored(&self, id: &InstanceId) -> Option<Stored> {
        if let Some(i) = self.instances.get(id) {
            return Some(Stored::Held {
                assignment: i.assignment.clone(),
                ledger: i.ledger,
                phase: i.phase,
                outcome: i.outcome.clone(),
            });
        }
        let (ledger, order) = *self.tombstones.get(id)?;
        Some(Stored::Tombstone { ledger, order })
    }

    /// Takes one input; what follows from it, in order.
    #[must_use]
    pub fn step(&mut self, input: Input, now: UnixMs) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Assign(assignment) => self.assign(*assignment, now, &mut actions),
            Input::Stop { instance, epoch } => self.stop(&instance, epoch, now, &mut actions),
            Input::Forget { instance, epoch } => self.forget(&instance, epoch, &mut actions),
            Input::Seal { instance, epoch } => self.seal(&instance, epoch, &mut actions),
            Input::Checkpoint { instance, epoch } => {
                self.checkpoint(&instance, epoch, &mut actions);
            }
            Input::Run {
                instance,
                token,
                progress,
            } => {
                self.progress(&instance, token, progress, now, &mut actions);
            }
        }
        actions
    }

    fn assign(&mut self, assignment: Assignment, now: UnixMs, actions: &mut Vec<Action>) {
        let id = assignment.instance.clone();
        let known = self.instances.get(&id);
        let held = known.map(|i| i.assignment.epoch);
        let known = known.map(|i| (i.ledger, i.live));
        let buried = self.tombstones.get(&id).map(|(ledger, _)| *ledger);
        let before = known
            .map(|(ledger, _)| ledger)
            .or(buried)
            .unwrap_or_default();
        let epoch = assignment.epoch;
        // The newest epoch is taken once more if its assignment was lost.
        if epoch <= before.sealed_epoch || held.is_some_and(|held| held >= epoch) {
            return;
        }
        let Ok(ledger) = before.assign(epoch) else {
            return;
        };
        if known.is_none() && self.instances.len() >= INSTANCES_MAX {
            let message = format!("this node already holds {INSTANCES_MAX} instances");
            let event = Event::Failed(Problem::new(Code::Busy, message));
            let token = Token {
                epoch,
                incarnation: Incarnation(0),
            };
            actions.push(report(&id, token, now, event));
            return;
        }
        self.exhume(&id);
        let live = known.and_then(|(_, live)| live);
        let instance = Instance {
            assignment: Arc::new(assignment),
            ledger,
            phase: Phase::Accepted,
            outcome: None,
            live,
            stopping: live.is_some(),
            sealing: false,
            forgotten: false,
        };
        self.instances.insert(id.clone(), instance);
        match live {
            // The new run starts when the deposed one has ended.
            Some(token) => {
                actions.push(Action::Persist(id.clone()));
                actions.push(Action::Cancel {
                    instance: id,
                    token,
                });
            }
            None => self.start(&id, now, actions),
        }
    }

    /// Begins a run, or ends an instance whose epoch was given up.
    fn start(&mut self, id: &InstanceId, now: UnixMs, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        match instance.ledger.begin() {
            Ok((ledger, token)) => {
                instance.ledger = ledger;
                instance.phase = Phase::Accepted;
                instance.live = Some(token);
                (instance.stopping, instance.sealing) = (false, false);
                actions.push(Action::Persist(id.clone()));
                let assignment = Arc::clone(&instance.assignment);
                actions.push(Action::Start { assignment, token });
            }
            Err(_) => self.end(id, Event::Stopped, now, actions),
        }
    }

    fn progress(
        &mut self,
        id: &InstanceId,
        token: Token,
        progress: Progress,
        now: UnixMs,
        actions: &mut Vec<Action>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if let Progress::Delivered { kept } = progress {
            return self.delivered(id, token, kept, actions);
        }
        if instance.live != Some(token) {
            return;
        }
        let current = token == instance.token() && !instance.stopping;
        match progress {
            Progress::Preparing if current => instance.phase = Phase::Preparing,
            Progress::Prepared { fetch_us, load_us } if current => {
                instance.phase = Phase::Running;
                actions.push(Action::Persist(id.clone()));
                actions.push(report(id, token, now, Event::Started { fetch_us, load_us }));
                actions.push(Action::Go {
                    instance: id.clone(),
                    token,
                });
            }
            Progress::Serving(facts) if current => {
                instance.phase = Phase::Running;
                actions.push(Action::Persist(id.clone()));
                actions.push(report(id, token, now, Event::ModelReady(facts)));
            }
            Progress::Ready(facts) if current => {
                instance.phase = Phase::Running;
                actions.push(Action::Persist(id.clone()));
                actions.push(report(id, token, now, Event::ServiceReady(facts)));
            }
            Progress::Checkpointed(made) if current => {
                actions.push(report(id, token, now, Event::Checkpointed(made)));
            }
            Progress::NotSealed(why) if current => {
                instance.sealing = false;
                actions.push(report(id, token, now, Event::NotSealed(why)));
            }
            Progress::Fenced => {
                instance.live = None;
                let ordered = instance.stopping && token.epoch == instance.ledger.epoch_max;
                if instance.forgotten {
                    self.bury(id, actions);
                } else if ordered {
                    self.end(id, Event::Stopped, now, actions);
                } else {
                    self.start(id, now, actions);
                }
            }
            Progress::Finished(event) => {
                instance.live = None;
                if matches!(event, Event::Sealed(_)) {
                    instance.ledger = instance.ledger.seal(token.epoch);
                }
                if instance.forgotten {
                    self.bury(id, actions);
                } else if token.epoch < instance.ledger.epoch_max {
                    self.start(id, now, actions);
                } else {
                    self.end(id, event, now, actions);
                }
            }
            _ => {}
        }
    }

    /// Records an end; its report waits for its outputs.
    fn end(&mut self, id: &InstanceId, event: Event, at: UnixMs, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let outputs = outputs_of(&event);
        let token = instance.token();
        instance.phase = Phase::Ended;
        instance.stopping = false;
        let reported = outputs.is_empty();
        actions.push(Action::Persist(id.clone()));
        if reported {
            actions.push(report(id, token, at, event.clone()));
        } else {
            actions.push(Action::Deliver {
                instance: id.clone(),
                token,
                outputs,
            });
        }
        instance.outcome = Some(Outcome {
            event,
            at,
            reported,
        });
    }

    fn delivered(&mut self, id: &InstanceId, token: Token, kept: bool, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.token() != token {
            return;
        }
        let Some(outcome) = instance.outcome.as_mut().filter(|o| !o.reported) else {
            return;
        };
        if let (false, Event::TaskEnded(result)) = (kept, &mut outcome.event) {
            (result.stdout, result.stderr) = (None, None);
        }
        outcome.reported = true;
        let report = report(id, token, outcome.at, outcome.event.clone());
        actions.push(Action::Persist(id.clone()));
        actions.push(report);
    }

    fn stop(&mut self, id: &InstanceId, epoch: Epoch, now: UnixMs, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return self.stop_unknown(id, epoch, now, actions);
        };
        if epoch < instance.ledger.epoch_max || instance.ledger.sealed_epoch >= epoch {
            return;
        }
        instance.ledger = instance.ledger.seal(epoch);
        if instance.outcome.is_some() {
            actions.push(Action::Persist(id.clone()));
        } else if let Some(token) = instance.live {
            actions.push(Action::Persist(id.clone()));
            if !std::mem::replace(&mut instance.stopping, true) {
                actions.push(Action::Cancel {
                    instance: id.clone(),
                    token,
                });
            }
        } else {
            self.end(id, Event::Stopped, now, actions);
        }
    }

    /// A stop that overtook its assignment: it must not start later, and whoever waits for its
    /// end is told.
    fn stop_unknown(
        &mut self,
        id: &InstanceId,
        epoch: Epoch,
        now: UnixMs,
        actions: &mut Vec<Action>,
    ) {
        let before = self
            .tombstones
            .get(id)
            .map(|(ledger, _)| *ledger)
            .unwrap_or_default();
        if before.sealed_epoch >= epoch {
            return;
        }
        let ledger = before.assign(epoch).unwrap_or(before).seal(epoch);
        self.exhume(id);
        self.entomb(id, ledger, actions);
        let token = Token {
            epoch,
            incarnation: Incarnation(0),
        };
        actions.push(report(id, token, now, Event::Stopped));
    }

    fn forget(&mut self, id: &InstanceId, epoch: Epoch, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if epoch < instance.ledger.epoch_max {
            return;
        }
        let Some(token) = instance.live else {
            return self.bury(id, actions);
        };
        instance.ledger = instance.ledger.seal(epoch);
        instance.forgotten = true;
        actions.push(Action::Persist(id.clone()));
        if !std::mem::replace(&mut instance.stopping, true) {
            actions.push(Action::Cancel {
                instance: id.clone(),
                token,
            });
        }
    }

    /// The run of `epoch`, if it is this node's to give away.
    fn given(&mut self, id: &InstanceId, epoch: Epoch) -> Option<(&mut Instance, Token)> {
        let instance = self.instances.get_mut(id)?;
        let service = matches!(instance.assignment.work, Work::Service(_));
        let token = instance.live.filter(|_| service && !instance.stopping)?;
        (token == instance.token() && token.epoch == epoch).then_some((instance, token))
    }

    fn seal(&mut self, id: &InstanceId, epoch: Epoch, actions: &mut Vec<Action>) {
        if let Some((instance, token)) = self.given(id, epoch)
            && !std::mem::replace(&mut instance.sealing, true)
        {
            let instance = id.clone();
            actions.push(Action::Seal { instance, token });
        }
    }

    fn checkpoint(&mut self, id: &InstanceId, epoch: Epoch, actions: &mut Vec<Action>) {
        // A run that is being sealed makes its final one.
        if let Some((instance, token)) = self.given(id, epoch)
            && !instance.sealing
        {
            let instance = id.clone();
            actions.push(Action::Checkpoint { instance, token });
        }
    }

    fn bury(&mut self, id: &InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.remove(id) else {
            return;
        };
        if matches!(instance.assignment.work, Work::Service(_)) {
            actions.push(Action::Discard(id.clone()));
        }
        let ledger = instance.ledger.seal(instance.ledger.epoch_max);
        self.entomb(id, ledger, actions);
    }

    fn entomb(&mut self, id: &InstanceId, ledger: LedgerEntry, actions: &mut Vec<Action>) {
        let order = self.forgotten.back().map_or(0, |(order, _)| order + 1);
        self.tombstones.insert(id.clone(), (ledger, order));
        self.forgotten.push_back((order, id.clone()));
        actions.push(Action::Persist(id.clone()));
        actions.extend(self.too_many());
    }

    /// Drops the oldest forgotten one, if there are too many.
    fn too_many(&mut self) -> Option<Action> {
        if self.forgotten.len() <= TOMBSTONES_MAX {
            return None;
        }
        let (_, oldest) = self.forgotten.pop_front()?;
        self.tombstones.remove(&oldest);
        Some(Action::Erase(oldest))
    }

    fn exhume(&mut self, id: &InstanceId) {
        if self.tombstones.remove(id).is_some() {
            self.forgotten.retain(|(_, other)| other != id);
        }
    }
}

fn report(id: &InstanceId, token: Token, at: UnixMs, event: Event) -> Action {
    Action::Report(Box::new(Report {
        instance: id.clone(),
        token,
        at,
        event,
    }))
}

/// What must be at the coordinator before the end is reported.
#[must_use]
pub fn outputs_of(event: &Event) -> Vec<Output> {
    match event {
        Event::TaskEnded(result) => result.stdout.into_iter().chain(result.stderr).collect(),
        _ => Vec::new(),
    }
}

/// The end of a task that was cancelled before its first step.
#[must_use]
pub fn cancelled_before_start() -> Event {
    let (stdout, stderr) = (None, None);
    let result = TaskResult {
        end: End::Cancelled,
        usage: Default::default(),
        stdout,
        stderr,
    };
    Event::TaskEnded(Box::new(result))
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
