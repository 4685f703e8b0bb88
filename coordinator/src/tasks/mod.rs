//! Tasks: submitted, placed, watched over, ended. The decisions are [`machine`]'s; here they are
//! committed, then shown, then acted upon.
//!
//! Limits: at most [`TASKS_ENDED_MAX`] ended tasks are kept, each at most [`ENDED_KEPT_MS`]; at most
//! [`TASKS_LIVE_MAX`] others.

mod life;
mod machine;
mod output;
mod submit;
mod table;
mod view;

use std::pin::Pin;

use tokio::io::AsyncRead;

pub(crate) use life::{
    changed, clock, desired, expire, held_newer, node_back, node_removed, nodes_lost,
    place_left_over, place_pending, reported, reserve_all, work,
};
pub use machine::{Event, PLACEMENTS_MAX, Step, TaskState};
pub(crate) use output::output;
pub(crate) use submit::{artifacts_used, cancel, check_placement, submit};
pub(crate) use table::{Task, Tasks};
pub use view::TaskFilter;
pub(crate) use view::{counts, find, list, view, view_of};

/// Bytes that arrive.
pub type ByteStream = Pin<Box<dyn AsyncRead + Send>>;

/// Ended tasks kept: about 30 MiB of memory.
pub(crate) const TASKS_ENDED_MAX: usize = 10_000;
/// How long an ended task is kept at most: a week.
pub(crate) const ENDED_KEPT_MS: u64 = 7 * 24 * 3_600_000;
/// Most tasks that have not ended.
pub(crate) const TASKS_LIVE_MAX: usize = 100_000;
