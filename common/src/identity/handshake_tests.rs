//! Real TLS handshakes, in memory: who gets in and who does not.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName},
};

use super::{
    CaCertificate, CertificateAuthority, Error, NodeKey, Role, peer_identity, renew,
    tls::{TlsTime, api_client, api_server, enroll_client, mesh_client, mesh_server},
};
use crate::{
    id::UnixMs,
    wire::{ALPN_ENROLL, ALPN_SESSION, COORDINATOR_NAME},
};

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const TTL_S: u64 = 24 * 3600;
const DAY_MS: u64 = 24 * 3_600_000;

fn at(now: UnixMs) -> TlsTime {
    TlsTime::new(move || now)
}

/// A mesh with one coordinator and the node `n1`.
struct Mesh {
    ca: CertificateAuthority,
    server: (CertificateDer<'static>, NodeKey),
    node: (CertificateDer<'static>, NodeKey),
}

impl Mesh {
    fn new(name: &str) -> Self {
        let ca = CertificateAuthority::create(&name.parse().unwrap(), NOW).unwrap();
        let (server, node) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let names = [ServerName::try_from("127.0.0.1").unwrap()];
        let cert = ca
            .issue_coordinator(&names, &server.public_key(), NOW, TTL_S)
            .unwrap();
        let node_cert = ca
            .issue_node(&"n1".parse().unwrap(), &node.public_key(), NOW, TTL_S)
            .unwrap();
        Self {
            ca,
            server: (cert.der, server),
            node: (node_cert.der, node),
        }
    }

    fn ca(&self) -> &CaCertificate {
        self.ca.certificate()
    }

    fn server(&self) -> ServerConfig {
        self.server_at(NOW)
    }

    fn server_at(&self, now: UnixMs) -> ServerConfig {
        mesh_server(self.ca(), self.server.0.clone(), &self.server.1, at(now)).unwrap()
    }

    fn session(&self) -> ClientConfig {
        self.session_at(NOW)
    }

    fn session_at(&self, now: UnixMs) -> ClientConfig {
        mesh_client(self.ca(), self.node.0.clone(), &self.node.1, at(now)).unwrap()
    }

    fn stranger(&self) -> ClientConfig {
        enroll_client(self.ca().pin(), at(NOW)).unwrap()
    }
}

type Ends = (ClientConnection, ServerConnection);

fn handshake(client: ClientConfig, server: ServerConfig) -> Result<Ends, rustls::Error> {
    handshake_with(Arc::new(client), Arc::new(server), COORDINATOR_NAME)
}

/// Carries bytes both ways until neither end has more to say.
fn handshake_with(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: &'static str,
) -> Result<Ends, rustls::Error> {
    let mut client = ClientConnection::new(client, name.try_into().unwrap())?;
    let mut server = ServerConnection::new(server)?;
    loop {
        let mut up = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        let mut rest = up.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut down = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        let mut rest = down.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
        if up.is_empty() && down.is_empty() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok((client, server));
        }
    }
}

fn refused(client: ClientConfig, server: ServerConfig) -> String {
    handshake(client, server).unwrap_err().to_string()
}

#[test]
fn a_node_and_its_coordinator_know_each_other() {
    let mesh = Mesh::new("home");
    let (client, server) = handshake(mesh.session(), mesh.server()).unwrap();
    let node = peer_identity(server.peer_certificates().unwrap()).unwrap();
    assert_eq!(node.role, Role::Node("n1".parse().unwrap()));
    assert_eq!(node.key, mesh.node.1.public_key().hash());
    let coordinator = peer_identity(client.peer_certificates().unwrap()).unwrap();
    assert_eq!(coordinator.role, Role::Coordinator);
    assert_eq!(server.alpn_protocol(), Some(ALPN_SESSION));
}

#[test]
fn the_right_pin_lets_a_stranger_trust_the_coordinator() {
    let mesh = Mesh::new("home");
    let (client, server) = handshake(mesh.stranger(), mesh.server()).unwrap();
    assert_eq!(client.alpn_protocol(), Some(ALPN_ENROLL));
    let certs = server.peer_certificates().unwrap_or_default();
    assert!(matches!(peer_identity(certs), Err(Error::NoCertificate)));
}

#[test]
fn a_session_without_certificate_is_seen() {
    let mesh = Mesh::new("home");
    let mut client = mesh.stranger();
    client.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    let (_, server) = handshake(client, mesh.server()).unwrap();
    assert_eq!(server.alpn_protocol(), Some(ALPN_SESSION));
    let certs = server.peer_certificates().unwrap_or_default();
    assert!(matches!(peer_identity(certs), Err(Error::NoCertificate)));
}

#[test]
fn another_ca_is_refused_by_pin_and_by_certificate() {
    let (mesh, impostor) = (Mesh::new("home"), Mesh::new("home"));
    let message = refused(mesh.stranger(), impostor.server());
    assert!(message.contains("pins"), "{message}");
    let message = refused(mesh.session(), impostor.server());
    assert!(message.contains("CA"), "{message}");
    // The impostor sends the real CA's certificate along: its own leaf is still not signed by it.
    let (cert, key) = (impostor.server.0.clone(), &impostor.server.1);
    let server = mesh_server(mesh.ca(), cert, key, at(NOW)).unwrap();
    let message = refused(mesh.stranger(), server);
    assert!(message.contains("CA"), "{message}");
}

#[test]
fn a_node_cannot_play_the_coordinator() {
    let mesh = Mesh::new("home");
    let rogue = || mesh_server(mesh.ca(), mesh.node.0.clone(), &mesh.node.1, at(NOW)).unwrap();
    for client in [mesh.stranger(), mesh.session()] {
        let message = refused(client, rogue());
        assert!(message.contains("node's"), "{message}");
    }
}

#[test]
fn a_leaf_without_its_key_is_useless() {
    let mesh = Mesh::new("home");
    let thief = NodeKey::generate().unwrap();
    assert!(mesh_server(mesh.ca(), mesh.server.0.clone(), &thief, at(NOW)).is_err());
    assert!(mesh_client(mesh.ca(), mesh.node.0.clone(), &thief, at(NOW)).is_err());
}

#[test]
fn an_expired_node_is_refused_but_may_ask_for_renewal() {
    let mesh = Mesh::new("home");
    let later = NOW.plus(2 * DAY_MS);
    let key = NodeKey::generate().unwrap();
    let fresh = mesh
        .ca
        .issue_coordinator(&[], &key.public_key(), later, TTL_S)
        .unwrap();
    let server = || mesh_server(mesh.ca(), fresh.der.clone(), &key, at(later)).unwrap();
    let message = refused(mesh.session_at(later), server());
    assert!(message.to_lowercase().contains("expired"), "{message}");
    handshake(mesh.stranger(), server()).unwrap();
}

#[test]
fn another_meshs_node_is_refused() {
    let (mesh, other) = (Mesh::new("home"), Mesh::new("away"));
    let (cert, key) = (other.node.0.clone(), &other.node.1);
    let client = mesh_client(mesh.ca(), cert, key, at(NOW)).unwrap();
    assert!(handshake(client, mesh.server()).is_err());
}

#[test]
fn a_coordinators_certificate_is_no_node() {
    let mesh = Mesh::new("home");
    let (cert, key) = (mesh.server.0.clone(), &mesh.server.1);
    let client = mesh_client(mesh.ca(), cert, key, at(NOW)).unwrap();
    assert!(handshake(client, mesh.server()).is_err());
}

#[test]
fn an_expired_coordinator_is_refused_and_a_late_clock_is_not() {
    let mesh = Mesh::new("home");
    let message = refused(mesh.session_at(NOW.plus(2 * DAY_MS)), mesh.server());
    assert!(message.contains("expired"), "{message}");
    // A Pi that woke up in 1970: what the CA signed later tells it that it is late.
    handshake(mesh.session_at(UnixMs(0)), mesh.server()).unwrap();
    handshake(
        enroll_client(mesh.ca().pin(), at(UnixMs(0))).unwrap(),
        mesh.server(),
    )
    .unwrap();
    // The coordinator does not extend that courtesy to nodes.
    assert!(handshake(mesh.session(), mesh.server_at(UnixMs(0))).is_err());
}

#[test]
fn the_name_must_be_the_coordinators() {
    let mesh = Mesh::new("home");
    let (client, server) = (Arc::new(mesh.session()), Arc::new(mesh.server()));
    let message = handshake_with(client, server, "elsewhere.internal")
        .unwrap_err()
        .to_string();
    assert!(message.contains("another name"), "{message}");
}

#[test]
fn nothing_is_resumed() {
    let mesh = Mesh::new("home");
    // Not even by a client that would like to.
    let mut greedy = mesh.session();
    greedy.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let (client, server) = (Arc::new(greedy), Arc::new(mesh.server()));
    assert_eq!(
        (server.send_tls13_tickets, server.max_early_data_size),
        (0, 0)
    );
    for _ in 0..2 {
        let (client, server) =
            handshake_with(client.clone(), server.clone(), COORDINATOR_NAME).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(
            server.negotiated_cipher_suite().unwrap().version(),
            &rustls::version::TLS13
        );
    }
}

#[test]
fn other_protocols_are_refused() {
    let mesh = Mesh::new("home");
    let mut client = mesh.session();
    client.alpn_protocols = vec![b"h3".to_vec()];
    assert!(handshake(client, mesh.server()).is_err());

    let tls12 =
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    assert!(handshake(tls12, mesh.server()).is_err());
}

#[test]
fn a_renewal_holds_on_its_connection_only() {
    let mesh = Mesh::new("home");
    let mut exporters = Vec::new();
    for _ in 0..2 {
        let (client, server) = handshake(mesh.stranger(), mesh.server()).unwrap();
        let empty = [0; renew::EXPORTER_BYTES];
        let label = renew::EXPORTER_LABEL;
        let ours = client.export_keying_material(empty, label, None).unwrap();
        let theirs = server.export_keying_material(empty, label, None).unwrap();
        assert_eq!(ours, theirs);
        exporters.push(ours);
    }
    let (old_cert, old) = &mesh.node;
    let new = NodeKey::generate().unwrap();
    let node = "n1".parse().unwrap();
    let request = renew::request(node, old, old_cert, &new, &exporters[0]).unwrap();
    let verify = |exporter| renew::verify(mesh.ca(), &request, exporter, |_| renew::Standing::Good);
    assert_eq!(verify(&exporters[0]).unwrap().key, new.public_key());
    assert!(matches!(
        verify(&exporters[1]),
        Err(renew::Refusal::NoProof)
    ));
}

#[test]
fn rest_clients_trust_the_mesh_ca_under_the_names_it_certified() {
    let (mesh, other) = (Mesh::new("home"), Mesh::new("home"));
    let pem = mesh.ca().to_pem();
    let chain = vec![mesh.server.0.clone()];
    // REST checks against the machine's clock, so the certificate must be of now.
    let now = UnixMs::now();
    let key = NodeKey::generate().unwrap();
    let names = [ServerName::try_from("127.0.0.1").unwrap()];
    let fresh = mesh
        .ca
        .issue_coordinator(&names, &key.public_key(), now, TTL_S)
        .unwrap();
    let server = || Arc::new(api_server(vec![fresh.der.clone()], key.to_tls()).unwrap());
    let client = |pem: &str| Arc::new(api_client(pem).unwrap());

    let (client_end, _) = handshake_with(client(&pem), server(), "127.0.0.1").unwrap();
    assert_eq!(client_end.alpn_protocol(), Some(&b"h2"[..]));
    assert!(handshake_with(client(&pem), server(), "127.0.0.2").is_err());
    assert!(handshake_with(client(&other.ca().to_pem()), server(), "127.0.0.1").is_err());
    assert!(
        api_server(chain, key.to_tls()).is_err(),
        "another key's certificate"
    );

    for bad in [
        "",
        "hello",
        &pem.repeat(17),
        &"x".repeat(super::PEM_BYTES_MAX + 1),
    ] {
        assert!(api_client(bad).is_err());
    }
}
