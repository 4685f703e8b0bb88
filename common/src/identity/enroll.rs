//! Messages of `hop3-enroll/1`: one request, one reply, one connection. The framing is `wire`'s
//! ([`ENROLL_FRAME_MAX`](crate::wire::ENROLL_FRAME_MAX)); enums are append-only.
//!
//! The connection authenticates the coordinator (by the pin); the request authenticates the node:
//! by a join token, or by proof of its old key ([`renew`](super::renew)).

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{
    CERT_BYTES_MAX, Error, TokenId, TokenSecret,
    ca_certificate::{CaCertificate, Usage},
    certificate::PeerIdentity,
    csr::CSR_BYTES_MAX,
    key::{KeyHash, VerifiedPublicKey},
};
use crate::{
    codes::{Code, Problem},
    id::{MeshId, NodeId, UnixMs},
};

/// Longest host name, in bytes (DNS).
pub const HOSTNAME_BYTES_MAX: usize = 253;
/// Most facts that an agent tells about itself when it joins.
pub const FACTS_MAX: usize = 16;
/// Longest key of a fact, in bytes.
pub const FACT_KEY_BYTES_MAX: usize = 32;
/// Longest value of a fact, in bytes.
pub const FACT_VALUE_BYTES_MAX: usize = 128;
/// Longest signature, in bytes: ASN.1 ECDSA P-256 has at most 72, Ed25519 64.
pub const SIGNATURE_BYTES_MAX: usize = 80;

/// What a node asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollRequest {
    /// To be let in, with a join token.
    Join(Join),
    /// A new certificate, by proof of the old key.
    Renew(Renew),
}

/// See [`EnrollRequest::Join`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Protocol versions that the agent speaks, oldest and newest.
    pub protocol: (u16, u16),
    /// The join token's name.
    pub token: TokenId,
    /// The join token's secret.
    pub secret: TokenSecret,
    /// A PKCS#10 request; only its public key is used.
    pub csr_der: Vec<u8>,
    /// The machine's name; a suggestion for the node's.
    pub hostname: String,
    /// What the agent says of itself (`arch`, `os`, `version`); for people.
    pub facts: BTreeMap<String, String>,
}

/// See [`EnrollRequest::Renew`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Protocol versions that the agent speaks, oldest and newest.
    pub protocol: (u16, u16),
    /// The node.
    pub node: NodeId,
    /// Its last certificate, expired or not.
    pub old_cert_der: Vec<u8>,
    /// A PKCS#10 request with the key to certify; only its public key is used.
    pub csr_der: Vec<u8>,
    /// By the old key, over [`renew::message`](super::renew::message).
    pub signature: Vec<u8>,
}

/// What the coordinator answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollReply {
    /// Welcome.
    Granted(Granted),
    /// No, and why.
    Refused(Problem),
}

/// See [`EnrollReply::Granted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The node's name.
    pub node: NodeId,
    /// The mesh.
    pub mesh: MeshId,
    /// The node's certificate.
    pub cert_der: Vec<u8>,
    /// The CA's certificate.
    pub ca_der: Vec<u8>,
    /// When the certificate ends.
    pub expires: UnixMs,
    /// The coordinator's time.
    pub server_time: UnixMs,
}

/// What a node has once it is let in, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The CA.
    pub ca: CaCertificate,
    /// The node's certificate.
    pub cert: CertificateDer<'static>,
    /// What it says.
    pub identity: PeerIdentity,
}

impl EnrollRequest {
    /// Checks the sizes of all that the sender chose.
    ///
    /// # Errors
    /// A [`Problem`] to answer with.
    pub fn check(&self) -> Result<(), Problem> {
        match self {
            Self::Join(join) => {
                bounded("csr", join.csr_der.len(), CSR_BYTES_MAX)?;
                text("hostname", &join.hostname, HOSTNAME_BYTES_MAX)?;
                bounded("facts", join.facts.len(), FACTS_MAX)?;
                for (key, value) in &join.facts {
                    text("facts", key, FACT_KEY_BYTES_MAX)?;
                    text("facts", value, FACT_VALUE_BYTES_MAX)?;
                }
                Ok(())
            }
            Self::Renew(renew) => {
                bounded("csr", renew.csr_der.len(), CSR_BYTES_MAX)?;
                bounded("old_cert", renew.old_cert_der.len(), CERT_BYTES_MAX)?;
                bounded("signature", renew.signature.len(), SIGNATURE_BYTES_MAX)
            }
        }
    }

    /// Protocol versions that the sender speaks, oldest and newest.
    #[must_use]
    pub fn protocol(&self) -> (u16, u16) {
        match self {
            Self::Join(join) => join.protocol,
            Self::Renew(renew) => renew.protocol,
        }
    }
}

impl Granted {
    /// Checks, on the node, that the grant is worth keeping: the CA is the pinned one, the
    /// certificate is the CA's, for this node, and for this `key`.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn verify(&self, pin: KeyHash, key: &VerifiedPublicKey) -> Result<Membership, Error> {
        let refuse = |reason: &str| Error::certificate("granted", reason);
        let ca = CaCertificate::from_der(&self.ca_der)?;
        if ca.pin() != pin {
            return Err(refuse("its CA is not the one that the join token pins"));
        }
        if *ca.mesh() != self.mesh {
            return Err(refuse("its CA is of another mesh"));
        }
        let cert = CertificateDer::from(self.cert_der.clone());
        let identity = ca.verify(&cert, Usage::Client, self.server_time)?;
        if identity.node() != Some(&self.node) {
            return Err(refuse("it names another node"));
        }
        if identity.key != key.hash() {
            return Err(refuse("it certifies another key"));
        }
        Ok(Membership { ca, cert, identity })
    }
}

