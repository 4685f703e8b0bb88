//! The mesh over loopback, with a brain and agents driven by hand.

mod blobs;
mod calls;
mod doors;
mod sessions;
mod streams;
