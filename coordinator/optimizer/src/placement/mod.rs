//! Placement: filter the nodes that cannot, score those that can, say why.
//!
//! A [`Request`] and the [`Candidate`]s go through the [`Filter`]s in a fixed order (the first
//! that refuses a node is blamed for it), the rest is ranked by the weighted [`Score`]s. Ties go
//! to the lowest node id. The result is a [`Placement`], ready to be recorded and shown.
//!
//! Limits: details are kept for at most [`DETAIL_MAX`] candidates; counts are always complete.

mod candidate;
mod engine;
mod filter;
mod outcome;
mod registry;
mod request;
mod resources;
mod score;
mod selector;
#[cfg(test)]
mod tests;

pub use candidate::{Candidate, EnergyProfile, Tier};
pub use engine::{Engine, PlacementStrategy};
pub use filter::{Filter, standard_filters};
pub use outcome::{
    Considered, DETAIL_MAX, Outcome, Placement, RANKED_MIN, Removed, ScorePart, Verdict,
};
pub use registry::{DEFAULT_STRATEGY, Registry, UnknownName, WEIGHT_MAX};
pub use request::{DataWish, Request, Spread};
pub use resources::{Capacity, Resources, Usage};
pub use score::{Context, SCORE_MAX, Score, standard_scores};
pub use selector::{Selector, Test};
