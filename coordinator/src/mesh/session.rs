//! A node's session: `Hello`, `Welcome`, then one actor until the connection ends.
//!
//! The actor is one task. It reads the control stream message by message and asks the brain in
//! that order; beside it, in the same task, the mailbox is written and the node's other streams
//! are taken. If the brain is slow for one node, only that node's stream fills up.

use std::{sync::Arc, time::Instant};

use futures_util::FutureExt;
use hop3_common::{
    codes::{Code, Problem},
    identity::{PeerIdentity, peer_identity},
    wire::{
        CONTROL_FRAME_MAX, Down, HEADER_FRAME_MAX, Hello, INVENTORY_MAX, PROTOCOL, StreamHeader,
        Up, Welcome, close, frame,
        io::{self, FrameReader},
    },
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    NodeLink,
    admission::TokenBucket,
    agent_streams,
    endpoint::Shared,
    link::{PRIORITY_CONTROL, finish_and_wait},
};

/// Largest `Hello`, `Facts`, `Renew` or `Leaving`: only inventories and reports are larger.
const SMALL_FRAME_MAX: usize = 64 << 10;
/// Reports taken before they are acknowledged, even when more wait to be read.
const ACK_BURST_MAX: u32 = 64;
/// Inventories, facts and renewals per second: a node sends each some times a day.
const STATEMENTS_PER_S: u32 = 1;
/// Of them, at once after a quiet time.
const STATEMENTS_BURST: u32 = 32;
/// Longest reason for leaving that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;

/// A node broke the protocol: its connection must be closed.
#[derive(Debug)]
pub(super) struct Breach(pub(super) String);

impl Breach {
    fn new(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was closed or lost; the connection knows.
    Lost,
    /// With this code and reason.
    Close(u32, String),
    /// The node broke the protocol.
    Breach(Breach),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if error.is_protocol() { Self::Breach(Breach::new(error)) } else { Self::Lost }
    }
}

/// The newest protocol that both sides speak.
pub(super) fn negotiate((oldest, newest): (u16, u16)) -> Result<u16, Problem> {
    let common = newest.min(PROTOCOL.1);
    if oldest <= newest && common >= oldest.max(PROTOCOL.0) {
        return Ok(common);
    }
    let (ours_oldest, ours_newest) = PROTOCOL;
    Err(Problem::new(
        Code::VersionUnsupported,
        format!(
            "the agent speaks protocol {oldest} to {newest}, this coordinator {ours_oldest} to \
             {ours_newest}: upgrade the older side"
        ),
    ))
}

/// Serves a `hop3/1` connection to its end. `permit` counts it as a handshake until `Welcome`.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    permit: OwnedSemaphorePermit,
) {
    let identity = match identify(&connection) {
        Ok(identity) => identity,
        Err(why) => {
            shared.counters.unauthenticated.one();
            return connection.close(VarInt::from_u32(close::UNAUTHENTICATED), why.as_bytes());
        }
    };
    let opened = tokio::select! {
        opened = timeout(shared.handshake_timeout, hello(&connection)) => opened,
        () = shared.restarting.cancelled() => {
            return connection.close(VarInt::from_u32(close::RESTARTING), b"restarting");
        }
    };
    let (mut send, reader, hello) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(End::Breach(Breach(why)))) => {
            shared.malformed(identity.node(), &connection, &why);
            return connection.close(VarInt::from_u32(close::PROTOCOL), why.as_bytes());
        }
        Ok(Err(_)) => return,
        Err(_) => return connection.close(VarInt::from_u32(close::PROTOCOL), b"no Hello in time"),
    };
    let (link, welcome) = match welcome(&shared, &connection, identity, hello).await {
        Ok(welcomed) => welcomed,
        Err(problem) => {
            shared.counters.sessions_refused.one();
            let code = refusal_code(problem.code);
            tracing::info!(%problem, from = %connection.remote_address(), "session refused");
            return refuse(&connection, send, problem, code).await;
        }
    };
    drop(permit);
    let acked = welcome.acked_seq;
    // Straight onto the stream: nothing that the brain has queued may come before it.
    let welcomed = io::write(&mut send, &Down::Welcome(welcome), CONTROL_FRAME_MAX).await;
    let end = if let Err(error) = welcomed {
        End::from(error)
    } else if shared.enter(&link) {
        act(&shared, &link, send, reader, acked).await
    } else {
        End::Close(close::REPLACED, "a newer session of this node took over".into())
    };
    let why = finish(&shared, &link, end);
    shared.leave(&link);
    shared.brain.disconnected(&link, why).await;
}

