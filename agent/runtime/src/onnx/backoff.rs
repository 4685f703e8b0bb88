//! When a failing child may start again. Pure: time is an argument.

use std::time::{Duration, Instant};

/// The first pause, after the second failure in a row: the first one is forgiven, since one bad
/// request must not hold up the next good one.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause: a model that comes right again is noticed within half a minute.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Failures in a row and the pause that they earned.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(doublings) = self.failures.checked_sub(2) {
            self.until = Some(now + (PAUSE_MIN * (1 << doublings.min(16))).min(PAUSE_MAX));
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Time left until a start is allowed; none if it is allowed now.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.until
            .map(|until| until.saturating_duration_since(now))
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_bound_and_forgets_on_success() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.failed(now);
        assert_eq!(backoff.wait(now), None, "the first failure is forgiven");
        let mut waits = Vec::new();
        for _ in 0..40 {
            backoff.failed(now);
            waits.extend(backoff.wait(now));
        }
        assert_eq!(waits[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
        assert_eq!(waits.last(), Some(&PAUSE_MAX));
        assert_eq!(backoff.wait(now + PAUSE_MAX), None);
        backoff.succeeded();
        assert_eq!((backoff.wait(now), backoff.failures()), (None, 0));
    }
}
