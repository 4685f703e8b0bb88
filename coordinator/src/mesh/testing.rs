//! A mesh on loopback for tests: real QUIC and TLS, a brain that notes what it is asked, and
//! agents driven by hand.
#![allow(clippy::unwrap_used, dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use hop3_common::{
    chunks::BlobStore,
    codes::{Code, Problem},
    id::{Digest, InstanceId, MeshId, NodeId, UnixMs},
    identity::{
        CertificateAuthority, NodeKey, PeerIdentity,
        enroll::{EnrollReply, EnrollRequest},
        tls::{TlsTime, enroll_client, mesh_client, mesh_server},
    },
    ownership::Token,
    store::MasterKey,
    wire::{
        CONTROL_FRAME_MAX, COORDINATOR_NAME, Down, HEADER_FRAME_MAX, Held, Hello, NodeFacts,
        Outgoing, OutgoingDone, OutgoingWhat, PROTOCOL, Report, ServiceReply, StreamHeader, Up,
        Welcome,
        io::{self, FrameReader},
        telemetry::Sample,
    },
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    crypto::rustls::QuicClientConfig,
};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Brain, Handle, Mesh, NodeLink, Options};

const TTL_S: u64 = 3600;
/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `probe` gives something.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// The application close code that the peer gave.
pub(crate) async fn close_code(connection: &Connection) -> u64 {
    match soon("the connection closes", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("closed otherwise: {other}"),
    }
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Notes what it is asked.
pub(crate) struct FakeBrain {
    pub(crate) links: Mutex<BTreeMap<NodeId, NodeLink>>,
    pub(crate) seen: Mutex<Seen>,
    /// Digests that nodes may get and put.
    pub(crate) allowed: Mutex<BTreeSet<Digest>>,
    pub(crate) refused: Mutex<BTreeSet<NodeId>>,
    /// Reports become durable one for each permit; with none, they wait.
    pub(crate) durable: Semaphore,
    /// Reports fail from this number on.
    pub(crate) fail_from: Mutex<Option<u64>>,
    pub(crate) acked: Mutex<u64>,
    /// Reports whose taking began.
    pub(crate) begun: Mutex<u64>,
    blobs: Arc<BlobStore>,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) enrolled: Vec<(EnrollRequest, [u8; 32])>,
    pub(crate) hellos: Vec<(PeerIdentity, Hello)>,
    pub(crate) inventories: Vec<(NodeId, Vec<Held>)>,
    pub(crate) reports: Vec<(NodeId, u64)>,
    pub(crate) facts: Vec<NodeFacts>,
    pub(crate) samples: Vec<(NodeId, Sample)>,
    pub(crate) gone: Vec<(NodeId, u64, String)>,
    pub(crate) stored: Vec<(NodeId, Digest, u64)>,
    pub(crate) fetched: Vec<(NodeId, InstanceId)>,
    pub(crate) outgoing: Vec<(NodeId, u64)>,
}

impl FakeBrain {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path(), &MasterKey::generate().unwrap()).unwrap();
        Self {
            links: Mutex::default(),
            seen: Mutex::default(),
            allowed: Mutex::default(),
            refused: Mutex::default(),
            durable: Semaphore::new(Semaphore::MAX_PERMITS >> 1),
            fail_from: Mutex::default(),
            acked: Mutex::default(),
            begun: Mutex::default(),
            blobs: Arc::new(blobs),
            _dir: dir,
        }
    }

    fn may(&self, digest: &Digest) -> Result<(), Problem> {
        if self.allowed.lock().unwrap().contains(digest) {
            return Ok(());
        }
        Err(Problem::new(
            Code::Forbidden,
            format!("{digest} is not for you"),
        ))
    }
}

#[async_trait::async_trait]
impl Brain for FakeBrain {
    async fn enroll(
        &self,
        request: EnrollRequest,
        exporter: [u8; 32],
        _: SocketAddr,
    ) -> EnrollReply {
        self.seen.lock().unwrap().enrolled.push((request, exporter));
        EnrollReply::Refused(Problem::new(Code::TokenUsed, "used"))
    }

