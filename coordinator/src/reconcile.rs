//! The shell around the optimizer's planner: what a node holds becomes what the records want.
//!
//! Level-triggered: each call looks at the records and at what the node is believed to hold, and
//! sends the difference. Sending is remembered as held, so that nothing is sent twice in a session;
//! the next session begins with an inventory, which is the truth again.

use std::collections::BTreeMap;

use hop3_common::{
    id::{InstanceId, NodeId},
    ownership::{Epoch, Incarnation, Token},
    wire::{Assignment, Down, Phase, Work},
};
use hop3_optimizer::reconcile::{self as planner, Action, Desired, Observed};

use crate::{
    Core, models,
    registry::{Holds, Link, Node},
    services, tasks,
};

/// Brings the whole node to what is wanted of it, after its inventory: there it may say that it
/// holds newer epochs than are recorded.
pub(crate) async fn node(core: &Core, node: &Node) {
    // The ledger before the node's life, never the other way round.
    let mut instances = core.nodes.ledger().instances(&node.id);
    instances.extend(node.live().held.keys().cloned());
    for (instance, epoch) in converge(core, node, &instances) {
        if let Some(task) = instance.as_task() {
            tasks::held_newer(core, &node.id, &task, epoch).await;
        } else if let Some((model, n)) = instance.as_model() {
            models::held_newer(core, &model, n, epoch).await;
        } else if let Some((service, n)) = instance.as_service() {
            services::held_newer(core, &node.id, &service, n, epoch).await;
        }
    }
}

/// Brings one instance on the node to what is wanted of it.
pub(crate) fn instance(core: &Core, node: &Node, instance: &InstanceId) {
    converge(core, node, std::slice::from_ref(instance));
}

/// As [`instance`], where only the node's name is at hand.
pub(crate) fn instance_on(core: &Core, name: &NodeId, id: &InstanceId) {
    if let Some(node) = core.nodes.get(name) {
        instance(core, &node, id);
    }
}

fn desired_of(core: &Core, node: &NodeId, instance: &InstanceId) -> Option<Desired<()>> {
    let (epoch, stop, seal) = if let Some(task) = instance.as_task() {
        let (epoch, stop) = tasks::desired(core, node, &task)?;
        (epoch, stop, false)
    } else if instance.as_service().is_some() {
        let (epoch, seal) = services::desired(core, node, instance)?;
        (epoch, false, seal)
    } else {
        (models::desired(core, node, instance)?, false, false)
    };
    Some(Desired {
        epoch: planner::Epoch(epoch.0),
        spec: (),
        stop,
        seal,
    })
}

/// Sends the difference. Answers what the node holds under a newer epoch than the record's.
fn converge(core: &Core, node: &Node, instances: &[InstanceId]) -> Vec<(InstanceId, Epoch)> {
    let (mut newer, mut leftovers) = (Vec::new(), Vec::new());
    // What is wanted is read under the lock under which it is sent: whoever comes later has seen
    // more, and nothing older is sent after it.
    let mut live = node.live();
    let Some(session) = live.session.as_ref().filter(|session| session.known) else {
        return newer;
    };
    let link = session.link.clone();
    let (mut desired, mut observed) = (BTreeMap::new(), BTreeMap::new());
    for instance in instances {
        let mut wanted = desired_of(core, &node.id, instance);
        let holds = live.held.get(instance);
        match holds.map(|holds| standing(core, instance, holds.token.epoch)) {
            // What an older service of that name left behind goes first.
            Some(Standing::Leftover) => {
                wanted = None;
                leftovers.push(instance.clone());
            }
            // The record was restored, maybe with another owner: what is here is the newest.
            Some(Standing::Newer(epoch)) => {
                newer.push((instance.clone(), epoch));
                continue;
            }
            Some(Standing::Known) | None => {}
        }
        desired.extend(wanted.map(|wanted| (instance.clone(), wanted)));
        observed.extend(holds.map(|holds| (instance.clone(), observed_of(*holds))));
    }
    for action in planner::plan(&desired, &observed) {
        match action {
            Action::Adopt { instance, epoch } => newer.push((instance.clone(), Epoch(epoch.0))),
            // A run that ended without a result reports it; the record then raises the epoch.
            Action::Raise { .. } => {}
            told => {
                if !tell(core, &*link, &mut live.held, &told) {
                    // The session is over; the next one begins with an inventory.
                    break;
                }
            }
        }
    }
    leftovers.retain(|instance| !live.held.contains_key(instance));
    drop(live);
    if !leftovers.is_empty() {
        // They are gone: now the new ones may come. Nothing is left over the second time.
        newer.extend(converge(core, node, &leftovers));
    }
    newer
}

