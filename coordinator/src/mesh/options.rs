//! What a mesh is given: address, TLS, limits; and the QUIC settings that follow (DESIGN §13).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};

/// Streams that an agent may open at first: its control stream, blobs; its telemetry.
const BIDI_STREAMS: u32 = 8;
const UNI_STREAMS: u32 = 4;
/// Unread bytes per stream and per connection: the worst case of memory that a node can take by
/// sending what nobody reads.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// Unacknowledged bytes towards a node: a second at 8 Mbit/s.
const SEND_WINDOW_BYTES: u64 = 1 << 20;
/// A connection without a sign of life this long is dead. The agent keeps it alive.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Handshake packets kept before we look at them, all attempts together.
const INCOMING_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a connection id: enough that no two are alike.
const CONNECTION_ID_BYTES: usize = 8;
/// Attempts kept before we look at them.
const INCOMING_MAX: usize = 1024;
/// Where to listen, as whom, and how much to take.
#[derive(Debug, Clone)]
pub struct Options {
    /// UDP address.
    pub listen: SocketAddr,
    /// From `identity::tls::mesh_server`: both ALPNs, optional client certificates, no early data.
    pub tls: rustls::ServerConfig,
    /// Key of stateless resets and connection ids. Where it survives a restart, so do the means
    /// to tell agents at once that their old connection is gone; `None` = a random one.
    pub reset_key: Option<[u8; 32]>,
    /// Handshakes begun per second; each costs about 0.8 ms of CPU. More are shed and come back.
    pub handshakes_per_s: u32,
    /// Handshakes that may come at once after a quiet time.
    pub handshakes_burst: u32,
    /// Handshakes and enrolments in progress, about 50 KiB each.
    pub handshakes_max: usize,
    /// Of them, enrolments: strangers, who may take their time, leave room for nodes.
    pub enrolments_max: usize,
    /// From so many on, a peer must prove its address by a round trip first.
    pub retry_above: usize,
    /// Open connections: 35 KiB each when idle, at worst 512 KiB of unread and 1 MiB of unsent
    /// stream data, and 4 MiB of control messages.
    pub connections_max: usize,
    /// Longest TLS handshake, and longest wait for `Hello` after it.
    pub handshake_timeout: Duration,
    /// A node that takes nothing of what it is sent for so long is stuck, and its session closed.
    pub stuck_after: Duration,
}

impl Options {
    /// Defaults for a coordinator of some thousand nodes.
    #[must_use]
    pub fn new(listen: SocketAddr, tls: rustls::ServerConfig) -> Self {
        Self {
            listen,
            tls,
            reset_key: None,
            handshakes_per_s: 1_000,
            handshakes_burst: 2_000,
            handshakes_max: 512,
            enrolments_max: 64,
            retry_above: 64,
            connections_max: 16_384,
            handshake_timeout: Duration::from_secs(10),
            stuck_after: Duration::from_secs(30),
        }
    }
}

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("cannot listen on UDP {address}: free the port or choose another address")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The TLS settings do not fit QUIC.
    #[error("the TLS settings do not fit QUIC: TLS 1.3 with AES-128-GCM is needed")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The endpoint's settings: what makes an agent of before a restart reconnect at its next packet
/// instead of after its idle time-out.
pub(super) fn endpoint_config(reset_key: Option<[u8; 32]>) -> EndpointConfig {
    let Some(key) = reset_key else {
        return EndpointConfig::default();
    };
    let hmac = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let mut config = EndpointConfig::new(Arc::new(hmac));
    // quinn's own ids are signed with a key of each start, and a packet with another's signature
    // is dropped without a reset.
    config.cid_generator(|| Box::new(PlainIds));
    config
}

/// Random connection ids, all of which may have been ours.
struct PlainIds;

impl ConnectionIdGenerator for PlainIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }
    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The QUIC settings.
pub(super) fn server_config(tls: rustls::ServerConfig) -> Result<ServerConfig, Error> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(None)
        .datagram_receive_buffer_size(None);
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .transport_config(Arc::new(transport))
        .migration(true)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX / 64)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    Ok(config)
}
