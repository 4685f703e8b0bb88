//! Why here, why not running: facts and decisions in words.

use hop3_common::{
    api::{Explanation, NodeStatus, TaskPhase},
    codes::{Code, Problem},
    spec::nearest,
};

use crate::{Core, models, registry, services, tasks};

/// Decisions shown.
const DECISIONS_SHOWN: usize = 20;
const KINDS: [&str; 4] = ["task", "node", "model", "service"];

pub(crate) async fn explain(core: &Core, kind: &str, name: &str) -> Result<Explanation, Problem> {
    let (subject, summary, facts) = match kind {
        "task" => task(core, name)?,
        "node" => node(core, name)?,
        "model" => model(core, name)?,
        "service" => service(core, name)?,
        _ => {
            let near = nearest(kind, KINDS).map(|near| format!("; did you mean `{near}`?"));
            let message = format!(
                "`kind` must be one of {}{}",
                KINDS.join(", "),
                near.unwrap_or_default()
            );
            return Err(Problem::new(Code::InvalidField, message));
        }
    };
    let decisions = core
        .decisions
        .list(&core.records, Some(&subject), DECISIONS_SHOWN)
        .await?;
    Ok(Explanation {
        subject,
        summary,
        facts,
        decisions,
    })
}

type Told = (String, String, Vec<String>);

fn task(core: &Core, name: &str) -> Result<Told, Problem> {
    let view = tasks::view(core, name)?;
    let phase = format!("{:?}", view.phase).to_lowercase();
    let at = view
        .node
        .as_ref()
        .map(|node| format!(" on {node}"))
        .unwrap_or_default();
    let summary = match view.phase {
        TaskPhase::Pending => format!("It is pending: {}.", view.reason),
        _ => format!("It is {phase}{at}: {}.", view.reason),
    };
    let asked = &view.spec.resources;
    let mut facts = vec![
        format!("module {}", view.module),
        format!(
            "asks for {} CPU, {} memory, {} disk",
            asked.cpu, asked.memory, asked.storage
        ),
        format!("wanted: {}", wanted(&view.spec.placement)),
        format!("run {} (epoch.incarnation)", view.token),
        format!("submitted {}", tasks::clock(view.created)),
    ];
    facts.extend(view.started.map(|at| format!("began {}", tasks::clock(at))));
    facts.extend(view.ended.map(|at| format!("ended {}", tasks::clock(at))));
    facts.extend(
        view.prepare_us
            .map(|(fetch, load)| format!("prepared: fetched in {fetch} us, loaded in {load} us")),
    );
    facts.extend(view.result.map(|result| {
        let used = result.usage;
        format!(
            "used {} us CPU in {} us, {} bytes of memory at most",
            used.cpu_us, used.wall_us, used.memory_peak_bytes
        )
    }));
    Ok((format!("task/{}", view.id), summary, facts))
}

fn wanted(placement: &hop3_common::spec::Placement) -> String {
    let mut wanted = Vec::new();
    wanted.extend(placement.node.as_ref().map(|node| format!("node {node}")));
    wanted.extend(placement.tier.map(|tier| format!("tier {tier}")));
    wanted.extend(
        placement
            .labels
            .iter()
            .map(|label| format!("label {label}")),
    );
    wanted.extend(placement.data.iter().map(|tag| format!("data {tag}")));
    wanted.extend(
        placement
            .prefer_data
            .iter()
            .map(|tag| format!("preferably data {tag}")),
    );
    wanted.extend(
        placement
            .strategy
            .as_ref()
            .map(|name| format!("strategy {name}")),
    );
    if wanted.is_empty() {
        "any node".into()
    } else {
        wanted.join(", ")
    }
}

