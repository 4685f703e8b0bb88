//! Renewal after a long absence. rustls refuses an expired client certificate, so the node
//! connects as a stranger on `hop3-enroll/1` and proves its old key by a signature over that very
//! connection (its TLS exporter) and the new request: it cannot be replayed on another connection
//! nor used for another key.

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;

use super::{
    Error, NodeKey,
    ca_certificate::{CaCertificate, Usage},
    certificate::PeerIdentity,
    csr::{self, verify_csr},
    enroll::Renew,
    key::VerifiedPublicKey,
};
use crate::{codes::Code, id::NodeId};

/// Label under which both ends export keying material from the TLS connection (no context).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hop3-renew-v1";
/// Bytes to export.
pub const EXPORTER_BYTES: usize = 32;

/// First bytes of what is signed; nothing else that a node key signs begins so.
const DOMAIN: &[u8] = b"hop3 renew v1\0";

/// What a node signs with its old key.
#[must_use]
pub fn message(exporter: &[u8; EXPORTER_BYTES], old_cert_der: &[u8], csr_der: &[u8]) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    message.extend_from_slice(exporter);
    message.extend_from_slice(&Sha256::digest(old_cert_der));
    message.extend_from_slice(&Sha256::digest(csr_der));
    message
}

/// Makes the request: `old` with its certificate asks for a certificate of `new` (which may be the
/// same key), on the connection with this `exporter`.
///
/// # Errors
/// [`Error::Crypto`].
pub fn request(
    node: NodeId,
    old: &NodeKey,
    old_cert_der: &[u8],
    new: &NodeKey,
    exporter: &[u8; EXPORTER_BYTES],
) -> Result<Renew, Error> {
    let csr_der = new.csr()?;
    let signature = old.sign(&message(exporter, old_cert_der, &csr_der))?;
    let old_cert_der = old_cert_der.to_vec();
    Ok(Renew {
        protocol: crate::wire::PROTOCOL,
        node,
        old_cert_der,
        csr_der,
        signature,
    })
}

/// What the coordinator's records say of an old certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The node is a member and this is its newest key (or the one before, if the node may not
    /// have got the newest).
    Good,
    /// The node, or this certificate, was revoked.
    Revoked,
    /// The node has long had a newer key: whoever holds this one holds an old copy.
    Superseded,
    /// No such node.
    Unknown,
}

/// Why a renewal was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The old certificate is not one of this mesh's nodes.
    #[error("renewal refused: the old certificate is not this mesh's")]
    Certificate(#[source] Error),
    /// The old certificate is another node's.
    #[error("renewal refused: the old certificate is not node `{node}`'s")]
    OtherNode {
        /// Who asked.
        node: NodeId,
    },
    /// The signature is not by the old key over this request on this connection.
    #[error("renewal refused: no proof of the old key on this connection")]
    NoProof,
    /// The node was revoked.
    #[error("renewal refused: the node was revoked")]
    Revoked,
    /// A newer key exists.
    #[error("renewal refused: the node has a newer key")]
    Superseded,
    /// The node is not known any more.
    #[error("renewal refused: the coordinator does not know the node")]
    Unknown,
    /// The new request is not acceptable.
    #[error("renewal refused: {0}")]
    Csr(csr::Error),
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Revoked => Code::NodeRevoked,
            Self::Unknown => Code::NodeUnknown,
            Self::Csr(_) => Code::CsrInvalid,
            _ => Code::RenewalRefused,
        }
    }
}

/// A renewal whose proof holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Who the node was by its old certificate.
    pub old: PeerIdentity,
    /// The key to certify.
    pub key: VerifiedPublicKey,
}

