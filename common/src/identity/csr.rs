//! Reading a certificate signing request: the public key, if its holder proves possession, and
//! nothing else. Subject, attributes and requested extensions are never looked at, so they cannot
//! reach a certificate.

use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{
    der,
    key::{RawKey, VerifiedPublicKey},
};

/// Largest CSR that is read, in bytes: ours have about 200; room for those of other tools.
pub const CSR_BYTES_MAX: usize = 4096;

/// Why a CSR was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too large to be read.
    #[error("the signing request has {bytes} bytes; at most {CSR_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not one PKCS#10 request in DER.
    #[error("the signing request is not PKCS#10 in DER")]
    Malformed,
    /// Bytes after the request.
    #[error("the signing request has {bytes} bytes too many at its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A key that we do not certify.
    #[error("the signing request's key is not ECDSA P-256 or Ed25519 in canonical encoding")]
    UnsupportedKey,
    /// The request is not signed by the key that it carries.
    #[error("the signing request's signature does not match its key: no proof of possession")]
    NoProof,
}

/// The public key of the CSR `csr_der`, after its self-signature proved possession.
///
/// # Errors
/// [`Error`]; the input is then of no effect at all.
pub fn verify_csr(csr_der: &[u8]) -> Result<VerifiedPublicKey, Error> {
    if csr_der.len() > CSR_BYTES_MAX {
        let bytes = csr_der.len();
        return Err(Error::TooLarge { bytes });
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(|_| Error::Malformed)?;
    if !rest.is_empty() {
        return Err(Error::Trailing { bytes: rest.len() });
    }
    let info = &csr.certification_request_info;
    let spki = &info.subject_pki;
    let key =
        RawKey::from_spki(spki.raw, &spki.subject_public_key.data).ok_or(Error::UnsupportedKey)?;
    let signature = &csr.signature_value.data;
    // The parser is lax about tags outside the signed part; we take one encoding only.
    if csr_der != der::signed(info.raw, key.algorithm(), signature) {
        return Err(Error::Malformed);
    }
    key.proved(info.raw, signature).ok_or(Error::NoProof)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    };
    use x509_parser::certificate::X509Certificate;

    use super::*;
    use crate::{
        id::{MeshId, NodeId, UnixMs},
        identity::{CertificateAuthority, KeyHash, NodeKey, Role, peer_identity},
    };

    const NOW: UnixMs = UnixMs(1_760_000_000_000);

    fn ca() -> CertificateAuthority {
        let mesh: MeshId = "home".parse().unwrap();
        CertificateAuthority::create(&mesh, NOW).unwrap()
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    /// Everything that a greedy requester can ask for, one per entry.
    fn hostile_requests() -> Vec<(&'static str, CertificateParams)> {
        let plain = CertificateParams::default;
        let san = |san: SanType| {
            let mut p = plain();
            p.subject_alt_names.push(san);
            p
        };
        let mut ca = plain();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut eku = plain();
        eku.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::Any,
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::CodeSigning,
        ];
        let mut subject = plain();
        subject
            .distinguished_name
            .push(DnType::CommonName, "coordinator.hop3.internal");
        let mut odd = plain();
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        odd.custom_extensions.push(extension);
        vec![
            ("CA flag", ca),
            ("any EKU", eku),
            ("subject", subject),
            ("unknown critical extension", odd),
            (
                "other node",
                san(SanType::URI(
                    "spiffe://home/node/victim".try_into().unwrap(),
                )),
            ),
            (
                "coordinator",
                san(SanType::URI(
                    "spiffe://home/coordinator".try_into().unwrap(),
                )),
            ),
            (
                "wildcard",
                san(SanType::DnsName("*.example.com".try_into().unwrap())),
            ),
            (
                "dns",
                san(SanType::DnsName(
                    "coordinator.hop3.internal".try_into().unwrap(),
                )),
            ),
            ("ip", san(SanType::IpAddress([127, 0, 0, 1].into()))),
        ]
    }

    /// Subject and every extension but those that follow from the key.
    fn said(cert: &X509Certificate<'_>) -> Vec<(String, bool, Vec<u8>)> {
        let from_key = ["2.5.29.14"]; // subject key identifier
        let mut said: Vec<_> = cert
            .extensions()
            .iter()
            .map(|ext| (ext.oid.to_id_string(), ext.critical, ext.value.to_vec()))
            .filter(|(oid, ..)| !from_key.contains(&oid.as_str()))
            .collect();
        said.push((cert.subject().to_string(), false, vec![]));
        said.push((cert.validity().not_after.to_string(), false, vec![]));
        said
    }

    #[test]
    fn nothing_that_a_hostile_request_asks_for_is_in_the_certificate() {
        let ca = ca();
        let honest = ca
            .issue_node(
                &node("n1"),
                &NodeKey::generate().unwrap().public_key(),
                NOW,
                3600,
            )
            .unwrap();
        let (_, honest) = X509Certificate::from_der(&honest.der).unwrap();
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            for (what, params) in hostile_requests() {
                let pair = KeyPair::generate_for(algorithm).unwrap();
                let csr = params.serialize_request(&pair).unwrap();
                let key = verify_csr(csr.der()).unwrap();
                assert_eq!(key.spki_der(), pair.subject_public_key_info(), "{what}");

                let issued = ca.issue_node(&node("n1"), &key, NOW, 3600).unwrap();
                let (_, cert) = X509Certificate::from_der(&issued.der).unwrap();
                assert_eq!(said(&cert), said(&honest), "{what}");
                assert!(!cert.is_ca(), "{what}");
                let identity = peer_identity(std::slice::from_ref(&issued.der)).unwrap();
                assert_eq!(identity.role, Role::Node(node("n1")), "{what}");
                assert_eq!(
                    identity.key,
                    KeyHash::of_spki(&pair.subject_public_key_info())
                );
            }
        }
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        // The victim's public key inside, the thief's signature outside.
        struct Thief(NodeKey, NodeKey);
        impl rcgen::PublicKeyData for Thief {
            fn der_bytes(&self) -> &[u8] {
                self.0.der_bytes()
            }
            fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
                self.0.algorithm()
            }
        }
        impl rcgen::SigningKey for Thief {
            fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
                rcgen::SigningKey::sign(&self.1, message)
            }
        }
        let thief = Thief(NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let csr = CertificateParams::default()
            .serialize_request(&thief)
            .unwrap();
        assert_eq!(verify_csr(csr.der()), Err(Error::NoProof));
    }

    #[test]
    fn other_algorithms_and_sizes_are_refused() {
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&p384)
            .unwrap();
        assert_eq!(verify_csr(csr.der()), Err(Error::UnsupportedKey));

        let mut der = NodeKey::generate().unwrap().csr().unwrap();
        assert!(verify_csr(&der).is_ok());
        der.push(0);
        assert_eq!(verify_csr(&der), Err(Error::Trailing { bytes: 1 }));
        der.resize(CSR_BYTES_MAX + 1, 0);
        assert_eq!(
            verify_csr(&der),
            Err(Error::TooLarge {
                bytes: CSR_BYTES_MAX + 1
            })
        );
        for garbage in [
            &b""[..],
            b"0",
            b"\x30\x80\x00\x00",
            &[0x30; 200],
            b"-----BEGIN",
        ] {
            assert_eq!(verify_csr(garbage), Err(Error::Malformed));
        }
    }

    // All of it is signed or has one encoding only.
    #[test]
    fn a_change_of_any_bit_is_refused() {
        let der = NodeKey::generate().unwrap().csr().unwrap();
        for bit in 0..der.len() * 8 {
            let mut changed = der.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(verify_csr(&changed).is_err(), "bit {bit} of {der:02x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(verify_csr(&bytes).is_err());
        }
    }
}
