//! What it costs that nothing acknowledged is lost, and how fast it goes on: changes per second at
//! each durability, failover, a start without the coordinator.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hop3_tests::{Mesh, Options, web::block_on};

use super::services::{apply, push};
use crate::{cast, figures, http::Api, report::Bench, slowdisk, stage, wrk};

/// The case with a slow disk.
const SLOW: &str = "node_10ms";
/// Connections of the load.
const CONNECTIONS: [u32; 2] = [1, 64];
/// Longest that anything here may take.
const LATE: Duration = Duration::from_secs(60);
/// Between attempts.
const AGAIN: Duration = Duration::from_millis(2);

pub(super) fn run(bench: &Bench) -> Result<()> {
    if bench.wants("commit.") {
        for level in ["memory", "node", "replicated"] {
            if wants_commits(bench, level) {
                commits(bench, &stage::mesh(), level, level)?;
            }
        }
        if wants_commits(bench, SLOW) {
            let library = slowdisk::build()?;
            let mesh = stage::mesh_preloading(library.path());
            library.expect_in(stage::agent_pid(&mesh)?)?;
            let p50_ms = commits(bench, &mesh, "node", SLOW)?;
            // Each answer waits for a sync: faster, and the delay was not there.
            anyhow::ensure!(
                p50_ms >= slowdisk::DELAY_MS,
                "half of the answers took less than {p50_ms} ms: the agent's syncs were not slowed"
            );
        }
    }
    if bench.wants("failover.") {
        for lease in ["1s", "3s"] {
            failover(bench, lease)?;
        }
    }
    if bench.wants("offline_boot.") {
        offline_boot(bench)?;
    }
    Ok(())
}

fn wants_commits(bench: &Bench, case: &str) -> bool {
    let names = ["per_s", "p99_ms", "p50_ms"];
    names
        .map(|name| format!("commit.{name}.{case}"))
        .iter()
        .any(|name| bench.wants(name))
}

/// Changes of a counter through the gateway, each acknowledged at its level. The median latency
/// over one connection.
fn commits(bench: &Bench, mesh: &Mesh, level: &str, case: &str) -> Result<f64> {
    push(mesh, "counters");
    let spec = format!("state: keyed\n  shards: 4\n  durability: {level}");
    apply(mesh, "counters", "counters", &spec);
    let mut alone = f64::NAN;
    let (url, token) = (
        format!("{}/counters/bench/add?n=1", mesh.gateway),
        mesh.token(),
    );
    let window = Duration::from_secs(bench.pick(2, 8));
    for connections in CONNECTIONS {
        let (mut per_s, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.pick(1, 5) {
            let seen = wrk::post(&url, Some(&token), connections, window)?;
            anyhow::ensure!(seen.errors == 0, "{} answers were not good", seen.errors);
            per_s.push(seen.per_s);
            p50.push(seen.p50_ms);
            p99.push(seen.p99_ms);
        }
        if connections == 1 {
            alone = figures::median(&p50);
            bench.report(&format!("commit.p50_ms.{case}"), &p50, None);
        } else {
            bench.report(&format!("commit.per_s.{case}"), &per_s, None);
            bench.report(&format!("commit.p99_ms.{case}"), &p99, None);
        }
    }
    Ok(alone)
}

/// From SIGKILL of the owner's agent, which stays away, to the next good answer.
fn failover(bench: &Bench, lease: &str) -> Result<()> {
    const NODES: [&str; 2] = ["edge-1", "edge-2"];
    let mut mesh = stage::coordinator();
    for node in NODES {
        mesh.enroll(node, "edge").ok();
        mesh.start_agent(node);
        mesh.wait_ready(node);
    }
    push(&mesh, "counters");
    let spec = format!("state: single\n  durability: replicated\n  lease: {lease}");
    apply(&mesh, "counters", "counters", &spec);
    let api = Api::at(&mesh, &mesh.gateway)?;
    let add = api.request("POST", "/counters/a/add?n=1", "text/plain", b"");
    let mut times = Vec::new();
    let mut expected = 1;
    for _ in 0..bench.pick(3, 10) {
        block_on(async { api.connect().await?.good(&add).await })?;
        expected += 1;
        let owner = mesh.node_of("counters", 0);
        let begun = Instant::now();
        mesh.kill_agent(&owner);
        let value = answered(&api, &add, begun)?;
        times.push(cast::ms(begun.elapsed()));
        // An attempt whose answer was lost may have counted.
        anyhow::ensure!(
            value >= expected,
            "{value} after {expected} acknowledged changes"
        );
        expected = value + 1;
        mesh.start_agent(&owner);
        mesh.wait_ready(&owner);
    }
    bench.report(&format!("failover.ms.{lease}"), &times, None);
    Ok(())
}

/// Asks until there is a good answer.
fn answered(api: &Api, request: &bytes::Bytes, begun: Instant) -> Result<u64> {
    loop {
        let answer = block_on(async { api.connect().await?.good(request).await });
        if let Ok(answer) = answer {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            return text.trim().parse().with_context(|| format!("`{text}`"));
        }
        if begun.elapsed() > LATE {
            bail!("it did not go on within {LATE:?}");
        }
        std::thread::sleep(AGAIN);
    }
}

/// From the start of an agent without a coordinator to the first good answer of a service with its
/// state, at the node's own gateway.
fn offline_boot(bench: &Bench) -> Result<()> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut mesh = Mesh::with(Options {
        nodes: vec![(stage::NODE, "edge")],
        agent_config: format!("[gateway]\nlisten = \"{free}\"\n"),
        ..Options::default()
    });
    push(&mesh, "counters");
    apply(&mesh, "counters", "counters", "state: single");
    mesh.coordinator.kill();
    let token = std::fs::read_to_string(mesh.path("edge-1/gateway.token"))?;
    let mut times = Vec::new();
    for n in 1..=bench.pick(5, 20) {
        mesh.kill_agent(stage::NODE);
        let begun = Instant::now();
        mesh.start_agent(stage::NODE);
        let value = served(free, token.trim(), begun)?;
        times.push(cast::ms(begun.elapsed()));
        anyhow::ensure!(value == n, "{value} is not {n}");
    }
    bench.report("offline_boot.first_answer_ms", &times, None);
    Ok(())
}

/// Adds 1 at a node's own gateway, once it is there.
fn served(address: SocketAddr, token: &str, begun: Instant) -> Result<u64> {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<String> {
        let mut socket = std::net::TcpStream::connect(address)?;
        write!(
            socket,
            "POST /counters/a/add?n=1 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer \
             {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    loop {
        // Before the instance is there nothing is done: only a 200 has counted.
        if let Ok(answer) = ask()
            && answer.starts_with("HTTP/1.1 200")
        {
            let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
            return body.trim().parse().with_context(|| format!("`{answer}`"));
        }
        if begun.elapsed() > LATE {
            bail!("the node did not serve within {LATE:?}");
        }
        std::thread::sleep(AGAIN);
    }
}
