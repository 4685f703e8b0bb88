//! A bounded byte pipe between a guest's thread (which may block) and the agent (which must not).
//!
//! Offsets are absolute since the pipe was made, so that the agent can resume a stream by
//! offset. Memory is at most the capacity, taken as it fills. The agent's side never blocks:
//! `try_*` plus a notification that is called, outside the lock, when bytes or room appear.
//!
//! Waking a thread costs more than moving some kilobytes, so the reader is woken only when an
//! empty pipe gets bytes (and again when it is half full), and the writer only when a pipe that
//! was full is half empty again.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use super::cancel::{Stop, Wait, WakeFn, lock};
use super::stdio::{Output, Readiness, Stdin, WriteError};

/// Largest capacity: two of these per attached task must fit on a small device.
pub const PIPE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A pipe; clones are ends of the same pipe.
#[derive(Clone)]
pub struct Pipe(Arc<Shared>);

struct Shared {
    capacity: usize,
    ring: Mutex<Ring>,
    changed: Condvar,
    on_readable: OnceLock<WakeFn>,
    on_writable: OnceLock<WakeFn>,
}

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    written: u64,
    consumed: u64,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    closed: bool,
    /// It was full, and the writer has not been told of room since.
    full: bool,
    /// Threads that wait for `changed`.
    waiting: usize,
}

/// What a non-blocking read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TryRead {
    /// These bytes, which began at `offset`.
    Bytes {
        /// Absolute offset of the first byte.
        offset: u64,
        /// At least one byte.
        bytes: Vec<u8>,
    },
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

/// What a non-blocking write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryWrite {
    /// Took this many bytes (at least one, unless none were given).
    Wrote(usize),
    /// No room now.
    Full,
    /// The reader is gone, or the stream was ended.
    Closed,
}

impl Pipe {
    /// A pipe that holds at most `capacity` bytes (from 1 to [`PIPE_BYTES_MAX`], else the nearest).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Shared {
            capacity: capacity.clamp(1, PIPE_BYTES_MAX),
            ring: Mutex::default(),
            changed: Condvar::new(),
            on_readable: OnceLock::new(),
            on_writable: OnceLock::new(),
        }))
    }

    /// Sets what is called when an empty pipe becomes readable, when it is half full, and when it
    /// ends: whoever leaves bytes in it is not told of each more. Once only; later calls are
    /// ignored. May be called spuriously; must be short and must not call back into the pipe
    /// while holding a lock that its own callers hold.
    pub fn on_readable(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_readable.set(Arc::new(notify));
    }

    /// As [`on_readable`](Self::on_readable), when a pipe that was full is half empty again or
    /// the reader leaves.
    pub fn on_writable(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_writable.set(Arc::new(notify));
    }

    /// Writes what fits, without blocking.
    #[must_use]
    pub fn try_write(&self, bytes: &[u8]) -> TryWrite {
        let mut wake = Wake::default();
        let result = self.0.push(&mut lock(&self.0.ring), bytes, &mut wake);
        self.0.wake(wake);
        result
    }

    /// Reads at most `bytes_max` bytes, without blocking.
    #[must_use]
    pub fn try_read(&self, bytes_max: usize) -> TryRead {
        let mut wake = Wake::default();
        let read = {
            let mut ring = lock(&self.0.ring);
            if ring.bytes.is_empty() {
                return if ring.ended || ring.closed {
                    TryRead::End
                } else {
                    TryRead::Empty
                };
            }
            let mut bytes = vec![0; bytes_max.min(ring.bytes.len())];
            let offset = ring.consumed;
            self.0.pop(&mut ring, &mut bytes, &mut wake);
            TryRead::Bytes { offset, bytes }
        };
        self.0.wake(wake);
        read
    }

    /// The writer is done: the reader sees what is left, then the end. Idempotent.
    pub fn end(&self) {
        lock(&self.0.ring).ended = true;
        self.0.wake(Wake::ALL);
    }

    /// The reader is gone: what is left is dropped and writers see a closed stream. Idempotent.
    pub fn close(&self) {
        {
            let mut ring = lock(&self.0.ring);
            ring.closed = true;
            ring.bytes = VecDeque::new();
        }
        self.0.wake(Wake::ALL);
    }

    /// Bytes written since the start.
    #[must_use]
    pub fn written(&self) -> u64 {
        lock(&self.0.ring).written
    }

    /// Bytes read since the start.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        lock(&self.0.ring).consumed
    }

    /// Bytes that fit now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.0.capacity - lock(&self.0.ring).bytes.len()
    }

    /// A waker that makes a blocked side look again.
    fn wake_fn(&self) -> WakeFn {
        let shared = Arc::clone(&self.0);
        Arc::new(move || {
            // Taken so that a waiter between its check and its wait cannot miss this.
            drop(lock(&shared.ring));
            shared.changed.notify_all();
        })
    }

    /// Calls `attempt` until it gives a value, waiting for a change in between.
    fn blocking<T>(
        &self,
        wait: &Wait,
        mut attempt: impl FnMut(&mut Ring) -> Option<T>,
    ) -> Result<T, Stop> {
        if let Some(value) = attempt(&mut lock(&self.0.ring)) {
            return Ok(value);
        }
        let _registration = wait.cancel.on_cancel(self.wake_fn());
        let mut ring = lock(&self.0.ring);
        loop {
            if let Some(value) = attempt(&mut ring) {
                return Ok(value);
            }
            ring.waiting += 1;
            let waited = wait.block_on(&self.0.changed, ring);
            ring = match waited {
                Ok(ring) => ring,
                Err(stop) => {
                    // The lock went with the error.
                    lock(&self.0.ring).waiting -= 1;
                    return Err(stop);
                }
            };
            ring.waiting -= 1;
        }
    }
}

