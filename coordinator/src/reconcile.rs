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
    tasks,
};

/// Brings the whole node to what is wanted of it, after its inventory: there it may say that it
/// holds newer epochs than are recorded.
pub(crate) async fn node(core: &Core, node: &Node) {
    // The ledger before the node's life, never the other way round.
    let mut instances = core.nodes.ledger().instances(&node.id);
    instances.extend(node.live().held.keys().cloned());
    for (instance, epoch) in converge(core, node, &instances) {
        match (instance.as_task(), instance.as_model()) {
            (Some(task), _) => tasks::held_newer(core, &node.id, &task, epoch).await,
            (None, Some((model, n))) => models::held_newer(core, &model, n, epoch).await,
            (None, None) => {}
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
    let (epoch, stop) = match instance.as_task() {
        Some(task) => tasks::desired(core, node, &task)?,
        None => (models::desired(core, node, instance)?, false),
    };
    Some(Desired {
        epoch: planner::Epoch(epoch.0),
        spec: (),
        stop,
    })
}

/// Sends the difference. Answers what the node holds under a newer epoch than the record's.
fn converge(core: &Core, node: &Node, instances: &[InstanceId]) -> Vec<(InstanceId, Epoch)> {
    let mut newer = Vec::new();
    // What is wanted is read under the lock under which it is sent: whoever comes later has seen
    // more, and nothing older is sent after it.
    let mut live = node.live();
    let Some(session) = live.session.as_ref().filter(|session| session.known) else {
        return newer;
    };
    let link = session.link.clone();
    let (mut desired, mut observed) = (BTreeMap::new(), BTreeMap::new());
    for instance in instances {
        let wanted = desired_of(core, &node.id, instance);
        desired.extend(wanted.map(|wanted| (instance.clone(), wanted)));
        let holds = live.held.get(instance);
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
    newer
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
            };
            held.insert(instance.clone(), holds);
        }
        Action::Adopt { .. } | Action::Raise { .. } => {}
    }
    true
}

fn work_of(core: &Core, instance: &InstanceId, epoch: Epoch) -> Option<Work> {
    match (instance.as_task(), instance.as_model()) {
        (Some(task), _) => tasks::work(core, &task).map(Work::Task),
        (None, Some((model, replica))) => {
            models::work(core, &model, replica, epoch).map(Work::Model)
        }
        (None, None) => None,
    }
}

fn observed_of(holds: Holds) -> Observed {
    let phase = match holds.phase {
        // Its outcome is in a report: for a task the result, for a model that it runs no more.
        Phase::Ended => planner::Phase::Exited,
        _ if holds.stopping => planner::Phase::Stopping,
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
