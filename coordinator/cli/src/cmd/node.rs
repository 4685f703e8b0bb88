//! `hop3 node …`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hop3_common::{
    api::{JoinTokenCreated, JoinTokenRequest, JoinTokenView, NodePatch, NodeStatus, NodeView},
    id::{NodeId, UnixMs},
    spec::{ByteSize, Millis, placement::parse_label},
    wire::telemetry::Sample,
};

use crate::{
    args::{Format, NodeCommand, TokenCommand},
    client::{Client, segment},
    output::{self, ago, confirm, facts, table},
};

/// Time between looks while something is waited for.
const POLL: Duration = Duration::from_millis(300);

/// Runs a node command.
pub async fn run(client: &Client, format: Format, command: &NodeCommand) -> Result<()> {
    match command {
        NodeCommand::Token(command) => token(client, format, command).await,
        NodeCommand::Ls => {
            let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
            output::print(format, &nodes, |nodes| nodes_table(nodes, UnixMs::now()))
        }
        NodeCommand::Show { node, watch: false } => {
            let view: NodeView = client.get(&path(node)).await?;
            output::print(format, &view, node_text)
        }
        NodeCommand::Show { node, watch: true } => loop {
            let view: NodeView = client.get(&path(node)).await?;
            super::status::refresh(format, &view, node_text)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        NodeCommand::Label { node, labels } => {
            let mut patch = NodePatch::default();
            for label in labels {
                match label.strip_suffix('-') {
                    Some(key) if !label.contains('=') => patch.remove_labels.push(key.to_owned()),
                    _ => {
                        let (key, value) = parse_label(label).map_err(anyhow::Error::msg)?;
                        patch.set_labels.insert(key, value);
                    }
                }
            }
            patch_node(client, format, node, &patch).await
        }
        NodeCommand::Cordon { node } => {
            let patch = NodePatch {
                cordoned: Some(true),
                ..NodePatch::default()
            };
            patch_node(client, format, node, &patch).await
        }
        NodeCommand::Uncordon { node } => {
            let patch = NodePatch {
                cordoned: Some(false),
                draining: Some(false),
                ..NodePatch::default()
            };
            patch_node(client, format, node, &patch).await
        }
        NodeCommand::Drain { node, timeout } => drain(client, node, *timeout).await,
        NodeCommand::Rm { node, yes } => {
            confirm(&format!("revoke {node} for good"), *yes)?;
            client.delete(&path(node)).await?;
            output::note(&format!("{node} is revoked"));
            Ok(())
        }
    }
}

fn path(node: &NodeId) -> String {
    format!("/v1/nodes/{}", segment(node.as_str()))
}

async fn patch_node(
    client: &Client,
    format: Format,
    node: &NodeId,
    patch: &NodePatch,
) -> Result<()> {
    let view: NodeView = client.patch(&path(node), patch).await?;
    output::print(format, &vec![view], |nodes| {
        nodes_table(nodes, UnixMs::now())
    })
}

async fn drain(client: &Client, node: &NodeId, timeout: Millis) -> Result<()> {
    let patch = NodePatch {
        draining: Some(true),
        ..NodePatch::default()
    };
    let mut view: NodeView = client.patch(&path(node), &patch).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout.0);
    let mut shown = usize::MAX;
    while !view.instances.is_empty() {
        if view.instances.len() != shown {
            shown = view.instances.len();
            output::note(&format!(
                "{node} is cordoned; waiting for {shown} instances to end"
            ));
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "{node} still holds {} after {timeout}; it stays cordoned",
            view.instances
                .iter()
                .map(|i| i.id.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        );
        tokio::time::sleep(POLL).await;
        view = client.get(&path(node)).await?;
    }
    output::note(&format!("{node} is drained"));
    Ok(())
}

async fn token(client: &Client, format: Format, command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create {
            tier,
            labels,
            name,
            ttl,
            quiet,
        } => {
            let request = JoinTokenRequest {
                tier: *tier,
                labels: labels.iter().cloned().collect(),
                node: name.clone(),
                ttl: Some(*ttl),
            };
            let created: JoinTokenCreated = client.post("/v1/join-tokens", &request).await?;
            if *quiet {
                output::print_line(&created.token);
                return Ok(());
            }
            output::note(&format!(
                "paste this on the node (one use, valid for {ttl}):"
            ));
            output::print(format, &created, |created| created.command.clone())
        }
        TokenCommand::Ls => {
            let tokens: Vec<JoinTokenView> = client.get("/v1/join-tokens").await?;
            output::print(format, &tokens, |tokens| tokens_table(tokens))
        }
        TokenCommand::Revoke { id } => {
            client
                .delete(&format!("/v1/join-tokens/{}", segment(id)))
                .await?;
            output::note(&format!("join token {id} is revoked"));
            Ok(())
        }
    }
    .context("join token")
}

fn tokens_table(tokens: &[JoinTokenView]) -> String {
    let now = UnixMs::now();
    table(
        [
            "ID",
            "TIER",
            "NAME",
            "LABELS",
            "STATUS",
            "EXPIRES IN",
            "USED BY",
        ],
        tokens.iter().map(|t| {
            [
                t.id.clone(),
                t.tier.to_string(),
                t.node.as_ref().map_or("-".to_owned(), ToString::to_string),
                labels(&t.labels),
                t.status.clone(),
                Millis(t.expires.since(now)).to_string(),
                t.used_by
                    .as_ref()
                    .map_or("-".to_owned(), ToString::to_string),
            ]
        }),
    )
}

