//! Who this node is: its data directory, its key and certificate, and how it gets them.
//!
//! ```text
//! <data-dir>/            0700
//!   master.key           0600: the key of everything below
//!   store/               records: identity, clock, instances, outbox
//!   ledger.a, ledger.b   who owned what, kept a second time
//!   blobs/               artifacts and results
//!   code/                compiled modules
//! ```
//!
//! Invariants: the node's key is durable before it is sent anywhere and never leaves the node;
//! nothing but the master key is stored in the clear.

mod client;

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
pub use client::{enroll, enroll_with, renew_expired};
use hop3_common::{
    codes::Problem,
    id::{MeshId, NodeId, UnixMs},
    identity::{
        self, CaCertificate, CoordinatorAddr, KeyHash, NodeKey, PeerIdentity, TokenId, Usage,
        tls::TlsTime,
    },
    store::{self, LocalStore, MasterKey, MetaStore, Record, Table},
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::session::transport;

/// When this program was built, ms: no clock is before it.
pub const BUILT: UnixMs = UnixMs(1_760_000_000_000);

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {}: run as its owner or give another --data-dir",
        path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store.
    #[error("the agent's store: {0}")]
    Store(#[from] store::Error),
    /// No identity here.
    #[error(
        "this node is not enrolled ({} holds no identity): get a token with `hop3 node token \
         create` and run `hop3-agent enroll`", path.display()
    )]
    NotEnrolled {
        /// The data directory.
        path: PathBuf,
    },
    /// There is an identity already.
    #[error(
        "this node is already enrolled as `{node}` in mesh `{mesh}`: start it with `hop3-agent \
         run`; to join another mesh, stop it and remove {}", path.display()
    )]
    AlreadyEnrolled {
        /// Who it is.
        node: NodeId,
        /// Where.
        mesh: MeshId,
        /// The data directory.
        path: PathBuf,
    },
    /// The stored identity cannot be used.
    #[error("the stored identity is unusable: {0}; enroll again with an empty data directory")]
    Damaged(String),
    /// Keys or certificates.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// No coordinator could be asked; each address and why.
    #[error("no coordinator could be reached:{}", lines(attempts))]
    Unreachable {
        /// One line per address.
        attempts: Vec<String>,
    },
    /// The coordinator is not the one that the token pins.
    #[error("{0}")]
    Untrusted(transport::Error),
    /// This side's settings.
    #[error(transparent)]
    Transport(#[from] transport::Error),
    /// The coordinator says no.
    #[error("the coordinator refused: {0}")]
    Refused(Problem),
}

fn lines(attempts: &[String]) -> String {
    attempts.iter().map(|line| format!("\n  {line}")).collect()
}

/// What is stored of the node's identity, under [`NODE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
enum IdentityRecord {
    /// A key that was made for a join that may or may not have arrived.
    Joining { token: TokenId, key_pem: String },
    /// A member.
    Member {
        node: NodeId,
        key_pem: String,
        cert_der: Bytes,
        ca_der: Bytes,
        coordinators: Vec<CoordinatorAddr>,
    },
}

impl Record for IdentityRecord {
    const KIND: &'static str = "identity";
    const VERSION: u16 = 1;
}

/// The last time that an authenticated coordinator told, under [`NODE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ClockRecord {
    told: UnixMs,
}

impl Record for ClockRecord {
    const KIND: &'static str = "clock";
    const VERSION: u16 = 1;
}

const NODE: &str = "node";
const IDENTITY: Table<IdentityRecord> = Table::new();
const CLOCK: Table<ClockRecord> = Table::new();

/// The data directory, open: one process at a time.
pub struct DataDir {
    /// Where.
    pub path: PathBuf,
    /// The key of everything in it.
    pub master: MasterKey,
    /// The records.
    pub store: Arc<dyn MetaStore>,
}

impl DataDir {
    /// Opens the directory, making it if there is none. Blocks.
    ///
    /// # Errors
    /// [`Error::DataDir`] or [`Error::Store`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| Error::DataDir {
                path: path.into(),
                source,
            })?;
        let master = MasterKey::load_or_create(&path.join("master.key"))?;
        let options = store::Options {
            cache_bytes: 1 << 20,
            ..store::Options::default()
        };
        let (store, _recovery) = LocalStore::open(&path.join("store"), &master, options)?;
        Ok(Self {
            path: path.into(),
            master,
            store: Arc::new(store),
        })
    }
}

