//! Turns compiled code back into a module: the one place of this crate's Wasm side that is
//! `unsafe`.
//!
//! JUSTIFICATION: compiling takes milliseconds to seconds, and wasmtime offers no checked way
//! to load compiled code.

#![allow(unsafe_code)]

use wasmtime::{Engine, Module};

use super::cache::Verified;

/// Loads code that carried this machine's own MAC.
///
/// # Errors
/// The code was made by another version or configuration of the engine.
pub(crate) fn deserialize(engine: &Engine, code: &Verified) -> wasmtime::Result<Module> {
    // SAFETY: `deserialize` asks that the bytes come from `Module::serialize`. A `Verified` is
    // made only by the cache after checking a keyed MAC that the cache itself put on the output
    // of `serialize`; the bytes are owned memory, so nobody changes them after the check.
    unsafe { Module::deserialize(engine, code.bytes()) }
}
