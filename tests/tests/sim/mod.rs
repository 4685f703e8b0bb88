//! A mesh in one thread: a coordinator, three agents, their disks, clocks and network, all made of
//! the product's pure parts, driven by one queue of events and one seed.
//!
//! Of the product: [`hop3_agent::supervisor::core::Core`] (what an agent does about assignments and
//! runs) and [`hop3_common::ownership`] (records, leases, replicas, tokens). Of the simulation: who
//! calls them when, and everything that goes wrong.

pub(crate) mod agent;
pub(crate) mod coordinator;
pub(crate) mod faults;
pub(crate) mod rng;
pub(crate) mod world;
