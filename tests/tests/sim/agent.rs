//! An agent: the product's core of its supervisor, and a small executor.

use std::collections::{BTreeMap, VecDeque};

use hop3_agent::supervisor::core::{Action, Core, Input, Progress, Stored};
use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId, UnixMs},
    ownership::{BootMs, Epoch, Holder, Position, Token},
    spec::{Durability, KeyFrom, Millis, ServiceLimits, State},
    wire::{
        Assignment, Checkpoint, Event as Said, Phase, Report, ServiceFacts, ServiceWork,
        Work as Load,
    },
};

use super::{
    rng::Rng,
    world::{Body, Break, Down, Event, Hist, Up, Work, World},
};

/// A run that nothing was heard of on its stream for so long opens another, ms.
const STREAM_QUIET_MS: u64 = 1_500;

/// The name of the `at`-th instance.
pub(crate) fn id(at: usize) -> InstanceId {
    let id = format!("service/s{at}/0");
    id.parse().expect("it is one")
}

/// Which instance that is.
pub(crate) fn at_of(id: &InstanceId) -> usize {
    usize::from(id.as_str().as_bytes()[9] - b'0')
}

pub(crate) struct Stream {
    id: u64,
    /// Changes that were sent on it.
    sent: usize,
    answered: u64,
}

/// A run: in memory.
pub(crate) struct Run {
    pub(crate) token: Token,
    pub(crate) hist: Hist,
    started: bool,
    pub(crate) serving: bool,
    pub(crate) sealing: bool,
    synced: usize,
    replicated: usize,
    told: usize,
    stream: Option<Stream>,
}

/// What is on the disk of one instance.
#[derive(Default)]
pub(crate) struct Disk {
    stored: Option<Stored>,
    kept: Option<(Position, Hist)>,
}

pub(crate) struct Agent {
    pub(crate) up: bool,
    pub(crate) life: u32,
    /// It sleeps until then.
    pub(crate) asleep: u64,
    /// Its clocks: parts per million too fast, when it began, how far the wall clock is off.
    ppm: i64,
    pub(crate) booted: u64,
    pub(crate) wall_off: i64,
    pub(crate) disks: Vec<Disk>,
    outbox: VecDeque<(u64, Report)>,
    reports: u64,
    pub(crate) cores: Vec<Core>,
    pub(crate) holder: Holder<usize>,
    pub(crate) runs: Vec<Option<Run>>,
}

impl Agent {
    pub(crate) fn new(rng: &mut Rng, instances: usize) -> Self {
        Self {
            up: true,
            life: 0,
            asleep: 0,
            ppm: rng.range(0, 38_001) as i64 - 19_000,
            booted: rng.range(0, 100_000),
            wall_off: 0,
            disks: (0..instances).map(|_| Disk::default()).collect(),
            outbox: VecDeque::new(),
            reports: 0,
            cores: (0..instances).map(|_| Core::default()).collect(),
            holder: Holder::default(),
            runs: (0..instances).map(|_| None).collect(),
        }
    }
}

fn assignment(
    at: usize,
    epoch: Epoch,
    restore: Option<Checkpoint>,
    fence: Option<u64>,
) -> Assignment {
    let durability = match fence {
        Some(_) => Durability::Replicated,
        None => Durability::Node,
    };
    let work = ServiceWork {
        name: format!("s{at}").parse().expect("it is one"),
        index: 0,
        count: 1,
        revision: 1,
        module: Digest([0; 32]),
        module_bytes: 7,
        state: State::Single,
        key: KeyFrom::default(),
        durability,
        fence: fence.map(Millis),
        checkpoint_every: Millis(0),
        checkpoint_keep: 1,
        env: BTreeMap::new(),
        subscribe: Vec::new(),
        publish: Vec::new(),
        calls: Vec::new(),
        volumes: Vec::new(),
        public: false,
        limits: ServiceLimits::default(),
        restore,
    };
    let (instance, work) = (id(at), Load::Service(Box::new(work)));
    Assignment {
        instance,
        epoch,
        work,
    }
}

