//! The first reply under each idempotency key.
//!
//! Limits: [`KEYS_MAX`] keys, [`BYTES_MAX`] bytes, [`AGE_MS_MAX`]; the oldest go first. A reply
//! that is larger than all of it leaves a mark, so that its request is still not done twice.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use hop3_common::wire::ServiceReply;
use serde::{Deserialize, Serialize};

use super::{Writes, kind, value};

/// Keys kept.
pub const KEYS_MAX: usize = 1024;
/// Bytes of kept keys and replies.
pub const BYTES_MAX: usize = 1 << 20;
/// Time that a reply is kept at most, ms.
pub const AGE_MS_MAX: u64 = 24 * 3_600_000;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// The first reply.
    Reply(ServiceReply),
    /// The request was done; its reply was too large to be kept.
    TooLarge,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    /// Grows with every key.
    order: u64,
    at_ms: u64,
    /// `None`: too large.
    reply: Option<ServiceReply>,
}

#[derive(Debug, PartialEq)]
struct Slot {
    order: u64,
    at_ms: u64,
    bytes: Bytes,
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub struct Replies {
    by: BTreeMap<String, Slot>,
    /// Keys by age.
    order: BTreeMap<u64, String>,
    bytes: usize,
}

fn key_of(key: &str) -> Vec<u8> {
    let mut bytes = vec![kind::REPLY];
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

fn size(key: &str, bytes: &Bytes) -> usize {
    key.len() + bytes.len()
}

impl Replies {
    pub(super) fn load(&mut self, key: &str, bytes: &Bytes) -> Option<()> {
        let Stored { order, at_ms, .. } = value(bytes)?;
        let bytes = bytes.clone();
        self.insert(
            key,
            Slot {
                order,
                at_ms,
                bytes,
            },
        );
        Some(())
    }

    fn insert(&mut self, key: &str, slot: Slot) {
        self.bytes += size(key, &slot.bytes);
        self.order.insert(slot.order, key.to_owned());
        self.by.insert(key.to_owned(), slot);
    }

    /// What was answered under `key`, if it is still known.
    #[must_use]
    pub fn get(&self, key: &str, now_ms: u64) -> Option<Known> {
        let slot = self.by.get(key)?;
        if now_ms.saturating_sub(slot.at_ms) > AGE_MS_MAX {
            return None;
        }
        let stored: Stored = value(&slot.bytes)?;
        Some(stored.reply.map_or(Known::TooLarge, Known::Reply))
    }

    /// Keys kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by.is_empty()
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn keep(
        &mut self,
        key: &str,
        reply: &ServiceReply,
        now_ms: u64,
        writes: &mut Writes,
    ) {
        if self.get(key, now_ms).is_some() {
            return;
        }
        self.remove(key, writes);
        let order = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
        let stored = |reply| Stored {
            order,
            at_ms: now_ms,
            reply,
        };
        let mut bytes = writes.put(key_of(key), &stored(Some(reply.clone())));
        if size(key, &bytes) > BYTES_MAX {
            bytes = writes.put(key_of(key), &stored(None));
        }
        self.insert(
            key,
            Slot {
                order,
                at_ms: now_ms,
                bytes,
            },
        );
        self.shrink(now_ms, writes);
    }

    /// Drops the oldest until the bounds hold.
    fn shrink(&mut self, now_ms: u64, writes: &mut Writes) {
        let mut gone = VecDeque::new();
        let (mut len, mut bytes) = (self.by.len(), self.bytes);
        for key in self.order.values() {
            let slot = &self.by[key];
            let old = now_ms.saturating_sub(slot.at_ms) > AGE_MS_MAX;
            if !old && len <= KEYS_MAX && bytes <= BYTES_MAX {
                break;
            }
            len -= 1;
            bytes -= size(key, &slot.bytes);
            gone.push_back(key.clone());
        }
        for key in gone {
            self.remove(&key, writes);
        }
    }

    fn remove(&mut self, key: &str, writes: &mut Writes) {
        if let Some(slot) = self.by.remove(key) {
            self.order.remove(&slot.order);
            self.bytes -= size(key, &slot.bytes);
            writes.remove(key_of(key));
        }
    }
}
