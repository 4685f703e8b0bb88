//! One lock per record, striped: changes of one record are serialised across its commit, changes
//! of different records go on together and share a flush.
//!
//! Rule: nobody holds two. Whoever changes several records takes them one after the other.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::{Mutex, MutexGuard};

/// Stripes: two records that share one only wait for each other, so a few hundred are plenty.
const STRIPES: usize = 256;

pub(crate) struct Locks(Vec<Mutex<()>>);

impl Locks {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    /// The lock of the record that `subject` names (`task/…`, `model/…`, `node/…`).
    pub(crate) async fn of(&self, kind: &str, name: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        self.0[hasher.finish() as usize % STRIPES].lock().await
    }
}
