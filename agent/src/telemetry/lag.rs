//! How late the agent's event loop is: a probe asks to be woken every [`PERIOD`] and notes the
//! delay, which is what everything else on the loop waits too.
//!
//! Kept are the newest [`SLICES`] x [`SLICE_NOTES`] delays, by bucket: about a minute, in less than
//! a kibibyte. A stall counts once for each wake-up that it swallowed, else a long one would
//! look like a single late one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Between wake-ups: ten a second cost an idle agent about 0.02 % of a core.
const PERIOD: Duration = Duration::from_millis(100);
/// Upper bounds of the buckets, ms. The timer itself rounds up to whole ms, so the first are
/// what an idle loop shows.
const BOUNDS_MS: [u32; 22] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1_024, 4_096, 16_384,
    65_536,
];
/// Delays of one slice: ten seconds' worth.
const SLICE_NOTES: u16 = 100;
/// Slices kept; the oldest is forgotten whole.
const SLICES: usize = 6;

/// See the module. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Lag(Arc<Mutex<Window>>);

impl Lag {
    fn window(&self) -> MutexGuard<'_, Window> {
        // Counters are changed in single steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the event loop that it is spawned on, for ever.
    pub async fn probe(self) {
        loop {
            let due = Instant::now() + PERIOD;
            tokio::time::sleep_until(due).await;
            self.window().stall(due.elapsed());
        }
    }

    /// The delay that 99 % of the wake-ups of about the last minute did not exceed, ms, rounded up
    /// to its bucket's bound. 0 before the first.
    #[must_use]
    pub fn p99_ms(&self) -> u32 {
        self.window().p99_ms()
    }
}

#[derive(Debug, Default)]
struct Window {
    slices: [Slice; SLICES],
    /// Which one is being filled.
    at: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Slice {
    counts: [u16; BOUNDS_MS.len()],
    notes: u16,
}

impl Window {
    /// Notes a late wake-up and those that it swallowed.
    fn stall(&mut self, late: Duration) {
        let mut left = late;
        for _ in 0..SLICES * usize::from(SLICE_NOTES) {
            self.note(left);
            match left.checked_sub(PERIOD) {
                Some(less) => left = less,
                None => break,
            }
        }
    }

    fn note(&mut self, late: Duration) {
        if self.slices[self.at].notes >= SLICE_NOTES {
            self.at = (self.at + 1) % SLICES;
            self.slices[self.at] = Slice::default();
        }
        let slice = &mut self.slices[self.at];
        let fits = |bound: &u32| late <= Duration::from_millis(u64::from(*bound));
        let bucket = BOUNDS_MS.iter().position(fits);
        slice.counts[bucket.unwrap_or(BOUNDS_MS.len() - 1)] += 1;
        slice.notes += 1;
    }

    fn p99_ms(&self) -> u32 {
        let notes: u32 = self.slices.iter().map(|s| u32::from(s.notes)).sum();
        let rank = (notes * 99).div_ceil(100);
        let mut seen = 0;
        for (bucket, bound) in BOUNDS_MS.iter().enumerate() {
            let counts = self.slices.iter().map(|s| u32::from(s.counts[bucket]));
            seen += counts.sum::<u32>();
            if seen >= rank && seen > 0 {
                return *bound;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_late_in_a_hundred_is_not_the_p99_and_two_are() {
        let mut window = Window::default();
        assert_eq!(window.p99_ms(), 0);
        for _ in 0..99 {
            window.stall(ms(1));
        }
        window.stall(ms(90));
        assert_eq!(window.p99_ms(), 1);
        window.stall(ms(90));
        assert_eq!(window.p99_ms(), 96);
    }

    #[test]
    fn a_stall_counts_for_all_the_wake_ups_that_it_swallowed() {
        let mut window = Window::default();
        for _ in 0..400 {
            window.stall(ms(1));
        }
        // Ten wake-ups: 1,000 ms late, 900, 800 … of 410.
        window.stall(ms(1_000));
        assert_eq!(window.p99_ms(), 1_024);
        // The whole window at most, and the last bucket has no end.
        window.stall(Duration::from_secs(1_000_000));
        assert_eq!(window.p99_ms(), 65_536);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::default();
        for _ in 0..50 {
            window.stall(ms(300));
        }
        assert_eq!(window.p99_ms(), 384);
        for _ in 0..SLICES * usize::from(SLICE_NOTES) {
            window.stall(ms(2));
        }
        assert_eq!(window.p99_ms(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_probe_sees_a_loop_that_stands_still() {
        let lag = Lag::default();
        let probe = tokio::spawn(lag.clone().probe());
        tokio::time::sleep(PERIOD * 20).await;
        assert!(lag.p99_ms() <= 2, "{}", lag.p99_ms());
        // Time passes and nobody runs, as when a future computes.
        tokio::time::advance(ms(700)).await;
        tokio::time::sleep(PERIOD).await;
        assert!(lag.p99_ms() > 500, "{}", lag.p99_ms());
        probe.abort();
    }
}
