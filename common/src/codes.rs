//! Stable error codes: `HOP3-0404` means the same in every release, at the API, on the wire, in
//! the CLI and in `docs/reference/errors.md` (generated from this table).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $status:literal, $title:literal, $fix:literal;)*) => {
        /// A stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its number.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }
            /// The HTTP status it is answered with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
            /// A short name of the problem.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
            /// What to do about it.
            #[must_use]
            pub const fn fix(self) -> &'static str {
                match self { $(Self::$name => $fix,)* }
            }
        }
    };
}

codes! {
    InvalidField = 101, 400, "invalid field", "Correct the named field; the message says how.";
    InvalidBody = 102, 400, "invalid request body", "Send a body of the documented form.";
    TooLarge = 103, 413, "too large", "Send less; the message names the limit.";
    NotFound = 104, 404, "no such resource", "List what there is with `hop3 … ls`.";
    Conflict = 105, 409, "conflict", "Somebody else changed it: look again and repeat.";
    Ambiguous = 106, 409, "ambiguous prefix", "Give more of the id.";
    Unauthenticated = 201, 401, "not authenticated", "Give a valid API token: `hop3 context show` names the file in use.";
    Forbidden = 202, 403, "not allowed", "Ask an operator for the right.";
    TokenUnknown = 301, 403, "join token unknown", "Make a new one: `hop3 node token create`.";
    TokenExpired = 302, 403, "join token expired", "Make a new one: `hop3 node token create`.";
    TokenUsed = 303, 403, "join token already used", "Each token enrolls one node: make a new one.";
    TokenRevoked = 304, 403, "join token revoked", "Make a new one: `hop3 node token create`.";
    CsrInvalid = 305, 400, "certificate request refused", "Enroll with the agent of this release.";
    NodeRevoked = 306, 403, "node revoked", "Enroll the node again with a new join token.";
    NodeUnknown = 307, 404, "no such node", "List nodes with `hop3 node ls`.";
    NodeNameTaken = 308, 409, "node name taken", "Choose another name, or remove the old node first.";
    NodeUnreachable = 309, 503, "node not connected", "See `hop3 node show` for when it was last seen.";
    VersionUnsupported = 310, 400, "protocol version not supported", "Upgrade the older side.";
    Protocol = 311, 400, "protocol violation", "Enroll with the agent of this release.";
    RenewalRefused = 312, 403, "renewal refused", "Enroll the node again with a new join token.";
    CoordinatorUntrusted = 313, 502, "coordinator not trusted", "The token pins another mesh's CA: check the address.";
    CoordinatorUnreachable = 314, 503, "coordinator not reachable", "Start it, or give its address: `hop3 context show` names the one in use.";
    NotWasm = 401, 400, "not a WebAssembly module", "Push a core Wasm module built for wasm32-wasi.";
    WasmUnsupported = 402, 400, "WebAssembly feature not supported", "Rebuild without the named feature.";
    WasmImport = 403, 400, "unknown import", "Build for wasm32-wasi preview 1.";
    WasmExport = 404, 400, "missing export", "A task exports `_start` and `memory`.";
    DigestMismatch = 405, 400, "digest mismatch", "The bytes were changed on the way: send them again.";
    ArtifactUnknown = 406, 404, "no such artifact", "List artifacts with `hop3 artifact ls`.";
    ArtifactInUse = 407, 409, "artifact in use", "Remove what uses it first; the message names it.";
    NotOnnx = 410, 400, "not an ONNX model", "Push an ONNX file.";
    OnnxUnsupported = 411, 400, "unsupported operator", "Export the model without the named operators.";
    OnnxFreeDimension = 412, 400, "free dimension", "Give the input's facts: `--spec name:f32[batch,64]`.";
    TaskUnknown = 501, 404, "no such task", "List tasks with `hop3 task ls`.";
    TaskLost = 502, 502, "task lost", "Its node was lost or restarted; submit it again, or use `retry: on-node-loss`.";
    TaskTrapped = 503, 500, "guest trapped", "The guest did something undefined; the message has its stack.";
    TaskLimit = 504, 500, "limit reached", "Raise the named limit, or mend the guest.";
    TaskCancelled = 505, 409, "task cancelled", "";
    TaskNotAttached = 506, 409, "task takes no attachment", "Only a task submitted with attached input can be attached.";
    TaskEnded = 507, 409, "task already ended", "";
    VolumeUnknown = 508, 409, "volume not offered", "Offer it in the agent's configuration: `[volumes.NAME]`.";
    Busy = 509, 503, "busy", "All workers are taken: try again, or scale out.";
    Deadline = 510, 504, "deadline exceeded", "Raise the deadline, or ask for less.";
    OutputGone = 511, 410, "output no longer kept", "";
    ServiceUnknown = 520, 404, "no such service", "List services with `hop3 get service`.";
    ServiceNotReady = 521, 503, "service not ready", "See why with `hop3 explain service NAME`.";
    OutcomeUnknown = 522, 502, "outcome unknown", "The instance was lost while it worked: look, then repeat. With an `Idempotency-Key` header Hop3 repeats it for you, once.";
    HandlerFailed = 523, 500, "handler failed", "The guest trapped, hit a limit or said so; its state is as before the call. See `hop3 service logs NAME`.";
    ReplyInvalid = 524, 502, "invalid reply", "The guest's reply has a bad status or header, or is too large: mend the guest, or raise `spec.limits.reply`.";
    CannotReshard = 525, 409, "cannot change the number of shards", "State is split by key over a fixed number of shards: make a new service, and move the keys.";
    StateChange = 526, 409, "cannot change the kind of state", "Delete the service, or make another one under a new name.";
    Pinned = 527, 409, "pinned to its node", "A granted volume ties the instance to its node: see `hop3 explain service NAME`.";
    MoveRefused = 528, 409, "move refused", "The message says why.";
    MoveFailed = 529, 502, "move failed", "The instance goes on where it was; the message says why.";
    NotHere = 530, 503, "instance not on this node", "It moved: ask again.";
    InUse = 531, 409, "in use", "Change what uses it first; the message names it.";
    StreamGone = 532, 410, "client stream gone", "Open a new one.";
    InputQuarantined = 535, 500, "input quarantined", "It was in hand at several crashes of the agent: mend the module (any change ends the quarantine), or report the crash.";
    TakeOverRefused = 534, 409, "take-over refused", "The message says why, and what would be lost.";
    CannotScale = 533, 409, "cannot scale", "Only services with `state: none` have replicas.";
    ModelUnknown = 601, 404, "no such model", "List models with `hop3 model ls`.";
    ModelVersionUnknown = 602, 404, "no such model version", "List versions with `hop3 model show NAME`.";
    ModelNotReady = 603, 503, "model not ready", "See why with `hop3 explain model NAME`.";
    TensorShape = 604, 400, "wrong tensor", "Send the shapes and types that `hop3 model show NAME` tells.";
    ModelFailed = 605, 500, "inference failed", "";
    NoRollback = 606, 409, "nothing to roll back to", "";
    ModelMemory = 607, 500, "model out of memory", "Raise `spec.memory`.";
    Unplaceable = 701, 409, "no node fits", "The message says which filter removed how many nodes.";
    StrategyUnknown = 702, 400, "no such strategy", "The message lists the known ones.";
    Internal = 801, 500, "internal error", "Report it with the coordinator's log.";
    Storage = 802, 507, "storage error", "Check the disk; the message says what failed.";
    Unavailable = 803, 503, "not available", "Try again later.";
}

