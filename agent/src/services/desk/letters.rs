//! Messages of the guest that not every subscriber has, by number: they only grow.
//!
//! Limits: the guest is refused more than
//! [`LETTERS_MAX`](hop3_runtime::service::LETTERS_MAX) of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use hop3_runtime::service::Letters as Size;
use serde::{Deserialize, Serialize};

use super::{Writes, kind, numbered};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The topic.
    pub topic: String,
    /// What.
    pub payload: Bytes,
}

impl Letter {
    fn bytes(&self) -> u64 {
        (self.topic.len() + self.payload.len()) as u64
    }
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub struct Letters {
    by: BTreeMap<u64, Letter>,
    bytes: u64,
}

impl Letters {
    pub(super) fn load(&mut self, number: u64, letter: Letter) {
        self.bytes += letter.bytes();
        if let Some(before) = self.by.insert(number, letter) {
            self.bytes -= before.bytes();
        }
    }

    pub(super) fn keep(&mut self, number: u64, letter: Letter, writes: &mut Writes) {
        writes.put(numbered(kind::LETTER, &[number]), &letter);
        self.load(number, letter);
    }

    /// All up to `number` have arrived. Whether there were any.
    pub(super) fn arrived(&mut self, number: u64, writes: &mut Writes) -> bool {
        let mut any = false;
        while let Some(first) = self.by.first_entry().filter(|first| *first.key() <= number) {
            let (number, letter) = first.remove_entry();
            self.bytes -= letter.bytes();
            writes.remove(numbered(kind::LETTER, &[number]));
            any = true;
        }
        any
    }

    /// In the order in which they were published.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Letter)> {
        self.by.iter().map(|(number, letter)| (*number, letter))
    }

    /// How many, and their bytes.
    #[must_use]
    pub fn size(&self) -> Size {
        Size {
            count: self.by.len(),
            bytes: self.bytes,
        }
    }
}