    async fn connected(
        &self,
        identity: PeerIdentity,
        hello: Hello,
        link: NodeLink,
    ) -> Result<Welcome, Problem> {
        if self.refused.lock().unwrap().contains(&hello.node) {
            return Err(Problem::new(Code::NodeRevoked, "revoked"));
        }
        // Before `Welcome` is on the wire: it must come after it all the same.
        link.send(Down::Telemetry {
            sample_ms: 1,
            batch_ms: 2,
        })
        .unwrap();
        self.links.lock().unwrap().insert(hello.node.clone(), link);
        self.seen.lock().unwrap().hellos.push((identity, hello));
        Ok(Welcome {
            protocol: 0,
            mesh: "test".parse().unwrap(),
            coordinator_version: "1".into(),
            now: UnixMs::now(),
            acked_seq: *self.acked.lock().unwrap(),
            sample_ms: 1000,
            batch_ms: 10_000,
        })
    }

    async fn leases(&self, _: &NodeLink, _: u64, _: Vec<(InstanceId, Token)>) {}

    async fn inventory(&self, link: &NodeLink, held: Vec<Held>) {
        self.seen
            .lock()
            .unwrap()
            .inventories
            .push((link.node().clone(), held));
    }

    async fn report(&self, link: &NodeLink, seq: u64, _: Report) -> Result<(), Problem> {
        *self.begun.lock().unwrap() += 1;
        self.durable.acquire().await.unwrap().forget();
        if self
            .fail_from
            .lock()
            .unwrap()
            .is_some_and(|from| seq >= from)
        {
            return Err(Problem::new(Code::Storage, "disk full"));
        }
        self.seen
            .lock()
            .unwrap()
            .reports
            .push((link.node().clone(), seq));
        Ok(())
    }

    async fn facts(&self, _: &NodeLink, facts: NodeFacts) {
        self.seen.lock().unwrap().facts.push(facts);
    }

    fn telemetry(&self, link: &NodeLink, samples: Vec<Sample>) {
        let samples = samples
            .into_iter()
            .map(|sample| (link.node().clone(), sample));
        self.seen.lock().unwrap().samples.extend(samples);
    }

    async fn fetched(&self, node: &NodeId, instance: &InstanceId) {
        let fetched = (node.clone(), instance.clone());
        self.seen.lock().unwrap().fetched.push(fetched);
    }

    async fn outgoing(&self, link: &NodeLink, asked: Outgoing) -> Result<OutgoingDone, Problem> {
        let from = (link.node().clone(), asked.id);
        self.seen.lock().unwrap().outgoing.push(from);
        match asked.what {
            OutgoingWhat::Call { request, .. } => Ok(OutgoingDone::Reply(ServiceReply {
                status: 200,
                headers: Vec::new(),
                body: request.body,
                stream: None,
            })),
            _ => Ok(OutgoingDone::Done),
        }
    }

    async fn renew(&self, _: &NodeLink, csr_der: &[u8]) -> Result<Bytes, Problem> {
        Ok(Bytes::copy_from_slice(csr_der))
    }

    async fn disconnected(&self, link: &NodeLink, why: String) {
        let gone = (link.node().clone(), link.session(), why);
        self.seen.lock().unwrap().gone.push(gone);
    }

    fn blobs(&self) -> Arc<BlobStore> {
        self.blobs.clone()
    }

    async fn may_get(&self, _: &NodeId, digest: &Digest) -> Result<(), Problem> {
        self.may(digest)
    }

    async fn may_put(&self, _: &NodeId, digest: &Digest, _: u64) -> Result<(), Problem> {
        self.may(digest)
    }

    async fn stored(&self, node: &NodeId, digest: &Digest, size: u64) {
        assert!(self.blobs.contains(digest), "told before it is there");
        self.seen
            .lock()
            .unwrap()
            .stored
            .push((node.clone(), *digest, size));
    }
}

/// A running mesh and the CA behind it.
pub(crate) struct World {
    pub(crate) ca: CertificateAuthority,
    pub(crate) brain: Arc<FakeBrain>,
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<()>,
    client: Endpoint,
}

pub(crate) fn time() -> TlsTime {
    TlsTime::new(UnixMs::now)
}

