//! A node's idea of the time, for certificates only.
//!
//! A Pi has no clock at boot, so the time is the greatest of the system's, the build's and the
//! last that a coordinator told over an authenticated session. Only that last one is persisted,
//! never the system's: one bogus future reading must not poison the node for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use super::certificate::Validity;
use crate::id::UnixMs;

/// The time is worth storing again when it has moved this far, in ms: an hour. Spares the flash.
pub const PERSIST_STEP_MS: u64 = 3_600_000;

/// See the module. Shared by reference between the session and the TLS settings.
#[derive(Debug)]
pub struct TrustedClock {
    build: UnixMs,
    learned: AtomicU64,
    persisted: AtomicU64,
}

impl TrustedClock {
    /// A clock that is never before `build` (when this program was built) nor before `persisted`
    /// (what [`learn`](Self::learn) last gave to store).
    #[must_use]
    pub fn new(build: UnixMs, persisted: Option<UnixMs>) -> Self {
        let persisted = persisted.unwrap_or_default().0;
        Self {
            build,
            learned: AtomicU64::new(persisted),
            persisted: AtomicU64::new(persisted),
        }
    }

    /// The time, when the system's clock shows `system`.
    #[must_use]
    pub fn now(&self, system: UnixMs) -> UnixMs {
        system
            .max(self.build)
            .max(UnixMs(self.learned.load(Ordering::Relaxed)))
    }

    /// Takes `told`, the time of a coordinator that showed a certificate of `validity`. Gives back
    /// what to persist, if anything. A time outside the coordinator's own certificate is not
    /// believed. An earlier time than before *is*: a coordinator whose clock was set right sets
    /// its nodes right.
    #[must_use = "persist it, so that the node knows the time after a reboot"]
    pub fn learn(&self, told: UnixMs, validity: Validity) -> Option<UnixMs> {
        if !validity.contains(told) {
            return None;
        }
        self.learned.store(told.0, Ordering::Relaxed);
        let step = self.persisted.load(Ordering::Relaxed).abs_diff(told.0);
        if step < PERSIST_STEP_MS {
            return None;
        }
        self.persisted.store(told.0, Ordering::Relaxed);
        Some(told)
    }
}

/// When to renew a leaf certificate: at two thirds of its life, up to a tenth of its life earlier
/// (`jitter` from 0 to `u16::MAX`, drawn by the caller), so that nodes that joined together do
/// not come back together. Life counts from the issue, not from the back-dated beginning.
#[must_use]
pub fn renew_at(validity: Validity, jitter: u16) -> UnixMs {
    let issued = validity.issued_at();
    let life = u128::from(validity.not_after.since(issued));
    let early = life * u128::from(jitter) / (10 * u128::from(u16::MAX));
    let after = (life * 2 / 3).saturating_sub(early);
    issued.plus(u64::try_from(after).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::identity::LEAF_BACKDATE_S;

    const BUILD: UnixMs = UnixMs(1_760_000_000_000);
    const DAY: u64 = 24 * 3_600_000;

    fn validity(issued: UnixMs, life_ms: u64) -> Validity {
        let not_before = UnixMs(issued.0 - LEAF_BACKDATE_S * 1000);
        Validity {
            not_before,
            not_after: issued.plus(life_ms),
        }
    }

    #[test]
    fn the_greatest_of_three_wins() {
        let clock = TrustedClock::new(BUILD, None);
        assert_eq!(clock.now(UnixMs(0)), BUILD);
        assert_eq!(clock.now(BUILD.plus(5)), BUILD.plus(5));
        let clock = TrustedClock::new(BUILD, Some(BUILD.plus(DAY)));
        assert_eq!(clock.now(BUILD.plus(5)), BUILD.plus(DAY));
    }

    #[test]
    fn a_bogus_system_time_passes() {
        let clock = TrustedClock::new(BUILD, None);
        let told = BUILD.plus(10 * DAY);
        assert_eq!(
            clock.now(BUILD.plus(90_000 * DAY)),
            BUILD.plus(90_000 * DAY)
        );
        assert_eq!(clock.learn(told, validity(told, DAY)), Some(told));
        assert_eq!(
            clock.now(UnixMs(0)),
            told,
            "the bogus reading has left no trace"
        );
    }

    #[test]
    fn only_what_a_valid_certificate_covers_is_learned() {
        let clock = TrustedClock::new(BUILD, None);
        let certificate = validity(BUILD, DAY);
        assert_eq!(clock.learn(BUILD.plus(2 * DAY), certificate), None);
        assert_eq!(clock.learn(UnixMs(0), certificate), None);
        assert_eq!(clock.now(UnixMs(0)), BUILD);
    }

    #[test]
    fn small_steps_are_not_persisted_but_count() {
        let clock = TrustedClock::new(BUILD, Some(BUILD));
        let certificate = validity(BUILD, 30 * DAY);
        assert_eq!(clock.learn(BUILD.plus(1000), certificate), None);
        assert_eq!(clock.now(UnixMs(0)), BUILD.plus(1000));
        let later = BUILD.plus(PERSIST_STEP_MS);
        assert_eq!(clock.learn(later, certificate), Some(later));
        assert_eq!(clock.learn(later.plus(1), certificate), None);
    }

    #[test]
    fn a_coordinator_that_was_ahead_is_believed_when_it_comes_back() {
        let clock = TrustedClock::new(BUILD, None);
        let certificate = validity(BUILD, 30 * DAY);
        let (ahead, right) = (BUILD.plus(20 * DAY), BUILD.plus(DAY));
        assert_eq!(clock.learn(ahead, certificate), Some(ahead));
        assert_eq!(clock.learn(right, certificate), Some(right));
        assert_eq!(clock.now(UnixMs(0)), right);
    }

    #[test]
    fn renewal_is_at_two_thirds_also_of_a_short_life() {
        assert_eq!(renew_at(validity(BUILD, 90_000), 0), BUILD.plus(60_000));
        assert_eq!(
            renew_at(validity(BUILD, 90_000), u16::MAX),
            BUILD.plus(51_000)
        );
    }

    proptest! {
        #[test]
        fn renewal_is_always_between_issue_and_end(life in 10u64..400 * DAY, jitter: u16) {
            let validity = validity(BUILD, life);
            let at = renew_at(validity, jitter);
            prop_assert!(validity.issued_at() < at && at < validity.not_after);
        }
    }
}
