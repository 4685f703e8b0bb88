//! Why an instance did not start or a call did not end well, in words.

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use super::types::{Failure, LogLine};
use crate::wasm::meter::Halt;
use crate::wasm::outcome::{Frame, Limit};
use crate::wasm::wasi::HostError;
use crate::wasm::{Stop, Which};

/// Frames of a trap that are named: where it was and how it came there.
const FRAMES_NAMED: usize = 4;

/// An instance cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// As many instances as the engine allows are there; try again later.
    #[error("all instances of the engine are in use")]
    Busy,
    /// The module has state that cannot be captured.
    #[error(
        "the module's state cannot be kept: {function} {reason}; run it with `state: none`, or \
         build it without"
    )]
    Stateful {
        /// Which function.
        function: String,
        /// What it does.
        reason: String,
    },
    /// The image's hidden globals or memory are not those of this module.
    #[error("the state was made by a module of another layout")]
    Layout,
    /// The state was made by another build, and the module cannot take it over.
    #[error(
        "the state (version {from}) was made by another build of the guest: this one (version \
         {to}) needs a `hop3_upgrade`, which goes on from the key-value data"
    )]
    Schema {
        /// The state's.
        from: u32,
        /// The module's.
        to: u32,
    },
    /// Environment or volumes are not acceptable or cannot be opened.
    #[error("{message}")]
    Setup {
        /// Which, and why.
        message: String,
    },
    /// The guest failed in its start, `_initialize`, `hop3_init` or `hop3_upgrade`.
    #[error("{failure}")]
    Guest {
        /// How.
        failure: Failure,
        /// What it logged.
        log: Vec<LogLine>,
    },
}

impl StartError {
    /// What an error of the engine means.
    pub(super) fn of(error: &wasmtime::Error) -> Self {
        if error.is::<PoolConcurrencyLimitError>() {
            return Self::Busy;
        }
        Self::Guest {
            failure: failure(error),
            log: Vec::new(),
        }
    }
}

impl From<HostError> for StartError {
    fn from(error: HostError) -> Self {
        Self::Setup {
            message: in_full(&error),
        }
    }
}

/// An error with its causes.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What an error of a running guest means.
pub(super) fn failure(error: &wasmtime::Error) -> Failure {
    Failure::Ended(words(error))
}

fn words(error: &wasmtime::Error) -> String {
    if let Some(halt) = error.downcast_ref::<Halt>() {
        return match halt {
            Halt::Exit(code) => format!("the guest exited with code {code}"),
            Halt::Limit(limit) => limit_words(limit),
            Halt::Stop(Stop::Cancelled) => "cancelled".into(),
            Halt::Stop(Stop::Deadline) => "the call took longer than its time limit".into(),
        };
    }
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return format!("the guest cannot run: {error:#}");
    };
    let frames = error.downcast_ref::<WasmBacktrace>();
    let frames = frames.map_or(&[][..], |trace| trace.frames());
    let named: Vec<String> = frames
        .iter()
        .take(FRAMES_NAMED)
        .map(|frame| Frame::of(frame).function)
        .collect();
    match named.is_empty() {
        true => format!("the guest trapped: {trap}"),
        false => format!("the guest trapped: {trap} (in {})", named.join(", from ")),
    }
}

fn limit_words(limit: &Limit) -> String {
    let (what, unit) = match limit.which {
        Which::MemoryBytes => ("memory", "bytes"),
        Which::CpuMs => ("CPU time", "ms"),
        Which::StackBytes => ("stack", "bytes"),
        Which::OutputBytes => ("log output", "bytes"),
        Which::HostCallsPerS => ("host calls", "calls per second"),
    };
    let (allowed, used) = (limit.limit, limit.used);
    format!("over the limit of {what}: {used} {unit}, {allowed} allowed")
}
