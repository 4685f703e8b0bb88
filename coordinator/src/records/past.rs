//! Layouts that earlier builds stored, for [`Record::upgrade`](hop3_common::store::Record).
//!
//! The first services were stored as version 1 in two layouts (decision 0023): before there were
//! leases, and with them. Which of the two a body has is told by what holds of every record
//! ([`leased`]): each is read as the newer layout first, and as the older one where that is not
//! possible.

use std::collections::BTreeMap;

use hop3_common::{
    id::{Digest, NodeId, ServiceName, UnixMs},
    ownership::{Epoch, LEASE_MS, Ownership, Token},
    spec::{
        CheckpointSpec, Durability, KeyFrom, Millis, Placement, Resources, ServiceLimits,
        ServiceSpec, State, Topic, VolumeGrant,
    },
    store::{Record, RecordError, decode_body},
    wire::Checkpoint,
};
use serde::Deserialize;

use super::{InstancePhase, MoveRecord, ServiceInstanceRecord, ServiceRecord};

/// A [`ServiceSpec`] before `on_partition` and `lease`.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
struct SpecBeforeLeases {
    module: String,
    state: State,
    replicas: u32,
    shards: u32,
    key: KeyFrom,
    durability: Durability,
    checkpoint: CheckpointSpec,
    env: BTreeMap<String, String>,
    subscribe: Vec<Topic>,
    publish: Vec<Topic>,
    calls: Vec<ServiceName>,
    volumes: Vec<VolumeGrant>,
    public: bool,
    placement: Placement,
    resources: Resources,
    limits: ServiceLimits,
}

impl From<SpecBeforeLeases> for ServiceSpec {
    fn from(old: SpecBeforeLeases) -> Self {
        Self {
            state: old.state,
            replicas: old.replicas,
            shards: old.shards,
            key: old.key,
            durability: old.durability,
            checkpoint: old.checkpoint,
            env: old.env,
            subscribe: old.subscribe,
            publish: old.publish,
            calls: old.calls,
            volumes: old.volumes,
            public: old.public,
            placement: old.placement,
            resources: old.resources,
            limits: old.limits,
            ..Self::new(old.module)
        }
    }
}

/// A [`ServiceRecord`] before leases.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
struct ServiceBeforeLeases {
    name: ServiceName,
    spec: SpecBeforeLeases,
    module: Digest,
    module_bytes: u64,
    revision: u64,
    created: UnixMs,
    floor: Epoch,
    last_move: Option<MoveRecord>,
}

impl From<ServiceBeforeLeases> for ServiceRecord {
    fn from(old: ServiceBeforeLeases) -> Self {
        Self {
            name: old.name,
            spec: old.spec.into(),
            module: old.module,
            module_bytes: old.module_bytes,
            revision: old.revision,
            created: old.created,
            floor: old.floor,
            last_move: old.last_move,
        }
    }
}

/// A [`ServiceInstanceRecord`] before leases.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug, serde::Serialize))]
struct InstanceBeforeLeases {
    epoch: Epoch,
    node: Option<NodeId>,
    revision: u64,
    phase: InstancePhase,
    tied: bool,
    checkpoint: Option<Checkpoint>,
    token: Token,
    moving: Option<MoveRecord>,
}

impl From<InstanceBeforeLeases> for ServiceInstanceRecord {
    fn from(old: InstanceBeforeLeases) -> Self {
        Self {
            own: Ownership {
                epoch: old.epoch,
                owner: old.node,
                token: old.token,
            },
            fence: None,
            revision: old.revision,
            phase: old.phase,
            tied: old.tied,
            checkpoint: old.checkpoint,
            moving: old.moving,
            deposed: Vec::new(),
        }
    }
}

/// Whether this can be the length of a lease.
fn leased(lease: Millis) -> bool {
    LEASE_MS.contains(&lease.0)
}

fn version<R: Record>(found: u16) -> RecordError {
    RecordError::Version {
        kind: R::KIND,
        found,
        known: R::VERSION,
    }
}

pub(super) fn service(from: u16, body: &[u8]) -> Result<ServiceRecord, RecordError> {
    if from != 1 {
        return Err(version::<ServiceRecord>(from));
    }
    let kind = ServiceRecord::KIND;
    match decode_body::<ServiceRecord>(kind, body) {
        Ok(record) if leased(record.spec.lease) => Ok(record),
        _ => decode_body::<ServiceBeforeLeases>(kind, body).map(Into::into),
    }
}

