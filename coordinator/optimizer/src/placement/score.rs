//! How good a node is that passed the filters: one small type per point of view.
//!
//! A score looks at one node and the request only, never at the other nodes: so a node that
//! comes or goes cannot change how two others compare. Integers, so that every machine decides
//! alike.

use std::collections::BTreeMap;

use super::{Candidate, Request};

/// The best score; zero is the worst.
pub const SCORE_MAX: u32 = 1000;

/// At this round trip the `latency` score is half of the best.
const LATENCY_HALF_MS: u64 = 20;

/// At this extra draw under average current the `energy` score is half of the best.
const ENERGY_HALF_MW: u64 = 10_000;

/// Carbon intensity assumed where it is unknown, in gCO2 per kWh (about the EU's mix in 2020).
const CARBON_DEFAULT_G_PER_KWH: u64 = 300;

/// The request, with what can be said about it once for all nodes.
pub struct Context<'a> {
    /// What is to be placed.
    pub request: &'a Request,
    /// Members of the group per value of the spread label; empty when spreading by node.
    domains: BTreeMap<&'a str, u32>,
}

impl<'a> Context<'a> {
    /// Prepares `request` for scoring `candidates`.
    pub fn new(request: &'a Request, candidates: &'a [Candidate]) -> Self {
        let mut domains = BTreeMap::new();
        if let Some((spread, key)) = request
            .spread
            .as_ref()
            .and_then(|s| Some((s, s.key.as_ref()?)))
            && !spread.placed.is_empty()
        {
            for node in candidates {
                let placed = spread.placed.get(&node.node);
                if let (Some(placed), Some(domain)) = (placed, node.labels.get(key)) {
                    let members: &mut u32 = domains.entry(domain.as_str()).or_default();
                    *members = members.saturating_add(*placed);
                }
            }
        }
        Self { request, domains }
    }

    /// Members of the group in the failure domain of `node`; none if its domain is unknown.
    fn members(&self, node: &Candidate) -> Option<u32> {
        let spread = self.request.spread.as_ref()?;
        match &spread.key {
            None => Some(spread.placed.get(&node.node).copied().unwrap_or(0)),
            Some(key) => {
                let domain = node.labels.get(key)?;
                Some(self.domains.get(domain.as_str()).copied().unwrap_or(0))
            }
        }
    }
}

/// A point of view from which nodes are compared.
pub trait Score: Send + Sync {
    /// Short name for people and for weights.
    fn name(&self) -> &'static str;
    /// Whether the request gives it anything to compare; it has no weight otherwise. May look at
    /// the request only.
    fn applies(&self, _request: &Request) -> bool {
        true
    }
    /// How good `node` is, 0 to [`SCORE_MAX`]. Hot: no allocation.
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32;
}

/// All scores.
pub fn standard_scores() -> Vec<Box<dyn Score>> {
    vec![
        Box::new(Group),
        Box::new(Room),
        Box::new(Pack),
        Box::new(Data),
        Box::new(TierRank),
        Box::new(Latency),
        Box::new(Energy),
    ]
}

/// `spread`: few others of the same group in the node's failure domain. A node whose domain is
/// unknown scores nothing: it may share the fate of any other.
struct Group;

impl Score for Group {
    fn name(&self) -> &'static str {
        "spread"
    }
    fn applies(&self, request: &Request) -> bool {
        request.spread.is_some()
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        context
            .members(node)
            .map_or(0, |members| SCORE_MAX / members.saturating_add(1))
    }
}

/// `room`: much is left of whatever is scarcest there.
struct Room;

impl Score for Room {
    fn name(&self) -> &'static str {
        "room"
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        let (cpu, memory) = node.shares_after(&context.request.resources);
        SCORE_MAX - cpu.max(memory)
    }
}

/// `pack`: the node is well filled afterwards, so that others can stay empty.
struct Pack;

impl Score for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        let (cpu, memory) = node.shares_after(&context.request.resources);
        (cpu + memory) / 2
    }
}

/// `data`: much of the preferred data is at hand.
struct Data;

impl Score for Data {
    fn name(&self) -> &'static str {
        "data"
    }
    fn applies(&self, request: &Request) -> bool {
        !request.data.preferred.is_empty()
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        let wanted = &context.request.data.preferred;
        let at_hand = wanted.intersection(&node.data_tags).count();
        super::resources::permille(at_hand as u64, wanted.len() as u64)
    }
}

/// `tier`: the node's tier comes early in the order of preference.
struct TierRank;

impl Score for TierRank {
    fn name(&self) -> &'static str {
        "tier"
    }
    fn applies(&self, request: &Request) -> bool {
        !request.tiers_preferred.is_empty()
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        let rank = context
            .request
            .tiers_preferred
            .iter()
            .position(|tier| *tier == node.tier);
        rank.map_or(0, |rank| SCORE_MAX / (rank as u32).saturating_add(1))
    }
}

/// `latency`: a short round trip; an unknown one scores nothing.
struct Latency;

impl Score for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }
    fn applies(&self, request: &Request) -> bool {
        request.near
    }
    fn score(&self, _context: &Context<'_>, node: &Candidate) -> u32 {
        node.latency_ms
            .map_or(0, |ms| halving(u64::from(ms), LATENCY_HALF_MS))
    }
}

/// `energy`: little extra draw, weighted by how clean the current is. Waking an empty node costs
/// its idle draw too. A node without a profile scores nothing.
struct Energy;

impl Score for Energy {
    fn name(&self) -> &'static str {
        "energy"
    }
    fn score(&self, context: &Context<'_>, node: &Candidate) -> u32 {
        let Some(profile) = node.energy else { return 0 };
        let share = super::resources::permille(
            context.request.resources.cpu_milli,
            node.capacity.cpu_milli,
        );
        let busy_mw = u64::from(profile.max_mw.saturating_sub(profile.idle_mw));
        let waking_mw = if node.allocated.slots == 0 {
            u64::from(profile.idle_mw)
        } else {
            0
        };
        let draw_mw = waking_mw + busy_mw * u64::from(share) / 1000;
        let carbon = profile
            .carbon_g_per_kwh
            .map_or(CARBON_DEFAULT_G_PER_KWH, u64::from);
        let cost = draw_mw.saturating_mul(carbon);
        halving(cost, ENERGY_HALF_MW * CARBON_DEFAULT_G_PER_KWH)
    }
}

/// [`SCORE_MAX`] at a cost of zero, half of it at `half`, falling towards zero.
fn halving(cost: u64, half: u64) -> u32 {
    let score = u128::from(half) * u128::from(SCORE_MAX) / (u128::from(half) + u128::from(cost));
    // At most SCORE_MAX.
    score as u32
}
