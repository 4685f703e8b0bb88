//! What a guest logs in one call: through `log`, and lines of its standard output and error.
//!
//! How much it may log is the meter's to bound; a line is cut at [`LINE_BYTES_MAX`], and of the
//! lines only the first [`LINES_MAX`] are kept, since each costs more than its bytes.

use std::sync::{Arc, Mutex};

use super::types::LogLine;
use crate::wasm::cancel::lock;
use crate::wasm::{Output, Wait, WriteError};

/// Bytes of a line that are kept.
const LINE_BYTES_MAX: usize = 4_096;
/// Lines of one call that are kept.
const LINES_MAX: usize = 1_000;
/// Standard output is information.
const STDOUT_LEVEL: u8 = 2;
/// Standard error is a warning.
const STDERR_LEVEL: u8 = 1;
/// The highest level: debug.
const LEVEL_MAX: u8 = 3;

/// The lines of the current call.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    done: Vec<LogLine>,
    /// The line that standard output and error have begun.
    begun: [Vec<u8>; 2],
}

impl Log {
    /// Adds a line.
    pub(super) fn add(&self, level: i32, text: &[u8]) {
        let level = u8::try_from(level).unwrap_or(LEVEL_MAX).min(LEVEL_MAX);
        lock(&self.0).push(level, text);
    }

    /// Takes the lines, those begun included.
    pub(super) fn take(&self) -> Vec<LogLine> {
        let mut lines = lock(&self.0);
        for (stream, level) in [STDOUT_LEVEL, STDERR_LEVEL].into_iter().enumerate() {
            let begun = std::mem::take(&mut lines.begun[stream]);
            if !begun.is_empty() {
                lines.push(level, &begun);
            }
        }
        std::mem::take(&mut lines.done)
    }
}

impl Lines {
    fn push(&mut self, level: u8, text: &[u8]) {
        if self.done.len() >= LINES_MAX {
            return;
        }
        let text = &text[..text.len().min(LINE_BYTES_MAX)];
        let text = String::from_utf8_lossy(text);
        let text = text.trim_end_matches(['\n', '\r']);
        let mut text = text.replace(['\n', '\r'], " ");
        text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        self.done.push(LogLine { level, text });
    }

    fn write(&mut self, stream: usize, bytes: &[u8]) {
        let level = [STDOUT_LEVEL, STDERR_LEVEL][stream];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let begun = &mut self.begun[stream];
            let room = LINE_BYTES_MAX - begun.len().min(LINE_BYTES_MAX);
            begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(begun);
                self.push(level, &line);
            }
        }
    }
}

/// Standard output (0) or error (1) as lines of a log.
pub(super) struct Stream(pub(super) Arc<Log>, pub(super) usize);

impl Output for Stream {
    fn write(&self, bytes: &[u8], _wait: &Wait) -> Result<usize, WriteError> {
        lock(&self.0.0).write(self.1, bytes);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_cut_and_bounded() {
        let log = Log::default();
        lock(&log.0).write(0, b"a");
        lock(&log.0).write(1, b"warn\nrest");
        lock(&log.0).write(0, b"b\nc");
        log.add(9, "two\nlines\n".as_bytes());
        log.add(-1, &[b'x'; 5_000]);
        let lines = log.take();
        let short: Vec<_> = lines
            .iter()
            .map(|l| (l.level, &l.text[..l.text.len().min(9)]))
            .collect();
        let expected = [
            (1, "warn"),
            (2, "ab"),
            (3, "two lines"),
            (3, "xxxxxxxxx"),
            (2, "c"),
            (1, "rest"),
        ];
        assert_eq!(short, expected);
        assert_eq!(lines[3].text.len(), LINE_BYTES_MAX);
        (0..2 * LINES_MAX).for_each(|_| log.add(0, &[0xff; LINE_BYTES_MAX]));
        let lines = log.take();
        assert_eq!(lines.len(), LINES_MAX);
        assert!(lines[0].text.len() <= LINE_BYTES_MAX);
        assert!(log.take().is_empty());
    }
}
