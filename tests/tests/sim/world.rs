//! The queue of events, the network, what clients know, and what must always hold.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use hop3_common::{
    ownership::{Epoch, Fence, Position, Token, Verdict},
    wire::{Checkpoint, Report},
};

use super::{agent::Agent, coordinator::Coordinator, rng::Rng};

/// Agents.
pub(crate) const NODES: usize = 3;
/// The changes of an instance, each with a number of its own.
pub(crate) type Hist = Vec<u32>;

/// What an agent sends.
#[derive(Clone)]
pub(crate) enum Up {
    Ask {
        number: u64,
        runs: Vec<(usize, Token)>,
    },
    Report {
        number: u64,
        report: Report,
    },
    /// The inventory: what runs.
    Held(Vec<(usize, Token)>),
    Effect {
        at: usize,
        token: Token,
    },
    Frame {
        at: usize,
        token: Token,
        stream: u64,
        body: Body,
    },
}

/// What goes to a replica.
#[derive(Clone)]
pub(crate) enum Body {
    Base(Hist),
    /// One change; what the run has with it.
    Change(Hist),
}

/// What the coordinator sends.
#[derive(Clone)]
pub(crate) enum Down {
    Assign {
        at: usize,
        epoch: Epoch,
        restore: Option<Checkpoint>,
    },
    Seal {
        at: usize,
        epoch: Epoch,
    },
    Stop {
        at: usize,
        epoch: Epoch,
    },
    Granted {
        number: u64,
        runs: Vec<(usize, Token)>,
    },
    Acked {
        number: u64,
    },
    /// Answers a frame.
    Frame {
        at: usize,
        token: Token,
        stream: u64,
        seq: Option<u64>,
    },
}

pub(crate) enum Event {
    Up(usize, Up),
    Down(usize, Down),
    AgentTick(usize),
    CoordinatorTick,
    /// Of a process of an agent: gone when it is.
    Run {
        node: usize,
        life: u32,
        at: usize,
        token: Token,
        what: Work,
    },
    Failing {
        life: u32,
        at: usize,
        epoch: Epoch,
    },
    Client(usize),
    Fault,
    Heal(usize),
    StartAgent(usize),
    StartCoordinator,
}

#[derive(Clone, Copy)]
pub(crate) enum Work {
    Started,
    Synced(usize),
    Sealed,
}

struct Queued(u64, u64, Event);
impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What is known of an instance beside what the mesh knows.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) acked: Hist,
    /// The newest run that did something a client saw.
    pub(crate) acted: Token,
    /// Owners up to this epoch were replaced by force.
    pub(crate) branch: Epoch,
    /// A sink that sees tokens only, and the newest it took from.
    pub(crate) sink: Fence,
    pub(crate) taken: Token,
}

