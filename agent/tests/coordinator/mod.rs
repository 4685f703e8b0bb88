//! A coordinator for tests: a plain quinn server and a CA, driven by the test step by step.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hop3_agent::{
    agent,
    config::{self, Config, Overrides, Places},
    identity::{self, DataDir},
};
use hop3_common::{
    chunks::BlobStore,
    id::{Digest, UnixMs},
    identity::{
        CertificateAuthority, JoinToken, NodeKey, PeerIdentity, TokenId, TokenSecret,
        enroll::{EnrollReply, EnrollRequest, Granted},
        peer_identity, tls, verify_csr,
    },
    store::MasterKey,
    wire::{
        self, BlobReply, CONTROL_FRAME_MAX, Down, ENROLL_FRAME_MAX, HEADER_FRAME_MAX, Hello,
        StreamHeader, Up, Welcome, io,
    },
};
use quinn::{Connection, Endpoint, RecvStream, SendStream, crypto::rustls::QuicServerConfig};
use rustls::pki_types::CertificateDer;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The longest that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `future`, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen in {PATIENCE:?}"),
    }
}

/// How enrolment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    Grant {
        ttl_s: u64,
    },
    /// The grant is made, the answer is lost.
    LoseAnswer,
    Refuse(hop3_common::codes::Code),
}

pub struct Coordinator {
    pub ca: Arc<CertificateAuthority>,
    pub endpoint: Endpoint,
    pub enrolment: Arc<Mutex<Enrolment>>,
    pub requests: Arc<Mutex<Vec<EnrollRequest>>>,
    sessions: mpsc::Receiver<Connection>,
    pub blobs: BlobStore,
    _dir: tempfile::TempDir,
}

impl Coordinator {
    pub fn start() -> Self {
        let mesh = "home".parse().unwrap();
        let ca = Arc::new(CertificateAuthority::create(&mesh, UnixMs::now()).unwrap());
        let key = NodeKey::generate().unwrap();
        let names = [wire::COORDINATOR_NAME.try_into().unwrap()];
        let cert = ca
            .issue_coordinator(&names, &key.public_key(), UnixMs::now(), 86_400)
            .unwrap();
        let time = tls::TlsTime::new(UnixMs::now);
        let tls = tls::mesh_server(ca.certificate(), cert.der, &key, time).unwrap();
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let (sender, sessions) = mpsc::channel(16);
        let enrolment = Arc::new(Mutex::new(Enrolment::Grant { ttl_s: 3600 }));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path(), &MasterKey::generate().unwrap()).unwrap();
        tokio::spawn(accept(
            endpoint.clone(),
            ca.clone(),
            enrolment.clone(),
            requests.clone(),
            sender,
        ));
        Self {
            ca,
            endpoint,
            enrolment,
            requests,
            sessions,
            blobs,
            _dir: dir,
        }
    }

    pub fn address(&self) -> String {
        self.endpoint.local_addr().unwrap().to_string()
    }

    pub fn token(&self) -> JoinToken {
        let (id, secret) = (
            TokenId::generate().unwrap(),
            TokenSecret::generate().unwrap(),
        );
        let at = vec![self.address().parse().unwrap()];
        JoinToken::mint(id, secret, self.ca.certificate(), at).unwrap()
    }

    /// The next session's connection.
    pub async fn connection(&mut self) -> Connection {
        soon("a session", self.sessions.recv()).await.unwrap()
    }

    /// The next session, welcomed.
    pub async fn welcome(&mut self, acked_seq: u64) -> Session {
        let connection = self.connection().await;
        let mut session = Session::open(connection).await;
        session.send(&welcome(acked_seq)).await;
        match session.up().await {
            Up::Inventory(_) => session,
            other => panic!("no inventory but {other:?}"),
        }
    }
}

pub fn welcome(acked_seq: u64) -> Down {
    Down::Welcome(Welcome {
        protocol: hop3_common::wire::PROTOCOL.1,
        mesh: "home".parse().unwrap(),
        coordinator_version: "test".into(),
        now: UnixMs::now(),
        acked_seq,
        sample_ms: 1000,
        batch_ms: 1000,
    })
}

