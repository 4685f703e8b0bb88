//! An instance's state between two calls, as a value.
//!
//! Cloning an image copies nothing: clones share pages and entries, and what changes is copied
//! in small pieces. The digest of the module and the layout (types of the hidden globals) travel
//! with it but are not part of the state: equality leaves out the digest.
//!
//! Limits: 4 GiB of memory, 65,536 globals; the rest is bounded by the limits of the service
//! that made it, and by the length of the bytes when decoded.

mod codec;
mod delta;
mod error;
pub(crate) mod map;
pub(crate) mod pages;
mod patch;
mod sections;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use self::map::Map;
use self::pages::{PAGE_BYTES, Pages};
use crate::wasm::ModuleDigest;

pub use error::Error;

/// Wasm pages of the largest memory.
pub(crate) const WASM_PAGES_MAX: u32 = 65_536;

/// The type of a global, as images name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum GlobalType {
    I32 = 1,
    I64 = 2,
    F32 = 3,
    F64 = 4,
    V128 = 5,
}

impl GlobalType {
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::I32, Self::I64, Self::F32, Self::F64, Self::V128]
            .into_iter()
            .find(|ty| *ty as u8 == number)
    }
}

/// A global's type and bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Global {
    pub(crate) ty: GlobalType,
    pub(crate) bits: u128,
}

/// The numbers that an instance counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    /// Calls that ended well.
    pub(crate) seq: u64,
    /// Effects that carry a number, and calls to services.
    pub(crate) effects: u64,
    /// Client streams opened.
    pub(crate) streams: u64,
    /// Random bytes given out.
    pub(crate) random: u64,
    /// The guest's clock, ns since 1970: it never goes back.
    pub(crate) clock_ns: u64,
    /// Changes that the host made between calls.
    pub(crate) desk: u64,
    /// Version of the state's form.
    pub(crate) schema: u32,
}

/// What the host keeps for the guest: all but memory and globals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) counters: Counters,
    pub(crate) kv: Map,
    pub(crate) timers: Arc<BTreeMap<u64, u64>>,
    pub(crate) streams: Arc<BTreeSet<u64>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Inner {
    pub(crate) module: ModuleDigest,
    pub(crate) wasm_pages: u32,
    pub(crate) pages: Pages,
    pub(crate) globals: Vec<Global>,
    pub(crate) held: Held,
    pub(crate) desk: Map,
}

/// An instance's state; see the module's head.
#[derive(Debug, Clone)]
pub struct Image(pub(crate) Arc<Inner>);

impl Image {
    /// The image of an instance of `module` to which nothing has happened yet.
    pub(crate) fn new(module: ModuleDigest) -> Self {
        Self(Arc::new(Inner {
            module,
            wasm_pages: 0,
            pages: Pages::default(),
            globals: Vec::new(),
            held: Held::default(),
            desk: Map::default(),
        }))
    }

    /// To change it; copies pointers if it is shared.
    pub(crate) fn inner_mut(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }

    /// Whether the two are the same value, not only equal ones.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The module it was taken from.
    #[must_use]
    pub fn module(&self) -> &ModuleDigest {
        &self.0.module
    }

    /// Calls that ended well since the instance was created (its creation and upgrades count).
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.0.held.counters.seq
    }

    /// Version of the state's form, as `hop3_schema` had it.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.0.held.counters.schema
    }

    /// Bytes that it holds: pages that are not all zero, keys and values of the guest and of
    /// the desk.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        let pages = self.0.pages.present() * PAGE_BYTES;
        pages as u64 + self.0.held.kv.bytes() + self.0.desk.bytes()
    }

    /// Size of the linear memory, zeros included.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.0.wasm_pages) * 65_536
    }

    /// The timer that is due first and when, ms since 1970. Of several at once, the least.
    #[must_use]
    pub fn next_timer(&self) -> Option<(u64, u64)> {
        let timers = self.0.held.timers.iter();
        let first = timers.min_by_key(|(timer, at_ms)| (**at_ms, **timer));
        first.map(|(timer, at_ms)| (*timer, *at_ms))
    }

    /// The client streams that are open, in order.
    pub fn streams(&self) -> impl Iterator<Item = u64> {
        self.0.held.streams.iter().copied()
    }

    /// A value of the desk: the host's own entries.
    #[must_use]
    pub fn desk(&self, key: &[u8]) -> Option<&Bytes> {
        self.0.desk.get(key)
    }

    /// The desk's entries whose keys begin with `prefix`, in order.
    pub fn desk_range<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a Bytes)> {
        self.0.desk.range(prefix)
    }

    /// What the globals' types are, as a hash: only a module with the same can take it.
    pub(crate) fn layout(&self) -> [u8; 32] {
        layout_of(self.0.globals.iter().map(|global| global.ty))
    }
}

/// The hash of a layout.
pub(crate) fn layout_of(types: impl Iterator<Item = GlobalType>) -> [u8; 32] {
    let types: Vec<u8> = types.map(|ty| ty as u8).collect();
    blake3::derive_key("hop3 2026 layout of a service's globals", &types)
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&*self.0, &*other.0);
        a.wasm_pages == b.wasm_pages
            && a.globals == b.globals
            && a.held == b.held
            && a.desk == b.desk
            && a.pages == b.pages
    }
}

impl Eq for Image {}
