//! The model: what may happen next, and what must never be.

use std::collections::BTreeSet;

use hop3_common::ownership::{
    Epoch, Fence, Holder, Incarnation, Leases, LedgerEntry, Ownership, Token,
};
use stateright::{Model, Property};

use super::{
    mutants::Mutant,
    world::{Agent, Broken, Budget, Coordinator, How, KEY, Msg, Node, Record, Run, TTL_MS, World},
};

/// Which rules hold, and how far to look.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) name: &'static str,
    /// Policy `fence` with a replica; else `continue`.
    pub(crate) fenced: bool,
    /// A change is durable here before it goes to the replica.
    pub(crate) local_first: bool,
    /// Where it begins.
    pub(crate) start: Start,
    pub(crate) mutants: &'static [Mutant],
    pub(crate) budget: Budget,
}

/// What has happened before the search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Nothing,
    /// The first owner serves.
    Serving,
    /// And a failover is about to be committed.
    Failing,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    Deliver(Msg),
    Tick,
    TickAgent(Node),
    Ask(Node),
    Open(Node),
    Change(Node),
    Sync(Node),
    Acknowledge(Node),
    Read(Node),
    Effect(Node),
    Checkpoint(Node),
    SelfFence(Node),
    Crash(Node),
    Replicate(usize),
    Answered(usize),
    Break(usize),
    Restart,
    BeginMove,
    AbortMove,
    FailOver,
    ReadReplica,
    Commit,
    GiveUpFailover,
    RemoveOld,
    TakeOver,
}

