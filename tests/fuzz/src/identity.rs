//! Certificates, requests for them, keys and their PEM forms: all that a stranger may show.

use hop3_common::{
    id::UnixMs,
    identity::{
        CERT_BYTES_MAX, CaCertificate, CertificateAuthority, JoinToken, NodeKey, TokenId,
        TokenSecret, csr::CSR_BYTES_MAX, peer_identity, verify_csr,
    },
};
use rustls::pki_types::CertificateDer;

use crate::input::Input;

/// Of the seeds' authority; in milliseconds.
const NOW: UnixMs = UnixMs(1_760_000_000_000);

/// One of: a CSR, a CA's certificate (DER or PEM), a peer's certificate, a node's key.
pub fn identity(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = input.u8() % 5;
    let bytes = input.0;
    let text = String::from_utf8_lossy(bytes);
    match kind {
        0 => {
            let verified = verify_csr(bytes);
            assert!(verified.is_err() || bytes.len() <= CSR_BYTES_MAX);
            verified.is_ok()
        }
        1 => CaCertificate::from_der(bytes).is_ok_and(|ca| {
            assert_eq!(ca.der().as_ref(), bytes);
            let again = CaCertificate::from_pem(&ca.to_pem()).unwrap();
            assert_eq!(again, ca);
            true
        }),
        2 => CaCertificate::from_pem(&text).is_ok_and(|ca| {
            assert_eq!(CaCertificate::from_der(ca.der()).unwrap(), ca);
            true
        }),
        3 => {
            let identity = peer_identity(&[CertificateDer::from(bytes)]);
            assert!(identity.is_err() || bytes.len() <= CERT_BYTES_MAX);
            identity.is_ok()
        }
        _ => NodeKey::from_pem(&text).is_ok_and(|key| {
            let again = NodeKey::from_pem(&key.to_pem()).unwrap();
            assert_eq!(again.public_key().spki_der(), key.public_key().spki_der());
            true
        }),
    }
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::create(&"home".parse().unwrap(), NOW).unwrap()
}

/// A join token of some mesh.
#[must_use]
pub fn join_token() -> JoinToken {
    let (id, secret) = (
        TokenId::generate().unwrap(),
        TokenSecret::generate().unwrap(),
    );
    let coordinators = vec!["mesh.example.com:7443".parse().unwrap()];
    JoinToken::mint(id, secret, authority().certificate(), coordinators).unwrap()
}

/// Seeds of [`identity`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
    let (ca, key) = (authority(), NodeKey::generate().unwrap());
    let csr = key.csr().unwrap();
    let node = "edge-1".parse().unwrap();
    let public = verify_csr(&csr).unwrap();
    let issued = ca.issue_node(&node, &public, NOW, 86_400).unwrap();
    let (ca_pem, _) = ca.to_pem();
    let mut altered = csr.clone();
    *altered.last_mut().unwrap() ^= 1;
    vec![
        ("ok-csr".into(), of(0, &csr)),
        ("ok-ca".into(), of(1, ca.certificate().der())),
        ("ok-ca-pem".into(), of(2, ca_pem.as_bytes())),
        ("ok-node".into(), of(3, &issued.der)),
        ("ok-key".into(), of(4, key.to_pem().as_bytes())),
        ("bad-csr-altered".into(), of(0, &altered)),
        ("bad-node-as-ca".into(), of(1, &issued.der)),
        (
            "bad-endless-der".into(),
            of(0, b"\x30\x84\xff\xff\xff\xff\x30\x80"),
        ),
    ]
}
