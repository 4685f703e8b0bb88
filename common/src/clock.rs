//! The boot-time clock, which leases are counted on: it runs on while the machine sleeps, and nobody
//! can set it.

use crate::ownership::BootMs;

/// Its reading now.
#[must_use]
pub fn boot_now() -> BootMs {
    // `std::time::Instant` stands still while the machine sleeps.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
    BootMs(secs.saturating_mul(1_000).saturating_add(millis))
}
