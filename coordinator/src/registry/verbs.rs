//! What operators do to nodes.

use std::sync::Arc;

use hop3_common::{
    api::{EventView, NodePatch, NodeView, TelemetryView},
    codes::{Code, Problem},
    id::{NodeId, UnixMs},
    spec::placement::{LABELS_MAX, check_label_key, parse_label},
    wire::{Down, close},
};

use super::{Node, tell, view};
use crate::{
    Core,
    decisions::Decision,
    models,
    records::{Batch, CursorRecord, NodeRecord, RevokedRecord},
    services, tasks,
};

/// How long a node counts as watched after somebody looked.
const WATCHED_MS: u64 = 10_000;
/// Time between samples, and between batches, of a watched node and of another.
pub(crate) const TELEMETRY_WATCHED_MS: (u32, u32) = (1_000, 1_000);
pub(crate) const TELEMETRY_QUIET_MS: (u32, u32) = (10_000, 60_000);

pub(crate) async fn patch(
    core: &Core,
    node: &NodeId,
    patch: NodePatch,
) -> Result<NodeView, Problem> {
    let lock = core.locks.of("node", node.as_str()).await;
    let found = core.nodes.find(node)?;
    let before = found.record.load_full();
    let after = patched(&before, patch)?;
    if after == *before {
        return view(core, node);
    }
    let decision = Decision::new(format!("node/{node}"), "change", changes(&before, &after));
    let batch = Batch::new().put(node.as_str(), &after)?;
    core.records
        .commit(core.decisions.record(batch, decision, UnixMs::now())?)
        .await?;
    let moves = before.draining != after.draining || before.cordoned != after.cordoned;
    found.record.store(Arc::new(after));
    drop(lock);
    core.nodes.changed();
    tell(core, &found);
    if moves {
        models::converge_all(core).await;
        services::converge_all(core).await;
    }
    tasks::place_pending(core).await;
    view(core, node)
}

fn patched(before: &NodeRecord, patch: NodePatch) -> Result<NodeRecord, Problem> {
    let invalid = |field: &str, why: String| {
        Problem::new(Code::InvalidField, format!("`{field}` is refused: {why}"))
    };
    let mut after = before.clone();
    for key in &patch.remove_labels {
        after.labels.remove(key);
    }
    for (key, value) in patch.set_labels {
        check_label_key(&key).map_err(|why| invalid("set_labels", why))?;
        parse_label(&format!("{key}={value}")).map_err(|why| invalid("set_labels", why))?;
        after.labels.insert(key, value);
    }
    if after.labels.len() > LABELS_MAX {
        let why = format!("a node has at most {LABELS_MAX} labels");
        return Err(invalid("set_labels", why));
    }
    after.draining = patch.draining.unwrap_or(after.draining);
    // A drain begins with a cordon and its end leaves it, unless said otherwise.
    after.cordoned = patch
        .cordoned
        .unwrap_or(after.cordoned || patch.draining == Some(true));
    Ok(after)
}

fn changes(before: &NodeRecord, after: &NodeRecord) -> String {
    let mut said = Vec::new();
    if before.cordoned != after.cordoned {
        said.push(if after.cordoned {
            "cordoned"
        } else {
            "uncordoned"
        });
    }
    if before.draining != after.draining {
        said.push(if after.draining {
            "draining"
        } else {
            "drain ended"
        });
    }
    if before.labels != after.labels {
        said.push("labels changed");
    }
    format!("{} by an operator", said.join(", "))
}

/// Commits the removal, ends the session, and lets go of what ran there.
pub(crate) async fn remove(core: &Core, node: &NodeId) -> Result<(), Problem> {
    let lock = core.locks.of("node", node.as_str()).await;
    let found = core.nodes.find(node)?;
    let record = found.record.load_full();
    let now = UnixMs::now();
    let mut batch = Batch::new()
        .delete::<NodeRecord>(node.as_str())?
        .delete::<CursorRecord>(node.as_str())?;
    let keys: Vec<_> = std::iter::once(record.key)
        .chain(record.key_before)
        .collect();
    for key in &keys {
        let revoked = RevokedRecord {
            node: node.clone(),
            at: now,
        };
        batch = batch.put(&key.0.hex(), &revoked)?;
    }
    let reason = "removed by an operator: its certificate is worth nothing now".to_owned();
    let decision = Decision::new(format!("node/{node}"), "remove", reason);
    core.records
        .commit(core.decisions.record(batch, decision, now)?)
        .await?;
    keys.into_iter()
        .for_each(|key| core.nodes.revoke(key, node));
    core.nodes.take(node);
    if let Some(session) = found.live().session.take() {
        session
            .link
            .close(close::REVOKED, "this node was removed from the mesh");
    }
    drop(lock);
    core.nodes.changed();
    core.events.tell(|| EventView::NodeRemoved {
        node: node.to_string(),
    });
    tasks::node_removed(core, node).await;
    models::converge_all(core).await;
    services::converge_all(core).await;
    tasks::place_pending(core).await;
    Ok(())
}

pub(crate) fn telemetry(core: &Core, node: &NodeId) -> Result<TelemetryView, Problem> {
    let node = core.nodes.find(node)?;
    let samples = node.live().samples.iter().copied().collect();
    Ok(TelemetryView { samples })
}

/// Marks the node as watched: it reports every second for a while.
pub(crate) fn watch(core: &Core, node: &NodeId) -> Result<(), Problem> {
    let node = core.nodes.find(node)?;
    node.live().watched_until = UnixMs::now().plus(WATCHED_MS);
    set_telemetry(&node, TELEMETRY_WATCHED_MS);
    Ok(())
}

/// Slows down the telemetry of nodes that nobody watches any more.
pub(crate) fn watch_expired(core: &Core, now: UnixMs) {
    for node in core.nodes.all() {
        if node.live().watched_until < now {
            set_telemetry(&node, TELEMETRY_QUIET_MS);
        }
    }
}

fn set_telemetry(node: &Node, (sample_ms, batch_ms): (u32, u32)) {
    let mut live = node.live();
    let Some(session) = &mut live.session else {
        return;
    };
    if session.known && session.sample_ms != sample_ms {
        // Not sent: the session ends, and the next one begins slowly.
        let sent = session.link.send(Down::Telemetry {
            sample_ms,
            batch_ms,
        });
        session.sample_ms = if sent.is_ok() {
            sample_ms
        } else {
            session.sample_ms
        };
    }
}
