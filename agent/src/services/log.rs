//! The change log of one instance: deltas of its image on top of a checkpoint's parts.

pub use hop3_common::store::changelog::{Error, Log, LogId, Torn};
use hop3_common::{id::InstanceId, wire::Output};
use serde::{Deserialize, Serialize};

/// What the head of an instance's log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose log it is.
    pub instance: InstanceId,
    /// The parts of the checkpoint that the deltas build on.
    pub base: Vec<Output>,
}