/// Checks a renewal that came over the connection with this `exporter`. The old certificate may
/// have expired; all else about it must hold. `standing` is asked only after the proof.
///
/// # Errors
/// [`Refusal`].
pub fn verify(
    ca: &CaCertificate,
    request: &Renew,
    exporter: &[u8; EXPORTER_BYTES],
    standing: impl FnOnce(&PeerIdentity) -> Standing,
) -> Result<Renewal, Refusal> {
    let cert = CertificateDer::from(request.old_cert_der.as_slice());
    // As of its own beginning: expiry is what renewal is for.
    let begin = PeerIdentity::from_der(&cert)
        .map_err(Refusal::Certificate)?
        .validity
        .not_before;
    let old = ca
        .verify(&cert, Usage::Client, begin)
        .map_err(Refusal::Certificate)?;
    if old.node() != Some(&request.node) {
        return Err(Refusal::OtherNode {
            node: request.node.clone(),
        });
    }
    let message = message(exporter, &request.old_cert_der, &request.csr_der);
    let algorithms = [webpki::ring::ECDSA_P256_SHA256, webpki::ring::ED25519];
    let parsed = EndEntityCert::try_from(&cert)
        .map_err(|e| Refusal::Certificate(Error::certificate("old", e)))?;
    let by_old_key = |algorithm| parsed.verify_signature(algorithm, &message, &request.signature);
    if !algorithms
        .into_iter()
        .any(|algorithm| by_old_key(algorithm).is_ok())
    {
        return Err(Refusal::NoProof);
    }
    match standing(&old) {
        Standing::Good => {}
        Standing::Revoked => return Err(Refusal::Revoked),
        Standing::Superseded => return Err(Refusal::Superseded),
        Standing::Unknown => return Err(Refusal::Unknown),
    }
    let key = verify_csr(&request.csr_der).map_err(Refusal::Csr)?;
    Ok(Renewal { old, key })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{id::UnixMs, identity::CertificateAuthority};

    const NOW: UnixMs = UnixMs(1_760_000_000_000);
    const HERE: [u8; EXPORTER_BYTES] = [7; EXPORTER_BYTES];

    struct Scene {
        ca: CertificateAuthority,
        old: NodeKey,
        old_cert: Vec<u8>,
        new: NodeKey,
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    impl Scene {
        fn new() -> Self {
            let ca = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
            let old = NodeKey::generate().unwrap();
            // Of a minute's life: long expired for any clock of today.
            let issued = ca
                .issue_node(&node("n1"), &old.public_key(), NOW, 60)
                .unwrap();
            let new = NodeKey::generate().unwrap();
            Self {
                ca,
                old,
                old_cert: issued.der.to_vec(),
                new,
            }
        }

        fn request(&self) -> Renew {
            request(node("n1"), &self.old, &self.old_cert, &self.new, &HERE).unwrap()
        }

        fn verify(&self, request: &Renew) -> Result<Renewal, Refusal> {
            verify(self.ca.certificate(), request, &HERE, |_| Standing::Good)
        }
    }

    #[test]
    fn an_expired_certificate_and_its_key_renew() {
        let scene = Scene::new();
        let renewal = scene.verify(&scene.request()).unwrap();
        assert_eq!(renewal.key, scene.new.public_key());
        assert_eq!(renewal.old.node(), Some(&node("n1")));
        assert_eq!(renewal.old.key, scene.old.public_key().hash());
    }

    #[test]
    fn a_replay_on_another_connection_is_refused() {
        let scene = Scene::new();
        let there = [8; EXPORTER_BYTES];
        let replayed = verify(
            scene.ca.certificate(),
            &scene.request(),
            &there,
            |_| unreachable!(),
        );
        assert!(matches!(replayed, Err(Refusal::NoProof)));
    }

    #[test]
    fn a_changed_request_is_refused() {
        let scene = Scene::new();
        let mut swapped = scene.request();
        swapped.csr_der = NodeKey::generate().unwrap().csr().unwrap();
        assert!(matches!(scene.verify(&swapped), Err(Refusal::NoProof)));
        let mut unsigned = scene.request();
        unsigned.signature.clear();
        assert!(matches!(scene.verify(&unsigned), Err(Refusal::NoProof)));
        // The right key signs, but asks for garbage or for a key that it does not hold.
        let mut garbage = scene.request();
        garbage.csr_der = b"garbage".to_vec();
        let signed = message(&HERE, &garbage.old_cert_der, &garbage.csr_der);
        garbage.signature = scene.old.sign(&signed).unwrap();
        let refused = scene.verify(&garbage).unwrap_err();
        assert_eq!(refused.code(), Code::CsrInvalid);
    }

    #[test]
    fn a_certificate_without_its_key_is_worth_nothing() {
        let scene = Scene::new();
        let thief = NodeKey::generate().unwrap();
        let stolen = request(node("n1"), &thief, &scene.old_cert, &thief, &HERE).unwrap();
        assert!(matches!(scene.verify(&stolen), Err(Refusal::NoProof)));
    }

    #[test]
    fn other_certificates_are_refused() {
        let scene = Scene::new();
        let key = &scene.old;
        let public = key.public_key();
        // Another node's own certificate, used for n1.
        let n2 = scene.ca.issue_node(&node("n2"), &public, NOW, 60).unwrap();
        let asked = request(node("n1"), key, &n2.der, &scene.new, &HERE).unwrap();
        assert!(matches!(
            scene.verify(&asked),
            Err(Refusal::OtherNode { .. })
        ));
        // A coordinator's, another CA's, the CA's own, garbage.
        let coordinator = scene.ca.issue_coordinator(&[], &public, NOW, 60).unwrap();
        let strange = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let strange = strange.issue_node(&node("n1"), &public, NOW, 60).unwrap();
        let own = scene.ca.certificate().der();
        for cert in [
            coordinator.der.as_ref(),
            strange.der.as_ref(),
            own.as_ref(),
            b"x",
        ] {
            let asked = request(node("n1"), key, cert, &scene.new, &HERE).unwrap();
            assert!(matches!(scene.verify(&asked), Err(Refusal::Certificate(_))));
        }
    }

    #[test]
    fn the_records_have_the_last_word() {
        let scene = Scene::new();
        for (standing, code) in [
            (Standing::Revoked, Code::NodeRevoked),
            (Standing::Superseded, Code::RenewalRefused),
            (Standing::Unknown, Code::NodeUnknown),
        ] {
            let ca = scene.ca.certificate();
            let refused = verify(ca, &scene.request(), &HERE, |_| standing).unwrap_err();
            assert_eq!(refused.code(), code);
        }
    }
}
