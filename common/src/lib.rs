//! What both sides of the mesh must agree on.
//!
//! Pure modules (`id`, `spec`, `wire`, `ownership`, `tensor`, `api`, `codes`, `identity`) hold no
//! async runtime, clock, socket or random source of their own: time and randomness are arguments.
//! `store` and `chunks` are the thin shells around the disk.

pub mod api;
pub mod chunks;
pub mod clock;
pub mod codes;
pub mod id;
pub mod identity;
pub mod ownership;
mod schema;
pub mod spec;
pub mod store;
pub mod tensor;
pub mod topics;
pub mod wire;
