//! A node as the scheduler sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Capacity, Resources, Usage};

/// Where in the continuum a node stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// A data centre.
    Cloud,
    /// Near the data: a gateway, a small server.
    Edge,
    /// A device.
    Iot,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cloud => "cloud",
            Self::Edge => "edge",
            Self::Iot => "iot",
        })
    }
}

/// What a node draws and how clean its current is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnergyProfile {
    /// Draw when idle, in milliwatts.
    pub idle_mw: u32,
    /// Draw with every core busy, in milliwatts.
    pub max_mw: u32,
    /// Carbon intensity of its supply, in gCO2 per kWh.
    pub carbon_g_per_kwh: Option<u32>,
}

/// One node, with everything that a strategy may look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// Unique node id; the tie-break.
    pub node: String,
    /// Tier.
    pub tier: Tier,
    /// Labels set by operators.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Names of data sets that are at hand on this node.
    #[serde(default)]
    pub data_tags: BTreeSet<String>,
    /// CPU architecture, as Rust names it (`x86_64`, `aarch64`).
    pub arch: String,
    /// What its agent can run (`wasm`, `onnx`, …).
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// It has a live session.
    pub ready: bool,
    /// An operator closed it for new work.
    #[serde(default)]
    pub cordoned: bool,
    /// It is being emptied.
    #[serde(default)]
    pub draining: bool,
    /// What it has.
    pub capacity: Capacity,
    /// What is promised to instances that are placed on it.
    #[serde(default)]
    pub allocated: Usage,
    /// What it last measured in use, by whomever.
    #[serde(default)]
    pub observed: Usage,
    /// Round trip to it, in milliseconds, where known.
    pub latency_ms: Option<u32>,
    /// Energy profile, where known.
    pub energy: Option<EnergyProfile>,
}

impl Candidate {
    /// A ready node without labels, data, capabilities or capacity.
    pub fn new(node: impl Into<String>, tier: Tier) -> Self {
        Self {
            node: node.into(),
            tier,
            labels: BTreeMap::new(),
            data_tags: BTreeSet::new(),
            arch: String::new(),
            capabilities: BTreeSet::new(),
            ready: true,
            cordoned: false,
            draining: false,
            capacity: Capacity::default(),
            allocated: Usage::default(),
            observed: Usage::default(),
            latency_ms: None,
            energy: None,
        }
    }

    /// Unpromised CPU. What was measured does not count: CPU time is shared, and a load peak
    /// must not make a node unplaceable.
    pub fn cpu_milli_free(&self) -> u64 {
        self.capacity
            .cpu_milli
            .saturating_sub(self.allocated.cpu_milli)
    }

    /// Memory that is neither promised nor in use: it cannot be shared.
    pub fn memory_bytes_free(&self) -> u64 {
        let taken = self.allocated.memory_bytes.max(self.observed.memory_bytes);
        self.capacity.memory_bytes.saturating_sub(taken)
    }

    /// Disk that is neither promised nor in use.
    pub fn storage_bytes_free(&self) -> u64 {
        let taken = self
            .allocated
            .storage_bytes
            .max(self.observed.storage_bytes);
        self.capacity.storage_bytes.saturating_sub(taken)
    }

    /// Instances that can still be placed.
    pub fn slots_free(&self) -> u64 {
        self.capacity.slots.saturating_sub(self.allocated.slots)
    }

    /// Thousandths of CPU and of memory that are taken once `wanted` is placed here too.
    pub(crate) fn shares_after(&self, wanted: &Resources) -> (u32, u32) {
        let cpu = self.allocated.cpu_milli.max(self.observed.cpu_milli);
        let memory = self.allocated.memory_bytes.max(self.observed.memory_bytes);
        (
            super::resources::permille(
                cpu.saturating_add(wanted.cpu_milli),
                self.capacity.cpu_milli,
            ),
            super::resources::permille(
                memory.saturating_add(wanted.memory_bytes),
                self.capacity.memory_bytes,
            ),
        )
    }
}