fn made(token: Token, seq: usize) -> Checkpoint {
    Checkpoint {
        token,
        seq: seq as u64,
        at: UnixMs(0),
        schema: 1,
        parts: Vec::new(),
    }
}

fn facts(seq: usize) -> ServiceFacts {
    ServiceFacts {
        fetch_us: 0,
        load_us: 0,
        restore_us: 0,
        seq: seq as u64,
        schema: 1,
        state_bytes: 0,
        replicated: false,
    }
}

impl World {
    pub(crate) fn boot(&self, node: usize) -> BootMs {
        let agent = &self.agents[node];
        let on = i128::from(self.now - agent.booted) * i128::from(1_000_000 + agent.ppm);
        let mut ms = on / 1_000_000;
        if self.breaks(Break::WallClock) {
            ms += i128::from(agent.wall_off) + 200_000_000;
        }
        BootMs(u64::try_from(ms).expect("clocks begin at 0"))
    }

    fn wall(&self, node: usize) -> UnixMs {
        let off = self.agents[node].wall_off;
        UnixMs((1_800_000_000_000 + self.now).saturating_add_signed(off))
    }

    /// Whether the run on `node` may act now.
    pub(crate) fn may_act(&self, node: usize, at: usize) -> bool {
        let agent = &self.agents[node];
        let Some(run) = agent.runs[at].as_ref() else {
            return false;
        };
        self.fence[at].is_none()
            || self.breaks(Break::NoLeaseCheck)
            || agent.holder.holds(&at, run.token, self.boot(node))
    }

    fn step(&mut self, node: usize, at: usize, input: Input) {
        let wall = self.wall(node);
        let actions = self.agents[node].cores[at].step(input, wall);
        self.make(node, at, actions);
    }

    fn progress(&mut self, node: usize, at: usize, token: Token, progress: Progress) {
        let instance = id(at);
        self.step(
            node,
            at,
            Input::Run {
                instance,
                token,
                progress,
            },
        );
    }

    /// What a step says is durable, then done.
    fn make(&mut self, node: usize, at: usize, actions: Vec<Action>) {
        let agent = &mut self.agents[node];
        for action in &actions {
            match action {
                Action::Persist(id) => agent.disks[at].stored = agent.cores[at].stored(id),
                Action::Erase(_) => agent.disks[at].stored = None,
                Action::Report(report) => {
                    agent.reports += 1;
                    agent.outbox.push_back((agent.reports, (**report).clone()));
                }
                _ => {}
            }
        }
        for action in actions {
            self.execute(node, at, action);
        }
    }

    fn execute(&mut self, node: usize, at: usize, action: Action) {
        let life = self.agents[node].life;
        match action {
            Action::Start { token, .. } => {
                self.agents[node].runs[at] = Some(Run {
                    token,
                    hist: Vec::new(),
                    started: false,
                    serving: false,
                    sealing: false,
                    synced: 0,
                    replicated: 0,
                    told: 0,
                    stream: None,
                });
                let (ms, what) = (self.rng.range(1, 60), Work::Started);
                self.at(
                    ms,
                    Event::Run {
                        node,
                        life,
                        at,
                        token,
                        what,
                    },
                );
            }
            Action::Cancel { token, .. } => {
                self.drop_run(node, at);
                self.progress(node, at, token, Progress::Finished(Said::Stopped));
            }
            Action::Seal { token, .. } => {
                if let Some(run) = self.agents[node].runs[at].as_mut() {
                    run.sealing = true;
                }
                let (ms, what) = (self.rng.range(1, 80), Work::Sealed);
                self.at(
                    ms,
                    Event::Run {
                        node,
                        life,
                        at,
                        token,
                        what,
                    },
                );
            }
            _ => {}
        }
    }

    fn drop_run(&mut self, node: usize, at: usize) {
        let agent = &mut self.agents[node];
        agent.runs[at] = None;
        agent.holder.forget(&at);
    }

