//! The whole agent: opens what is stored, starts every part, stops them in order.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hop3_common::{
    chunks::{self, BlobStore},
    store::disk::OsDisk,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    VERSION,
    blobs::Blobs,
    config::Config,
    exec::{self, Exec},
    identity::{self, Clock, DataDir, Member},
    services::{kept::Kept, local, outgoing::Outgoing},
    session::{self, Session},
    supervisor::{
        Executor, Supervisor,
        ledger::{self, Ledger},
    },
    telemetry::{self, Lag, Own, Sampler, Telemetry},
};

/// Facts are looked at again after this time.
const FACTS_EVERY: Duration = Duration::from_secs(600);

/// Why the agent cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's identity.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The store is broken; a restart recovers it.
    #[error("the agent's store: {0}")]
    Store(#[from] hop3_common::store::Error),
    /// What this node owns.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The blobs.
    #[error("the agent's blobs: {0}")]
    Blobs(#[from] chunks::Error),
    /// The executor.
    #[error("the agent's runtime: {0}")]
    Exec(#[from] exec::StartError),
    /// The gateway of this machine.
    #[error("the local gateway at {listen} cannot start: {source}")]
    Gateway {
        /// `gateway.listen`.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// A part of the agent panicked.
    #[error("a part of the agent panicked; see the log")]
    Panicked,
}

/// Runs the agent of an enrolled node until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error`].
pub async fn run(config: Config) -> Result<(), Error> {
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        asked.cancel();
    });
    let data = DataDir::open(&config.data_dir)?;
    Box::pin(run_until(config, data, shutdown)).await
}

/// Runs the agent in an open data directory until `shutdown`.
///
/// # Errors
/// [`Error`].
pub async fn run_until(
    config: Config,
    data: DataDir,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let data = Arc::new(data);
    let member = Member::load(&data).await?;
    let clock = Clock::load(data.store.clone()).await?;
    let store = open_blobs(&config.data_dir, &data)?;
    let (link, seen_link) = watch::channel(None);
    let blobs = Blobs::new(store, seen_link.clone(), config.blob_cache.0);
    let kept = Kept::load(data.store.clone(), blobs.clone()).await?;
    let (outgoing, outgoing_task) = Outgoing::new(seen_link);
    let memory_bytes = telemetry::memory_bytes();
    let keep_alive = Duration::from_millis(config.keep_alive.0);
    let exec = Exec::new(
        &config,
        &data.master,
        blobs.clone(),
        kept,
        outgoing,
        memory_bytes,
    )?;
    let ledger = Ledger::open(Arc::new(OsDisk), &data.path, &data.master)?;
    let (supervisor, handle) = Supervisor::open(data.store.clone(), ledger).await?;
    exec.connect(handle.clone());
    exec.services().sweep(&supervisor.held()).await?;
    tracing::info!(node = %member.node, version = VERSION, "agent started");

    let gateway = gateway(&config, &exec).await?;
    let mut running = tokio::spawn(supervisor.run(Arc::new(exec.clone()) as Arc<dyn Executor>));
    let telemetry = Telemetry::default();
    let lag = Lag::default();
    let own = {
        let (exec, lag) = (exec.clone(), lag.clone());
        move || Own {
            instances: u32::try_from(exec.running()).unwrap_or(u32::MAX),
            models_rss_bytes: exec.models_rss_bytes(),
            loop_delay_p99_ms: lag.p99_ms(),
        }
    };
    let (facts, seen_facts) = watch::channel(telemetry::facts(&config, exec.engine_hash()));
    let helpers = [
        tokio::spawn(
            telemetry
                .clone()
                .sample(Sampler::new(&config.data_dir), own),
        ),
        tokio::spawn(blobs.keep_quota(handle.clone(), {
            let services = exec.services().clone();
            move |digest: &_| services.references().contains(digest)
        })),
        tokio::spawn(exec.services().clone().tick()),
        tokio::spawn(outgoing_task.run()),
        tokio::spawn(exec.clone().tend()),
        tokio::spawn(lag.probe()),
        tokio::spawn(watch_facts(config, exec.engine_hash(), facts)),
    ];
    let session = Session::new(session::Options {
        keep_alive,
        data,
        member,
        clock,
        supervisor: handle,
        exec: exec.clone(),
        facts: seen_facts,
        telemetry,
        link,
        shutdown: shutdown.clone(),
    });
    let mut session = tokio::spawn(session.run());
    let ended = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = &mut running => match ended {
            Ok(ended) => ended.map_err(Error::Store),
            Err(_) => Err(Error::Panicked),
        },
        _ = &mut session => Err(Error::Panicked),
    };
    shutdown.cancel();
    exec.leave().await;
    if ended.is_ok() {
        let _ = session.await;
    }
    // What is durable is all that counts from here on.
    running.abort();
    helpers.iter().for_each(JoinHandle::abort);
    if let Some(gateway) = gateway {
        gateway.abort();
    }
    tracing::info!("agent stopped");
    ended
}

/// Lets programs of this machine in, if the configuration says where.
async fn gateway(config: &Config, exec: &Exec) -> Result<Option<JoinHandle<()>>, Error> {
    let Some(listen) = config.gateway else {
        return Ok(None);
    };
    let failed = |source| Error::Gateway { listen, source };
    let token = local::token(&config.data_dir).map_err(failed)?;
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let listen = listener.local_addr().map_err(failed)?;
    tracing::info!(%listen, "services are served to this machine");
    let services = exec.services().clone();
    Ok(Some(tokio::spawn(async move {
        if let Err(error) = local::serve(listener, services, &token).await {
            tracing::error!(%error, "the local gateway ended");
        }
    })))
}

fn open_blobs(dir: &Path, data: &DataDir) -> Result<BlobStore, Error> {
    Ok(BlobStore::open(&dir.join("blobs"), &data.master)?)
}

/// Looks at the facts now and then, so that a changed machine is noticed.
async fn watch_facts(
    config: Config,
    engine: String,
    facts: watch::Sender<hop3_common::wire::NodeFacts>,
) {
    loop {
        tokio::time::sleep(FACTS_EVERY).await;
        let now = telemetry::facts(&config, engine.clone());
        facts.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}
