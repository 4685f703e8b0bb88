//! Keys: the private key of a node or coordinator, and public keys whose holder proved possession.
//!
//! We make ECDSA P-256 keys; of others we also accept Ed25519.

use std::fmt;

use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Error, PEM_BYTES_MAX, pem};
use crate::id::Digest;

/// SHA-256 of a DER `SubjectPublicKeyInfo`: the name of a key. Of the CA's key it is the *pin*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHash(pub Digest);

impl KeyHash {
    /// The hash of a DER `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn of_spki(spki_der: &[u8]) -> Self {
        Self(Digest::of(spki_der))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The key algorithms that a certificate of ours may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    EcdsaP256,
    Ed25519,
}

impl Algorithm {
    pub(super) const ALL: [Self; 2] = [Self::EcdsaP256, Self::Ed25519];

    fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }

    fn ring(self) -> &'static dyn signature::VerificationAlgorithm {
        match self {
            Self::EcdsaP256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::Ed25519 => &signature::ED25519,
        }
    }
}

/// A public key whose holder proved possession of the private key. It comes from
/// [`verify_csr`](super::verify_csr) or from one's own [`NodeKey`], from nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPublicKey(RawKey);

impl VerifiedPublicKey {
    /// `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        self.0.spki_der()
    }

    /// The key's name.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of_spki(&self.spki_der())
    }
}

impl rcgen::PublicKeyData for VerifiedPublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.raw
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm.rcgen()
    }
}

/// A public key of an allowed algorithm; nothing proved yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawKey {
    algorithm: Algorithm,
    raw: Vec<u8>,
}

impl RawKey {
    /// The key in `spki_der`, if its algorithm is allowed and the encoding is the canonical one
    /// (so that its hash is the same in CSR and certificate). `bits` is its key bit string.
    pub(super) fn from_spki(spki_der: &[u8], bits: &[u8]) -> Option<Self> {
        Algorithm::ALL
            .into_iter()
            .map(|algorithm| Self {
                algorithm,
                raw: bits.to_vec(),
            })
            .find(|key| key.spki_der() == spki_der)
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn spki_der(&self) -> Vec<u8> {
        struct Spki<'a>(&'a RawKey);
        impl rcgen::PublicKeyData for Spki<'_> {
            fn der_bytes(&self) -> &[u8] {
                &self.0.raw
            }
            fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
                self.0.algorithm.rcgen()
            }
        }
        rcgen::PublicKeyData::subject_public_key_info(&Spki(self))
    }

    /// Whether `signature` over `message` is by this key.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm.ring(), &self.raw)
            .verify(message, signature)
            .is_ok()
    }

    /// The key, once its holder has signed `message` with it.
    pub(super) fn proved(self, message: &[u8], signature: &[u8]) -> Option<VerifiedPublicKey> {
        self.signed(message, signature)
            .then_some(VerifiedPublicKey(self))
    }
}

/// The private key of a node, a coordinator or the CA: ECDSA P-256, made where it is used.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        let alg = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(alg, &SystemRandom::new()).map_err(|_| Error::Crypto {
                operation: "make a key",
            })?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let alg = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair =
            EcdsaKeyPair::from_pkcs8(alg, der, &SystemRandom::new()).map_err(|_| Error::Key {
                reason: "it is damaged or of another kind",
            })?;
        Ok(Self {
            pkcs8: Zeroizing::new(der.to_vec()),
            pair,
        })
    }

    /// Reads a key that [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(Error::Key {
                reason: "it is too long",
            });
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Key {
            reason: "it has no `PRIVATE KEY` block",
        })?;
        Self::from_pkcs8(der.secret_pkcs8_der())
    }

    /// The key as PKCS#8 PEM. A secret: store it encrypted.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", &self.pkcs8)
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> VerifiedPublicKey {
        let raw = self.pair.public_key().as_ref().to_vec();
        VerifiedPublicKey(RawKey {
            algorithm: Algorithm::EcdsaP256,
            raw,
        })
    }

    /// A certificate signing request (PKCS#10, DER) that asks for nothing: no subject, no
    /// extensions. It carries the public key and the proof of possession.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn csr(&self) -> Result<Vec<u8>, Error> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(self).map_err(|_| Error::Crypto {
            operation: "sign a request",
        })?;
        Ok(csr.der().to_vec())
    }

    /// Signs `message` (ECDSA P-256 with SHA-256, ASN.1). The message must be domain-separated.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| Error::Crypto {
                operation: "sign a message",
            })
    }

    /// The key in the form that TLS settings take.
    #[must_use]
    pub fn to_tls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

impl rcgen::PublicKeyData for NodeKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        Algorithm::EcdsaP256.rcgen()
    }
}

impl rcgen::SigningKey for NodeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Self::sign(self, message).map_err(|_| rcgen::Error::RingUnspecified)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey")
            .field("public", &self.public_key().hash())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_survives_pem_and_debug_does_not_show_it() {
        let key = NodeKey::generate().unwrap();
        let pem = key.to_pem();
        assert!(pem.lines().all(|line| line.len() <= 64));
        let again = NodeKey::from_pem(&pem).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        assert_eq!(*again.to_pem(), *pem);
        let shown = format!("{key:?}");
        assert!(!shown.contains(pem.lines().nth(1).unwrap()));
        assert!(shown.len() < 120, "{shown}");
    }

    #[test]
    fn what_is_not_our_kind_of_key_is_refused() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let long = "x".repeat(PEM_BYTES_MAX + 1);
        for bad in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n",
            &p384.serialize_pem(),
            &long,
        ] {
            assert!(matches!(NodeKey::from_pem(bad), Err(Error::Key { .. })));
        }
    }
}
