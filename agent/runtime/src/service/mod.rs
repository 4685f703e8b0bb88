//! Runs services: long-lived instances whose state can be taken out and put back between calls.
//!
//! An [`Instance`] handles one [`Input`] at a time, on the calling thread. A call that ends well
//! changes its [`Image`] and gives effects to carry out; one that traps, hits a limit or says that
//! it failed leaves the image as it was, and the instance is rebuilt from it: rollback is restore.
//!
//! The image is a persistent structure of shared 4 KiB pages: taking it costs no copy of memory,
//! and the difference of two ([`Image::delta`]) only what changed. What travels and is stored are
//! encoded images and deltas; they do not depend on the machine's architecture.
//!
//! What guests see is `agent/sdk/ABI.md`. Knows nothing of the mesh: who a stream or a service is,
//! when an effect may happen, is the caller's.
//!
//! Invariants: nothing is granted by default; every guest has an interruption point; after a
//! failed call the image is the one before it; the same image and inputs give the same image and
//! effects on every machine.

mod call;
mod dirty;
mod engine;
mod expose;
mod failure;
mod image;
mod imports;
mod inspect;
mod instance;
mod live;
mod log;
mod module;
#[cfg(test)]
mod tests;
mod types;

pub use engine::{ServiceEngine, ServiceOptions, Tracking};
pub use expose::prepare;
pub use failure::StartError;
pub use image::{Error as ImageError, Image};
pub use instance::Instance;
pub use module::ServiceModule;
pub use types::{
    CALLS_MAX, Called, Done, Effect, Failure, Input, LETTER_BYTES_MAX, LETTERS_MAX, Letters,
    Limits, LogLine, Reply, Setup,
};
