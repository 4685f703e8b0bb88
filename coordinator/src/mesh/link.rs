//! A live session as the control plane sees it.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId},
    ownership::Epoch,
    wire::{
        CONTROL_FRAME_MAX, CallResult, Down, HEADER_FRAME_MAX, ModelCheck, ModelFacts,
        StreamHeader, Target, attach::Channel, close, frame, io,
    },
};
use quinn::{Connection, VarInt};
use tokio::{
    io::AsyncRead,
    time::{Instant, timeout, timeout_at},
};

use super::{
    attach::{AttachReceiver, AttachSender, attach},
    calls::Calls,
    counters::Counters,
    outgoing::{self, Outgoing},
};

/// Most bytes of control messages that wait for one node: more than a full reconciliation of
/// `INVENTORY_MAX` instances at about 500 bytes. A node this far behind is stuck.
pub(super) const MAILBOX_BYTES_MAX: usize = 4 << 20;
/// Longest wait for the node to let us open one more stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the last bytes of a stream to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Control before calls, calls before everything that a person or a disk waits for.
pub(super) const PRIORITY_CONTROL: i32 = 2;
pub(super) const PRIORITY_CALLS: i32 = 1;
pub(super) const PRIORITY_BLOBS: i32 = -1;

/// A live session with a node; clones share it. Every method is bounded in time and memory, and
/// none waits for another node. After the session's end all of them fail at once.
#[derive(Clone)]
pub struct NodeLink(Arc<Inner>);

struct Inner {
    node: NodeId,
    session: u64,
    connection: Connection,
    mailbox: Outgoing,
    calls: Calls,
    counters: Arc<Counters>,
    /// Why we closed it, for people. The first reason counts.
    closed: OnceLock<String>,
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
        write!(f, "NodeLink({}#{})", self.0.node, self.0.session)
    }
}

impl NodeLink {
    pub(super) fn new(
        node: NodeId,
        session: u64,
        connection: Connection,
        counters: Arc<Counters>,
    ) -> Self {
        let calls = Calls::new(node.clone(), connection.clone(), counters.clone());
        let mailbox = Outgoing::new(MAILBOX_BYTES_MAX);
        let closed = OnceLock::new();
        Self(Arc::new(Inner { node, session, connection, mailbox, calls, counters, closed }))
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
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
        self.0.connection.remote_address()
    }

    /// Round-trip time, estimated.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// Whether the session still stands, as far as is known here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.connection.close_reason().is_none()
    }

    /// Queues a control message; never waits. Messages arrive in order or not at all.
    ///
    /// # Errors
    /// [`Gone`]; after `Stuck` the session is closed, and a new one starts with an inventory.
    pub fn send(&self, down: Down) -> Result<(), Gone> {
        let node = || self.0.node.clone();
        match self.0.mailbox.push(&down, CONTROL_FRAME_MAX) {
            Ok(()) => Ok(()),
            Err(outgoing::Error::Closed) => Err(Gone::Closed(node())),
            Err(outgoing::Error::Frame(source)) => Err(Gone::TooLarge { node: node(), source }),
            Err(outgoing::Error::Full) => {
                self.0.counters.sessions_stuck.one();
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
    /// `NodeUnreachable` (the session ended; whether the call ran is not known).
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
        attach(self, instance, epoch).await
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
        let header = StreamHeader::Logs { instance, channel, offset, follow };
        let (mut send, recv) = self.open(&header, Instant::now() + OPEN_TIMEOUT).await?;
        send.finish().map_err(|_| self.unreachable())?;
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
        let ask = async {
            let (mut send, mut recv) = self.open(&StreamHeader::CheckModel, until).await?;
            self.wrote(io::write(&mut send, &check, CONTROL_FRAME_MAX).await)?;
            send.finish().map_err(|_| self.unreachable())?;
            let reply = io::read(&mut recv, CONTROL_FRAME_MAX).await;
            match self.wrote(reply)? {
                Some(facts) => facts,
                None => Err(self.unreachable()),
            }
        };
        match timeout_at(until, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(Problem::new(
                Code::Deadline,
                format!("node `{}` did not check the model in {deadline:?}", self.node()),
            )),
        }
    }

    /// Ends the session with a close code of [`wire::close`](close) and a reason for people.
    pub fn close(&self, code: u32, reason: &str) {
        // Later reasons are consequences of the first.
        let _ = self.0.closed.set(reason.to_owned());
        self.0.connection.close(VarInt::from_u32(code), reason.as_bytes());
        self.0.mailbox.close();
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    pub(super) fn mailbox(&self) -> &Outgoing {
        &self.0.mailbox
    }

    /// Why the session ended, for people.
    pub(super) fn why_closed(&self) -> Option<String> {
        let lost = || self.0.connection.close_reason().map(|reason| reason.to_string());
        self.0.closed.get().cloned().or_else(lost)
    }

    /// Opens a stream and writes its header.
    pub(super) async fn open(
        &self,
        header: &StreamHeader,
        until: Instant,
    ) -> Result<(quinn::SendStream, quinn::RecvStream), Problem> {
        open(&self.0.connection, &self.0.node, header, until).await
    }

    /// Turns an error of a stream into a problem; one that breaks the protocol ends the session.
    pub(super) fn wrote<T>(&self, result: Result<T, io::Error>) -> Result<T, Problem> {
        result.map_err(|error| {
            if !error.is_protocol() {
                return self.unreachable();
            }
            self.0.counters.malformed.one();
            self.close(close::PROTOCOL, "malformed frame");
            Problem::new(Code::Protocol, format!("node `{}`: {error}", self.0.node))
        })
    }

    fn unreachable(&self) -> Problem {
        unreachable(&self.0.node)
    }
}

/// The problem of a session that ended.
pub(super) fn unreachable(node: &NodeId) -> Problem {
    Problem::new(Code::NodeUnreachable, format!("the session with node `{node}` ended"))
}

/// Opens a stream on `connection` and writes its header, until `until` and at most for
/// [`OPEN_TIMEOUT`].
pub(super) async fn open(
    connection: &Connection,
    node: &NodeId,
    header: &StreamHeader,
    until: Instant,
) -> Result<(quinn::SendStream, quinn::RecvStream), Problem> {
    let opening = async {
        let (mut send, recv) = connection.open_bi().await.map_err(|_| unreachable(node))?;
        let written = io::write(&mut send, header, HEADER_FRAME_MAX).await;
        written.map_err(|_| unreachable(node))?;
        Ok((send, recv))
    };
    match timeout_at(until.min(Instant::now() + OPEN_TIMEOUT), opening).await {
        Ok(streams) => streams,
        Err(_) => Err(Problem::new(
            Code::Busy,
            format!("node `{node}` has as many streams open as it takes; try again"),
        )),
    }
}

/// Ends a stream and waits, bounded, until all of it arrived: closing the connection would
/// overtake it.
pub(super) async fn finish_and_wait(send: &mut quinn::SendStream) {
    if send.finish().is_ok() {
        // Late or lost: there is nobody to tell.
        let _ = timeout(DELIVERY_TIMEOUT, send.stopped()).await;
    }
}
