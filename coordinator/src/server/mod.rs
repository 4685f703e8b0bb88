//! Start and stop. Starting *is* recovery: open the store, load the records, bind, say ready.

mod first;
mod ready;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use axum_server::tls_rustls::RustlsConfig;
use hop3_common::{
    chunks::BlobStore,
    id::UnixMs,
    identity::{CertificateAuthority, CoordinatorAddr, NodeKey, tls},
    store::{LocalStore, MasterKey, Options, crypt::Purpose},
};
use rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;

pub use first::admin_token_path;
use ready::ReadyFile;

use crate::{
    Core, Settings, api,
    config::{Advertised, Config},
    mesh::{self, Mesh},
    records::Records,
    services::Replicas,
};

/// Life of the coordinator's own certificates: new at each start, and renewed while it runs, all of
/// them.
const OWN_CERTIFICATE_TTL_S: u64 = 30 * 24 * 3600;
/// Cache of the record store: all hot records are in memory anyway.
const STORE_CACHE_BYTES: u64 = 4 << 20;

/// Runs the coordinator until `shutdown`.
///
/// # Errors
/// What keeps it from starting, with what to do.
pub async fn run(
    config: Config,
    ready_file: Option<std::path::PathBuf>,
    shutdown: CancellationToken,
) -> Result<()> {
    let began = Instant::now();
    let (records, blobs, replicas, reset_key) = open(&config).await?;
    let first = first::start(&records, &config).await?;
    let settings = Settings {
        lost_after_ms: config.lost_after_ms,
        certificate_ttl_s: config.certificate_ttl_s,
        artifact_bytes_max: config.artifact_bytes_max,
        strategy: config.strategy.clone(),
    };
    let api_listener = TcpListener::bind(config.api_listen)
        .with_context(|| format!("cannot listen on TCP {}: free the port", config.api_listen))?;
    let api_address = api_listener.local_addr().context("the API's socket")?;
    let gateway_listener = TcpListener::bind(config.gateway_listen).with_context(|| {
        let address = config.gateway_listen;
        format!("cannot listen on TCP {address} for services: free the port")
    })?;
    let gateway_address = gateway_listener
        .local_addr()
        .context("the gateway's socket")?;
    let names = api_names(&config, api_address.ip());
    let now = UnixMs::now();
    let own = Own::issue(&first.ca, &names, now)?;
    // One certificate for API and gateway, renewed for both at once.
    let api_tls = RustlsConfig::from_config(Arc::new(own.api_tls(&first.ca)?));
    let mesh_tls = own.mesh_tls(&first.ca)?;
    let core = Core::open(records, blobs, replicas, first.ca, settings).await?;
    let mut options = mesh::Options::new(config.mesh_listen, mesh_tls);
    options.reset_key = Some(reset_key);
    let mesh = Mesh::bind(options, core.clone())?;
    let mesh_address = mesh.local_addr().context("the mesh's socket")?;
    core.set_advertised(advertised(&config.advertise, mesh_address));

    let handle = mesh.handle();
    let mesh = tokio::spawn(mesh.run(shutdown.clone()));
    let api = tokio::spawn(api::serve(
        core.clone(),
        api_listener,
        api_tls.clone(),
        shutdown.clone(),
    ));
    let gateway = tokio::spawn(api::serve_http(
        core.gateway().http(),
        gateway_listener,
        api_tls.clone(),
        shutdown.clone(),
    ));
    let sweep = tokio::spawn({
        let (core, shutdown) = (core.clone(), shutdown.clone());
        async move { core.sweep(shutdown).await }
    });
    let renewal = tokio::spawn(renew_own(
        core.clone(),
        (handle, api_tls),
        names,
        shutdown.clone(),
    ));
    ReadyFile {
        mesh: mesh_address,
        api: format!("https://{}", dialable(api_address)),
        gateway: format!("https://{}", dialable(gateway_address)),
        ca: first.ca_path,
        token: first.token_path,
        pid: std::process::id(),
    }
    .publish(ready_file.as_deref())?;
    let start_ms = began.elapsed().as_millis() as u64;
    tracing::info!(mesh = %mesh_address, api = %api_address, gateway = %gateway_address, start_ms, "ready");

    // Whatever ends first ends all: half a coordinator would only mislead.
    let (mut api, mut gateway) = (api, gateway);
    let ended = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = &mut api => Some(("the API", ended)),
        ended = &mut gateway => Some(("the gateway", ended)),
    };
    shutdown.cancel();
    if ended.is_none() {
        api.await.context("the API")??;
        gateway.await.context("the gateway")??;
    }
    mesh.await.context("the mesh")?;
    sweep.await.context("the sweep")?;
    renewal.abort();
    tracing::info!("stopped");
    match ended {
        Some((what, ended)) => ended
            .context(what)?
            .with_context(|| format!("{what} ended")),
        None => Ok(()),
    }
}

