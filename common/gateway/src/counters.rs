//! Counters of a gateway, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a gateway counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) streams: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests so far.
    pub requests: u64,
    /// Requests being delivered now, those that wait included.
    pub in_flight: u64,
    /// Requests that wait for an instance now.
    pub waiting: u64,
    /// Attempts after a request's first, so far.
    pub retried: u64,
    /// Attempts whose outcome is not known, so far.
    pub unknown: u64,
    /// Client streams open now, those that are being closed included.
    pub streams: u64,
}

impl Counters {
    pub(crate) fn snapshot(&self, waiting: usize) -> Snapshot {
        Snapshot {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: waiting as u64,
            retried: self.retried.load(Relaxed),
            unknown: self.unknown.load(Relaxed),
            streams: self.streams.load(Relaxed),
        }
    }
}

/// Counts one while it lives.
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(crate) fn up(of: &'a AtomicU64) -> Self {
        of.fetch_add(1, Relaxed);
        Self(of)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
