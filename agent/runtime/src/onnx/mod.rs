//! ONNX models, run in guarded child processes.
//!
//! tract cannot be interrupted and a model may be hostile, so a model is decoded, optimised and
//! run only in a child process of the same binary: [`serve_child`], behind a memory limit and a
//! system call filter ([`jail`]). The agent's side is [`ModelHost`] (one model, one child, started
//! on demand, killed on breach) and [`ModelHosts`] (a bounded set of them). Both talk in the
//! frames of [`wire`] over the child's standard input and output.
//!
//! Invariants: nothing that a model contains is parsed in the agent's process; every call ends
//! within its deadline or the child is killed; a failed child never takes its agent along.
//!
//! Limits: one inference at a time per model, [`guard::WAITING_MAX`] calls waiting for it; sizes
//! in [`wire`]. Not here: artifacts, placement, replicas, batching of requests.

mod admit;
mod backend;
mod backoff;
mod child;
mod dequantize;
mod error;
mod float;
mod graph;
pub mod guard;
mod heap;
mod host;
mod hosts;
mod int8;
mod jail;
mod rows;
mod spawner;
mod tract;
mod unary;
pub mod wire;

pub use admit::inspect;
pub use backend::{Backend, Facts, Outcome, Session};
pub use error::{Error, ModelError, Stage};
pub use guard::{HostOptions, Inference, Memory, ModelHost, Source};
pub use host::serve_child;
pub use hosts::{ChildStatus, ModelHosts, ModelKey};
pub use jail::jail;
pub use tract::Tract;
