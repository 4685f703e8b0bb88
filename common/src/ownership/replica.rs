//! A replica of an instance's changes is a sink like any other: it takes the changes of the newest
//! run only, and once it is sealed those of nobody, so that its end can be read (DESIGN §9, rule
//! 10).
//!
//! Pure: what a step accepts must be durable before it is answered.

use super::{Position, Token};
use crate::codes::{Code, Problem};

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replica {
    /// The run that writes, and the last change it has.
    end: Position,
    sealed: bool,
    /// How often it began: which stream writes.
    writer: u64,
}

/// Why a change is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaRefusal {
    /// A newer run writes, or this one on a newer stream.
    #[error("run {0} writes to the replica now")]
    Deposed(Token),
    /// It is being read.
    #[error("the replica is sealed: another node takes over")]
    Sealed,
    /// A change is missing or repeated.
    #[error("the replica has {has} changes; change {got} does not follow")]
    Gap {
        /// Changes that it has.
        has: u64,
        /// The one that came.
        got: u64,
    },
}

impl From<ReplicaRefusal> for Problem {
    fn from(refusal: ReplicaRefusal) -> Self {
        Self::new(Code::NotHere, refusal.to_string())
    }
}

impl Replica {
    /// The replica that begins with a whole state: in place of `before`, if there is one.
    ///
    /// # Errors
    /// It must not take its place.
    pub fn begin(before: Option<&Self>, end: Position) -> Result<Self, ReplicaRefusal> {
        if let Some(before) = before {
            if before.sealed && end.token <= before.end.token {
                return Err(ReplicaRefusal::Sealed);
            }
            if end.token < before.end.token {
                return Err(ReplicaRefusal::Deposed(before.end.token));
            }
            if end.token.epoch == before.end.token.epoch && end.seq < before.end.seq {
                // What was acknowledged must not be replaced by less.
                let (has, got) = (before.end.seq, end.seq);
                return Err(ReplicaRefusal::Gap { has, got });
            }
        }
        let (sealed, began) = (false, before.map_or(0, |before| before.writer));
        let writer = began + 1;
        Ok(Self {
            end,
            sealed,
            writer,
        })
    }

    /// After a change of the run `token`, which has `seq` changes then, on the stream whose whole
    /// state made it [`writer`](Self::writer): what an earlier stream of the same run still brings
    /// is in that state already.
    ///
    /// # Errors
    /// It is not this run's turn, or the change goes backwards.
    pub fn change(self, token: Token, writer: u64, seq: u64) -> Result<Self, ReplicaRefusal> {
        if self.sealed {
            return Err(ReplicaRefusal::Sealed);
        }
        if token != self.end.token || writer != self.writer {
            return Err(ReplicaRefusal::Deposed(self.end.token));
        }
        if seq < self.end.seq {
            let (has, got) = (self.end.seq, seq);
            return Err(ReplicaRefusal::Gap { has, got });
        }
        let end = Position { token, seq };
        Ok(Self { end, ..self })
    }

    /// Takes nothing more from this run.
    #[must_use]
    pub fn seal(self) -> Self {
        Self {
            sealed: true,
            ..self
        }
    }

    /// Whose turn it is, among the streams of the run: to be kept with the stream that began it.
    #[must_use]
    pub fn writer(&self) -> u64 {
        self.writer
    }

    /// The last change.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Whether it takes nothing more.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ownership::{Epoch, Incarnation};

    fn at(epoch: u64, incarnation: u64, seq: u64) -> Position {
        let (epoch, incarnation) = (Epoch(epoch), Incarnation(incarnation));
        let token = Token { epoch, incarnation };
        Position { token, seq }
    }

    #[test]
    fn it_follows_the_newest_run_and_ends_for_good() {
        let first = Replica::begin(None, at(1, 1, 5)).unwrap();
        let more = first.change(at(1, 1, 0).token, 1, 6).unwrap();
        assert!(
            first.change(at(1, 2, 0).token, 1, 6).is_err(),
            "it begins first"
        );
        assert!(
            Replica::begin(Some(&more), at(1, 2, 5)).is_err(),
            "less than it has"
        );
        let second = Replica::begin(Some(&more), at(1, 2, 6)).unwrap();
        assert!(Replica::begin(Some(&second), at(1, 1, 9)).is_err());
        assert!(
            Replica::begin(Some(&second), at(1, 2, 5)).is_err(),
            "less than it has"
        );
        let sealed = second.seal();
        assert!(sealed.change(at(1, 2, 0).token, 2, 7).is_err());
        assert!(Replica::begin(Some(&sealed), at(1, 2, 7)).is_err());
        assert!(Replica::begin(Some(&sealed), at(2, 1, 6)).is_ok());
    }

    #[test]
    fn an_earlier_stream_of_the_run_brings_nothing_more() {
        let (run, first) = (
            at(1, 1, 0).token,
            Replica::begin(None, at(1, 1, 4)).unwrap(),
        );
        // The first stream broke with change 5 under way; the second begins with it.
        let second = Replica::begin(Some(&first), at(1, 1, 5)).unwrap();
        let late = second.change(run, first.writer(), 5);
        assert_eq!(late, Err(ReplicaRefusal::Deposed(run)));
        assert!(second.change(run, second.writer(), 6).is_ok());
    }
}
