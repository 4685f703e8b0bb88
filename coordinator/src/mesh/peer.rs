//! The other end of a session's connection: opening streams to it, closing it with a reason,
//! and holding it to the protocol. Shared by everything that works on one connection.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::NodeId,
    wire::{HEADER_FRAME_MAX, StreamHeader, close, io},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{counters::Counters, quiet::Quiet};

/// Longest wait for the node to let us open one more stream.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the last bytes of a stream to arrive.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer broke the protocol: its connection must be closed.
#[derive(Debug)]
pub(super) struct Breach(pub(super) String);

impl Breach {
    pub(super) fn new(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Counts breaches and logs them, seldom per node.
#[derive(Debug)]
pub(super) struct Breaches {
    counters: Arc<Counters>,
    quiet: Mutex<Quiet>,
}

impl Breaches {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            quiet: Mutex::default(),
        }
    }

    /// Notes one; the caller closes `connection`.
    pub(super) fn note(&self, node: Option<&NodeId>, connection: &Connection, why: &str) {
        self.counters.malformed.one();
        // The map inside is whole between any two of its operations.
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        if quiet.admit(node, std::time::Instant::now()) {
            drop(quiet);
            let from = connection.remote_address();
            let node = node.map_or("none", NodeId::as_str);
            tracing::warn!(node, %from, why, "the peer broke the protocol; connection closed");
        }
    }
}

/// A node at the other end.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) connection: Connection,
    pub(super) counters: Arc<Counters>,
    breaches: Arc<Breaches>,
    /// Why we closed it, for people.
    closed: OnceLock<String>,
}

impl Peer {
    pub(super) fn new(
        node: NodeId,
        connection: Connection,
        counters: Arc<Counters>,
        breaches: Arc<Breaches>,
    ) -> Self {
        Self {
            node,
            connection,
            counters,
            breaches,
            closed: OnceLock::new(),
        }
    }

    /// Closes the connection. The first reason counts: later ones are its consequences.
    pub(super) fn close(&self, code: u32, reason: &str) {
        if self.closed.set(reason.to_owned()).is_ok() {
            self.connection
                .close(VarInt::from_u32(code), reason.as_bytes());
        }
    }

    /// Closes the connection because the node broke the protocol.
    pub(super) fn breach(&self, Breach(why): &Breach) {
        self.breaches.note(Some(&self.node), &self.connection, why);
        self.close(close::PROTOCOL, why);
    }

    /// Whether we closed it.
    pub(super) fn closed_by_us(&self) -> bool {
        self.closed.get().is_some()
    }

    /// Why the connection ended, for people, if it did.
    pub(super) fn why_closed(&self) -> Option<String> {
        let lost = || {
            self.connection
                .close_reason()
                .map(|reason| reason.to_string())
        };
        self.closed.get().cloned().or_else(lost)
    }

    /// The problem of a session that ended.
    pub(super) fn unreachable(&self) -> Problem {
        let message = format!("the session with node `{}` ended", self.node);
        Problem::new(Code::NodeUnreachable, message)
    }

    /// Turns an error of reading from a stream into a problem; a breach ends the session.
    pub(super) fn read<T>(&self, result: Result<T, io::Error>) -> Result<T, Problem> {
        result.map_err(|error| {
            if !error.is_protocol() {
                return self.unreachable();
            }
            self.breach(&Breach::new(&error));
            Problem::new(Code::Protocol, format!("node `{}`: {error}", self.node))
        })
    }

    /// Turns an error of writing into a problem: a message of ours that is too large is not the
    /// node's fault.
    pub(super) fn written<T>(&self, result: Result<T, io::Error>) -> Result<T, Problem> {
        result.map_err(|error| {
            if error.is_protocol() {
                return Problem::new(Code::TooLarge, format!("node `{}`: {error}", self.node));
            }
            self.unreachable()
        })
    }

    /// Opens a stream and writes its header, until `until` and at most for [`OPEN_TIMEOUT`].
    pub(super) async fn open(
        &self,
        header: &StreamHeader,
        until: Instant,
    ) -> Result<(SendStream, RecvStream), Problem> {
        let opening = async {
            let opened = self.connection.open_bi().await;
            let (mut send, recv) = opened.map_err(|_| self.unreachable())?;
            self.written(io::write(&mut send, header, HEADER_FRAME_MAX).await)?;
            Ok((send, recv))
        };
        let opened = timeout_at(until.min(Instant::now() + OPEN_TIMEOUT), opening).await;
        opened.unwrap_or_else(|_| {
            let node = &self.node;
            let message = format!("node `{node}` takes no more streams now; try again");
            Err(Problem::new(Code::Busy, message))
        })
    }
}

/// Ends a stream and waits, bounded, until all of it arrived: closing the connection would
/// overtake it.
pub(super) async fn finish_and_wait(send: &mut SendStream) {
    if send.finish().is_ok() {
        // Late or lost: there is nobody to tell.
        let _ = timeout(DELIVERY_TIMEOUT, send.stopped()).await;
    }
}
