//! The coordinator: its records, its leases, and the little that decides.

use std::collections::BTreeMap;

use hop3_common::{
    ownership::{BootMs, Epoch, Leases, Ownership, Position, Replica, Token},
    wire::{Checkpoint, Event as Said, Report},
};

use super::{
    agent::at_of,
    world::{Body, Break, Down, Event, Hist, NODES, Up, World},
};

/// A state, and who made it.
type Saved = (Position, Hist);

/// The durable record of an instance.
pub(crate) struct Instance {
    pub(crate) own: Ownership<usize>,
    checkpoint: Option<Checkpoint>,
    moving: Option<usize>,
    replica: Option<(Replica, Hist)>,
}

pub(crate) struct Coordinator {
    pub(crate) instances: Vec<Instance>,
    pub(crate) up: bool,
    pub(crate) life: u32,
    pub(crate) booted: u64,
    // In memory.
    leases: Leases<usize>,
    /// Failovers under way, with what was read of the replica.
    failing: BTreeMap<usize, Option<Saved>>,
    /// Streams that have begun, with the number of their writer.
    streams: BTreeMap<u64, u64>,
    /// When a node was last heard of.
    heard: [u64; NODES],
}

impl Coordinator {
    pub(crate) fn new(instances: usize) -> Self {
        let instance = |_| Instance {
            own: Ownership::new(Epoch(0)),
            checkpoint: None,
            moving: None,
            replica: None,
        };
        Self {
            instances: (0..instances).map(instance).collect(),
            up: true,
            life: 0,
            booted: 0,
            leases: Leases::new(BootMs(0)),
            failing: BTreeMap::new(),
            streams: BTreeMap::new(),
            heard: [100_000; NODES],
        }
    }
}

impl World {
    fn clock(&self) -> BootMs {
        BootMs(self.now - self.coordinator.booted)
    }

    pub(crate) fn crash_coordinator(&mut self) {
        let c = &mut self.coordinator;
        c.up = false;
        c.failing.clear();
        // Connections end with it.
        self.lost.extend(0..=self.streams);
        self.coordinator.streams.clear();
    }

    pub(crate) fn start_coordinator(&mut self) {
        if self.coordinator.up {
            return;
        }
        let mut began = self.clock();
        if self.breaks(Break::NoWaitAfterRestart) {
            began = BootMs(0);
        }
        let c = &mut self.coordinator;
        (c.up, c.life, c.leases) = (true, c.life + 1, Leases::new(began));
        c.heard = [self.now; NODES];
    }

    pub(crate) fn coordinator_hears(&mut self, node: usize, up: Up) {
        if !self.coordinator.up {
            if let Up::Frame { stream, .. } = up {
                self.lost.insert(stream);
            }
            return;
        }
        self.coordinator.heard[node] = self.now;
        match up {
            Up::Ask { number, runs } => self.grant(node, number, runs),
            Up::Report { number, report } => {
                self.reported(node, report);
                self.send_down(node, Down::Acked { number });
            }
            Up::Held(runs) => {
                for (at, token) in runs {
                    if token.epoch < self.coordinator.instances[at].own.epoch {
                        let epoch = token.epoch;
                        self.send_down(node, Down::Stop { at, epoch });
                    }
                }
            }
            Up::Effect { at, token } => {
                self.sink(at, token);
                let own = &mut self.coordinator.instances[at].own;
                if own.hears(&node, token) {
                    own.heard(token);
                    if self.diverged(at, token) {
                        self.violate(|| format!("instance {at}: an effect of the branch {token}"));
                    }
                }
            }
            Up::Frame {
                at,
                token,
                stream,
                body,
            } => {
                if self.lost.contains(&stream) {
                    return;
                }
                let seq = self.replicate_frame(node, at, token, stream, body);
                if seq.is_none() {
                    self.lost.insert(stream);
                    // The refusal itself may arrive.
                    let down = Down::Frame {
                        at,
                        token,
                        stream,
                        seq,
                    };
                    return self.at(5, Event::Down(node, down));
                }
                self.send_down(
                    node,
                    Down::Frame {
                        at,
                        token,
                        stream,
                        seq,
                    },
                );
            }
        }
    }

