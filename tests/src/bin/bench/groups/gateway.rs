//! Requests through the gateway: wrk → HTTPS → coordinator → QUIC → agent → a service's instance,
//! and back; beside it nginx with TLS answering the same constant by itself, in turns, and, where
//! it is there, `wasmtime serve` answering it with a component.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};
use hop3_tests::Mesh;

use super::services::{apply, push};
use crate::{
    report::{Bench, say},
    stage, wrk,
};

/// Figures of one load, run after run.
#[derive(Default)]
struct Runs {
    per_s: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

impl Runs {
    fn add(&mut self, seen: &wrk::Seen) -> Result<()> {
        anyhow::ensure!(seen.errors == 0, "{} answers were not good", seen.errors);
        self.per_s.push(seen.per_s);
        self.p50_ms.push(seen.p50_ms);
        self.p99_ms.push(seen.p99_ms);
        Ok(())
    }
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    push(&mesh, "echo");
    apply(&mesh, "hello", "echo", "limits: {deadline: 30s}");
    push(&mesh, "counters");
    apply(&mesh, "counters", "counters", "state: keyed\n  shards: 4");
    let dir = tempfile::tempdir()?;
    let (cert, key) = certificate(&mesh, dir.path())?;
    let (_nginx, peer) = wrk::nginx(dir.path(), &cert, &key)?;
    // Our own figures do not depend on it.
    let wasmtime = wrk::wasmtime_serve(dir.path()).unwrap_or_else(|error| {
        say(format_args!("measured without it: {error:#}"));
        None
    });
    let (url, token) = (format!("{}/hello/", mesh.gateway), mesh.token());
    let window = Duration::from_secs(bench.pick(2, 8));
    for connections in [1, 64, 512] {
        let (mut ours, mut nginx, mut served) = (Runs::default(), Runs::default(), Runs::default());
        for _ in 0..bench.pick(1, 5) {
            wrk::run(&url, Some(&token), connections, Duration::from_secs(1))?;
            ours.add(&wrk::run(&url, Some(&token), connections, window)?)?;
            nginx.add(&wrk::run(&peer, None, connections, window)?)?;
            if let Some((_, url)) = &wasmtime {
                served.add(&wrk::run(url, None, connections, window)?)?;
            }
        }
        let median = |runs: &[f64]| Some(crate::figures::median(runs));
        let name = |what: &str| format!("gateway.{what}.{connections}");
        bench.report(&name("p50_ms"), &ours.p50_ms, median(&nginx.p50_ms));
        bench.report(&name("p99_ms"), &ours.p99_ms, median(&nginx.p99_ms));
        bench.report(&name("per_s"), &ours.per_s, median(&nginx.per_s));
        // Nothing without it: the median of no runs is not reported.
        bench.report(&name("wasmtime_serve_p50_ms"), &served.p50_ms, None);
        bench.report(&name("wasmtime_serve_p99_ms"), &served.p99_ms, None);
        bench.report(&name("wasmtime_serve_per_s"), &served.per_s, None);
    }
    // The answer of a changing request waits for the disk.
    let url = format!("{}/counters/bench/add?n=1", mesh.gateway);
    for connections in [1, 64] {
        let mut runs = Runs::default();
        for _ in 0..bench.pick(1, 5) {
            runs.add(&wrk::post(&url, Some(&token), connections, window)?)?;
        }
        bench.report(
            &format!("gateway.durable_p50_ms.{connections}"),
            &runs.p50_ms,
            None,
        );
        bench.report(
            &format!("gateway.durable_per_s.{connections}"),
            &runs.per_s,
            None,
        );
    }
    Ok(())
}

/// A self-made certificate of the same kind as the gateway's (ECDSA P-256).
fn certificate(
    mesh: &Mesh,
    dir: &std::path::Path,
) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let (cert, key) = (dir.join("nginx.pem"), dir.join("nginx.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "1", "-subj", "/CN=127.0.0.1", "-out"])
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .stderr(std::fs::File::create(mesh.path("openssl.log"))?)
        .status()
        .context("openssl does not run: apt-get install openssl")?;
    anyhow::ensure!(made.success(), "openssl made no certificate");
    Ok((cert, key))
}
