//! QUIC as the mesh speaks it: settings and dialling. No retries here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hop3_common::{identity::CoordinatorAddr, wire};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};

/// Keep-alives without an answer after which the connection is given up. Both sides do: QUIC
/// takes the shorter of their time-outs.
const KEEP_ALIVES_LOST_MAX: u32 = 4;
/// Keep-alive of short connections (enrolment): they end long before.
pub const KEEP_ALIVE_SHORT: Duration = Duration::from_secs(10);
/// Time for name look-up and handshake with one address.
const DIAL: Duration = Duration::from_secs(10);
/// Bytes in flight to us per stream.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes in flight to us per connection; also what is kept unsent.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Streams that the coordinator may have open at first; raised when used ([`STREAMS_MAX`]).
pub const STREAMS_FIRST: u32 = 8;
/// Streams that the coordinator may ever have open: calls, attached clients, logs.
pub const STREAMS_MAX: u32 = 256;
/// Addresses tried per name.
const RESOLVED_MAX: usize = 8;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name has no address.
    #[error("cannot resolve {address}")]
    Resolve {
        /// The coordinator's address.
        address: CoordinatorAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No answer, or a broken one.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The coordinator's address.
        address: CoordinatorAddr,
        /// Why.
        reason: String,
    },
    /// Whoever answers is not this mesh's coordinator.
    #[error("{address} is not to be trusted: {reason}")]
    Untrusted {
        /// The coordinator's address.
        address: CoordinatorAddr,
        /// Why.
        reason: String,
    },
    /// This side's settings are unusable.
    #[error("QUIC cannot be set up: {0}")]
    Setup(String),
}

/// QUIC settings around TLS settings, with a sign of life every `keep_alive`.
///
/// # Errors
/// [`Error::Setup`] for TLS settings that QUIC cannot use.
pub fn client_config(
    tls: rustls::ClientConfig,
    keep_alive: Duration,
) -> Result<ClientConfig, Error> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| Error::Setup(e.to_string()))?;
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(keep_alive * KEEP_ALIVES_LOST_MAX).ok())
        .max_concurrent_bidi_streams(STREAMS_FIRST.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None);
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Connects to one coordinator, all addresses of its name in turn.
///
/// # Errors
/// What the last address gave.
pub async fn dial(config: &ClientConfig, address: &CoordinatorAddr) -> Result<Connection, Error> {
    let unreachable = |reason: String| Error::Unreachable {
        address: address.clone(),
        reason,
    };
    let resolved = tokio::time::timeout(
        DIAL,
        tokio::net::lookup_host((address.host(), address.port())),
    );
    let found = resolved
        .await
        .map_err(|_| unreachable("the name look-up took too long".into()))?
        .map_err(|source| Error::Resolve {
            address: address.clone(),
            source,
        })?;
    let mut last = unreachable("its name has no address".into());
    for socket in found.take(RESOLVED_MAX) {
        match tokio::time::timeout(DIAL, connect(config, socket)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(Refused::Trust(reason))) => {
                last = Error::Untrusted {
                    address: address.clone(),
                    reason,
                };
            }
            Ok(Err(Refused::Other(reason))) => last = unreachable(reason),
            Err(_) => last = unreachable(format!("no answer within {} s", DIAL.as_secs())),
        }
    }
    Err(last)
}

enum Refused {
    Trust(String),
    Other(String),
}

async fn connect(config: &ClientConfig, to: SocketAddr) -> Result<Connection, Refused> {
    let from: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let other = |reason: String| Refused::Other(reason);
    // An endpoint of its own: it ends with its connection.
    let endpoint =
        Endpoint::client(SocketAddr::new(from, 0)).map_err(|e| other(format!("no socket: {e}")))?;
    let connecting = endpoint
        .connect_with(config.clone(), to, wire::COORDINATOR_NAME)
        .map_err(|e| other(e.to_string()))?;
    connecting.await.map_err(|error| match &error {
        // A TLS alert of ours: we did not like the certificate.
        ConnectionError::TransportError(e) if is_tls_alert(u64::from(e.code)) => {
            Refused::Trust(e.reason.clone())
        }
        _ => other(error.to_string()),
    })
}

/// Whether a transport error code carries a TLS alert.
fn is_tls_alert(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

/// Whether the peer ended the connection because of our certificate.
#[must_use]
pub fn is_certificate_refused(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => is_tls_alert(u64::from(close.error_code)),
        ConnectionError::ApplicationClosed(close) => {
            close.error_code == VarInt::from_u32(wire::close::UNAUTHENTICATED)
        }
        _ => false,
    }
}

/// Whether the peer ended the connection because this node was revoked.
#[must_use]
pub fn is_revoked(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close)
        if close.error_code == VarInt::from_u32(wire::close::REVOKED))
}
