//! The control stream of one connection: introduce, then frames both ways until it ends.
//!
//! One loop, no task per direction: what is to be sent waits encoded in one bounded buffer, and
//! is written as the network takes it.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use hop3_common::{
    codes::Code,
    identity::renew_at,
    wire::{
        CONTROL_FRAME_MAX, Down, HEADER_FRAME_MAX, Hello, PROTOCOL, StreamHeader, Up, Welcome,
        close, frame, io,
    },
};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::{End, Session, streams};
use crate::{VERSION, backoff, supervisor::core::Input, telemetry::Pace};

/// Time for the introduction.
const WELCOME: Duration = Duration::from_secs(15);
/// Encoded frames that wait before no more reports are taken from the outbox.
const OUT_BYTES: usize = 64 << 10;
/// Time for the last frames when we leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// A renewal that is not answered is asked for again after this time.
const RENEW_AGAIN_MS: u64 = 600_000;
/// The longest sleep of the renewal timer: the clock may be set meanwhile.
const RENEW_LOOK: Duration = Duration::from_secs(600);

type Frames = io::FrameReader<RecvStream>;

fn close_as(connection: &Connection, code: u32, reason: &str) {
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}

impl Session {
    /// Serves one connection to its end.
    pub(super) async fn serve(&mut self, connection: &Connection) -> End {
        let introduced = tokio::time::timeout(WELCOME, self.introduce(connection)).await;
        let (mut send, mut frames, welcome) = match introduced {
            Ok(Ok(introduced)) => introduced,
            Ok(Err(end)) => {
                close_as(connection, close::DONE, "not welcome");
                return end;
            }
            Err(_) => {
                close_as(connection, close::DONE, "no welcome in time");
                return End::lost("the coordinator did not welcome us in time");
            }
        };
        match self.welcomed(connection, &welcome).await {
            Ok(()) => {}
            Err(end) => {
                close_as(connection, close::DONE, "see the agent's log");
                return end;
            }
        }
        let others = [
            tokio::spawn(streams::accept(
                connection.clone(),
                self.options.exec.clone(),
            )),
            tokio::spawn({
                let sending = self.options.telemetry.clone().send(connection.clone());
                async move {
                    if let Err(error) = sending.await {
                        tracing::debug!(%error, "telemetry ended");
                    }
                }
            }),
        ];
        self.options.link.send_replace(Some(connection.clone()));
        let end = self.converse(connection, &mut send, &mut frames).await;
        self.options.link.send_replace(None);
        others.iter().for_each(tokio::task::JoinHandle::abort);
        match end {
            End::Lost { reason, .. } => End::Lost {
                reason,
                stood: true,
            },
            end => end,
        }
    }

    async fn introduce(
        &self,
        connection: &Connection,
    ) -> Result<(SendStream, Frames, Welcome), End> {
        let (mut send, recv) = connection.open_bi().await.map_err(End::lost)?;
        let hello = Up::Hello(Hello {
            protocol: PROTOCOL,
            node: self.options.member.node.clone(),
            agent_version: VERSION.to_owned(),
            boot_id: self.boot_id,
            outbox: self.options.supervisor.outbox_id(),
            facts: self.options.facts.borrow().clone(),
        });
        io::write(&mut send, &StreamHeader::Control, HEADER_FRAME_MAX)
            .await
            .map_err(End::lost)?;
        io::write(&mut send, &hello, CONTROL_FRAME_MAX)
            .await
            .map_err(End::lost)?;
        let mut frames = Frames::new(recv, CONTROL_FRAME_MAX);
        match frames.next::<Down>().await {
            Ok(Some(Down::Welcome(welcome))) => Ok((send, frames, welcome)),
            Ok(Some(Down::Refused(problem))) if problem.code == Code::NodeRevoked => {
                Err(End::Revoked)
            }
            Ok(Some(Down::Refused(problem))) => Err(End::lost(format!(
                "the coordinator refused the session: {problem}"
            ))),
            Ok(Some(Down::Restarting { .. }) | None) => {
                Err(End::lost("the coordinator is restarting"))
            }
            Ok(Some(_)) => Err(broke(connection, "it did not begin with a welcome")),
            Err(error) if error.is_protocol() => Err(broke(connection, &error.to_string())),
            Err(error) => Err(self.lost(connection, &error)),
        }
    }

