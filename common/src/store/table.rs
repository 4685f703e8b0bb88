//! Typed tables over a [`MetaStore`]: records of one type under `<kind>/<id>`.

use std::{fmt, marker::PhantomData};

use super::{
    Change, Durable, Entry, Error, Event, Key, MetaStore, Op, PAGE_ENTRIES_MAX, Precondition,
    Range, Record, Result, Revision, Txn, Watch, record,
};

/// The table of records `R`. Costs nothing; make one wherever needed.
pub struct Table<R>(PhantomData<fn() -> R>);

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<R> {
    /// Its id within the table.
    pub id: String,
    /// The record.
    pub record: R,
    /// The commit that wrote it last.
    pub revision: Revision,
}

/// A page of records in id order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items<R> {
    /// The records.
    pub items: Vec<Item<R>>,
    /// The id to continue after, if there is more.
    pub next: Option<String>,
    /// The last commit that this page shows.
    pub revision: Revision,
}

impl<R> fmt::Debug for Table<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Table<R> {}

impl<R: Record> Default for Table<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Record> Table<R> {
    /// The table of `R`.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(record::is_kind(R::KIND), "KIND has a-z, 0-9 and - only") };
        Self(PhantomData)
    }

    /// Reads one record.
    ///
    /// # Errors
    /// [`Error::Record`] if it cannot be decoded, and the store's own errors.
    pub async fn get(self, store: &dyn MetaStore, id: &str) -> Result<Option<Item<R>>> {
        store
            .get(&self.key(id)?)
            .await?
            .map(|entry| self.decode(&entry))
            .transpose()
    }

    /// Writes one record, whatever was there.
    ///
    /// # Errors
    /// [`Error::Record`] if it is too large, and the store's own errors.
    pub async fn put(
        self,
        store: &dyn MetaStore,
        id: &str,
        record: &R,
    ) -> Result<Durable<Revision>> {
        store.commit(Txn::new().op(self.put_op(id, record)?)).await
    }

    /// Removes one record; nothing happens if there is none.
    ///
    /// # Errors
    /// The store's own errors.
    pub async fn delete(self, store: &dyn MetaStore, id: &str) -> Result<Durable<Revision>> {
        store.commit(Txn::new().op(self.delete_op(id)?)).await
    }

    /// A page of records with ids after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Record`] if one cannot be decoded, and the store's own errors.
    pub async fn list(
        self,
        store: &dyn MetaStore,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Items<R>> {
        let after = after.map(|id| self.key(id)).transpose()?;
        let page = store
            .range(Range {
                prefix: self.prefix(),
                after,
                limit,
            })
            .await?;
        let items: Vec<_> = page
            .entries
            .iter()
            .map(|e| self.decode(e))
            .collect::<Result<_>>()?;
        let next = items
            .last()
            .filter(|_| page.more)
            .map(|item| item.id.clone());
        Ok(Items {
            items,
            next,
            revision: page.revision,
        })
    }

    /// All records. For tables that are bounded elsewhere; pages may be of different revisions.
    ///
    /// # Errors
    /// As [`Table::list`].
    pub async fn all(self, store: &dyn MetaStore) -> Result<Vec<Item<R>>> {
        let mut page = self.list(store, None, PAGE_ENTRIES_MAX).await?;
        let mut items = page.items;
        while let Some(after) = page.next {
            page = self.list(store, Some(&after), PAGE_ENTRIES_MAX).await?;
            items.append(&mut page.items);
        }
        Ok(items)
    }

    /// Follows the table; decode what comes with [`Table::decode_event`].
    ///
    /// # Errors
    /// When the store is closed.
    pub fn watch(self, store: &dyn MetaStore) -> Result<Watch> {
        store.watch(&self.prefix())
    }

    /// The key of a record.
    ///
    /// # Errors
    /// [`Error::KeyLength`] if the id is empty or too long.
    pub fn key(self, id: &str) -> Result<Key> {
        if id.is_empty() {
            return Err(Error::KeyLength { len: 0 });
        }
        Key::new([self.prefix().as_slice(), id.as_bytes()].concat())
    }

    /// A change for a [`Txn`]: sets a record.
    ///
    /// # Errors
    /// [`Error::Record`] if it is too large, [`Error::KeyLength`] for a bad id.
    pub fn put_op(self, id: &str, record: &R) -> Result<Op> {
        let key = self.key(id)?;
        match record::encode(record) {
            Ok(bytes) => Ok(Op::Put(key, bytes.into())),
            Err(source) => Err(Error::Record { key, source }),
        }
    }

    /// A change for a [`Txn`]: removes a record.
    ///
    /// # Errors
    /// [`Error::KeyLength`] for a bad id.
    pub fn delete_op(self, id: &str) -> Result<Op> {
        self.key(id).map(Op::Delete)
    }

    /// Writes a new record: fails with a conflict if there is one.
    ///
    /// # Errors
    /// As [`Table::put_op`].
    pub fn create(self, txn: Txn, id: &str, record: &R) -> Result<Txn> {
        let op = self.put_op(id, record)?;
        Ok(txn.require(op.key().clone(), Precondition::Absent).op(op))
    }

    /// Writes a record that was read before: fails with a conflict if it changed since.
    ///
    /// # Errors
    /// As [`Table::put_op`].
    pub fn replace(self, txn: Txn, item: &Item<R>) -> Result<Txn> {
        let op = self.put_op(&item.id, &item.record)?;
        Ok(txn
            .require(op.key().clone(), Precondition::RevisionIs(item.revision))
            .op(op))
    }

    /// Removes a record that was read before: fails with a conflict if it changed since.
    ///
    /// # Errors
    /// [`Error::KeyLength`] for a bad id.
    pub fn remove(self, txn: Txn, item: &Item<R>) -> Result<Txn> {
        let key = self.key(&item.id)?;
        Ok(txn
            .require(key.clone(), Precondition::RevisionIs(item.revision))
            .delete(key))
    }

    /// Decodes an entry of this table.
    ///
    /// # Errors
    /// [`Error::Record`], or [`Error::NotATableKey`] for a key of another table.
    pub fn decode(self, entry: &Entry) -> Result<Item<R>> {
        let id = self.id(&entry.key)?;
        let record = record::decode(&entry.value).map_err(|source| Error::Record {
            key: entry.key.clone(),
            source,
        })?;
        Ok(Item {
            id,
            record,
            revision: entry.revision,
        })
    }

    /// Decodes a change of this table: the id, and the record unless it was removed.
    ///
    /// # Errors
    /// As [`Table::decode`].
    pub fn decode_event(self, event: &Event) -> Result<(String, Option<Item<R>>)> {
        let id = self.id(&event.key)?;
        let item = match &event.change {
            Change::Put(value) => {
                let (key, value) = (event.key.clone(), value.clone());
                Some(self.decode(&Entry {
                    key,
                    value,
                    revision: event.revision,
                })?)
            }
            Change::Delete => None,
        };
        Ok((id, item))
    }

    fn prefix(self) -> Vec<u8> {
        format!("{}/", R::KIND).into_bytes()
    }

    fn id(self, key: &Key) -> Result<String> {
        key.as_bytes()
            .strip_prefix(self.prefix().as_slice())
            .and_then(|id| std::str::from_utf8(id).ok())
            .map(str::to_owned)
            .ok_or_else(|| Error::NotATableKey { key: key.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::store::{MemoryStore, local::block_on};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Cat(u8);

    impl Record for Cat {
        const KIND: &'static str = "cat";
        const VERSION: u16 = 1;
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct CatFood(u8);

    impl Record for CatFood {
        const KIND: &'static str = "cat-food";
        const VERSION: u16 = 1;
    }

    const CATS: Table<Cat> = Table::new();
    const FOOD: Table<CatFood> = Table::new();

    #[test]
    fn tables_do_not_see_each_other() {
        let store = MemoryStore::new();
        block_on(async {
            CATS.put(&store, "tom", &Cat(1)).await.unwrap();
            FOOD.put(&store, "fish", &CatFood(2)).await.unwrap();
            let cats = CATS.all(&store).await.unwrap();
            assert_eq!(cats.len(), 1);
            assert_eq!((cats[0].id.as_str(), &cats[0].record), ("tom", &Cat(1)));
            assert_eq!(CATS.get(&store, "fish").await.unwrap(), None);
            CATS.delete(&store, "tom").await.unwrap();
            assert_eq!(CATS.all(&store).await.unwrap(), []);
        });
    }

    #[test]
    fn one_commit_covers_several_tables() {
        let store = MemoryStore::new();
        block_on(async {
            let txn = CATS.create(Txn::new(), "tom", &Cat(1)).unwrap();
            let txn = txn.op(FOOD.put_op("fish", &CatFood(2)).unwrap());
            store.commit(txn).await.unwrap();
            let again = CATS.create(Txn::new(), "tom", &Cat(9)).unwrap();
            assert!(store.commit(again).await.unwrap_err().is_conflict());

            let mut tom = CATS.get(&store, "tom").await.unwrap().unwrap();
            let stale = tom.clone();
            tom.record = Cat(2);
            store
                .commit(CATS.replace(Txn::new(), &tom).unwrap())
                .await
                .unwrap();
            for txn in [
                CATS.replace(Txn::new(), &stale),
                CATS.remove(Txn::new(), &stale),
            ] {
                assert!(store.commit(txn.unwrap()).await.unwrap_err().is_conflict());
            }
            assert_eq!(
                CATS.get(&store, "tom").await.unwrap().unwrap().record,
                Cat(2)
            );
        });
    }

    #[test]
    fn lists_in_pages_and_watches() {
        let store = MemoryStore::new();
        block_on(async {
            let mut watch = CATS.watch(&store).unwrap();
            for n in 0..5 {
                CATS.put(&store, &format!("c{n}"), &Cat(n)).await.unwrap();
            }
            CATS.delete(&store, "c0").await.unwrap();
            let page = CATS.list(&store, Some("c1"), 2).await.unwrap();
            let ids: Vec<_> = page.items.iter().map(|i| i.id.as_str()).collect();
            assert_eq!((ids, page.next.as_deref()), (vec!["c2", "c3"], Some("c3")));
            let first = CATS.decode_event(&watch.next().await.unwrap()).unwrap();
            assert_eq!(first.1.unwrap().record, Cat(0));
            for _ in 0..4 {
                watch.next().await.unwrap();
            }
            let gone = CATS.decode_event(&watch.next().await.unwrap()).unwrap();
            assert_eq!(gone, ("c0".into(), None));
        });
    }

    #[test]
    fn a_record_of_another_kind_is_an_error() {
        let store = MemoryStore::new();
        block_on(async {
            let op = FOOD.put_op("x", &CatFood(1)).unwrap();
            let Op::Put(_, bytes) = op else {
                panic!("a put")
            };
            store
                .commit(Txn::new().put(CATS.key("x").unwrap(), bytes))
                .await
                .unwrap();
            let error = CATS.get(&store, "x").await.unwrap_err();
            assert!(matches!(error, Error::Record { .. }), "{error}");
            assert!(CATS.key("").is_err());
        });
    }
}
