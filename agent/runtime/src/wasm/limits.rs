//! What one run may use. Plain data; [`meter`](super::meter) enforces it.
//!
//! The stack is bounded for the whole engine (`EngineOptions::wasm_stack_bytes`), since the
//! native code is compiled against it, and a memory limit above the engine's is the engine's.

use serde::{Deserialize, Serialize};

/// Linear memory: the size of the 32-bit address space.
pub const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// One Wasm page: less cannot hold any memory.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024;
/// CPU and wall time: 30 days; what runs longer is a service.
pub const TIME_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// Output: 1 TiB, in effect unlimited, for attached tasks whose reader gives back-pressure.
pub const OUTPUT_BYTES_MAX: u64 = 1 << 40;
/// Host calls: more per second than any core can make.
pub const HOST_CALLS_MAX: u64 = 1_000_000_000;

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Linear memory, bytes. Growing past it fails in the guest (`memory.grow` gives -1); a
    /// module that needs more from its start is ended before it runs.
    pub memory_bytes: u64,
    /// CPU time of the guest's thread, host calls included, milliseconds.
    pub cpu_ms: u64,
    /// Time from the start, waiting included, milliseconds.
    pub wall_ms: u64,
    /// Standard output and error together, bytes.
    pub output_bytes: u64,
    /// Host calls per second, sustained.
    pub host_calls_per_s: u64,
    /// Host calls that may come at once before the rate counts.
    pub host_calls_burst: u64,
}

impl Default for Limits {
    /// 256 MiB, a minute of CPU, an hour of time, 64 MiB of output, two million host calls/s
    /// (a program that writes byte by byte makes about one million).
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            cpu_ms: 60_000,
            wall_ms: 3_600_000,
            output_bytes: 64 << 20,
            host_calls_per_s: 2_000_000,
            host_calls_burst: 4_000_000,
        }
    }
}

/// A limit outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limit `{field}` is {value}; it must be between {min} and {max}")]
pub struct LimitsError {
    /// The field's name.
    pub field: &'static str,
    /// What it was.
    pub value: u64,
    /// Least that is allowed.
    pub min: u64,
    /// Most that is allowed.
    pub max: u64,
}

impl Limits {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let ranges = [
            (
                "memory_bytes",
                self.memory_bytes,
                MEMORY_BYTES_MIN,
                MEMORY_BYTES_MAX,
            ),
            ("cpu_ms", self.cpu_ms, 1, TIME_MS_MAX),
            ("wall_ms", self.wall_ms, 1, TIME_MS_MAX),
            ("output_bytes", self.output_bytes, 0, OUTPUT_BYTES_MAX),
            ("host_calls_per_s", self.host_calls_per_s, 1, HOST_CALLS_MAX),
            ("host_calls_burst", self.host_calls_burst, 1, HOST_CALLS_MAX),
        ];
        for (field, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(LimitsError {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_valid_and_each_field_is_checked() {
        Limits::default().validate().unwrap();
        let broken = [
            Limits {
                memory_bytes: 1,
                ..Limits::default()
            },
            Limits {
                memory_bytes: MEMORY_BYTES_MAX + 1,
                ..Limits::default()
            },
            Limits {
                cpu_ms: 0,
                ..Limits::default()
            },
            Limits {
                wall_ms: u64::MAX,
                ..Limits::default()
            },
            Limits {
                output_bytes: u64::MAX,
                ..Limits::default()
            },
            Limits {
                host_calls_per_s: 0,
                ..Limits::default()
            },
            Limits {
                host_calls_burst: 0,
                ..Limits::default()
            },
        ];
        let fields: Vec<_> = broken
            .iter()
            .map(|l| l.validate().unwrap_err().field)
            .collect();
        assert_eq!(
            fields,
            [
                "memory_bytes",
                "memory_bytes",
                "cpu_ms",
                "wall_ms",
                "output_bytes",
                "host_calls_per_s",
                "host_calls_burst"
            ]
        );
    }
}