crate::schema::text_schema!(Code, "A stable error code, HOP3-0000");

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HOP3-{:04}", self.number())
    }
}
impl FromStr for Code {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|code| code.to_string() == text);
        known
            .copied()
            .ok_or_else(|| format!("`{text}` is not a known error code"))
    }
}
impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(self)
        } else {
            s.serialize_u16(self.number())
        }
    }
}
impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            return String::deserialize(d)?.parse().map_err(de::Error::custom);
        }
        // A newer peer may know more codes than we do.
        let number = u16::deserialize(d)?;
        Ok(Self::ALL
            .iter()
            .copied()
            .find(|c| c.number() == number)
            .unwrap_or(Self::Internal))
    }
}

/// A problem that travels: on the wire, in records and at the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, ToSchema)]
#[error("{message} [{code}]")]
pub struct Problem {
    /// What kind of problem.
    pub code: Code,
    /// What happened, where, and what to do.
    pub message: String,
}

/// Longest message of a problem, in bytes: longer ones are cut.
pub const MESSAGE_BYTES_MAX: usize = 4096;

impl Problem {
    /// A problem with its message, cut to [`MESSAGE_BYTES_MAX`].
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX)
                .rev()
                .find(|&i| message.is_char_boundary(i));
            message.truncate(end.unwrap_or(0));
        }
        Self { code, message }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        let numbers: BTreeSet<u16> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        for &code in Code::ALL {
            assert_eq!(code.to_string().parse::<Code>().unwrap(), code);
            let bytes = postcard::to_allocvec(&code).unwrap();
            assert_eq!(postcard::from_bytes::<Code>(&bytes).unwrap(), code);
            assert!((400..600).contains(&code.status()), "{code}");
        }
    }

    #[test]
    fn an_unknown_number_from_a_newer_peer_is_internal() {
        let bytes = postcard::to_allocvec(&9999u16).unwrap();
        assert_eq!(
            postcard::from_bytes::<Code>(&bytes).unwrap(),
            Code::Internal
        );
    }
}
