//! Models: pushed as versions, deployed as replicas, asked for inferences.
//!
//! A model is desired state: `deployed` version, spec, and so many replicas. [`converge`] brings
//! the record towards it, one commit at a time; nodes follow through the reconciler.
//!
//! Rolling to another version renews the replicas one after the other, each under a new epoch; the
//! next one begins when the one before is ready. A replica does not serve while it is renewed, so a
//! model with one replica is away for as long as it loads; with more, the others go on. If the new
//! version does not come up, the rest stays on the old one.

mod converge;
mod infer;
mod plan;
mod push;
mod table;
mod verbs;
mod view;

pub(crate) use converge::{
    converge_all, held_newer, node_back, refresh_node, reported, reserve_all, retry_due,
};
pub(crate) use infer::InFlight;
pub use infer::Inference;
pub(crate) use infer::infer;
pub(crate) use push::push;
pub(crate) use table::{Models, artifacts_used, desired, work};
pub(crate) use verbs::{deploy, remove, rollback, undeploy};
pub(crate) use view::{inputs, view, views};

/// Most models, and most versions of one.
pub(crate) const MODELS_MAX: usize = 1_000;
pub(crate) const VERSIONS_MAX: usize = 100;
