//! Nodes as the API shows them.

use hop3_common::{
    api::{EventView, InstanceView, NodeStatus, NodeView, StatusView},
    codes::Problem,
    id::{NodeId, UnixMs},
};

use super::Node;
use crate::{Core, artifacts, models, tasks};

pub(crate) fn view(core: &Core, node: &NodeId) -> Result<NodeView, Problem> {
    Ok(view_of(core, &*core.nodes.find(node)?))
}

pub(crate) fn views(core: &Core) -> Vec<NodeView> {
    core.nodes
        .all()
        .iter()
        .map(|node| view_of(core, node))
        .collect()
}

/// Tells who watches that a node changed.
pub(crate) fn tell(core: &Core, node: &Node) {
    core.events
        .tell(|| EventView::Node(Box::new(view_of(core, node))));
}

fn view_of(core: &Core, node: &Node) -> NodeView {
    let allocated = core.nodes.ledger().total(&node.id);
    let record = node.record.load_full();
    let capacity = node.capacity();
    let live = node.live();
    let session = live.session.as_ref();
    let status = match (session, record.connected) {
        (Some(_), _) => NodeStatus::Ready,
        (None, Some(_)) => NodeStatus::Disconnected,
        (None, None) => NodeStatus::Enrolled,
    };
    let instances = live.held.iter();
    NodeView {
        id: record.id.clone(),
        tier: record.tier,
        labels: record.labels.clone(),
        status,
        cordoned: record.cordoned,
        draining: record.draining,
        facts: record.facts.clone(),
        agent_version: record.agent_version.clone(),
        latest: live.samples.back().copied(),
        allocated,
        capacity,
        enrolled: record.enrolled,
        connected: session.map(|session| session.since),
        last_seen: live.last_seen.or(record.connected),
        address: session.map(|session| session.link.address().to_string()),
        rtt_us: session.map(|session| session.link.rtt().as_micros() as u64),
        certificate_expires: record.certificate_expires,
        instances: instances
            .map(|(id, holds)| InstanceView {
                id: id.clone(),
                token: holds.token,
                phase: holds.phase,
            })
            .collect(),
    }
}

/// The mesh at a glance.
pub(crate) fn status(core: &Core) -> StatusView {
    let (artifacts, artifact_bytes) = artifacts::totals(core);
    StatusView {
        mesh: core.mesh.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: UnixMs::now(),
        started: core.started,
        mesh_addresses: core.advertised().iter().map(ToString::to_string).collect(),
        nodes: views(core),
        tasks: tasks::counts(core),
        models: models::views(core),
        artifacts,
        artifact_bytes,
    }
}