/// A rule that the simulation does not keep, to see that it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Break {
    #[default]
    Nothing,
    NoLeaseCheck,
    AckBeforeSync,
    AckBeforeReplica,
    NoWait,
    NoWaitAfterRestart,
    StreamBeforeSync,
    AnyStreamWrites,
    NoBar,
    WallClock,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) acked: u64,
    pub(crate) failovers: u64,
    pub(crate) moves: u64,
    pub(crate) takeovers: u64,
    pub(crate) resumed: u64,
    pub(crate) fenced: u64,
    pub(crate) crashes: u64,
    pub(crate) restarts: u64,
    pub(crate) partitions: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.acked += other.acked;
        self.failovers += other.failovers;
        self.moves += other.moves;
        self.takeovers += other.takeovers;
        self.resumed += other.resumed;
        self.fenced += other.fenced;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.partitions += other.partitions;
    }
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) broken_rule: Break,
    /// True time, ms: the coordinator's clocks follow it.
    pub(crate) now: u64,
    queued: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) coordinator: Coordinator,
    pub(crate) known: Vec<Known>,
    /// Lease of each instance; `None` = policy `continue`.
    pub(crate) fence: Vec<Option<u64>>,
    /// States at the coordinator: parts of checkpoints.
    pub(crate) blobs: BTreeMap<(usize, Position), Hist>,
    /// Directions that are cut: (node, up).
    pub(crate) cut: BTreeSet<(usize, bool)>,
    /// Streams of which a frame was lost.
    pub(crate) lost: BTreeSet<u64>,
    /// When the last frame of a stream arrives: they keep their order.
    arrives: BTreeMap<(u64, bool), u64>,
    pub(crate) faults: bool,
    pub(crate) quiet: bool,
    /// The coordinator is away for long.
    pub(crate) lonely: bool,
    pub(crate) changes: u32,
    pub(crate) streams: u64,
    pub(crate) counts: Counts,
    pub(crate) violation: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, broken_rule: Break) -> Self {
        let mut rng = Rng(seed);
        let instances = rng.range(2, 5) as usize;
        let mut fence = Vec::new();
        for at in 0..instances {
            let fenced = at == 0 || (at > 1 && rng.chance(500));
            fence.push(fenced.then(|| rng.range(1_000, 3_001)));
        }
        let agents = (0..NODES).map(|_| Agent::new(&mut rng, instances));
        let agents = agents.collect();
        let mut world = Self {
            coordinator: Coordinator::new(instances),
            rng,
            broken_rule,
            now: 100_000,
            queued: 0,
            queue: BinaryHeap::new(),
            agents,
            known: (0..instances).map(|_| Known::default()).collect(),
            fence,
            blobs: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost: BTreeSet::new(),
            arrives: BTreeMap::new(),
            faults: true,
            quiet: false,
            lonely: false,
            changes: 0,
            streams: 0,
            counts: Counts::default(),
            violation: None,
        };
        for node in 0..NODES {
            world.at(node as u64 * 7, Event::AgentTick(node));
        }
        for at in 0..instances {
            world.at(500, Event::Client(at));
        }
        world.at(0, Event::CoordinatorTick);
        world.at(2_000, Event::Fault);
        world
    }

    /// In `ms`.
    pub(crate) fn at(&mut self, ms: u64, event: Event) {
        self.queued += 1;
        let queued = Queued(self.now + ms, self.queued, event);
        self.queue.push(Reverse(queued));
    }

    pub(crate) fn breaks(&self, rule: Break) -> bool {
        self.broken_rule == rule
    }

    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let (now, what) = (self.now, what());
            self.violation = Some(format!("at {now} ms: {what}"));
        }
    }

    /// When a message arrives, if it does.
    fn delay(&mut self, node: usize, up: bool) -> Option<u64> {
        if self.cut.contains(&(node, up)) || (!self.quiet && self.rng.chance(30)) {
            return None;
        }
        let slow = !self.quiet && self.rng.chance(40);
        Some(if slow {
            self.rng.range(200, 4_000)
        } else {
            self.rng.range(1, 40)
        })
    }

    fn ordered(&mut self, stream: u64, up: bool, delay: Option<u64>) -> Option<u64> {
        let Some(delay) = delay.filter(|_| !self.lost.contains(&stream)) else {
            self.lost.insert(stream);
            return None;
        };
        let last = self.arrives.entry((stream, up)).or_default();
        *last = (self.now + delay).max(*last);
        Some(*last - self.now)
    }

    pub(crate) fn send_up(&mut self, node: usize, up: Up) {
        let mut delay = self.delay(node, true);
        if let Up::Frame { stream, .. } = &up {
            delay = self.ordered(*stream, true, delay);
        } else if !self.quiet && self.rng.chance(30) {
            let again = self.rng.range(1, 6_000);
            self.at(again, Event::Up(node, up.clone()));
        }
        if let Some(delay) = delay {
            self.at(delay, Event::Up(node, up));
        }
    }

    pub(crate) fn send_down(&mut self, node: usize, down: Down) {
        let mut delay = self.delay(node, false);
        if let Down::Frame { stream, .. } = &down {
            delay = self.ordered(*stream, false, delay);
        } else if !self.quiet && self.rng.chance(30) {
            let again = self.rng.range(1, 6_000);
            self.at(again, Event::Down(node, down.clone()));
        }
        if let Some(delay) = delay {
            self.at(delay, Event::Down(node, down));
        }
    }

    /// Runs until `end`.
    pub(crate) fn run_until(&mut self, end: u64) {
        while self.violation.is_none() {
            let Some(Reverse(next)) = self.queue.pop() else {
                return;
            };
            if next.0 > end {
                self.queue.push(Reverse(next));
                self.now = end;
                return;
            }
            self.now = next.0;
            self.counts.events += 1;
            self.event(next.2);
            self.check();
        }
    }

    fn event(&mut self, event: Event) {
        // A node that sleeps does nothing; what comes waits for it. Its boot clock goes on.
        if let Event::Down(node, _) | Event::AgentTick(node) | Event::Run { node, .. } = &event {
            let until = self.agents[*node].asleep;
            if until > self.now {
                return self.at(until - self.now, event);
            }
        }
        match event {
            Event::Up(node, up) => self.coordinator_hears(node, up),
            Event::Down(node, down) => self.agent_hears(node, down),
            Event::AgentTick(node) => self.agent_tick(node),
            Event::CoordinatorTick => self.coordinator_tick(),
            Event::Run {
                node,
                life,
                at,
                token,
                what,
            } => {
                let agent = &self.agents[node];
                if agent.up && agent.life == life {
                    self.run_event(node, at, token, what);
                }
            }
            Event::Failing { life, at, epoch } => self.failing_step(life, at, epoch),
            Event::Client(at) => self.client(at),
            Event::Fault => self.fault(),
            Event::Heal(node) => self.cut.retain(|(of, _)| *of != node),
            Event::StartAgent(node) => self.start_agent(node),
            Event::StartCoordinator if self.lonely => {}
            Event::StartCoordinator => self.start_coordinator(),
        }
    }

    pub(crate) fn diverged(&self, at: usize, token: Token) -> bool {
        token.epoch <= self.known[at].branch
    }

    /// A run does what a client sees.
    pub(crate) fn act(&mut self, at: usize, token: Token) {
        if self.diverged(at, token) {
            return;
        }
        let acted = self.known[at].acted;
        if token < acted {
            self.violate(|| format!("instance {at}: run {token} acts after run {acted} did"));
        }
        self.known[at].acted = acted.max(token);
    }

    /// A client is told.
    pub(crate) fn acknowledge(&mut self, at: usize, token: Token, told: &[u32]) {
        self.act(at, token);
        if self.diverged(at, token) {
            return;
        }
        let acked = &mut self.known[at].acked;
        if told.starts_with(acked) {
            self.counts.acked += (told.len() - acked.len()) as u64;
            *acked = told.to_vec();
        } else if !acked.starts_with(told) {
            let acked = acked.clone();
            self.violate(|| format!("instance {at}: run {token} has {told:?}, not {acked:?}"));
        }
    }

    /// An effect at a sink that knows nothing but tokens.
    pub(crate) fn sink(&mut self, at: usize, token: Token) {
        let known = &mut self.known[at];
        if known.sink.admit(token) == Verdict::Accept {
            let taken = known.taken;
            known.taken = taken.max(token);
            if token < taken {
                self.violate(|| format!("instance {at}: a sink took from {token} after {taken}"));
            }
        }
    }

    fn check(&mut self) {
        for at in 0..self.known.len() {
            let mut acting = None;
            for node in 0..NODES {
                let Some(run) = self.agents[node].runs[at].as_ref() else {
                    continue;
                };
                let token = run.token;
                if !run.serving || self.diverged(at, token) {
                    continue;
                }
                let acked = &self.known[at].acked;
                let newest = self.coordinator.instances[at].own.epoch;
                if token.epoch == newest && !run.hist.starts_with(acked) {
                    let (has, acked) = (run.hist.clone(), acked.clone());
                    self.violate(|| {
                        format!("instance {at}: run {token} has {has:?}, not {acked:?}")
                    });
                }
                if !self.may_act(node, at) {
                    continue;
                }
                if let Some(other) = acting.replace(token) {
                    self.violate(|| format!("instance {at}: runs {other} and {token} act"));
                }
            }
        }
    }
}