/// Who is to be told, once the lock is free.
#[derive(Default)]
struct Wake {
    /// Threads that wait in a blocking call.
    threads: bool,
    reader: bool,
    writer: bool,
}

impl Wake {
    const ALL: Self = Self {
        threads: true,
        reader: true,
        writer: true,
    };
}

impl Shared {
    fn push(&self, ring: &mut Ring, bytes: &[u8], wake: &mut Wake) -> TryWrite {
        if ring.closed || ring.ended {
            return TryWrite::Closed;
        }
        let n = bytes.len().min(self.capacity - ring.bytes.len());
        if n == 0 && !bytes.is_empty() {
            return TryWrite::Full;
        }
        let (before, half) = (ring.bytes.len(), self.capacity.div_ceil(2));
        if n > 0 && before == 0 {
            wake.reader = true;
            // Only an empty pipe makes readers wait.
            wake.threads = ring.waiting > 0;
        }
        wake.reader |= before < half && before + n >= half;
        ring.bytes.extend(&bytes[..n]);
        ring.written += n as u64;
        ring.full |= ring.bytes.len() == self.capacity;
        TryWrite::Wrote(n)
    }

    /// Moves the first `buf.len()` bytes out; there are at least as many.
    fn pop(&self, ring: &mut Ring, buf: &mut [u8], wake: &mut Wake) {
        let (front, back) = ring.bytes.as_slices();
        let n = front.len().min(buf.len());
        buf[..n].copy_from_slice(&front[..n]);
        let rest = buf.len() - n;
        buf[n..].copy_from_slice(&back[..rest]);
        ring.bytes.drain(..buf.len());
        ring.consumed += buf.len() as u64;
        if ring.full && ring.bytes.len() <= self.capacity / 2 {
            ring.full = false;
            wake.writer = true;
            wake.threads = ring.waiting > 0;
        }
    }

    fn wake(&self, wake: Wake) {
        if wake.threads {
            self.changed.notify_all();
        }
        let told = [
            (wake.reader, &self.on_readable),
            (wake.writer, &self.on_writable),
        ];
        for (due, notify) in told {
            if due && let Some(notify) = notify.get() {
                notify();
            }
        }
    }
}

impl Stdin for Pipe {
    fn read(&self, buf: &mut [u8], wait: &Wait) -> Result<usize, Stop> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut wake = Wake::default();
        let n = self.blocking(wait, |ring| {
            let n = ring.bytes.len().min(buf.len());
            self.0.pop(ring, &mut buf[..n], &mut wake);
            (n > 0 || ring.ended || ring.closed).then_some(n)
        })?;
        self.0.wake(wake);
        Ok(n)
    }

    fn ready(&self, wait: &Wait) -> Result<Readiness, Stop> {
        self.blocking(wait, |ring| {
            let end = ring.ended || ring.closed;
            let bytes = ring.bytes.len() as u64;
            (bytes > 0 || end).then_some(Readiness { bytes, end })
        })
    }
}

impl Output for Pipe {
    fn write(&self, bytes: &[u8], wait: &Wait) -> Result<usize, WriteError> {
        let mut wake = Wake::default();
        let wrote = self.blocking(wait, |ring| match self.0.push(ring, bytes, &mut wake) {
            TryWrite::Full => None,
            other => Some(other),
        })?;
        self.0.wake(wake);
        match wrote {
            TryWrite::Wrote(n) => Ok(n),
            TryWrite::Full | TryWrite::Closed => Err(WriteError::Closed),
        }
    }
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
