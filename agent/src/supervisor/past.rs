//! Assignments and reports as earlier builds stored them.
//!
//! Version 1 of them was written in two layouts (decision 0023): before there were leases,
//! and with them. Both are tried, the newer one first.

use std::collections::BTreeMap;

use hop3_common::{
    id::{Digest, InstanceId, ServiceName},
    ownership::{Epoch, LEASE_MS},
    spec::{Durability, KeyFrom, Millis, ServiceLimits, State, Topic, VolumeGrant},
    store::{RecordError, decode_body},
    wire::{Assignment, Checkpoint, Event, ModelWork, Report, ServiceWork, TaskWork, Work},
};
use serde::{Deserialize, de::DeserializeOwned};

#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
struct BeforeLeases {
    instance: InstanceId,
    epoch: Epoch,
    work: WorkBeforeLeases,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
enum WorkBeforeLeases {
    Task(TaskWork),
    Model(ModelWork),
    Service(Box<ServiceBeforeLeases>),
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
struct ServiceBeforeLeases {
    name: ServiceName,
    index: u32,
    count: u32,
    revision: u64,
    module: Digest,
    module_bytes: u64,
    state: State,
    key: KeyFrom,
    durability: Durability,
    checkpoint_every: Millis,
    checkpoint_keep: u32,
    env: BTreeMap<String, String>,
    subscribe: Vec<Topic>,
    publish: Vec<Topic>,
    calls: Vec<ServiceName>,
    volumes: Vec<VolumeGrant>,
    public: bool,
    limits: ServiceLimits,
    restore: Option<Checkpoint>,
}

impl From<ServiceBeforeLeases> for ServiceWork {
    fn from(old: ServiceBeforeLeases) -> Self {
        Self {
            name: old.name,
            index: old.index,
            count: old.count,
            revision: old.revision,
            module: old.module,
            module_bytes: old.module_bytes,
            state: old.state,
            key: old.key,
            durability: old.durability,
            fence: None,
            checkpoint_every: old.checkpoint_every,
            checkpoint_keep: old.checkpoint_keep,
            env: old.env,
            subscribe: old.subscribe,
            publish: old.publish,
            calls: old.calls,
            volumes: old.volumes,
            public: old.public,
            limits: old.limits,
            restore: old.restore,
        }
    }
}

impl From<BeforeLeases> for Assignment {
    fn from(old: BeforeLeases) -> Self {
        Self {
            instance: old.instance,
            epoch: old.epoch,
            work: match old.work {
                WorkBeforeLeases::Task(work) => Work::Task(work),
                WorkBeforeLeases::Model(work) => Work::Model(work),
                WorkBeforeLeases::Service(work) => Work::Service(Box::new((*work).into())),
            },
        }
    }
}

/// The assignment that parts of version 1 make up. The newer layout has a lease's length, or none,
/// where the older one has something else.
pub(super) fn assignment(bytes: &[u8]) -> Option<Assignment> {
    let leased = |lease: Millis| LEASE_MS.contains(&lease.0);
    match whole::<Assignment>(bytes) {
        Some(Assignment {
            work: Work::Service(work),
            ..
        }) if !work.fence.is_none_or(leased) => {}
        Some(assignment) => return Some(assignment),
        None => {}
    }
    whole::<BeforeLeases>(bytes).map(Into::into)
}

/// The report in a body of version 1. Before leases [`ServiceFacts`](hop3_common::wire::ServiceFacts)
/// ended without `replicated`, and with them such a report.
pub(super) fn report(kind: &'static str, body: &[u8]) -> Result<Report, RecordError> {
    decode_body(kind, body).or_else(|error| {
        let with_no = [body, &[0]].concat();
        match decode_body::<Report>(kind, &with_no) {
            Ok(report) if matches!(report.event, Event::ServiceReady(_)) => Ok(report),
            _ => Err(error),
        }
    })
}

/// What `bytes` encode, if nothing is left over.
fn whole<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::{
        id::UnixMs,
        ownership::Token,
        spec::{ByteSize, Retry},
        wire::ServiceFacts,
    };
    use proptest::prelude::*;

