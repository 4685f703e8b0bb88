//! Timers: part of the state, set to an absolute time, due once.

use crate::{
    error::{HostError, check},
    now_ms, sys,
};

/// A timer that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Its number, as it was set.
    pub number: u64,
    /// When it was due, in milliseconds since 1970. The handler may run later, not earlier.
    pub due_ms: u64,
}

impl Timer {
    pub(crate) fn read() -> Self {
        Self {
            number: sys::number(sys::field::TIMER),
            due_ms: sys::number(sys::field::DUE),
        }
    }
}

/// Sets timer `number`, or moves it, to a time in milliseconds since 1970.
///
/// # Errors
/// [`HostError::Limit`] where as many are set as `spec.limits.timers` allows.
pub fn set(number: u64, at_ms: u64) -> Result<(), HostError> {
    let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
    check(sys::timer_set(number.cast_signed(), at_ms)).map(drop)
}

/// Sets timer `number`, or moves it, to so many milliseconds from now.
///
/// # Errors
/// As [`set`].
pub fn after(number: u64, ms: u64) -> Result<(), HostError> {
    set(number, now_ms().saturating_add(ms))
}

/// Clears a timer. Whether it was set.
///
/// # Errors
/// Not in the module's start function.
pub fn clear(number: u64) -> Result<bool, HostError> {
    check(sys::timer_clear(number.cast_signed())).map(|set| set == 1)
}
