//! The UDP port: admission, handshakes, dispatch by ALPN, orderly shutdown.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hop3_common::{
    id::NodeId,
    wire::{ALPN_ENROLL, ALPN_SESSION, Down, close},
};
use quinn::{Connection, Endpoint, Incoming, VarInt, crypto::rustls::HandshakeData};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Brain, NodeLink,
    admission::{Admission, Bounds, Load, TokenBucket, Verdict},
    counters::{Counters, Snapshot},
    enroll,
    options::{Error, Options, endpoint_config, server_config},
    peer::Breaches,
    session,
};

/// How long a planned restart takes, about: nobody needs to try sooner.
const RESTART_MS: u32 = 500;
/// Reconnects are spread so that each has this long: twice a handshake's CPU time.
const RECONNECT_SPACING_US: u64 = 2_000;
/// Longest wait for nodes to take the word that we restart.
const RESTART_GRACE: Duration = Duration::from_secs(2);

/// The mesh's port, bound.
pub struct Mesh {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    admission: Admission,
    handshakes: Arc<Semaphore>,
    handshakes_max: usize,
    tasks: TaskTracker,
}

/// Looks at a running mesh. Clones share it.
#[derive(Clone)]
pub struct Handle {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) brain: Arc<dyn Brain>,
    pub(super) counters: Arc<Counters>,
    pub(super) breaches: Arc<Breaches>,
    pub(super) handshake_timeout: Duration,
    pub(super) stuck_after: Duration,
    enrolments: Semaphore,
    sessions: Mutex<HashMap<NodeId, NodeLink>>,
    session_last: AtomicU64,
    pub(super) restarting: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single inserts and removals: nothing can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mesh {
    /// Binds the port. Within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind(options: Options, brain: Arc<dyn Brain>) -> Result<Self, Error> {
        let config = server_config(options.tls)?;
        let endpoint_config = endpoint_config(options.reset_key);
        let address = options.listen;
        let bind = |source| Error::Bind { address, source };
        let socket = std::net::UdpSocket::bind(address).map_err(bind)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint =
            Endpoint::new(endpoint_config, Some(config), socket, runtime).map_err(bind)?;
        let bounds = Bounds {
            handshakes_max: options.handshakes_max,
            connections_max: options.connections_max,
            retry_above: options.retry_above,
        };
        let bucket = TokenBucket::new(
            options.handshakes_per_s,
            options.handshakes_burst,
            Instant::now(),
        );
        let counters = Arc::<Counters>::default();
        let shared = Arc::new(Shared {
            brain,
            breaches: Arc::new(Breaches::new(counters.clone())),
            counters,
            handshake_timeout: options.handshake_timeout,
            stuck_after: options.stuck_after,
            enrolments: Semaphore::new(options.enrolments_max),
            sessions: Mutex::default(),
            session_last: AtomicU64::new(0),
            restarting: CancellationToken::new(),
        });
        Ok(Self {
            endpoint,
            shared,
            admission: Admission::new(bounds, bucket),
            handshakes: Arc::new(Semaphore::new(options.handshakes_max)),
            handshakes_max: options.handshakes_max,
            tasks: TaskTracker::new(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// A handle that outlives [`Self::run`].
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            endpoint: self.endpoint.clone(),
            shared: self.shared.clone(),
        }
    }

    /// Serves until `shutdown`; then tells every node when to come back, spread over a time that
    /// grows with their number, and closes.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let incoming = tokio::select! {
                () = shutdown.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            self.admit(incoming);
        }
        self.restart().await;
    }

    fn admit(&mut self, incoming: Incoming) {
        let counters = &self.shared.counters;
        counters.connections.one();
        let load = Load {
            handshakes: self.handshakes_max - self.handshakes.available_permits(),
            connections: self.endpoint.open_connections(),
        };
        let validated = incoming.remote_address_validated();
        match self.admission.judge(validated, load, Instant::now()) {
            Verdict::Accept => {}
            Verdict::Retry => {
                counters.retries.one();
                // Cannot fail: an address that is not validated may always be retried.
                let _ = incoming.retry();
                return;
            }
            Verdict::Refuse => {
                counters.handshakes_shed.one();
                return incoming.refuse();
            }
            Verdict::Ignore => {
                counters.handshakes_shed.one();
                return incoming.ignore();
            }
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            counters.handshakes_shed.one();
            return incoming.refuse();
        };
        self.tasks
            .spawn(serve(self.shared.clone(), incoming, permit));
    }

    async fn restart(self) {
        self.shared.restarting.cancel();
        let links: Vec<NodeLink> = lock(&self.shared.sessions).values().cloned().collect();
        for (i, link) in links.iter().enumerate() {
            let wait = reconnect_in_ms(i);
            // A node that is stuck or gone finds out by itself.
            let _ = link.send(Down::Restarting {
                reconnect_in_ms: wait,
            });
            link.mailbox().finish();
        }
        drop(links);
        self.tasks.close();
        // Each session ends when its node has taken the word.
        if timeout(RESTART_GRACE, self.tasks.wait()).await.is_err() {
            tracing::debug!("some nodes did not take the word of our restart");
        }
        self.endpoint
            .close(VarInt::from_u32(close::RESTARTING), b"restarting");
        let _ = timeout(RESTART_GRACE, self.endpoint.wait_idle()).await;
    }
}

