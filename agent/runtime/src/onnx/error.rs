//! What can go wrong with a model.

use std::{io, path::PathBuf};

use hop3_common::tensor::ShapeMismatch;
use serde::{Deserialize, Serialize};

use super::{guard::WAITING_MAX, wire::MODEL_BYTES_MAX};

/// Longest reason that is carried from tract or the child, in characters.
pub(super) const REASON_CHARS_MAX: usize = 500;

/// The model or its input is at fault. Crosses the wire: append variants only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ModelError {
    /// The bytes are something else.
    #[error("this is not an ONNX model: {reason}")]
    NotOnnx {
        /// Why we think so.
        reason: String,
    },
    /// It begins like an ONNX model but cannot be decoded.
    #[error("the ONNX model is truncated or corrupted: {reason}")]
    Malformed {
        /// The decoder's words.
        reason: String,
    },
    /// Operators that the backend lacks.
    #[error("the model uses operators that are not supported: {}", names.join(", "))]
    UnsupportedOperator {
        /// Their names, sorted, with their domain unless it is ONNX's own.
        names: Vec<String>,
    },
    /// A dimension that the model leaves free and the manifest does not give.
    #[error(
        "dimension {axis}{} of input `{input}` is free in the model: give the input in the \
         manifest, like `{input}:f32[batch,64]`",
        dim.as_ref().map(|d| format!(" (`{d}`)")).unwrap_or_default()
    )]
    FreeDimension {
        /// The input.
        input: String,
        /// Which dimension, from 0.
        axis: u32,
        /// The model's name for it, if it has one.
        dim: Option<String>,
    },
    /// The manifest describes an input that the model does not have.
    #[error("the model has no input `{name}`; its inputs are: {}", known.join(", "))]
    UnknownInput {
        /// What the manifest says.
        name: String,
        /// What the model has.
        known: Vec<String>,
    },
    /// The manifest's description of an input contradicts the model.
    #[error("the manifest says `{manifest}`, but the model has `{model}`")]
    Contradiction {
        /// The manifest's description.
        manifest: String,
        /// The model's.
        model: String,
    },
    /// An input or output has a type that tensors cannot carry (strings, sequences, maps).
    #[error("`{name}` is of a type that is not supported: {reason}")]
    UnsupportedType {
        /// The input or output.
        name: String,
        /// Its type.
        reason: String,
    },
    /// It is an ONNX model, but it cannot be prepared for these shapes.
    #[error("the model cannot be prepared: {reason}")]
    Unusable {
        /// The backend's words.
        reason: String,
    },
    /// A wrong number of inputs.
    #[error("the model takes {expected} input(s), got {got}")]
    InputCount {
        /// As many as the model has.
        expected: u64,
        /// As many as came.
        got: u64,
    },
    /// An input of the wrong dtype or shape.
    #[error(transparent)]
    Shape(ShapeMismatch),
    /// The model failed while running.
    #[error("the inference failed: {reason}")]
    Failed {
        /// The backend's words.
        reason: String,
    },
    /// The backend panicked on this model or input.
    #[error("the inference engine panicked: {reason}")]
    Panicked {
        /// The panic's message.
        reason: String,
    },
    /// The model needs more memory than its limit.
    #[error("the model needs more memory than its limit")]
    OutOfMemory,
    /// More bytes than a frame or tensor may have.
    #[error("{what} is too large: at most {bytes_max} bytes")]
    TooLarge {
        /// What was too large.
        what: String,
        /// The limit.
        bytes_max: u64,
    },
}

impl ModelError {
    /// Whether the process that reported it can go on.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(self, ModelError::Panicked { .. } | ModelError::OutOfMemory)
    }
}

/// What was going on when time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for another inference of the same model.
    Queue,
    /// Starting the child and loading the model.
    Load,
    /// Inference.
    Infer,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Queue => "waiting for its turn",
            Stage::Load => "loading the model",
            Stage::Infer => "inference",
        })
    }
}

/// Why a call to a guarded model failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model or its input is at fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It took too long; a child that was at it has been killed.
    #[error("{stage} took longer than {limit_ms} ms")]
    DeadlineExceeded {
        /// What took too long.
        stage: Stage,
        /// The time it had.
        limit_ms: u64,
    },
    /// The child hit its memory limit and was ended.
    #[error("the model needs more memory than its limit of {limit_bytes} bytes: raise spec.memory")]
    MemoryExceeded {
        /// The limit.
        limit_bytes: u64,
    },
    /// The child died otherwise. Signal 31 (SIGSYS) is the system call filter.
    #[error("the model process died ({}): {message}", cause(*signal, *code))]
    Crashed {
        /// The signal that ended it.
        signal: Option<i32>,
        /// Its exit code, if it ended by itself.
        code: Option<i32>,
        /// The end of what it said on standard error.
        message: String,
    },
    /// The child answered with something that is not an answer; it was killed.
    #[error("the model process broke the protocol: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
    /// The child could not be started.
    #[error("cannot start {program} as model process")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The model's bytes could not be read.
    #[error("cannot read the model (at most {MODEL_BYTES_MAX} bytes)")]
    Source(#[source] io::Error),
    /// It failed several times in a row; it is not started again yet.
    #[error("the model process failed {failures} times in a row; next start in {retry_ms} ms")]
    BackingOff {
        /// Failures in a row.
        failures: u32,
        /// Time until it may start again.
        retry_ms: u64,
    },
    /// Too many calls are waiting for this model.
    #[error("{WAITING_MAX} calls are already waiting for this model")]
    Busy,
    /// All children are at work for other models.
    #[error("all {children_max} model processes of this node are busy")]
    Crowded {
        /// How many there may be.
        children_max: usize,
    },
    /// The host was stopped for good while the call waited.
    #[error("the model was stopped")]
    Retired,
}

impl Error {
    /// Whether the same call may succeed later, with nothing changed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Error::DeadlineExceeded {
                stage: Stage::Queue,
                ..
            } | Error::Crashed { .. }
                | Error::Spawn { .. }
                | Error::Source(_)
                | Error::BackingOff { .. }
                | Error::Busy
                | Error::Crowded { .. }
                | Error::Retired
        )
    }
}

fn cause(signal: Option<i32>, code: Option<i32>) -> String {
    match (signal, code) {
        (Some(31), _) => "signal 31: a forbidden system call".into(),
        (Some(9), _) => "signal 9: killed from outside, or by the kernel for memory".into(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "for an unknown reason".into(),
    }
}

/// A message from tract or a child, on one line and bounded.
pub(super) fn reason(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    if out.chars().count() > REASON_CHARS_MAX {
        out = out.chars().take(REASON_CHARS_MAX).collect();
        out.push('…');
    }
    out.retain(|c| !c.is_control());
    out
}
