//! How long to wait before trying again. Pure: attempt and randomness are arguments.
//!
//! Full jitter: a uniform choice below a bound that doubles, so that nodes that lost their
//! coordinator together do not come back together.

use std::time::Duration;

/// Bound of the first wait, ms.
const FIRST_MS: u64 = 500;
/// Bound of every wait, ms: a minute, so that a node is back soon after its coordinator.
pub const CEILING_MS: u64 = 60_000;
/// Least wait, ms: an address that refuses at once must not spin.
const FLOOR_MS: u64 = 50;

/// The wait before attempt number `attempt` (0 = the first retry), from 64 random bits.
#[must_use]
pub fn delay(attempt: u32, random: u64) -> Duration {
    let bound_ms = FIRST_MS
        .saturating_mul(1 << attempt.min(16))
        .min(CEILING_MS);
    Duration::from_millis(FLOOR_MS + spread(bound_ms - FLOOR_MS, random))
}

/// A uniform choice from 0 to `bound`, from 64 random bits.
fn spread(bound: u64, random: u64) -> u64 {
    ((u128::from(random) * (u128::from(bound) + 1)) >> 64) as u64
}

/// The wait that a restarting coordinator asked for, and up to a quarter more.
#[must_use]
pub fn asked(reconnect_in_ms: u32, random: u64) -> Duration {
    let asked_ms = u64::from(reconnect_in_ms).min(CEILING_MS);
    Duration::from_millis(asked_ms + spread(asked_ms / 4, random))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_whole_range_is_used() {
        assert_eq!(delay(0, 0), Duration::from_millis(FLOOR_MS));
        assert_eq!(delay(0, u64::MAX), Duration::from_millis(FIRST_MS));
        assert_eq!(delay(u32::MAX, u64::MAX), Duration::from_millis(CEILING_MS));
        assert_eq!(asked(1000, 0), Duration::from_secs(1));
        assert_eq!(asked(1000, u64::MAX), Duration::from_millis(1250));
    }

    proptest! {
        #[test]
        fn waits_are_bounded(attempt: u32, random: u64, asked_ms: u32) {
            let wait_ms = delay(attempt, random).as_millis() as u64;
            prop_assert!((FLOOR_MS..=CEILING_MS).contains(&wait_ms));
            prop_assert!(asked(asked_ms, random).as_millis() as u64 <= CEILING_MS / 4 * 5);
        }
    }
}
