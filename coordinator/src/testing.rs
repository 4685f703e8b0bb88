//! Shared by tests: a core over a store in memory or on disk, and nodes that are only pretended.
#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use hop3_common::{
    api::ArtifactKind,
    chunks::BlobStore,
    codes::{Code, Problem},
    id::{Digest, InstanceId, NodeId, UnixMs},
    identity::{
        CertificateAuthority, NodeKey, PeerIdentity,
        enroll::{EnrollReply, EnrollRequest, Join},
    },
    ownership::{Epoch, Incarnation, Token},
    spec::Tier,
    store::{LocalStore, MasterKey, MemoryStore, MetaStore, Options},
    wire::{
        CallResult, Down, End, Event, Held, Hello, ModelCheck, ModelFacts, NodeFacts, PROTOCOL,
        Report, Target, TaskResult, Usage,
        attach::{Channel, Frame},
    },
};

use crate::{
    Core, Settings, enroll,
    records::Records,
    registry::{self, FrameSink, FrameSource, Link},
    services::Replicas,
    tasks::ByteStream,
};

/// Polls until `probe` gives something.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        lost_after_ms: 30_000,
        certificate_ttl_s: 3600,
        artifact_bytes_max: 1 << 20,
        strategy: None,
    }
}

/// Everything that outlives a core.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    key: MasterKey,
    ca: (String, String),
    memory: Option<Arc<MemoryStore>>,
}

impl World {
    /// With a store in memory.
    pub(crate) fn new() -> Self {
        let mut world = Self::on_disk();
        world.memory = Some(Arc::default());
        world
    }

    /// With a real store.
    pub(crate) fn on_disk() -> Self {
        let ca = CertificateAuthority::create(&"test".parse().unwrap(), UnixMs::now()).unwrap();
        let (certificate, key) = ca.to_pem();
        Self {
            dir: tempfile::tempdir().unwrap(),
            key: MasterKey::generate().unwrap(),
            ca: (certificate, key.to_string()),
            memory: None,
        }
    }

    /// Starts a core over what is stored.
    pub(crate) async fn core(&self) -> Arc<Core> {
        let store: Arc<dyn MetaStore> = match &self.memory {
            Some(memory) => memory.clone(),
            None => {
                let dir: &Path = &self.dir.path().join("store");
                Arc::new(
                    LocalStore::open(dir, &self.key, Options::default())
                        .unwrap()
                        .0,
                )
            }
        };
        let blobs = BlobStore::open(&self.dir.path().join("blobs"), &self.key).unwrap();
        let ca = CertificateAuthority::from_pem(&self.ca.0, &self.ca.1).unwrap();
        let replicas = Replicas::open(&self.dir.path().join("replicas"), &self.key).unwrap();
        let core = Core::open(
            Records::new(store),
            Arc::new(blobs),
            replicas,
            ca,
            settings(),
        )
        .await
        .unwrap();
        core.set_advertised(vec!["127.0.0.1:7430".parse().unwrap()]);
        core
    }
}