    fn grant(&mut self, node: usize, number: u64, runs: Vec<(usize, Token)>) {
        let (now, mut granted) = (self.clock(), Vec::new());
        for (at, token) in runs {
            let Some(ttl) = self.fence[at] else { continue };
            let c = &mut self.coordinator;
            let own = &c.instances[at].own;
            if token.epoch < own.epoch {
                let epoch = token.epoch;
                self.send_down(node, Down::Stop { at, epoch });
            } else if c.leases.grant(&at, own, &node, token, ttl, now) {
                granted.push((at, token));
            }
        }
        if !granted.is_empty() {
            self.send_down(
                node,
                Down::Granted {
                    number,
                    runs: granted,
                },
            );
        }
    }

    /// A frame of a replica: the position that is durable then.
    fn replicate_frame(
        &mut self,
        node: usize,
        at: usize,
        token: Token,
        stream: u64,
        body: Body,
    ) -> Option<u64> {
        let any = self.breaks(Break::AnyStreamWrites);
        let c = &mut self.coordinator;
        let instance = &mut c.instances[at];
        if !instance.own.hears(&node, token) {
            return None;
        }
        let mut mixed = false;
        let end = match body {
            Body::Base(hist) => {
                let before = instance.replica.as_ref().map(|(replica, _)| replica);
                let end = Position {
                    token,
                    seq: hist.len() as u64,
                };
                let replica = Replica::begin(before, end).ok()?;
                c.streams.insert(stream, replica.writer());
                instance.replica = Some((replica, hist));
                end
            }
            Body::Change(whole) => {
                let (replica, hist) = instance.replica.as_mut()?;
                let mut writer = *c.streams.get(&stream)?;
                if any {
                    writer = replica.writer();
                }
                *replica = replica.change(token, writer, whole.len() as u64).ok()?;
                hist.extend(whole.last());
                mixed = *hist != whole;
                replica.end()
            }
        };
        if mixed {
            self.violate(|| format!("instance {at}: the replica is not what run {token} has"));
        }
        Some(end.seq)
    }

    fn reported(&mut self, node: usize, report: Report) {
        let (at, token) = (at_of(&report.instance), report.token);
        let instance = &mut self.coordinator.instances[at];
        if !instance.own.hears(&node, token) {
            if token.epoch < instance.own.epoch {
                let epoch = token.epoch;
                self.send_down(node, Down::Stop { at, epoch });
            }
            return;
        }
        instance.own.heard(token);
        let position = |cp: &Checkpoint| (cp.token, cp.seq);
        match report.event {
            Said::Checkpointed(checkpoint) => {
                let before = instance.checkpoint.as_ref();
                if before.is_none_or(|before| position(before) < position(&checkpoint)) {
                    instance.checkpoint = Some(checkpoint);
                }
            }
            Said::Sealed(checkpoint) => {
                instance.checkpoint = Some(checkpoint);
                let target = instance.moving.take();
                match target {
                    Some(_) => self.counts.moves += 1,
                    None => self.counts.resumed += 1,
                }
                let to = target.unwrap_or(node);
                self.assign(at, to);
            }
            Said::NotSealed(_) => instance.moving = None,
            _ => {}
        }
        if self.diverged(at, token) {
            self.violate(|| format!("instance {at}: a report of the branch {token} was taken"));
        }
    }

    /// The compare-and-swap was made.
    fn assign(&mut self, at: usize, to: usize) {
        let instance = &mut self.coordinator.instances[at];
        instance.own.assign(to);
        (instance.moving, instance.replica) = (None, None);
        self.send_assignment(at);
    }

    fn send_assignment(&mut self, at: usize) {
        let instance = &self.coordinator.instances[at];
        let (epoch, restore) = (instance.own.epoch, instance.checkpoint.clone());
        if let Some(owner) = instance.own.owner {
            self.send_down(owner, Down::Assign { at, epoch, restore });
        }
    }

    pub(crate) fn coordinator_tick(&mut self) {
        let ms = self.rng.range(300, 700);
        self.at(ms, Event::CoordinatorTick);
        if !self.coordinator.up {
            return;
        }
        for at in 0..self.known.len() {
            let instance = &self.coordinator.instances[at];
            let Some(owner) = instance.own.owner else {
                let to = self.rng.range(0, NODES as u64) as usize;
                self.assign(at, to);
                continue;
            };
            let epoch = instance.own.epoch;
            if instance.moving.is_some() {
                self.send_down(owner, Down::Seal { at, epoch });
            }
            self.send_assignment(at);
            self.watch(at, owner, epoch);
        }
    }

