//! Leases: the right to run a fenced instance until a time (DESIGN §9, rules 2 and 4).
//!
//! Both sides count on their own boot-time clock, which runs on while the machine sleeps; no wall
//! clock and no clock of the other side is believed. The holder counts from when it *asked*, the
//! grantor from when it *answered*, which is later; clocks that run at rates less than
//! [`DRIFT_PARTS`] apart (and [`DRIFT_MS`] for the rest) keep the holder's end before the
//! grantor's.
//!
//! What was granted is not stored: after its start the grantor assumes that everybody was granted
//! the longest lease that the records allow just before. A holder asks with the token of its run,
//! so what was granted to an earlier run or epoch is worth nothing to a later one.
//!
//! Pure: times are arguments.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
};

use super::{Epoch, Ownership, Token};

/// Longest lease, ms.
pub const LEASE_MS_MAX: u64 = 60_000;
/// Lengths that a lease may have, ms.
pub const LEASE_MS: RangeInclusive<u64> = 1_000..=LEASE_MS_MAX;
/// Clocks differ in rate by less than one part in this many.
pub const DRIFT_PARTS: u64 = 50;
/// And by this many ms, for reading and rounding them.
pub const DRIFT_MS: u64 = 50;
/// Requests for leases in flight.
const ASKED_MAX: usize = 16;

/// A boot-time clock's reading, ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootMs(pub u64);

impl BootMs {
    /// That much later.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// How long the grantor waits beyond a lease of `ttl_ms`.
#[must_use]
pub fn drift_ms(ttl_ms: u64) -> u64 {
    ttl_ms / DRIFT_PARTS + DRIFT_MS
}

/// The grantor's side: what the coordinator has granted since it started. `K` names instances.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leases<K> {
    began: BootMs,
    granted: BTreeMap<K, Granted>,
    /// Epochs up to this one get no lease any more: they are being replaced.
    barred: BTreeMap<K, Epoch>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Granted {
    /// Drift included.
    until: BootMs,
    /// Until then a new owner may not have asked yet.
    grace: Option<BootMs>,
}

impl<K: Ord + Clone> Leases<K> {
    /// Of a coordinator that starts now.
    #[must_use]
    pub fn new(now: BootMs) -> Self {
        Self {
            began: now,
            granted: BTreeMap::new(),
            barred: BTreeMap::new(),
        }
    }

    /// Grants the run `token` on `node` a lease of `ttl_ms` from now, if it has the instance by
    /// `record`. The answer may be sent when this returns true.
    #[must_use]
    pub fn grant<N: PartialEq>(
        &mut self,
        key: &K,
        record: &Ownership<N>,
        node: &N,
        token: Token,
        ttl_ms: u64,
        now: BootMs,
    ) -> bool {
        let barred = self.barred.get(key).is_some_and(|bar| token.epoch <= *bar);
        if barred || ttl_ms > LEASE_MS_MAX || !record.hears(node, token) {
            return false;
        }
        let until = now.plus(ttl_ms).plus(drift_ms(ttl_ms));
        let granted = self.granted.entry(key.clone()).or_default();
        granted.until = granted.until.max(until);
        // It has asked.
        granted.grace = None;
        true
    }

    /// When nobody can hold a lease on the instance any more. `ttl_ms`: the longest that the record
    /// allows, which may have been granted before this coordinator started.
    #[must_use]
    pub fn over(&self, key: &K, ttl_ms: u64) -> BootMs {
        let before = self.began.plus(ttl_ms).plus(drift_ms(ttl_ms));
        let granted = self.granted.get(key).copied().unwrap_or_default();
        let since = granted.until.max(granted.grace.unwrap_or_default());
        before.max(since)
    }

    /// The instance has a new owner: nobody takes it over before that has asked for a lease, or
    /// `until` has come.
    pub fn expect(&mut self, key: &K, until: BootMs) {
        self.granted.entry(key.clone()).or_default().grace = Some(until);
    }

    /// Grants no more for epochs up to `epoch`, if nobody can hold a lease on them any more: somebody
    /// else may own it then. `ttl_ms` as for [`over`](Self::over).
    #[must_use]
    pub fn take(&mut self, key: &K, epoch: Epoch, ttl_ms: u64, now: BootMs) -> bool {
        let over = self.over(key, ttl_ms) <= now;
        if over {
            self.bar(key, epoch);
        }
        over
    }

    /// Grants no more for epochs up to `epoch`: somebody else is about to own it.
    pub fn bar(&mut self, key: &K, epoch: Epoch) {
        let bar = self.barred.entry(key.clone()).or_insert(epoch);
        *bar = epoch.max(*bar);
    }

    /// The change of owner did not happen.
    pub fn unbar(&mut self, key: &K) {
        self.barred.remove(key);
    }

    /// The instance is gone.
    pub fn forget(&mut self, key: &K) {
        self.granted.remove(key);
        self.barred.remove(key);
    }
}

/// The holder's side: what an agent has been granted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder<K> {
    asked: VecDeque<(u64, BootMs)>,
    next: u64,
    held: BTreeMap<K, (Token, BootMs)>,
}