    /// What a started process of an agent does about one instance, or a run that ended by itself.
    fn restore(&mut self, node: usize, at: usize) {
        let wall = self.wall(node);
        let stored = self.agents[node].disks[at].stored.clone();
        let (core, steps) = Core::restore(stored.map(|stored| (id(at), stored)), wall);
        self.agents[node].cores[at] = core;
        for actions in steps {
            self.make(node, at, actions);
        }
    }

    /// The run gives up by itself: the next one has a new incarnation.
    fn run_over(&mut self, node: usize, at: usize) {
        self.counts.fenced += 1;
        self.drop_run(node, at);
        self.restore(node, at);
    }

    pub(crate) fn crash_agent(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        agent.up = false;
        agent.asleep = 0;
        agent.holder = Holder::default();
        agent.runs.iter_mut().for_each(|run| *run = None);
    }

    pub(crate) fn start_agent(&mut self, node: usize) {
        if self.agents[node].up {
            return;
        }
        let agent = &mut self.agents[node];
        agent.up = true;
        agent.life += 1;
        for at in 0..self.known.len() {
            self.restore(node, at);
        }
    }

    pub(crate) fn run_event(&mut self, node: usize, at: usize, token: Token, what: Work) {
        if self.agents[node].runs[at]
            .as_ref()
            .is_none_or(|run| run.token != token)
        {
            return;
        }
        match what {
            Work::Started => self.started(node, at, token),
            Work::Synced(seq) => self.synced(node, at, token, seq),
            Work::Sealed => self.seal_now(node, at, token),
        }
    }

    /// The state is in place.
    fn started(&mut self, node: usize, at: usize, token: Token) {
        let agent = &mut self.agents[node];
        let Some(instance) = agent.cores[at].get(&id(at)) else {
            return;
        };
        let restore = match &instance.assignment.work {
            Load::Service(work) => work.restore.as_ref(),
            _ => None,
        };
        let restore = restore.map(|cp| Position {
            token: cp.token,
            seq: cp.seq,
        });
        let there = restore.map(|end| (end, self.blobs[&(at, end)].clone()));
        let kept = agent.disks[at].kept.clone();
        // Whichever is newer: a lower run never has anything newer.
        let newest = kept.into_iter().chain(there).max_by_key(|(end, _)| *end);
        let hist = newest.map(|(_, hist)| hist).unwrap_or_default();
        let seq = hist.len() as u64;
        agent.disks[at].kept = Some((Position { token, seq }, hist.clone()));
        if let Some(run) = agent.runs[at].as_mut() {
            (run.started, run.synced, run.hist) = (true, hist.len(), hist);
            (run.serving, run.told) = (self.fence[at].is_none(), 0);
            let seq = run.hist.len();
            if run.serving {
                self.progress(node, at, token, Progress::Ready(facts(seq)));
            }
        }
    }

    fn synced(&mut self, node: usize, at: usize, token: Token, seq: usize) {
        let agent = &mut self.agents[node];
        let Some(run) = agent.runs[at].as_mut() else {
            return;
        };
        if seq > run.synced {
            run.synced = seq;
            let end = Position {
                token,
                seq: seq as u64,
            };
            agent.disks[at].kept = Some((end, run.hist[..seq].to_vec()));
        }
        self.replicate(node, at);
        self.tell(node, at);
    }

    /// Sends what the replica does not have.
    fn replicate(&mut self, node: usize, at: usize) {
        let early = self.breaks(Break::StreamBeforeSync);
        loop {
            let Some(run) = self.agents[node].runs[at].as_mut() else {
                return;
            };
            let ready = if early { run.hist.len() } else { run.synced };
            let Some(stream) = run.stream.as_mut().filter(|stream| stream.sent < ready) else {
                return;
            };
            stream.sent += 1;
            let (token, stream, to) = (run.token, stream.id, stream.sent);
            let body = Body::Change(run.hist[..to].to_vec());
            self.send_up(
                node,
                Up::Frame {
                    at,
                    token,
                    stream,
                    body,
                },
            );
        }
    }

