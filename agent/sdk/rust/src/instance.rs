//! Which instance this is.

use crate::sys::{self, field};

/// `service/NAME/INDEX`.
#[must_use]
pub fn name() -> String {
    sys::text(field::INSTANCE).unwrap_or_default()
}

/// Number of the replica or shard, from 0.
#[must_use]
pub fn index() -> u32 {
    u32::try_from(sys::number(field::INDEX)).unwrap_or(0)
}

/// How many replicas or shards there are.
#[must_use]
pub fn count() -> u32 {
    u32::try_from(sys::number(field::COUNT)).unwrap_or(1)
}
