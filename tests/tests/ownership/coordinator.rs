//! What the coordinator does.

use hop3_common::ownership::{
    BootMs, Epoch, Leases, Ownership, Position, Replica, ReplicaRefusal, Token, Verdict, drift_ms,
};

use super::{
    model::Rules,
    mutants::Mutant,
    world::{Copied, Failing, Hist, How, KEY, Msg, Node, Saved, TTL_MS, Up, World},
};

impl Rules {
    fn hears(&self, w: &World, from: Node, token: Token, mutant: Mutant) -> bool {
        self.is(mutant) || w.coordinator.record.own.hears(&from, token)
    }

    /// A sink of the coordinator takes something.
    fn take(&self, w: &mut World, from: Node, token: Token) {
        let own = &mut w.coordinator.record.own;
        if token.epoch != own.epoch || own.owner != Some(from) {
            w.broken.stale_taken = true;
        } else {
            own.heard(token);
        }
    }

    /// The compare-and-swap: `to` owns it now.
    fn assign(&self, w: &mut World, to: Node, how: How) {
        let record = &mut w.coordinator.record;
        if self.is(Mutant::SameEpoch) {
            record.own.owner = Some(to);
        } else {
            record.own.assign(to);
        }
        (record.moving, record.how) = (None, how);
        let epoch = record.own.epoch;
        let restore = record.checkpoint.clone();
        w.net.insert(Msg::Assign { to, epoch, restore });
    }

    pub(crate) fn granting(&self, w: &mut World, from: Node, number: u64, token: Token) {
        let now = w.coordinator.now();
        let mut record = w.coordinator.record.own.clone();
        if self.is(Mutant::GrantToAnybody) {
            record = Ownership::new(Epoch(token.epoch.0 - 1));
            record.assign(from);
        }
        let leases = &mut w.coordinator.leases;
        if leases.grant(&KEY, &record, &from, token, TTL_MS, now) {
            let to = from;
            w.net.insert(Msg::Granted { to, number, token });
        }
    }

    /// The next frame of stream `k`.
    pub(crate) fn replicate(&self, w: &mut World, k: usize) {
        let stream = &mut w.streams[k];
        let (from, token, writer) = (stream.node, stream.token, stream.writer);
        let Some(up) = stream.up.pop_front() else {
            return;
        };
        let heard = self.hears(w, from, token, Mutant::ReplicaNotAskingRecord);
        let taken = match up {
            _ if !heard => None,
            Up::Base { hist } => self.replica_base(w, k, token, hist),
            Up::Change { whole } => self.replica_change(w, token, writer, &whole),
        };
        let stream = &mut w.streams[k];
        if taken.is_none() {
            stream.up.clear();
            stream.refused = true;
        } else if stream.open {
            stream.kept += 1;
        }
        w.streams.retain(|s| s.open || !s.up.is_empty());
    }

    fn replica_base(&self, w: &mut World, k: usize, token: Token, hist: Hist) -> Option<()> {
        let before = w.coordinator.record.replica.as_ref();
        let mut before = before.map(|copied| copied.replica);
        let seq = hist.len() as u64;
        let end = Position { token, seq };
        if self.is(Mutant::StaleBaseTaken) {
            before = None;
        }
        let replica = match Replica::begin(before.as_ref(), end) {
            Ok(replica) => replica,
            Err(ReplicaRefusal::Gap { .. }) if self.is(Mutant::LesserBaseTaken) => {
                Replica::begin(None, end).ok()?
            }
            Err(_) => return None,
        };
        w.streams[k].writer = Some(replica.writer());
        w.coordinator.record.replica = Some(Copied { replica, hist });
        Some(())
    }

    fn replica_change(
        &self,
        w: &mut World,
        token: Token,
        writer: Option<u64>,
        whole: &Hist,
    ) -> Option<()> {
        let copied = w.coordinator.record.replica.as_mut()?;
        let (mut token, mut writer) = (token, writer?);
        if self.is(Mutant::StaleChangeTaken) {
            token = copied.replica.end().token;
            writer = copied.replica.writer();
        }
        if self.is(Mutant::AnyStreamWrites) && token == copied.replica.end().token {
            writer = copied.replica.writer();
        }
        copied.replica = copied
            .replica
            .change(token, writer, whole.len() as u64)
            .ok()?;
        copied.hist.extend(whole.last());
        w.broken.mixed |= copied.hist != *whole;
        Some(())
    }

    /// Begins a failover: its epoch gets no lease any more.
    pub(crate) fn fail_over(&self, w: &mut World) {
        w.left.failovers -= 1;
        let c = &mut w.coordinator;
        let epoch = c.record.own.epoch;
        if !self.is(Mutant::NoBar) {
            c.leases.bar(&KEY, epoch);
        }
        c.failing = Some(Failing { epoch, end: None });
    }