    async fn welcomed(&mut self, connection: &Connection, welcome: &Welcome) -> Result<(), End> {
        if !(PROTOCOL.0..=PROTOCOL.1).contains(&welcome.protocol) {
            let reason = format!("the coordinator chose protocol {}", welcome.protocol);
            return Err(broke(connection, &reason));
        }
        let options = &self.options;
        options.clock.learn(welcome.now, connection).await;
        let supervisor = &options.supervisor;
        match supervisor.connected(welcome.acked_seq).await {
            Ok(Ok(())) => {}
            Ok(Err(diverged)) => {
                supervisor
                    .renumber(rand::random())
                    .await
                    .map_err(End::lost)?;
                self.asked_wait = Some(Duration::ZERO);
                return Err(End::lost(diverged));
            }
            Err(ended) => return Err(End::lost(ended)),
        }
        options
            .telemetry
            .set_pace(Pace::new(welcome.sample_ms, welcome.batch_ms));
        tracing::info!(
            node = %options.member.node,
            mesh = %welcome.mesh,
            coordinator = %connection.remote_address(),
            version = welcome.coordinator_version,
            "session established"
        );
        Ok(())
    }

    async fn converse(
        &mut self,
        connection: &Connection,
        send: &mut SendStream,
        frames: &mut Frames,
    ) -> End {
        let shutdown = self.options.shutdown.clone();
        let supervisor = self.options.supervisor.clone();
        let mut facts = self.options.facts.clone();
        facts.mark_unchanged();
        let mut out = BytesMut::new();
        let leases = self.options.exec.services().leases().clone();
        leases.session();
        match supervisor.inventory().await {
            Ok(held) => queue(&mut out, &Up::Inventory(held)),
            Err(ended) => return End::lost(ended),
        }
        loop {
            while out.len() < OUT_BYTES {
                let Some((seq, report)) = supervisor.next_unsent() else {
                    break;
                };
                queue(&mut out, &Up::Report { seq, report });
            }
            tokio::select! {
                wrote = send.write(&out), if !out.is_empty() => match wrote {
                    Ok(n) => out.advance(n),
                    Err(error) => return self.lost(connection, &error),
                },
                down = frames.next::<Down>() => match down {
                    Ok(Some(down)) => {
                        if let Err(end) = self.take(connection, down).await {
                            return end;
                        }
                    }
                    Ok(None) => return self.lost(connection, "the coordinator ended the session"),
                    Err(error) if error.is_protocol() => {
                        return broke(connection, &error.to_string());
                    }
                    Err(error) => return self.lost(connection, &error),
                },
                () = supervisor.new_reports() => {}
                Ok(()) = facts.changed() => {
                    let facts = facts.borrow_and_update().clone();
                    queue(&mut out, &Up::Facts(facts));
                }
                instance = self.options.exec.prefetched() => {
                    queue(&mut out, &Up::Fetched { instance });
                }
                () = leases.due() => {
                    if let Some(request) = leases.request() {
                        queue(&mut out, &request);
                    }
                }
                () = self.renewal_due() => {
                    if let Some(renew) = self.renew() {
                        queue(&mut out, &renew);
                    }
                }
                () = shutdown.cancelled() => {
                    queue(&mut out, &Up::Leaving { reason: "the agent stops".into() });
                    let farewell = async {
                        let _ = send.write_all(&out).await;
                        let _ = send.finish();
                        let _ = send.stopped().await;
                    };
                    let _ = tokio::time::timeout(FAREWELL, farewell).await;
                    close_as(connection, close::DONE, "the agent stops");
                    return End::Shutdown;
                }
            }
        }
    }

