//! The checkpoints that this node keeps, one record per instance, changed as a whole.
//!
//! A blob that a kept checkpoint refers to is not collected ([`Kept::references`]); one that no
//! kept checkpoint refers to any more is removed. Whoever makes a record holds pins on its blobs
//! until the record is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hop3_common::{
    id::{Digest, InstanceId},
    ownership::Token,
    store::{self, MetaStore, Record, Table},
    wire::Checkpoint,
};
use serde::{Deserialize, Serialize};

use super::log::LogId;
use crate::blobs::Blobs;

/// What is kept of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The last run that held this state: nobody else has a newer one of a lower token.
    pub owner: Token,
    /// The log on top of the newest checkpoint.
    pub log: Option<LogId>,
    /// Newest first.
    pub made: Vec<Checkpoint>,
}

impl Record for KeptRecord {
    const KIND: &'static str = "checkpoint";
    const VERSION: u16 = 1;
}

const TABLE: Table<KeptRecord> = Table::new();

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Kept(Arc<Inner>);

struct Inner {
    store: Arc<dyn MetaStore>,
    blobs: Blobs,
    all: Mutex<BTreeMap<InstanceId, KeptRecord>>,
}

impl Kept {
    /// What was stored.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(store: Arc<dyn MetaStore>, blobs: Blobs) -> Result<Self, store::Error> {
        let mut all = BTreeMap::new();
        for item in TABLE.all(&*store).await? {
            match item.id.parse() {
                Ok(id) => drop(all.insert(id, item.record)),
                Err(_) => tracing::warn!(id = item.id, "a kept checkpoint has no valid name"),
            }
        }
        let all = Mutex::new(all);
        Ok(Self(Arc::new(Inner { store, blobs, all })))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<InstanceId, KeptRecord>> {
        // Records are replaced whole.
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of one instance.
    #[must_use]
    pub fn get(&self, instance: &InstanceId) -> Option<KeptRecord> {
        self.all().get(instance).cloned()
    }

    /// Instances of which something is kept.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceId> {
        self.all().keys().cloned().collect()
    }

    /// Logs in use.
    #[must_use]
    pub fn logs(&self) -> Vec<LogId> {
        self.all()
            .values()
            .filter_map(|record| record.log)
            .collect()
    }

    /// Blobs of all kept checkpoints.
    #[must_use]
    pub fn references(&self) -> BTreeSet<Digest> {
        let all = self.all();
        let parts = all.values().flat_map(|record| &record.made);
        let parts = parts.flat_map(|made| &made.parts);
        parts.map(|part| part.digest).collect()
    }

    /// Replaces what is kept of an instance: durable when this returns.
    ///
    /// # Errors
    /// The store's; then the old record stands.
    pub async fn put(&self, instance: &InstanceId, record: KeptRecord) -> Result<(), store::Error> {
        let _durable = TABLE
            .put(&*self.0.store, instance.as_str(), &record)
            .await?;
        let before = self.all().insert(instance.clone(), record);
        self.discard(before).await;
        Ok(())
    }

    /// Forgets an instance.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove(&self, instance: &InstanceId) -> Result<(), store::Error> {
        let _durable = TABLE.delete(&*self.0.store, instance.as_str()).await?;
        let before = self.all().remove(instance);
        self.discard(before).await;
        Ok(())
    }

    /// Removes the blobs that only `before` referred to.
    async fn discard(&self, before: Option<KeptRecord>) {
        let Some(before) = before else { return };
        let parts = before.made.iter().flat_map(|made| &made.parts);
        let wanted = self.references();
        let gone: BTreeSet<Digest> = parts
            .map(|part| part.digest)
            .filter(|digest| !wanted.contains(digest))
            .collect();
        if gone.is_empty() {
            return;
        }
        let kept = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for digest in gone {
                let wanted = |digest: &Digest| kept.references().contains(digest);
                if let Err(error) = kept.0.blobs.discard(&digest, wanted) {
                    tracing::warn!(?digest, %error, "an old checkpoint was not removed");
                }
            }
        });
        // What stays behind is collected with the quota.
        let _ = removed.await;
    }
}
