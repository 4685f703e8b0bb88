//! Messages that their publishers keep until every subscriber has them.
//!
//! Nothing is kept here: whoever asks says which services have a message, is told which have it
//! now, and asks again for the rest, in order, one at a time for each publisher.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hop3_common::{
    id::ServiceName,
    spec::State,
    topics,
    wire::{OutgoingDone, Target, TopicMessage},
};

use super::{routes::Remote, table::Service};
use crate::Core;

/// Longest time for one subscriber; the publisher's next message waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Brings a message to every subscriber that does not have it.
pub(super) async fn deliver(
    core: &Core,
    message: &TopicMessage,
    has: Vec<ServiceName>,
) -> OutgoingDone {
    let before: BTreeSet<ServiceName> = has.into_iter().collect();
    let all = core.services.all().into_iter();
    let owed = all.filter(|service| {
        subscribes(service, &message.topic)
            && service.wanted() > 0
            && !before.contains(&service.record.name)
    });
    let told = join_all(owed.map(|service| async move {
        let settled = tell(core, &service, message).await;
        (service.record.name.clone(), settled)
    }));
    let (mut has, mut waits) = (Vec::new(), Vec::new());
    for (name, settled) in told.await {
        if settled {
            has.push(name);
        } else {
            waits.push(name);
        }
    }
    OutgoingDone::Mail { has, waits }
}

async fn tell(core: &Core, service: &Service, message: &TopicMessage) -> bool {
    let Some(to) = subscriber(core, service, &message.topic) else {
        return false;
    };
    let target = Target::Message {
        instance: to.instance.clone(),
        epoch: to.epoch,
        message: message.clone(),
    };
    let answer = to.link.call(target, TIMEOUT).await.map(drop);
    if let Err(problem) = &answer {
        tracing::debug!(instance = %to.instance, %problem, "message not handled");
    }
    topics::settled(&answer, service.record.spec.state)
}

/// Whether a service wants messages on `topic`.
pub(super) fn subscribes(service: &Service, topic: &str) -> bool {
    let subscribe = &service.record.spec.subscribe;
    subscribe.iter().any(|granted| granted.covers(topic))
}

/// Which instance of a service gets a message, if it serves: the shard of the topic's last
/// segment, the least busy replica.
pub(super) fn subscriber(core: &Core, service: &Service, topic: &str) -> Option<Arc<Remote>> {
    let spec = &service.record.spec;
    let ready = core.services.routes.ready(&service.record.name);
    match spec.state {
        State::None => ready.into_iter().min_by_key(|remote| remote.busy()),
        State::Single => ready.into_iter().next(),
        State::Keyed => {
            let shard = topics::shard(topic, spec.shards);
            ready.into_iter().find(|remote| remote.index() == shard)
        }
    }
}
