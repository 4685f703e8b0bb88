//! Between the runtime's words and the mesh's: limits, ends, usage and problems. Pure.

use hop3_common::{
    codes::{Code, Problem},
    spec,
    wire::{self, ModelFacts},
};
use hop3_runtime::{
    onnx::{self, ModelError},
    wasm::{self, Limit, Which},
};

/// Longest time the runtime takes for a limit: "unbounded" means this.
const TIME_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// In effect unbounded output, for attached tasks: their reader gives back-pressure.
pub(super) const OUTPUT_UNBOUNDED: u64 = 1 << 40;

fn time_ms(ms: u64) -> u64 {
    if ms == 0 {
        TIME_MS_MAX
    } else {
        ms.min(TIME_MS_MAX)
    }
}

/// A task's limits as the runtime takes them. `output_bytes` bounds both outputs together.
pub(super) fn limits(limits: &spec::Limits, output_bytes: u64) -> wasm::Limits {
    let per_s = u64::from(limits.host_calls_per_s);
    wasm::Limits {
        memory_bytes: limits.memory.0,
        cpu_ms: time_ms(limits.cpu_time.0),
        wall_ms: time_ms(limits.timeout.0),
        output_bytes,
        host_calls_per_s: per_s,
        host_calls_burst: per_s.saturating_mul(2),
    }
}

/// What a run used.
pub(super) fn usage(usage: &wasm::Usage) -> wire::Usage {
    wire::Usage {
        cpu_us: usage.cpu_us,
        wall_us: usage.wall_us,
        memory_peak_bytes: usage.memory_peak_bytes,
        output_bytes: usage.output_bytes,
        host_calls: usage.host_calls,
    }
}

/// How a run ended. `memory_refused`: how often growing memory was refused, for the hint.
pub(super) fn end(outcome: &wasm::Outcome) -> wire::End {
    match &outcome.end {
        wasm::End::Exit(code) => wire::End::Exited(*code),
        wasm::End::Cancelled => wire::End::Cancelled,
        other => wire::End::Failed(failure(other, outcome.usage.memory_refused)),
    }
}

/// A failed end in words.
pub(super) fn failure(end: &wasm::End, memory_refused: u64) -> Problem {
    match end {
        wasm::End::Trap {
            message, frames, ..
        } => {
            let mut text = format!("the guest trapped: {message}");
            for frame in frames {
                text.push_str("\n  at ");
                text.push_str(&frame.function);
                if let Some(offset) = frame.offset {
                    text.push_str(&format!(" (byte {offset:#x})"));
                }
            }
            if memory_refused > 0 {
                text.push_str("\nit had asked for more memory than `limits.memory` before");
            }
            Problem::new(Code::TaskTrapped, text)
        }
        wasm::End::LimitExceeded(limit) => Problem::new(Code::TaskLimit, limit_text(limit)),
        wasm::End::DeadlineExceeded => {
            Problem::new(Code::Deadline, "the run took longer than its `timeout`")
        }
        wasm::End::Cancelled => Problem::new(Code::TaskCancelled, "the run was cancelled"),
        wasm::End::Exit(code) => Problem::new(
            Code::Internal,
            format!("exit code {code} is no failure of the run"),
        ),
    }
}

fn limit_text(limit: &Limit) -> String {
    let (name, unit) = match limit.which {
        Which::MemoryBytes => ("limits.memory", "bytes of memory"),
        Which::CpuMs => ("limits.cpu_time", "ms of CPU time"),
        Which::StackBytes => ("stack", "bytes of call stack"),
        Which::OutputBytes => ("limits.output", "bytes of output"),
        Which::HostCallsPerS => ("limits.host_calls_per_s", "host calls per second"),
    };
    format!(
        "the run reached `{name}`: {} {unit}, {} used",
        limit.limit, limit.used
    )
}

