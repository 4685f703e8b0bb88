//! A mesh of real processes for tests and benchmarks: the built binaries, real sockets, real
//! files, one directory that is removed at the end.
//!
//! Nothing here sleeps to wait: [`eventually`] polls for a level with a deadline.

pub mod counting;
mod daemon;
mod guests;
mod mesh;
pub mod netns;
mod npy;
pub mod partition;
pub mod relay;
pub mod sockets;
mod tmpfs;
pub mod web;

pub use daemon::{Daemon, bin};
pub use guests::{data, guest};
pub use mesh::{Mesh, Options, Run, directory};
pub use npy::{read_f32, slice_rows};
pub use tmpfs::SmallDisk;
pub use web::{Answer, Web};

use std::time::{Duration, Instant};

/// How long a test waits for something that must happen. Generous: machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this is a long run, which goes further than CI.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("HOP3_LONG").is_some()
}

/// Whether what needs root can be done. If not, says on standard error that the test is skipped.
#[must_use]
pub fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED, nothing was tested: {what} needs root");
    }
    root
}

/// Polls `look` until it gives a value; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// Polls `look` until it gives a value; panics with `what` after `limit`.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "did not happen within {limit:?}: {what}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
