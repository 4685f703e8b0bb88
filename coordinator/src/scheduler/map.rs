//! Our words in the optimizer's.

use std::collections::{BTreeMap, BTreeSet};

use hop3_common::{
    api::Allocation,
    id::NodeId,
    spec::{self, ModelSpec, ServiceSpec, TaskSpec},
};
use hop3_optimizer::placement::{
    Candidate, Capacity, DataWish, Request, Resources, Selector, Spread, Test, Tier, Usage,
};

use crate::{
    Core,
    registry::{Ledger, Node},
};

/// Every node as a candidate. `slots`: whether what is placed takes one.
pub(super) fn candidates(core: &Core, ledger: &Ledger, slots: bool) -> Vec<Candidate> {
    core.nodes
        .all()
        .iter()
        .map(|node| candidate(node, ledger.total(&node.id), slots))
        .collect()
}

fn candidate(node: &Node, allocated: Allocation, slots: bool) -> Candidate {
    let record = node.record.load();
    let facts = &record.facts;
    let capacity = node.capacity();
    let live = node.live();
    let latest = live.samples.back().copied().unwrap_or_default();
    let session = live.session.as_ref().filter(|session| session.known);
    let volumes = facts.volumes.iter().map(|volume| volume_capability(volume));
    Candidate {
        labels: record.labels.clone(),
        data_tags: facts.data.iter().cloned().collect(),
        arch: facts.arch.clone(),
        capabilities: facts.capabilities.iter().cloned().chain(volumes).collect(),
        ready: session.is_some_and(|session| session.link.is_open()),
        cordoned: record.cordoned,
        draining: record.draining,
        capacity: Capacity {
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            storage_bytes: capacity.storage_bytes,
            slots: if slots {
                u64::from(capacity.tasks)
            } else {
                u64::MAX
            },
            gpu: facts
                .capabilities
                .iter()
                .any(|capability| capability == "gpu"),
        },
        allocated: Usage {
            cpu_milli: allocated.cpu_milli,
            memory_bytes: allocated.memory_bytes,
            storage_bytes: allocated.storage_bytes,
            slots: if slots { u64::from(allocated.tasks) } else { 0 },
        },
        observed: Usage {
            cpu_milli: u64::from(latest.cpu_permille) * u64::from(facts.cpus),
            memory_bytes: latest.memory_used_kib.saturating_mul(1024),
            storage_bytes: latest.disk_used_kib.saturating_mul(1024),
            slots: 0,
        },
        latency_ms: session.map(|s| u32::try_from(s.link.rtt().as_millis()).unwrap_or(u32::MAX)),
        ..Candidate::new(node.id.as_str(), tier(record.tier))
    }
}

/// A volume that a node offers, as a capability.
fn volume_capability(volume: &str) -> String {
    format!("volume {volume}")
}

fn tier(tier: spec::Tier) -> Tier {
    match tier {
        spec::Tier::Cloud => Tier::Cloud,
        spec::Tier::Edge => Tier::Edge,
        spec::Tier::Iot => Tier::Iot,
    }
}

fn selector(selector: &spec::Selector) -> Selector {
    match selector {
        spec::Selector::In(key, values) => match values.as_slice() {
            [value] => Selector::new(key, Test::Equals(value.clone())),
            values => Selector::new(key, Test::In(values.iter().cloned().collect())),
        },
        spec::Selector::NotEqual(key, value) => Selector::new(key, Test::NotEquals(value.clone())),
        spec::Selector::Exists(key) => Selector::new(key, Test::Exists),
        spec::Selector::Absent(key) => Selector::new(key, Test::Absent),
    }
}

/// A request for a node that offers `capability` where `placement` says.
pub(crate) fn request(
    placement: &spec::Placement,
    resources: &spec::Resources,
    capability: &str,
) -> Request {
    Request {
        resources: Resources {
            cpu_milli: resources.cpu.0,
            memory_bytes: resources.memory.0,
            storage_bytes: resources.storage.0,
            gpu: resources.gpu,
        },
        tier: placement.tier.map(tier),
        labels: placement.labels.iter().map(selector).collect(),
        data: DataWish {
            required: placement.data.iter().cloned().collect(),
            preferred: placement.prefer_data.iter().cloned().collect(),
        },
        capabilities: BTreeSet::from([capability.to_owned()]),
        node: placement.node.as_ref().map(ToString::to_string),
        ..Request::default()
    }
}

/// What a task asks for, and what is promised to it.
pub(crate) fn task_request(spec: &TaskSpec, avoid: Option<&NodeId>) -> (Request, Allocation) {
    let mut request = request(&spec.placement, &spec.resources, "wasm");
    request
        .capabilities
        .extend(spec.volumes.iter().map(|v| volume_capability(&v.name)));
    request.avoid = avoid.iter().map(ToString::to_string).collect();
    (request, amount(&spec.resources, 1))
}

/// What a replica asks for: a node that has none of the others.
pub(crate) fn model_request(
    spec: &ModelSpec,
    others: &BTreeSet<NodeId>,
    avoid: Option<&NodeId>,
) -> (Request, Allocation) {
    let mut request = request(&spec.placement, &spec.resources, "onnx");
    request.avoid = others
        .iter()
        .chain(avoid)
        .map(ToString::to_string)
        .collect();
    let placed: BTreeMap<String, u32> = others.iter().map(|n| (n.to_string(), 1)).collect();
    request.spread = Some(Spread { key: None, placed });
    (request, amount(&spec.resources, 0))
}

/// What an instance of a service asks for: preferably a node that has few of the others.
pub(crate) fn service_request(
    spec: &ServiceSpec,
    placed: BTreeMap<String, u32>,
    avoid: Option<&NodeId>,
) -> (Request, Allocation) {
    let mut request = request(&spec.placement, &spec.resources, "wasm");
    request
        .capabilities
        .extend(spec.volumes.iter().map(|v| volume_capability(&v.name)));
    request.avoid = avoid.iter().map(ToString::to_string).collect();
    request.spread = Some(Spread { key: None, placed });
    (request, amount(&spec.resources, 0))
}

fn amount(resources: &spec::Resources, tasks: u32) -> Allocation {
    Allocation {
        cpu_milli: resources.cpu.0,
        memory_bytes: resources.memory.0,
        storage_bytes: resources.storage.0,
        tasks,
    }
}
