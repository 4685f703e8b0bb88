//! What there is.

use std::collections::{BTreeSet, VecDeque};

use hop3_common::ownership::{
    BootMs, Epoch, Fence, Holder, Leases, LedgerEntry, Ownership, Position, Replica, Token,
};

/// Names a node.
pub(crate) type Node = u8;
/// Names the only instance.
pub(crate) const KEY: u8 = 0;
/// Step of a clock, ms.
pub(crate) const TICK_MS: u64 = 50;
/// Length of a lease: less than a tick, so that it ends with the tick that it was asked in, and
/// that the grantor is sure of it (with `DRIFT_MS`) two ticks after.
pub(crate) const TTL_MS: u64 = 49;

/// The changes of an instance, each with a number of its own. Its length is the position.
pub(crate) type Hist = Vec<u8>;

/// A state on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Saved {
    /// Who made it, and how far it is.
    pub(crate) at: Position,
    /// What is in it.
    pub(crate) hist: Hist,
}

impl Saved {
    /// What the run `token` has.
    pub(crate) fn of(token: Token, hist: &Hist) -> Self {
        let at = Position {
            token,
            seq: hist.len() as u64,
        };
        Self {
            at,
            hist: hist.clone(),
        }
    }
}

/// How the newest ownership came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum How {
    First,
    Moved,
    Resumed,
    FailedOver,
    TakenOver,
}

/// The coordinator's record of the instance, durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) own: Ownership<Node>,
    pub(crate) checkpoint: Option<Saved>,
    /// A move: the order to seal was given.
    pub(crate) moving: Option<Node>,
    pub(crate) replica: Option<Copied>,
    pub(crate) how: How,
}

/// The replica's log, durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Copied {
    pub(crate) replica: Replica,
    pub(crate) hist: Hist,
}

/// A failover under way: in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Failing {
    pub(crate) epoch: Epoch,
    /// The replica was sealed and read.
    pub(crate) end: Option<Option<Saved>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Coordinator {
    pub(crate) record: Record,
    pub(crate) leases: Leases<u8>,
    pub(crate) failing: Option<Failing>,
    pub(crate) ticks: u8,
}

impl Coordinator {
    pub(crate) fn now(&self) -> BootMs {
        BootMs(10_000 + u64::from(self.ticks) * TICK_MS)
    }
}

/// A run of the instance: in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) token: Token,
    pub(crate) hist: Hist,
    pub(crate) serving: bool,
    /// Changes that the replica is known to have.
    pub(crate) replicated: u64,
    /// When it last asked for a lease.
    pub(crate) asked: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    // Durable.
    pub(crate) ledger: LedgerEntry,
    /// Of the assignment: where to begin.
    pub(crate) restore: Option<Saved>,
    /// Its own state.
    pub(crate) kept: Option<Saved>,
    // In memory.
    pub(crate) holder: Holder<u8>,
    pub(crate) run: Option<Run>,
    pub(crate) ticks: u8,
}

impl Agent {
    pub(crate) fn now(&self) -> BootMs {
        BootMs(700_000 + u64::from(self.ticks) * TICK_MS)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Msg {
    Assign {
        to: Node,
        epoch: Epoch,
        restore: Option<Saved>,
    },
    Seal {
        to: Node,
        epoch: Epoch,
    },
    Stop {
        to: Node,
        epoch: Epoch,
    },
    Granted {
        to: Node,
        number: u64,
        token: Token,
    },
    Ask {
        from: Node,
        number: u64,
        token: Token,
    },
    Sealed {
        from: Node,
        token: Token,
        state: Saved,
    },
    Checkpoint {
        from: Node,
        token: Token,
        state: Saved,
    },
    Effect {
        from: Node,
        token: Token,
    },
}

/// What goes to the replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Up {
    Base {
        hist: Hist,
    },
    /// One change; `whole`: what the run has then, to compare.
    Change {
        whole: Hist,
    },
}

/// The stream of a run to its replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    pub(crate) node: Node,
    pub(crate) token: Token,
    /// The writer's number that its base got.
    pub(crate) writer: Option<u64>,
    /// On its way.
    pub(crate) up: VecDeque<Up>,
    /// The run still has it.
    pub(crate) open: bool,
    /// Positions that were sent and not answered.
    pub(crate) sent: VecDeque<u64>,
    /// Answers on their way.
    pub(crate) kept: u8,
    pub(crate) refused: bool,
}

/// What must never be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    /// A run acted after a newer one had.
    pub(crate) deposed_acted: bool,
    /// A run acknowledged without what was acknowledged before.
    pub(crate) lost: bool,
    /// A sink took something of a run below one that it had taken from, or of a deposed owner.
    pub(crate) stale_taken: bool,
    /// The replica holds what no run had.
    pub(crate) mixed: bool,
}

/// How often what may happen still may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    pub(crate) restarts: u8,
    pub(crate) breaks: u8,
    pub(crate) moves: u8,
    pub(crate) aborts: u8,
    pub(crate) failovers: u8,
    pub(crate) takeovers: u8,
    pub(crate) changes: u8,
    pub(crate) checkpoints: u8,
    pub(crate) effects: u8,
    /// Ticks of the coordinator's clock.
    pub(crate) ticks: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) coordinator: Coordinator,
    pub(crate) agents: [Agent; 2],
    pub(crate) net: BTreeSet<Msg>,
    pub(crate) streams: Vec<Stream>,
    /// A sink elsewhere, and the newest run that it took something of, with its node.
    pub(crate) sink: Fence,
    pub(crate) taken: (Token, Node),
    /// What clients know.
    pub(crate) acked: Hist,
    /// The newest run that did something a client saw.
    pub(crate) acted: Token,
    /// Owners up to this epoch were replaced by force: what they do by themselves is a branch.
    pub(crate) branch: Option<Epoch>,
    pub(crate) broken: Broken,
    pub(crate) left: Budget,
}

impl World {
    /// Whether the run is of a copy that an operator gave up.
    pub(crate) fn diverged(&self, token: Token) -> bool {
        self.branch.is_some_and(|epoch| token.epoch <= epoch)
    }

    /// A run does what somebody sees.
    pub(crate) fn act(&mut self, token: Token) {
        if self.diverged(token) {
            return;
        }
        if token < self.acted {
            self.broken.deposed_acted = true;
        }
        self.acted = self.acted.max(token);
    }
}