async fn accept(
    endpoint: Endpoint,
    ca: Arc<CertificateAuthority>,
    enrolment: Arc<Mutex<Enrolment>>,
    requests: Arc<Mutex<Vec<EnrollRequest>>>,
    sessions: mpsc::Sender<Connection>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else {
            continue;
        };
        let data = connection.handshake_data().unwrap();
        let data = data
            .downcast::<quinn::crypto::rustls::HandshakeData>()
            .unwrap();
        if data.protocol.as_deref() == Some(wire::ALPN_SESSION) {
            let _ = sessions.send(connection).await;
            continue;
        }
        let how = *enrolment.lock().unwrap();
        let (ca, requests) = (ca.clone(), requests.clone());
        tokio::spawn(async move { enroll(connection, &ca, how, &requests).await });
    }
}

async fn enroll(
    connection: Connection,
    ca: &CertificateAuthority,
    how: Enrolment,
    requests: &Mutex<Vec<EnrollRequest>>,
) {
    let Ok((mut send, mut recv)) = connection.accept_bi().await else {
        return;
    };
    let request = io::read::<EnrollRequest>(&mut recv, ENROLL_FRAME_MAX)
        .await
        .unwrap()
        .unwrap();
    requests.lock().unwrap().push(request.clone());
    let (csr, node) = match &request {
        EnrollRequest::Join(join) => (&join.csr_der, "node-1".parse().unwrap()),
        EnrollRequest::Renew(renew) => (&renew.csr_der, renew.node.clone()),
    };
    let ttl_s = match how {
        Enrolment::Grant { ttl_s } => ttl_s,
        Enrolment::LoseAnswer => {
            connection.close(0u32.into(), b"");
            return;
        }
        Enrolment::Refuse(code) => {
            let problem = hop3_common::codes::Problem::new(code, "refused by the test");
            let reply = EnrollReply::Refused(problem);
            io::write(&mut send, &reply, ENROLL_FRAME_MAX)
                .await
                .unwrap();
            send.finish().unwrap();
            let _ = send.stopped().await;
            return;
        }
    };
    let key = verify_csr(csr).unwrap();
    let issued = ca.issue_node(&node, &key, UnixMs::now(), ttl_s).unwrap();
    let reply = EnrollReply::Granted(Granted {
        node,
        mesh: ca.certificate().mesh().clone(),
        cert_der: issued.der.to_vec(),
        ca_der: ca.certificate().der().to_vec(),
        expires: issued.identity.validity.not_after,
        server_time: UnixMs::now(),
    });
    io::write(&mut send, &reply, ENROLL_FRAME_MAX)
        .await
        .unwrap();
    send.finish().unwrap();
    let _ = send.stopped().await;
}

/// One session as the coordinator sees it.
pub struct Session {
    pub connection: Connection,
    pub hello: Hello,
    pub peer: PeerIdentity,
    send: SendStream,
    frames: io::FrameReader<RecvStream>,
}

impl Session {
    pub async fn open(connection: Connection) -> Self {
        let certs = connection.peer_identity().unwrap();
        let certs = certs.downcast::<Vec<CertificateDer<'static>>>().unwrap();
        let peer = peer_identity(&certs).unwrap();
        let (send, mut recv) = soon("a control stream", connection.accept_bi())
            .await
            .unwrap();
        let header = io::read::<StreamHeader>(&mut recv, HEADER_FRAME_MAX)
            .await
            .unwrap();
        assert_eq!(header, Some(StreamHeader::Control));
        let mut frames = io::FrameReader::new(recv, CONTROL_FRAME_MAX);
        let Ok(Some(Up::Hello(hello))) = frames.next().await else {
            panic!("no hello")
        };
        Self {
            connection,
            hello,
            peer,
            send,
            frames,
        }
    }

