//! The newest log lines of an instance, read from any offset. Offsets count every byte there ever
//! was; what has gone is skipped. Limit: [`RING_BYTES_MAX`].

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use hop3_common::id::UnixMs;
use hop3_runtime::service::LogLine;
use tokio::sync::Notify;

/// Bytes kept of an instance's log.
pub const RING_BYTES_MAX: usize = 256 << 10;
/// Bytes given at a time.
const READ_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub struct Ring {
    kept: Mutex<Contents>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Contents {
    bytes: VecDeque<u8>,
    /// Offset of the first byte kept.
    start: u64,
}

impl Contents {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

fn level(level: u8) -> &'static str {
    match level {
        0 => "ERROR",
        1 => "WARN",
        2 => "INFO",
        _ => "DEBUG",
    }
}

impl Ring {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Lines are added whole, and whole lines are dropped.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds lines.
    pub fn add(&self, at: UnixMs, lines: &[LogLine]) {
        if lines.is_empty() {
            return;
        }
        let mut contents = self.contents();
        for line in lines {
            let (secs, ms) = (at.secs(), at.0 % 1000);
            let text = format!("{secs}.{ms:03} {} {}\n", level(line.level), line.text);
            contents.bytes.extend(text.as_bytes());
        }
        while contents.bytes.len() > RING_BYTES_MAX {
            let line = contents.bytes.iter().position(|byte| *byte == b'\n');
            let gone = line.map_or(contents.bytes.len(), |end| end + 1);
            contents.bytes.drain(..gone);
            contents.start += gone as u64;
        }
        drop(contents);
        self.grown.notify_waiters();
    }

    /// What there is from `offset`, and the offset behind it.
    #[must_use]
    pub fn read(&self, offset: u64) -> (Bytes, u64) {
        let contents = self.contents();
        let from = offset.clamp(contents.start, contents.end());
        let skip = usize::try_from(from - contents.start).unwrap_or(usize::MAX);
        let piece = contents.bytes.iter().skip(skip).take(READ_BYTES_MAX);
        let piece: Bytes = piece.copied().collect();
        let next = from + piece.len() as u64;
        (piece, next)
    }

    /// Waits until there is something from `offset` on.
    pub async fn ready(&self, offset: u64) {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if self.contents().end() > offset {
                return;
            }
            grown.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            level: 2,
            text: text.into(),
        }
    }

    #[tokio::test]
    async fn the_newest_lines_stay_and_offsets_go_on() {
        let ring = Ring::default();
        ring.add(UnixMs(1_002), &[line("first")]);
        let (piece, next) = ring.read(0);
        assert_eq!(piece, "1.002 INFO first\n");
        for _ in 0..100 {
            ring.add(UnixMs(0), &[line(&"x".repeat(4_000))]);
        }
        ring.ready(next).await;
        let (piece, after) = ring.read(next);
        assert!(after > next + piece.len() as u64, "old lines were skipped");
        assert!(piece.starts_with(b"0.000 INFO x"), "at a line's beginning");
        let (mut at, mut total) = (0, 0);
        loop {
            let (piece, next) = ring.read(at);
            if piece.is_empty() {
                break;
            }
            (at, total) = (next, total + piece.len());
        }
        assert!(total <= RING_BYTES_MAX && total > RING_BYTES_MAX - 5_000);
    }
}
