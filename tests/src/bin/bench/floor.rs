//! The raw floor of an invocation: a server with the coordinator's HTTP and TLS stack and a
//! certificate of the same kind, which answers the body that it was sent.

use std::{net::TcpListener, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, routing::post};
use hop3_common::{
    id::{MeshId, UnixMs},
    identity::{CertificateAuthority, NodeKey, tls},
};
use hop3_tests::{Daemon, within};
use rustls::pki_types::ServerName;

use crate::http::Api;

/// Life of the floor's certificate.
const CERTIFICATE_TTL_S: u64 = 24 * 3600;

/// Starts the floor in a process of its own.
pub(crate) fn start(dir: &Path) -> Result<(Daemon, Api)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("floor").arg("--dir").arg(dir);
    let daemon = Daemon::start(command, &dir.join("floor.log"));
    let ready = within(
        std::time::Duration::from_secs(10),
        "the floor listens",
        || {
            std::fs::read_to_string(dir.join("address"))
                .ok()?
                .parse()
                .ok()
        },
    );
    let ca = std::fs::read_to_string(dir.join("floor.pem")).context("floor.pem")?;
    Ok((daemon, Api::new(ready, &ca, "none")?))
}

/// Serves for ever.
pub(crate) fn serve(dir: &Path) -> Result<()> {
    let now = UnixMs::now();
    let mesh: MeshId = "floor".parse()?;
    let ca = CertificateAuthority::create(&mesh, now)?;
    let key = NodeKey::generate()?;
    let names = [ServerName::try_from("127.0.0.1")?];
    let issued = ca.issue_coordinator(&names, &key.public_key(), now, CERTIFICATE_TTL_S)?;
    let config = tls::api_server(vec![issued.der], key.to_tls())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    std::fs::write(dir.join("floor.pem"), ca.certificate().to_pem())?;
    // In place only when it is whole.
    std::fs::write(dir.join("address.new"), listener.local_addr()?.to_string())?;
    std::fs::rename(dir.join("address.new"), dir.join("address"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
        let acceptor = axum_server::tls_rustls::RustlsAcceptor::new(config)
            .acceptor(axum_server::accept::NoDelayAcceptor::new());
        let echo = post(|body: Bytes| async move { body });
        let routes = Router::new().route("/v1/invoke", echo);
        let server = axum_server::from_tcp(listener)?.acceptor(acceptor);
        server.serve(routes.into_make_service()).await?;
        Ok(())
    })
}