pub(super) fn instance(from: u16, body: &[u8]) -> Result<ServiceInstanceRecord, RecordError> {
    if from != 1 {
        return Err(version::<ServiceInstanceRecord>(from));
    }
    let kind = ServiceInstanceRecord::KIND;
    // The highest token heard of is of the newest epoch; none was heard of before the first.
    let holds = |record: &ServiceInstanceRecord| {
        let Ownership { epoch, token, .. } = record.own;
        let checkpoint = record.checkpoint.as_ref();
        (token.epoch == epoch || token == Token::default())
            && record.fence.is_none_or(leased)
            && checkpoint.is_none_or(|checkpoint| checkpoint.token.epoch <= epoch)
    };
    match decode_body::<ServiceInstanceRecord>(kind, body) {
        Ok(record) if holds(&record) => Ok(record),
        _ => decode_body::<InstanceBeforeLeases>(kind, body).map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::{
        id::InstanceId,
        ownership::Incarnation,
        spec::{ByteSize, service::OnPartition},
        wire::Output,
    };
    use proptest::prelude::*;

    use super::{super::MoveStage, *};

    fn body(of: &impl serde::Serialize) -> Vec<u8> {
        postcard::to_allocvec(of).unwrap()
    }

    fn node() -> impl Strategy<Value = NodeId> {
        "[a-z]{1,9}".prop_map(|name| name.parse().unwrap())
    }

    /// Small numbers most of all: they look like the tags of options.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..3u64, 0..5_000u64, any::<u64>()]
    }

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let at = 1_700_000_000_000..2_000_000_000_000u64;
        (number(), number(), number(), at, 0..3u32, 0..3usize).prop_map(
            |(epoch, incarnation, seq, at, schema, parts)| Checkpoint {
                token: Token {
                    epoch: Epoch(epoch),
                    incarnation: Incarnation(incarnation),
                },
                seq,
                at: UnixMs(at),
                schema,
                parts: (0..parts)
                    .map(|part| Output {
                        digest: Digest::of(&[part as u8]),
                        bytes: seq,
                    })
                    .collect(),
            },
        )
    }

    fn moved() -> impl Strategy<Value = MoveRecord> {
        let instance: InstanceId = "service/s/0".parse().unwrap();
        (node(), node(), number(), prop::option::of(number())).prop_map(
            move |(from, to, n, time)| MoveRecord {
                instance: instance.clone(),
                from,
                to,
                stage: MoveStage::Sealing,
                reason: "by hand".into(),
                began: UnixMs(n),
                sealing: time.map(UnixMs),
                ended: None,
                copied: vec![Digest::of(b"x")],
                copied_bytes: n,
                final_bytes: n,
                downtime_us: time,
            },
        )
    }

    fn spec() -> impl Strategy<Value = SpecBeforeLeases> {
        let durability = prop_oneof![Just(Durability::Memory), Just(Durability::Node)];
        let texts = || prop::collection::btree_map("[A-Z]{1,3}", "[a-z]{0,3}", 0..3);
        (
            (0..60_000u64, 0..5u32, 1..5u32, durability),
            texts(),
            prop::collection::vec("[a-z]{1,3}", 0..3),
            any::<bool>(),
            1..2_000u64,
        )
            .prop_map(
                |((every, keep, shards, durability), env, topics, public, mib)| {
                    let topics: Vec<Topic> = topics.iter().map(|t| t.parse().unwrap()).collect();
                    SpecBeforeLeases {
                        module: "m".into(),
                        state: State::Keyed,
                        replicas: 1,
                        shards,
                        key: KeyFrom::default(),
                        durability,
                        checkpoint: CheckpointSpec {
                            every: Millis(every),
                            keep,
                        },
                        env,
                        subscribe: topics.clone(),
                        publish: topics,
                        calls: Vec::new(),
                        volumes: Vec::new(),
                        public,
                        placement: Placement::default(),
                        resources: ServiceSpec::new("m").resources,
                        limits: ServiceLimits {
                            memory: ByteSize::mib(mib),
                            ..ServiceLimits::default()
                        },
                    }
                },
            )
    }

    fn own() -> impl Strategy<Value = (Epoch, Option<NodeId>, Token)> {
        (prop_oneof![1..4u64, 1..9_000u64], number(), node(), 0..3u8).prop_map(
            |(epoch, incarnation, node, kind)| {
                let epoch = Epoch(epoch);
                let token = Token {
                    epoch,
                    incarnation: Incarnation(incarnation),
                };
                match kind {
                    0 => (epoch, None, Token::default()),
                    1 => (epoch, None, token),
                    _ => (epoch, Some(node), token),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn both_layouts_of_a_service_are_told_apart(
            spec in spec(),
            lease in LEASE_MS,
            policy in prop::option::of(prop_oneof![
                Just(OnPartition::Fence),
                Just(OnPartition::Continue),
            ]),
            numbers in (number(), number(), number(), 0..9u64),
            last_move in prop::option::of(moved()),
        ) {
            let (module_bytes, revision, created, floor) = numbers;
            let old = ServiceBeforeLeases {
                name: "s".parse().unwrap(),
                spec,
                module: Digest::of(b"m"),
                module_bytes,
                revision,
                created: UnixMs(created),
                floor: Epoch(floor),
                last_move,
            };
            let bytes = body(&old);
            let mut record = ServiceRecord::from(old);
            prop_assert_eq!(&service(1, &bytes).unwrap(), &record);
            (record.spec.lease, record.spec.on_partition) = (Millis(lease), policy);
            prop_assert_eq!(&service(1, &body(&record)).unwrap(), &record);
        }

        #[test]
        fn both_layouts_of_an_instance_are_told_apart(
            (epoch, node, token) in own(),
            revision in number(),
            running in any::<bool>(),
            tied in any::<bool>(),
            checkpoint in prop::option::of(checkpoint()),
            moving in prop::option::of(moved()),
            fence in prop::option::of(LEASE_MS),
        ) {
            let checkpoint = checkpoint.map(|mut made| {
                made.token.epoch = made.token.epoch.min(epoch);
                made
            });
            let old = InstanceBeforeLeases {
                epoch,
                node,
                revision,
                phase: [InstancePhase::Assigned, InstancePhase::Running][usize::from(running)],
                tied,
                checkpoint,
                token,
                moving,
            };
            let bytes = body(&old);
            let mut record = ServiceInstanceRecord::from(old);
            prop_assert_eq!(&instance(1, &bytes).unwrap(), &record);
            record.fence = fence.map(Millis);
            prop_assert_eq!(&instance(1, &body(&record)).unwrap(), &record);
        }
    }

    #[test]
    fn other_versions_are_named() {
        let found = |error| {
            matches!(
                error,
                RecordError::Version {
                    found: 0,
                    known: 2,
                    ..
                }
            )
        };
        assert!(found(service(0, b"").unwrap_err()));
        assert!(found(instance(0, b"").unwrap_err()));
    }
}
