//! What reports and orders make of an instance's record: pure steps, the ownership rules of
//! services (DESIGN §9, rules 1, 5, 6 and 8).

use hop3_common::{
    id::{NodeId, UnixMs},
    ownership::{Epoch, Token},
    wire::{Checkpoint, Event},
};

use crate::records::{InstancePhase, MoveRecord, MoveStage, ServiceInstanceRecord};

/// What a report did to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing but what was already known, or what is not kept.
    Nothing,
    /// It serves. `moved`: that ended a move.
    Ready {
        /// The move that it ended.
        moved: Option<MoveRecord>,
    },
    /// A newer checkpoint.
    Checkpointed {
        /// The checkpoint whose place it took.
        before: Option<Checkpoint>,
    },
    /// It was sealed: it has a new epoch, and this owner.
    Swapped {
        /// Where it goes on.
        to: NodeId,
        /// It was meant to go elsewhere, and stays.
        resumed: bool,
        /// The checkpoint whose place the final one took.
        before: Option<Checkpoint>,
    },
    /// It did not come up, or died. `aborted`: that ended a move.
    Failed {
        /// Why.
        why: String,
        /// The move that it ended.
        aborted: Option<MoveRecord>,
    },
    /// It could not be sealed: it goes on.
    NotSealed {
        /// Why.
        why: String,
        /// The move that it ended.
        aborted: Option<MoveRecord>,
    },
}

impl ServiceInstanceRecord {
    /// Takes a report that the record [hears](hop3_common::ownership::Record::hears).
    pub(super) fn report(
        &mut self,
        token: Token,
        event: Event,
        revision: u64,
        now: UnixMs,
    ) -> Outcome {
        self.own.heard(token);
        match event {
            Event::ServiceReady(facts) => self.ready(facts.replicated, now),
            Event::Checkpointed(checkpoint) => self.checkpointed(checkpoint),
            Event::Sealed(checkpoint) => self.sealed(checkpoint, revision, now),
            Event::NotSealed(problem) => {
                let why = problem.to_string();
                let aborted = self.abort(format!("the source could not be sealed: {why}"), now);
                Outcome::NotSealed { why, aborted }
            }
            Event::Failed(problem) => self.failed(problem.to_string(), now),
            Event::Stopped => self.failed("it was stopped".into(), now),
            Event::Started { .. } | Event::TaskEnded(_) | Event::ModelReady(_) => Outcome::Nothing,
        }
    }

    /// Owned by `node` under a new epoch.
    pub(super) fn assign(&mut self, node: NodeId, revision: u64) {
        self.own.assign(node);
        self.revision = revision;
        self.phase = InstancePhase::Assigned;
    }

    fn ready(&mut self, replicated: bool, now: UnixMs) -> Outcome {
        self.phase = InstancePhase::Running;
        self.tied = !replicated;
        let arrived = |moving: &mut MoveRecord| moving.stage == MoveStage::Starting;
        let moved = self.moving.take_if(arrived).map(|mut moving| {
            let back = self.own.owner.as_ref() == Some(&moving.from);
            moving.stage = if back {
                MoveStage::Aborted
            } else {
                MoveStage::Done
            };
            if back {
                moving.reason = format!("it would not start on {} and went back", moving.to);
            }
            moving.ended = Some(now);
            moving
        });
        Outcome::Ready { moved }
    }

    fn checkpointed(&mut self, checkpoint: Checkpoint) -> Outcome {
        let position = |cp: &Checkpoint| (cp.token, cp.seq);
        let newer = self
            .checkpoint
            .as_ref()
            .is_none_or(|before| position(before) < position(&checkpoint));
        if let Some(moving) = self
            .moving
            .as_mut()
            .filter(|moving| moving.stage == MoveStage::Copying)
        {
            moving.copied = checkpoint.parts.iter().map(|part| part.digest).collect();
            moving.copied_bytes = checkpoint.bytes();
        }
        if newer {
            let before = self.checkpoint.replace(checkpoint);
            return Outcome::Checkpointed { before };
        }
        Outcome::Checkpointed { before: None }
    }

    /// The epoch never runs again. Whoever goes on does so under a new one: the target of the move,
    /// or the source itself, if the move was given up meanwhile.
    fn sealed(&mut self, checkpoint: Checkpoint, revision: u64, now: UnixMs) -> Outcome {
        let Some(source) = self.own.owner.clone() else {
            return Outcome::Nothing;
        };
        let goes = |moving: &&mut MoveRecord| moving.stage == MoveStage::Sealing;
        let target = self.moving.as_mut().filter(goes).map(|moving| {
            let sent_ahead =
                |part: &&hop3_common::wire::Output| !moving.copied.contains(&part.digest);
            let parts = checkpoint.parts.iter();
            moving.final_bytes = parts.filter(sent_ahead).map(|part| part.bytes).sum();
            moving.stage = MoveStage::Starting;
            moving.to.clone()
        });
        let resumed = target.is_none();
        if resumed {
            self.abort("it was sealed out of turn".into(), now);
        }
        let to = target.unwrap_or(source);
        let before = self.checkpoint.replace(checkpoint);
        self.assign(to.clone(), revision);
        // The checkpoint is all there is: it may begin anywhere.
        self.tied = false;
        Outcome::Swapped {
            to,
            resumed,
            before,
        }
    }

    fn failed(&mut self, why: String, now: UnixMs) -> Outcome {
        let before_swap = self
            .moving
            .as_ref()
            .is_some_and(|moving| moving.stage != MoveStage::Starting);
        let aborted = before_swap
            .then(|| self.abort(format!("the source failed: {why}"), now))
            .flatten();
        Outcome::Failed { why, aborted }
    }

    /// Gives up a move that was not swapped. The epoch stays: if the source has sealed it already,
    /// its report says so, and it gets a new one.
    pub(super) fn abort(&mut self, why: String, now: UnixMs) -> Option<MoveRecord> {
        let mut moving = self.moving.take()?;
        moving.stage = MoveStage::Aborted;
        moving.reason = why;
        moving.ended = Some(now);
        Some(moving)
    }

    /// The copy is far enough: the source shall stop.
    pub(super) fn seal(&mut self, now: UnixMs) {
        if let Some(moving) = &mut self.moving {
            moving.stage = MoveStage::Sealing;
            moving.sealing = Some(now);
        }
    }

    /// A node holds a newer epoch than recorded (the record was restored from a backup): it keeps
    /// the instance, with what it has, under a still newer one.
    pub(super) fn adopt(&mut self, node: NodeId, held: Epoch, now: UnixMs) {
        self.abort("the record was older than what a node holds".into(), now);
        self.own.adopt(node, held);
        self.phase = InstancePhase::Assigned;
        self.tied = true;
    }
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