/// A module that does nothing.
pub(crate) fn module() -> Vec<u8> {
    wat::parse_str(r#"(module (func (export "_start")))"#).unwrap()
}

/// What looks like a model.
pub(crate) fn onnx() -> Vec<u8> {
    vec![0x08, 8, 0x3a, 1, 0]
}

pub(crate) async fn push(core: &Core, bytes: &[u8], kind: ArtifactKind, name: &str) -> Digest {
    let digest = Digest::of(bytes);
    let writer = core.artifact_writer(digest, kind, Some(name.into()), None);
    let mut upload = writer.await.unwrap();
    upload.append(Bytes::copy_from_slice(bytes)).await.unwrap();
    upload.finish().await.unwrap().digest
}

/// An agent that is only pretended: it joins, connects, and does what tests say.
pub(crate) struct FakeNode {
    pub(crate) name: NodeId,
    pub(crate) identity: PeerIdentity,
    pub(crate) key: NodeKey,
    pub(crate) facts: NodeFacts,
    outbox: [u8; 16],
    seq: AtomicU64,
}

impl FakeNode {
    /// Joins with a new token.
    pub(crate) async fn join(core: &Core, name: &str, tier: Tier) -> Self {
        let request = hop3_common::api::JoinTokenRequest {
            tier,
            labels: Default::default(),
            node: Some(name.parse().unwrap()),
            ttl: None,
        };
        let created = core.create_join_token(request).await.unwrap();
        let token: hop3_common::identity::JoinToken = created.token.parse().unwrap();
        let key = NodeKey::generate().unwrap();
        let join = Join {
            protocol: PROTOCOL,
            token: token.id(),
            secret: token.secret().clone(),
            csr_der: key.csr().unwrap(),
            hostname: "host".into(),
            facts: Default::default(),
        };
        let reply = enroll::enroll(core, EnrollRequest::Join(join), &[0; 32]).await;
        let EnrollReply::Granted(granted) = reply else {
            panic!("{reply:?}")
        };
        let facts = NodeFacts {
            arch: "x86_64".into(),
            cpus: 4,
            memory_kib: 8 << 20,
            disk_kib: 64 << 20,
            capabilities: vec!["wasm".into(), "onnx".into()],
            tasks_max: 2,
            ..NodeFacts::default()
        };
        Self {
            name: granted.node,
            identity: PeerIdentity::from_der(&granted.cert_der).unwrap(),
            key,
            facts,
            outbox: [7; 16],
            seq: AtomicU64::new(0),
        }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node: self.name.clone(),
            agent_version: "test".into(),
            boot_id: [0; 16],
            outbox: self.outbox,
            facts: self.facts.clone(),
        }
    }

    /// Connects and says what it holds.
    pub(crate) async fn connect(&self, core: &Core, held: Vec<Held>) -> Arc<FakeLink> {
        let link = FakeLink::new(&self.name);
        let hello = self.hello();
        registry::connected(core, &self.identity, hello, link.clone())
            .await
            .unwrap();
        registry::inventory(core, &*link, held).await;
        link
    }

    /// Reports the next thing; the outbox number it had.
    pub(crate) async fn report(
        &self,
        core: &Core,
        link: &FakeLink,
        instance: &InstanceId,
        token: Token,
        event: Event,
    ) -> u64 {
        let seq = self.seq.fetch_add(1, SeqCst) + 1;
        let report = Report {
            instance: instance.clone(),
            token,
            at: UnixMs::now(),
            event,
        };
        registry::report(core, link, seq, report).await.unwrap();
        seq
    }
}

pub(crate) fn token(epoch: u64, incarnation: u64) -> Token {
    Token {
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
    }
}

pub(crate) fn exited(code: i32) -> Event {
    let (end, usage) = (End::Exited(code), Usage::default());
    Event::TaskEnded(Box::new(TaskResult {
        end,
        usage,
        stdout: None,
        stderr: None,
    }))
}

type Answer = Result<CallResult, Problem>;

/// A session that is only pretended: notes what is sent, answers what it was told to.
pub(crate) struct FakeLink {
    node: NodeId,
    session: u64,
    pub(crate) open: AtomicBool,
    sent: Mutex<Vec<Down>>,
    pub(crate) closed: Mutex<Option<u32>>,
    pub(crate) calls: Mutex<Vec<Target>>,
    pub(crate) answers: Mutex<VecDeque<Answer>>,
    pub(crate) checked: Mutex<Option<Result<ModelFacts, Problem>>>,
    /// The node's ends of attached streams.
    pub(crate) attached: Mutex<Vec<(FrameRx, FrameTx)>>,
}

pub(crate) type FrameRx = tokio::sync::mpsc::Receiver<Frame>;
pub(crate) type FrameTx = tokio::sync::mpsc::Sender<Frame>;

static SESSIONS: AtomicU64 = AtomicU64::new(1);