    async fn take(&mut self, connection: &Connection, down: Down) -> Result<(), End> {
        let supervisor = &self.options.supervisor;
        let taken = match down {
            Down::Ack { seq } => supervisor.acked(seq).await,
            Down::Assign(assignment) => supervisor.step(Input::Assign(assignment)).await,
            Down::Stop {
                instance,
                epoch,
                reason,
            } => {
                tracing::info!(%instance, %epoch, reason, "stop ordered");
                supervisor.step(Input::Stop { instance, epoch }).await
            }
            Down::Forget { instance, epoch } => {
                supervisor.step(Input::Forget { instance, epoch }).await
            }
            Down::Seal { instance, epoch } => {
                tracing::info!(%instance, %epoch, "seal ordered");
                supervisor.step(Input::Seal { instance, epoch }).await
            }
            Down::Checkpoint { instance, epoch } => {
                supervisor.step(Input::Checkpoint { instance, epoch }).await
            }
            Down::Fetch { instance, work } => {
                self.options.exec.prefetch(instance, *work);
                Ok(())
            }
            Down::Leases { number, runs } => {
                let leases = self.options.exec.services().leases();
                leases.granted(number, runs);
                Ok(())
            }
            Down::Telemetry {
                sample_ms,
                batch_ms,
            } => {
                self.options
                    .telemetry
                    .set_pace(Pace::new(sample_ms, batch_ms));
                Ok(())
            }
            Down::Certificate { cert_der } => {
                self.renewed(&cert_der).await;
                Ok(())
            }
            Down::Restarting { reconnect_in_ms } => {
                tracing::info!(reconnect_in_ms, "the coordinator restarts");
                self.asked_wait = Some(backoff::asked(reconnect_in_ms, rand::random()));
                Ok(())
            }
            Down::Welcome(_) | Down::Refused(_) => {
                return Err(broke(connection, "a second answer to hello"));
            }
        };
        taken.map_err(End::lost)
    }

    /// Waits until the certificate should be renewed.
    async fn renewal_due(&self) {
        loop {
            let left_ms = self.renew_at.since(self.options.clock.now());
            if left_ms == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left_ms).min(RENEW_LOOK)).await;
        }
    }

    fn renew(&mut self) -> Option<Up> {
        self.renew_at = self.options.clock.now().plus(RENEW_AGAIN_MS);
        match self.options.member.key.csr() {
            Ok(csr) => Some(Up::Renew {
                csr_der: Bytes::from(csr),
            }),
            Err(error) => {
                tracing::error!(%error, "the certificate cannot be renewed");
                None
            }
        }
    }

    async fn renewed(&mut self, cert_der: &[u8]) {
        let options = &mut self.options;
        let now = options.clock.now();
        match options
            .member
            .adopt(cert_der, now, &*options.data.store)
            .await
        {
            Ok(()) => {
                let validity = options.member.identity.validity;
                self.renew_at = renew_at(validity, rand::random());
                tracing::info!(expires = validity.not_after.0, "certificate renewed");
            }
            Err(error) => tracing::error!(%error, "the renewed certificate was not taken"),
        }
    }

    /// Why the session ended, as well as can be said.
    fn lost(&self, connection: &Connection, error: impl std::fmt::Display) -> End {
        match connection.close_reason() {
            Some(reason) => End::lost(reason),
            None => End::lost(error),
        }
    }
}

/// Ends a connection whose other side made no sense.
fn broke(connection: &Connection, reason: &str) -> End {
    tracing::error!(reason, "the coordinator broke the protocol");
    close_as(connection, close::PROTOCOL, reason);
    End::lost(format!("the coordinator broke the protocol: {reason}"))
}

/// Encodes a frame of ours; they are bounded by construction.
fn queue(out: &mut BytesMut, up: &Up) {
    if let Err(error) = frame::encode(up, CONTROL_FRAME_MAX, out) {
        tracing::error!(%error, "a control frame was not sent");
    }
}
