//! Invocations: a module runs once, at once, and nothing is kept.
//!
//! The way of a call is decided once for each (module, constraints) and kept until nodes change:
//! then one placement is made and recorded. A call itself takes a snapshot of the routes, the least
//! busy node among the best, and the node's link: no store, no lock across an await.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hop3_common::{
    api::ArtifactKind,
    codes::{Code, Problem},
    id::{Digest, NodeId, UnixMs},
    spec::{ByteSize, CpuMilli, Placement, Resources, Tier},
    wire::{CallResult, Target, Usage},
};
use hop3_optimizer::placement::Verdict;

use crate::{
    Core, artifacts, decisions::Decision, models::InFlight, records::Batch, registry::Link,
    scheduler,
};

/// Modules with routes, and constraints of each: a caller that makes up new ones all the time
/// costs itself placements, and nobody memory.
const MODULES_MAX: usize = 1_024;
const ROUTES_MAX: usize = 16;
/// Nodes whose score is within so much of the best are equals.
const EQUAL_SCORE: u32 = 50;
/// Largest input.
const INPUT_BYTES_MAX: usize = 8 << 20;
/// Memory of a guest, where the caller does not say, and its bounds.
const MEMORY_DEFAULT: ByteSize = ByteSize::mib(64);
const MEMORY_BYTES_MIN: u64 = 64 << 10;
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Time for a call, where the caller does not say, and at most.
const TIMEOUT_MS_DEFAULT: u64 = 10_000;
const TIMEOUT_MS_MAX: u64 = 300_000;

/// What to invoke and where.
#[derive(Debug, Clone, Copy)]
pub struct InvokeTarget<'a> {
    /// The module: a reference to an artifact.
    pub module: &'a str,
    /// Only nodes of this tier.
    pub tier: Option<Tier>,
    /// Only this node.
    pub node: Option<&'a NodeId>,
    /// Most linear memory; 64 MiB when absent.
    pub memory: Option<ByteSize>,
    /// Longest time, milliseconds; 10 s when absent.
    pub timeout_ms: Option<u64>,
}

/// What an invocation gave.
#[derive(Debug)]
pub struct InvokeOutcome {
    /// The guest's exit code.
    pub exit: i32,
    /// Its standard output.
    pub output: Bytes,
    /// What it used.
    pub usage: Usage,
    /// The node that ran it.
    pub node: NodeId,
}

/// Routes by module reference, then constraints.
#[derive(Default)]
pub(crate) struct Routes(ArcSwap<HashMap<Box<str>, Vec<Arc<Route>>>>);

/// Where calls of a module under some constraints go.
struct Route {
    /// The topology it was made for.
    topology: u64,
    tier: Option<Tier>,
    only: Option<NodeId>,
    memory: ByteSize,
    module: Digest,
    module_bytes: u64,
    /// Nodes that fit, best first; the first `equals` are as good as each other.
    stops: Vec<Stop>,
    equals: usize,
    next: AtomicUsize,
}

struct Stop {
    link: Arc<dyn Link>,
    calls: Arc<AtomicU32>,
}

impl Routes {
    fn find(
        &self,
        target: &InvokeTarget<'_>,
        memory: ByteSize,
        topology: u64,
    ) -> Option<Arc<Route>> {
        let routes = self.0.load();
        let found = routes.get(target.module)?.iter().find(|route| {
            route.topology == topology
                && route.tier == target.tier
                && route.memory == memory
                && route.only.as_ref() == target.node
        });
        found.cloned()
    }

    fn keep(&self, module: &str, route: &Arc<Route>) {
        self.0.rcu(|routes| {
            let mut routes = (**routes).clone();
            if routes.len() >= MODULES_MAX {
                routes.clear();
            }
            let kept = routes.entry(module.into()).or_default();
            kept.retain(|other| other.topology == route.topology);
            kept.truncate(ROUTES_MAX - 1);
            kept.push(route.clone());
            routes
        });
    }
}

/// Runs the module once. A busy node passes the call on; a call whose node is lost is answered so,
/// because whether it ran is not known.
pub(crate) async fn invoke(
    core: &Core,
    target: InvokeTarget<'_>,
    input: Bytes,
) -> Result<InvokeOutcome, Problem> {
    let memory = target.memory.unwrap_or(MEMORY_DEFAULT);
    let timeout_ms = target.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT);
    check(memory, timeout_ms, &input)?;
    let topology = core.nodes.topology.load(Ordering::Acquire);
    let route = match core.routes.find(&target, memory, topology) {
        Some(route) => route,
        None => {
            let route = Arc::new(decide(core, &target, memory, topology).await?);
            core.routes.keep(target.module, &route);
            route
        }
    };
    let deadline = Duration::from_millis(timeout_ms);
    let mut last = None;
    let first = route.first();
    for stop in first
        .into_iter()
        .chain(0..route.stops.len())
        .map(|n| &route.stops[n])
    {
        if !stop.link.is_open() {
            continue;
        }
        match ask(&route, stop, input.clone(), deadline).await {
            Err(problem) if problem.code == Code::Busy => last = Some(problem),
            answered => return answered,
        }
    }
    Err(last.unwrap_or_else(|| {
        Problem::new(
            Code::NodeUnreachable,
            "the nodes that fit have just gone away: try again",
        )
    }))
}

