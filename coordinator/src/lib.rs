//! The Hop3 control plane: registry, desired state, scheduler, mesh and REST API.
//!
//! ```text
//! api ──► Core ──► tasks · models · artifacts · registry · scheduler ──► records (store)
//! mesh ─► Brain ─┘                                    └── links to nodes (mesh)
//! ```

pub mod access;
pub mod api;
pub mod artifacts;
pub mod attach;
mod brain;
pub mod config;
pub mod core;
mod decisions;
mod enroll;
mod events;
mod explain;
pub mod invoke;
mod locks;
pub mod mesh;
pub mod models;
mod reconcile;
pub mod records;
pub mod registry;
mod scheduler;
pub mod server;
pub mod services;
mod sweep;
pub mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests_rest;
#[cfg(test)]
mod tests_tasks;

pub use self::core::{Core, Settings};
