//! The mesh protocol `hop3/1`: frames and messages between agent and coordinator (DESIGN §5).
//!
//! One QUIC connection per node, dialled by the agent. Every stream begins with a
//! [`StreamHeader`] frame that says what it carries:
//!
//! | stream | opened by | carries |
//! | --- | --- | --- |
//! | `Control` | agent, once | [`Up`] and [`Down`] frames, for the life of the session |
//! | `Telemetry` (uni) | agent, once | [`telemetry::Batch`] frames |
//! | `BlobGet` | agent | one blob from an offset, lower priority |
//! | `BlobPut` | agent | one blob to the coordinator, lower priority |
//! | `Calls` | coordinator, a few | [`Call`] and [`Reply`] frames with call ids |
//! | `Attach` | coordinator, per client | [`attach::Frame`]s of one attached task |
//! | `Logs` | coordinator | output of a task that still runs |
//! | `CheckModel` | coordinator | one [`ModelCheck`] and its answer |
//! | `Client` | coordinator, per client stream | [`ClientUp`] and [`ClientDown`] frames |
//! | `Outgoing` | agent, a few | [`Outgoing`] and [`OutgoingReply`] frames |
//!
//! Messages are append-only: a shipped variant or field never changes; new ones come last.

pub mod attach;
pub mod changes;
pub mod frame;
#[cfg(test)]
mod golden;
pub mod io;
mod message;
mod service;
pub mod telemetry;

pub use message::*;
pub use service::*;

/// ALPN of sessions (mutual TLS).
pub const ALPN_SESSION: &[u8] = b"hop3/1";
/// ALPN of enrolment and late renewal (server-authenticated).
pub const ALPN_ENROLL: &[u8] = b"hop3-enroll/1";
/// Protocol versions this build speaks, oldest and newest. 2 has leases and replicas: work of
/// services has another layout than in 1.
pub const PROTOCOL: (u16, u16) = (2, 2);
/// Server name in every coordinator's mesh certificate.
pub const COORDINATOR_NAME: &str = "coordinator.hop3.internal";

/// Largest control frame, in bytes. An inventory of `INVENTORY_MAX` instances fits.
pub const CONTROL_FRAME_MAX: usize = 1 << 20;
/// Largest header frame that opens a stream.
pub const HEADER_FRAME_MAX: usize = 16 << 10;
/// Largest call or reply: 8 MiB of input or output and its envelope.
pub const CALL_FRAME_MAX: usize = (8 << 20) + (64 << 10);
/// Largest telemetry frame.
pub const TELEMETRY_FRAME_MAX: usize = 16 << 10;
/// Largest enrolment message.
pub const ENROLL_FRAME_MAX: usize = 64 << 10;
/// Most instances in one inventory.
pub const INVENTORY_MAX: usize = 4096;

/// QUIC close codes, also used to reset streams.
pub mod close {
    /// Orderly end.
    pub const DONE: u32 = 0;
    /// The node was revoked.
    pub const REVOKED: u32 = 1;
    /// A newer connection of the same node took over.
    pub const REPLACED: u32 = 2;
    /// A frame was malformed or too large.
    pub const PROTOCOL: u32 = 3;
    /// No acceptable client certificate.
    pub const UNAUTHENTICATED: u32 = 4;
    /// The coordinator restarts.
    pub const RESTARTING: u32 = 5;
    /// Over a limit: come back later.
    pub const BUSY: u32 = 6;
}
