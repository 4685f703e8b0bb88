#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

/// Page-aligned memory of its own.
struct Memory(Vec<u8>, usize);

impl Memory {
    const PAGES: usize = 300;

    fn new() -> Self {
        let raw = vec![0; (Self::PAGES + 1) * PAGE_BYTES];
        let offset = raw.as_ptr().align_offset(PAGE_BYTES);
        Self(raw, offset)
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0[self.1..][..Self::PAGES * PAGE_BYTES]
    }
}

fn kernels() -> Vec<Option<Arc<Kernel>>> {
    // Where the kernel cannot, the engine does not use it either.
    [None]
        .into_iter()
        .chain(Kernel::open().ok().map(Some))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn both_ways_find_exactly_what_differs(
        rounds in prop::collection::vec(
            prop::collection::vec((0..Memory::PAGES * PAGE_BYTES, any::<u8>()), 0..40), 1..6),
        grown in 1..=Memory::PAGES,
    ) {
        for kernel in kernels() {
            let mut memory = Memory::new();
            let mut pages = Pages::default();
            let size = grown * PAGE_BYTES;
            let mut tracker = Tracker::start(kernel.as_ref(), &memory.bytes()[..size]);
            for (n, writes) in rounds.iter().enumerate() {
                // From the second round on all of it: the memory has grown.
                let size = if n == 0 { size } else { Memory::PAGES * PAGE_BYTES };
                for (at, byte) in writes {
                    if *at < size {
                        memory.bytes()[*at] = *byte;
                    }
                }
                let before = pages.clone();
                let changed = tracker.collect(&memory.bytes()[..size], &mut pages);
                prop_assert_eq!(changed, pages.unshared(&before).count());
                for page in 0..size / PAGE_BYTES {
                    let bytes = &memory.bytes()[page * PAGE_BYTES..][..PAGE_BYTES];
                    prop_assert_eq!(&pages.bytes(page)[..], bytes);
                }
            }
        }
    }
}

/// Says in the test's output which way the other tests went.
#[test]
fn the_kernel_is_used_where_it_can() {
    match Kernel::open() {
        Ok(kernel) => {
            let mut memory = Memory::new();
            let tracker = Tracker::start(Some(&kernel), memory.bytes());
            assert!(matches!(tracker, Tracker::Kernel(_)));
        }
        Err(error) => tracing::warn!(%error, "no kernel tracking on this machine"),
    }
}
