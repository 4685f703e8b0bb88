//! Cold starts: a module whose native code is on the agent's disk, in an agent process that has
//! not run it since its own start; and compilation of a module never seen.
//!
//! Copies of a module that differ in a custom section are different modules to every cache. All
//! are run once, which compiles them; then the agent is stopped and started, and each runs once
//! more, as a task. `coldstart.ms` is the task's own record: microseconds to load the code from
//! disk (MAC checked, deserialised) and microseconds from start to end of the guest. What it
//! leaves out (placement, network, reporting) is in `task.run_ms`.

use std::time::Instant;

use anyhow::{Context as _, Result};
use hop3_tests::{Mesh, guest};
use serde_json::Value;

use crate::{cast, fleet, http::Api, report::Bench, stage};

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mut mesh = stage::mesh();
    let count = bench.pick(5, 15);
    let small = variants(&mesh, "echo_small", "task", count)?;
    let large = variants(&mesh, "wordcount", "task", count)?;
    let called = variants(&mesh, "echo_small", "call", count)?;
    let mut compiled = Vec::new();
    for path in small.iter().chain(&large) {
        let task = run_task(&mesh, path)?;
        if large.contains(path) {
            compiled.push(load_ms(&task)?);
        }
    }
    bench.report("coldstart.compile_ms", &compiled, None);
    for path in &called {
        mesh.hop3(&["artifact", "push", path]).ok();
    }
    let runtime = fleet::runtime()?;
    runtime.block_on(call_all(&Api::of(&mesh)?, &called))?;
    mesh.agents.get_mut(stage::NODE).context("no agent")?.stop();
    mesh.start_agent(stage::NODE);
    mesh.wait_ready(stage::NODE);
    for (metric, paths) in [("coldstart.ms", &small), ("coldstart.wordcount_ms", &large)] {
        let mut times = Vec::new();
        for path in paths {
            let task = run_task(&mesh, path)?;
            times.push(load_ms(&task)? + number(&task["result"]["usage"]["wall_us"])? / 1e3);
        }
        bench.report(metric, &times, None);
    }
    let times = runtime.block_on(call_all(&Api::of(&mesh)?, &called))?;
    bench.report("coldstart.invoke_ms", &times, None);
    Ok(())
}

/// Copies of a guest that differ in a custom section.
pub(super) fn variants(mesh: &Mesh, name: &str, what: &str, count: u32) -> Result<Vec<String>> {
    let module = std::fs::read(guest(name))?;
    let copy = |i: u32| {
        let content = [b"\x05bench".as_slice(), &i.to_le_bytes(), what.as_bytes()].concat();
        let length = u8::try_from(content.len()).context("a short section")?;
        anyhow::ensure!(length < 0x80, "one byte of LEB128");
        let module = [module.as_slice(), &[0, length], &content].concat();
        // Shown as `argv[0]` and by its artifact's name.
        let path = mesh.file(
            &format!("{}-{what}-{i}.wasm", name.replace('_', "-")),
            module,
        );
        Ok(path.display().to_string())
    };
    (0..count).map(copy).collect()
}

fn run_task(mesh: &Mesh, path: &str) -> Result<Value> {
    let id = mesh.submit(&[path]);
    let task = mesh.wait_task(&id, &["succeeded", "failed", "cancelled"]);
    anyhow::ensure!(task["phase"] == "succeeded", "{task}");
    Ok(task)
}

fn load_ms(task: &Value) -> Result<f64> {
    Ok(number(&task["prepare_us"][1])? / 1e3)
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("not a number: {value}"))
}

/// Invokes each module once, over one connection; how long each took.
async fn call_all(api: &Api, paths: &[String]) -> Result<Vec<f64>> {
    let mut connection = api.connect().await?;
    let mut times = Vec::new();
    for path in paths {
        let name = std::path::Path::new(path)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let path = format!("/v1/invoke?module={name}");
        let request = api.request("POST", &path, "application/octet-stream", b"hello");
        let begun = Instant::now();
        let answer = connection.good(&request).await?;
        times.push(cast::ms(begun.elapsed()));
        anyhow::ensure!(answer.body == b"hello".as_slice(), "a wrong answer");
    }
    Ok(times)
}
