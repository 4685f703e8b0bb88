//! The coordinator's record of a join token, and the rules of using it: once, in time, not
//! revoked. A pure state machine; the caller stores it durably *before* it answers.

use serde::{Deserialize, Serialize};

use super::{
    key::KeyHash,
    secret::{SecretHash, TokenId, TokenSecret},
};
use crate::{
    codes::Code,
    id::{NodeId, UnixMs},
    spec::{Labels, Tier},
};

/// Why a token was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No record of it.
    #[error("the coordinator does not know this join token")]
    UnknownToken,
    /// The id is known, the secret is not its.
    #[error("the join token's secret is wrong")]
    WrongSecret,
    /// Withdrawn by an operator.
    #[error("the join token was revoked")]
    Revoked,
    /// Past its time.
    #[error("the join token expired {since_s} s ago")]
    Expired {
        /// How long ago, in seconds.
        since_s: u64,
    },
    /// Another key has used it.
    #[error("the join token was already used")]
    AlreadyUsed,
    /// It was made for one node and this is another.
    #[error("the join token is for a node of another name")]
    OtherNode,
}

impl Refusal {
    /// The stable code. An unknown token and a wrong secret look the same from outside.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::UnknownToken | Self::WrongSecret => Code::TokenUnknown,
            Self::Revoked => Code::TokenRevoked,
            Self::Expired { .. } => Code::TokenExpired,
            Self::AlreadyUsed => Code::TokenUsed,
            Self::OtherNode => Code::NodeNameTaken,
        }
    }
}

/// The one use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The node that joined with it.
    pub node: NodeId,
    /// The key that it joined with.
    pub key: KeyHash,
    /// When.
    pub at: UnixMs,
}

/// What a redemption was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redemption {
    /// The first: the record changed, store it.
    First,
    /// The same node with the same key again (its reply was lost): nothing changed.
    Repeat,
}

/// What the coordinator keeps of a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The token's name.
    pub id: TokenId,
    /// Of the secret only this.
    pub secret_hash: SecretHash,
    /// Tier of the node that joins.
    pub tier: Tier,
    /// Its labels.
    pub labels: Labels,
    /// Its name, if the operator chose one.
    pub name: Option<NodeId>,
    /// When it was made.
    pub created: UnixMs,
    /// From when on it is refused.
    pub expires: UnixMs,
    /// When an operator withdrew it.
    pub revoked: Option<UnixMs>,
    /// Its use.
    pub used: Option<Use>,
}

