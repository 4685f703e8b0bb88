//! What goes into a call and what comes out. Plain data.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::wasm::{Grants, Usage};

/// Calls of an instance's guest that have not ended: each is remembered, and its end is told.
pub const CALLS_MAX: usize = 1_024;
/// Kept messages of an instance that not every subscriber has.
pub const LETTERS_MAX: usize = 4_096;
/// Bytes of them, topics included.
pub const LETTER_BYTES_MAX: u64 = 16 << 20;

/// What an instance is given for its whole life.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Its name, for the guest: `service/NAME/INDEX`.
    pub name: String,
    /// Which replica or shard.
    pub index: u32,
    /// Of how many.
    pub count: u32,
    /// Environment of the guest.
    pub env: Vec<(String, String)>,
    /// Directories.
    pub grants: Grants,
    /// Topics it may publish to; a last segment `*` stands for all below.
    pub publish: Vec<String>,
    /// Services it may call.
    pub calls: BTreeSet<String>,
    /// Bounds.
    pub limits: Limits,
    /// Whether state outlives a call. Without, a failed call only discards the instance's memory,
    /// no pages are tracked, and the image stays the initial one.
    pub stateful: bool,
    /// Seed of the guest's random numbers.
    pub seed: [u8; 32],
}

/// Kept messages of an instance that not every subscriber has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Letters {
    /// How many.
    pub count: usize,
    /// Their bytes, topics included.
    pub bytes: u64,
}

impl Letters {
    /// With one more of `bytes`, if there is room.
    #[must_use]
    pub fn and(self, bytes: u64) -> Option<Self> {
        let next = Self {
            count: self.count + 1,
            bytes: self.bytes + bytes,
        };
        (next.count <= LETTERS_MAX && next.bytes <= LETTER_BYTES_MAX).then_some(next)
    }
}

/// What an instance and each of its calls may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory, bytes.
    pub memory_bytes: u64,
    /// Keys and values together, bytes.
    pub kv_bytes: u64,
    /// CPU time of one call, ms.
    pub cpu_ms: u64,
    /// Time of one call, ms.
    pub wall_ms: u64,
    /// Reply body; also what one call may send on streams, publish, call with and log, each, bytes.
    pub reply_bytes: u64,
    /// Timers set at once.
    pub timers: u32,
    /// Client streams open at once.
    pub streams: u32,
    /// Host calls per second of a running handler.
    pub host_calls_per_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            kv_bytes: 16 << 20,
            cpu_ms: 1_000,
            wall_ms: 10_000,
            reply_bytes: 1 << 20,
            timers: 1_000,
            streams: 1_000,
            host_calls_per_s: 1_000_000,
        }
    }
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A request.
    Request {
        /// `GET` …
        method: String,
        /// Path and query.
        path: String,
        /// Headers, lower-case names.
        headers: Vec<(String, Bytes)>,
        /// Body.
        body: Bytes,
        /// The rest of the body would come on a stream.
        more: bool,
        /// The instance that asks.
        from: Option<String>,
    },
    /// A message on a topic.
    Topic {
        /// The topic.
        topic: String,
        /// What.
        payload: Bytes,
        /// The instance that published it.
        from: Option<String>,
    },
    /// Data on a client stream.
    StreamData {
        /// Which stream.
        stream: u64,
        /// A WebSocket text message.
        text: bool,
        /// What.
        bytes: Bytes,
    },
    /// A client stream ended at the client's side. It is closed for the guest too.
    StreamClosed {
        /// Which stream.
        stream: u64,
        /// Why.
        code: u16,
    },
    /// A call made by the guest ended.
    CallEnded {
        /// Which call.
        call: u64,
        /// Status, headers, body; or why there is no reply.
        result: Result<Reply, String>,
    },
    /// A timer is due. It is no longer set.
    Timer {
        /// Which timer.
        timer: u64,
    },
}

/// What a guest answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers, lower-case names, checked.
    pub headers: Vec<(String, Bytes)>,
    /// Body.
    pub body: Bytes,
    /// The client stream whose head this is.
    pub stream: Option<u64>,
}

/// What a call wants to happen in the world, once its change is durable. In the guest's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Publish a message. `seq` counts the effects of the instance, from 1.
    Publish {
        /// The effect's number.
        seq: u64,
        /// The topic.
        topic: String,
        /// What.
        payload: Bytes,
    },
    /// Call a service; its end comes back as [`Input::CallEnded`].
    Call {
        /// The effect's number, and the call's.
        call: u64,
        /// Which service.
        service: String,
        /// `GET` …
        method: String,
        /// Path and query.
        path: String,
        /// Body.
        body: Bytes,
    },
    /// Send data on a client stream.
    StreamSend {
        /// Which stream.
        stream: u64,
        /// A WebSocket text message.
        text: bool,
        /// What.
        bytes: Bytes,
    },
    /// Close a client stream.
    StreamClose {
        /// Which stream.
        stream: u64,
        /// Close code.
        code: u16,
    },
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// 0 error, 1 warn, 2 info, 3 debug.
    pub level: u8,
    /// What, without line ends, cut at 4 KiB.
    pub text: String,
}

/// How a call ended.
#[derive(Debug)]
pub struct Called {
    /// Done, or why not; then the state is as before.
    pub result: Result<Done, Failure>,
    /// What it logged, in both cases.
    pub log: Vec<LogLine>,
    /// What it used.
    pub usage: Usage,
}

/// A call that ended well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    /// The reply, if it was a request.
    pub reply: Option<Reply>,
    /// What must happen, in order.
    pub effects: Vec<Effect>,
}

/// A call that did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest trapped, hit a limit, was cancelled or late.
    #[error("{0}")]
    Ended(String),
    /// The handler returned another number than 0.
    #[error("the handler returned {0}")]
    Said(i32),
    /// The guest has no handler for this.
    #[error("the guest has no `{0}`")]
    NoHandler(&'static str),
    /// The reply is not acceptable.
    #[error("the guest's reply: {0}")]
    Reply(String),
    /// The host does not give it this input any more.
    #[error("{0}")]
    Quarantined(String),
}
