//! Taking an instance over by force: its owner cannot be reached, and only the owner has its newest
//! state. An operator decides that, and is told what is lost.
//!
//! What the old owner accepts meanwhile is a branch: when it comes back it is sealed, its state is
//! kept for people, and nothing of it is merged.

use hop3_common::{
    api::{TakeOverRequest, TakeOverView},
    codes::{Code, Problem},
    id::{NodeId, ServiceName, UnixMs},
    ownership::Token,
    wire::{Checkpoint, Event},
};

use super::{
    converge::{carry_out, converge, instance_key, settle, whereabouts},
    failover::{forget_replica, take_state},
    leases, moves, place,
    plan::{Need, Where},
    table::Service,
};
use crate::{
    Core,
    decisions::Decision,
    reconcile::instance_on,
    records::{Batch, DEPOSED_MAX, Deposed},
    registry::Node,
    tasks::clock,
};

/// Gives an instance to another node without having heard of its owner.
pub(crate) async fn take_over(
    core: &Core,
    name: &ServiceName,
    request: TakeOverRequest,
) -> Result<TakeOverView, Problem> {
    let lock = core.locks.of("service", name.as_str()).await;
    let service = core.services.find(name)?;
    let index = moves::index_of(&service, request.index)? as usize;
    let (id, now) = (service.id(index), UnixMs::now());
    let refused = |why: String| Err(Problem::new(Code::TakeOverRefused, why));
    let Some(before) = service.instances.get(index).cloned() else {
        return refused(format!(
            "{id} was never placed: there is nothing to take over"
        ));
    };
    let Some(owner) = before.own.owner.clone() else {
        return refused(format!("{id} has no owner: it is placed by itself"));
    };
    if !service.record.spec.stateful() {
        return refused(format!("{id} has no state: it is placed anew by itself"));
    }
    if service.pinned() {
        let message = format!("{id} has state in directories of {owner}, which nobody else has");
        return Err(Problem::new(Code::Pinned, message));
    }
    if whereabouts(core, Some(&owner)) == Where::Here {
        return refused(format!(
            "{owner} is connected and has all of its state: `hop3 service migrate {name}`"
        ));
    }
    if service.record.spec.fence().is_some() && !leases::over(core, &id, &before) {
        return refused(format!(
            "the lease of {id} on {owner} is not over: it may still run, and goes on elsewhere by \
             itself when it is"
        ));
    }
    let replica = core.replicas.standing(&id).map(|standing| standing.end);
    let loss = loss(&before.checkpoint, replica.map(|end| end.seq), &owner);
    if !request.accept_loss {
        return refused(format!(
            "{loss}; say `accept_loss` (`--accept-loss`) to do it"
        ));
    }
    let mut next = (*service).clone();
    let (placement, node) = place::place(core, &next, index, Some(&owner), request.to.as_ref())?;
    let Some(node) = node else {
        return refused(format!("no node takes {id}: {placement}"));
    };
    core.services.leases().bar(&id, before.own.epoch);
    let taken = async {
        let kept = take_state(core, &id, before.checkpoint.as_ref()).await?;
        moves::give_up(&mut next, index, "it was taken over".into(), now);
        let revision = next.record.revision;
        let record = &mut next.instances[index];
        record.checkpoint = kept;
        record.tied = false;
        record.deposed.insert(
            0,
            Deposed {
                node: owner.clone(),
                epoch: before.own.epoch,
                at: now,
                branch: None,
            },
        );
        record.deposed.truncate(DEPOSED_MAX);
        record.assign(node.clone(), revision);
        let reason = format!("an operator took it over from {owner}: {loss}; {placement}");
        let decision = Decision::new(id.to_string(), "takeover", reason);
        let decision = decision.on(Some(&node)).by(Some(placement));
        carry_out(core, next, index, &before, decision, now).await
    };
    if let Err(problem) = taken.await {
        core.services.leases().unbar(&id);
        core.nodes.ledger().release(&node, &id);
        return Err(problem);
    }
    forget_replica(core, &id, before.own.epoch).await;
    settle(core, name, index, Need::FailOver, &before);
    drop(lock);
    converge(core, name).await;
    Ok(TakeOverView {
        instance: id,
        from: owner,
        to: node,
        lost: loss,
    })
}

/// What a take-over loses, in words.
fn loss(checkpoint: &Option<Checkpoint>, replica: Option<u64>, owner: &NodeId) -> String {
    let from = match (checkpoint, replica) {
        (None, None) => {
            return format!(
                "no state of it is here: it begins anew, and all that {owner} has is lost to it"
            );
        }
        (Some(cp), seq) => {
            let seq = cp.seq.max(seq.unwrap_or(0));
            format!(
                "it goes on from change {seq} (checkpoint of {})",
                clock(cp.at)
            )
        }
        (None, Some(seq)) => format!("it goes on from change {seq}"),
    };
    format!("{from}; what {owner} acknowledged after that is lost to it")
}

/// A report of an owner that was replaced: its state is kept as a branch.
pub(super) async fn deposed(
    core: &Core,
    node: &Node,
    service: &Service,
    index: u32,
    token: Token,
    event: &Event,
    batch: Batch,
) -> Result<Batch, Problem> {
    let mut next = service.clone();
    let Some(record) = next.instances.get_mut(index as usize) else {
        return Ok(batch);
    };
    let open = |deposed: &&mut Deposed| {
        deposed.node == node.id && deposed.epoch == token.epoch && deposed.branch.is_none()
    };
    let Some(entry) = record.deposed.iter_mut().find(open) else {
        return Ok(batch);
    };
    let reason = match event {
        Event::Sealed(checkpoint) => {
            entry.branch = Some(checkpoint.clone());
            format!(
                "{} came back with what it had accepted by itself: {} changes, kept as a branch and \
                 not merged",
                node.id, checkpoint.seq
            )
        }
        Event::Failed(problem) | Event::NotSealed(problem) => {
            let why = format!(
                "{} came back, and its state cannot be had: {problem}",
                node.id
            );
            record
                .deposed
                .retain(|d| d.node != node.id || d.epoch != token.epoch);
            why
        }
        _ => return Ok(batch),
    };
    let id = next.id(index as usize);
    let batch = batch.put(
        &instance_key(&next, index as usize),
        &next.instances[index as usize],
    )?;
    let decision = Decision::new(id.to_string(), "branch", reason).on(Some(&node.id));
    let batch = core.decisions.record(batch, decision, UnixMs::now())?;
    core.records.commit(batch).await?;
    core.services.show(next);
    instance_on(core, &node.id, &id);
    Ok(Batch::new())
}
