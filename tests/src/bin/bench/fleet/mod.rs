//! Fake agents: the real protocol from one process, without a runtime behind it. Keys, join
//! tokens, CSRs, certificates, mutual TLS, control and telemetry streams are the real ones.

mod enroll;
mod session;

pub(crate) use enroll::{Door, Member, tokens};
pub(crate) use session::{Fleet, Pace};

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use quinn::{ClientConfig, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};

/// As the agent does it by default: `agent/src/session/transport.rs`.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const IDLE_MS: u32 = 40_000;
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
const BIDI_STREAMS: u32 = 8;

/// QUIC settings of an agent.
fn quic(tls: rustls::ClientConfig) -> Result<ClientConfig> {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS).into()))
        .max_concurrent_bidi_streams(BIDI_STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None);
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A runtime for fleets.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}
