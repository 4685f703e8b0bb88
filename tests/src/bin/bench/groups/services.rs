//! What services cost and how fast they come: apply to first answer, memory of an instance,
//! checkpoints, restart with state.

use std::time::Instant;

use anyhow::{Context as _, Result};
use hop3_tests::{Mesh, guest, web::block_on};
use serde_json::Value;

use super::coldstart::variants;
use crate::{cast, http::Api, proc, report::Bench, stage};

/// Instances whose memory is looked at, in services of [`REPLICAS`].
const SERVICES: u32 = 4;
const REPLICAS: u32 = 250;

/// Pushes a guest under its name.
pub(super) fn push(mesh: &Mesh, name: &str) {
    mesh.hop3(&["artifact", "push", &guest(name).display().to_string()])
        .ok();
}

/// Applies a service and waits until it is ready.
pub(super) fn apply(mesh: &Mesh, name: &str, module: &str, spec: &str) {
    let text = format!("kind: Service\nname: {name}\nspec:\n  module: {module}\n  {spec}\n");
    mesh.apply(&text).ok();
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    if bench.wants("apply.") {
        first_answer(bench)?;
    }
    if bench.wants("service.") {
        instances(bench)?;
    }
    if bench.wants("checkpoint.") || bench.wants("restart.") {
        for mib in [1, 64] {
            state(bench, mib)?;
        }
    }
    Ok(())
}

/// From the start of `hop3 apply` to the first good answer at the gateway, for a module that the
/// coordinator has and no agent has seen.
fn first_answer(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    let api = Api::at(&mesh, &mesh.gateway)?;
    let mut times = Vec::new();
    for (n, path) in variants(&mesh, "echo", "svc", bench.pick(5, 15))?
        .iter()
        .enumerate()
    {
        mesh.hop3(&["artifact", "push", path]).ok();
        let name = std::path::Path::new(path).file_stem().unwrap_or_default();
        let request = api.request("GET", &format!("/hello-{n}/"), "text/plain", b"");
        let begun = Instant::now();
        apply(
            &mesh,
            &format!("hello-{n}"),
            &name.to_string_lossy(),
            "replicas: 1",
        );
        let answer = block_on(async { api.connect().await?.good(&request).await })?;
        times.push(cast::ms(begun.elapsed()));
        anyhow::ensure!(answer.body == b"hello".as_slice(), "a wrong answer");
    }
    bench.report("apply.first_answer_ms", &times, None);
    Ok(())
}

/// Memory of idle instances that have answered once.
fn instances(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    let pid = stage::agent_pid(&mesh)?;
    push(&mesh, "echo");
    let spec = "resources: {cpu: 1m, memory: 64KiB}\n  replicas: ";
    apply(&mesh, "first", "echo", &format!("{spec}1"));
    let before = crate::figures::median(&proc::settled_pss_mib(pid)?);
    for n in 0..SERVICES {
        apply(
            &mesh,
            &format!("many-{n}"),
            "echo",
            &format!("{spec}{REPLICAS}"),
        );
    }
    let after = proc::settled_pss_mib(pid)?;
    let count = f64::from(SERVICES * REPLICAS);
    let kib: Vec<f64> = after
        .iter()
        .map(|mib| (mib - before) * 1024.0 / count)
        .collect();
    bench.report("service.kib_per_instance", &kib, None);
    let per_gib: Vec<f64> = kib.iter().map(|kib| 1024.0 * 1024.0 / kib).collect();
    bench.report("service.instances_per_gib", &per_gib, None);
    let threads = proc::status(pid, "Threads").context("no thread count")?;
    bench.report("service.threads", &[cast::figure(threads)], None);
    Ok(())
}

/// A service with this much state: checkpoints on request, and a restart after SIGKILL.
fn state(bench: &Bench, mib: u32) -> Result<()> {
    let mut mesh = stage::mesh();
    filled(&mesh, mib)?;
    let api = Api::of(&mesh)?;
    let path = "/v1/services/counters/checkpoint";
    let request = api.request("POST", path, "application/json", b"");
    let (mut times, mut sizes) = (Vec::new(), Vec::new());
    let gateway = Api::at(&mesh, &mesh.gateway)?;
    let touch = gateway.request("POST", "/counters/a/touch?kib=64", "text/plain", b"");
    for _ in 0..bench.pick(3, 10) {
        block_on(async { gateway.connect().await?.good(&touch).await })?;
        let begun = Instant::now();
        let answer = block_on(async { api.connect().await?.good(&request).await })?;
        times.push(cast::ms(begun.elapsed()));
        let view: Value = serde_json::from_slice(&answer.body)?;
        sizes.push(checkpoint_mib(&view)?);
    }
    bench.report(&format!("checkpoint.ms.{mib}MiB"), &times, None);
    bench.report(&format!("checkpoint.mib.{mib}MiB"), &sizes, None);
    let ask = gateway.request("GET", "/counters/a", "text/plain", b"");
    let mut restarts = Vec::new();
    for _ in 0..bench.pick(3, 10) {
        mesh.kill_agent(stage::NODE);
        let begun = Instant::now();
        mesh.start_agent(stage::NODE);
        // The request waits at the gateway until the instance is back.
        block_on(async { gateway.connect().await?.good(&ask).await })?;
        restarts.push(cast::ms(begun.elapsed()));
    }
    bench.report(
        &format!("restart.first_answer_ms.{mib}MiB"),
        &restarts,
        None,
    );
    Ok(())
}

/// A `counters` service whose memory holds this much.
pub(super) fn filled(mesh: &Mesh, mib: u32) -> Result<()> {
    push(mesh, "counters");
    let spec = "state: single\n  resources: {memory: 128MiB}\n  limits: {memory: 256MiB, \
                deadline: 60s, cpu_time: 10s}";
    apply(mesh, "counters", "counters", spec);
    let gateway = Api::at(mesh, &mesh.gateway)?;
    let path = format!("/counters/a/fill?mib={mib}");
    let fill = gateway.request("POST", &path, "text/plain", b"");
    block_on(async { gateway.connect().await?.good(&fill).await })?;
    Ok(())
}

fn checkpoint_mib(view: &Value) -> Result<f64> {
    let parts = view["parts"]
        .as_array()
        .or_else(|| view["checkpoint"]["parts"].as_array());
    let parts = parts.with_context(|| format!("no parts in {view}"))?;
    let bytes = parts.iter().filter_map(|part| part["bytes"].as_f64());
    Ok(bytes.sum::<f64>() / f64::from(1 << 20))
}
