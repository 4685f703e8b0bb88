//! Where an instance shall run: the scheduler asked in a service's words.

use std::collections::BTreeMap;

use hop3_common::{
    api::Allocation,
    codes::{Code, Problem},
    id::NodeId,
};
use hop3_optimizer::Placement;

use super::table::Service;
use crate::{Core, scheduler};

/// How many of the other instances are on which node.
fn others(service: &Service, index: usize) -> BTreeMap<String, u32> {
    let mut placed = BTreeMap::new();
    for (n, instance) in service.instances.iter().enumerate() {
        if let Some(node) = instance.own.owner.as_ref().filter(|_| n != index) {
            *placed.entry(node.to_string()).or_default() += 1;
        }
    }
    placed
}

/// What an instance is promised.
pub(super) fn amount(service: &Service) -> Allocation {
    scheduler::service_request(&service.record.spec, BTreeMap::new(), None).1
}

/// Where the instance would go if `owner` were gone. Nothing is promised.
pub(super) fn preview(
    core: &Core,
    service: &Service,
    index: usize,
    owner: &NodeId,
) -> Option<NodeId> {
    let (_, node) = place(core, service, index, Some(owner), None).ok()?;
    let node = node?;
    core.nodes.ledger().release(&node, &service.id(index));
    Some(node)
}

/// Chooses a node for the instance and promises it the room, if one fits. `only`: there or nowhere.
pub(super) fn place(
    core: &Core,
    service: &Service,
    index: usize,
    avoid: Option<&NodeId>,
    only: Option<&NodeId>,
) -> Result<(Placement, Option<NodeId>), Problem> {
    let spec = &service.record.spec;
    let (mut request, amount) = scheduler::service_request(spec, others(service, index), avoid);
    if let Some(only) = only {
        if let Some(fixed) = spec.placement.node.as_ref().filter(|fixed| *fixed != only) {
            let message = format!("`spec.placement.node` allows {fixed} only");
            return Err(Problem::new(Code::MoveRefused, message));
        }
        request.node = Some(only.to_string());
    }
    let owner = service
        .instances
        .get(index)
        .and_then(|i| i.own.owner.as_ref());
    let strategy = spec.placement.strategy.as_deref();
    let id = service.id(index);
    scheduler::place(core, &id, owner, &request, amount, strategy)
}