pub(crate) fn new_ca(mesh: &str) -> CertificateAuthority {
    CertificateAuthority::create(&mesh.parse::<MeshId>().unwrap(), UnixMs::now()).unwrap()
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let ca = new_ca("test");
        let key = NodeKey::generate().unwrap();
        let cert = ca
            .issue_coordinator(&[], &key.public_key(), UnixMs::now(), TTL_S)
            .unwrap();
        let tls = mesh_server(ca.certificate(), cert.der, &key, time()).unwrap();
        let mut options = Options::new((Ipv4Addr::LOCALHOST, 0).into(), tls);
        change(&mut options);
        let brain = Arc::new(FakeBrain::new());
        let mesh = Mesh::bind(options, brain.clone()).unwrap();
        let (address, handle) = (mesh.local_addr().unwrap(), mesh.handle());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(mesh.run(shutdown.clone()));
        let client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self {
            ca,
            brain,
            address,
            handle,
            shutdown,
            running,
            client,
        }
    }

    /// Connects with these TLS settings.
    pub(crate) async fn connect(
        &self,
        tls: rustls::ClientConfig,
    ) -> Result<Connection, ConnectionError> {
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        transport.max_concurrent_bidi_streams(8u32.into());
        config.transport_config(Arc::new(transport));
        self.client
            .connect_with(config, self.address, COORDINATOR_NAME)
            .unwrap()
            .await
    }

    /// A connection with node `name`'s certificate, issued by `issuer`.
    pub(crate) async fn connect_as(
        &self,
        name: &str,
        issuer: &CertificateAuthority,
    ) -> Result<Connection, ConnectionError> {
        let key = NodeKey::generate().unwrap();
        let cert = issuer
            .issue_node(&node(name), &key.public_key(), UnixMs::now(), TTL_S)
            .unwrap();
        let tls = mesh_client(self.ca.certificate(), cert.der, &key, time()).unwrap();
        self.connect(tls).await
    }

    pub(crate) async fn connect_stranger(&self) -> Connection {
        let tls = enroll_client(self.ca.certificate().pin(), time()).unwrap();
        self.connect(tls).await.unwrap()
    }

    /// A welcomed agent.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let connection = self.connect_as(name, &self.ca).await.unwrap();
        let mut agent = Agent::open(connection).await;
        agent.up(&Up::Hello(hello(name))).await;
        match agent.down().await {
            Down::Welcome(welcome) => assert_eq!(welcome.protocol, PROTOCOL.1),
            other => panic!("no welcome: {other:?}"),
        }
        assert_eq!(
            agent.down().await,
            Down::Telemetry {
                sample_ms: 1,
                batch_ms: 2
            }
        );
        agent
    }

    /// The brain's link to a node that is connected.
    pub(crate) fn link(&self, name: &str) -> NodeLink {
        self.brain
            .links
            .lock()
            .unwrap()
            .get(&node(name))
            .unwrap()
            .clone()
    }

    /// Why the `n`-th session of `name` (from 0) that ended did.
    pub(crate) async fn gone(&self, name: &str, n: usize) -> String {
        eventually("the session ends", || {
            let seen = self.brain.seen.lock().unwrap();
            let mut gone = seen.gone.iter().filter(|(who, ..)| *who == node(name));
            gone.nth(n).map(|(_, _, why)| why.clone())
        })
        .await
    }
}

pub(crate) fn hello(name: &str) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node: node(name),
        agent_version: "1".into(),
        boot_id: [1; 16],
        outbox: [2; 16],
        facts: NodeFacts::default(),
    }
}

/// An agent by hand.
pub(crate) struct Agent {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) control: FrameReader<RecvStream>,
}

impl Agent {
    /// Opens the control stream; says nothing yet.
    pub(crate) async fn open(connection: Connection) -> Self {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        io::write(&mut send, &StreamHeader::Control, HEADER_FRAME_MAX)
            .await
            .unwrap();
        Self {
            connection,
            send,
            control: FrameReader::new(recv, CONTROL_FRAME_MAX),
        }
    }

    pub(crate) async fn up(&mut self, up: &Up) {
        io::write(&mut self.send, up, CONTROL_FRAME_MAX * 2)
            .await
            .unwrap();
    }

    pub(crate) async fn down(&mut self) -> Down {
        soon("a control message", self.control.next())
            .await
            .unwrap()
            .unwrap()
    }

    /// A stream of the agent, with its header written.
    pub(crate) async fn stream(&self, header: &StreamHeader) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        io::write(&mut send, header, HEADER_FRAME_MAX)
            .await
            .unwrap();
        (send, recv)
    }

    /// The next stream that the coordinator opens, with its header.
    pub(crate) async fn accept(&self) -> (StreamHeader, SendStream, RecvStream) {
        let (send, mut recv) = soon("a stream of the coordinator", self.connection.accept_bi())
            .await
            .unwrap();
        let header = io::read(&mut recv, HEADER_FRAME_MAX)
            .await
            .unwrap()
            .unwrap();
        (header, send, recv)
    }
}
