//! Messages about services: what an instance runs, requests and messages to it, its checkpoints,
//! and client streams. Part of `hop3/1`, append-only as the rest.
//!
//! A **request** is a [`Call`](super::Call) with [`Target::Service`](super::Target): delivered to
//! the instance of that epoch or refused with [`Code::NotHere`](crate::codes::Code), which means
//! that it surely did not happen. Its answer comes when the change is as durable as the service
//! asks for.
//!
//! A reply with [`ServiceReply::stream`] is the head of a **client stream** (server-sent events,
//! WebSocket, a streamed body): whoever holds the client's connection opens a QUIC stream
//! (`StreamHeader::Client`) and attaches. Data is numbered from 1 in both directions and
//! acknowledged when it is durable, so that a stream survives moves and restarts of its instance:
//! whoever lost the other side attaches again and repeats what was not acknowledged.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Output;
use crate::{
    codes::Problem,
    id::{Digest, InstanceId, ServiceName, UnixMs},
    ownership::Token,
    spec::{Durability, KeyFrom, Millis, ServiceLimits, State, Topic, VolumeGrant},
};

/// Headers of a request or reply.
pub const HEADERS_MAX: usize = 64;
/// Bytes of all headers of a request or reply.
pub const HEADERS_BYTES_MAX: usize = 32 << 10;
/// Bytes of a path with its query.
pub const PATH_BYTES_MAX: usize = 8 << 10;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Largest piece of data on a client stream.
pub const STREAM_DATA_BYTES_MAX: usize = 1 << 20;
/// Largest frame of a client stream: one piece, or a head.
pub const CLIENT_FRAME_MAX: usize = STREAM_DATA_BYTES_MAX + (64 << 10);
/// Parts of a checkpoint: a base and a delta, with room.
pub const CHECKPOINT_PARTS_MAX: usize = 8;

/// A service's instance, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceWork {
    /// The service.
    pub name: ServiceName,
    /// Which replica or shard.
    pub index: u32,
    /// Of how many.
    pub count: u32,
    /// Counts changes of the service's spec.
    pub revision: u64,
    /// The module.
    pub module: Digest,
    /// The module's size.
    pub module_bytes: u64,
    /// What it keeps.
    pub state: State,
    /// Where a request's key is.
    pub key: KeyFrom,
    /// When a change is acknowledged.
    pub durability: Durability,
    /// It runs only with a lease of that length.
    pub fence: Option<Millis>,
    /// Time between checkpoints; 0 = none by time.
    pub checkpoint_every: Millis,
    /// Checkpoints kept on the node.
    pub checkpoint_keep: u32,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Topics it receives.
    pub subscribe: Vec<Topic>,
    /// Topics it may publish to.
    pub publish: Vec<Topic>,
    /// Services it may call.
    pub calls: Vec<ServiceName>,
    /// Granted directories.
    pub volumes: Vec<VolumeGrant>,
    /// Served by gateways without a token.
    pub public: bool,
    /// Bounds.
    pub limits: ServiceLimits,
    /// Where to begin, if this node has nothing newer of the instance: after a move.
    pub restore: Option<Checkpoint>,
}

/// A checkpoint of an instance. Its parts are blobs, applied in order: a base, then deltas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The run that made it.
    pub token: Token,
    /// Position: how many changes of the instance it contains.
    pub seq: u64,
    /// When, on the node's clock.
    pub at: UnixMs,
    /// The guest's version of its state.
    pub schema: u32,
    /// The blobs.
    pub parts: Vec<Output>,
}

impl Checkpoint {
    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// What a run adds to the replica of its instance at the coordinator. `stream` counts how often the
/// run began the replica: what an earlier one still brings is of no account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaWrite {
    /// The replica begins anew: with this checkpoint, whose parts are at the coordinator, and what
    /// changed since.
    Base {
        /// From 1, by one.
        stream: u64,
        /// Where it begins.
        checkpoint: Checkpoint,
        /// What is different now.
        since: Option<ReplicaChange>,
    },
    /// The next change.
    Change {
        /// Of the base that it builds on.
        stream: u64,
        /// What.
        change: ReplicaChange,
    },
}

/// A change of an instance's state, as its host wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaChange {
    /// How many changes the instance has then.
    pub seq: u64,
    /// The difference to the state before.
    pub delta: Bytes,
}

/// Runs in one request for leases.
pub const LEASES_MAX: usize = 1_024;
/// Largest change that travels by itself, bytes; a larger one goes as a checkpoint.
pub const REPLICA_CHANGE_BYTES_MAX: usize = 4 << 20;

