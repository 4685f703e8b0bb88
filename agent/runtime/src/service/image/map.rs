//! An ordered map from bytes to bytes that is cheap to clone and to compare with what it was
//! cloned from.
//!
//! Entries lie in sorted leaves that clones share; a change copies one leaf, and the list of
//! leaves once after each clone (10⁵ entries: some 2,500 pointers). [`Map::diff`] skips leaves
//! that both maps share.
//!
//! Invariants: no leaf is empty or longer than [`LEAF_MAX`]; keys grow strictly, within leaves
//! and from leaf to leaf; `bytes` is the sum of [`weight`] over all entries.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

/// Entries of one leaf: what a change copies.
const LEAF_MAX: usize = 64;
/// A leaf smaller than this joins a neighbour if both fit one leaf.
const LEAF_MIN: usize = 16;
/// What an entry counts beyond its key and value, bytes: what the host spends on it.
pub(crate) const ENTRY_BYTES: u64 = 32;

type Entry = (Bytes, Bytes);
type Leaf = Vec<Entry>;

/// The map.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map {
    leaves: Arc<Vec<Arc<Leaf>>>,
    len: usize,
    bytes: u64,
}

/// What an entry counts towards a limit.
pub(crate) fn weight(key: &[u8], value: &[u8]) -> u64 {
    ENTRY_BYTES + key.len() as u64 + value.len() as u64
}

impl Map {
    /// Entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What all entries count together.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The leaf in which `key` is or would be.
    fn leaf_of(&self, key: &[u8]) -> usize {
        let after = self.leaves.partition_point(|leaf| leaf[0].0[..] <= *key);
        after.saturating_sub(1)
    }

    /// Where `key` is, or the place for it.
    fn find(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let at = self.leaf_of(key);
        let within = self.leaves.get(at).map_or(Err(0), |leaf| {
            leaf.binary_search_by(|(other, _)| other[..].cmp(key))
        });
        (at, within)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let (leaf, within) = self.find(key);
        within.ok().map(|n| &self.leaves[leaf][n].1)
    }

    /// Sets `key`.
    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) {
        let (at, within) = self.find(&key);
        self.bytes += weight(&key, &value);
        let leaves = Arc::make_mut(&mut self.leaves);
        if leaves.is_empty() {
            leaves.push(Arc::default());
        }
        let leaf = Arc::make_mut(&mut leaves[at]);
        match within {
            Ok(n) => {
                let old = std::mem::replace(&mut leaf[n].1, value);
                self.bytes -= weight(&key, &old);
            }
            Err(n) => {
                leaf.insert(n, (key, value));
                self.len += 1;
                if leaf.len() > LEAF_MAX {
                    let upper = leaf.split_off(leaf.len() / 2);
                    leaves.insert(at + 1, Arc::new(upper));
                }
            }
        }
    }

    /// Removes `key`; whether it was there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let (at, Ok(within)) = self.find(key) else {
            return false;
        };
        let leaves = Arc::make_mut(&mut self.leaves);
        let leaf = Arc::make_mut(&mut leaves[at]);
        let (key, value) = leaf.remove(within);
        self.bytes -= weight(&key, &value);
        self.len -= 1;
        if leaf.is_empty() {
            leaves.remove(at);
        } else if leaf.len() < LEAF_MIN {
            join(leaves, at);
        }
        true
    }

    /// The entry with the least key greater than `key`; the first one without `key`.
    pub(crate) fn after(&self, key: Option<&[u8]>) -> Option<(&[u8], &Bytes)> {
        let (mut leaf, within) = key.map_or((0, Err(0)), |key| self.find(key));
        let mut next = within.map_or_else(|place| place, |found| found + 1);
        if next >= self.leaves.get(leaf)?.len() {
            (leaf, next) = (leaf + 1, 0);
        }
        let (key, value) = self.leaves.get(leaf)?.get(next)?;
        Some((&key[..], value))
    }

    /// The entries whose keys begin with `prefix`, in order.
    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a Bytes)> {
        let (leaf, within) = self.find(prefix);
        let within = within.unwrap_or_else(|place| place);
        let leaves = self.leaves.get(leaf..).unwrap_or(&[]);
        let entries = leaves.iter().flat_map(|leaf| leaf.iter()).skip(within);
        entries
            .map(|(key, value)| (&key[..], value))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// All entries, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Bytes, Bytes)> {
        self.leaves.iter().flat_map(|leaf| leaf.iter())
    }

    /// What to set (`Some`) and remove (`None`) to make `self` out of `since`, in order of keys.
    pub(crate) fn diff<'a>(&'a self, since: &'a Map) -> Vec<(&'a Bytes, Option<&'a Bytes>)> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (Cursor::new(since), Cursor::new(self));
        loop {
            if old.skip_shared(&mut new) {
                continue;
            }
            let order = match (old.entry(), new.entry()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            if let (Some((key, _)), Ordering::Less) = (old.entry(), order) {
                changes.push((key, None));
            }
            if let (Some((key, value)), Ordering::Greater) = (new.entry(), order) {
                changes.push((key, Some(value)));
            }
            if let (Some((_, before)), Some((key, after)), Ordering::Equal) =
                (old.entry(), new.entry(), order)
                && before != after
            {
                changes.push((key, Some(after)));
            }
            if order != Ordering::Greater {
                old.step();
            }
            if order != Ordering::Less {
                new.step();
            }
        }
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for Map {}

/// Puts the small leaf `at` and a neighbour together, if they fit.
fn join(leaves: &mut Vec<Arc<Leaf>>, at: usize) {
    let first = if at + 1 < leaves.len() {
        at
    } else {
        at.saturating_sub(1)
    };
    let Some([a, b]) = leaves.get(first..first + 2) else {
        return;
    };
    if a.len() + b.len() > LEAF_MAX {
        return;
    }
    let upper = leaves.remove(first + 1);
    Arc::make_mut(&mut leaves[first]).extend(upper.iter().cloned());
}

/// A place in a map.
struct Cursor<'a> {
    leaves: &'a [Arc<Leaf>],
    within: usize,
}

