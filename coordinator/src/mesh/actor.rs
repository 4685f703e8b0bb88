//! A session's actor: one task from `Welcome` to the end.
//!
//! It reads the control stream message by message and asks the brain in that order; beside it, in
//! the same task, the mailbox is written and the node's other streams are taken. If the brain is
//! slow for one node, only that node's stream fills up. What the brain has begun is never
//! abandoned: when the session ends, the actor closes the connection first and then lets it end.

use std::{pin::pin, sync::Arc, time::Instant};

use futures_util::FutureExt;
use hop3_common::wire::{
    Down, INVENTORY_MAX, LEASES_MAX, Report, Up, close, frame,
    io::{self, FrameReader},
};
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::{
    NodeLink,
    admission::TokenBucket,
    agent_streams,
    endpoint::Shared,
    peer::{Breach, finish_and_wait},
};

/// Largest `Hello`, `Facts`, `Renew` or `Leaving`: only inventories and reports are larger.
pub(super) const SMALL_FRAME_MAX: usize = 64 << 10;
/// Reports taken before they are acknowledged, even when more wait to be read.
const ACK_BURST_MAX: u32 = 64;
/// Inventories, facts and renewals per second: a node sends each some times a day.
const STATEMENTS_PER_S: u32 = 1;
/// Of them, at once after a quiet time.
const STATEMENTS_BURST: u32 = 32;
/// Requests for leases per second: four in the shortest lease, one more with each run.
const LEASES_PER_S: u32 = 20;
/// Of them, at once: a node that starts wants many.
const LEASES_BURST: u32 = 2_000;
/// Longest reason for leaving that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;

/// The reading side of a control stream.
pub(super) type Control = FrameReader<RecvStream>;

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
        if error.is_protocol() {
            Self::Breach(Breach::new(error))
        } else {
            Self::Lost
        }
    }
}

/// Runs the session to its end; why it ended, for people. `acked`: the last durable report.
pub(super) async fn act(
    shared: &Arc<Shared>,
    link: &NodeLink,
    send: SendStream,
    reader: Control,
    acked: u64,
) -> String {
    if shared.restarting.is_cancelled() {
        return finish(
            link,
            End::Close(close::RESTARTING, "the coordinator restarts".into()),
        );
    }
    let statements = TokenBucket::new(STATEMENTS_PER_S, STATEMENTS_BURST, Instant::now());
    let mut actor = Actor {
        shared,
        link,
        acked,
        ack_due: 0,
        statements,
        leases: TokenBucket::new(LEASES_PER_S, LEASES_BURST, Instant::now()),
    };
    let mut reading = pin!(actor.read(reader));
    let end = tokio::select! {
        end = &mut reading => return finish(link, end),
        end = write(shared, link, send) => end,
        breach = agent_streams::accept(shared, link) => breach.map_or(End::Lost, End::Breach),
    };
    let why = finish(link, end);
    reading.await;
    why
}

/// Closes the connection for the reason that ended the session; the reason for people.
pub(super) fn finish(link: &NodeLink, end: End) -> String {
    // What was known before this is the cause, unless the node took its leave.
    let why = link.peer().why_closed();
    match end {
        End::Lost => link.close(close::DONE, "the agent ended the control stream"),
        End::Close(code, why) => link.close(code, &why),
        End::Breach(breach) => {
            link.peer().breach(&breach);
            link.close(close::PROTOCOL, &breach.0);
        }
    }
    why.or_else(|| link.peer().why_closed()).unwrap_or_default()
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
    leases: TokenBucket,
}

impl Actor<'_> {
    async fn read(&mut self, mut reader: Control) -> End {
        let mut leaving = None;
        loop {
            // What is here already is handled before anything is acknowledged: one
            // acknowledgement for a burst. Reading is cancel-safe.
            let ready = if self.ack_due < ACK_BURST_MAX {
                reader.next_body().now_or_never()
            } else {
                None
            };
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
            // A closed session (a revoked node's, say) has no more to tell, even if it is here.
            if self.link.peer().closed_by_us() {
                return End::Lost;
            }
            if let Err(end) = self.message(&body, &mut leaving).await {
                return end;
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
            Up::Leases { number, runs } => brain.leases(self.link, number, runs).await,
            Up::Fetched { instance } => brain.fetched(self.link.node(), &instance).await,
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
            Up::Leases { runs, .. } if runs.len() > LEASES_MAX => {
                let why = format!("{} leases at once, at most {LEASES_MAX}", runs.len());
                return Err(End::Breach(Breach(why)));
            }
            Up::Leases { .. } => {
                if self.leases.take(Instant::now()) {
                    return Ok(());
                }
                return Err(End::Close(close::BUSY, "leases too often".into()));
            }
            _ if len > SMALL_FRAME_MAX => {
                let error = frame::Error::TooLarge {
                    len,
                    max: SMALL_FRAME_MAX,
                };
                return Err(End::Breach(Breach::new(error)));
            }
            _ => {}
        }
        if self.statements.take(Instant::now()) {
            return Ok(());
        }
        Err(End::Close(
            close::BUSY,
            "too many inventories, facts or renewals".into(),
        ))
    }

    async fn report(&mut self, seq: u64, report: Report) -> Result<(), End> {
        // A repeat of what is durable is acknowledged again.
        if seq > self.acked {
            let taken = self.shared.brain.report(self.link, seq, report).await;
            if let Err(problem) = taken {
                tracing::warn!(node = %self.link.node(), seq, %problem, "a report was not taken");
                return Err(End::Close(
                    close::BUSY,
                    format!("report {seq} is not durable"),
                ));
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
