//! A coordinator with thousands of connected agents: real QUIC connections with mutual TLS from
//! one load process, each with a control and a telemetry stream, reporting as idle nodes do.
//!
//! The agents are enrolled; then the coordinator is started again, so that what enrolling left in
//! its memory does not count, and all connect. Memory counts once it is settled. CPU time is taken
//! over a window in which reports come evenly, at the pace that the coordinator asks for.
//!
//! `coordinator.kib_per_agent` is all in: RSS with the most agents, less RSS of a coordinator that
//! never saw any, for each agent. It holds records, sessions, QUIC and telemetry rings.

use std::time::{Duration, Instant};

use anyhow::Result;
use hop3_tests::Mesh;

use crate::{
    cast,
    fleet::{self, Door, Fleet, Member, tokens},
    http::Api,
    proc,
    report::{Bench, say},
    stage,
};

/// Join tokens made at once: the coordinator keeps at most 1,000.
const TOKENS_MAX: usize = 500;

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mut mesh = stage::coordinator();
    proc::settled_pss_mib(mesh.coordinator.pid())?;
    let empty_mib = proc::rss_mib(mesh.coordinator.pid())?;
    let runtime = fleet::runtime()?;
    let mut members = Vec::new();
    let sizes = bench.pick([300, 1000], [1000, 4000]);
    for size in sizes {
        say(format!("{size} agents: enrolling"));
        runtime.block_on(enroll(&mesh, &mut members, size))?;
        mesh.start_coordinator();
        let pid = mesh.coordinator.pid();
        let begun = Instant::now();
        let (mut fleet, _door) = runtime.block_on(async {
            let door = Door::new(&mesh)?;
            let fleet = Fleet::connect(&door, &members).await?;
            anyhow::Ok((fleet, door))
        })?;
        let per_s = cast::figure(size as u64) / begun.elapsed().as_secs_f64();
        bench.report(
            &format!("coordinator.connects_per_s.{size}"),
            &[per_s],
            None,
        );
        proc::settled_pss_mib(pid)?;
        let window = Duration::from_secs(bench.pick(20, 60));
        let cpu = proc::cpu_percent(pid, window)?;
        let rss_mib = proc::rss_mib(pid)?;
        fleet.check()?;
        runtime.block_on(all_ready(&mesh, size))?;
        bench.report(&format!("coordinator.cpu_percent.{size}"), &[cpu], None);
        bench.report(&format!("coordinator.rss_mib.{size}"), &[rss_mib], None);
        if size == sizes[sizes.len() - 1] {
            let kib = (rss_mib - empty_mib) * 1024.0 / cast::figure(size as u64);
            bench.report("coordinator.kib_per_agent", &[kib], None);
        }
        // Its connections end with it, in the runtime's context.
        let _inside = runtime.enter();
        drop(fleet);
    }
    Ok(())
}

/// Enrolls until there are `size` members.
pub(super) async fn enroll(mesh: &Mesh, members: &mut Vec<Member>, size: usize) -> Result<()> {
    let (door, api) = (Door::new(mesh)?, Api::of(mesh)?);
    while members.len() < size {
        let count = (size - members.len()).min(TOKENS_MAX);
        let tokens = tokens(&api, members.len(), count).await?;
        members.extend(door.enroll_all(&tokens).await?);
    }
    Ok(())
}

/// The coordinator must agree that all are there.
async fn all_ready(mesh: &Mesh, size: usize) -> Result<()> {
    let api = Api::of(mesh)?;
    let request = api.request("GET", "/v1/nodes", "application/json", b"");
    let answer = api.connect().await?.good(&request).await?;
    let nodes: Vec<serde_json::Value> = serde_json::from_slice(&answer.body)?;
    let ready = nodes
        .iter()
        .filter(|node| node["status"] == "ready")
        .count();
    anyhow::ensure!(ready == size, "{ready} of {size} agents are ready");
    Ok(())
}