impl TokenRecord {
    /// Uses the token for `node`, which holds `key`. The secret is checked first, so that nothing
    /// is said about the token to whoever does not have it. An `Err` changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn redeem(
        &mut self,
        secret: &TokenSecret,
        node: &NodeId,
        key: KeyHash,
        now: UnixMs,
    ) -> Result<Redemption, Refusal> {
        self.open(secret, now)?;
        if let Some(before) = &self.used {
            let same = before.key == key && before.node == *node;
            return if same {
                Ok(Redemption::Repeat)
            } else {
                Err(Refusal::AlreadyUsed)
            };
        }
        if self.name.as_ref().is_some_and(|name| name != node) {
            return Err(Refusal::OtherNode);
        }
        self.used = Some(Use {
            node: node.clone(),
            key,
            at: now,
        });
        Ok(Redemption::First)
    }

    /// The node that `key` joined as, if it already used this token: on a repeat the caller
    /// redeems for this name instead of choosing a new one.
    ///
    /// # Errors
    /// As [`redeem`](Self::redeem), also when another key used it.
    pub fn joined_as(
        &self,
        secret: &TokenSecret,
        key: KeyHash,
        now: UnixMs,
    ) -> Result<Option<&NodeId>, Refusal> {
        self.open(secret, now)?;
        match &self.used {
            None => Ok(None),
            Some(before) if before.key == key => Ok(Some(&before.node)),
            Some(_) => Err(Refusal::AlreadyUsed),
        }
    }

    fn open(&self, secret: &TokenSecret, now: UnixMs) -> Result<(), Refusal> {
        if secret.hash() != self.secret_hash {
            return Err(Refusal::WrongSecret);
        }
        if self.revoked.is_some() {
            return Err(Refusal::Revoked);
        }
        if now >= self.expires {
            return Err(Refusal::Expired {
                since_s: now.since(self.expires) / 1000,
            });
        }
        Ok(())
    }

    /// Withdraws the token. Whether this changed the record.
    pub fn revoke(&mut self, now: UnixMs) -> bool {
        let changes = self.revoked.is_none();
        self.revoked.get_or_insert(now);
        changes
    }

    /// Whether the token can still bring in a node.
    #[must_use]
    pub fn is_open(&self, now: UnixMs) -> bool {
        self.revoked.is_none() && self.used.is_none() && now < self.expires
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMs = UnixMs(1_760_000_000_000);

    fn record(name: Option<&str>) -> (TokenRecord, TokenSecret) {
        let secret = TokenSecret::generate().unwrap();
        let record = TokenRecord {
            id: TokenId::generate().unwrap(),
            secret_hash: secret.hash(),
            tier: Tier::Edge,
            labels: Labels::new(),
            name: name.map(|name| name.parse().unwrap()),
            created: NOW,
            expires: NOW.plus(60_000),
            revoked: None,
            used: None,
        };
        (record, secret)
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn key(n: u8) -> KeyHash {
        KeyHash::of_spki(&[n])
    }

    #[test]
    fn a_token_is_for_one_node_with_one_key() {
        let (mut record, secret) = record(None);
        assert_eq!(record.joined_as(&secret, key(1), NOW), Ok(None));
        assert_eq!(
            record.redeem(&secret, &node("a"), key(1), NOW),
            Ok(Redemption::First)
        );
        let stored = record.clone();
        assert_eq!(record.joined_as(&secret, key(1), NOW), Ok(Some(&node("a"))));
        assert_eq!(
            record.redeem(&secret, &node("a"), key(1), NOW),
            Ok(Redemption::Repeat)
        );
        for (name, n) in [("a", 2), ("b", 1), ("b", 2)] {
            let replay = record.redeem(&secret, &node(name), key(n), NOW);
            assert_eq!(replay, Err(Refusal::AlreadyUsed), "{name} {n}");
        }
        assert_eq!(
            record.joined_as(&secret, key(2), NOW),
            Err(Refusal::AlreadyUsed)
        );
        assert_eq!(record, stored, "refusals and repeats change nothing");
        assert!(!record.is_open(NOW));
    }

    #[test]
    fn time_revocation_and_name_are_respected() {
        let (mut record, secret) = record(Some("a"));
        let fresh = record.clone();
        let late = NOW.plus(63_000);
        assert_eq!(
            record.redeem(&secret, &node("a"), key(1), late),
            Err(Refusal::Expired { since_s: 3 })
        );
        assert_eq!(
            record.redeem(&secret, &node("a"), key(1), record.expires),
            Err(Refusal::Expired { since_s: 0 })
        );
        assert_eq!(
            record.redeem(&secret, &node("b"), key(1), NOW),
            Err(Refusal::OtherNode)
        );
        assert_eq!(record, fresh);
        assert!(record.revoke(NOW) && !record.revoke(late));
        assert_eq!(record.revoked, Some(NOW));
        assert_eq!(
            record.redeem(&secret, &node("a"), key(1), NOW),
            Err(Refusal::Revoked)
        );
    }

    #[test]
    fn without_the_secret_nothing_is_learnt() {
        let (mut record, _) = record(None);
        record.revoke(NOW);
        let guess = TokenSecret::generate().unwrap();
        for at in [NOW, NOW.plus(1_000_000)] {
            let refused = record.redeem(&guess, &node("a"), key(1), at);
            assert_eq!(refused, Err(Refusal::WrongSecret));
        }
        assert_eq!(Refusal::WrongSecret.code(), Refusal::UnknownToken.code());
    }

    #[test]
    fn the_stored_record_does_not_hold_the_secret() {
        let (record, secret) = record(Some("a"));
        let stored = postcard::to_allocvec(&record).unwrap();
        let secret = postcard::to_allocvec(&secret).unwrap();
        assert!(!stored.windows(secret.len()).any(|window| window == secret));
        assert_eq!(
            postcard::from_bytes::<TokenRecord>(&stored).unwrap(),
            record
        );
    }

    proptest! {
        // Whoever tries what, in any order and at any time: at most one key ever gets in.
        #[test]
        fn at_most_one_key_gets_in(
            tries in proptest::collection::vec((0u8..3, 0u8..3, 0u64..120_000, 0u8..10), 1..40),
        ) {
            let (mut record, secret) = record(None);
            let mut winner = None;
            for (name, n, at, what) in tries {
                let at = NOW.plus(at);
                if what == 0 {
                    record.revoke(at);
                    continue;
                }
                let (name, n) = (node(&format!("n{name}")), key(n));
                let before = record.clone();
                match record.redeem(&secret, &name, n, at) {
                    Ok(Redemption::First) => {
                        prop_assert!(winner.is_none() && before.is_open(at));
                        winner = Some((name, n));
                    }
                    Ok(Redemption::Repeat) => {
                        prop_assert_eq!(&winner, &Some((name, n)));
                        prop_assert_eq!(&record, &before);
                    }
                    Err(_) => prop_assert_eq!(&record, &before),
                }
            }
        }
    }
}