    /// Seals the replica, and reads its end.
    pub(crate) fn read_replica(&self, w: &mut World) {
        let no_seal = self.is(Mutant::ReplicaNotSealed);
        let c = &mut w.coordinator;
        if let Some(copied) = c.record.replica.as_mut().filter(|_| !no_seal) {
            copied.replica = copied.replica.seal();
        }
        let end = c.record.replica.as_ref().map(|copied| Saved {
            at: copied.replica.end(),
            hist: copied.hist.clone(),
        });
        if let Some(failing) = &mut c.failing {
            failing.end = Some(end);
        }
    }

    /// Gives the instance to the other node, if nothing happened to it meanwhile.
    pub(crate) fn commit(&self, w: &mut World) {
        let c = &mut w.coordinator;
        let Some(Failing { epoch, end }) = c.failing.take() else {
            return;
        };
        let Some(owner) = c.record.own.owner else {
            return;
        };
        if c.record.own.epoch != epoch && !self.is(Mutant::BlindCommit) {
            return c.leases.unbar(&KEY);
        }
        let read = end.flatten();
        let newest = read.into_iter().chain(c.record.checkpoint.take());
        c.record.checkpoint = newest.max_by_key(|saved| saved.at);
        self.assign(w, 1 - owner, How::FailedOver);
    }

    /// Whether nobody can hold a lease any more, as far as the coordinator knows.
    pub(crate) fn over(&self, w: &World) -> bool {
        let c = &w.coordinator;
        let mut over = c.leases.over(&KEY, TTL_MS);
        if self.is(Mutant::NoDriftMargin) {
            over = BootMs(over.0.saturating_sub(drift_ms(TTL_MS)));
        }
        self.is(Mutant::NoWait) || c.now() >= over
    }

    /// The replica of an epoch before goes.
    pub(crate) fn remove_old(&self, w: &mut World) {
        w.coordinator.record.replica = None;
    }

    pub(crate) fn restart(&self, w: &mut World) {
        w.left.restarts -= 1;
        let c = &mut w.coordinator;
        let now = c.now();
        c.leases = Leases::new(now);
        if self.is(Mutant::NoWaitAfterRestart) {
            c.leases = Leases::new(BootMs(0));
        }
        c.failing = None;
        for stream in &mut w.streams {
            stream.open = false;
            stream.up.clear();
        }
        w.streams.clear();
    }

    pub(crate) fn begin_move(&self, w: &mut World) {
        w.left.moves -= 1;
        let record = &mut w.coordinator.record;
        let Some(owner) = record.own.owner else {
            return;
        };
        record.moving = Some(1 - owner);
        let (to, epoch) = (owner, record.own.epoch);
        w.net.insert(Msg::Seal { to, epoch });
    }

    pub(crate) fn sealed(&self, w: &mut World, from: Node, token: Token, state: &Saved) {
        if !self.hears(w, from, token, Mutant::StaleSealedTaken) {
            return;
        }
        self.take(w, from, token);
        let record = &mut w.coordinator.record;
        record.checkpoint = Some(state.clone());
        let (to, how) = match record.moving.take() {
            Some(to) => (to, How::Moved),
            None => (from, How::Resumed),
        };
        self.assign(w, to, how);
    }

    pub(crate) fn checkpointed(&self, w: &mut World, from: Node, token: Token, state: &Saved) {
        if !self.hears(w, from, token, Mutant::StaleCheckpointTaken) {
            return;
        }
        self.take(w, from, token);
        let record = &mut w.coordinator.record;
        let before = record.checkpoint.as_ref();
        if before.is_none_or(|before| before.at < state.at) {
            record.checkpoint = Some(state.clone());
        }
    }

    /// An effect comes to the coordinator, and to a sink that knows nothing but tokens.
    pub(crate) fn effect(&self, w: &mut World, from: Node, token: Token) {
        if self.hears(w, from, token, Mutant::StaleEffectTaken) {
            self.take(w, from, token);
        }
        if w.sink.admit(token) == Verdict::Accept || self.is(Mutant::SinkWithoutFence) {
            let owner = w.coordinator.record.own.owner;
            // The owner was heard already, and this is another.
            let before = w.taken.0 > Token::default() && owner == Some(w.taken.1);
            w.broken.stale_taken |= token < w.taken.0 || (before && owner != Some(from));
            w.taken = w.taken.max((token, from));
        }
    }

    /// An operator gives the instance to the other node, with the last state known.
    pub(crate) fn take_over(&self, w: &mut World) {
        w.left.takeovers -= 1;
        let record = &w.coordinator.record;
        let Some(owner) = record.own.owner else {
            return;
        };
        let epoch = record.own.epoch;
        w.branch = Some(epoch);
        // What is not in it is given up: the operator is told.
        let state = record.checkpoint.as_ref().map(|saved| &saved.hist);
        let same = |state: &Hist| {
            let pairs = state.iter().zip(&w.acked);
            pairs.take_while(|(a, b)| a == b).count()
        };
        let same = state.map_or(0, same);
        w.acked.truncate(same);
        self.assign(w, 1 - owner, How::TakenOver);
        w.net.insert(Msg::Stop { to: owner, epoch });
    }
}