/// Makes a new admin token. Not while the coordinator runs: it holds the store.
///
/// # Errors
/// [`hop3_common::store::Error::InUse`] while it runs; storage; the file system.
pub async fn reset(config: &Config) -> Result<std::path::PathBuf> {
    let (records, ..) = open(config).await?;
    first::reset_token(&records, &config.data_dir).await
}

/// Records, blobs, and the key of the mesh's stateless resets.
async fn open(config: &Config) -> Result<(Records, Arc<BlobStore>, Replicas, [u8; 32])> {
    let (dir, key_file) = (config.data_dir.clone(), config.key_file.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let key = MasterKey::load_or_create(&key_file)?;
        let options = Options {
            cache_bytes: STORE_CACHE_BYTES,
            ..Options::default()
        };
        let (store, recovery) = LocalStore::open(&dir.join("store"), &key, options)?;
        let blobs = BlobStore::open(&dir.join("blobs"), &key)?;
        tracing::info!(revision = %recovery.revision, index = ?recovery.index, "store opened");
        let replicas = Replicas::open(&dir.join("replicas"), &key)?;
        let reset_key = *key.subkey(Purpose::MeshReset);
        let records = Records::new(Arc::new(store));
        anyhow::Ok((records, Arc::new(blobs), replicas, reset_key))
    });
    opened
        .await
        .context("opening the store")?
        .context("cannot open the store")
}

/// The coordinator's own key and certificate, new at each start.
struct Own {
    key: NodeKey,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Own {
    fn issue(ca: &CertificateAuthority, names: &[ServerName<'_>], now: UnixMs) -> Result<Self> {
        let key = NodeKey::generate()?;
        let issued = ca.issue_coordinator(names, &key.public_key(), now, OWN_CERTIFICATE_TTL_S)?;
        Ok(Self {
            key,
            certificate: issued.der,
        })
    }

    fn chain(&self, ca: &CertificateAuthority) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        vec![self.certificate.clone(), ca.certificate().der().clone()]
    }

    fn api_tls(&self, ca: &CertificateAuthority) -> Result<rustls::ServerConfig> {
        Ok(tls::api_server(self.chain(ca), self.key.to_tls())?)
    }

    fn mesh_tls(&self, ca: &CertificateAuthority) -> Result<rustls::ServerConfig> {
        let time = tls::TlsTime::new(UnixMs::now);
        Ok(tls::mesh_server(
            ca.certificate(),
            self.certificate.clone(),
            &self.key,
            time,
        )?)
    }
}

/// Renews the certificate of mesh, API and gateway at half of its life, for a coordinator that runs
/// for months. Connections that stand keep the one they began with.
async fn renew_own(
    core: Arc<Core>,
    (mesh, api): (mesh::Handle, RustlsConfig),
    names: Vec<ServerName<'static>>,
    shutdown: CancellationToken,
) {
    let half = std::time::Duration::from_secs(OWN_CERTIFICATE_TTL_S / 2);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(half) => {}
        }
        let ca = core.certificate_authority();
        let renewed = Own::issue(ca, &names, UnixMs::now()).and_then(|own| {
            mesh.set_tls(own.mesh_tls(ca)?)?;
            api.reload_from_config(Arc::new(own.api_tls(ca)?));
            Ok(())
        });
        match renewed {
            Ok(()) => tracing::info!("own certificate renewed"),
            Err(error) => tracing::error!(%error, "own certificate not renewed: restart in time"),
        }
    }
}

/// Names of the API's certificate: the local ones, the one listened on, the advertised, the
/// configured.
fn api_names(config: &Config, listen: IpAddr) -> Vec<ServerName<'static>> {
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let shown = [listen]
        .into_iter()
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string());
    let outward = outward_ip().map(|ip| ip.to_string());
    let hosts = config
        .advertise
        .iter()
        .map(|advertised| advertised.host.clone());
    let all = local.into_iter().chain(shown).chain(outward).chain(hosts);
    let mut names: Vec<ServerName<'static>> = all
        .filter_map(|name| ServerName::try_from(name).ok())
        .collect();
    names.extend(config.api_names.iter().cloned());
    let mut unique: Vec<ServerName<'static>> = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

/// What join tokens say: what is configured, else the address listened on, else the one that this
/// machine shows to the world.
fn advertised(configured: &[Advertised], mesh: SocketAddr) -> Vec<CoordinatorAddr> {
    let port = mesh.port();
    if !configured.is_empty() {
        return configured
            .iter()
            .filter_map(|advertised| advertised.address(port))
            .collect();
    }
    let ip = Some(mesh.ip()).filter(|ip| !ip.is_unspecified());
    let ip = ip
        .or_else(outward_ip)
        .unwrap_or(IpAddr::from([127, 0, 0, 1]));
    SocketAddr::new(ip, port)
        .to_string()
        .parse()
        .into_iter()
        .collect()
}

/// The source address of packets to the outside. Sends none.
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // A documentation address (RFC 5737): only the route to it is looked up.
    socket.connect(("192.0.2.1", 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// An address that can be dialled on this machine.
fn dialable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()))
        }
        _ => address,
    }
}
