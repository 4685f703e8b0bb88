//! Sessions: nodes come, say what they hold, report, and go.

use std::sync::Arc;

use hop3_common::{
    codes::{Code, Problem},
    id::{NodeId, UnixMs},
    identity::PeerIdentity,
    wire::{Event, Held, Hello, NodeFacts, PROTOCOL, Phase, Report, Welcome, telemetry::Sample},
};

use super::{
    Link, Node, bounded,
    node::{Holds, Session},
    tell, verbs,
};
use crate::{
    Core, models, reconcile,
    records::{Batch, CursorRecord, NodeRecord},
    services, tasks,
};

/// A node came. Whoever has no record, or not this key, is refused.
pub(crate) async fn connected(
    core: &Core,
    identity: &PeerIdentity,
    hello: Hello,
    link: Arc<dyn Link>,
) -> Result<Welcome, Problem> {
    let id = &hello.node;
    if identity.node() != Some(id) || identity.mesh != core.mesh {
        let message = format!(
            "the certificate is not node `{id}`'s of mesh `{}`",
            core.mesh
        );
        return Err(Problem::new(Code::Forbidden, message));
    }
    let protocol = agreed(hello.protocol)?;
    let lock = core.locks.of("node", id.as_str()).await;
    let node = member(core, id, identity)?;
    let now = UnixMs::now();
    let before = node.record.load_full();
    let after = NodeRecord {
        facts: bounded(hello.facts),
        agent_version: hello.agent_version.chars().take(64).collect(),
        connected: Some(now),
        // It has shown its newest key: the one before is worth nothing now.
        key_before: before.key_before.filter(|_| identity.key != before.key),
        certificate_expires: before.certificate_expires.max(identity.validity.not_after),
        ..(*before).clone()
    };
    let cursor = {
        let cursor = node.live().cursor;
        let fresh = CursorRecord {
            outbox: hello.outbox,
            seq: 0,
        };
        if cursor.outbox == hello.outbox {
            cursor
        } else {
            fresh
        }
    };
    let differs = NodeRecord {
        connected: before.connected,
        ..after.clone()
    } != *before;
    if differs || before.connected.is_none() {
        core.records
            .commit(Batch::new().put(id.as_str(), &after)?)
            .await?;
    }
    node.record.store(Arc::new(after));
    let (sample_ms, batch_ms) = verbs::TELEMETRY_QUIET_MS;
    let known = false;
    let session = Session {
        link,
        since: now,
        key: identity.key,
        known,
        sample_ms,
    };
    let welcome = Welcome {
        protocol,
        mesh: core.mesh.clone(),
        coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
        now,
        acked_seq: cursor.seq,
        sample_ms,
        batch_ms,
    };
    {
        let mut live = node.live();
        if live
            .session
            .as_ref()
            .is_some_and(|s| s.link.session() > session.link.session())
        {
            return Err(Problem::new(
                Code::Conflict,
                "a newer session of this node stands",
            ));
        }
        live.cursor = cursor;
        live.last_seen = Some(now);
        live.session = Some(session);
    }
    drop(lock);
    tracing::info!(node = %id, "connected");
    Ok(welcome)
}

fn agreed((oldest, newest): (u16, u16)) -> Result<u16, Problem> {
    let ours = PROTOCOL;
    let common = newest.min(ours.1);
    if common < oldest.max(ours.0) {
        let message = format!(
            "the agent speaks protocol {oldest} to {newest}, this coordinator {} to {}",
            ours.0, ours.1
        );
        return Err(Problem::new(Code::VersionUnsupported, message));
    }
    Ok(common)
}

fn member(core: &Core, id: &NodeId, identity: &PeerIdentity) -> Result<Arc<Node>, Problem> {
    let revoked = || {
        let message = format!("node `{id}` was removed from mesh `{}`", core.mesh);
        Problem::new(Code::NodeRevoked, message)
    };
    if core.nodes.revoked(&identity.key).is_some() {
        return Err(revoked());
    }
    let node = core.nodes.get(id).ok_or_else(revoked)?;
    let record = node.record.load();
    if record.key != identity.key && record.key_before != Some(identity.key) {
        let message = format!("node `{id}` has a newer key than this certificate's");
        return Err(Problem::new(Code::RenewalRefused, message));
    }
    Ok(node)
}

/// The node whose session `link` is, if that session stands.
fn standing(core: &Core, link: &dyn Link) -> Option<Arc<Node>> {
    let node = core.nodes.get(link.node())?;
    let stands = node.live().is_session(link.session());
    stands.then_some(node)
}

