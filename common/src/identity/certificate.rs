//! Reading certificates of the mesh, strictly: what ours never contain is refused.

use std::fmt;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize, de};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, x509::X509Version,
};

use super::{Error, LEAF_BACKDATE_S, key::KeyHash};
use crate::id::{MeshId, NodeId, UnixMs};

/// Largest certificate that is read, in bytes: a node's has about 500, a coordinator's with all
/// its names stays below this.
pub const CERT_BYTES_MAX: usize = 16 * 1024;

/// When a certificate holds, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// First moment.
    pub not_before: UnixMs,
    /// Last moment.
    pub not_after: UnixMs,
}

impl Validity {
    /// When the CA issued this leaf: certificates are back-dated by a fixed time.
    #[must_use]
    pub fn issued_at(&self) -> UnixMs {
        self.not_before.plus(LEAF_BACKDATE_S * 1000)
    }

    /// Whether `at` is within.
    #[must_use]
    pub fn contains(&self, at: UnixMs) -> bool {
        self.not_before <= at && at <= self.not_after
    }
}

/// A certificate's serial number: 127 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub u128);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        u128::from_str_radix(&text, 16)
            .map(Self)
            .map_err(de::Error::custom)
    }
}

/// What a certificate makes its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The node of this name.
    Node(NodeId),
    /// A coordinator.
    Coordinator,
}

/// Who a leaf certificate says its holder is. Trust is another question: TLS or
/// [`CaCertificate::verify`] answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// The mesh.
    pub mesh: MeshId,
    /// What the holder is in it.
    pub role: Role,
    /// When the certificate holds.
    pub validity: Validity,
    /// The certificate's number.
    pub serial: Serial,
    /// The certified key.
    pub key: KeyHash,
}

impl PeerIdentity {
    /// The node, if this is a node's certificate.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match &self.role {
            Role::Node(node) => Some(node),
            Role::Coordinator => None,
        }
    }

    /// Reads the leaf certificate `der`: exactly one URI name, of the form
    /// `spiffe://<mesh>/node/<id>` or `spiffe://<mesh>/coordinator`; a node has no other name.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::certificate("peer's", reason);
        let cert = Parsed::new("peer's", der)?;
        if cert.x509.is_ca() {
            return Err(refuse("it is a CA's"));
        }
        let (uri, names) = cert.only_uri()?;
        let (mesh, path) = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| refuse("its URI is not spiffe://<mesh>/…"))?;
        let mesh = mesh
            .parse()
            .map_err(|_| refuse("its URI names no valid mesh"))?;
        let role = if path == "coordinator" {
            Role::Coordinator
        } else {
            let name = path
                .strip_prefix("node/")
                .and_then(|name| name.parse().ok());
            Role::Node(name.ok_or_else(|| refuse("its URI names no node and no coordinator"))?)
        };
        if matches!(role, Role::Node(_)) && names != 1 {
            return Err(refuse("a node's certificate has other names than its URI"));
        }
        Ok(Self {
            mesh,
            role,
            validity: cert.validity(),
            serial: cert.serial()?,
            key: cert.key_hash(),
        })
    }
}

/// Who the holder of the chain `certs` (leaf first, as TLS reports it) is.
///
/// # Errors
/// [`Error::NoCertificate`] for an empty chain, else [`Error::Certificate`].
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<PeerIdentity, Error> {
    PeerIdentity::from_der(certs.first().ok_or(Error::NoCertificate)?)
}

/// One X.509 v3 certificate, nothing after it, bounded.
pub(super) struct Parsed<'a> {
    what: &'static str,
    pub(super) x509: X509Certificate<'a>,
}

impl<'a> Parsed<'a> {
    pub(super) fn new(what: &'static str, der: &'a [u8]) -> Result<Self, Error> {
        if der.len() > CERT_BYTES_MAX {
            return Err(Error::certificate(what, "it is too large"));
        }
        match X509Certificate::from_der(der) {
            Ok(([], x509)) if x509.version() == X509Version::V3 => Ok(Self { what, x509 }),
            Ok(([], _)) => Err(Error::certificate(what, "it is not X.509 version 3")),
            Ok(_) => Err(Error::certificate(what, "there are bytes after its end")),
            Err(_) => Err(Error::certificate(what, "it is not X.509 in DER")),
        }
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::certificate(self.what, reason)
    }

    /// The only URI among the subject's alternative names, and how many names there are.
    pub(super) fn only_uri(&self) -> Result<(&str, usize), Error> {
        let names = self.x509.subject_alternative_name().ok().flatten();
        let names = names.ok_or_else(|| self.refuse("it has no names"))?;
        let names = &names.value.general_names;
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Ok((uri, names.len())),
            _ => Err(self.refuse("it must have exactly one URI")),
        }
    }

    pub(super) fn validity(&self) -> Validity {
        let ms = |seconds: i64| UnixMs(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
        let validity = self.x509.validity();
        Validity {
            not_before: ms(validity.not_before.timestamp()),
            not_after: ms(validity.not_after.timestamp()),
        }
    }

    fn serial(&self) -> Result<Serial, Error> {
        let raw = self.x509.raw_serial();
        if raw.is_empty() || raw.len() > 16 {
            return Err(self.refuse("its serial number is not ours"));
        }
        Ok(Serial(
            raw.iter().fold(0, |n, &byte| (n << 8) | u128::from(byte)),
        ))
    }

    pub(super) fn key_hash(&self) -> KeyHash {
        KeyHash::of_spki(self.x509.public_key().raw)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rcgen::{CertificateParams, IsCa, KeyPair, SanType};

    use super::*;

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn self_signed(names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.serial_number = Some(7u64.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .into()
    }

    #[test]
    fn the_uri_is_read_strictly() {
        let good = self_signed(vec![uri("spiffe://home/node/edge-1")]);
        let identity = peer_identity(&[good]).unwrap();
        assert_eq!(
            (identity.mesh.as_str(), identity.node().unwrap().as_str()),
            ("home", "edge-1")
        );
        assert_eq!(identity.serial, Serial(7));

        let dns = || SanType::DnsName("edge-1".try_into().unwrap());
        for names in [
            vec![],
            vec![dns()],
            vec![uri("spiffe://home/node/edge-1"), dns()],
            vec![
                uri("spiffe://home/node/edge-1"),
                uri("spiffe://home/node/edge-2"),
            ],
            vec![uri("spiffe://home/node/edge-1/x")],
            vec![uri("spiffe://home/node/")],
            vec![uri("spiffe://home/node/Edge")],
            vec![uri("spiffe://home/coordinator/")],
            vec![uri("spiffe://home:1/coordinator")],
            vec![uri("spiffe://u@home/coordinator")],
            vec![uri("spiffe://home/node/%65dge")],
            vec![uri("spiffe://home/coordinator?x")],
            vec![uri("spiffe://home")],
            vec![uri("SPIFFE://home/coordinator")],
            vec![uri("https://home/coordinator")],
        ] {
            let shown = format!("{names:?}");
            let refused = peer_identity(&[self_signed(names)]);
            assert!(matches!(refused, Err(Error::Certificate { .. })), "{shown}");
        }
        assert!(matches!(peer_identity(&[]), Err(Error::NoCertificate)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(PeerIdentity::from_der(&bytes).is_err());
        }
    }
}