fn labels(labels: &hop3_common::spec::Labels) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn status(node: &NodeView) -> String {
    let mut text = match node.status {
        NodeStatus::Ready => "ready",
        NodeStatus::Disconnected => "disconnected",
        NodeStatus::Enrolled => "enrolled",
    }
    .to_owned();
    if node.draining {
        text.push_str(", draining");
    } else if node.cordoned {
        text.push_str(", cordoned");
    }
    text
}

fn temperature(sample: &Sample) -> String {
    sample
        .temperature_decicelsius
        .map_or("-".to_owned(), |t| format!("{:.1} °C", f64::from(t) / 10.0))
}

/// A line per node.
pub fn nodes_table(nodes: &[NodeView], now: UnixMs) -> String {
    if nodes.is_empty() {
        return "no nodes: enroll one with `hop3 node token create --tier edge`".to_owned();
    }
    table(
        [
            "NODE",
            "TIER",
            "STATUS",
            "CPU",
            "MEMORY",
            "DISK",
            "NET IN/OUT",
            "TEMP",
            "RUNS",
            "SEEN",
        ],
        nodes.iter().map(|n| {
            let s = n.latest.unwrap_or_default();
            let known = |text: String| {
                if n.latest.is_some() {
                    text
                } else {
                    "-".to_owned()
                }
            };
            let kib = |kib: u64| ByteSize(kib * 1024);
            [
                n.id.to_string(),
                n.tier.to_string(),
                status(n),
                known(format!("{:.0}%", f64::from(s.cpu_permille) / 10.0)),
                known(format!(
                    "{} / {}",
                    kib(s.memory_used_kib),
                    kib(n.facts.memory_kib)
                )),
                known(format!(
                    "{} / {}",
                    kib(s.disk_used_kib),
                    kib(n.facts.disk_kib)
                )),
                known(format!(
                    "{}/s {}/s",
                    ByteSize(s.net_rx_bytes_per_s),
                    ByteSize(s.net_tx_bytes_per_s)
                )),
                known(temperature(&s)),
                n.instances.len().to_string(),
                n.last_seen
                    .map_or("never".to_owned(), |seen| ago(now, seen)),
            ]
        }),
    )
}

fn node_text(n: &NodeView) -> String {
    let f = &n.facts;
    let kib = |kib: u64| ByteSize(kib * 1024);
    let mut lines = vec![
        ("node", n.id.to_string()),
        ("tier", n.tier.to_string()),
        ("status", status(n)),
        ("labels", labels(&n.labels)),
        (
            "data",
            if f.data.is_empty() {
                "-".to_owned()
            } else {
                f.data.join(", ")
            },
        ),
        (
            "machine",
            format!("{} · {} · {} · {} CPUs", f.hostname, f.os, f.arch, f.cpus),
        ),
        (
            "agent",
            format!("{} · runs {}", n.agent_version, f.capabilities.join(", ")),
        ),
        (
            "address",
            n.address.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        (
            "round trip",
            n.rtt_us.map_or("-".to_owned(), output::micros),
        ),
        (
            "certificate",
            format!(
                "{} left",
                Millis(n.certificate_expires.since(UnixMs::now()))
            ),
        ),
        (
            "allocated",
            format!(
                "CPU {} of {} milli, memory {} of {}, tasks {} of {}",
                n.allocated.cpu_milli,
                n.capacity.cpu_milli,
                ByteSize(n.allocated.memory_bytes),
                ByteSize(n.capacity.memory_bytes),
                n.allocated.tasks,
                n.capacity.tasks
            ),
        ),
    ];
    if !f.volumes.is_empty() {
        lines.push(("volumes", f.volumes.join(", ")));
    }
    if let Some(s) = n.latest {
        let load = f64::from(s.load1_centi) / 100.0;
        lines.push((
            "cpu",
            format!("{:.1} % (load {load:.2})", f64::from(s.cpu_permille) / 10.0),
        ));
        lines.push((
            "memory",
            format!("{} of {}", kib(s.memory_used_kib), kib(f.memory_kib)),
        ));
        lines.push((
            "disk",
            format!("{} of {}", kib(s.disk_used_kib), kib(f.disk_kib)),
        ));
        lines.push((
            "network",
            format!(
                "{}/s in, {}/s out",
                ByteSize(s.net_rx_bytes_per_s),
                ByteSize(s.net_tx_bytes_per_s)
            ),
        ));
        lines.push(("temperature", temperature(&s)));
        lines.push((
            "agent memory",
            format!(
                "{} (models {})",
                kib(s.agent_rss_kib.into()),
                kib(s.models_rss_kib.into())
            ),
        ));
        lines.push((
            "event loop",
            format!("at most {} ms late (p99)", s.loop_delay_p99_ms),
        ));
    }
    let mut text = facts(&lines);
    if !n.instances.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(
            ["INSTANCE", "TOKEN", "PHASE"],
            n.instances.iter().map(|i| {
                [
                    i.id.to_string(),
                    i.token.to_string(),
                    format!("{:?}", i.phase).to_lowercase(),
                ]
            }),
        ));
    }
    text
}
