//! Counts and durations as figures. 53 bits are plenty for anything measured here.

use std::time::Duration;

/// A count as a figure.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(crate) fn figure(count: u64) -> f64 {
    count as f64
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// KiB as MiB.
pub(crate) fn mib(kib: u64) -> f64 {
    figure(kib) / 1024.0
}
