//! What a node does.

use hop3_common::ownership::{Epoch, Holder, LedgerEntry, Token};

use super::{
    model::Rules,
    mutants::Mutant,
    world::{Agent, Hist, KEY, Msg, Node, Run, Saved, Stream, TTL_MS, Up, World},
};

impl Rules {
    /// Whether the run may act now.
    pub(crate) fn may_act(&self, agent: &Agent, run: &Run) -> bool {
        !self.fenced
            || self.is(Mutant::NoLeaseCheck)
            || agent.holder.holds(&KEY, run.token, agent.now())
    }

    /// Starts a run, if the ledger lets it.
    pub(crate) fn begin(&self, w: &mut World, i: Node) {
        let agent = &mut w.agents[i as usize];
        if agent.run.is_some() || agent.ledger.epoch_max == Epoch(0) {
            return;
        }
        let Ok((entry, token)) = agent.ledger.begin() else {
            return;
        };
        let (entry, token) = if self.is(Mutant::NoIncarnation) && agent.ledger.incarnation.0 > 0 {
            let token = Token {
                epoch: agent.ledger.epoch_max,
                incarnation: agent.ledger.incarnation,
            };
            (agent.ledger, token)
        } else {
            (entry, token)
        };
        if !self.is(Mutant::BeginNotDurable) {
            agent.ledger = entry;
        }
        let newest = agent.kept.iter().chain(&agent.restore).max_by_key(|s| s.at);
        let hist = newest.map_or_else(Hist::new, |saved| saved.hist.clone());
        agent.kept = Some(Saved::of(token, &hist));
        agent.run = Some(Run {
            token,
            hist,
            serving: !self.fenced,
            replicated: 0,
            asked: None,
        });
    }

    /// The run ends, and the next begins.
    pub(crate) fn end_run(&self, w: &mut World, i: Node) {
        self.close(w, i);
        let agent = &mut w.agents[i as usize];
        agent.run = None;
        agent.holder.forget(&KEY);
        self.begin(w, i);
    }

    /// The run has its stream no more; what is under way may arrive.
    fn close(&self, w: &mut World, i: Node) {
        for stream in &mut w.streams {
            if stream.node == i && stream.open {
                stream.open = false;
                stream.sent.clear();
                stream.kept = 0;
            }
        }
        w.streams.retain(|s| s.open || !s.up.is_empty());
    }

    pub(crate) fn crash(&self, w: &mut World, i: Node) {
        let agent = &mut w.agents[i as usize];
        agent.holder = Holder::default();
        if self.is(Mutant::SealNotDurable) {
            agent.ledger.sealed_epoch = Epoch(0);
        }
        self.end_run(w, i);
    }

    /// The right of the run has ended.
    pub(crate) fn self_fence(&self, w: &mut World, i: Node) {
        let agent = &mut w.agents[i as usize];
        if self.is(Mutant::FencedKeepsIncarnation)
            && let Some(before) = agent.ledger.incarnation.0.checked_sub(1)
        {
            agent.ledger.incarnation.0 = before;
        }
        self.end_run(w, i);
    }

    pub(crate) fn ask(&self, w: &mut World, i: Node) {
        let agent = &mut w.agents[i as usize];
        let now = agent.now();
        let Some(run) = &mut agent.run else { return };
        run.asked = Some(agent.ticks);
        let number = agent.holder.ask(now);
        let token = run.token;
        w.net.insert(Msg::Ask {
            from: i,
            number,
            token,
        });
    }

    /// Opens a stream to the replica, with all that there is.
    pub(crate) fn open(&self, w: &mut World, i: Node) {
        let Some(run) = &w.agents[i as usize].run else {
            return;
        };
        let hist = run.hist.clone();
        w.streams.push(Stream {
            node: i,
            token: run.token,
            writer: None,
            sent: [hist.len() as u64].into(),
            up: [Up::Base { hist }].into(),
            open: true,
            kept: 0,
            refused: false,
        });
    }

    pub(crate) fn change(&self, w: &mut World, i: Node) {
        w.left.changes -= 1;
        let id = 9 - w.left.changes;
        let Some(run) = &mut w.agents[i as usize].run else {
            return;
        };
        run.hist.push(id);
        let whole = run.hist.clone();
        if self.local_first {
            self.sync(w, i);
        }
        if let Some(stream) = w.streams.iter_mut().find(|s| s.open && s.node == i) {
            stream.sent.push_back(whole.len() as u64);
            stream.up.push_back(Up::Change { whole });
        }
    }

