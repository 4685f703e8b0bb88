//! The mesh's certificate authority: made once, at the coordinator's first start. It alone decides
//! what a certificate says.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    Error,
    ca_certificate::CaCertificate,
    certificate::PeerIdentity,
    key::{NodeKey, VerifiedPublicKey},
    pem,
};
use crate::{
    id::{MeshId, NodeId, UnixMs},
    wire::COORDINATOR_NAME,
};

/// Life of a CA, in seconds: ten years.
pub const CA_LIFE_S: u64 = 10 * 365 * 24 * 3600;
/// How far a CA is back-dated, in seconds: thirty days, for machines whose clock at boot is old.
pub const CA_BACKDATE_S: u64 = 30 * 24 * 3600;
/// How far leaf certificates are back-dated, in seconds: one hour, for clocks that differ.
pub const LEAF_BACKDATE_S: u64 = 3600;
/// Longest life of a leaf certificate, in seconds: a year, for a coordinator's.
pub const LEAF_TTL_S_MAX: u64 = 366 * 24 * 3600;
/// Most names and addresses in a coordinator's certificate, so that it stays small.
pub const COORDINATOR_NAMES_MAX: usize = 32;

/// A certificate that the CA issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// What it says, read back from it.
    pub identity: PeerIdentity,
}

impl Issued {
    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der).to_string()
    }
}

/// The CA with its private key. Only the coordinator holds one.
pub struct CertificateAuthority {
    certificate: CaCertificate,
    issuer: Issuer<'static, NodeKey>,
}