/// How what a node holds of a service's instance stands to its record.
enum Standing {
    Leftover,
    Newer(Epoch),
    Known,
}

fn standing(core: &Core, instance: &InstanceId, held: Epoch) -> Standing {
    match services::floor_of(core, instance) {
        Some((floor, _)) if held <= floor => Standing::Leftover,
        Some((_, newest)) if held > newest => Standing::Newer(held),
        _ => Standing::Known,
    }
}

/// Sends what `action` says and remembers its effect. Whether the session still takes messages.
fn tell(
    core: &Core,
    link: &dyn Link,
    held: &mut BTreeMap<InstanceId, Holds>,
    action: &Action<'_, InstanceId, ()>,
) -> bool {
    let (instance, down) = match *action {
        Action::Stop {
            instance,
            epoch,
            reason,
        } => {
            let (epoch, reason) = (Epoch(epoch.0), format!("{reason:?}").to_lowercase());
            (
                instance,
                Down::Stop {
                    instance: instance.clone(),
                    epoch,
                    reason,
                },
            )
        }
        Action::Seal { instance, epoch } => (
            instance,
            Down::Seal {
                instance: instance.clone(),
                epoch: Epoch(epoch.0),
            },
        ),
        Action::Forget { instance, epoch } => (
            instance,
            Down::Forget {
                instance: instance.clone(),
                epoch: Epoch(epoch.0),
            },
        ),
        Action::Assign {
            instance, epoch, ..
        } => {
            let epoch = Epoch(epoch.0);
            // Gone from the records meanwhile: nothing to assign.
            let Some(work) = work_of(core, instance, epoch) else {
                return true;
            };
            let assignment = Assignment {
                instance: instance.clone(),
                epoch,
                work,
            };
            (instance, Down::Assign(Box::new(assignment)))
        }
        Action::Adopt { .. } | Action::Raise { .. } => return true,
    };
    if let Err(problem) = link.send(down) {
        tracing::warn!(node = %link.node(), %instance, %problem, "not sent");
        return link.is_open();
    }
    match *action {
        Action::Stop { .. } => {
            if let Some(holds) = held.get_mut(instance) {
                holds.stopping = true;
            }
        }
        Action::Seal { .. } => {
            if let Some(holds) = held.get_mut(instance) {
                holds.sealing = true;
            }
        }
        Action::Forget { .. } => drop(held.remove(instance)),
        Action::Assign { epoch, .. } => {
            let token = Token {
                epoch: Epoch(epoch.0),
                incarnation: Incarnation(0),
            };
            let holds = Holds {
                token,
                phase: Phase::Accepted,
                stopping: false,
                sealing: false,
            };
            held.insert(instance.clone(), holds);
        }
        Action::Adopt { .. } | Action::Raise { .. } => {}
    }
    true
}

fn work_of(core: &Core, instance: &InstanceId, epoch: Epoch) -> Option<Work> {
    if let Some(task) = instance.as_task() {
        return tasks::work(core, &task).map(Work::Task);
    }
    if let Some((model, replica)) = instance.as_model() {
        return models::work(core, &model, replica, epoch).map(Work::Model);
    }
    let (service, index) = instance.as_service()?;
    let work = services::work(core, &service, index, epoch)?;
    Some(Work::Service(Box::new(work)))
}

fn observed_of(holds: Holds) -> Observed {
    let phase = match holds.phase {
        // Its outcome is in a report: for a task the result, for a model that it runs no more.
        Phase::Ended => planner::Phase::Exited,
        _ if holds.stopping => planner::Phase::Stopping,
        _ if holds.sealing => planner::Phase::Sealing,
        Phase::Accepted | Phase::Preparing => planner::Phase::Starting,
        Phase::Running => planner::Phase::Running,
    };
    let epoch = planner::Epoch(holds.token.epoch.0);
    Observed {
        epoch,
        incarnation: holds.token.incarnation.0,
        phase,
    }
}
