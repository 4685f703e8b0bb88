//! Who may run an instance: epochs, incarnations and the token that fences effects (DESIGN §9).
//!
//! Pure. The coordinator alone raises an [`Epoch`], by compare-and-swap on its record; an agent
//! alone raises an [`Incarnation`], durably, before every start of a run. Every effect carries
//! the [`Token`]; a sink keeps the highest it has seen and refuses lower ones.

mod lease;
mod owner;
mod replica;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use lease::{BootMs, DRIFT_MS, DRIFT_PARTS, Holder, LEASE_MS, LEASE_MS_MAX, Leases, drift_ms};
pub use owner::{Ownership, Position};
pub use replica::{Replica, ReplicaRefusal};

/// Fencing number of an instance's ownership. Grows with every assignment; 0 = never assigned.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next assignment.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the runs within an epoch; every start (crash, reboot, self-fencing) is a new one.
/// 0 = not started.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The incarnation of the next run.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The fencing token: ordered by epoch, then incarnation.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
pub struct Token {
    /// The ownership this run belongs to.
    pub epoch: Epoch,
    /// The run within it.
    pub incarnation: Incarnation,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.incarnation.0)
    }
}

/// What a sink answers to an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The token is the newest seen, or equal to it.
    Accept,
    /// A newer token is known: the effect comes from a deposed run and must change nothing.
    Stale {
        /// The newest token seen.
        newest: Token,
    },
}

/// Every sink's guard: keeps the highest token seen and refuses lower ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    newest: Token,
}

impl Fence {
    /// A fence that has seen `newest`.
    #[must_use]
    pub fn at(newest: Token) -> Self {
        Self { newest }
    }

    /// The highest token seen.
    #[must_use]
    pub fn newest(&self) -> Token {
        self.newest
    }

    /// Judges an effect that carries `token`.
    pub fn admit(&mut self, token: Token) -> Verdict {
        if token < self.newest {
            return Verdict::Stale {
                newest: self.newest,
            };
        }
        self.newest = token;
        Verdict::Accept
    }
}

/// An agent's durable memory of one instance (rules 2 and 3): which epoch it was given, whether
/// it gave that epoch up for good, and how many runs it has begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The highest epoch ever assigned to this node.
    pub epoch_max: Epoch,
    /// The highest epoch that was sealed here: it never runs again.
    pub sealed_epoch: Epoch,
    /// The last incarnation begun within `epoch_max`.
    pub incarnation: Incarnation,
}

/// Why a run must not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer assignment is known.
    #[error("epoch {offered} is older than {known}, which this node already knows")]
    Stale {
        /// The epoch of the message.
        offered: Epoch,
        /// The highest epoch known.
        known: Epoch,
    },
    /// The epoch was given up.
    #[error("epoch {0} was sealed on this node and never runs again")]
    Sealed(Epoch),
}

impl LedgerEntry {
    /// The entry after an assignment of `epoch`; unchanged when it is a repeat.
    pub fn assign(self, epoch: Epoch) -> Result<Self, Refusal> {
        if epoch < self.epoch_max {
            return Err(Refusal::Stale {
                offered: epoch,
                known: self.epoch_max,
            });
        }
        if epoch == self.epoch_max {
            return Ok(self);
        }
        Ok(Self {
            epoch_max: epoch,
            incarnation: Incarnation(0),
            ..self
        })
    }

    /// The entry and token of a new run. The entry must be durable before the first step.
    pub fn begin(self) -> Result<(Self, Token), Refusal> {
        if self.epoch_max <= self.sealed_epoch {
            return Err(Refusal::Sealed(self.epoch_max));
        }
        let incarnation = self.incarnation.next();
        let token = Token {
            epoch: self.epoch_max,
            incarnation,
        };
        Ok((
            Self {
                incarnation,
                ..self
            },
            token,
        ))
    }

    /// What is known when two memories of the same node speak: the later fact of each. Facts only
    /// grow, so nothing that either of them forbids is allowed.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let run = |entry: Self| Token {
            epoch: entry.epoch_max,
            incarnation: entry.incarnation,
        };
        let newest = run(self).max(run(other));
        Self {
            epoch_max: newest.epoch,
            sealed_epoch: self.sealed_epoch.max(other.sealed_epoch),
            incarnation: newest.incarnation,
        }
    }

    /// The entry after giving up everything up to `epoch`.
    #[must_use]
    pub fn seal(self, epoch: Epoch) -> Self {
        Self {
            sealed_epoch: self.sealed_epoch.max(epoch),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn token(epoch: u64, incarnation: u64) -> Token {
        Token {
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn a_sealed_epoch_never_begins_again() {
        let entry = LedgerEntry::default().assign(Epoch(3)).unwrap();
        let (entry, first) = entry.begin().unwrap();
        assert_eq!(first, token(3, 1));
        let sealed = entry.seal(Epoch(3));
        assert_eq!(sealed.begin(), Err(Refusal::Sealed(Epoch(3))));
        assert_eq!(
            sealed.assign(Epoch(3)).unwrap().begin(),
            Err(Refusal::Sealed(Epoch(3)))
        );
        assert_eq!(
            sealed.assign(Epoch(4)).unwrap().begin().unwrap().1,
            token(4, 1)
        );
        assert!(sealed.assign(Epoch(2)).is_err());
    }

    proptest! {
        /// Whatever the order of assignments, starts and seals, no token is ever handed out
        /// twice and tokens only grow.
        #[test]
        fn tokens_only_grow(ops in prop::collection::vec((0u8..3, 1u64..6), 0..60)) {
            let mut entry = LedgerEntry::default();
            let mut last = Token::default();
            for (op, epoch) in ops {
                match op {
                    0 => entry = entry.assign(Epoch(epoch)).unwrap_or(entry),
                    1 => entry = entry.seal(Epoch(epoch).min(entry.epoch_max)),
                    _ => if let Ok((next, token)) = entry.begin() {
                        prop_assert!(token > last, "{token} after {last}");
                        last = token;
                        entry = next;
                    }
                }
            }
        }

        /// Whatever two memories forbid, their join forbids, in either order.
        #[test]
        fn a_join_forgets_nothing(facts in prop::array::uniform2((0u64..4, 0u64..4, 0u64..4))) {
            let [a, b] = facts.map(|(epoch, sealed, incarnation)| LedgerEntry {
                epoch_max: Epoch(epoch),
                sealed_epoch: Epoch(sealed),
                incarnation: Incarnation(incarnation),
            });
            let joined = a.join(b);
            prop_assert_eq!(joined, b.join(a));
            prop_assert_eq!(joined.join(a), joined);
            for one in [a, b] {
                prop_assert!(joined.epoch_max >= one.epoch_max);
                prop_assert!(joined.sealed_epoch >= one.sealed_epoch);
                if let (Ok((_, next)), Ok((_, theirs))) = (joined.begin(), one.begin()) {
                    prop_assert!(next >= theirs, "{next} before {theirs}");
                }
            }
        }

        /// A fence accepts exactly the tokens not below the greatest so far.
        #[test]
        fn fences_refuse_lower_tokens(tokens in prop::collection::vec((0u64..5, 0u64..5), 0..40)) {
            let mut fence = Fence::default();
            let mut newest = Token::default();
            for (epoch, incarnation) in tokens {
                let token = token(epoch, incarnation);
                let stale = token < newest;
                newest = newest.max(token);
                prop_assert_eq!(fence.admit(token) == Verdict::Accept, !stale);
                prop_assert_eq!(fence.newest(), newest);
            }
        }
    }
}