/// A member of a mesh.
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Its key.
    pub key: NodeKey,
    /// Its certificate.
    pub cert: CertificateDer<'static>,
    /// What the certificate says.
    pub identity: PeerIdentity,
    /// The mesh's CA.
    pub ca: CaCertificate,
    /// Where coordinators listen.
    pub coordinators: Vec<CoordinatorAddr>,
}

impl Member {
    /// The stored identity.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`], [`Error::Damaged`], [`Error::Store`].
    pub async fn load(data: &DataDir) -> Result<Self, Error> {
        let item = IDENTITY.get(&*data.store, NODE).await?;
        let Some(IdentityRecord::Member {
            node,
            key_pem,
            cert_der,
            ca_der,
            coordinators,
        }) = item.map(|item| item.record)
        else {
            return Err(Error::NotEnrolled {
                path: data.path.clone(),
            });
        };
        let damaged = |e: identity::Error| Error::Damaged(e.to_string());
        let cert = CertificateDer::from(cert_der.to_vec());
        Ok(Self {
            key: NodeKey::from_pem(&key_pem).map_err(damaged)?,
            identity: PeerIdentity::from_der(&cert).map_err(damaged)?,
            ca: CaCertificate::from_der(&ca_der).map_err(damaged)?,
            node,
            cert,
            coordinators,
        })
    }

    async fn save(&self, store: &dyn MetaStore) -> Result<(), Error> {
        let record = IdentityRecord::Member {
            node: self.node.clone(),
            key_pem: self.key.to_pem().to_string(),
            cert_der: Bytes::copy_from_slice(&self.cert),
            ca_der: Bytes::copy_from_slice(self.ca.der()),
            coordinators: self.coordinators.clone(),
        };
        let _durable = IDENTITY.put(store, NODE, &record).await?;
        Ok(())
    }

    /// Takes a renewed certificate of the same key, checked, and makes it durable.
    ///
    /// # Errors
    /// A certificate that is not this node's, or [`Error::Store`]; nothing is changed then.
    pub async fn adopt(
        &mut self,
        cert_der: &[u8],
        now: UnixMs,
        store: &dyn MetaStore,
    ) -> Result<(), Error> {
        let cert = CertificateDer::from(cert_der.to_vec());
        let identity = self.ca.verify(&cert, Usage::Client, now)?;
        if identity.node() != Some(&self.node) || identity.key != self.key.public_key().hash() {
            return Err(Error::Damaged(
                "the renewed certificate is not this node's".into(),
            ));
        }
        let before = std::mem::replace(&mut self.cert, cert);
        let saved = self.save(store).await;
        match saved {
            Ok(()) => self.identity = identity,
            Err(_) => self.cert = before,
        }
        saved
    }
}

/// The node's idea of the time, with its memory.
#[derive(Clone)]
pub struct Clock {
    clock: Arc<identity::TrustedClock>,
    store: Arc<dyn MetaStore>,
}

impl Clock {
    /// As it was stored.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn load(store: Arc<dyn MetaStore>) -> Result<Self, Error> {
        let told = CLOCK.get(&*store, NODE).await?.map(|item| item.record.told);
        Ok(Self {
            clock: Arc::new(identity::TrustedClock::new(BUILT, told)),
            store,
        })
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        self.clock.now(UnixMs::now())
    }

    /// The time, for TLS.
    #[must_use]
    pub fn tls(&self) -> TlsTime {
        let clock = Arc::clone(&self.clock);
        TlsTime::new(move || clock.now(UnixMs::now()))
    }

    /// Takes the time that the authenticated coordinator behind `connection` told.
    pub async fn learn(&self, told: UnixMs, connection: &quinn::Connection) {
        let Some(peer) = peer_of(connection) else {
            return;
        };
        let Some(told) = self.clock.learn(told, peer.validity) else {
            return;
        };
        if let Err(error) = CLOCK.put(&*self.store, NODE, &ClockRecord { told }).await {
            tracing::warn!(%error, "the time was not stored");
        }
    }
}

/// Who is at the other end, by its certificate.
fn peer_of(connection: &quinn::Connection) -> Option<PeerIdentity> {
    let certs = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    identity::peer_identity(&certs).ok()
}

/// The machine's name.
#[must_use]
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// What a CA is pinned by: its key's hash.
fn pin_of(ca: &CaCertificate) -> KeyHash {
    ca.pin()
}
