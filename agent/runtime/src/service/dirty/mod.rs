//! Which pages of a linear memory differ from the image: found after every call.
//!
//! Two ways give the same answer. The kernel's: written pages are reported by `PAGEMAP_SCAN` on
//! write-protected memory, and only those are compared. The portable one: every page is
//! compared. Whatever goes wrong with the first, the second takes over; a page too many costs
//! a comparison, a page too few would lose data and is what the tests look for.

#[cfg(target_os = "linux")]
mod kernel;
#[cfg(not(target_os = "linux"))]
#[path = "no_kernel.rs"]
mod kernel;

use std::sync::Arc;

use tracing::warn;

use super::image::pages::{PAGE_BYTES, Pages};

pub(super) use self::kernel::Kernel;

/// Finds the pages that changed, for one memory.
pub(super) enum Tracker {
    /// Ask the kernel.
    Kernel(kernel::Watch),
    /// Compare everything.
    Compare,
}

impl Tracker {
    /// Begins to track. What was written before counts as unchanged: the caller has just made
    /// memory and image equal.
    pub(super) fn start(kernel: Option<&Arc<Kernel>>, memory: &[u8]) -> Self {
        let Some(kernel) = kernel else {
            return Self::Compare;
        };
        match kernel::Watch::start(Arc::clone(kernel), memory) {
            Ok(watch) => Self::Kernel(watch),
            Err(error) => {
                warn!(%error, "memory cannot be watched by the kernel; comparing pages instead");
                Self::Compare
            }
        }
    }

    /// Copies the pages that differ into `pages`; how many did.
    pub(super) fn collect(&mut self, memory: &[u8], pages: &mut Pages) -> usize {
        if let Self::Kernel(watch) = self {
            let mut changed = 0;
            let written = watch.written(memory, |range| {
                changed += range.filter(|n| take(*n, memory, pages)).count();
            });
            match written {
                Ok(()) => return changed,
                Err(error) => {
                    warn!(%error, "the kernel watches memory no more; comparing pages instead");
                    *self = Self::Compare;
                }
            }
        }
        let count = memory.len() / PAGE_BYTES;
        (0..count).filter(|n| take(*n, memory, pages)).count()
    }
}

/// Takes a page into `pages` if it differs.
fn take(index: usize, memory: &[u8], pages: &mut Pages) -> bool {
    let Some(bytes) = memory[index * PAGE_BYTES..].first_chunk::<PAGE_BYTES>() else {
        return false;
    };
    let differs = bytes != pages.bytes(index);
    if differs {
        pages.set(index, bytes);
    }
    differs
}

#[cfg(test)]
mod tests;
