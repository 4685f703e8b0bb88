//! What one node must be told, so that what runs there becomes what is desired there.
//!
//! Level-triggered: [`plan`] looks at the desired set and at the last inventory, however stale,
//! and knows nothing of what was sent before. Its actions are idempotent; any of them may be
//! lost, repeated, delayed or reordered, and any prefix may be carried out: the next plan makes
//! up for it. At the fixed point the plan is empty.
//!
//! What it relies on, at the agent:
//! - the highest epoch seen for an instance survives everything, even `Forget`; an `Assign` of a
//!   higher one supersedes what runs; of the same one it is a repeat; of a lower one it is
//!   refused. A refused one, or a repeat of one that no longer runs, brings the instance back
//!   into the inventory as `Stopped` at the highest epoch, so that the coordinator learns of it;
//! - `Stop`, `Seal` and `Forget` concern the named epoch only; `Forget` only what has ended;
//! - a sealed epoch has ended: it never runs again, and its report carries the final state.
//!
//! At the coordinator: epochs only grow; a result is recorded before its instance leaves the
//! desired set; an instance that is desired elsewhere has a higher epoch there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Fencing number of an instance's ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// What is wanted of an instance on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired<D> {
    /// The epoch under which the node owns it.
    pub epoch: Epoch,
    /// Names what is to run; a new one needs a new epoch.
    pub spec: D,
    /// It shall end.
    pub stop: bool,
    /// It shall be sealed: stopped for good with its final state, to go on elsewhere. A `stop`
    /// wins over it.
    pub seal: bool,
}

/// What the node reports of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The epoch that it holds.
    pub epoch: Epoch,
    /// The run within the epoch; for the record only, plans do not depend on it.
    pub incarnation: u64,
    /// How far it is.
    pub phase: Phase,
}

/// How far an instance is on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being prepared.
    Starting,
    /// It runs.
    Running,
    /// It was told to stop and has not yet.
    Stopping,
    /// It was told to seal and has not answered yet.
    Sealing,
    /// It was stopped or never ran: this epoch will not run again.
    Stopped,
    /// It ended by itself and holds a result.
    Exited,
}

/// What is to be done about an instance. The first two concern the coordinator's own record,
/// the others are sent to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a, I, D> {
    /// Take over the higher epoch that the node holds: the record was older (restored from a
    /// backup, or read before someone else changed it; then the compare-and-swap fails).
    Adopt {
        /// The instance.
        instance: &'a I,
        /// The epoch to record.
        epoch: Epoch,
    },
    /// Assign it anew under an epoch above this one, which has ended without a result.
    Raise {
        /// The instance.
        instance: &'a I,
        /// The epoch that will not run again.
        above: Epoch,
    },
    /// End a run.
    Stop {
        /// The instance.
        instance: &'a I,
        /// The epoch to end; no other.
        epoch: Epoch,
        /// Why.
        reason: StopReason,
    },
    /// End a run with its final state.
    Seal {
        /// The instance.
        instance: &'a I,
        /// The epoch to seal; no other.
        epoch: Epoch,
    },
    /// Drop what is kept of an ended run; its highest epoch stays known.
    Forget {
        /// The instance.
        instance: &'a I,
        /// The epoch to drop; no other.
        epoch: Epoch,
    },
    /// Own and run it.
    Assign {
        /// The instance.
        instance: &'a I,
        /// Under this epoch.
        epoch: Epoch,
        /// What to run.
        spec: &'a D,
    },
}

/// Why a run shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its epoch is lower than the desired one.
    Stale,
    /// Somebody asked for it.
    Requested,
    /// Nobody wants it on this node.
    NotDesired,
}

/// The actions that bring a node from `observed` to `desired`: first the coordinator's own
/// records, then what frees resources, then what takes them; by instance within each.
pub fn plan<'a, I: Ord, D>(
    desired: &'a BTreeMap<I, Desired<D>>,
    observed: &'a BTreeMap<I, Observed>,
) -> Vec<Action<'a, I, D>> {
    let mut actions = Vec::new();
    for (instance, found) in observed {
        match desired.get(instance) {
            None => actions.extend(end(instance, *found, StopReason::NotDesired)),
            Some(wanted) => settle(instance, wanted, *found, &mut actions),
        }
    }
    for (instance, wanted) in desired {
        if !wanted.stop && !observed.contains_key(instance) {
            actions.push(assign(instance, wanted));
        }
    }
    // Stable: keeps the order by instance but for newly assigned ones, which come after.
    actions.sort_by_key(rank);
    actions
}

/// What to do about an instance that is both desired and there.
fn settle<'a, I, D>(
    instance: &'a I,
    wanted: &'a Desired<D>,
    found: Observed,
    actions: &mut Vec<Action<'a, I, D>>,
) {
    if found.epoch > wanted.epoch {
        actions.push(Action::Adopt {
            instance,
            epoch: found.epoch,
        });
    } else if found.epoch < wanted.epoch && !wanted.stop {
        // Both at once: the agent would end the old run by itself, this makes it come first.
        let live = found.live() || found.phase == Phase::Sealing;
        actions.extend(live.then_some(Action::Stop {
            instance,
            epoch: found.epoch,
            reason: StopReason::Stale,
        }));
        actions.push(assign(instance, wanted));
    } else if wanted.stop {
        let stale = found.epoch < wanted.epoch;
        let reason = if stale {
            StopReason::Stale
        } else {
            StopReason::Requested
        };
        actions.extend(end(instance, found, reason));
    } else if found.phase == Phase::Stopped {
        actions.push(Action::Raise {
            instance,
            above: found.epoch,
        });
    } else if wanted.seal && found.live() {
        actions.push(Action::Seal {
            instance,
            epoch: found.epoch,
        });
    }
    // Else it runs as desired, or its result waits to be recorded.
}

/// The next step towards an instance being gone.
fn end<I, D>(instance: &I, found: Observed, reason: StopReason) -> Option<Action<'_, I, D>> {
    let epoch = found.epoch;
    match found.phase {
        Phase::Starting | Phase::Running | Phase::Sealing => Some(Action::Stop {
            instance,
            epoch,
            reason,
        }),
        Phase::Stopping => None,
        Phase::Stopped | Phase::Exited => Some(Action::Forget { instance, epoch }),
    }
}

fn assign<'a, I, D>(instance: &'a I, wanted: &'a Desired<D>) -> Action<'a, I, D> {
    Action::Assign {
        instance,
        epoch: wanted.epoch,
        spec: &wanted.spec,
    }
}

fn rank<I, D>(action: &Action<'_, I, D>) -> u8 {
    match action {
        Action::Adopt { .. } | Action::Raise { .. } => 0,
        Action::Stop { .. } | Action::Seal { .. } => 1,
        Action::Forget { .. } => 2,
        Action::Assign { .. } => 3,
    }
}

impl Observed {
    fn live(self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }
}
