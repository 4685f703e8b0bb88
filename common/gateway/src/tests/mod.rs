//! Tests of the whole gateway, against instances that do as they are told.

#![allow(clippy::unwrap_used)]

mod client;
mod delivery;
mod http;
mod order;
mod sockets;
mod streams;
mod world;
