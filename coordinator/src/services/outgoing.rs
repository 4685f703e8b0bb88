//! What instances ask of the rest of the mesh: calls to services, messages to subscribers.
//!
//! Grants were checked by the agent, and are again: a node is not trusted with what its instances
//! may do. Effects of a run that is not the owner's any more are refused.
//!
//! Messages of publishers that keep them go to every subscriber ([`super::mail`]). All others are
//! delivered at most once: to each node in the order in which they came, from a queue of
//! [`QUEUE_MAX`]; what does not fit is dropped and counted.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId, ServiceName},
    ownership::Token,
    spec::State,
    wire::{
        Outgoing, OutgoingDone, OutgoingWhat, ServiceReply, ServiceRequest, Target, TopicMessage,
    },
};

use super::{mail, routes::Remote, table::Service};
use crate::Core;

/// Messages that wait for one node.
const QUEUE_MAX: usize = 1_024;
/// Longest time for one message: the next ones to that node wait behind it.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages on their way, by node.
#[derive(Default)]
pub(crate) struct Messages {
    queues: Mutex<HashMap<NodeId, VecDeque<Item>>>,
    dropped: AtomicU64,
}

struct Item {
    to: Arc<Remote>,
    message: TopicMessage,
}

/// Carries out what an agent asks.
pub(crate) async fn outgoing(
    core: &Core,
    node: &NodeId,
    asked: Outgoing,
) -> Result<OutgoingDone, Problem> {
    let deadline = Duration::from_millis(u64::from(asked.deadline_ms));
    let token = asked.from.as_ref().map(|(_, token)| *token);
    let from = match asked.from {
        Some((instance, token)) => Some((owner(core, node, &instance, token)?, instance)),
        None => None,
    };
    match asked.what {
        OutgoingWhat::Call {
            service,
            mut request,
        } => {
            if let Some((caller, instance)) = &from
                && !caller.record.spec.calls.contains(&service)
            {
                let message = format!("{instance} may not call `{service}`: `spec.calls`");
                return Err(Problem::new(Code::Forbidden, message));
            }
            request.from = from.map(|(_, instance)| instance);
            let reply = call(core, &service, &request, deadline).await?;
            Ok(OutgoingDone::Reply(reply))
        }
        OutgoingWhat::Publish(message) => {
            may_publish(from.as_ref(), &message)?;
            publish(core, node, &message);
            Ok(OutgoingDone::Done)
        }
        OutgoingWhat::Mail { message, has } => {
            may_publish(from.as_ref(), &message)?;
            Ok(mail::deliver(core, &message, has).await)
        }
        OutgoingWhat::Replica(write) => {
            let Some(((_, instance), token)) = from.zip(token) else {
                let message = "only instances have replicas";
                return Err(Problem::new(Code::Forbidden, message));
            };
            super::failover::replicate(core, instance, token, write).await?;
            Ok(OutgoingDone::Done)
        }
    }
}

/// Whether the asking instance may publish this, in its own name.
fn may_publish(
    from: Option<&(Arc<Service>, InstanceId)>,
    message: &TopicMessage,
) -> Result<(), Problem> {
    let Some((publisher, instance)) = from else {
        let message = "only instances publish";
        return Err(Problem::new(Code::Forbidden, message));
    };
    if message
        .from
        .as_ref()
        .is_some_and(|(from, _)| from != instance)
    {
        let message = format!("{instance} may not publish in another's name");
        return Err(Problem::new(Code::Forbidden, message));
    }
    let granted = &publisher.record.spec.publish;
    if !granted.iter().any(|topic| topic.covers(&message.topic)) {
        let topic: String = message.topic.chars().take(100).collect();
        let message = format!("{instance} may not publish to `{topic}`: `spec.publish`");
        return Err(Problem::new(Code::Forbidden, message));
    }
    Ok(())
}

/// The service of an instance that `node` owns under `token`'s epoch.
fn owner(
    core: &Core,
    node: &NodeId,
    instance: &InstanceId,
    token: Token,
) -> Result<Arc<Service>, Problem> {
    let stale = || {
        let message = format!("{instance} is not node `{node}`'s under run {token} any more");
        Problem::new(Code::NotHere, message)
    };
    let (name, index) = instance.as_service().ok_or_else(stale)?;
    let service = core.services.get(&name).ok_or_else(stale)?;
    let owns = service
        .instance(index)
        .is_some_and(|record| record.own.hears(node, token));
    owns.then_some(service).ok_or_else(stale)
}

async fn call(
    core: &Core,
    service: &ServiceName,
    request: &ServiceRequest,
    deadline: Duration,
) -> Result<ServiceReply, Problem> {
    let delivered = core
        .gateway
        .deliver(service, None, request, Some(deadline))
        .await?;
    if delivered.reply.stream.is_some() {
        let message = format!(
            "`{service}` answered with a client stream, which is not relayed between nodes: ask \
             the coordinator's gateway"
        );
        return Err(Problem::new(Code::ReplyInvalid, message));
    }
    Ok(delivered.reply)
}

/// Passes a message on to every subscriber that is not on `node`, which has seen to its own.
fn publish(core: &Core, node: &NodeId, message: &TopicMessage) {
    let topic = &message.topic;
    for service in core.services.all() {
        if !mail::subscribes(&service, topic) {
            continue;
        }
        let spec = &service.record.spec;
        let ready = core.services.routes.ready(&service.record.name);
        if spec.state == State::None && ready.iter().any(|remote| remote.link.node() == node) {
            continue;
        }
        let to = mail::subscriber(core, &service, topic);
        if let Some(to) = to.filter(|remote| remote.link.node() != node) {
            let message = message.clone();
            core.services.messages.push(core, Item { to, message });
        }
    }
}

impl Messages {
    fn queues(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, VecDeque<Item>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; the first one for a node begins to send.
    fn push(&self, core: &Core, item: Item) {
        let node = item.to.link.node().clone();
        let mut queues = self.queues();
        if let Some(queue) = queues.get_mut(&node) {
            if queue.len() < QUEUE_MAX {
                queue.push_back(item);
            } else {
                let dropped = self.dropped.fetch_add(1, Relaxed) + 1;
                // One line for each doubling: a flood of messages is none of lines.
                if dropped.is_power_of_two() {
                    tracing::warn!(%node, dropped, "messages dropped: the node is too slow");
                }
            }
            return;
        }
        let Some(core) = core.this.upgrade() else {
            return;
        };
        queues.insert(node.clone(), VecDeque::from([item]));
        drop(queues);
        tokio::spawn(async move { core.services.messages.send(&node).await });
    }

    /// Sends what waits for `node`, one after the other, until nothing does.
    async fn send(&self, node: &NodeId) {
        loop {
            let item = {
                let mut queues = self.queues();
                match queues.get_mut(node).and_then(VecDeque::pop_front) {
                    Some(item) => item,
                    None => {
                        queues.remove(node);
                        return;
                    }
                }
            };
            let target = Target::Message {
                instance: item.to.instance.clone(),
                epoch: item.to.epoch,
                message: item.message,
            };
            if let Err(problem) = item.to.link.call(target, MESSAGE_TIMEOUT).await {
                tracing::debug!(instance = %item.to.instance, %problem, "message not delivered");
            }
        }
    }
}
