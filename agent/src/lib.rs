//! The agent: the daemon on every node of a mesh.
//!
//! ```text
//! coordinator ◄── session ──► supervisor ──► exec (tasks, models, calls) ──► services
//!                    │            │             │
//!                telemetry      store         blobs
//! ```
//!
//! What is decided is pure ([`supervisor::core`], [`session::outbox`], [`backoff`]); the rest is a
//! thin shell around it. Start-up is recovery: the agent may be killed at any moment.

pub mod agent;
pub mod backoff;
pub mod blobs;
pub mod cli;
pub mod config;
pub mod exec;
pub mod identity;
pub mod services;
pub mod session;
pub mod supervisor;
pub mod telemetry;

/// This build's version, for people.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
