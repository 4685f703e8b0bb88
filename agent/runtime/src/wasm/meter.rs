//! Enforces [`Limits`] on one run and counts what it uses.
//!
//! Computing guests are checked at every epoch tick (CPU time of this thread, deadline, cancel);
//! host calls at each call (rate) and in their waits. A broken limit becomes a [`Halt`] that
//! travels through wasmtime as an error and ends the run.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::cancel::{CancelToken, Stop, Wait};
use super::limits::Limits;
use super::outcome::{Limit, Usage, Which, micros};

/// Elements of one table: the pool reserves them for every instance.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Ends a run from inside a host call, an epoch check or a failed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Halt {
    #[error("exit with code {0}")]
    Exit(i32),
    #[error("a limit was exceeded")]
    Limit(Limit),
    #[error("stopped")]
    Stop(Stop),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// The accounts of one run.
pub(crate) struct Meter {
    limits: Limits,
    wait: Wait,
    started: Instant,
    cpu_started: Duration,
    memory_bytes: usize,
    usage: Usage,
    calls: Bucket,
}

impl Meter {
    /// Starts counting, on the thread that will run the guest.
    pub(crate) fn start(limits: Limits, cancel: CancelToken) -> Self {
        let started = Instant::now();
        let deadline = started.checked_add(Duration::from_millis(limits.wall_ms));
        Self {
            limits,
            wait: Wait { cancel, deadline },
            started,
            cpu_started: thread_cpu(),
            memory_bytes: 0,
            usage: Usage::default(),
            calls: Bucket::new(limits.host_calls_per_s, limits.host_calls_burst, started),
        }
    }

    /// Starts counting anew for another call of the same instance: what it holds of memory
    /// stays counted.
    pub(crate) fn restart(&mut self, limits: Limits, cancel: CancelToken) {
        let memory_bytes = self.memory_bytes;
        *self = Self::start(limits, cancel);
        self.memory_bytes = memory_bytes;
        self.usage.memory_peak_bytes = memory_bytes as u64;
    }

    /// How long host calls of this run may block.
    pub(crate) fn wait(&self) -> &Wait {
        &self.wait
    }

    /// CPU time since the start.
    pub(crate) fn cpu(&self) -> Duration {
        thread_cpu().saturating_sub(self.cpu_started)
    }

    /// The check at an epoch tick.
    pub(crate) fn tick(&self) -> Result<UpdateDeadline, Halt> {
        self.wait.check()?;
        let cpu_ms = micros(self.cpu()) / 1_000;
        if cpu_ms >= self.limits.cpu_ms {
            return Err(limit(Which::CpuMs, self.limits.cpu_ms, cpu_ms));
        }
        Ok(UpdateDeadline::Continue(1))
    }

    /// Counts one host call.
    pub(crate) fn host_call(&mut self) -> Result<(), Halt> {
        self.usage.host_calls += 1;
        if self.calls.take() {
            return Ok(());
        }
        let asked = self.limits.host_calls_per_s.saturating_add(1);
        Err(limit(
            Which::HostCallsPerS,
            self.limits.host_calls_per_s,
            asked,
        ))
    }

    /// How many of `wanted` bytes of output are still allowed.
    pub(crate) fn output_left(&self, wanted: usize) -> usize {
        let left = self
            .limits
            .output_bytes
            .saturating_sub(self.usage.output_bytes);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }

    /// Counts output that was taken.
    pub(crate) fn wrote_output(&mut self, bytes: usize) {
        self.usage.output_bytes += bytes as u64;
    }

    /// The halt for a guest that wants `more` bytes beyond its output limit.
    pub(crate) fn output_exceeded(&self, more: usize) -> Halt {
        let used = self.usage.output_bytes.saturating_add(more as u64);
        limit(Which::OutputBytes, self.limits.output_bytes, used)
    }

    /// What was used until now.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            cpu_us: micros(self.cpu()),
            wall_us: micros(self.started.elapsed()),
            ..self.usage
        }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes - current.min(self.memory_bytes) + desired;
        if total as u64 <= self.limits.memory_bytes {
            self.memory_bytes = total;
            self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(total as u64);
            return Ok(true);
        }
        self.usage.memory_refused += 1;
        if current == 0 {
            // The module's own minimum: without it there is nothing to run.
            let halt = limit(Which::MemoryBytes, self.limits.memory_bytes, total as u64);
            return Err(halt.into());
        }
        Ok(false)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

fn limit(which: Which, limit: u64, used: u64) -> Halt {
    Halt::Limit(Limit { which, limit, used })
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A token bucket that looks at the time only when it runs dry.
struct Bucket {
    per_s: u64,
    burst: u64,
    left: u64,
    filled_at: Instant,
}

impl Bucket {
    fn new(per_s: u64, burst: u64, now: Instant) -> Self {
        Self {
            per_s,
            burst,
            left: burst,
            filled_at: now,
        }
    }

    fn take(&mut self) -> bool {
        if self.left == 0 {
            self.refill(Instant::now());
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_nanos();
        let earned = passed * u128::from(self.per_s) / 1_000_000_000;
        if earned > 0 {
            self.left = u64::try_from(earned).unwrap_or(u64::MAX).min(self.burst);
            self.filled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bucket_gives_its_burst_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1_000, 3, now);
        bucket.filled_at = now + Duration::from_secs(3600); // time stands still for it
        assert_eq!(
            [(); 5].map(|()| bucket.take()),
            [true, true, true, false, false]
        );
        bucket.filled_at = now;
        bucket.refill(now + Duration::from_millis(2));
        assert_eq!(bucket.left, 2);
        bucket.refill(now + Duration::from_secs(60));
        assert_eq!(bucket.left, 3);
    }

    #[test]
    fn memory_is_counted_over_all_memories() {
        let limits = Limits {
            memory_bytes: 200_000,
            ..Limits::default()
        };
        let mut meter = Meter::start(limits, CancelToken::new());
        assert!(meter.memory_growing(0, 65_536, None).unwrap());
        assert!(meter.memory_growing(0, 65_536, None).unwrap());
        assert!(!meter.memory_growing(65_536, 196_608, None).unwrap());
        assert!(meter.memory_growing(65_536, 131_072, None).unwrap());
        assert_eq!(meter.usage().memory_peak_bytes, 196_608);
        assert_eq!(meter.usage().memory_refused, 1);
    }
}
