//! What is to be placed, and under which conditions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Resources, Selector, Tier};

/// One instance that needs a node. The default asks for nothing: any ready node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Request {
    /// What it needs; one slot comes on top.
    pub resources: Resources,
    /// Only nodes of this tier.
    pub tier: Option<Tier>,
    /// Tiers in order of preference, best first.
    pub tiers_preferred: Vec<Tier>,
    /// Every condition must hold.
    pub labels: Vec<Selector>,
    /// Data it works on.
    pub data: DataWish,
    /// Every one of these must be offered by the agent (`wasm`, `onnx`, …).
    pub capabilities: BTreeSet<String>,
    /// Only this architecture.
    pub arch: Option<String>,
    /// Only this node.
    pub node: Option<String>,
    /// Never these nodes (where it just failed, where a copy must not be).
    pub avoid: BTreeSet<String>,
    /// Keep away from others of the same group.
    pub spread: Option<Spread>,
    /// Prefer nodes with a short round trip.
    pub near: bool,
}

/// Data tags that a node should have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DataWish {
    /// A node without one of these cannot take the work.
    pub required: BTreeSet<String>,
    /// The more of these, the better.
    pub preferred: BTreeSet<String>,
}

/// How the members of a group keep away from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Spread {
    /// The label whose values are the failure domains (`zone`); each node by itself if absent.
    pub key: Option<String>,
    /// How many members of the group each node has already.
    pub placed: BTreeMap<String, u32>,
}
