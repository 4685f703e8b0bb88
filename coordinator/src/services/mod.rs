//! Services: long-lived work with or without state, as replicas or shards.
//!
//! A service is desired state: a spec, a module, a revision. [`converge`] brings its instances
//! towards it, one commit at a time; nodes follow through the reconciler. What differs from models
//! is state: an instance that has some is where its state is, and goes on elsewhere only by a
//! [move](moves) (the source is sealed, its final checkpoint goes along), or from the last
//! checkpoint that the coordinator has when its node was removed from the mesh.
//!
//! Invariants
//! - The record of an instance is the only authority over its owner: the swap to a new owner is
//!   one commit of epoch, node and checkpoint, in the same commit as the report that allows it.
//! - An instance with state is never placed anew because its node is away: it waits.
//! - Reports of an epoch that is not the record's change nothing but what the record lacks.
//! - A move holds no state outside its record: whoever starts over reads it and goes on.

mod converge;
mod failover;
mod leases;
mod mail;
mod moves;
mod outgoing;
mod place;
mod plan;
mod replicas;
mod reports;
mod routes;
mod swap;
mod table;
mod takeover;
#[cfg(test)]
mod tests;
mod verbs;
mod view;

pub(crate) use converge::{converge_all, refresh_node, reserve_all, sweep};
pub(crate) use failover::fail_over_due;
pub(crate) use leases::leases;
pub(crate) use moves::{abort, checkpoint, fetched, migrate};
pub(crate) use outgoing::outgoing;
pub use replicas::Replicas;
pub(crate) use reports::{held_newer, node_back, reported};
pub(crate) use routes::{ServiceRouter, logs};
pub(crate) use table::{Services, artifacts_used, checkpoint_blobs, desired, floor_of, work};
pub(crate) use takeover::take_over;
pub(crate) use verbs::{apply, remove, scale};
pub(crate) use view::{explain, moves as moves_view, staying_on, view, views};

/// Most services.
pub(crate) const SERVICES_MAX: usize = 1_000;
