//! What the coordinator must not forget: typed records and the batches that change them.
//!
//! Everything here is versioned and frozen once shipped: a new form is a new `VERSION`.
//! All of it is loaded at start; the store is read again only for decisions.

mod past;
mod types;

use std::sync::Arc;

use hop3_common::{
    codes::{Code, Problem},
    store::{self, MetaStore, Record, Table, Txn},
};

pub use types::*;

/// The store behind the coordinator's records.
#[derive(Debug, Clone)]
pub struct Records {
    store: Arc<dyn MetaStore>,
}

/// Changes that happen all or not at all.
#[derive(Default)]
#[must_use = "a batch does nothing until it is committed"]
pub(crate) struct Batch(Txn);

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn put<R: Record>(self, id: &str, record: &R) -> Result<Self, Problem> {
        let op = Table::<R>::new()
            .put_op(id, record)
            .map_err(|e| problem(&e))?;
        Ok(Self(self.0.op(op)))
    }

    pub(crate) fn delete<R: Record>(self, id: &str) -> Result<Self, Problem> {
        let op = Table::<R>::new().delete_op(id).map_err(|e| problem(&e))?;
        Ok(Self(self.0.op(op)))
    }
}

impl Records {
    /// Records in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn MetaStore>) -> Self {
        Self { store }
    }

    /// Durable when it returns `Ok`.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<(), Problem> {
        let durable = self.store.commit(batch.0).await.map_err(|e| problem(&e))?;
        tracing::trace!(revision = %durable.into_inner(), "committed");
        Ok(())
    }

    /// Every record of a table, with its id.
    pub(crate) async fn all<R: Record>(&self) -> Result<Vec<(String, R)>, Problem> {
        let items = Table::<R>::new()
            .all(&*self.store)
            .await
            .map_err(|e| problem(&e))?;
        Ok(items
            .into_iter()
            .map(|item| (item.id, item.record))
            .collect())
    }

    pub(crate) async fn get<R: Record>(&self, id: &str) -> Result<Option<R>, Problem> {
        let item = Table::<R>::new()
            .get(&*self.store, id)
            .await
            .map_err(|e| problem(&e))?;
        Ok(item.map(|item| item.record))
    }

    /// Whether the store answers.
    pub(crate) async fn check(&self) -> Result<(), Problem> {
        self.get::<MeshRecord>(MESH_KEY).await.map(drop)
    }
}

/// A store's error as a problem that travels, with its causes.
pub(crate) fn problem(error: &store::Error) -> Problem {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Problem::new(Code::Storage, message)
}