    pub(crate) fn sync(&self, w: &mut World, i: Node) {
        let agent = &mut w.agents[i as usize];
        if let Some(run) = &agent.run {
            agent.kept = Some(Saved::of(run.token, &run.hist));
        }
    }

    /// How many changes may be acknowledged.
    pub(crate) fn sure(&self, w: &World, i: Node) -> usize {
        let agent = &w.agents[i as usize];
        let Some(run) = &agent.run else { return 0 };
        let kept = agent.kept.as_ref().filter(|k| k.at.token == run.token);
        let mut local = kept.map_or(0, |kept| kept.at.seq);
        let mut replicated = run.replicated;
        if self.is(Mutant::AckBeforeLocal) {
            local = run.hist.len() as u64;
        }
        if self.is(Mutant::AckBeforeReplica) || !self.fenced {
            replicated = run.hist.len() as u64;
        }
        local.min(replicated) as usize
    }

    pub(crate) fn acknowledge(&self, w: &mut World, i: Node) {
        let Some(run) = &w.agents[i as usize].run else {
            return;
        };
        let (token, told) = (run.token, run.hist[..self.sure(w, i)].to_vec());
        w.act(token);
        if w.diverged(token) {
            return;
        }
        if told.starts_with(&w.acked) {
            w.acked = told;
        } else if !w.acked.starts_with(&told) {
            w.broken.lost = true;
        }
    }

    pub(crate) fn read(&self, w: &mut World, i: Node) {
        if let Some(run) = &w.agents[i as usize].run {
            w.act(run.token);
        }
    }

    /// The stream `k` answers.
    pub(crate) fn answered(&self, w: &mut World, k: usize) {
        let stream = &mut w.streams[k];
        let i = stream.node;
        if stream.kept == 0 {
            return self.end_run(w, i);
        }
        stream.kept -= 1;
        let Some(seq) = stream.sent.pop_front() else {
            return;
        };
        let Some(run) = &mut w.agents[i as usize].run else {
            return;
        };
        run.replicated = seq;
        run.serving = true;
    }

    pub(crate) fn break_stream(&self, w: &mut World, k: usize) {
        let i = w.streams[k].node;
        self.close(w, i);
    }

    pub(crate) fn assigned(&self, w: &mut World, i: Node, epoch: Epoch, restore: &Option<Saved>) {
        let agent = &mut w.agents[i as usize];
        let entry = match agent.ledger.assign(epoch) {
            Ok(entry) => entry,
            Err(_) if self.is(Mutant::StaleAssignTaken) => LedgerEntry {
                epoch_max: epoch,
                ..agent.ledger
            },
            Err(_) => return,
        };
        if entry == agent.ledger {
            return;
        }
        agent.ledger = entry;
        agent.restore.clone_from(restore);
        self.end_run(w, i);
    }

    /// Gives the epoch up, with a final state.
    pub(crate) fn seal(&self, w: &mut World, i: Node, epoch: Epoch) {
        let agent = &mut w.agents[i as usize];
        let Some(run) = agent.run.as_ref().filter(|r| r.token.epoch == epoch) else {
            return;
        };
        if !run.serving {
            return;
        }
        let (token, state) = (run.token, Saved::of(run.token, &run.hist));
        agent.kept = Some(state.clone());
        agent.ledger = agent.ledger.seal(epoch);
        let from = i;
        w.net.insert(Msg::Sealed { from, token, state });
        if !self.is(Mutant::RunsOnWhenSealed) {
            self.end_run(w, i);
        }
    }

    /// It was replaced by force: what it has is a branch.
    pub(crate) fn stop(&self, w: &mut World, i: Node, epoch: Epoch) {
        let agent = &mut w.agents[i as usize];
        if agent.ledger.epoch_max <= epoch {
            agent.ledger = agent.ledger.seal(epoch);
            self.end_run(w, i);
        }
    }

    pub(crate) fn granted(&self, w: &mut World, i: Node, number: u64, token: Token) {
        let agent = &mut w.agents[i as usize];
        let number = if self.is(Mutant::LeaseFromReceipt) {
            agent.holder.ask(agent.now())
        } else {
            number
        };
        agent.holder.granted(number, &KEY, token, TTL_MS);
    }
}