/// What an instance says when it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceFacts {
    /// Time to fetch module and state; 0 = they were here.
    pub fetch_us: u64,
    /// Time to compile or load the module.
    pub load_us: u64,
    /// Time to put the state in place, or to initialise.
    pub restore_us: u64,
    /// Changes it had when it began.
    pub seq: u64,
    /// The guest's version of its state.
    pub schema: u32,
    /// Bytes of its state.
    pub state_bytes: u64,
    /// What it acknowledges is at the coordinator too.
    pub replicated: bool,
}

/// A request as its instance sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRequest {
    /// HTTP method.
    pub method: String,
    /// Path and query, without the service's name: `/a?b=c`.
    pub path: String,
    /// Headers, lower-case names, without those of the connection.
    pub headers: Vec<(String, Bytes)>,
    /// Body, or its beginning.
    pub body: Bytes,
    /// The rest of the body comes on a client stream, if the guest opens one.
    pub more: bool,
    /// Repeating the request under the same key gives the first answer.
    pub idempotency_key: Option<String>,
    /// The instance that asks, if it is one.
    pub from: Option<InstanceId>,
}

/// What a guest answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReply {
    /// HTTP status, 100 to 599; 101 accepts a WebSocket.
    pub status: u16,
    /// Headers, lower-case names.
    pub headers: Vec<(String, Bytes)>,
    /// Body, or its beginning.
    pub body: Bytes,
    /// More follows on this client stream.
    pub stream: Option<u64>,
}

/// How idempotency keys of calls between services begin. Clients cannot use such keys.
pub const CALL_KEY: &str = "hop3:";

/// A message on a topic, to one subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicMessage {
    /// The topic.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// The instance that published it, and the number of this effect of it.
    pub from: Option<(InstanceId, u64)>,
}

/// What an agent asks of the coordinator, many to a stream (`StreamHeader::Outgoing`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Names the reply; unique within the stream.
    pub id: u64,
    /// Time left for it.
    pub deadline_ms: u32,
    /// The instance that asks and its token; none for a client of the agent's gateway.
    pub from: Option<(InstanceId, Token)>,
    /// What.
    pub what: OutgoingWhat,
}

/// See [`Outgoing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutgoingWhat {
    /// Call a service by name.
    Call {
        /// Which.
        service: ServiceName,
        /// With what.
        request: ServiceRequest,
    },
    /// Publish to every subscriber that is not on the asking node: those got it already.
    Publish(TopicMessage),
    /// Keep what changed in the asking instance: durable when it is answered.
    Replica(ReplicaWrite),
    /// Bring a message that the publisher keeps to every subscriber that does not have it.
    Mail {
        /// What.
        message: TopicMessage,
        /// Services that have it.
        has: Vec<ServiceName>,
    },
}

/// What came of an [`Outgoing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutgoingDone {
    /// A message was passed on, a change is kept.
    Done,
    /// The reply of a call.
    Reply(ServiceReply),
    /// How far a kept message came.
    Mail {
        /// Services that have it now, and did not before.
        has: Vec<ServiceName>,
        /// Services that subscribe and do not have it yet.
        waits: Vec<ServiceName>,
    },
}

/// Answers an [`Outgoing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutgoingReply {
    /// Its id.
    pub id: u64,
    /// What came of it.
    pub result: Result<OutgoingDone, Problem>,
}

/// From whoever holds the client's connection to the instance, on a `Client` stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientUp {
    /// The first frame.
    Attach {
        /// Which stream of the instance.
        stream: u64,
        /// Data received from the instance so far.
        received: u64,
    },
    /// Data from the client.
    Data {
        /// From 1, by one.
        seq: u64,
        /// A WebSocket text message; else binary, or a piece of a body.
        text: bool,
        /// What.
        bytes: Bytes,
    },
    /// All data up to `seq` has reached the client.
    Ack {
        /// Last one.
        seq: u64,
    },
    /// The client sends no more: the end of a body, or the connection is closed. Numbered as data.
    Close {
        /// Its number.
        seq: u64,
        /// A WebSocket close code, or 0.
        code: u16,
    },
}

/// From the instance to the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientDown {
    /// Attached.
    Attached {
        /// Data received from the client so far.
        received: u64,
    },
    /// Not attached.
    Refused(Problem),
    /// Data for the client.
    Data {
        /// From 1, by one.
        seq: u64,
        /// A WebSocket text message.
        text: bool,
        /// What.
        bytes: Bytes,
    },
    /// All data up to `seq` is durable.
    Ack {
        /// Last one.
        seq: u64,
    },
    /// The guest closed the stream: nothing follows. Numbered as data.
    Close {
        /// Its number.
        seq: u64,
        /// A WebSocket close code, or 0.
        code: u16,
    },
}
