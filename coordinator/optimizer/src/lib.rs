//! Decisions as pure functions: where an instance goes, and what a node must do to converge.
//!
//! Invariants: no I/O, no clock, no randomness of its own (a seed is an argument), no map in
//! hash order; the same input gives the same answer whatever the order of the candidates.
//! Every answer carries the numbers that decided it.
//!
//! Not here: reading the inventory, recording decisions, sending commands. The coordinator
//! maps its own records to the small value types of this crate and back.

pub mod placement;
pub mod reconcile;

pub use placement::{
    Candidate, DETAIL_MAX, Outcome, Placement, PlacementStrategy, Registry, Request, Tier,
};
