//! What must hold for any bytes that reach a decoder: the bodies of the fuzz targets.
//!
//! A body is a plain function that asserts and never panics on anything but a broken promise. It
//! is called by libFuzzer (`libfuzzer/`, started by `scripts/fuzz`) and, with the committed corpus
//! and seeded mutations of it, by the ordinary tests (`tests/corpus.rs`).
//!
//! Common promises: no panic; errors are typed; what is decoded, encoded again and decoded is the
//! same; a small input makes nothing large.

// Assertions are what this crate is for.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "runtime")]
pub mod admission;
pub mod chunks;
pub mod disk;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod identity;
#[cfg(feature = "runtime")]
pub mod image;
pub mod input;
#[cfg(feature = "agent")]
pub mod log;
pub mod mutate;
#[cfg(feature = "runtime")]
pub mod onnx;
pub mod samples;
pub mod spec;
pub mod store;
pub mod tensors;
pub mod wire;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Names its corpus too.
    pub name: &'static str,
    /// Its body: says whether the bytes were taken as valid. Seeds whose names begin with `ok`
    /// must be, those that begin with `bad` must not, so that no target comes to test nothing.
    pub body: fn(&[u8]) -> bool,
    /// Real encodings to begin with; their names end up as file names.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All targets of this build.
pub const TARGETS: &[Target] = &[
    target("frames", wire::frames, samples::frames),
    target("messages", wire::messages, samples::messages),
    target("telemetry", wire::telemetry, samples::telemetry),
    target("attach", wire::attach, samples::attach),
    target("records", store::records, store::record_seeds),
    target("journal", store::journal, store::journal_seeds),
    target("chunks", chunks::chunks, chunks::seeds),
    target("manifests", spec::manifests, spec::manifest_seeds),
    target("texts", spec::texts, spec::text_seeds),
    target("tensors", tensors::tensors, tensors::seeds),
    target("identity", identity::identity, identity::seeds),
    #[cfg(feature = "gateway")]
    target("gateway", gateway::gateway, gateway::seeds),
    #[cfg(feature = "runtime")]
    target("image", image::image, image::seeds),
    #[cfg(feature = "runtime")]
    target("delta", image::delta, image::delta_seeds),
    #[cfg(feature = "runtime")]
    target("wasm", admission::wasm, admission::seeds),
    #[cfg(feature = "runtime")]
    target("onnx", onnx::model, onnx::model_seeds),
    #[cfg(feature = "runtime")]
    target("model_frames", onnx::frames, onnx::frame_seeds),
    #[cfg(feature = "agent")]
    target("log", log::log, log::seeds),
];

const fn target(
    name: &'static str,
    body: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<(String, Vec<u8>)>,
) -> Target {
    Target { name, body, seeds }
}

/// The target of this name.
///
/// # Panics
/// There is none.
#[must_use]
pub fn find(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("no fuzz target `{name}` in this build"))
}