/// When the `i`-th node may come back.
fn reconnect_in_ms(i: usize) -> u32 {
    let spread_ms = (i as u64).saturating_mul(RECONNECT_SPACING_US) / 1000;
    RESTART_MS.saturating_add(u32::try_from(spread_ms).unwrap_or(u32::MAX))
}

impl Handle {
    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        self.shared.counters.snapshot()
    }

    /// Sessions that stand now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        lock(&self.shared.sessions).len()
    }

    /// Handshakes from now on use `tls` (a renewed certificate); sessions go on.
    ///
    /// # Errors
    /// [`Error::Tls`]; then nothing changed.
    pub fn set_tls(&self, tls: rustls::ServerConfig) -> Result<(), Error> {
        self.endpoint.set_server_config(Some(server_config(tls)?));
        Ok(())
    }
}

impl Shared {
    /// The next session's number.
    pub(super) fn next_session(&self) -> u64 {
        self.session_last.fetch_add(1, Relaxed) + 1
    }

    /// Makes `link` its node's session; an older one is closed. `false` when `link` itself is the
    /// older.
    pub(super) fn enter(&self, link: &NodeLink) -> bool {
        let mut sessions = lock(&self.sessions);
        if sessions
            .get(link.node())
            .is_some_and(|known| known.session() > link.session())
        {
            return false;
        }
        let older = sessions.insert(link.node().clone(), link.clone());
        drop(sessions);
        if let Some(older) = older {
            self.counters.sessions_replaced.one();
            older.close(close::REPLACED, "a newer session of this node took over");
        }
        true
    }

    /// Forgets `link`, if it is still its node's session.
    pub(super) fn leave(&self, link: &NodeLink) {
        let mut sessions = lock(&self.sessions);
        if sessions
            .get(link.node())
            .is_some_and(|known| known.session() == link.session())
        {
            sessions.remove(link.node());
        }
    }
}

/// One connection, from its handshake to its end.
///
/// `permit` counts it as a handshake until a session is welcomed or the connection is done.
async fn serve(shared: Arc<Shared>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let handshake = async { incoming.accept()?.await };
    let connection = match timeout(shared.handshake_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            shared.counters.handshakes_failed.one();
            return tracing::debug!(%error, "handshake failed");
        }
        Err(_) => return shared.counters.handshakes_failed.one(),
    };
    match alpn(&connection).as_deref() {
        Some(ALPN_SESSION) => Box::pin(session::serve(shared, connection, permit)).await,
        Some(ALPN_ENROLL) => match shared.enrolments.try_acquire() {
            Ok(_one) => Box::pin(enroll::serve(&shared, connection)).await,
            Err(_) => {
                shared.counters.handshakes_shed.one();
                connection.close(VarInt::from_u32(close::BUSY), b"too many enrolments");
            }
        },
        // rustls refuses any other during the handshake.
        _ => connection.close(VarInt::from_u32(close::PROTOCOL), b"unknown ALPN"),
    }
}

fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?;
    data.protocol
}