/// Everything the node holds: what is missing is sent, what is too much is ended.
pub(crate) async fn inventory(core: &Core, link: &dyn Link, held: Vec<Held>) {
    let Some(node) = standing(core, link) else {
        return;
    };
    {
        let mut live = node.live();
        let holds = |h: &Held| Holds {
            token: h.token,
            phase: h.phase,
            stopping: false,
            sealing: false,
        };
        live.held = held
            .into_iter()
            .map(|h| (h.instance.clone(), holds(&h)))
            .collect();
        live.away_since = None;
        live.lost = false;
        if let Some(session) = &mut live.session {
            session.known = true;
        }
    }
    core.nodes.changed();
    tell(core, &node);
    tasks::node_back(core, &node.id).await;
    models::node_back(core, &node).await;
    services::node_back(core, &node).await;
    reconcile::node(core, &node).await;
    models::converge_all(core).await;
    services::converge_all(core).await;
    tasks::place_pending(core).await;
    // Clients of its tasks wait for it too, where nothing about the task changed.
    tasks::changed(core);
}

/// Takes a report: durable, with the node's cursor in the same commit, when it returns `Ok`.
pub(crate) async fn report(
    core: &Core,
    link: &dyn Link,
    seq: u64,
    report: Report,
) -> Result<(), Problem> {
    let node = standing(core, link)
        .ok_or_else(|| Problem::new(Code::Conflict, "a newer session of this node stands"))?;
    let cursor = {
        let mut live = node.live();
        if seq <= live.cursor.seq {
            return Ok(());
        }
        live.last_seen = Some(UnixMs::now());
        // Only of what it holds: a late report does not bring back what it forgot.
        if let Some(held) = live.held.get_mut(&report.instance)
            && held.token <= report.token
        {
            held.token = report.token;
            held.phase = phase_after(
                &report.event,
                held.phase,
                report.instance.as_service().is_some(),
            );
        }
        CursorRecord { seq, ..live.cursor }
    };
    let batch = Batch::new().put(node.id.as_str(), &cursor)?;
    let instance = report.instance.clone();
    if let Some(task) = instance.as_task() {
        tasks::reported(core, &node, &task, report, batch).await?;
    } else if let Some((model, replica)) = instance.as_model() {
        models::reported(core, &node, &model, replica, report, batch).await?;
    } else if let Some((service, index)) = instance.as_service() {
        services::reported(core, &node, &service, index, report, batch).await?;
    } else {
        core.records.commit(batch).await?;
    }
    {
        let mut live = node.live();
        if live.cursor.outbox == cursor.outbox {
            live.cursor.seq = live.cursor.seq.max(seq);
        }
    }
    reconcile::instance(core, &node, &instance);
    Ok(())
}

/// Where an instance stands after a report.
fn phase_after(event: &Event, before: Phase, service: bool) -> Phase {
    match event {
        // A service that was started puts its state in place first.
        Event::Started { .. } if service => before.max(Phase::Preparing),
        Event::Started { .. } | Event::ModelReady(_) | Event::ServiceReady(_) => Phase::Running,
        Event::TaskEnded(_) | Event::Failed(_) | Event::Stopped | Event::Sealed(_) => Phase::Ended,
        Event::Checkpointed(_) | Event::NotSealed(_) => before,
    }
}

/// The node's facts changed.
pub(crate) async fn facts(core: &Core, link: &dyn Link, facts: NodeFacts) {
    let Some(node) = standing(core, link) else {
        return;
    };
    let lock = core.locks.of("node", node.id.as_str()).await;
    let record = NodeRecord {
        facts: bounded(facts),
        ..(*node.record.load_full()).clone()
    };
    let stored = match Batch::new().put(node.id.as_str(), &record) {
        Ok(batch) => core.records.commit(batch).await,
        Err(problem) => Err(problem),
    };
    if let Err(problem) = stored {
        // The node says it again at its next session.
        tracing::warn!(node = %node.id, %problem, "facts not stored");
        return;
    }
    node.record.store(Arc::new(record));
    drop(lock);
    core.nodes.changed();
    tell(core, &node);
    tasks::place_pending(core).await;
}

/// Samples came.
pub(crate) fn samples(core: &Core, link: &dyn Link, samples: &[Sample]) {
    let Some(node) = standing(core, link) else {
        return;
    };
    {
        let mut live = node.live();
        live.last_seen = Some(UnixMs::now());
        live.push_samples(samples);
    }
    tell(core, &node);
}

/// The session ended. What runs there goes on; whether it is lost, time will tell.
pub(crate) async fn disconnected(core: &Core, link: &dyn Link, why: &str) {
    let Some(node) = core.nodes.get(link.node()) else {
        return;
    };
    {
        let mut live = node.live();
        if !live.is_session(link.session()) {
            return;
        }
        live.session = None;
        live.away_since = Some(UnixMs::now());
        live.last_seen = live.away_since;
    }
    tracing::info!(node = %node.id, why, "disconnected");
    core.nodes.changed();
    tell(core, &node);
    models::refresh_node(core, &node.id);
    services::refresh_node(core, &node.id);
    tasks::changed(core);
}