fn identify(connection: &Connection) -> Result<PeerIdentity, String> {
    let certs = connection.peer_identity().and_then(|any| any.downcast().ok());
    let certs: Box<Vec<CertificateDer<'static>>> = certs.ok_or("a client certificate is needed")?;
    let identity = peer_identity(&certs).map_err(|error| error.to_string())?;
    if identity.node().is_none() {
        return Err("the client certificate is not a node's".into());
    }
    Ok(identity)
}

type Control = FrameReader<RecvStream>;

/// The first stream must be the control stream, its first message `Hello`.
async fn hello(connection: &Connection) -> Result<(SendStream, Control, Hello), End> {
    let (send, mut recv) = connection.accept_bi().await.map_err(|_| End::Lost)?;
    match io::read(&mut recv, HEADER_FRAME_MAX).await? {
        Some(StreamHeader::Control) => {}
        _ => return Err(End::Breach(Breach::new("the first stream is not Control"))),
    }
    // Fails only when the stream is gone, which reading will show.
    let _ = send.set_priority(PRIORITY_CONTROL);
    match io::read(&mut recv, SMALL_FRAME_MAX).await? {
        Some(Up::Hello(hello)) => Ok((send, FrameReader::new(recv, CONTROL_FRAME_MAX), hello)),
        _ => Err(End::Breach(Breach::new("the first message is not Hello"))),
    }
}

async fn welcome(
    shared: &Shared,
    connection: &Connection,
    identity: PeerIdentity,
    hello: Hello,
) -> Result<(NodeLink, Welcome), Problem> {
    let protocol = negotiate(hello.protocol)?;
    if identity.node() != Some(&hello.node) {
        let owner = identity.node().map_or("nobody", |node| node.as_str());
        let message = format!("the certificate is node `{owner}`'s, not `{}`'s", hello.node);
        return Err(Problem::new(Code::Unauthenticated, message));
    }
    let counters = shared.counters.clone();
    let node = hello.node.clone();
    let link = NodeLink::new(node, shared.next_session(), connection.clone(), counters);
    let mut welcome = shared.brain.connected(identity, hello, link.clone()).await?;
    welcome.protocol = protocol;
    shared.counters.sessions.one();
    Ok((link, welcome))
}

fn refusal_code(code: Code) -> u32 {
    match code {
        Code::NodeRevoked => close::REVOKED,
        Code::Busy | Code::Unavailable | Code::Storage | Code::Internal => close::BUSY,
        Code::VersionUnsupported | Code::Protocol => close::PROTOCOL,
        _ => close::UNAUTHENTICATED,
    }
}

async fn refuse(connection: &Connection, mut send: SendStream, problem: Problem, code: u32) {
    let reason = problem.code.title();
    if io::write(&mut send, &Down::Refused(problem), CONTROL_FRAME_MAX).await.is_ok() {
        finish_and_wait(&mut send).await;
    }
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}

/// The actor.
async fn act(
    shared: &Arc<Shared>,
    link: &NodeLink,
    send: SendStream,
    reader: Control,
    acked: u64,
) -> End {
    if shared.restarting.is_cancelled() {
        return End::Close(close::RESTARTING, "restarting".into());
    }
    let mut actor = Actor {
        shared,
        link,
        acked,
        ack_due: 0,
        statements: TokenBucket::new(STATEMENTS_PER_S, STATEMENTS_BURST, Instant::now()),
    };
    tokio::select! {
        end = actor.read(reader) => end,
        end = write(shared, link, send) => end,
        breach = agent_streams::accept(shared, link) => breach.map_or(End::Lost, End::Breach),
    }
}

/// Closes the connection for the reason that ended the session; the reason for people.
fn finish(shared: &Shared, link: &NodeLink, end: End) -> String {
    let why = link.why_closed();
    match end {
        End::Lost => link.close(close::DONE, "the agent ended the control stream"),
        End::Close(code, why) => link.close(code, &why),
        End::Breach(Breach(why)) => {
            shared.malformed(Some(link.node()), link.connection(), &why);
            link.close(close::PROTOCOL, &why);
        }
    }
    // What was known before this close is the cause.
    why.or_else(|| link.why_closed()).unwrap_or_default()
}

/// Writes the mailbox until it is finished, the connection lost, or the node stuck.
async fn write(shared: &Shared, link: &NodeLink, mut send: SendStream) -> End {
    while let Some(bytes) = link.mailbox().take().await {
        let mut left = [bytes];
        while !left[0].is_empty() {
            match timeout(shared.stuck_after, send.write_chunks(&mut left)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return End::Lost,
                Err(_) => {
                    shared.counters.sessions_stuck.one();
                    return End::Close(close::BUSY, "control messages are not taken".into());
                }
            }
        }
    }
    if link.is_open() {
        finish_and_wait(&mut send).await;
        return End::Close(close::RESTARTING, "the coordinator restarts".into());
    }
    End::Lost
}

