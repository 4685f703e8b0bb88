//! One instance, two nodes, a coordinator that forgets everything but the record, and a network
//! that loses, repeats and reorders: never two owners, never a step back, always an end.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId, UnixMs},
    ownership::{Epoch, Token},
    wire::{Checkpoint, Event, ServiceFacts},
};
use proptest::prelude::*;

use super::*;

/// What a node does with the instance, by the rules of the wire.
#[derive(Debug, Clone, Default)]
struct Agent {
    epoch_max: u64,
    sealed: u64,
    /// The epoch that runs, and how many changes it has.
    running: Option<(u64, u64)>,
    /// What it has on its disk.
    kept: u64,
    /// Reports that were not acknowledged.
    outbox: Vec<(Token, Event)>,
}

#[derive(Debug, Clone)]
struct World {
    record: ServiceInstanceRecord,
    agents: BTreeMap<NodeId, Agent>,
    /// Changes that some client was told of.
    acknowledged: u64,
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn run(epoch: u64) -> Token {
    Token {
        epoch: Epoch(epoch),
        ..Token::default()
    }
}

fn taken(epoch: u64, seq: u64) -> Checkpoint {
    Checkpoint {
        token: run(epoch),
        seq,
        at: UnixMs(0),
        schema: 1,
        parts: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        let mut record = ServiceInstanceRecord::new(Epoch(0));
        record.assign(node("a"), 1);
        let agents = ["a", "b"].map(|name| (node(name), Agent::default()));
        Self {
            record,
            agents: agents.into_iter().collect(),
            acknowledged: 0,
        }
    }

    /// The order that follows from the record reaches its owner.
    fn assign(&mut self) {
        let epoch = self.record.own.epoch.0;
        let restore = self.record.checkpoint.as_ref().map_or(0, |cp| cp.seq);
        let owner = self.record.own.owner.clone().unwrap();
        let agent = self.agents.get_mut(&owner).unwrap();
        if epoch > agent.epoch_max {
            agent.epoch_max = epoch;
            // Where to begin, if the node has nothing newer.
            agent.kept = agent.kept.max(restore);
            agent.running = Some((epoch, agent.kept));
            let facts = ServiceFacts {
                fetch_us: 0,
                load_us: 0,
                restore_us: 0,
                seq: agent.kept,
                schema: 1,
                state_bytes: 0,
                replicated: false,
            };
            agent.outbox.push((run(epoch), Event::ServiceReady(facts)));
        }
    }

    fn begin_move(&mut self) {
        let from = self.record.own.owner.clone().unwrap();
        let to = if from == node("a") { "b" } else { "a" };
        if self.record.moving.is_none() && self.record.phase == InstancePhase::Running {
            self.record.moving = Some(MoveRecord {
                instance: "service/s/0".parse::<InstanceId>().unwrap(),
                from,
                to: node(to),
                stage: MoveStage::Copying,
                reason: String::new(),
                began: UnixMs(0),
                sealing: None,
                ended: None,
                copied: Vec::new(),
                copied_bytes: 0,
                final_bytes: 0,
                downtime_us: None,
            });
        }
    }

    fn stage(&self) -> Option<MoveStage> {
        self.record.moving.as_ref().map(|moving| moving.stage)
    }

    /// The order to seal reaches the owner, if the record says so; `fails`: it cannot.
    fn seal(&mut self, fails: bool) {
        if self.stage() != Some(MoveStage::Sealing) {
            return;
        }
        let epoch = self.record.own.epoch.0;
        let owner = self.record.own.owner.clone().unwrap();
        let agent = self.agents.get_mut(&owner).unwrap();
        let Some((running, seq)) = agent.running.filter(|(running, _)| *running == epoch) else {
            return;
        };
        if fails {
            let problem = Problem::new(Code::MoveFailed, "no");
            agent.outbox.push((run(epoch), Event::NotSealed(problem)));
            return;
        }
        agent.running = None;
        agent.sealed = running;
        let last = taken(epoch, seq);
        agent.outbox.push((run(epoch), Event::Sealed(last)));
    }

    /// A client is answered by whoever runs.
    fn work(&mut self, name: &NodeId) {
        let agent = self.agents.get_mut(name).unwrap();
        if let Some((epoch, seq)) = &mut agent.running {
            assert!(*epoch > agent.sealed, "a sealed epoch runs");
            assert!(
                *seq >= self.acknowledged,
                "{name} has {seq} changes and {} were acknowledged",
                self.acknowledged
            );
            *seq += 1;
            agent.kept = *seq;
            self.acknowledged = *seq;
        }
    }

    fn checkpoint(&mut self, name: &NodeId) {
        let agent = self.agents.get_mut(name).unwrap();
        if let Some((epoch, seq)) = agent.running {
            let cp = taken(epoch, seq);
            agent.outbox.push((run(epoch), Event::Checkpointed(cp)));
        }
    }

    /// The oldest report reaches the coordinator; `keep`: its acknowledgement is lost.
    fn report(&mut self, name: &NodeId, keep: bool) {
        let agent = self.agents.get_mut(name).unwrap();
        let Some((token, event)) = agent.outbox.first().cloned() else {
            return;
        };
        if !keep {
            agent.outbox.remove(0);
        }
        if self.record.own.hears(name, token) {
            let before = self.record.own.epoch;
            self.record.report(token, event, 1, UnixMs(0));
            assert!(self.record.own.epoch >= before, "an epoch shrank");
        }
    }

    /// At most one node runs, and none but the owner does for long.
    fn check(&self) {
        let running: Vec<_> = self
            .agents
            .iter()
            .filter(|(_, a)| a.running.is_some())
            .collect();
        assert!(running.len() <= 1, "two owners: {self:?}");
        let kept = self.agents.values().map(|agent| agent.kept).max();
        assert!(kept.unwrap() >= self.acknowledged, "a change is lost");
    }
}

fn step(world: &mut World, kind: u8, detail: u8) {
    let name = node(if detail.is_multiple_of(2) { "a" } else { "b" });
    match kind % 9 {
        0 => world.assign(),
        1 => world.begin_move(),
        2 if world.stage() == Some(MoveStage::Copying) => world.record.seal(UnixMs(0)),
        3 => world.seal(detail % 8 == 7),
        4 if matches!(world.stage(), Some(MoveStage::Copying | MoveStage::Sealing)) => {
            world.record.abort("somebody asked".into(), UnixMs(0));
        }
        5 => world.work(&name),
        6 => world.checkpoint(&name),
        7 | 8 => world.report(&name, detail % 4 == 3),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn one_owner_nothing_lost_and_an_end(
        events in prop::collection::vec(any::<(u8, u8)>(), 0..200),
    ) {
        let mut world = World::new();
        for (kind, detail) in events {
            step(&mut world, kind, detail);
            world.check();
        }
        // A quiet spell: every order and report arrives.
        for _ in 0..40 {
            world.assign();
            if world.stage() == Some(MoveStage::Copying) {
                world.record.seal(UnixMs(0));
            }
            world.seal(false);
            for name in ["a", "b"] {
                world.report(&node(name), false);
            }
            world.check();
        }
        prop_assert_eq!(world.stage(), None, "{:?}", world);
        prop_assert_eq!(world.record.phase, InstancePhase::Running);
        let owner = world.record.own.owner.clone().unwrap();
        let (epoch, seq) = world.agents[&owner].running.unwrap();
        prop_assert_eq!(epoch, world.record.own.epoch.0);
        prop_assert!(seq >= world.acknowledged);
        world.work(&owner);
    }
}