impl<'a> Cursor<'a> {
    fn new(map: &'a Map) -> Self {
        Self {
            leaves: &map.leaves,
            within: 0,
        }
    }

    fn entry(&self) -> Option<&'a Entry> {
        self.leaves.first().and_then(|leaf| leaf.get(self.within))
    }

    fn step(&mut self) {
        self.within += 1;
        if self
            .leaves
            .first()
            .is_some_and(|leaf| self.within >= leaf.len())
        {
            self.leaves = &self.leaves[1..];
            self.within = 0;
        }
    }

    /// Moves both past a leaf that they share.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = match (self.leaves.first(), other.leaves.first()) {
            (Some(a), Some(b)) => self.within == 0 && other.within == 0 && Arc::ptr_eq(a, b),
            _ => false,
        };
        if shared {
            self.leaves = &self.leaves[1..];
            other.leaves = &other.leaves[1..];
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &Map, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let flat: Vec<_> = map.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let expected: Vec<_> = model.clone().into_iter().collect();
        assert_eq!(flat, expected);
        assert_eq!(map.len(), model.len());
        let bytes: u64 = model.iter().map(|(k, v)| weight(k, v)).sum();
        assert_eq!(map.bytes(), bytes);
        assert!(
            map.leaves
                .iter()
                .all(|l| !l.is_empty() && l.len() <= LEAF_MAX)
        );
    }

    fn changes() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec(
            (0..600u16, prop::option::weighted(0.6, any::<u8>())),
            0..900,
        )
    }

    fn change(map: &mut Map, model: &mut BTreeMap<Vec<u8>, Vec<u8>>, n: u16, value: Option<u8>) {
        let key = n.to_be_bytes().to_vec();
        match value {
            Some(value) => {
                map.insert(key.clone().into(), vec![value].into());
                model.insert(key, vec![value]);
            }
            None => assert_eq!(map.remove(&key), model.remove(&key).is_some()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn does_what_a_tree_map_does(first in changes(), second in changes(), probe in 0..600u16) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            for (n, value) in first {
                change(&mut map, &mut model, n, value);
            }
            check(&map, &model);
            let (before, model_before) = (map.clone(), model.clone());
            for (n, value) in second {
                change(&mut map, &mut model, n, value);
            }
            check(&map, &model);
            check(&before, &model_before);

            let mut rebuilt = before.clone();
            for (key, value) in map.diff(&before) {
                prop_assert_ne!(value, before.get(key));
                match value {
                    Some(value) => rebuilt.insert(key.clone(), value.clone()),
                    None => prop_assert!(rebuilt.remove(key)),
                }
            }
            prop_assert_eq!(&rebuilt, &map);

            let key = probe.to_be_bytes().to_vec();
            prop_assert_eq!(map.get(&key).map(|v| v.to_vec()), model.get(&key).cloned());
            let bounds = (std::ops::Bound::Excluded(key.clone()), std::ops::Bound::Unbounded);
            let next = model.range(bounds).next().map(|(k, _)| k.clone());
            prop_assert_eq!(map.after(Some(&key)).map(|(k, _)| k.to_vec()), next);
            prop_assert_eq!(
                map.after(None).map(|(k, _)| k.to_vec()),
                model.keys().next().cloned()
            );
            let prefix = &key[..1];
            let ranged: Vec<_> = map.range(prefix).map(|(k, _)| k.to_vec()).collect();
            let expected: Vec<_> =
                model.keys().filter(|k| k.starts_with(prefix)).cloned().collect();
            prop_assert_eq!(ranged, expected);
        }
    }
}
