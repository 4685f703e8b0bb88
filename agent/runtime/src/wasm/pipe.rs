//! A bounded byte pipe between a guest's thread (which may block) and the agent (which must not).
//!
//! Offsets are absolute since the pipe was made, so that the agent can resume a stream by
//! offset. Memory is at most the capacity, taken as it fills. The agent's side never blocks:
//! `try_*` plus a notification that is called, outside the lock, when bytes or room appear.

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

    /// Sets what is called when bytes (or the end) become readable. Once only; later calls are
    /// ignored. May be called spuriously; must be short and must not call back into the pipe
    /// while holding a lock that its own callers hold.
    pub fn on_readable(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_readable.set(Arc::new(notify));
    }

    /// As [`on_readable`](Self::on_readable), when room appears or the reader leaves.
    pub fn on_writable(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_writable.set(Arc::new(notify));
    }

    /// Writes what fits, without blocking.
    #[must_use]
    pub fn try_write(&self, bytes: &[u8]) -> TryWrite {
        let result = self.0.push(&mut lock(&self.0.ring), bytes);
        if matches!(result, TryWrite::Wrote(n) if n > 0) {
            self.0.readable();
        }
        result
    }

    /// Reads at most `bytes_max` bytes, without blocking.
    #[must_use]
    pub fn try_read(&self, bytes_max: usize) -> TryRead {
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
            ring.pop(&mut bytes);
            TryRead::Bytes { offset, bytes }
        };
        self.0.writable();
        read
    }

    /// The writer is done: the reader sees what is left, then the end. Idempotent.
    pub fn end(&self) {
        lock(&self.0.ring).ended = true;
        self.0.readable();
        self.0.writable();
    }

    /// The reader is gone: what is left is dropped and writers see a closed stream. Idempotent.
    pub fn close(&self) {
        {
            let mut ring = lock(&self.0.ring);
            ring.closed = true;
            ring.bytes = VecDeque::new();
        }
        self.0.writable();
        self.0.readable();
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
            ring = wait.block_on(&self.0.changed, ring)?;
        }
    }
}

impl Shared {
    fn push(&self, ring: &mut Ring, bytes: &[u8]) -> TryWrite {
        if ring.closed || ring.ended {
            return TryWrite::Closed;
        }
        let n = bytes.len().min(self.capacity - ring.bytes.len());
        if n == 0 && !bytes.is_empty() {
            return TryWrite::Full;
        }
        ring.bytes.extend(&bytes[..n]);
        ring.written += n as u64;
        TryWrite::Wrote(n)
    }

    fn readable(&self) {
        self.changed.notify_all();
        if let Some(notify) = self.on_readable.get() {
            notify();
        }
    }

    fn writable(&self) {
        self.changed.notify_all();
        if let Some(notify) = self.on_writable.get() {
            notify();
        }
    }
}

impl Ring {
    /// Moves the first `buf.len()` bytes out; there are at least as many.
    fn pop(&mut self, buf: &mut [u8]) {
        let (front, back) = self.bytes.as_slices();
        let n = front.len().min(buf.len());
        buf[..n].copy_from_slice(&front[..n]);
        let rest = buf.len() - n;
        buf[n..].copy_from_slice(&back[..rest]);
        self.bytes.drain(..buf.len());
        self.consumed += buf.len() as u64;
    }
}

impl Stdin for Pipe {
    fn read(&self, buf: &mut [u8], wait: &Wait) -> Result<usize, Stop> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.blocking(wait, |ring| {
            let n = ring.bytes.len().min(buf.len());
            ring.pop(&mut buf[..n]);
            (n > 0 || ring.ended || ring.closed).then_some(n)
        })?;
        if n > 0 {
            self.0.writable();
        }
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
        let wrote = self.blocking(wait, |ring| match self.0.push(ring, bytes) {
            TryWrite::Full => None,
            other => Some(other),
        })?;
        match wrote {
            TryWrite::Wrote(n) => {
                self.0.readable();
                Ok(n)
            }
            TryWrite::Full | TryWrite::Closed => Err(WriteError::Closed),
        }
    }
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