/// A module that cannot be run here.
pub(crate) fn module_problem(error: &wasm::Error) -> Problem {
    use wasm::Error;
    let code = match error {
        Error::NotWasm { .. } | Error::Malformed { .. } => Code::NotWasm,
        Error::UnsupportedProposal { .. } | Error::Compile { .. } => Code::WasmUnsupported,
        Error::UnsupportedImport { .. }
        | Error::ImportType { .. }
        | Error::TooManyImports { .. } => Code::WasmImport,
        Error::MissingExport { .. } | Error::WrongExport { .. } => Code::WasmExport,
        Error::TooLarge { .. } => Code::TooLarge,
        Error::DigestMismatch { .. } => Code::DigestMismatch,
    };
    Problem::new(code, error.to_string())
}

/// A run that could not begin.
pub(super) fn run_problem(error: &wasm::RunError) -> Problem {
    use wasm::RunError;
    let (code, source) = match error {
        RunError::Limits(_) | RunError::Input { .. } => (Code::InvalidField, None),
        RunError::Volume { source, .. } => (Code::VolumeUnknown, Some(source.to_string())),
        RunError::Busy => (Code::Busy, None),
        RunError::Instantiate { .. } => (Code::Internal, None),
    };
    let why = source
        .map(|source| format!(": {source}"))
        .unwrap_or_default();
    Problem::new(code, format!("{error}{why}"))
}

/// A model that cannot be loaded or run.
pub(super) fn model_problem(error: &onnx::Error) -> Problem {
    use onnx::Error;
    let code = match error {
        Error::Model(error) => model_code(error),
        Error::DeadlineExceeded { .. } => Code::Deadline,
        Error::MemoryExceeded { .. } => Code::ModelMemory,
        Error::Crashed { .. } | Error::Protocol { .. } => Code::ModelFailed,
        Error::Spawn { .. } => Code::Internal,
        Error::Source(_) => Code::Storage,
        Error::BackingOff { .. } | Error::Retired => Code::ModelNotReady,
        Error::Busy | Error::Crowded { .. } => Code::Busy,
    };
    let why = std::error::Error::source(error).map(|source| format!(": {source}"));
    Problem::new(code, format!("{error}{}", why.unwrap_or_default()))
}

fn model_code(error: &ModelError) -> Code {
    match error {
        ModelError::NotOnnx { .. } | ModelError::Malformed { .. } => Code::NotOnnx,
        ModelError::UnsupportedOperator { .. }
        | ModelError::UnsupportedType { .. }
        | ModelError::Unusable { .. } => Code::OnnxUnsupported,
        ModelError::FreeDimension { .. } => Code::OnnxFreeDimension,
        ModelError::UnknownInput { .. } | ModelError::Contradiction { .. } => Code::InvalidField,
        ModelError::InputCount { .. } | ModelError::Shape(_) => Code::TensorShape,
        ModelError::Failed { .. } | ModelError::Panicked { .. } => Code::ModelFailed,
        ModelError::OutOfMemory => Code::ModelMemory,
        ModelError::TooLarge { .. } => Code::TooLarge,
    }
}

/// What a model takes and gives.
pub(super) fn model_facts(facts: onnx::Facts, load_us: u64) -> ModelFacts {
    ModelFacts {
        inputs: facts.inputs,
        outputs: facts.outputs,
        load_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unbounded_times_are_bounded_and_others_kept() {
        let spec = spec::Limits {
            timeout: spec::Millis(0),
            cpu_time: spec::Millis(5),
            ..spec::Limits::default()
        };
        let limits = limits(&spec, 10);
        assert_eq!((limits.wall_ms, limits.cpu_ms), (TIME_MS_MAX, 5));
        assert!(limits.validate().is_ok());
    }

    #[test]
    fn limits_are_named_as_users_write_them() {
        let limit = Limit {
            which: Which::CpuMs,
            limit: 100,
            used: 101,
        };
        let problem = failure(&wasm::End::LimitExceeded(limit), 0);
        assert_eq!(problem.code, Code::TaskLimit);
        assert!(problem.message.contains("limits.cpu_time"), "{problem}");
    }
}