    /// Tells clients what is sure.
    fn tell(&mut self, node: usize, at: usize) {
        let (fenced, holds) = (self.fence[at].is_some(), self.may_act(node, at));
        let early = [Break::AckBeforeSync, Break::AckBeforeReplica].map(|rule| self.breaks(rule));
        let Some(run) = self.agents[node].runs[at].as_mut() else {
            return;
        };
        let all = run.hist.len();
        let local = if early[0] { all } else { run.synced };
        let there = if early[1] || !fenced {
            all
        } else {
            run.replicated
        };
        let sure = local.min(there);
        if run.serving && holds && sure > run.told {
            run.told = sure;
            let (token, told) = (run.token, run.hist[..sure].to_vec());
            self.acknowledge(at, token, &told);
        }
    }

    fn seal_now(&mut self, node: usize, at: usize, token: Token) {
        let fails = !self.quiet && self.rng.chance(100);
        let agent = &mut self.agents[node];
        let Some(run) = agent.runs[at].as_mut() else {
            return;
        };
        if fails {
            run.sealing = false;
            let why = Problem::new(Code::Busy, "the final checkpoint could not be made");
            return self.progress(node, at, token, Progress::NotSealed(why));
        }
        let hist = run.hist.clone();
        let end = Position {
            token,
            seq: hist.len() as u64,
        };
        agent.disks[at].kept = Some((end, hist.clone()));
        let said = Said::Sealed(made(token, hist.len()));
        self.blobs.insert((at, end), hist);
        self.drop_run(node, at);
        self.progress(node, at, token, Progress::Finished(said));
    }

    pub(crate) fn agent_tick(&mut self, node: usize) {
        let ms = self.rng.range(150, 400);
        let slow = if self.lonely { 5 } else { 1 };
        self.at(ms * slow, Event::AgentTick(node));
        if !self.agents[node].up {
            return;
        }
        let now = self.boot(node);
        let mut asks = Vec::new();
        for at in 0..self.known.len() {
            let agent = &self.agents[node];
            let Some(run) = agent.runs[at].as_ref().filter(|_| self.fence[at].is_some()) else {
                continue;
            };
            let token = run.token;
            if agent
                .holder
                .until(&at, token)
                .is_some_and(|until| now >= until)
            {
                self.run_over(node, at);
                continue;
            }
            asks.push((at, token));
            self.open(node, at);
        }
        if !asks.is_empty() {
            let number = self.agents[node].holder.ask(now);
            self.send_up(node, Up::Ask { number, runs: asks });
        }
        let cores = self.agents[node].cores.iter().enumerate();
        let held = cores.flat_map(|(at, core)| core.inventory().into_iter().map(move |h| (at, h)));
        let running = held.filter(|(_, held)| held.phase != Phase::Ended);
        let running = running.map(|(at, held)| (at, held.token)).collect();
        self.send_up(node, Up::Held(running));
        let waiting: Vec<_> = self.agents[node].outbox.iter().take(4).cloned().collect();
        for (number, report) in waiting {
            self.send_up(node, Up::Report { number, report });
        }
    }

    /// A stream to the replica, if the run may have one and has none that works.
    fn open(&mut self, node: usize, at: usize) {
        let (holds, now) = (self.may_act(node, at), self.now);
        let Some(run) = self.agents[node].runs[at].as_mut() else {
            return;
        };
        let behind = run.replicated < run.hist.len() || !run.serving;
        let stuck = |stream: &Stream| behind && now > stream.answered + STREAM_QUIET_MS;
        if run.stream.as_ref().is_some_and(stuck) {
            run.stream = None;
        }
        if !run.started || !holds || run.stream.is_some() {
            return;
        }
        self.streams += 1;
        let stream = self.streams;
        let sent = run.synced;
        run.stream = Some(Stream {
            id: stream,
            sent,
            answered: now,
        });
        let (token, body) = (run.token, Body::Base(run.hist[..sent].to_vec()));
        self.send_up(
            node,
            Up::Frame {
                at,
                token,
                stream,
                body,
            },
        );
        self.replicate(node, at);
    }

