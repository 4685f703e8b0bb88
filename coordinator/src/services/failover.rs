//! Going on elsewhere without the old owner: when the lease of a fenced instance is over.
//!
//! ```text
//! lease over ─► bar its epoch ─► seal its replica ─► checkpoint of its end ─► swap to a new owner
//! ```
//!
//! Until the swap is durable nothing has happened: the old owner gets leases again, and begins its
//! replica anew.

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId, ServiceName, UnixMs},
    ownership::{Epoch, Position, Token},
    wire::{Checkpoint, ReplicaWrite, close},
};
use tokio::task::spawn_blocking;

use super::{
    converge::{carry_out, converge, settle, waits},
    leases, moves, place,
    plan::Need,
    table::Service,
};
use crate::{Core, decisions::Decision};

/// Keeps what a run changed; durable when this returns `Ok`.
pub(super) async fn replicate(
    core: &Core,
    instance: InstanceId,
    token: Token,
    write: ReplicaWrite,
) -> Result<(), Problem> {
    let (replicas, blobs) = (core.replicas.clone(), core.blobs.clone());
    let written = spawn_blocking(move || {
        if let ReplicaWrite::Base { checkpoint, .. } = &write {
            let missing = checkpoint
                .parts
                .iter()
                .find(|part| !blobs.contains(&part.digest));
            if let Some(part) = missing {
                let message = format!("part {:?} of the checkpoint is not here", part.digest);
                return Err(Problem::new(Code::Storage, message));
            }
        }
        replicas.write(&instance, token, write)
    });
    written.await.map_err(panicked)?
}

fn panicked(_: tokio::task::JoinError) -> Problem {
    let message = "a thread that stores panicked";
    Problem::new(Code::Internal, message)
}

/// Looks for fenced instances whose lease is over: they go on elsewhere.
pub(crate) async fn fail_over_due(core: &Core) {
    for service in core.services.all() {
        if service.record.spec.fence().is_none() {
            continue;
        }
        let over = |(index, record)| leases::over(core, &service.id(index), record);
        let mut owned = service.instances.iter().enumerate();
        if owned.any(|(index, record)| record.own.owner.is_some() && over((index, record))) {
            converge(core, &service.record.name).await;
        }
    }
}

/// Position of a checkpoint.
pub(super) fn position(checkpoint: &Checkpoint) -> Position {
    Position {
        token: checkpoint.token,
        seq: checkpoint.seq,
    }
}

/// Takes an instance over whose lease is over. Whether it has a new owner.
pub(super) async fn fail_over(
    core: &Core,
    service: &Service,
    index: usize,
    now: UnixMs,
) -> Result<bool, Problem> {
    let id = service.id(index);
    let mut next = service.clone();
    let before = next.instances[index].clone();
    let owner = before.own.owner.clone();
    let (placement, node) = place::place(core, &next, index, owner.as_ref(), None)?;
    let Some(node) = node else {
        let gone = owner.map_or_else(String::new, |node| format!("its lease on {node} is over; "));
        waits(core, service, index, format!("{gone}{placement}"));
        return Ok(false);
    };
    if !leases::take(core, &id, &before) {
        core.nodes.ledger().release(&node, &id);
        return Ok(false);
    }
    let swapped = async {
        let kept = take_state(core, &id, before.checkpoint.as_ref()).await?;
        let from = owner.as_ref().map_or("nowhere", |node| node.as_str());
        let state = match &kept {
            Some(kept) => format!("with all {} changes that it had acknowledged", kept.seq),
            None => "it had acknowledged nothing yet, and begins anew".to_owned(),
        };
        let reason = format!("its lease on {from} is over: it goes on elsewhere, {state}; ");
        moves::give_up(
            &mut next,
            index,
            "the lease of its node is over".into(),
            now,
        );
        let revision = next.record.revision;
        let record = &mut next.instances[index];
        record.checkpoint = kept;
        record.tied = false;
        record.assign(node.clone(), revision);
        let decision = Decision::new(id.to_string(), "failover", format!("{reason}{placement}"));
        let decision = decision.on(Some(&node)).by(Some(placement));
        carry_out(core, next, index, &before, decision, now).await
    };
    if let Err(problem) = swapped.await {
        core.services.leases().unbar(&id);
        core.nodes.ledger().release(&node, &id);
        // It is tried again and again: what stands in the way is said, not logged each time.
        let why = format!("its lease is over, and it cannot go on elsewhere: {problem}");
        waits(core, service, index, why);
        return Ok(false);
    }
    forget_replica(core, &id, before.own.epoch).await;
    hang_up(core, owner.as_ref());
    settle(core, &service.record.name, index, Need::FailOver, &before);
    Ok(true)
}

/// Ends the session of a node that let its leases end: whoever waits for an answer from it hears at
/// once that there will be none. A node that is alive comes back.
fn hang_up(core: &Core, owner: Option<&NodeId>) {
    let node = owner.and_then(|owner| core.nodes.get(owner));
    if let Some(link) = node.and_then(|node| node.link()) {
        link.close(close::BUSY, "its leases ended: it did not renew them");
    }
}

/// The newest state that is here: the end of the replica, which takes nothing more, or the
/// checkpoint.
pub(super) async fn take_state(
    core: &Core,
    id: &InstanceId,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<Checkpoint>, Problem> {
    let (replicas, blobs) = (core.replicas.clone(), core.blobs.clone());
    let instance = id.clone();
    let sealed = spawn_blocking(move || replicas.seal(&instance, &blobs));
    let sealed = sealed.await.map_err(panicked)??;
    let older = |kept: &Checkpoint| checkpoint.is_none_or(|cp| position(cp) < position(kept));
    Ok(sealed.filter(older).or_else(|| checkpoint.cloned()))
}

/// What the replica was made into is recorded.
pub(super) async fn forget_replica(core: &Core, id: &InstanceId, epoch: Epoch) {
    let (replicas, instance) = (core.replicas.clone(), id.clone());
    let _ = spawn_blocking(move || replicas.forget(&instance, epoch)).await;
}

/// Forgets replicas and leases of a service that is gone.
pub(super) async fn forget(core: &Core, name: &ServiceName, instances: usize) {
    for index in 0..instances {
        let id = InstanceId::service(name, u32::try_from(index).unwrap_or(u32::MAX));
        forget_replica(core, &id, Epoch(u64::MAX)).await;
        core.services.leases().forget(&id);
    }
}
