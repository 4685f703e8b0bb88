//! What a node has, what is promised of it, and what an instance asks for.
//!
//! All arithmetic saturates: a hostile number makes a node look full, never empty.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an instance asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub storage_bytes: u64,
    /// Whether a GPU is needed.
    pub gpu: bool,
}

/// What a node has in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub storage_bytes: u64,
    /// Instances that the agent runs side by side.
    pub slots: u64,
    /// Whether it has a GPU.
    pub gpu: bool,
}

/// A part of a capacity: promised to instances (allocated) or measured in use (observed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Usage {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub storage_bytes: u64,
    /// Instances.
    pub slots: u64,
}

/// `part` of `whole` in thousandths, at most 1000; nothing of nothing counts as full.
pub(crate) fn permille(part: u64, whole: u64) -> u32 {
    if whole == 0 || part >= whole {
        return 1000;
    }
    // part < whole, hence the quotient is below 1000 and fits.
    (u128::from(part) * 1000 / u128::from(whole)) as u32
}

#[cfg(test)]
mod tests {
    use super::permille;

    #[test]
    fn permille_is_bounded_at_the_edges() {
        assert_eq!(permille(0, 0), 1000);
        assert_eq!(permille(0, 7), 0);
        assert_eq!(permille(1, 2), 500);
        assert_eq!(permille(u64::MAX - 1, u64::MAX), 999);
        assert_eq!(permille(u64::MAX, 1), 1000);
    }
}
