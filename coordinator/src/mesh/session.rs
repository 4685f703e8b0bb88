//! How a session begins: a certificate, `Hello`, `Welcome`; then its [actor](super::actor).

use std::sync::Arc;

use hop3_common::{
    codes::{Code, Problem},
    identity::{PeerIdentity, peer_identity},
    wire::{
        CONTROL_FRAME_MAX, Down, HEADER_FRAME_MAX, Hello, PROTOCOL, StreamHeader, Up, Welcome,
        close,
        io::{self, FrameReader},
    },
};
use quinn::{Connection, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    NodeLink,
    actor::{self, Control, End, SMALL_FRAME_MAX},
    endpoint::Shared,
    link::PRIORITY_CONTROL,
    peer::{Breach, Peer, finish_and_wait},
};

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
            shared.breaches.note(identity.node(), &connection, &why);
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
    let why = if let Err(error) = welcomed {
        actor::finish(&link, End::from(error))
    } else if shared.enter(&link) {
        actor::act(&shared, &link, send, reader, acked).await
    } else {
        let why = "a newer session of this node took over";
        actor::finish(&link, End::Close(close::REPLACED, why.into()))
    };
    shared.leave(&link);
    shared.brain.disconnected(&link, why).await;
}

fn identify(connection: &Connection) -> Result<PeerIdentity, String> {
    let certs = connection
        .peer_identity()
        .and_then(|any| any.downcast().ok());
    let certs: Box<Vec<CertificateDer<'static>>> = certs.ok_or("a client certificate is needed")?;
    let identity = peer_identity(&certs).map_err(|error| error.to_string())?;
    if identity.node().is_none() {
        return Err("the client certificate is not a node's".into());
    }
    Ok(identity)
}

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
        let message = format!(
            "the certificate is node `{owner}`'s, not `{}`'s",
            hello.node
        );
        return Err(Problem::new(Code::Unauthenticated, message));
    }
    let (counters, breaches) = (shared.counters.clone(), shared.breaches.clone());
    let peer = Peer::new(hello.node.clone(), connection.clone(), counters, breaches);
    let link = NodeLink::new(peer, shared.next_session());
    let mut welcome = shared
        .brain
        .connected(identity, hello, link.clone())
        .await?;
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
    if io::write(&mut send, &Down::Refused(problem), CONTROL_FRAME_MAX)
        .await
        .is_ok()
    {
        finish_and_wait(&mut send).await;
    }
    connection.close(VarInt::from_u32(code), reason.as_bytes());
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
        for bad in [
            (newest + 1, newest + 2),
            (0, oldest - 1),
            (newest, oldest - 1),
        ] {
            assert_eq!(
                negotiate(bad).unwrap_err().code,
                Code::VersionUnsupported,
                "{bad:?}"
            );
        }
    }
}
