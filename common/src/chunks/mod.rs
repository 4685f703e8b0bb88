//! Content-addressed files for bulk data: artifacts, task inputs, results.
//!
//! A blob is named by the SHA-256 of its contents and stored once. On disk it is a header and
//! sealed segments of 64 KiB, so that a reader can begin anywhere with bounded memory, and any
//! altered, exchanged, missing or added byte is an error when it is read.
//!
//! Invariants
//! - A file under `blobs/` is whole, verified against its name, and durable: it is written under a
//!   temporary name, flushed, renamed, and its directory flushed.
//! - A failed flush is never tried again: what it was to make durable is dropped.
//! - A failed or dropped writer leaves nothing; a [`PartialBlob`] leaves its whole segments, to go
//!   on from after a restart.
//!
//! Everything blocks; async callers use a blocking thread. Two processes must not share a
//! directory (the record store beside it holds the lock).

mod error;
mod gc;
mod partial;
mod reader;
mod segment;
mod store;
mod writer;

#[cfg(test)]
mod chunks_test;
#[cfg(test)]
mod power_test;

pub use error::{Error, Result};
pub use gc::Collected;
pub use partial::PartialBlob;
pub use reader::BlobReader;
pub use segment::SEGMENT_BYTES;
pub use store::BlobStore;
pub use writer::BlobWriter;
