//! Who is who in a mesh: the CA, keys and certificates, join tokens, enrolment, TLS.
//!
//! Invariants:
//! - A certificate holds only what the CA decides. Of a CSR nothing but the public key is read,
//!   and only after its self-signature proved possession ([`csr`]).
//! - A node talks to a coordinator only after the coordinator proved a certificate under the CA
//!   key that the join token pins ([`tls::enroll_client`]) or that the node keeps
//!   ([`tls::mesh_client`]).
//! - A join token's secret is used once, never stored (only its hash) and never printed by
//!   `Debug`.
//! - TLS 1.3 only, no resumption, no early data: each session proves its identity afresh.
//!
//! No sockets, no clock: time is an argument ([`UnixMs`](crate::id::UnixMs)). The only randomness
//! is in making keys, secrets, serial numbers and signatures. Not here: which node may have which
//! name, revocation lists, storage (the caller's), framing (`wire`).

mod address;
mod ca;
mod ca_certificate;
mod certificate;
mod clock;
pub mod csr;
mod der;
pub mod enroll;
mod key;
mod pem;
mod record;
pub mod renew;
mod secret;
pub mod tls;
pub mod token;
mod verifier;

#[cfg(test)]
mod handshake_tests;

pub use address::CoordinatorAddr;
pub use ca::{
    CA_BACKDATE_S, CA_LIFE_S, COORDINATOR_NAMES_MAX, CertificateAuthority, Issued, LEAF_BACKDATE_S,
    LEAF_TTL_S_MAX,
};
pub use ca_certificate::{CaCertificate, Usage};
pub use certificate::{CERT_BYTES_MAX, PeerIdentity, Role, Serial, Validity, peer_identity};
pub use clock::{PERSIST_STEP_MS, TrustedClock, renew_at};
pub use csr::verify_csr;
pub use key::{KeyHash, NodeKey, VerifiedPublicKey};
pub use record::{Redemption, Refusal, TokenRecord, Use};
pub use secret::{SecretHash, TokenId, TokenSecret};
pub use token::JoinToken;

/// Longest PEM text that is read, in bytes: a few certificates or one key.
pub const PEM_BYTES_MAX: usize = 64 * 1024;

/// What can go wrong with keys, certificates and TLS settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's random source or the signature primitive failed.
    #[error("the cryptographic library failed to {operation}")]
    Crypto {
        /// What was attempted.
        operation: &'static str,
    },
    /// A stored key cannot be read.
    #[error(
        "the private key cannot be read: {reason}; expected one PKCS#8 PEM block of ECDSA P-256"
    )]
    Key {
        /// Why.
        reason: &'static str,
    },
    /// A certificate is not one that this mesh makes.
    #[error("the {what} certificate is not acceptable: {reason}")]
    Certificate {
        /// Whose certificate.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The peer showed no certificate.
    #[error("the peer showed no certificate; enrol it first")]
    NoCertificate,
    /// The CA cannot issue what was asked.
    #[error("cannot issue the certificate: {reason}")]
    Issue {
        /// Why.
        reason: String,
    },
    /// rustls refused the settings.
    #[error("TLS settings refused")]
    Tls(#[from] rustls::Error),
}

impl Error {
    fn certificate(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Certificate {
            what,
            reason: reason.to_string(),
        }
    }
}