impl Rules {
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutants.contains(&mutant)
    }

    fn agent_acts(&self, w: &World, i: Node, acts: &mut Vec<Act>) {
        let agent = &w.agents[i as usize];
        if agent.ticks < w.coordinator.ticks {
            acts.push(Act::TickAgent(i));
        }
        if w.left.crashes > 0 && agent.ledger.epoch_max > Epoch(0) {
            acts.push(Act::Crash(i));
        }
        let Some(run) = &agent.run else { return };
        let holds = self.may_act(agent, run);
        let stream = w.streams.iter().find(|s| s.open && s.node == i);
        if self.fenced {
            if run.asked != Some(agent.ticks) {
                acts.push(Act::Ask(i));
            }
            let until = agent.holder.until(&KEY, run.token);
            if until.is_some_and(|until| agent.now() >= until) {
                acts.push(Act::SelfFence(i));
            }
            if holds && stream.is_none() {
                acts.push(Act::Open(i));
            }
        }
        if !run.serving {
            return;
        }
        if w.left.changes > 0 {
            acts.push(Act::Change(i));
        }
        let kept = agent.kept.as_ref().map(|kept| (kept.at.token, kept.at.seq));
        if kept != Some((run.token, run.hist.len() as u64)) {
            acts.push(Act::Sync(i));
        }
        if holds {
            if self.sure(w, i) > w.acked.len() || !run.hist.starts_with(&w.acked) {
                acts.push(Act::Acknowledge(i));
            }
            if run.token != w.acted {
                acts.push(Act::Read(i));
            }
            if w.left.effects > 0 {
                acts.push(Act::Effect(i));
            }
        }
        if w.left.checkpoints > 0 {
            acts.push(Act::Checkpoint(i));
        }
    }

    fn coordinator_acts(&self, w: &World, acts: &mut Vec<Act>) {
        let c = &w.coordinator;
        if w.left.ticks > 0 && w.agents.iter().all(|agent| agent.ticks >= c.ticks) {
            acts.push(Act::Tick);
        }
        if w.left.restarts > 0 {
            acts.push(Act::Restart);
        }
        if w.left.moves > 0 && c.record.moving.is_none() {
            acts.push(Act::BeginMove);
        }
        if w.left.aborts > 0 && c.record.moving.is_some() {
            acts.push(Act::AbortMove);
        }
        match &c.failing {
            None if w.left.failovers > 0 && self.over(w) => acts.push(Act::FailOver),
            None => {}
            Some(failing) if failing.end.is_none() => {
                acts.extend([Act::ReadReplica, Act::GiveUpFailover]);
            }
            Some(_) => acts.extend([Act::Commit, Act::GiveUpFailover]),
        }
        let old = |at: Token| at.epoch < c.record.own.epoch || self.is(Mutant::LateRemoval);
        let replica = c.record.replica.as_ref();
        if c.record.own.epoch > Epoch(1) && replica.is_some_and(|r| old(r.replica.end().token)) {
            acts.push(Act::RemoveOld);
        }
        if w.left.takeovers > 0 {
            acts.push(Act::TakeOver);
        }
    }

    fn deliver(&self, w: &mut World, msg: &Msg) {
        match msg {
            Msg::Assign { to, epoch, restore } => self.assigned(w, *to, *epoch, restore),
            Msg::Seal { to, epoch } => self.seal(w, *to, *epoch),
            Msg::Stop { to, epoch } => self.stop(w, *to, *epoch),
            Msg::Granted { to, number, token } => {
                if self.is(Mutant::LeaseFromReceipt) {
                    w.net.remove(msg);
                }
                self.granted(w, *to, *number, *token);
            }
            Msg::Ask {
                from,
                number,
                token,
            } => {
                // A repeat would only be remembered longer.
                w.net.remove(msg);
                self.granting(w, *from, *number, *token);
            }
            Msg::Sealed { from, token, state } => self.sealed(w, *from, *token, state),
            Msg::Checkpoint { from, token, state } => self.checkpointed(w, *from, *token, state),
            Msg::Effect { from, token } => self.effect(w, *from, *token),
        }
    }

    fn step(&self, w: &mut World, act: Act) {
        match act {
            Act::Deliver(msg) => self.deliver(w, &msg),
            Act::Tick => {
                w.left.ticks -= 1;
                w.coordinator.ticks += 1;
                // The first owner's clock alone may be behind.
                w.agents[1].ticks += 1;
            }
            Act::TickAgent(i) => w.agents[i as usize].ticks += 1,
            Act::Ask(i) => self.ask(w, i),
            Act::Open(i) => self.open(w, i),
            Act::Change(i) => self.change(w, i),
            Act::Sync(i) => self.sync(w, i),
            Act::Acknowledge(i) => self.acknowledge(w, i),
            Act::Read(i) => self.read(w, i),
            Act::Effect(i) => {
                w.left.effects -= 1;
                self.read(w, i);
                if let Some(run) = &w.agents[i as usize].run {
                    let (from, token) = (i, run.token);
                    w.net.insert(Msg::Effect { from, token });
                }
            }
            Act::Checkpoint(i) => {
                w.left.checkpoints -= 1;
                self.sync(w, i);
                let agent = &w.agents[i as usize];
                if let (Some(run), Some(state)) = (&agent.run, agent.kept.clone()) {
                    let (from, token) = (i, run.token);
                    w.net.insert(Msg::Checkpoint { from, token, state });
                }
            }
            Act::SelfFence(i) => self.self_fence(w, i),
            Act::Crash(i) => {
                w.left.crashes -= 1;
                self.crash(w, i);
            }
            Act::Replicate(k) => self.replicate(w, k),
            Act::Answered(k) => self.answered(w, k),
            Act::Break(k) => {
                w.left.breaks -= 1;
                self.break_stream(w, k);
            }
            Act::Restart => self.restart(w),
            Act::BeginMove => self.begin_move(w),
            Act::AbortMove => {
                w.left.aborts -= 1;
                w.coordinator.record.moving = None;
            }
            Act::FailOver => self.fail_over(w),
            Act::ReadReplica => self.read_replica(w),
            Act::Commit => self.commit(w),
            Act::GiveUpFailover => {
                w.coordinator.failing = None;
                w.coordinator.leases.unbar(&KEY);
            }
            Act::RemoveOld => self.remove_old(w),
            Act::TakeOver => self.take_over(w),
        }
    }

    fn first(&self) -> World {
        let mut own = Ownership::new(Epoch(0));
        own.assign(0);
        let assign = Msg::Assign {
            to: 0,
            epoch: own.epoch,
            restore: None,
        };
        let record = Record {
            own,
            checkpoint: None,
            moving: None,
            replica: None,
            how: How::First,
        };
        let mut coordinator = Coordinator {
            record,
            leases: Leases::new(Default::default()),
            failing: None,
            ticks: 0,
        };
        // Long after its start.
        coordinator.leases = Leases::new(hop3_common::ownership::BootMs(
            coordinator.now().0 - 10 * TTL_MS,
        ));
        let agent = || Agent {
            ledger: LedgerEntry::default(),
            restore: None,
            kept: None,
            holder: Holder::default(),
            run: None,
            ticks: 0,
        };
        World {
            coordinator,
            agents: [agent(), agent()],
            net: BTreeSet::from([assign]),
            streams: Vec::new(),
            sink: Fence::default(),
            taken: Default::default(),
            acked: Vec::new(),
            acted: Token::default(),
            branch: None,
            broken: Broken::default(),
            left: self.budget,
        }
    }

    /// The first owner serves, fenced.
    fn serve(&self, w: &mut World) {
        let token = Token {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
        };
        let (from, to, number) = (0, 0, 1);
        let ask = Msg::Ask {
            from,
            number,
            token,
        };
        let granted = Msg::Granted { to, number, token };
        for msg in w.net.clone() {
            self.step(w, Act::Deliver(msg));
        }
        let then = [Act::Ask(0), Act::Deliver(ask), Act::Deliver(granted)];
        let then = then
            .into_iter()
            .chain([Act::Open(0), Act::Replicate(0), Act::Answered(0)]);
        then.for_each(|act| self.step(w, act));
    }

    /// Runs that may act at this moment, and are no branch.
    fn active<'a>(&self, w: &'a World) -> impl Iterator<Item = &'a Run> {
        let runs = w.agents.iter().filter_map(|a| Some((a, a.run.as_ref()?)));
        let active = runs.filter(|(a, r)| r.serving && self.may_act(a, r) && !w.diverged(r.token));
        active.map(|(_, run)| run)
    }

    /// Removes messages that nobody would heed any more.
    fn prune(&self, w: &mut World) {
        let heeded = [
            Mutant::GrantToAnybody,
            Mutant::LeaseFromReceipt,
            Mutant::NoIncarnation,
            Mutant::BeginNotDurable,
            Mutant::FencedKeepsIncarnation,
        ];
        if heeded.into_iter().any(|mutant| self.is(mutant)) {
            return;
        }
        let (own, agents) = (&w.coordinator.record.own, &w.agents);
        w.net.retain(|msg| match msg {
            Msg::Ask { from, token, .. } => own.hears(from, *token),
            Msg::Granted { to, token, .. } => {
                let run = agents[*to as usize].run.as_ref();
                run.is_some_and(|run| run.token == *token)
            }
            _ => true,
        });
    }
}

