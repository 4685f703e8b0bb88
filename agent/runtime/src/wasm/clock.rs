//! The time a guest sees: the host's, or a virtual one that is plain data.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Which time a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GuestClock {
    /// The host's clocks; monotonic time starts near 0 at the first reading in this process.
    #[default]
    Host,
    /// Time that moves only when the guest looks at it or sleeps.
    Virtual(VirtualClock),
}

/// A deterministic clock: each reading moves it on by `step_ns`, a sleep by its length without
/// any real waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualClock {
    /// Nanoseconds since 1970 when `monotonic_ns` was 0.
    pub epoch_ns: u64,
    /// Nanoseconds that have passed.
    pub monotonic_ns: u64,
    /// How far a reading moves the clock, so that guests which spin on it make progress.
    pub step_ns: u64,
}

impl GuestClock {
    /// Nanoseconds since 1970.
    pub(crate) fn realtime_ns(&mut self) -> u64 {
        match self {
            Self::Host => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, duration_ns),
            Self::Virtual(clock) => clock.read().saturating_add(clock.epoch_ns),
        }
    }

    /// Nanoseconds that only grow.
    pub(crate) fn monotonic_ns(&mut self) -> u64 {
        match self {
            Self::Host => duration_ns(host_start().elapsed()),
            Self::Virtual(clock) => clock.read(),
        }
    }

    /// Until when the host must really wait for `ns` nanoseconds of guest time to pass. `None`
    /// if they have passed already, because time is virtual; `Err` if that is beyond all time.
    pub(crate) fn sleep(&mut self, ns: u64) -> Result<Option<Instant>, Beyond> {
        match self {
            Self::Host => Instant::now()
                .checked_add(Duration::from_nanos(ns))
                .map(Some)
                .ok_or(Beyond),
            Self::Virtual(clock) => {
                clock.monotonic_ns = clock.monotonic_ns.saturating_add(ns);
                Ok(None)
            }
        }
    }
}

/// An instant that the host cannot represent: in effect, never.
#[derive(Debug)]
pub(crate) struct Beyond;

impl VirtualClock {
    fn read(&mut self) -> u64 {
        let now = self.monotonic_ns;
        self.monotonic_ns = now.saturating_add(self.step_ns);
        now
    }
}

fn host_start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Saturates after 584 years.
fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn virtual_time_moves_by_readings_and_sleeps_only() {
        let start = VirtualClock {
            epoch_ns: 1_000,
            monotonic_ns: 5,
            step_ns: 10,
        };
        let mut clock = GuestClock::Virtual(start);
        assert_eq!(clock.monotonic_ns(), 5);
        assert_eq!(clock.sleep(100).unwrap(), None);
        assert_eq!(clock.realtime_ns(), 1_115);
        assert_eq!(clock.monotonic_ns(), 125);
    }

    #[test]
    fn host_time_goes_forward_and_never_overflows() {
        let mut clock = GuestClock::Host;
        assert!(clock.monotonic_ns() <= clock.monotonic_ns());
        assert!(clock.realtime_ns() > 1_700_000_000_000_000_000);
        let _ = clock.sleep(u64::MAX);
    }
}