fn check(memory: ByteSize, timeout_ms: u64, input: &Bytes) -> Result<(), Problem> {
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&memory.0) {
        return Err(Problem::new(
            Code::InvalidField,
            "`memory` must be from 64KiB to 4GiB",
        ));
    }
    if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
        let message = format!("`timeout_ms` must be from 1 to {TIMEOUT_MS_MAX}");
        return Err(Problem::new(Code::InvalidField, message));
    }
    if input.len() > INPUT_BYTES_MAX {
        let message = format!("an invocation takes at most {INPUT_BYTES_MAX} bytes: submit a task");
        return Err(Problem::new(Code::TooLarge, message));
    }
    Ok(())
}

impl Route {
    /// The least busy of the best, among equals in turn.
    fn first(&self) -> Option<usize> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let best = (0..self.equals).map(|n| (turn + n) % self.equals);
        best.min_by_key(|n| self.stops[*n].calls.load(Ordering::Relaxed))
    }
}

async fn ask(
    route: &Route,
    stop: &Stop,
    input: Bytes,
    deadline: Duration,
) -> Result<InvokeOutcome, Problem> {
    let target = Target::Module {
        module: route.module,
        module_bytes: route.module_bytes,
        memory_bytes: route.memory.0,
        cpu_ms: 0,
        input,
    };
    let flight = InFlight::begin(&stop.calls);
    let answer = stop.link.call(target, deadline).await;
    drop(flight);
    let node = stop.link.node().clone();
    match answer? {
        CallResult::Module {
            exit,
            output,
            usage,
        } => Ok(InvokeOutcome {
            exit,
            output,
            usage,
            node,
        }),
        CallResult::Model { .. } | CallResult::Service(_) | CallResult::Delivered => {
            let message = format!("node `{node}` answered an invocation with something else");
            Err(Problem::new(Code::Protocol, message))
        }
    }
}

/// Makes a route: one placement, one recorded decision.
async fn decide(
    core: &Core,
    target: &InvokeTarget<'_>,
    memory: ByteSize,
    topology: u64,
) -> Result<Route, Problem> {
    let module = artifacts::resolve_kind(core, target.module, ArtifactKind::Wasm)?;
    if let Some(node) = target.node {
        core.nodes.find(node)?;
    }
    let placement = Placement {
        tier: target.tier,
        node: target.node.cloned(),
        ..Placement::default()
    };
    let resources = Resources {
        cpu: CpuMilli(0),
        memory,
        ..Resources::default()
    };
    let request = scheduler::request(&placement, &resources, "wasm");
    let placement = scheduler::choose(core, &request, None)?;
    let reason = placement.to_string();
    let mut stops = Vec::new();
    let (mut equals, mut best) = (0, None);
    for candidate in &placement.candidates {
        let Verdict::Fits { total, .. } = candidate.verdict else {
            continue;
        };
        let node = candidate
            .node
            .parse()
            .ok()
            .and_then(|node| core.nodes.get(&node));
        let Some((node, link)) = node.and_then(|node| Some((node.clone(), node.link()?))) else {
            continue;
        };
        if total + EQUAL_SCORE >= *best.get_or_insert(total) {
            equals += 1;
        }
        stops.push(Stop {
            link,
            calls: node.calls.clone(),
        });
    }
    if stops.is_empty() {
        return Err(Problem::new(Code::Unplaceable, reason));
    }
    let subject = format!("module/{}", module.digest.short());
    let chosen = placement.node().and_then(|node| node.parse().ok());
    let decision = Decision::new(subject, "route", reason).on(chosen.as_ref());
    let batch = core
        .decisions
        .record(Batch::new(), decision.by(Some(placement)), UnixMs::now())?;
    core.records.commit(batch).await?;
    Ok(Route {
        topology,
        tier: target.tier,
        only: target.node.cloned(),
        memory,
        module: module.digest,
        module_bytes: module.bytes,
        stops,
        equals,
        next: AtomicUsize::new(0),
    })
}
