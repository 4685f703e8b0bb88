//! Where a guest's standard streams lead. Called on the guest's thread, so blocking is allowed
//! and is how back-pressure reaches the guest; every wait ends with its [`Wait`].

use std::sync::Mutex;

use bytes::Bytes;

use super::cancel::{Stop, Wait, lock};

/// Standard input as the guest reads it.
pub trait Stdin: Send + Sync {
    /// Reads at least one byte, blocking for it; 0 means end of input (or an empty `buf`).
    ///
    /// # Errors
    /// The wait ended first.
    fn read(&self, buf: &mut [u8], wait: &Wait) -> Result<usize, Stop>;

    /// Blocks until [`read`](Self::read) would not block.
    ///
    /// # Errors
    /// The wait ended first.
    fn ready(&self, wait: &Wait) -> Result<Readiness, Stop>;
}

/// What a read would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes that can be read without blocking.
    pub bytes: u64,
    /// No more bytes will come after these.
    pub end: bool,
}

/// Standard output or error as the guest writes it.
pub trait Output: Send + Sync {
    /// Takes at least one byte of a non-empty `bytes`, blocking while there is no room.
    ///
    /// # Errors
    /// Nobody reads any more, or the wait ended first.
    fn write(&self, bytes: &[u8], wait: &Wait) -> Result<usize, WriteError>;
}

/// Why a write failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The reader is gone: the guest sees `EPIPE`.
    #[error("the reader closed the stream")]
    Closed,
    /// The wait ended first.
    #[error("writing was stopped")]
    Stop(#[source] Stop),
}

impl From<Stop> for WriteError {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Input that is all there from the start; empty by default.
#[derive(Debug, Default)]
pub struct InputBytes(Mutex<Bytes>);

impl InputBytes {
    /// Serves `bytes`, then end of input.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(Mutex::new(bytes.into()))
    }
}

impl Stdin for InputBytes {
    fn read(&self, buf: &mut [u8], _wait: &Wait) -> Result<usize, Stop> {
        let mut left = lock(&self.0);
        let n = left.len().min(buf.len());
        buf[..n].copy_from_slice(&left.split_to(n));
        Ok(n)
    }

    fn ready(&self, _wait: &Wait) -> Result<Readiness, Stop> {
        Ok(Readiness {
            bytes: lock(&self.0).len() as u64,
            end: true,
        })
    }
}

/// Keeps the first `bytes_max` bytes and counts the rest.
#[derive(Debug)]
pub struct Captured {
    bytes_max: usize,
    kept: Mutex<(Vec<u8>, u64)>,
}

impl Captured {
    /// Keeps at most `bytes_max` bytes; allocates as they come.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            kept: Mutex::new((Vec::new(), 0)),
        }
    }

    /// Takes what was kept, leaving nothing.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.kept).0)
    }

    /// Bytes that did not fit and were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        lock(&self.kept).1
    }
}

impl Output for Captured {
    fn write(&self, bytes: &[u8], _wait: &Wait) -> Result<usize, WriteError> {
        let mut kept = lock(&self.kept);
        let n = bytes
            .len()
            .min(self.bytes_max - kept.0.len().min(self.bytes_max));
        kept.0.extend_from_slice(&bytes[..n]);
        kept.1 += (bytes.len() - n) as u64;
        Ok(bytes.len())
    }
}

/// Takes everything, keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Output for Discard {
    fn write(&self, bytes: &[u8], _wait: &Wait) -> Result<usize, WriteError> {
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cancel::CancelToken;
    use super::*;

    fn wait() -> Wait {
        Wait {
            cancel: CancelToken::new(),
            deadline: None,
        }
    }

    #[test]
    fn input_is_served_in_pieces_then_ends() {
        let input = InputBytes::new(&b"abcde"[..]);
        let mut buf = [0; 3];
        assert_eq!(input.read(&mut buf, &wait()), Ok(3));
        assert_eq!(
            input.ready(&wait()),
            Ok(Readiness {
                bytes: 2,
                end: true
            })
        );
        assert_eq!(input.read(&mut buf, &wait()), Ok(2));
        assert_eq!(&buf[..2], b"de");
        assert_eq!(input.read(&mut buf, &wait()), Ok(0));
    }

    #[test]
    fn capture_keeps_the_first_bytes_and_counts_the_rest() {
        let out = Captured::new(4);
        assert_eq!(out.write(b"abc", &wait()), Ok(3));
        assert_eq!(out.write(b"def", &wait()), Ok(3));
        assert_eq!(out.dropped(), 2);
        assert_eq!(out.take(), b"abcd");
    }
}
