//! Planned moves between two agents on this machine while clients keep asking.
//!
//! Downtime is the move's own figure, from the order to stop at the source to the first readiness
//! at the target; `move.client_ms` is the longest that any client waited for an answer, moves
//! included. Every answer is checked: a lost or doubled change fails the group.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use hop3_tests::{Mesh, counting, counting::Clients, within};

use super::services::filled;
use crate::{cast, report::Bench, stage};

/// Clients that ask without pause.
const CLIENTS: usize = 8;

pub(super) fn run(bench: &Bench) -> Result<()> {
    for mib in [1, 64] {
        let mesh = two_nodes();
        filled(&mesh, mib)?;
        let clients = Clients::start(&mesh, "counters", CLIENTS, true);
        let (mut downtimes, mut finals) = (Vec::new(), Vec::new());
        for _ in 0..bench.pick(5, 30) {
            let from = mesh.node_of("counters", 0);
            let to = if from == stage::NODE {
                "edge-2"
            } else {
                stage::NODE
            };
            mesh.hop3(&["service", "migrate", "counters", "--to", to, "--watch"])
                .ok();
            let moved = mesh.service("counters")["last_move"].clone();
            let number = |name: &str| {
                let value = moved[name].as_f64();
                value.with_context(|| format!("no {name} in {moved}"))
            };
            downtimes.push(number("downtime_us")? / 1e3);
            finals.push(number("final_bytes")? / f64::from(1 << 20));
        }
        if mib == 1 {
            let wanted = bench.pick(10_000, 100_000);
            within(
                std::time::Duration::from_secs(900),
                "clients ask enough",
                || (clients.acknowledged() >= wanted).then_some(()),
            );
        }
        let slowest = clients.seen.slowest_ms.load(Ordering::Relaxed);
        let acknowledged = clients.stop();
        let lost = counting::differences(&mesh, "counters", &acknowledged);
        let total: u64 = acknowledged.iter().map(|(_, count)| count).sum();
        bench.report(&format!("move.downtime_ms.{mib}MiB"), &downtimes, None);
        bench.report(&format!("move.final_mib.{mib}MiB"), &finals, None);
        bench.report(
            &format!("move.client_ms.{mib}MiB"),
            &[cast::figure(slowest)],
            None,
        );
        if mib == 1 {
            bench.report("move.lost", &[cast::figure(lost)], None);
            bench.report("move.requests", &[cast::figure(total)], None);
        }
    }
    Ok(())
}

fn two_nodes() -> Mesh {
    let mut mesh = stage::mesh();
    mesh.enroll("edge-2", "edge").ok();
    mesh.start_agent("edge-2");
    mesh.wait_ready("edge-2");
    mesh
}
