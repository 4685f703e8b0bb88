//! Lines for the service's log (`hop3 service logs`). Longer than 4 KiB they are cut.

use crate::sys;

/// Something is wrong.
pub fn error(text: impl AsRef<str>) {
    sys::log(0, text.as_ref().as_bytes());
}

/// Something is not as it should be, and is dealt with.
pub fn warn(text: impl AsRef<str>) {
    sys::log(1, text.as_ref().as_bytes());
}

/// Something that is worth knowing.
pub fn info(text: impl AsRef<str>) {
    sys::log(2, text.as_ref().as_bytes());
}

/// Something for those who look for a fault.
pub fn debug(text: impl AsRef<str>) {
    sys::log(3, text.as_ref().as_bytes());
}