    use super::{super::samples, *};

    fn service() -> impl Strategy<Value = ServiceBeforeLeases> {
        let texts = prop::collection::btree_map("[A-Z]{1,3}", "[a-z]{0,3}", 0..3);
        (
            (0..60_000u64, 0..5u32, any::<bool>(), 1..2_000u64),
            texts,
            prop::collection::vec("[a-z]{1,3}", 0..3),
        )
            .prop_map(|((every, checkpoint_keep, public, mib), env, topics)| {
                let topics: Vec<Topic> = topics.iter().map(|t| t.parse().unwrap()).collect();
                let new = samples::service();
                ServiceBeforeLeases {
                    name: new.name,
                    index: new.index,
                    count: new.count,
                    revision: new.revision,
                    module: new.module,
                    module_bytes: new.module_bytes,
                    state: new.state,
                    key: new.key,
                    durability: new.durability,
                    checkpoint_every: Millis(every),
                    checkpoint_keep,
                    env,
                    subscribe: topics.clone(),
                    publish: topics,
                    calls: Vec::new(),
                    volumes: Vec::new(),
                    public,
                    limits: ServiceLimits {
                        memory: ByteSize::mib(mib),
                        ..new.limits
                    },
                    restore: None,
                }
            })
    }

    proptest! {
        #[test]
        fn both_layouts_are_told_apart(
            work in service(),
            fence in prop::option::of(LEASE_MS),
        ) {
            let old = BeforeLeases {
                instance: "service/s/0".parse().unwrap(),
                epoch: Epoch(1),
                work: WorkBeforeLeases::Service(Box::new(work)),
            };
            let bytes = postcard::to_allocvec(&old).unwrap();
            let mut new = Assignment::from(old);
            prop_assert_eq!(&assignment(&bytes).unwrap(), &new);
            let Work::Service(work) = &mut new.work else { unreachable!() };
            work.fence = fence.map(Millis);
            let bytes = postcard::to_allocvec(&new).unwrap();
            prop_assert_eq!(&assignment(&bytes).unwrap(), &new);
        }
    }

    #[test]
    fn reports_of_before_leases_are_read_and_cut_ones_are_not() {
        let report = |event| Report {
            instance: "service/s/0".parse().unwrap(),
            token: Token::default(),
            at: UnixMs(9),
            event,
        };
        let facts = ServiceFacts {
            fetch_us: 1,
            load_us: 2,
            restore_us: 3,
            seq: 4,
            schema: 5,
            state_bytes: 6,
            replicated: false,
        };
        let ready = report(Event::ServiceReady(facts));
        let bytes = postcard::to_allocvec(&ready).unwrap();
        let (last, before) = bytes.split_last().unwrap();
        assert_eq!(*last, 0);
        assert_eq!(super::report("report", &bytes).unwrap(), ready);
        assert_eq!(super::report("report", before).unwrap(), ready);
        assert!(super::report("report", &before[..before.len() - 1]).is_err());
        let sealed = postcard::to_allocvec(&report(Event::Sealed(samples::made(Token::default()))));
        let sealed = sealed.unwrap();
        assert!(super::report("report", &sealed).is_ok());
        // One that ends in a list of no parts, without the length of that list.
        assert!(super::report("report", &sealed[..sealed.len() - 1]).is_err());
    }

    #[test]
    fn what_did_not_change_is_read_as_it_was() {
        for work in [
            Work::Task(samples::task(Retry::Never)),
            Work::Model(samples::model()),
        ] {
            let stored = Assignment {
                instance: "task/a".parse().unwrap(),
                epoch: Epoch(2),
                work,
            };
            let bytes = postcard::to_allocvec(&stored).unwrap();
            assert_eq!(assignment(&bytes), Some(stored));
            assert_eq!(assignment(&bytes[1..]), None);
        }
    }
}