fn node(core: &Core, name: &str) -> Result<Told, Problem> {
    let id = name
        .parse()
        .map_err(|_| Problem::new(Code::NodeUnknown, format!("there is no node `{name}`")))?;
    let view = registry::view(core, &id)?;
    let mut summary = match (view.status, view.last_seen) {
        (NodeStatus::Ready, _) => "It is ready for work".to_owned(),
        (NodeStatus::Disconnected, Some(at)) => {
            format!(
                "It is disconnected, last heard {}; what runs there goes on",
                tasks::clock(at)
            )
        }
        _ => "It enrolled and has not connected since".to_owned(),
    };
    if view.draining {
        summary += "; it is being drained: models and services move away, tasks end";
    } else if view.cordoned {
        summary += "; it is cordoned: nothing new is placed on it";
    }
    let (has, gave) = (view.capacity, view.allocated);
    let mut facts = vec![
        format!("tier {}, {} {}", view.tier, view.facts.os, view.facts.arch),
        format!(
            "CPU: {} of {} milli promised",
            gave.cpu_milli, has.cpu_milli
        ),
        format!(
            "memory: {} of {} bytes promised",
            gave.memory_bytes, has.memory_bytes
        ),
        format!(
            "disk: {} of {} bytes promised",
            gave.storage_bytes, has.storage_bytes
        ),
        format!("tasks: {} of {}", gave.tasks, has.tasks),
        format!("can run: {}", view.facts.capabilities.join(", ")),
    ];
    facts.extend(view.latest.map(|sample| {
        format!(
            "measured: CPU {} permille, memory {} KiB",
            sample.cpu_permille, sample.memory_used_kib
        )
    }));
    facts.extend(view.instances.iter().take(DECISIONS_SHOWN).map(|instance| {
        format!(
            "holds {} {} {:?}",
            instance.id, instance.token, instance.phase
        )
    }));
    facts.extend(
        services::staying_on(core, &id)
            .into_iter()
            .take(DECISIONS_SHOWN),
    );
    Ok((format!("node/{id}"), format!("{summary}."), facts))
}

fn service(core: &Core, name: &str) -> Result<Told, Problem> {
    let unknown = || {
        Problem::new(
            Code::ServiceUnknown,
            format!("there is no service `{name}`"),
        )
    };
    let id = name.parse().map_err(|_| unknown())?;
    let (summary, mut facts) = services::explain(core, &id)?;
    let view = services::view(core, &id)?;
    facts.push(format!("wanted: {}", wanted(&view.spec.placement)));
    Ok((format!("service/{id}"), summary, facts))
}

fn model(core: &Core, name: &str) -> Result<Told, Problem> {
    let id = name
        .parse()
        .map_err(|_| Problem::new(Code::ModelUnknown, format!("there is no model `{name}`")))?;
    let view = models::view(core, &id)?;
    let ready = view
        .replicas
        .iter()
        .filter(|replica| replica.status == "ready")
        .count();
    let summary = match view.deployed {
        None => "It is not deployed.".to_owned(),
        Some(version) => {
            format!(
                "Version {version} is deployed; {ready} of {} replicas are ready.",
                view.replicas.len()
            )
        }
    };
    let mut facts: Vec<String> = view
        .replicas
        .iter()
        .map(|replica| {
            let node = replica
                .node
                .as_ref()
                .map_or("no node".into(), ToString::to_string);
            let (id, status, reason) = (&replica.instance, &replica.status, &replica.reason);
            format!(
                "{id}: version {} on {node}, {status}: {reason}",
                replica.version
            )
        })
        .collect();
    facts.extend(view.versions.iter().take(DECISIONS_SHOWN).map(|version| {
        let inputs: Vec<_> = version.inputs.iter().map(ToString::to_string).collect();
        let outputs: Vec<_> = version.outputs.iter().map(ToString::to_string).collect();
        format!(
            "version {}: {} to {}",
            version.version,
            inputs.join(", "),
            outputs.join(", ")
        )
    }));
    facts.extend(
        view.spec
            .map(|spec| format!("wanted: {}", wanted(&spec.placement))),
    );
    Ok((format!("model/{id}"), summary, facts))
}