    /// Begins a failover of an instance whose owner is silent, once nobody can have a lease.
    fn watch(&mut self, at: usize, owner: usize, epoch: Epoch) {
        let Some(ttl) = self.fence[at] else { return };
        let (now, no_wait, no_bar) = (
            self.clock(),
            self.breaks(Break::NoWait),
            self.breaks(Break::NoBar),
        );
        let c = &mut self.coordinator;
        let silent = self.now > c.heard[owner] + ttl / 2;
        let over = no_wait || now >= c.leases.over(&at, ttl);
        if !silent || !over || c.failing.contains_key(&at) {
            return;
        }
        if !no_bar {
            c.leases.bar(&at, epoch);
        }
        let instance = &mut c.instances[at];
        let read = instance.replica.as_mut().map(|(replica, hist)| {
            *replica = replica.seal();
            (replica.end(), hist.clone())
        });
        c.failing.insert(at, read);
        let (life, ms) = (c.life, self.rng.range(1, 400));
        self.at(ms, Event::Failing { life, at, epoch });
    }

    /// The replica was read: the instance goes to another node, or stays.
    pub(crate) fn failing_step(&mut self, life: u32, at: usize, epoch: Epoch) {
        if !self.coordinator.up || self.coordinator.life != life {
            return;
        }
        let Some(read) = self.coordinator.failing.remove(&at) else {
            return;
        };
        let (to, given_up) = (
            self.rng.range(0, NODES as u64) as usize,
            self.rng.chance(150),
        );
        let c = &mut self.coordinator;
        let alive = self.now <= c.heard[to] + 1_000;
        let instance = &mut c.instances[at];
        let owner = instance.own.owner;
        if instance.own.epoch != epoch || owner == Some(to) || !alive || given_up {
            return c.leases.unbar(&at);
        }
        let position = |cp: &Checkpoint| Position {
            token: cp.token,
            seq: cp.seq,
        };
        if let Some((end, hist)) = read
            && instance
                .checkpoint
                .as_ref()
                .is_none_or(|cp| position(cp) < end)
        {
            self.blobs.insert((at, end), hist);
            let (token, seq) = (end.token, end.seq);
            let (at, schema, parts) = (Default::default(), 1, Vec::new());
            instance.checkpoint = Some(Checkpoint {
                token,
                seq,
                at,
                schema,
                parts,
            });
        }
        self.counts.failovers += 1;
        self.assign(at, to);
    }

    pub(crate) fn begin_move(&mut self, at: usize) {
        let to = self.rng.range(0, NODES as u64) as usize;
        let instance = &mut self.coordinator.instances[at];
        if self.coordinator.up && instance.own.owner.is_some_and(|owner| owner != to) {
            instance.moving = Some(to);
        }
    }

    pub(crate) fn abort_move(&mut self, at: usize) {
        if self.coordinator.up {
            self.coordinator.instances[at].moving = None;
        }
    }

    /// An operator gives an instance that cannot be reached to another node.
    pub(crate) fn take_over(&mut self, at: usize) {
        let to = self.rng.range(0, NODES as u64) as usize;
        let instance = &self.coordinator.instances[at];
        let Some(owner) = instance.own.owner else {
            return;
        };
        let reached = self.now <= self.coordinator.heard[owner] + 2_000;
        if !self.coordinator.up || owner == to || reached || self.fence[at].is_some() {
            return;
        }
        let known = &mut self.known[at];
        known.branch = instance.own.epoch;
        // What the last checkpoint lacks is given up: the operator is told.
        let position = |cp: &Checkpoint| Position {
            token: cp.token,
            seq: cp.seq,
        };
        let state = instance.checkpoint.as_ref().map(position);
        let state = state.map_or(&[][..], |end| &self.blobs[&(at, end)]);
        let pairs = state.iter().zip(&known.acked);
        let same = pairs.take_while(|(a, b)| a == b).count();
        known.acked.truncate(same);
        self.counts.takeovers += 1;
        self.assign(at, to);
    }
}
