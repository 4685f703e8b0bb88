//! The coordinator's side: the record of one instance, the only authority over its owner
//! (DESIGN §9, rules 1, 3, 5, 6 and 8).
//!
//! Every method is one step of a compare-and-swap: the caller stores the result before anybody
//! hears of it.

use serde::{Deserialize, Serialize};

use super::{Epoch, Token};

/// Who owns an instance. `N` names nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ownership<N> {
    /// The newest ownership.
    pub epoch: Epoch,
    /// Who has it.
    pub owner: Option<N>,
    /// The highest token heard of: of this epoch.
    pub token: Token,
}

/// How far a state is: whose it is, then how many changes it has. A lower run never has anything
/// newer.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The run that made it.
    pub token: Token,
    /// Changes that it contains.
    pub seq: u64,
}

impl<N: PartialEq> Ownership<N> {
    /// One that was never assigned; its first epoch is above `floor`.
    #[must_use]
    pub fn new(floor: Epoch) -> Self {
        Self {
            epoch: floor,
            owner: None,
            token: Token::default(),
        }
    }

    /// Whether what the run `token` on `node` says counts: it is of the owner, of its epoch, and
    /// of no run before the newest one heard of.
    #[must_use]
    pub fn hears(&self, node: &N, token: Token) -> bool {
        self.owner.as_ref() == Some(node) && token.epoch == self.epoch && token >= self.token
    }

    /// Notes the run that spoke. To be asked [`hears`](Self::hears) before.
    pub fn heard(&mut self, token: Token) {
        debug_assert_eq!(token.epoch, self.epoch, "a stale run was let through");
        self.token = self.token.max(token);
    }

    /// Gives the instance to `node` under a new epoch.
    pub fn assign(&mut self, node: N) {
        self.epoch = self.epoch.next();
        self.owner = Some(node);
        self.token = Token {
            epoch: self.epoch,
            ..Token::default()
        };
    }

    /// Takes it from its owner without giving it to another.
    pub fn release(&mut self) {
        self.owner = None;
    }

    /// `node` holds epoch `held`, newer than this record (which was restored from a backup): it
    /// keeps the instance, under a still newer one.
    pub fn adopt(&mut self, node: N, held: Epoch) {
        self.epoch = self.epoch.max(held);
        self.assign(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::Incarnation;

    fn token(epoch: u64, incarnation: u64) -> Token {
        Token {
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn only_the_newest_run_of_the_owner_is_heard() {
        let mut record = Ownership::new(Epoch(4));
        record.assign('a');
        assert!(record.hears(&'a', token(5, 1)));
        assert!(!record.hears(&'b', token(5, 1)));
        assert!(!record.hears(&'a', token(4, 9)));
        record.heard(token(5, 2));
        assert!(!record.hears(&'a', token(5, 1)), "an earlier run");
        record.assign('b');
        assert!(!record.hears(&'a', token(5, 3)), "deposed");
        record.adopt('a', Epoch(9));
        assert_eq!((record.epoch, record.owner), (Epoch(10), Some('a')));
    }

    #[test]
    fn who_made_a_state_decides_before_how_much_it_has() {
        let at = |epoch, seq| Position {
            token: token(epoch, 1),
            seq,
        };
        assert!(at(2, 1) > at(1, 100));
        assert!(at(2, 2) > at(2, 1));
    }
}