fn bounded(what: &str, size: usize, max: usize) -> Result<(), Problem> {
    if size <= max {
        return Ok(());
    }
    Err(Problem::new(
        Code::TooLarge,
        format!("enrolment: `{what}` has {size}; at most {max}"),
    ))
}

fn text(what: &str, text: &str, bytes_max: usize) -> Result<(), Problem> {
    bounded(what, text.len(), bytes_max)?;
    if text.chars().any(char::is_control) {
        let message = format!("enrolment: `{what}` has control characters");
        return Err(Problem::new(Code::InvalidBody, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        identity::{CertificateAuthority, NodeKey},
        wire::{ENROLL_FRAME_MAX, PROTOCOL},
    };

    const NOW: UnixMs = UnixMs(1_760_000_000_000);

    fn join() -> Join {
        Join {
            protocol: PROTOCOL,
            token: TokenId::generate().unwrap(),
            secret: TokenSecret::generate().unwrap(),
            csr_der: NodeKey::generate().unwrap().csr().unwrap(),
            hostname: "pi-4".into(),
            facts: [("arch".to_owned(), "aarch64".to_owned())].into(),
        }
    }

    #[test]
    fn the_largest_request_fits_its_frame() {
        let mut largest = join();
        largest.csr_der = vec![0; CSR_BYTES_MAX];
        largest.hostname = "h".repeat(HOSTNAME_BYTES_MAX);
        largest.facts = (0..FACTS_MAX)
            .map(|i| {
                (
                    format!("{i:0>FACT_KEY_BYTES_MAX$}"),
                    "v".repeat(FACT_VALUE_BYTES_MAX),
                )
            })
            .collect();
        let request = EnrollRequest::Join(largest);
        request.check().unwrap();
        let bytes = postcard::to_allocvec(&request).unwrap();
        assert!(bytes.len() <= ENROLL_FRAME_MAX);
        assert_eq!(
            postcard::from_bytes::<EnrollRequest>(&bytes).unwrap(),
            request
        );

        let renew = EnrollRequest::Renew(Renew {
            protocol: PROTOCOL,
            node: "n1".parse().unwrap(),
            old_cert_der: vec![0; CERT_BYTES_MAX],
            csr_der: vec![0; CSR_BYTES_MAX],
            signature: vec![0; SIGNATURE_BYTES_MAX],
        });
        renew.check().unwrap();
        assert!(postcard::to_allocvec(&renew).unwrap().len() <= ENROLL_FRAME_MAX);
    }

    #[test]
    fn what_is_too_large_or_odd_is_named() {
        let check = |change: &dyn Fn(&mut Join)| {
            let mut join = join();
            change(&mut join);
            EnrollRequest::Join(join).check().unwrap_err()
        };
        let many = |join: &mut Join| {
            join.facts = (0..=FACTS_MAX)
                .map(|i| (i.to_string(), String::new()))
                .collect();
        };
        assert!(
            check(&|j| j.csr_der.resize(CSR_BYTES_MAX + 1, 0))
                .message
                .contains("csr")
        );
        assert!(
            check(&|j| j.hostname = "h".repeat(254))
                .message
                .contains("hostname")
        );
        assert_eq!(
            check(&|j| j.hostname = "a\n".into()).code,
            Code::InvalidBody
        );
        assert_eq!(check(&many).code, Code::TooLarge);
        assert_eq!(
            check(&|j| _ = j.facts.insert("k".into(), "v".repeat(129))).code,
            Code::TooLarge
        );
    }

    #[test]
    fn debug_of_a_request_does_not_show_the_secret() {
        assert!(format!("{:?}", EnrollRequest::Join(join())).contains("redacted"));
    }

    #[test]
    fn a_node_keeps_only_a_grant_that_is_its_own() {
        let ca = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let other = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let key = NodeKey::generate().unwrap().public_key();
        let node: NodeId = "n1".parse().unwrap();
        let issued = ca.issue_node(&node, &key, NOW, 600).unwrap();
        let good = Granted {
            node: node.clone(),
            mesh: "home".parse().unwrap(),
            cert_der: issued.der.to_vec(),
            ca_der: ca.certificate().der().to_vec(),
            expires: issued.identity.validity.not_after,
            server_time: NOW,
        };
        let pin = ca.certificate().pin();
        assert_eq!(good.verify(pin, &key).unwrap().identity, issued.identity);

        let refused = |grant: &Granted| grant.verify(pin, &key).unwrap_err();
        let mut bad = good.clone();
        bad.ca_der = other.certificate().der().to_vec();
        assert!(refused(&bad).to_string().contains("pins"));
        bad = good.clone();
        bad.cert_der = other
            .issue_node(&node, &key, NOW, 600)
            .unwrap()
            .der
            .to_vec();
        refused(&bad);
        bad = good.clone();
        bad.node = "n2".parse().unwrap();
        assert!(refused(&bad).to_string().contains("another node"));
        bad = good.clone();
        bad.mesh = "away".parse().unwrap();
        refused(&bad);
        let stranger = NodeKey::generate().unwrap().public_key();
        assert!(
            good.verify(pin, &stranger)
                .unwrap_err()
                .to_string()
                .contains("another key")
        );
    }
}
