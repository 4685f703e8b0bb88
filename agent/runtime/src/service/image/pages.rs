//! The contents of a linear memory, in shared 4 KiB pages.
//!
//! Pages lie in blocks of 256 that clones share; a change copies one block's pointers. A page
//! of zeros is absent, so equal contents have one form.

use std::sync::Arc;

/// Bytes of a page: what dirty tracking sees.
pub(crate) const PAGE_BYTES: usize = 4_096;
/// Pages of ours in a page of Wasm.
pub(crate) const PER_WASM_PAGE: usize = 65_536 / PAGE_BYTES;
/// Pages of a block: 1 MiB of memory.
const BLOCK_PAGES: usize = 256;

/// The contents of one page.
pub(crate) type Page = Arc<[u8; PAGE_BYTES]>;
type Block = [Option<Page>; BLOCK_PAGES];

/// What an absent page holds.
pub(crate) static ZERO: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// The pages. How many there may be is the owner's to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pages {
    blocks: Vec<Option<Arc<Block>>>,
    present: usize,
}

impl Pages {
    /// Pages that are not all zero.
    pub(crate) fn present(&self) -> usize {
        self.present
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Page> {
        let block = self.blocks.get(index / BLOCK_PAGES)?.as_ref()?;
        block[index % BLOCK_PAGES].as_ref()
    }

    /// What the page holds.
    pub(crate) fn bytes(&self, index: usize) -> &[u8; PAGE_BYTES] {
        match self.get(index) {
            Some(page) => page,
            None => &ZERO,
        }
    }

    /// Sets a page to a copy of `bytes`.
    pub(crate) fn set(&mut self, index: usize, bytes: &[u8; PAGE_BYTES]) {
        let page = (*bytes != ZERO).then(|| Arc::new(*bytes));
        self.put(index, page);
    }

    /// Sets a page that is known not to be all zero, or clears it.
    pub(crate) fn put(&mut self, index: usize, page: Option<Page>) {
        let (block, within) = (index / BLOCK_PAGES, index % BLOCK_PAGES);
        if block >= self.blocks.len() {
            if page.is_none() {
                return;
            }
            self.blocks.resize(block + 1, None);
        }
        if page.is_none() && self.blocks[block].is_none() {
            return;
        }
        let slot =
            self.blocks[block].get_or_insert_with(|| Arc::new([const { None }; BLOCK_PAGES]));
        let (was, is) = (slot[within].is_some(), page.is_some());
        Arc::make_mut(slot)[within] = page;
        self.present = self.present + usize::from(is) - usize::from(was);
    }

    /// The pages that are not all zero, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Page)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(n, block)| {
            let pages = block.iter().flat_map(|block| block.iter().enumerate());
            pages.filter_map(move |(m, page)| Some((n * BLOCK_PAGES + m, page.as_ref()?)))
        })
    }

    /// The pages in which `self` may differ from `other`: those that they do not share.
    pub(crate) fn unshared<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (usize, Option<&'a Page>)> {
        let blocks = self.blocks.len().max(other.blocks.len());
        let differing = (0..blocks).filter_map(move |n| {
            let mine = self.blocks.get(n).and_then(Option::as_ref);
            let theirs = other.blocks.get(n).and_then(Option::as_ref);
            let same = match (mine, theirs) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            (!same).then_some((n, mine, theirs))
        });
        differing.flat_map(|(n, mine, theirs)| {
            (0..BLOCK_PAGES).filter_map(move |m| {
                let mine = mine.and_then(|block| block[m].as_ref());
                let theirs = theirs.and_then(|block| block[m].as_ref());
                let same = match (mine, theirs) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                };
                (!same).then_some((n * BLOCK_PAGES + m, mine))
            })
        })
    }
}

impl PartialEq for Pages {
    fn eq(&self, other: &Self) -> bool {
        self.present == other.present
            && self
                .unshared(other)
                .all(|(index, _)| self.bytes(index) == other.bytes(index))
    }
}

impl Eq for Pages {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zero_pages_are_absent_and_sharing_is_seen() {
        let mut a = Pages::default();
        a.set(3, &[7; PAGE_BYTES]);
        a.set(1_000, &[8; PAGE_BYTES]);
        a.set(5_000, &ZERO);
        assert_eq!((a.present(), a.blocks.len()), (2, 4));
        let mut b = a.clone();
        b.set(3, &ZERO);
        b.set(4, &[9; PAGE_BYTES]);
        b.set(4_000, &[1; PAGE_BYTES]);
        assert_eq!(a.bytes(3), &[7; PAGE_BYTES]);
        assert_eq!(b.bytes(3), &ZERO);
        let changed: Vec<_> = b
            .unshared(&a)
            .map(|(n, page)| (n, page.is_some()))
            .collect();
        assert_eq!(changed, [(3, false), (4, true), (4_000, true)]);
        assert_eq!(
            b.iter().map(|(n, _)| n).collect::<Vec<_>>(),
            [4, 1_000, 4_000]
        );
        assert_ne!(a, b);
        b.set(3, &[7; PAGE_BYTES]);
        b.set(4, &ZERO);
        b.set(4_000, &ZERO);
        assert_eq!(a, b);
    }
}
