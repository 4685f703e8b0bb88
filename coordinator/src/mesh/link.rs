//! A live session as the control plane sees it.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId},
    ownership::Epoch,
    wire::{
        CONTROL_FRAME_MAX, CallResult, Down, ModelCheck, ModelFacts, StreamHeader, Target,
        attach::Channel, close, frame, io,
    },
};
use tokio::{
    io::AsyncRead,
    time::{Instant, timeout_at},
};

use super::{
    attach::{AttachReceiver, AttachSender, attach},
    calls::Calls,
    client::{ClientLink, client},
    outgoing::{self, Outgoing},
    peer::{OPEN_TIMEOUT, Peer},
};

/// Most bytes of control messages that wait for one node: more than a full reconciliation of
/// `INVENTORY_MAX` instances at about 500 bytes. A node this far behind is stuck.
pub(super) const MAILBOX_BYTES_MAX: usize = 4 << 20;
/// Control before calls, calls before everything that a person or a disk waits for.
pub(super) const PRIORITY_CONTROL: i32 = 2;
pub(super) const PRIORITY_CALLS: i32 = 1;
pub(super) const PRIORITY_BLOBS: i32 = -1;

/// A live session with a node; clones share it. Every method is bounded in time and memory, and
/// none waits for another node. After the session's end all of them fail at once.
#[derive(Clone)]
pub struct NodeLink(Arc<Inner>);

struct Inner {
    peer: Arc<Peer>,
    session: u64,
    mailbox: Outgoing,
    calls: Calls,
}

/// Why a control message was not queued.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// The session has ended; the next one begins with an inventory.
    #[error("the session with node `{0}` has ended")]
    Closed(NodeId),
    /// The node did not take what was sent before; its session was closed.
    #[error("node `{0}` does not take what it is sent; its session was closed")]
    Stuck(NodeId),
    /// The message does not fit a control frame. The session goes on; sending it again is vain.
    #[error("a message for node `{node}` does not fit: {source}")]
    TooLarge {
        /// The node.
        node: NodeId,
        /// Size and bound.
        source: frame::Error,
    },
}

impl fmt::Debug for NodeLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeLink({}#{})", self.0.peer.node, self.0.session)
    }
}

impl NodeLink {
    pub(super) fn new(peer: Peer, session: u64) -> Self {
        let peer = Arc::new(peer);
        let (calls, mailbox) = (Calls::new(peer.clone()), Outgoing::new(MAILBOX_BYTES_MAX));
        Self(Arc::new(Inner {
            peer,
            session,
            mailbox,
            calls,
        }))
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.peer.node
    }

    /// The session's number; it grows with every session of this process, so that the greater of
    /// two is the newer.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.0.session
    }

    /// Where the node is now; changes when it moves to another network.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.peer.connection.remote_address()
    }

    /// Round-trip time, estimated.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.0.peer.connection.rtt()
    }

    /// Whether the session still stands, as far as is known here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.peer.connection.close_reason().is_none()
    }

    /// Queues a control message; never waits. Messages arrive in order or not at all.
    ///
    /// # Errors
    /// [`Gone`]; after `Stuck` the session is closed, and a new one starts with an inventory.
    pub fn send(&self, down: Down) -> Result<(), Gone> {
        let node = || self.0.peer.node.clone();
        match self.0.mailbox.push(&down, CONTROL_FRAME_MAX) {
            Ok(()) => Ok(()),
            Err(outgoing::Error::Closed) => Err(Gone::Closed(node())),
            Err(outgoing::Error::Frame(source)) => Err(Gone::TooLarge {
                node: node(),
                source,
            }),
            Err(outgoing::Error::Full) => {
                self.0.peer.counters.sessions_stuck.one();
                self.close(close::BUSY, "control messages are not taken");
                Err(Gone::Stuck(node()))
            }
        }
    }

    /// Invokes `target` and waits for its result, at most `deadline`. Dropping the future gives
    /// the call up on the node too.
    ///
    /// # Errors
    /// The node's problem, or `Deadline`, `Busy` (too many in flight), `TooLarge`,
    /// `NodeUnreachable` (the session ended; whether the call ran is not known). For a request to
    /// a service that is told apart: `NodeUnreachable` means that it was not sent, `OutcomeUnknown`
    /// that the session ended after it was.
    pub async fn call(&self, target: Target, deadline: Duration) -> Result<CallResult, Problem> {
        self.0.calls.call(target, deadline).await
    }

    /// Opens the stream of an attached client of a running task.
    ///
    /// # Errors
    /// `NodeUnreachable` or `Busy`.
    pub async fn attach(
        &self,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<(AttachSender, AttachReceiver), Problem> {
        attach(self.peer(), instance, epoch).await
    }

    /// Opens the stream of a client of a service's instance; its first frame must be `Attach`.
    ///
    /// # Errors
    /// `NodeUnreachable` or `Busy`.
    pub async fn client(&self, instance: InstanceId, epoch: Epoch) -> Result<ClientLink, Problem> {
        client(self.peer(), instance, epoch).await
    }

    /// Output of a task that the node still has, from `offset`, raw; with `follow`, until the task
    /// ends.
    ///
    /// # Errors
    /// `NodeUnreachable` or `Busy`. A refusal of the node is an error of the first read.
    pub async fn logs(
        &self,
        instance: InstanceId,
        channel: Channel,
        offset: u64,
        follow: bool,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, Problem> {
        let header = StreamHeader::Logs {
            instance,
            channel,
            offset,
            follow,
        };
        let peer = &self.0.peer;
        let (mut send, recv) = peer.open(&header, Instant::now() + OPEN_TIMEOUT).await?;
        send.finish().map_err(|_| peer.unreachable())?;
        Ok(recv)
    }

    /// Asks whether the node can run a model.
    ///
    /// # Errors
    /// The node's problem, or `Deadline`, `NodeUnreachable`, `Protocol`.
    pub async fn check_model(
        &self,
        check: ModelCheck,
        deadline: Duration,
    ) -> Result<ModelFacts, Problem> {
        let until = Instant::now() + deadline;
        let peer = &self.0.peer;
        let ask = async {
            let (mut send, mut recv) = peer.open(&StreamHeader::CheckModel, until).await?;
            peer.written(io::write(&mut send, &check, CONTROL_FRAME_MAX).await)?;
            send.finish().map_err(|_| peer.unreachable())?;
            let answer = peer.read(io::read(&mut recv, CONTROL_FRAME_MAX).await)?;
            answer.unwrap_or_else(|| Err(peer.unreachable()))
        };
        timeout_at(until, ask).await.unwrap_or_else(|_| {
            let node = self.node();
            let message = format!("node `{node}` did not check the model in {deadline:?}");
            Err(Problem::new(Code::Deadline, message))
        })
    }

    /// Ends the session with a close code of [`wire::close`](close) and a reason for people.
    pub fn close(&self, code: u32, reason: &str) {
        self.0.peer.close(code, reason);
        self.0.mailbox.close();
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.0.peer
    }

    pub(super) fn mailbox(&self) -> &Outgoing {
        &self.0.mailbox
    }
}