/// No two copies act at once.
pub(crate) const ONE: &str = "one copy may act";
/// Invariant 1, seen by a client.
pub(crate) const DEPOSED: &str = "no deposed run acts";
/// Invariant 2.
pub(crate) const LOST: &str = "nothing acknowledged is lost";
/// Invariant 1, seen by a sink.
pub(crate) const STALE: &str = "no sink takes from a deposed run";
/// A replica is a state that its run had.
pub(crate) const MIXED: &str = "a replica is what its run had";

/// The newest owner, once it serves, has what was acknowledged by those before.
fn owner_has_all(w: &World) -> bool {
    let newest = w.coordinator.record.own.epoch;
    let runs = w.agents.iter().filter_map(|agent| agent.run.as_ref());
    let mut owners = runs.filter(|run| run.serving && run.token.epoch == newest);
    owners.all(|run| run.hist.starts_with(&w.acked))
}

/// A failover at this moment would find all that was acknowledged.
fn next_has_all(w: &World) -> bool {
    let record = &w.coordinator.record;
    let copied = record.replica.as_ref();
    let copied = copied.map(|copied| (copied.replica.end(), &copied.hist));
    let checkpoint = record.checkpoint.as_ref().map(|cp| (cp.at, &cp.hist));
    let newest = copied
        .into_iter()
        .chain(checkpoint)
        .max_by_key(|(end, _)| *end);
    newest.map_or(w.acked.is_empty(), |(_, hist)| hist.starts_with(&w.acked))
}

