//! The session: one QUIC connection to a coordinator, kept up for as long as the agent lives.
//!
//! Dial all addresses in turn, introduce ourselves, exchange control frames, and start again with
//! full-jitter back-off when it ends. A revoked node stops dialling and keeps its state.
//!
//! Nothing here decides about instances: what comes goes to the supervisor, what it reports goes
//! out from the outbox.

mod control;
pub mod outbox;
mod streams;
pub mod transport;

use std::{sync::Arc, time::Duration};

use hop3_common::{
    codes::Code,
    id::UnixMs,
    identity::{renew_at, tls},
    wire::NodeFacts,
};
use quinn::Connection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff,
    exec::Exec,
    identity::{self, Clock, DataDir, Member, renew_expired},
    supervisor,
    telemetry::Telemetry,
};

/// What a session needs.
pub struct Options {
    /// Where the identity is stored.
    pub data: Arc<DataDir>,
    /// Who we are.
    pub member: Member,
    /// The time.
    pub clock: Clock,
    /// The instances.
    pub supervisor: supervisor::Handle,
    /// Serves the coordinator's streams.
    pub exec: Exec,
    /// What this node is; sent again when it changes.
    pub facts: watch::Receiver<NodeFacts>,
    /// Samples.
    pub telemetry: Telemetry,
    /// Time between signs of life.
    pub keep_alive: Duration,
    /// Where others find the connection.
    pub link: watch::Sender<Option<Connection>>,
    /// Ends the session, orderly.
    pub shutdown: CancellationToken,
}

/// The session's actor.
pub struct Session {
    options: Options,
    /// New at every boot of the machine.
    boot_id: [u8; 16],
    /// The address that answered last.
    address: usize,
    /// When to ask for a new certificate.
    renew_at: UnixMs,
    /// The coordinator did not take our certificate.
    certificate_refused: bool,
    /// When to come back, if the coordinator said so.
    asked_wait: Option<Duration>,
}

/// How one connection ended.
#[derive(Debug)]
enum End {
    /// By our own intent.
    Shutdown,
    /// This node was revoked.
    Revoked,
    /// Anything else: dial again.
    Lost {
        /// Why.
        reason: String,
        /// The coordinator had welcomed us.
        stood: bool,
    },
}

impl End {
    fn lost(reason: impl std::fmt::Display) -> Self {
        Self::Lost {
            reason: reason.to_string(),
            stood: false,
        }
    }
}

impl Session {
    /// A session that is not dialled yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let renew_at = renew_at(options.member.identity.validity, rand::random());
        Self {
            options,
            boot_id: boot_id(),
            address: 0,
            renew_at,
            certificate_refused: false,
            asked_wait: None,
        }
    }

    /// Keeps the session up until shutdown.
    pub async fn run(mut self) {
        let shutdown = self.options.shutdown.clone();
        let mut attempt = 0;
        while !shutdown.is_cancelled() {
            let mut link = self.options.link.subscribe();
            let leave = async {
                shutdown.cancelled().await;
                // A session that stands ends itself, orderly.
                let _ = link.wait_for(Option::is_none).await;
            };
            let end = tokio::select! {
                biased;
                end = Box::pin(self.once()) => end,
                () = leave => End::Shutdown,
            };
            self.options.link.send_replace(None);
            self.options.telemetry.alone();
            match end {
                End::Shutdown => return,
                End::Revoked => {
                    tracing::error!(
                        node = %self.options.member.node,
                        "this node was revoked: it does not connect any more; its state is kept. \
                         To join again, remove its data directory and enroll with a new token"
                    );
                    return shutdown.cancelled().await;
                }
                End::Lost { reason, stood } => {
                    attempt = if stood { 0 } else { attempt + 1 };
                    let wait = match self.asked_wait.take() {
                        Some(wait) => wait,
                        None => backoff::delay(attempt, rand::random()),
                    };
                    let wait_ms = wait.as_millis() as u64;
                    tracing::warn!(reason, wait_ms, "no session; dialling again after a pause");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
    }

    /// One round: a valid certificate, a connection, a session to its end.
    async fn once(&mut self) -> End {
        if let Err(end) = self.certificate().await {
            return end;
        }
        let connection = match self.dial().await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        let end = self.serve(&connection).await;
        // Why the coordinator closed says more than what we were doing.
        if let Some(reason) = connection.close_reason() {
            self.certificate_refused |= transport::is_certificate_refused(&reason);
            if transport::is_revoked(&reason) {
                return End::Revoked;
            }
        }
        end
    }

    /// Renews a certificate that has expired, or that the coordinator takes for expired.
    async fn certificate(&mut self) -> Result<(), End> {
        let Options {
            member,
            clock,
            data,
            ..
        } = &mut self.options;
        let expired = clock.now() >= member.identity.validity.not_after;
        if !expired && !self.certificate_refused {
            return Ok(());
        }
        tracing::info!(node = %member.node, expired, "renewing the certificate by proof of its key");
        self.certificate_refused = false;
        match renew_expired(member, clock, data).await {
            Ok(()) => {
                self.renew_at = renew_at(member.identity.validity, rand::random());
                Ok(())
            }
            Err(identity::Error::Refused(problem)) if problem.code == Code::NodeRevoked => {
                Err(End::Revoked)
            }
            // Unless it has expired, it may still do.
            Err(error) if expired => Err(End::lost(error)),
            Err(error) => {
                tracing::warn!(%error, "the certificate was not renewed");
                Ok(())
            }
        }
    }

    /// Tries every coordinator once, beginning with the one that answered last.
    async fn dial(&mut self) -> Result<Connection, End> {
        let Options { member, clock, .. } = &self.options;
        let tls = tls::mesh_client(&member.ca, member.cert.clone(), &member.key, clock.tls());
        let keep_alive = self.options.keep_alive;
        let config = tls
            .map_err(End::lost)
            .and_then(|tls| transport::client_config(tls, keep_alive).map_err(End::lost))?;
        let count = member.coordinators.len();
        let mut reasons = Vec::new();
        for n in 0..count {
            let at = (self.address + n) % count;
            match transport::dial(&config, &member.coordinators[at]).await {
                Ok(connection) => {
                    self.address = at;
                    return Ok(connection);
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(End::lost(reasons.join("; ")))
    }
}

/// The kernel's id of this boot, or a random one.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&hex, 16).map_or_else(|_| rand::random(), u128::to_be_bytes)
}