impl FakeLink {
    pub(crate) fn new(node: &NodeId) -> Arc<Self> {
        Arc::new(Self {
            node: node.clone(),
            session: SESSIONS.fetch_add(1, SeqCst),
            open: AtomicBool::new(true),
            sent: Mutex::default(),
            closed: Mutex::default(),
            calls: Mutex::default(),
            answers: Mutex::default(),
            checked: Mutex::default(),
            attached: Mutex::default(),
        })
    }

    /// What was sent since the last look.
    pub(crate) fn take(&self) -> Vec<Down> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// The instances and epochs assigned since the last look.
    pub(crate) fn assigned(&self) -> Vec<(InstanceId, Epoch)> {
        let sent = self.take().into_iter();
        sent.filter_map(|down| match down {
            Down::Assign(assignment) => Some((assignment.instance, assignment.epoch)),
            _ => None,
        })
        .collect()
    }

    pub(crate) async fn drop_session(&self, core: &Core) {
        self.open.store(false, SeqCst);
        registry::disconnected(core, self, "the cable").await;
    }
}

#[async_trait::async_trait]
impl Link for FakeLink {
    fn node(&self) -> &NodeId {
        &self.node
    }
    fn session(&self) -> u64 {
        self.session
    }
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }
    fn rtt(&self) -> Duration {
        Duration::from_millis(1)
    }
    fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }
    fn send(&self, down: Down) -> Result<(), Problem> {
        if !self.is_open() {
            return Err(Problem::new(Code::NodeUnreachable, "closed"));
        }
        self.sent.lock().unwrap().push(down);
        Ok(())
    }
    async fn call(&self, target: Target, _: Duration) -> Answer {
        self.calls.lock().unwrap().push(target);
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or_else(|| {
            let (output, usage) = (Bytes::from_static(b"out"), Usage::default());
            Ok(CallResult::Module {
                exit: 0,
                output,
                usage,
            })
        })
    }
    async fn attach(
        &self,
        _: InstanceId,
        _: Epoch,
    ) -> Result<(Box<dyn FrameSink>, Box<dyn FrameSource>), Problem> {
        let (up, up_end) = tokio::sync::mpsc::channel(4);
        let (down_end, down) = tokio::sync::mpsc::channel(4);
        self.attached.lock().unwrap().push((up_end, down_end));
        Ok((Box::new(Sink(up)), Box::new(Source(down))))
    }
    async fn client(
        &self,
        instance: InstanceId,
        _: Epoch,
    ) -> Result<Box<dyn hop3_gateway::Link>, Problem> {
        let message = format!("{instance} takes no clients in tests");
        Err(Problem::new(Code::NodeUnreachable, message))
    }
    async fn logs(
        &self,
        instance: InstanceId,
        _: Channel,
        offset: u64,
        _: bool,
    ) -> Result<ByteStream, Problem> {
        let text = format!("live output of {instance}");
        Ok(Box::pin(std::io::Cursor::new(
            text.into_bytes()[offset as usize..].to_vec(),
        )))
    }
    async fn check_model(&self, _: ModelCheck, _: Duration) -> Result<ModelFacts, Problem> {
        let told = self.checked.lock().unwrap().clone();
        told.unwrap_or_else(|| {
            Ok(ModelFacts {
                inputs: vec!["x:f32[n]".parse().unwrap()],
                outputs: vec!["y:f32[n]".parse().unwrap()],
                load_us: 5,
            })
        })
    }
    fn close(&self, code: u32, _: &str) {
        self.open.store(false, SeqCst);
        *self.closed.lock().unwrap() = Some(code);
    }
}

struct Sink(FrameTx);
struct Source(FrameRx);

#[async_trait::async_trait]
impl FrameSink for Sink {
    async fn send(&mut self, frame: Frame) -> Result<(), Problem> {
        let sent = self.0.send(frame).await;
        sent.map_err(|_| Problem::new(Code::NodeUnreachable, "the stream ended"))
    }
}

#[async_trait::async_trait]
impl FrameSource for Source {
    async fn recv(&mut self) -> Option<Frame> {
        self.0.recv().await
    }
}
