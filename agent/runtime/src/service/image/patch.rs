//! The bytes in which a page differs from what it was: runs with their place.
//!
//! ```text
//! runs 2 · (offset 2 · length 2 · bytes)*
//! ```
//!
//! Runs are in order, none is empty, and between two of them lie at least [`GAP`] bytes that did
//! not change: fewer cost less as part of a run than as an end and a beginning.

use super::Error;
use super::codec::Fields;
use super::pages::PAGE_BYTES;

/// Equal bytes that end a run: what a run's place takes.
const GAP: usize = 4;
const RUN_HEAD: usize = 4;
/// A patch this long saves too little over the whole page.
const PATCH_BYTES_MAX: usize = PAGE_BYTES * 3 / 4;

/// The runs of a page that changed.
pub(super) struct Patch<'a> {
    runs: Vec<(usize, &'a [u8])>,
}

/// How `new` comes out of `old`; `None` if the whole page is hardly longer.
pub(super) fn between<'a>(old: &[u8; PAGE_BYTES], new: &'a [u8; PAGE_BYTES]) -> Option<Patch<'a>> {
    let differs = |at: &usize| old[*at] != new[*at];
    let (mut runs, mut bytes, mut at) = (Vec::new(), 2, 0);
    while let Some(start) = next(old, new, at) {
        let mut end = start + 1;
        while let Some(more) = (end..PAGE_BYTES.min(end + GAP)).find(differs) {
            end = more + 1;
        }
        bytes += RUN_HEAD + end - start;
        if bytes > PATCH_BYTES_MAX {
            return None;
        }
        runs.push((start, &new[start..end]));
        at = end;
    }
    Some(Patch { runs })
}

/// The first byte from `at` on that differs. Most do not: they are compared 64 at a time.
fn next(old: &[u8; PAGE_BYTES], new: &[u8; PAGE_BYTES], at: usize) -> Option<usize> {
    const STRIDE: usize = 64;
    let mut from = at;
    while from < PAGE_BYTES {
        let to = PAGE_BYTES.min(from + STRIDE);
        if old[from..to] != new[from..to] {
            return (from..to).find(|&at| old[at] != new[at]);
        }
        from = to;
    }
    None
}

impl Patch<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        // A page is shorter than 2^16 bytes, and so is everything of it.
        let short = |n: usize| (n as u16).to_le_bytes();
        out.extend(short(self.runs.len()));
        for (offset, bytes) in &self.runs {
            out.extend(short(*offset));
            out.extend(short(bytes.len()));
            out.extend_from_slice(bytes);
        }
    }
}

/// The page that the patch in `fields` makes out of `old`.
pub(super) fn apply(
    old: &[u8; PAGE_BYTES],
    fields: &mut Fields<'_>,
) -> Result<[u8; PAGE_BYTES], Error> {
    let (mut page, mut free) = (*old, 0);
    for _ in 0..fields.u16()? {
        let (offset, len) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
        let bytes = fields.take(len)?;
        if offset < free || bytes.is_empty() {
            return Err(fields.invalid("runs of a page out of order"));
        }
        let Some(place) = page.get_mut(offset..offset + len) else {
            return Err(fields.invalid("a run beyond its page"));
        };
        place.copy_from_slice(bytes);
        free = offset + len;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn patched(old: &[u8; PAGE_BYTES], patch: &[u8]) -> Result<[u8; PAGE_BYTES], Error> {
        let mut fields = Fields::of("memory", patch);
        let page = apply(old, &mut fields)?;
        fields.end().map(|()| page)
    }

    #[test]
    fn near_changes_are_one_run_and_far_ones_two() {
        let old = [7; PAGE_BYTES];
        let mut new = old;
        (new[0], new[4], new[9], new[PAGE_BYTES - 1]) = (1, 2, 3, 4);
        let patch = between(&old, &new).unwrap();
        let runs: Vec<_> = patch
            .runs
            .iter()
            .map(|(at, run)| (*at, run.len()))
            .collect();
        assert_eq!(runs, [(0, 5), (9, 1), (PAGE_BYTES - 1, 1)]);
        assert!(between(&old, &old).unwrap().is_empty());
        assert!(between(&old, &[1; PAGE_BYTES]).is_none());
    }

    #[test]
    fn wrong_runs_are_refused() {
        let old = [7; PAGE_BYTES];
        for (patch, why) in [
            (&b"\x01\x00\xff\x0f\x02\x00ab"[..], "a run beyond its page"),
            (b"\x01\x00\x00\x00\x00\x00", "runs of a page out of order"),
            (
                b"\x02\x00\x05\x00\x01\x00a\x05\x00\x01\x00b",
                "runs of a page out of order",
            ),
            (b"\x01\x00\x00\x00\x09\x00a", "a field is cut short"),
        ] {
            let section = "memory";
            assert_eq!(patched(&old, patch), Err(Error::Invalid { section, why }));
        }
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_new_page(
            base in any::<u8>(),
            writes in prop::collection::vec(
                (0..PAGE_BYTES, prop::collection::vec(any::<u8>(), 1..300)), 0..12,
            ),
        ) {
            let (old, mut new) = ([base; PAGE_BYTES], [base; PAGE_BYTES]);
            for (at, bytes) in &writes {
                let len = bytes.len().min(PAGE_BYTES - at);
                new[*at..at + len].copy_from_slice(&bytes[..len]);
            }
            let mut out = Vec::new();
            let Some(patch) = between(&old, &new) else { return Ok(()) };
            patch.put(&mut out);
            prop_assert!(out.len() <= PATCH_BYTES_MAX);
            prop_assert_eq!(patched(&old, &out).unwrap(), new);
        }
    }
}
