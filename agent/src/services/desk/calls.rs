//! Calls of the guest that have not ended, with what is needed to make them again after a restart.
//!
//! Limits: [`CALLS_MAX`]; requests of [`REQUEST_BYTES_MAX`] together are kept, those beyond are not
//! made again.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{CALLS_MAX, Writes, kind, numbered, value};

/// Bytes of kept requests.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

/// A call as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The epoch in which it was made: with its number it names the call for ever.
    pub epoch: u64,
    /// Which service.
    pub service: String,
    /// `GET` …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Body.
    pub body: Bytes,
}

impl Call {
    fn bytes(&self) -> usize {
        self.service.len() + self.path.len() + self.body.len()
    }
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub struct Calls {
    by: BTreeMap<u64, Option<Call>>,
    bytes: usize,
}

impl Calls {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by.len()
    }

    /// In the order in which they were made; without the request where it is not kept.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Option<&Call>)> {
        self.by
            .iter()
            .map(|(number, call)| (*number, call.as_ref()))
    }

    pub(super) fn load(&mut self, number: u64, bytes: &[u8]) -> Option<()> {
        let call: Option<Call> = match bytes {
            [] => None,
            bytes => Some(value(bytes)?),
        };
        self.insert(number, call);
        Some(())
    }

    fn insert(&mut self, number: u64, call: Option<Call>) {
        self.bytes += call.as_ref().map_or(0, Call::bytes);
        if let Some(Some(before)) = self.by.insert(number, call) {
            self.bytes -= before.bytes();
        }
    }

    pub(super) fn begin(&mut self, number: u64, call: Option<Call>, writes: &mut Writes) -> bool {
        if self.by.len() >= CALLS_MAX {
            return false;
        }
        let call = call.filter(|call| self.bytes + call.bytes() <= REQUEST_BYTES_MAX);
        let key = numbered(kind::CALL, &[number]);
        match &call {
            Some(call) => writes.put(key, call),
            None => writes.put(key, &()),
        };
        self.insert(number, call);
        true
    }

    pub(super) fn end(&mut self, number: u64, writes: &mut Writes) -> bool {
        let Some(call) = self.by.remove(&number) else {
            return false;
        };
        self.bytes -= call.as_ref().map_or(0, Call::bytes);
        writes.remove(numbered(kind::CALL, &[number]));
        true
    }
}
