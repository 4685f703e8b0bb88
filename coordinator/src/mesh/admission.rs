//! Who may begin a handshake. Pure: time is an argument.
//!
//! A handshake costs about 0.8 ms of CPU, a refusal some microseconds, so what exceeds the budget
//! is shed before any cryptography. Above a load, strangers must first prove their address by a
//! round trip, so that spoofed packets cannot use up the budget.

use std::time::{Duration, Instant};

/// A bucket of tokens: `per_s` come in each second, at most `burst` stay.
#[derive(Debug)]
pub(super) struct TokenBucket {
    per_s: u32,
    burst: u32,
    /// Millionths of a token, so that no fraction is lost.
    micro_tokens: u64,
    at: Instant,
}

/// Millionths in a token.
const MICRO: u64 = 1_000_000;

impl TokenBucket {
    /// A full bucket.
    pub(super) fn new(per_s: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_s,
            burst,
            micro_tokens: u64::from(burst) * MICRO,
            at: now,
        }
    }

    /// Takes a token, if there is one. Time that goes backwards fills nothing.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let passed_us = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let filled = passed_us.saturating_mul(u64::from(self.per_s));
        let full = u64::from(self.burst) * MICRO;
        self.micro_tokens = self.micro_tokens.saturating_add(filled).min(full);
        // Whole microseconds only: what is left over counts next time.
        self.at += Duration::from_micros(passed_us);
        if self.micro_tokens < MICRO {
            return false;
        }
        self.micro_tokens -= MICRO;
        true
    }
}

/// What is asked of a connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Begin the handshake.
    Accept,
    /// Prove your address first.
    Retry,
    /// Come back later; says so in a packet.
    Refuse,
    /// Drop it in silence: its address may be a lie.
    Ignore,
}

/// How busy the endpoint is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Handshakes that have begun and not ended.
    pub(super) handshakes: usize,
    /// Open connections.
    pub(super) connections: usize,
}

/// Bounds of admission.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Handshakes at once.
    pub(super) handshakes_max: usize,
    /// Connections at once.
    pub(super) connections_max: usize,
    /// Handshakes at once from which on addresses must be proven.
    pub(super) retry_above: usize,
}

/// Judges connection attempts.
#[derive(Debug)]
pub(super) struct Admission {
    bounds: Bounds,
    bucket: TokenBucket,
}

impl Admission {
    pub(super) fn new(bounds: Bounds, bucket: TokenBucket) -> Self {
        Self { bounds, bucket }
    }

    /// Judges one attempt; `validated`: its address is proven.
    pub(super) fn judge(&mut self, validated: bool, load: Load, now: Instant) -> Verdict {
        if !validated && load.handshakes >= self.bounds.retry_above {
            return Verdict::Retry;
        }
        let room = load.handshakes < self.bounds.handshakes_max
            && load.connections < self.bounds.connections_max;
        match (room && self.bucket.take(now), validated) {
            (true, _) => Verdict::Accept,
            (false, true) => Verdict::Refuse,
            (false, false) => Verdict::Ignore,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn admission(now: Instant) -> Admission {
        let bounds = Bounds {
            handshakes_max: 4,
            connections_max: 10,
            retry_above: 2,
        };
        Admission::new(bounds, TokenBucket::new(1, 3, now))
    }

    #[test]
    fn load_asks_for_proof_and_limits_shed() {
        let now = Instant::now();
        let mut admission = admission(now);
        let load = |handshakes, connections| Load {
            handshakes,
            connections,
        };
        assert_eq!(admission.judge(false, load(0, 0), now), Verdict::Accept);
        assert_eq!(admission.judge(false, load(2, 2), now), Verdict::Retry);
        assert_eq!(admission.judge(true, load(2, 2), now), Verdict::Accept);
        assert_eq!(admission.judge(true, load(4, 4), now), Verdict::Refuse);
        assert_eq!(admission.judge(false, load(1, 10), now), Verdict::Ignore);
        assert_eq!(admission.judge(true, load(0, 0), now), Verdict::Accept);
        assert_eq!(
            admission.judge(true, load(0, 0), now),
            Verdict::Refuse,
            "bucket empty"
        );
        assert_eq!(admission.judge(false, load(0, 0), now), Verdict::Ignore);
        let later = now + Duration::from_secs(1);
        assert_eq!(admission.judge(true, load(0, 0), later), Verdict::Accept);
    }

    proptest! {
        /// In any time no more than `burst + per_s * time` tokens are given, and no fewer than
        /// that if they are asked for all the time.
        #[test]
        fn a_bucket_keeps_its_rate(
            per_s in 1u32..2000, burst in 1u32..100,
            gaps_us in prop::collection::vec(0u64..20_000, 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(per_s, burst, start);
            let (mut now, mut given) = (start, 0u64);
            for gap in gaps_us {
                now += Duration::from_micros(gap);
                while bucket.take(now) {
                    given += 1;
                }
                let passed_us = now.duration_since(start).as_micros() as u64;
                let most = u64::from(burst) + passed_us * u64::from(per_s) / MICRO;
                prop_assert!(given <= most, "{} > {}", given, most);
            }
        }

        /// Nothing is lost to rounding when asked often: a slow drip still fills.
        #[test]
        fn a_drip_is_not_lost(step_ns in 100u64..5_000) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(1000, 1, start);
            prop_assert!(bucket.take(start));
            let steps = 1_100_000 / step_ns;
            let mut times = (1..=steps).map(|i| start + Duration::from_nanos(i * step_ns));
            prop_assert_eq!(times.by_ref().filter(|now| bucket.take(*now)).count(), 1);
        }
    }
}