impl<K> Default for Holder<K> {
    fn default() -> Self {
        Self {
            asked: VecDeque::new(),
            next: 0,
            held: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Holder<K> {
    /// Notes that leases are asked for now; the number goes with the request.
    pub fn ask(&mut self, now: BootMs) -> u64 {
        self.next += 1;
        self.asked.push_back((self.next, now));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
        self.next
    }

    /// Request `number` was answered: the run `token` may go on for `ttl_ms` from when that was
    /// asked. Repeated and late answers do no harm.
    pub fn granted(&mut self, number: u64, key: &K, token: Token, ttl_ms: u64) {
        let asked = self.asked.iter().find(|(asked, _)| *asked == number);
        let Some((_, at)) = asked else {
            return;
        };
        let until = at.plus(ttl_ms.min(LEASE_MS_MAX));
        let held = self.held.entry(key.clone()).or_insert((token, until));
        if (token, until) > *held {
            *held = (token, until);
        }
    }

    /// When the right of this run ends; `None` if it has none.
    #[must_use]
    pub fn until(&self, key: &K, token: Token) -> Option<BootMs> {
        let held = self.held.get(key).filter(|(of, _)| *of == token);
        held.map(|(_, until)| *until)
    }

    /// Whether this run may go on, or let an effect out, at `now`.
    #[must_use]
    pub fn holds(&self, key: &K, token: Token, now: BootMs) -> bool {
        self.until(key, token).is_some_and(|until| now < until)
    }

    /// The run is over.
    pub fn forget(&mut self, key: &K) {
        self.held.remove(key);
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
    fn the_holder_counts_from_asking_and_the_grantor_from_answering() {
        let (mut leases, mut holder) = (Leases::new(BootMs(0)), Holder::default());
        let mut record = Ownership::new(Epoch(0));
        record.assign('a');
        // The two clocks have nothing to do with each other.
        let asked = holder.ask(BootMs(700_000));
        assert!(leases.grant(&1, &record, &'a', token(1, 1), 3_000, BootMs(100_000)));
        holder.granted(asked, &1, token(1, 1), 3_000);
        assert!(holder.holds(&1, token(1, 1), BootMs(702_999)));
        assert!(!holder.holds(&1, token(1, 1), BootMs(703_000)));
        assert!(
            !holder.holds(&1, token(1, 2), BootMs(700_001)),
            "another run"
        );
        assert_eq!(leases.over(&1, 3_000), BootMs(103_110));
    }

    #[test]
    fn a_start_waits_for_leases_of_before() {
        let leases = Leases::<u8>::new(BootMs(50));
        assert_eq!(leases.over(&1, 10_000), BootMs(10_300));
    }

    #[test]
    fn a_new_owner_gets_time_to_ask() {
        let mut leases = Leases::new(BootMs(0));
        let mut record = Ownership::new(Epoch(0));
        record.assign('a');
        leases.expect(&1, BootMs(9_000));
        assert_eq!(leases.over(&1, 1_000), BootMs(9_000));
        assert!(leases.grant(&1, &record, &'a', token(1, 1), 1_000, BootMs(500)));
        assert_eq!(leases.over(&1, 1_000), BootMs(1_570));
        assert!(!leases.take(&1, Epoch(1), 1_000, BootMs(1_569)));
        assert!(leases.take(&1, Epoch(1), 1_000, BootMs(1_570)));
        assert!(!leases.grant(&1, &record, &'a', token(1, 1), 1_000, BootMs(1_570)));
    }

    #[test]
    fn a_repeated_answer_does_not_make_a_lease_longer() {
        let mut holder = Holder::default();
        let first = holder.ask(BootMs(0));
        holder.granted(first, &1, token(1, 1), 1_000);
        holder.granted(first, &1, token(1, 1), 1_000);
        assert_eq!(holder.until(&1, token(1, 1)), Some(BootMs(1_000)));
        for now in 1..=ASKED_MAX as u64 {
            holder.ask(BootMs(now));
        }
        holder.granted(first, &1, token(1, 2), 1_000);
        assert_eq!(holder.until(&1, token(1, 2)), None, "too old to be known");
    }

    #[test]
    fn nobody_else_and_no_replaced_epoch_gets_one() {
        let mut leases = Leases::new(BootMs(0));
        let mut record = Ownership::new(Epoch(0));
        record.assign('a');
        assert!(!leases.grant(&1, &record, &'b', token(1, 1), 1_000, BootMs(0)));
        leases.bar(&1, Epoch(1));
        assert!(!leases.grant(&1, &record, &'a', token(1, 1), 1_000, BootMs(0)));
        record.assign('b');
        assert!(leases.grant(&1, &record, &'b', token(2, 1), 1_000, BootMs(0)));
        leases.unbar(&1);
        assert!(!leases.grant(&1, &record, &'a', token(1, 1), 1_000, BootMs(0)));
    }
}