/// What the reading side of a session knows.
struct Actor<'a> {
    shared: &'a Shared,
    link: &'a NodeLink,
    /// Last durable report.
    acked: u64,
    /// Durable reports that are not acknowledged.
    ack_due: u32,
    statements: TokenBucket,
}

impl Actor<'_> {
    async fn read(&mut self, mut reader: Control) -> End {
        let mut leaving = None;
        loop {
            // What is here already is handled before anything is acknowledged: one
            // acknowledgement for a burst. Reading is cancel-safe.
            let ready =
                if self.ack_due < ACK_BURST_MAX { reader.next_body().now_or_never() } else { None };
            let body = match ready {
                Some(body) => body,
                None => {
                    self.acknowledge();
                    reader.next_body().await
                }
            };
            let body = match body {
                Ok(Some(body)) => body,
                Ok(None) | Err(io::Error::Io(_)) => {
                    return match leaving {
                        Some(reason) => End::Close(close::DONE, reason),
                        None => End::Lost,
                    };
                }
                Err(error) => return error.into(),
            };
            match self.message(&body, &mut leaving).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn message(&mut self, body: &[u8], leaving: &mut Option<String>) -> Result<(), End> {
        let up: Up = frame::decode(body).map_err(|e| End::Breach(Breach::new(e)))?;
        let brain = &self.shared.brain;
        if let Up::Report { seq, report } = up {
            return self.report(seq, report).await;
        }
        self.check(&up, body.len())?;
        match up {
            Up::Inventory(held) => brain.inventory(self.link, held).await,
            Up::Facts(facts) => brain.facts(self.link, facts).await,
            Up::Renew { csr_der } => self.renew(&csr_der).await,
            Up::Leaving { reason } => {
                let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
                *leaving = Some(format!("the agent is leaving: {}", reason.escape_debug()));
            }
            Up::Hello(_) | Up::Report { .. } => {
                return Err(End::Breach(Breach::new("a second Hello")));
            }
        }
        Ok(())
    }

    /// Bounds what a node may state, and how often.
    fn check(&mut self, up: &Up, len: usize) -> Result<(), End> {
        match up {
            Up::Inventory(held) if held.len() > INVENTORY_MAX => {
                let why = format!("an inventory of {}, at most {INVENTORY_MAX}", held.len());
                return Err(End::Breach(Breach(why)));
            }
            Up::Inventory(_) => {}
            _ if len > SMALL_FRAME_MAX => {
                let error = frame::Error::TooLarge { len, max: SMALL_FRAME_MAX };
                return Err(End::Breach(Breach::new(error)));
            }
            _ => {}
        }
        if self.statements.take(Instant::now()) {
            return Ok(());
        }
        Err(End::Close(close::BUSY, "too many inventories, facts or renewals".into()))
    }

    async fn report(&mut self, seq: u64, report: hop3_common::wire::Report) -> Result<(), End> {
        // A repeat of what is durable is acknowledged again.
        if seq > self.acked {
            let taken = self.shared.brain.report(self.link, seq, report).await;
            if let Err(problem) = taken {
                tracing::warn!(node = %self.link.node(), seq, %problem, "a report was not taken");
                return Err(End::Close(close::BUSY, format!("report {seq} is not durable")));
            }
            self.shared.counters.reports.one();
            self.acked = seq;
        }
        self.ack_due += 1;
        Ok(())
    }

    fn acknowledge(&mut self) {
        if self.ack_due > 0 {
            self.ack_due = 0;
            // A session that just ended needs none: the node repeats.
            let _ = self.link.send(Down::Ack { seq: self.acked });
        }
    }

    async fn renew(&self, csr_der: &[u8]) {
        let node = self.link.node();
        match self.shared.brain.renew(self.link, csr_der).await {
            Ok(cert_der) => {
                let _ = self.link.send(Down::Certificate { cert_der });
            }
            // It asks again; when its certificate ends it must prove its old key.
            Err(problem) => tracing::warn!(%node, %problem, "certificate not renewed"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_newest_common_protocol_is_spoken() {
        let (oldest, newest) = PROTOCOL;
        assert_eq!(negotiate(PROTOCOL).unwrap(), newest);
        assert_eq!(negotiate((oldest, newest + 5)).unwrap(), newest);
        assert_eq!(negotiate((0, oldest)).unwrap(), oldest);
        for bad in [(newest + 1, newest + 2), (0, oldest - 1), (newest, oldest - 1)] {
            assert_eq!(negotiate(bad).unwrap_err().code, Code::VersionUnsupported, "{bad:?}");
        }
    }
}