    pub async fn send(&mut self, down: &Down) {
        io::write(&mut self.send, down, CONTROL_FRAME_MAX)
            .await
            .unwrap();
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    pub async fn up(&mut self) -> Up {
        soon("a control frame", self.frames.next())
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn report(&mut self) -> (u64, wire::Report) {
        match self.up().await {
            Up::Report { seq, report } => (seq, report),
            other => panic!("no report but {other:?}"),
        }
    }

    /// Answers the agent's blob streams from `blobs`, and takes what it sends.
    pub fn serve_blobs(&self, blobs: &BlobStore) -> JoinHandle<()> {
        let (connection, blobs) = (self.connection.clone(), blobs.clone());
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                match io::read::<StreamHeader>(&mut recv, HEADER_FRAME_MAX).await {
                    Ok(Some(StreamHeader::BlobGet { digest, offset })) => {
                        get(&blobs, &mut send, digest, offset).await;
                    }
                    Ok(Some(StreamHeader::BlobPut { digest, size })) => {
                        let ready = BlobReply::Ready { size, offset: 0 };
                        let _ = io::write(&mut send, &ready, HEADER_FRAME_MAX).await;
                        let Ok(bytes) = recv.read_to_end(1 << 20).await else {
                            continue;
                        };
                        assert_eq!(Digest::of(&bytes), digest);
                        blobs.put(&bytes).unwrap();
                        let _ = io::write(&mut send, &BlobReply::Stored, HEADER_FRAME_MAX).await;
                        let _ = send.finish();
                    }
                    Ok(Some(StreamHeader::Outgoing)) => drop(tokio::spawn(outgoing(send, recv))),
                    _ => {}
                }
            }
        })
    }
}

/// Answers what instances ask of services elsewhere.
async fn outgoing(mut send: SendStream, recv: RecvStream) {
    let mut frames = io::FrameReader::new(recv, wire::CALL_FRAME_MAX);
    while let Ok(Some(asked)) = frames.next::<wire::Outgoing>().await {
        let reply = wire::ServiceReply {
            status: 200,
            headers: vec![],
            body: Default::default(),
            stream: None,
        };
        let reply = wire::OutgoingReply {
            id: asked.id,
            result: Ok(wire::OutgoingDone::Reply(reply)),
        };
        io::write(&mut send, &reply, wire::CALL_FRAME_MAX)
            .await
            .unwrap();
    }
}

async fn get(blobs: &BlobStore, send: &mut SendStream, digest: Digest, offset: u64) {
    let bytes = blobs.read(&digest, 1 << 24).unwrap();
    let ready = BlobReply::Ready {
        size: bytes.len() as u64,
        offset,
    };
    let _ = io::write(send, &ready, HEADER_FRAME_MAX).await;
    let _ = send.write_all(&bytes[offset as usize..]).await;
    let _ = send.finish();
}

/// An agent in this process.
pub struct Agent {
    pub dir: tempfile::TempDir,
    running: Option<(CancellationToken, JoinHandle<Result<(), agent::Error>>)>,
}

impl Agent {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            running: None,
        }
    }

    pub fn config(&self) -> Config {
        let places = Places::of(Some(self.dir.path()));
        config::load(None, &places, &Overrides::default()).unwrap()
    }

    pub async fn enroll(&self, token: &JoinToken) -> Result<String, identity::Error> {
        let data = DataDir::open(&self.config().data_dir)?;
        let node = soon("enrolment", identity::enroll_with(&data, token, "host")).await?;
        Ok(node.to_string())
    }

    pub fn start(&mut self) {
        let config = self.config();
        let data = DataDir::open(&config.data_dir).unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(agent::run_until(config, data, shutdown.clone()));
        self.running = Some((shutdown, running));
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        let (shutdown, running) = self.running.take().unwrap();
        shutdown.cancel();
        soon("the agent's end", running).await.unwrap().unwrap();
        self.released().await;
    }

    /// Waits until the data directory can be opened again.
    pub async fn released(&self) {
        let path = self.config().data_dir;
        let free = async {
            while DataDir::open(&path).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the release of the store", free).await;
    }

    pub fn is_running(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|(_, running)| !running.is_finished())
    }
}
