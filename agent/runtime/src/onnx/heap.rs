//! Keeps the C library from giving memory back to the system after every inference.
//!
//! A tensor of a batch is large enough for glibc to map it anew each time, and the system then
//! clears each page on its first use: measured at half the time of a batch of 450. The model's
//! process has a memory limit, and ends when it is not used; what it once needed it may keep.
//! JUSTIFICATION of `unsafe`: `mallopt` is the only way to say so.

/// Blocks from here on are mapped one by one. The largest that glibc accepts.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: i32 = 32 << 20;
/// Free memory that is kept.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: i32 = 256 << 20;

/// To be called before there is a second thread.
#[cfg_attr(target_env = "gnu", allow(unsafe_code))]
pub(super) fn keep() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both settings take any number; a refused one changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
    }
}
