//! How a run ended and what it used.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Frames kept of a trap's backtrace, innermost first: deep recursion repeats itself.
pub const FRAMES_MAX: usize = 20;
/// Bytes kept of a function's name: names come from the guest.
pub const NAME_BYTES_MAX: usize = 200;

/// The result of a run that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What it used.
    pub usage: Usage,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest returned (0) or called `proc_exit`.
    Exit(i32),
    /// The guest did something that Wasm forbids.
    Trap {
        /// What.
        kind: TrapKind,
        /// The same in words.
        message: String,
        /// Where, innermost first, at most [`FRAMES_MAX`].
        frames: Vec<Frame>,
    },
    /// The guest hit one of its limits.
    LimitExceeded(Limit),
    /// The cancel token was used.
    Cancelled,
    /// `wall_ms` passed.
    DeadlineExceeded,
}

/// A limit that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Which one.
    pub which: Which,
    /// Its value, in its own unit.
    pub limit: u64,
    /// What was used or asked for, in the same unit.
    pub used: u64,
}

/// The limits that can end a run, with their units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// Linear memory at the start, bytes.
    MemoryBytes,
    /// CPU time, milliseconds.
    CpuMs,
    /// Wasm call stack of the engine, bytes.
    StackBytes,
    /// Standard output and error, bytes.
    OutputBytes,
    /// Host calls per second.
    HostCallsPerS,
}

/// What the guest did that Wasm forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrapKind {
    /// Reached `unreachable`: usually an abort, panic or failed assertion.
    Unreachable,
    /// Accessed memory out of bounds.
    MemoryOutOfBounds,
    /// Accessed a table out of bounds.
    TableOutOfBounds,
    /// Called through a null or wrongly typed function pointer.
    BadIndirectCall,
    /// Integer division by zero.
    DivisionByZero,
    /// Integer overflow in a division or conversion.
    IntegerOverflow,
    /// Converted a NaN to an integer.
    BadConversion,
    /// Anything else.
    Other,
}

/// One frame of a trap's backtrace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The function's name, or `func[index]`; printable, at most [`NAME_BYTES_MAX`] bytes.
    pub function: String,
    /// Byte offset in the module.
    pub offset: Option<u64>,
}

/// What a run used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the thread, microseconds.
    pub cpu_us: u64,
    /// Time from start to end, microseconds.
    pub wall_us: u64,
    /// Most linear memory, bytes.
    pub memory_peak_bytes: u64,
    /// Times that growing memory was refused.
    pub memory_refused: u64,
    /// Bytes written to standard output and error.
    pub output_bytes: u64,
    /// Host calls made.
    pub host_calls: u64,
}

/// Whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl From<wasmtime::Trap> for TrapKind {
    fn from(trap: wasmtime::Trap) -> Self {
        use wasmtime::Trap;
        match trap {
            Trap::UnreachableCodeReached => Self::Unreachable,
            Trap::MemoryOutOfBounds => Self::MemoryOutOfBounds,
            Trap::TableOutOfBounds => Self::TableOutOfBounds,
            Trap::IndirectCallToNull | Trap::BadSignature | Trap::NullReference => {
                Self::BadIndirectCall
            }
            Trap::IntegerDivisionByZero => Self::DivisionByZero,
            Trap::IntegerOverflow => Self::IntegerOverflow,
            Trap::BadConversionToInteger => Self::BadConversion,
            _ => Self::Other,
        }
    }
}

impl Frame {
    pub(crate) fn of(frame: &wasmtime::FrameInfo) -> Self {
        let function = match frame.func_name() {
            Some(name) => printable(name),
            None => format!("func[{}]", frame.func_index()),
        };
        Self {
            function,
            offset: frame.module_offset().map(|offset| offset as u64),
        }
    }
}

/// A guest's text, safe to show: control characters replaced, cut at [`NAME_BYTES_MAX`].
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { '\u{fffd}' } else { c };
        if out.len() + c.len_utf8() > NAME_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_text_is_cut_and_cleaned() {
        assert_eq!(printable("a\x1b[31mb"), "a\u{fffd}[31mb");
        assert!(printable(&"é".repeat(1_000)).len() <= NAME_BYTES_MAX);
    }
}
