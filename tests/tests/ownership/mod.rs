//! A model of who may run an instance: one instance, two nodes, a coordinator. The rules are the
//! product's own steps (`hop3_common::ownership`); what is here is who calls them when.
//!
//! - The network only ever grows: what was sent may arrive at any later time, any number of times,
//!   in any order, or never. Streams of replicas keep their order, may break at any point, and what
//!   was under way on a broken one may still arrive.
//! - The clocks of coordinator and agents have nothing to do with each other but that an agent's is
//!   up to one tick behind or ahead of where it was: less than `DRIFT_MS`.
//! - A node has a disk, of which a run's newest changes may be missing when it crashes; so has the
//!   coordinator, which forgets leases, failovers under way and streams.

pub(crate) mod agent;
pub(crate) mod coordinator;
pub(crate) mod model;
pub(crate) mod mutants;
pub(crate) mod world;
