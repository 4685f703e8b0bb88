//! TLS settings for the mesh and for REST. The caller wraps them (quinn, axum, reqwest).
//!
//! Mesh: TLS 1.3 only, ring passed explicitly, no tickets, no resumption, no early data, so that
//! each connection proves its certificate and a revoked one cannot come back by an old ticket.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    time_provider::TimeProvider,
    version::TLS13,
};

use super::{
    Error, NodeKey, PEM_BYTES_MAX,
    ca_certificate::CaCertificate,
    key::KeyHash,
    verifier::{CoordinatorVerifier, Trust},
};
use crate::{
    id::UnixMs,
    wire::{ALPN_ENROLL, ALPN_SESSION},
};

/// Most root certificates in a REST client's PEM file.
pub const API_ROOTS_MAX: usize = 16;

/// Where TLS takes the time from: the caller's clock, say a
/// [`TrustedClock`](super::TrustedClock) over the system's.
#[derive(Clone)]
pub struct TlsTime(Arc<dyn Fn() -> UnixMs + Send + Sync>);

impl TlsTime {
    /// Time as `now` tells it.
    pub fn new(now: impl Fn() -> UnixMs + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(
            (self.0)().0,
        )))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The coordinator's end of the mesh port, for sessions and enrolment. It sends the CA's
/// certificate too, so that a node that only has the pin can check. A client's certificate is
/// checked if it shows one; **a session without one must be refused by the caller**
/// ([`peer_identity`](super::peer_identity) says `NoCertificate`), as must a revoked one.
///
/// # Errors
/// [`Error::Tls`] when certificate and key do not belong together.
pub fn mesh_server(
    ca: &CaCertificate,
    cert: CertificateDer<'static>,
    key: &NodeKey,
    time: TlsTime,
) -> Result<ServerConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Tls(rustls::Error::General(e.to_string())))?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![cert, ca.der().clone()], key.to_tls())?;
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROLL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A node's end of a session: shows its certificate, trusts the CA it was enrolled with. Connect
/// with the server name [`COORDINATOR_NAME`](crate::wire::COORDINATOR_NAME), whatever the address.
///
/// # Errors
/// [`Error::Tls`] when certificate and key do not belong together.
pub fn mesh_client(
    ca: &CaCertificate,
    cert: CertificateDer<'static>,
    key: &NodeKey,
    time: TlsTime,
) -> Result<ClientConfig, Error> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier(Trust::Ca(Box::new(ca.clone()))))
        .with_client_auth_cert(vec![cert], key.to_tls())?;
    Ok(hardened(config, ALPN_SESSION))
}

/// A stranger's end of enrolment, or a node's that was off too long: trusts whatever coordinator
/// has a certificate under the CA key `pin`, shows none itself. Server name as for
/// [`mesh_client`].
///
/// # Errors
/// [`Error::Tls`].
pub fn enroll_client(pin: KeyHash, time: TlsTime) -> Result<ClientConfig, Error> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier(Trust::Pin(pin)))
        .with_no_client_auth();
    Ok(hardened(config, ALPN_ENROLL))
}

fn verifier(trust: Trust) -> Arc<dyn ServerCertVerifier> {
    CoordinatorVerifier::new(trust, provider().signature_verification_algorithms)
}

fn hardened(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

/// The REST port: server-authenticated, HTTP/2 or HTTP/1.1. `chain` is the leaf first; the key may
/// be an operator's own of any kind that ring reads.
///
/// # Errors
/// [`Error::Tls`] when certificate and key do not belong together.
pub fn api_server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A REST client that trusts the CAs in `ca_pem` and no others.
///
/// # Errors
/// [`Error::Certificate`] when there is none, or more than [`API_ROOTS_MAX`].
pub fn api_client(ca_pem: &str) -> Result<ClientConfig, Error> {
    let refuse = |reason: &str| Error::certificate("API's CA", reason);
    if ca_pem.len() > PEM_BYTES_MAX {
        return Err(refuse("the PEM text is too long"));
    }
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        if roots.len() == API_ROOTS_MAX {
            return Err(refuse("there are too many certificates"));
        }
        roots.add(cert.map_err(|_| refuse("the PEM text is damaged"))?)?;
    }
    if roots.is_empty() {
        return Err(refuse("there is no `CERTIFICATE` block"));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
