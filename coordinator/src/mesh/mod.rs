//! The mesh: everything between the coordinator and its nodes over QUIC (DESIGN §5, §6).
//!
//! [`Mesh`] owns the UDP port. It admits connections, enrolls strangers, keeps one bounded actor
//! per node, and carries calls, attachments, logs and blobs. It knows no store and no scheduler:
//! what it must know it asks the [`Brain`], what the brain wants of a node goes through that
//! node's [`NodeLink`].
//!
//! Invariants:
//! - A report is acknowledged only after [`Brain::report`] said that it is durable.
//! - Whatever one node does (floods, stalls, breaks the protocol) costs only its own connection:
//!   every queue, frame, table, time and number of streams of a session is bounded.
//! - A node has one session; a newer one ends the older.
//! - A session belongs to the node its certificate names, and to no other.
//!
//! Not here: who may join, what a node should run, what a report means.

mod actor;
mod admission;
mod agent_streams;
mod attach;
mod blobs;
mod calls;
mod client;
mod counters;
mod endpoint;
mod enroll;
mod inflight;
mod link;
mod options;
mod outgoing;
mod outgoing_streams;
mod peer;
mod quiet;
mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use hop3_common::{
    chunks::BlobStore,
    codes::Problem,
    id::{Digest, InstanceId, NodeId},
    identity::{
        PeerIdentity,
        enroll::{EnrollReply, EnrollRequest},
    },
    ownership::Token,
    wire::{Held, Hello, NodeFacts, Outgoing, OutgoingDone, Report, Welcome, telemetry::Sample},
};

pub use attach::{AttachReceiver, AttachSender};
pub use counters::Snapshot;
pub use endpoint::{Handle, Mesh};
pub use link::{Gone, NodeLink};
pub use options::{Error, Options};

/// What the mesh asks of the control plane. Every method is bounded and quick; none may wait for
/// another node. Methods about one session are called one at a time, in the order of the node's
/// messages, and never dropped half-way; `telemetry` and the blob methods may come in between, and
/// `may_get` and `may_put` may be dropped.
#[async_trait::async_trait]
pub trait Brain: Send + Sync + 'static {
    /// Enrolment: redeems a token, or renews by proof of the old key over `exporter` (the TLS
    /// exporter of this connection). Sizes and protocol version are checked.
    async fn enroll(
        &self,
        request: EnrollRequest,
        exporter: [u8; 32],
        from: SocketAddr,
    ) -> EnrollReply;

    /// A node came: `identity` is its certificate's, and names the same node as `hello`. An error
    /// is told to the node and ends the connection. After `Ok`, [`Self::disconnected`] follows
    /// once, whatever happens; with a newer session of the same node it may follow late: compare
    /// [`NodeLink::session`].
    async fn connected(
        &self,
        identity: PeerIdentity,
        hello: Hello,
        link: NodeLink,
    ) -> Result<Welcome, Problem>;

    /// Everything that the node holds, at most `INVENTORY_MAX` instances.
    async fn inventory(&self, link: &NodeLink, held: Vec<Held>);

    /// Takes a report. When it returns `Ok` the report is durable, and the mesh acknowledges it;
    /// on an error it acknowledges nothing and ends the session, and the node repeats the report
    /// in its next one.
    async fn report(&self, link: &NodeLink, seq: u64, report: Report) -> Result<(), Problem>;

    /// The node's facts changed.
    async fn facts(&self, link: &NodeLink, facts: NodeFacts);

    /// Samples, oldest first. Must not block: called between the frames of a stream.
    fn telemetry(&self, link: &NodeLink, samples: Vec<Sample>);

    /// Renews the certificate of a live session: the new one as DER.
    async fn renew(&self, link: &NodeLink, csr_der: &[u8]) -> Result<Bytes, Problem>;

    /// The session ended; `why` is for people.
    async fn disconnected(&self, link: &NodeLink, why: String);

    /// Where blobs are.
    fn blobs(&self) -> Arc<BlobStore>;

    /// Whether `node` may read the blob.
    async fn may_get(&self, node: &NodeId, digest: &Digest) -> Result<(), Problem>;

    /// Whether `node` may store a blob of `size` bytes (a result of its own instances, within its
    /// quota).
    async fn may_put(&self, node: &NodeId, digest: &Digest, size: u64) -> Result<(), Problem>;

    /// `node` stored a blob, durably; it is told so after this returns.
    async fn stored(&self, node: &NodeId, digest: &Digest, size: u64);

    /// `node` was sent a blob to its last byte.
    async fn fetched(&self, node: &NodeId, instance: &InstanceId);

    /// Fenced runs of the node that want to go on, at most `LEASES_MAX`.
    async fn leases(&self, link: &NodeLink, number: u64, runs: Vec<(InstanceId, Token)>);

    /// What an instance of the node (or a client of its gateway) asks of the mesh. May wait for
    /// other nodes, within the deadline asked for; may be dropped.
    async fn outgoing(&self, link: &NodeLink, asked: Outgoing) -> Result<OutgoingDone, Problem>;
}
