//! Typed, encrypted, crash-safe records: what an agent or a coordinator must not forget.
//!
//! ```text
//! Table<R> ── Txn ──► MetaStore ─┬─ LocalStore: journal (truth) + sled (index)
//!                                └─ MemoryStore (tests of users)
//! ```
//!
//! Invariants
//! - A commit is answered only when its record is on disk: [`Durable`] can be made only here.
//! - The journal and its snapshot are the truth. sled is an index; deleting its folder while the
//!   store is closed loses nothing.
//! - Opening is recovery. A torn tail is cut and reported; damage to what was acknowledged is an
//!   [`Error::Corrupt`] that names what is affected, never skipped.
//! - A failed flush is never tried again: the store refuses writes until everything acknowledged
//!   is in new files, which the next commit tries first.
//! - Nothing is on disk in the clear except keys (see [`Key`]), revisions and sizes.
//!
//! Limits: keys ≤ [`KEY_BYTES_MAX`], values ≤ [`VALUE_BYTES_MAX`]; bulk data belongs in
//! [`crate::chunks`]. One process at a time (lock file). Heartbeats and telemetry do not belong
//! here.

pub mod ab;
pub mod backup;
pub mod changelog;
pub mod crypt;
pub mod disk;
mod error;
pub mod export;
mod frame;
mod group;
mod index;
mod journal;
mod keyfile;
mod layout;
mod local;
mod memory;
mod meta;
mod plan;
#[cfg(any(test, feature = "powercut"))]
pub mod powercut;
mod record;
mod scan;
mod snapshot;
mod table;
mod verify;
mod watch;
mod writer;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod export_test;
#[cfg(test)]
mod fault_test;
#[cfg(test)]
mod local_power_test;
#[cfg(test)]
mod local_test;
#[cfg(test)]
mod powercut_test;

pub use crypt::{Cipher, MasterKey};
pub use error::{Error, Result};
pub use journal::TornTail;
pub use local::{IndexRecovery, LocalStore, Options, Recovery};
pub use memory::MemoryStore;
pub use meta::{
    BoxFuture, Durable, Entry, KEY_BYTES_MAX, Key, MetaStore, Op, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX,
    Page, Precondition, Range, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX,
};
pub use record::{RECORD_BYTES_MAX, Record, RecordError, decode_body};
pub use table::{Item, Items, Table};
pub use verify::{Told, Verified, verify};
pub use watch::{Change, Event, WATCH_EVENTS_MAX, Watch, WatchError};
