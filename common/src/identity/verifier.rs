//! The node's check of a coordinator: its leaf is signed by the CA that the node trusts, is a
//! coordinator's, and carries the name that was asked for.
//!
//! A node whose clock is behind (a Pi at boot) takes a leaf's own beginning as the time: the CA
//! would not have signed it before, so it is a lower bound for now, and signed.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use webpki::EndEntityCert;

use super::{
    Error,
    ca_certificate::{CaCertificate, Usage},
    certificate::{PeerIdentity, Role},
    key::KeyHash,
};
use crate::id::UnixMs;

/// Most certificates that a coordinator may send besides its own.
const CHAIN_MAX: usize = 4;

/// Which CA the node trusts.
#[derive(Debug)]
pub(super) enum Trust {
    /// The one with this key; the coordinator sends its certificate.
    Pin(KeyHash),
    /// This one.
    Ca(Box<CaCertificate>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct CoordinatorVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl CoordinatorVerifier {
    pub(super) fn new(trust: Trust, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        Arc::new(Self { trust, algorithms })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixMs,
    ) -> Result<(), Error> {
        let refuse = |reason: &str| Error::certificate("coordinator's", reason);
        let identity = PeerIdentity::from_der(leaf)?;
        if identity.role != Role::Coordinator {
            return Err(refuse("it is a node's"));
        }
        let now = now.max(identity.validity.not_before);
        match &self.trust {
            Trust::Ca(ca) => ca.verify(leaf, Usage::Server, now)?,
            Trust::Pin(pin) => pinned(*pin, others)?.verify(leaf, Usage::Server, now)?,
        };
        EndEntityCert::try_from(leaf)
            .and_then(|cert| cert.verify_is_valid_for_subject_name(name))
            .map_err(|_| refuse("it is for another name"))
    }
}

/// The CA certificate with the pinned key among those that the coordinator sent.
fn pinned(pin: KeyHash, sent: &[CertificateDer<'_>]) -> Result<CaCertificate, Error> {
    let mut cas = sent
        .iter()
        .take(CHAIN_MAX)
        .filter_map(|der| CaCertificate::from_der(der).ok());
    cas.find(|ca| ca.pin() == pin).ok_or_else(|| {
        let reason = "its CA is not the one that the join token pins: this is another mesh, \
                      or somebody in between";
        Error::certificate("coordinator's", reason)
    })
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let now = UnixMs(now.as_secs().saturating_mul(1000));
        self.check(leaf, others, name, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken in a mesh".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
