//! From records to the optimizer's types and back: who could run it, who shall.
//!
//! A placement and its reservation happen under the ledger's lock. The strategy is the request's,
//! else the configured one, else the optimizer's default.

mod map;

use hop3_common::{
    api::Allocation,
    codes::{Code, Problem},
    id::{InstanceId, NodeId},
};
use hop3_optimizer::{
    Placement,
    placement::{PlacementStrategy, Request},
};

pub(crate) use map::{model_request, request, service_request, task_request};

use crate::Core;

/// Names of the strategies.
pub(crate) fn names(core: &Core) -> Vec<String> {
    core.strategies.names().map(str::to_owned).collect()
}

/// The strategy of that name. Unknown ones are refused with the nearest known.
pub(crate) fn strategy<'a>(
    core: &'a Core,
    name: Option<&str>,
) -> Result<&'a dyn PlacementStrategy, Problem> {
    let name = name.or(core.settings.strategy.as_deref());
    core.strategies
        .get(name)
        .map_err(|unknown| Problem::new(Code::StrategyUnknown, unknown.to_string()))
}

/// Chooses a node for what takes no room (a call).
pub(crate) fn choose(
    core: &Core,
    request: &Request,
    name: Option<&str>,
) -> Result<Placement, Problem> {
    let strategy = strategy(core, name)?;
    let candidates = {
        let ledger = core.nodes.ledger();
        map::candidates(core, &ledger, false)
    };
    Ok(strategy.place(request, &candidates, 0))
}

/// Chooses a node for `instance` and promises it the room, if one fits. What its `owner` promised
/// it does not stand in its way there, and stays promised until the caller releases it.
pub(crate) fn place(
    core: &Core,
    instance: &InstanceId,
    owner: Option<&NodeId>,
    request: &Request,
    amount: Allocation,
    name: Option<&str>,
) -> Result<(Placement, Option<NodeId>), Problem> {
    let strategy = strategy(core, name)?;
    let mut ledger = core.nodes.ledger();
    let had = owner.and_then(|owner| Some((owner, ledger.release(owner, instance)?)));
    let candidates = map::candidates(core, &ledger, amount.tasks > 0);
    let placement = strategy.place(request, &candidates, 0);
    let node: Option<NodeId> = placement.node().and_then(|node| node.parse().ok());
    if let Some((owner, had)) = had {
        ledger.reserve(owner, instance, had);
    }
    if let Some(node) = &node {
        ledger.reserve(node, instance, amount);
    }
    Ok((placement, node))
}
