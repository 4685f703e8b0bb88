//! What an idle node's session costs its link: a real agent, enrolled with a token whose address
//! is a UDP relay of ours. Counted are all datagrams both ways, keep-alives and acknowledgements
//! included, with 28 bytes of IPv4 and UDP headers each; not counted are handshake and first
//! minute.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hop3_common::identity::{CaCertificate, JoinToken};
use hop3_tests::Mesh;
use tokio::net::UdpSocket;

use crate::{
    cast, fleet, proc,
    relay::{self, Counts},
    report::Bench,
    stage,
};

/// Until the session is idle.
const SETTLE: Duration = Duration::from_secs(15);

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mut mesh = stage::coordinator();
    let runtime = fleet::runtime()?;
    let front = runtime.block_on(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let token = relayed(&mesh, &front.local_addr()?.to_string())?;
    let counts = Arc::new(Counts::default());
    runtime.spawn(relay::run(
        front,
        mesh.mesh_address.parse()?,
        counts.clone(),
    ));
    mesh.enroll_with(stage::NODE, &token).ok();
    mesh.start_agent(stage::NODE);
    mesh.wait_ready(stage::NODE);
    let (bytes, _) = counts.now();
    anyhow::ensure!(bytes > 0, "the agent does not use the relay");
    proc::pause(SETTLE);
    let window = Duration::from_secs(bench.pick(60, 180));
    if bench.wants("telemetry.idle_bits_per_s") {
        let bits = bits_per_s(&counts, || proc::pause(window));
        bench.report("telemetry.idle_bits_per_s", &[bits], None);
    }
    if bench.wants("telemetry.watched_bits_per_s") {
        let until = Instant::now() + window / 6;
        // Each look keeps the node watched for ten seconds.
        let watch = || {
            while Instant::now() < until {
                mesh.hop3(&["node", "show", stage::NODE]).ok();
                proc::pause(Duration::from_secs(4));
            }
        };
        bench.report(
            "telemetry.watched_bits_per_s",
            &[bits_per_s(&counts, watch)],
            None,
        );
    }
    Ok(())
}

fn bits_per_s(counts: &Counts, window: impl FnOnce()) -> f64 {
    let (begun, (before, _)) = (Instant::now(), counts.now());
    window();
    let (after, _) = counts.now();
    cast::figure(after - before) * 8.0 / begun.elapsed().as_secs_f64()
}

/// A fresh join token, with `address` as the coordinator's.
fn relayed(mesh: &Mesh, address: &str) -> Result<String> {
    let line = mesh
        .hop3(&["node", "token", "create", "--tier", "edge", "--quiet"])
        .ok();
    let token: JoinToken = line.trim().parse()?;
    let ca = std::fs::read_to_string(mesh.path("coordinator/ca.pem")).context("ca.pem")?;
    let ca = CaCertificate::from_pem(&ca)?;
    let secret = token.secret().clone();
    Ok(JoinToken::mint(token.id(), secret, &ca, vec![address.parse()?])?.to_string())
}