    pub(crate) fn agent_hears(&mut self, node: usize, down: Down) {
        if !self.agents[node].up {
            return;
        }
        match down {
            Down::Assign { at, epoch, restore } => {
                let assignment = assignment(at, epoch, restore, self.fence[at]);
                self.step(node, at, Input::Assign(Box::new(assignment)));
            }
            Down::Seal { at, epoch } => {
                let instance = id(at);
                if self.agents[node].runs[at]
                    .as_ref()
                    .is_some_and(|run| run.serving)
                {
                    self.step(node, at, Input::Seal { instance, epoch });
                }
            }
            Down::Stop { at, epoch } => {
                let instance = id(at);
                self.step(node, at, Input::Stop { instance, epoch });
            }
            Down::Granted { number, runs } => {
                for (at, token) in runs {
                    let ttl = self.fence[at].unwrap_or_default();
                    self.agents[node].holder.granted(number, &at, token, ttl);
                    self.open(node, at);
                }
            }
            Down::Acked { number } => {
                self.agents[node]
                    .outbox
                    .retain(|(waiting, _)| *waiting != number);
            }
            Down::Frame {
                at,
                token,
                stream,
                seq,
            } => self.answered(node, at, token, stream, seq),
        }
    }

    fn answered(&mut self, node: usize, at: usize, token: Token, id: u64, seq: Option<u64>) {
        let now = self.now;
        let Some(run) = self.agents[node].runs[at]
            .as_mut()
            .filter(|run| run.token == token)
        else {
            return;
        };
        let Some(stream) = run.stream.as_mut().filter(|stream| stream.id == id) else {
            return;
        };
        stream.answered = now;
        let Some(seq) = seq else {
            return self.run_over(node, at);
        };
        run.replicated = seq as usize;
        let seq = run.hist.len();
        if !std::mem::replace(&mut run.serving, true) {
            self.progress(node, at, token, Progress::Ready(facts(seq)));
        }
        self.tell(node, at);
    }

    /// A client changes something, somewhere.
    pub(crate) fn client(&mut self, at: usize) {
        let ms = self.rng.range(40, 500);
        self.at(ms * self.slow(), Event::Client(at));
        let node = self.rng.range(0, super::world::NODES as u64) as usize;
        let (life, may) = (self.agents[node].life, self.may_act(node, at));
        let asleep = self.agents[node].asleep > self.now;
        let effect = self.rng.chance(200);
        self.changes += 1;
        let change = self.changes;
        let agent = &mut self.agents[node];
        let Some(run) = agent.runs[at]
            .as_mut()
            .filter(|run| run.serving && !run.sealing)
        else {
            return;
        };
        if asleep {
            return;
        }
        let token = run.token;
        run.hist.push(change);
        let seq = run.hist.len();
        let what = Work::Synced(seq);
        let ms = self.rng.range(1, 30);
        self.at(
            ms,
            Event::Run {
                node,
                life,
                at,
                token,
                what,
            },
        );
        if may {
            self.act(at, token);
            if effect {
                self.send_up(node, Up::Effect { at, token });
            }
        }
        self.replicate(node, at);
        self.tell(node, at);
        if self.rng.chance(60) {
            self.checkpoint(node, at);
        }
    }

    fn checkpoint(&mut self, node: usize, at: usize) {
        let Some(run) = self.agents[node].runs[at].as_ref() else {
            return;
        };
        let (token, hist) = (run.token, run.hist[..run.synced].to_vec());
        let said = Progress::Checkpointed(made(token, hist.len()));
        let end = Position {
            token,
            seq: hist.len() as u64,
        };
        self.blobs.insert((at, end), hist);
        self.progress(node, at, token, said);
    }
}