/// The newest owner serves, with something acknowledged, since it became the owner like that.
fn serves(w: &World, how: How) -> bool {
    let record = &w.coordinator.record;
    let serves = |agent: &Agent| {
        let run = agent.run.as_ref();
        run.is_some_and(|run| run.serving && run.token.epoch == record.own.epoch)
    };
    record.how == how && !w.acked.is_empty() && w.agents.iter().any(serves)
}

impl Model for Rules {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let mut first = self.first();
        if self.start != Start::Nothing {
            self.serve(&mut first);
        }
        if self.start == Start::Failing {
            first.left.ticks += 2;
            for act in [Act::Tick, Act::TickAgent(0), Act::Tick, Act::TickAgent(0)] {
                self.step(&mut first, act);
            }
            first.left.failovers += 1;
            self.step(&mut first, Act::FailOver);
            self.step(&mut first, Act::ReadReplica);
        }
        vec![first]
    }

    fn actions(&self, w: &World, acts: &mut Vec<Act>) {
        acts.extend(w.net.iter().cloned().map(Act::Deliver));
        for i in 0..2 {
            self.agent_acts(w, i, acts);
        }
        for (k, stream) in w.streams.iter().enumerate() {
            if !stream.up.is_empty() {
                acts.push(Act::Replicate(k));
            }
            if stream.open && (stream.kept > 0 || stream.refused) {
                acts.push(Act::Answered(k));
            }
            if stream.open && w.left.breaks > 0 {
                acts.push(Act::Break(k));
            }
        }
        self.coordinator_acts(w, acts);
    }

    fn next_state(&self, before: &World, act: Act) -> Option<World> {
        let mut after = before.clone();
        self.step(&mut after, act);
        self.prune(&mut after);
        (after != *before).then_some(after)
    }

    fn within_boundary(&self, w: &World) -> bool {
        let few = |msg: &Msg| !matches!(msg, Msg::Granted { number, .. } if *number > 4);
        w.agents.iter().all(|agent| agent.ledger.incarnation.0 <= 3) && w.net.iter().all(few)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::<Self>::always(ONE, |rules, w| rules.active(w).count() <= 1),
            Property::<Self>::always(DEPOSED, |_, w| !w.broken.deposed_acted),
            Property::<Self>::always(LOST, |rules, w| {
                let next_has_all = !rules.fenced || next_has_all(w);
                !w.broken.lost && owner_has_all(w) && next_has_all
            }),
            Property::<Self>::always(STALE, |_, w| !w.broken.stale_taken),
            Property::<Self>::always(MIXED, |_, w| !w.broken.mixed),
        ];
        let b = &self.budget;
        if b.moves > 0 {
            all.push(Property::<Self>::sometimes("moved", |_, w| {
                serves(w, How::Moved)
            }));
        }
        if b.aborts > 0 {
            let resumed = |_: &Self, w: &World| serves(w, How::Resumed);
            all.push(Property::sometimes("resumed after an abort", resumed));
        }
        if b.failovers > 0 {
            let over = |_: &Self, w: &World| serves(w, How::FailedOver);
            all.push(Property::sometimes("failed over with all", over));
        }
        if b.takeovers > 0 {
            let over = |_: &Self, w: &World| serves(w, How::TakenOver);
            all.push(Property::sometimes("taken over", over));
        }
        all
    }
}