impl CertificateAuthority {
    /// Makes a new CA for `mesh`.
    ///
    /// # Errors
    /// [`Error::Crypto`], or [`Error::Issue`] for a time that certificates cannot express.
    pub fn create(mesh: &MeshId, now: UnixMs) -> Result<Self, Error> {
        let key = NodeKey::generate()?;
        let mut params = CertificateParams::default();
        params.not_before = date(now.secs().saturating_sub(CA_BACKDATE_S))?;
        params.not_after = date(now.secs().saturating_add(CA_LIFE_S))?;
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = subject(mesh.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Hop3 mesh CA");
        params.subject_alt_names = vec![uri(&format!("spiffe://{mesh}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(issue)?;
        Self::new(CaCertificate::from_der(certificate.der())?, key)
    }

    /// Reads a CA back from what [`to_pem`](Self::to_pem) gave.
    ///
    /// # Errors
    /// When either part is damaged or they do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        Self::new(
            CaCertificate::from_pem(certificate_pem)?,
            NodeKey::from_pem(key_pem)?,
        )
    }

    fn new(certificate: CaCertificate, key: NodeKey) -> Result<Self, Error> {
        if key.public_key().hash() != certificate.pin() {
            return Err(Error::certificate(
                "CA's",
                "it does not belong to the stored CA key",
            ));
        }
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key).map_err(issue)?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// The certificate, and the key (a secret: store it encrypted), as PEM.
    #[must_use]
    pub fn to_pem(&self) -> (String, Zeroizing<String>) {
        (self.certificate.to_pem(), self.issuer.key().to_pem())
    }

    /// The public half.
    #[must_use]
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Issues a node's certificate: its URI is its only name; for the dialling end.
    ///
    /// # Errors
    /// [`Error::Issue`] for a life of 0 or over [`LEAF_TTL_S_MAX`], or when the CA's own ends.
    pub fn issue_node(
        &self,
        node: &NodeId,
        key: &VerifiedPublicKey,
        now: UnixMs,
        ttl_s: u64,
    ) -> Result<Issued, Error> {
        let mut params = self.leaf(node.as_str(), now, ttl_s)?;
        params.subject_alt_names = vec![uri(&format!("spiffe://{}/node/{node}", self.mesh()))?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, key)
    }

    /// Issues a coordinator's certificate, for the mesh and for REST under `names`.
    ///
    /// # Errors
    /// As [`issue_node`](Self::issue_node); also for more than [`COORDINATOR_NAMES_MAX`] names.
    pub fn issue_coordinator(
        &self,
        names: &[ServerName<'_>],
        key: &VerifiedPublicKey,
        now: UnixMs,
        ttl_s: u64,
    ) -> Result<Issued, Error> {
        if names.len() > COORDINATOR_NAMES_MAX {
            let reason = format!("{} names; at most {COORDINATOR_NAMES_MAX}", names.len());
            return Err(Error::Issue { reason });
        }
        let mut params = self.leaf(COORDINATOR_NAME, now, ttl_s)?;
        let mut sans = vec![uri(&format!("spiffe://{}/coordinator", self.mesh()))?];
        sans.push(SanType::DnsName(
            COORDINATOR_NAME.try_into().map_err(issue)?,
        ));
        for name in names {
            let san = match name {
                ServerName::DnsName(dns) => {
                    SanType::DnsName(dns.as_ref().try_into().map_err(issue)?)
                }
                ServerName::IpAddress(ip) => SanType::IpAddress((*ip).into()),
                _ => {
                    return Err(Error::Issue {
                        reason: "a name of an unknown kind".into(),
                    });
                }
            };
            if !sans.contains(&san) {
                sans.push(san);
            }
        }
        params.subject_alt_names = sans;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params, key)
    }

    fn mesh(&self) -> &MeshId {
        self.certificate.mesh()
    }

    /// What all leaves have in common. Never outlives the CA.
    fn leaf(&self, name: &str, now: UnixMs, ttl_s: u64) -> Result<CertificateParams, Error> {
        if ttl_s == 0 || ttl_s > LEAF_TTL_S_MAX {
            let reason = format!("a life of {ttl_s} s; use 1 to {LEAF_TTL_S_MAX} s");
            return Err(Error::Issue { reason });
        }
        let ca_end = self.certificate.validity().not_after;
        if now >= ca_end {
            return Err(Error::Issue {
                reason: "the CA itself has expired; make a new one".into(),
            });
        }
        let mut params = CertificateParams::default();
        params.not_before = date(now.secs().saturating_sub(LEAF_BACKDATE_S))?;
        params.not_after = date((now.secs() + ttl_s).min(ca_end.secs()))?;
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = subject(name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn sign(&self, params: &CertificateParams, key: &VerifiedPublicKey) -> Result<Issued, Error> {
        let der: CertificateDer<'static> =
            params.signed_by(key, &self.issuer).map_err(issue)?.into();
        let identity = PeerIdentity::from_der(&der)?;
        assert!(
            identity.mesh == *self.mesh() && identity.key == key.hash(),
            "issued as decided"
        );
        Ok(Issued { der, identity })
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("mesh", self.mesh())
            .field("pin", &self.certificate.pin())
            .finish_non_exhaustive()
    }
}

fn issue(error: impl std::fmt::Display) -> Error {
    Error::Issue {
        reason: error.to_string(),
    }
}

fn date(seconds: u64) -> Result<OffsetDateTime, Error> {
    let seconds = i64::try_from(seconds).map_err(issue)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(issue)
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn uri(text: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(text.try_into().map_err(issue)?))
}

/// 126 random bits below a set one: 16 bytes, positive, never 0.
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Crypto {
            operation: "draw a serial number",
        })?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

    use super::*;
    use crate::identity::{Role, Usage};

    const NOW: UnixMs = UnixMs(1_760_000_000_123);

    fn ca() -> CertificateAuthority {
        CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap()
    }

    #[test]
    fn a_ca_survives_its_pem_and_stays_the_same_issuer() {
        let ca = ca();
        let (certificate, key) = ca.to_pem();
        let again = CertificateAuthority::from_pem(&certificate, &key).unwrap();
        assert_eq!(again.certificate(), ca.certificate());
        let node = NodeKey::generate().unwrap().public_key();
        let issued = again
            .issue_node(&"n1".parse().unwrap(), &node, NOW, 60)
            .unwrap();
        ca.certificate()
            .verify(&issued.der, Usage::Client, NOW)
            .unwrap();

        let other = NodeKey::generate().unwrap().to_pem();
        assert!(CertificateAuthority::from_pem(&certificate, &other).is_err());
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_ca_is_what_the_design_says() {
        let ca = ca();
        let (_, x509) = X509Certificate::from_der(ca.certificate().der()).unwrap();
        let constraints = x509.basic_constraints().unwrap().unwrap();
        assert!(constraints.value.ca && constraints.critical);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let validity = ca.certificate().validity();
        assert_eq!(validity.not_before.secs(), NOW.secs() - CA_BACKDATE_S);
        assert_eq!(validity.not_after.secs(), NOW.secs() + CA_LIFE_S);
    }

    #[test]
    fn a_leaf_says_who_it_is_for_how_long() {
        let ca = ca();
        let key = NodeKey::generate().unwrap().public_key();
        let node = ca
            .issue_node(&"n1".parse().unwrap(), &key, NOW, 600)
            .unwrap();
        let validity = node.identity.validity;
        assert_eq!(validity.issued_at().secs(), NOW.secs());
        assert_eq!(validity.not_after.secs(), NOW.secs() + 600);
        assert_eq!(node.identity.role, Role::Node("n1".parse().unwrap()));
        let again = ca
            .issue_node(&"n1".parse().unwrap(), &key, NOW, 600)
            .unwrap();
        assert_ne!(again.identity.serial, node.identity.serial);

        let check = |usage, at| ca.certificate().verify(&node.der, usage, at);
        assert_eq!(check(Usage::Client, NOW).unwrap(), node.identity);
        assert!(check(Usage::Server, NOW).is_err(), "a node is no server");
        assert!(check(Usage::Client, NOW.plus(601_000)).is_err(), "expired");
        assert!(
            check(Usage::Client, UnixMs(NOW.0 - 3_700_000)).is_err(),
            "not yet"
        );
    }

    #[test]
    fn a_coordinator_has_its_names_once() {
        let ca = ca();
        let key = NodeKey::generate().unwrap().public_key();
        let names = [
            "hop3.example",
            "127.0.0.1",
            "::1",
            "hop3.example",
            COORDINATOR_NAME,
        ];
        let names: Vec<ServerName<'_>> = names.iter().map(|n| (*n).try_into().unwrap()).collect();
        let issued = ca.issue_coordinator(&names, &key, NOW, 600).unwrap();
        assert_eq!(issued.identity.role, Role::Coordinator);
        let (_, x509) = X509Certificate::from_der(&issued.der).unwrap();
        let sans = x509.subject_alternative_name().unwrap().unwrap();
        assert_eq!(sans.value.general_names.len(), 5);
        let cert = webpki::EndEntityCert::try_from(&issued.der).unwrap();
        for name in &names {
            cert.verify_is_valid_for_subject_name(name).unwrap();
        }
        let many = vec![names[0].clone(); COORDINATOR_NAMES_MAX + 1];
        assert!(ca.issue_coordinator(&many, &key, NOW, 600).is_err());
    }

    #[test]
    fn no_leaf_outlives_the_limits() {
        let ca = ca();
        let key = NodeKey::generate().unwrap().public_key();
        let name = "n1".parse().unwrap();
        assert!(ca.issue_node(&name, &key, NOW, 0).is_err());
        assert!(ca.issue_node(&name, &key, NOW, LEAF_TTL_S_MAX + 1).is_err());
        let end = ca.certificate().validity().not_after;
        let late = ca
            .issue_node(&name, &key, UnixMs(end.0 - 5_000), 600)
            .unwrap();
        assert_eq!(late.identity.validity.not_after, end);
        assert!(ca.issue_node(&name, &key, end, 600).is_err());
        assert!(ca.issue_node(&name, &key, UnixMs(u64::MAX), 600).is_err());
    }

    #[test]
    fn another_mesh_or_a_namesake_is_not_this_mesh() {
        let (ours, namesake) = (ca(), ca());
        let key = NodeKey::generate().unwrap().public_key();
        let theirs = namesake
            .issue_node(&"n1".parse().unwrap(), &key, NOW, 600)
            .unwrap();
        let refused = ours
            .certificate()
            .verify(&theirs.der, Usage::Client, NOW)
            .unwrap_err();
        assert!(refused.to_string().contains("CA"), "{refused}");
    }
}
