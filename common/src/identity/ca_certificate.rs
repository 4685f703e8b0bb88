//! The CA's public half, which every member holds and checks leaf certificates by.

use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{
    Error, PEM_BYTES_MAX,
    certificate::{Parsed, PeerIdentity, Validity},
    der,
    key::{KeyHash, RawKey},
    pem,
};
use crate::id::{MeshId, UnixMs};

/// The CA's certificate: the public half of the CA, which every member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    mesh: MeshId,
    pin: KeyHash,
    validity: Validity,
}

impl CaCertificate {
    /// Reads a mesh CA's certificate: signed by itself, a CA that may sign certificates, its only
    /// URI name `spiffe://<mesh>`.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn from_der(ca_der: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::certificate("CA's", reason);
        let cert = Parsed::new("CA's", ca_der)?;
        let x509 = &cert.x509;
        let usage = x509.key_usage().ok().flatten();
        if !x509.is_ca() || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
            return Err(refuse("it may not sign certificates"));
        }
        let spki = x509.public_key();
        let key = RawKey::from_spki(spki.raw, &spki.subject_public_key.data)
            .ok_or_else(|| refuse("its key is of an unsupported kind"))?;
        let (part, signature) = (x509.tbs_certificate.as_ref(), &x509.signature_value.data);
        if ca_der != der::signed(part, key.algorithm(), signature) {
            return Err(refuse("it is not X.509 in DER"));
        }
        if !key.signed(part, signature) {
            return Err(refuse("it is not signed by its own key"));
        }
        let mesh = cert
            .only_uri()?
            .0
            .strip_prefix("spiffe://")
            .and_then(|m| m.parse().ok());
        let mesh = mesh.ok_or_else(|| refuse("its URI is not spiffe://<mesh>"))?;
        let (pin, validity) = (cert.key_hash(), cert.validity());
        Ok(Self {
            der: ca_der.to_vec().into(),
            mesh,
            pin,
            validity,
        })
    }

    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(Error::certificate("CA's", "the PEM text is too long"));
        }
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::certificate("CA's", "there is no `CERTIFICATE` block"))?;
        Self::from_der(&der)
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der).to_string()
    }

    /// The certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The mesh whose CA this is.
    #[must_use]
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// SHA-256 of the CA's key: what join tokens carry.
    #[must_use]
    pub fn pin(&self) -> KeyHash {
        self.pin
    }

    /// When it holds.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Checks that `leaf` is signed by this CA for `usage`, holds at `at` and is of this mesh, and
    /// says who its holder is.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        usage: Usage,
        at: UnixMs,
    ) -> Result<PeerIdentity, Error> {
        let refuse = |e: webpki::Error| Error::certificate("peer's", plain_reason(&e));
        let anchor = anchor_from_trusted_cert(&self.der).map_err(refuse)?;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_millis(at.0));
        let usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let algorithms = [webpki::ring::ECDSA_P256_SHA256, webpki::ring::ED25519];
        EndEntityCert::try_from(leaf)
            .map_err(refuse)?
            .verify_for_usage(&algorithms, &[anchor], &[], at, usage, None, None)
            .map_err(refuse)?;
        let identity = PeerIdentity::from_der(leaf)?;
        if identity.mesh != self.mesh {
            return Err(Error::certificate("peer's", "it is of another mesh"));
        }
        Ok(identity)
    }
}

/// Which end of a connection a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The end that dials (a node).
    Client,
    /// The end that accepts (a coordinator).
    Server,
}

fn plain_reason(error: &webpki::Error) -> String {
    match error {
        webpki::Error::UnknownIssuer => "this mesh's CA has not signed it".into(),
        webpki::Error::InvalidSignatureForPublicKey => "its signature is not by this CA".into(),
        webpki::Error::CertExpired { time, not_after } => {
            format!(
                "it expired at {} and now is {}",
                not_after.as_secs(),
                time.as_secs()
            )
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            format!(
                "it holds from {} and now is {}",
                not_before.as_secs(),
                time.as_secs()
            )
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => "it is not for this end".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, SanType,
    };

    use super::*;
    use crate::identity::{CertificateAuthority, NodeKey, peer_identity};

    const NOW: UnixMs = UnixMs(1_760_000_000_000);

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    /// A CA certificate as ours are, but for what `change` does.
    fn look_alike(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://home")];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .into()
    }

    #[test]
    fn only_a_self_signed_ca_of_a_mesh_is_a_ca() {
        let ca = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let good = ca.certificate();
        assert_eq!(&CaCertificate::from_pem(&good.to_pem()).unwrap(), good);
        assert_eq!(good.mesh().as_str(), "home");

        assert!(CaCertificate::from_der(&look_alike(|_| ())).is_ok());
        let no_flag = look_alike(|params| params.is_ca = IsCa::ExplicitNoCa);
        let no_usage = look_alike(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
        let no_mesh = look_alike(|params| params.subject_alt_names.clear());
        let a_node = look_alike(|params| params.subject_alt_names = vec![uri("spiffe://home/x")]);
        let two = look_alike(|params| params.subject_alt_names.push(uri("spiffe://away")));
        for bad in [no_flag, no_usage, no_mesh, a_node, two] {
            assert!(CaCertificate::from_der(&bad).is_err());
        }
        let key = NodeKey::generate().unwrap().public_key();
        let leaf = ca
            .issue_node(&"n1".parse().unwrap(), &key, NOW, 60)
            .unwrap();
        assert!(CaCertificate::from_der(&leaf.der).is_err());
        // A CA as a peer is refused too.
        assert!(peer_identity(std::slice::from_ref(good.der())).is_err());

        let mut forged = good.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(CaCertificate::from_der(&forged).is_err());
        let mut longer = good.der().to_vec();
        longer.push(0);
        assert!(CaCertificate::from_der(&longer).is_err());
        for bad in ["", "hello", &"x".repeat(PEM_BYTES_MAX + 1)] {
            assert!(CaCertificate::from_pem(bad).is_err());
        }
    }

    #[test]
    fn a_leaf_of_another_mesh_under_the_same_key_is_refused() {
        let ca = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let (cert, key) = ca.to_pem();
        let issuer = Issuer::from_ca_cert_pem(&cert, KeyPair::from_pem(&key).unwrap()).unwrap();
        let leaf = |name: &str| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![uri(name)];
            params.serial_number = Some(7u64.into());
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let node = NodeKey::generate().unwrap();
            params.signed_by(&node, &issuer).unwrap().into()
        };
        let verify = |leaf| ca.certificate().verify(&leaf, Usage::Client, NOW);
        assert!(verify(leaf("spiffe://home/node/n1")).is_ok());
        let refused = verify(leaf("spiffe://away/node/n1")).unwrap_err();
        assert!(refused.to_string().contains("another mesh"), "{refused}");
    }

    #[test]
    fn a_change_of_any_bit_is_refused() {
        let ca = CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap();
        let key = NodeKey::generate().unwrap().public_key();
        let issued = ca
            .issue_node(&"n1".parse().unwrap(), &key, NOW, 60)
            .unwrap();
        let refused = |der: &CertificateDer<'_>, of: &dyn Fn(&[u8]) -> bool| {
            for bit in 0..der.len() * 8 {
                let mut changed = der.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(of(&changed), "bit {bit} of {der:02x?}");
            }
        };
        refused(&issued.der, &|leaf| {
            ca.certificate()
                .verify(&leaf.into(), Usage::Client, NOW)
                .is_err()
        });
        refused(ca.certificate().der(), &|ca| {
            CaCertificate::from_der(ca).is_err()
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(CaCertificate::from_der(&bytes).is_err());
        }
    }
}
