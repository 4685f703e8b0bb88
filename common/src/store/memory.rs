//! A store in memory, for tests of what uses a [`MetaStore`]. Nothing in it survives.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    BoxFuture, Change, Durable, Entry, Event, Key, MetaStore, Op, PAGE_BYTES_MAX, Page, Range,
    Result, Revision, Txn, Watch, plan, watch::Watchers,
};

/// A [`MetaStore`] that forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<Key, (Bytes, Revision)>,
    watchers: Watchers,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn entry(&self, key: &Key) -> Option<Entry> {
        let (value, revision) = self.records.get(key)?;
        Some(Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        })
    }

    fn range(&self, range: &Range) -> Page {
        let revision = self.watchers.revision();
        let mut entries = Vec::new();
        let mut bytes = 0;
        let start = range
            .after
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let inside = self
            .records
            .range::<Key, _>((start, Bound::Unbounded))
            .filter(|(key, _)| key.as_bytes().starts_with(&range.prefix));
        for (key, (value, revision_of)) in inside {
            if entries.len() == range.entries_max() || bytes >= PAGE_BYTES_MAX {
                return Page {
                    entries,
                    more: true,
                    revision,
                };
            }
            bytes += key.as_bytes().len() + value.len();
            let (key, value) = (key.clone(), value.clone());
            entries.push(Entry {
                key,
                value,
                revision: *revision_of,
            });
        }
        Page {
            entries,
            more: false,
            revision,
        }
    }

    fn commit(&mut self, txn: Txn) -> Result<Revision> {
        txn.check()?;
        let ops = plan::resolve(txn, |key| Ok(self.records.get(key).map(|(_, r)| *r)))?;
        if ops.is_empty() {
            return Ok(self.watchers.revision());
        }
        let revision = self.watchers.revision().next();
        for op in ops {
            let (key, change) = match op {
                Op::Put(key, value) => {
                    self.records.insert(key.clone(), (value.clone(), revision));
                    (key, Change::Put(value))
                }
                Op::Delete(key) => {
                    self.records.remove(&key);
                    (key, Change::Delete)
                }
            };
            self.watchers.publish(&Event {
                key,
                change,
                revision,
            });
        }
        self.watchers.advance(revision);
        Ok(revision)
    }
}

impl MetaStore for MemoryStore {
    fn get(&self, key: &Key) -> BoxFuture<'_, Result<Option<Entry>>> {
        let found = self.with(|inner| inner.entry(key));
        Box::pin(async move { Ok(found) })
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move { Ok(self.with(|inner| inner.range(&range))) })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Durable<Revision>>> {
        Box::pin(async move { self.with(|inner| inner.commit(txn)).map(Durable::mint) })
    }

    fn watch(&self, prefix: &[u8]) -> Result<Watch> {
        Ok(self.with(|inner| inner.watchers.add(prefix)))
    }
}
