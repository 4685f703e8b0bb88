//! What a telemetry report costs the coordinator: fake agents send batches of one sample, eight a
//! second each, which is below the ten a second that the coordinator accepts of a node, so that
//! none is dropped. CPU time of the coordinator over a window, less what it uses with the same
//! agents silent, divided by the batches: how many a core would take.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::connected::enroll;
use crate::{
    cast,
    fleet::{self, Door, Fleet, Pace},
    proc,
    report::Bench,
    stage,
};

/// Between an agent's reports.
const PERIOD: Duration = Duration::from_millis(125);
/// Until the flow is even.
const WARM_UP: Duration = Duration::from_secs(2);

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::coordinator();
    let pid = mesh.coordinator.pid();
    let runtime = fleet::runtime()?;
    let mut members = Vec::new();
    runtime.block_on(enroll(&mesh, &mut members, bench.pick(100, 400)))?;
    let (mut fleet, _door) = runtime.block_on(async {
        let door = Door::new(&mesh)?;
        anyhow::Ok((Fleet::connect(&door, &members).await?, door))
    })?;
    let window = Duration::from_secs(bench.pick(5, 10));
    let mut runs = Vec::new();
    for _ in 0..bench.pick(2, 5) {
        fleet.set_pace(Pace::Silent);
        proc::pause(WARM_UP);
        let idle_percent = proc::cpu_percent(pid, window)?;
        fleet.set_pace(Pace::Every(PERIOD));
        proc::pause(WARM_UP);
        let (sent, cpu, begun) = (fleet.sent(), proc::cpu(pid)?, Instant::now());
        proc::pause(window);
        let cpu = proc::cpu(pid)?.saturating_sub(cpu).as_secs_f64();
        let idle = idle_percent / 100.0 * begun.elapsed().as_secs_f64();
        let sent = cast::figure(fleet.sent() - sent);
        fleet.check()?;
        runs.push(sent / (cpu - idle).max(0.01));
    }
    bench.report("telemetry.reports_per_s_per_core", &runs, None);
    let _inside = runtime.enter();
    drop(fleet);
    Ok(())
}
