//! Runs core Wasm modules (WASI preview 1, virtualised) within limits, on the calling thread.
//!
//! Bytes become a [`LoadedModule`] through an [`Engine`] (validated, compiled or taken from the
//! MAC-checked [`CompiledCache`]); [`run_task`] and [`invoke`] run one instance of it and say
//! how it ended and what it used. [`GuestThreads`] lends bounded, low-priority threads to run
//! on. Everything the guest sees of the world (descriptors, clock, random, stdio) is plain data
//! of ours, so that a checkpoint can carry it later.
//!
//! Invariants: nothing is granted by default; every guest has an interruption point; no input
//! (module, pointer, path, cache file) makes the host panic.

pub(crate) mod cache;
pub(crate) mod cancel;
mod clock;
pub(crate) mod engine;
pub(crate) mod inspect;
mod limits;
pub(crate) mod meter;
mod module;
pub(crate) mod native;
pub(crate) mod outcome;
mod pipe;
mod random;
mod run;
mod stdio;
mod threads;
pub(crate) mod ticker;
pub(crate) mod wasi;

#[cfg(test)]
mod tests;

pub use cache::CompiledCache;
pub use cancel::{CancelToken, Stop, Wait};
pub use clock::{GuestClock, VirtualClock};
pub use engine::{AddressSpace, Engine, EngineOptions, OptionsError};
pub use inspect::check;
pub use limits::{
    HOST_CALLS_MAX, Limits, LimitsError, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, OUTPUT_BYTES_MAX,
    TIME_MS_MAX,
};
pub use module::{Error, LoadedModule, ModuleDigest, digest_of};
pub use outcome::{End, FRAMES_MAX, Frame, Limit, NAME_BYTES_MAX, Outcome, TrapKind, Usage, Which};
pub use pipe::{PIPE_BYTES_MAX, Pipe, TryRead, TryWrite};
pub use random::{GuestRandom, SeededRandom};
pub use run::{
    INVOKE_LOG_BYTES_MAX, INVOKE_OUTPUT_BYTES_MAX, Invocation, RunError, TaskInput, invoke,
    run_task,
};
pub use stdio::{Captured, Discard, InputBytes, Output, Readiness, Stdin, WriteError};
pub use threads::{Busy, GuestThreads, ThreadOptions};
pub use wasi::{Grants, Volume};
