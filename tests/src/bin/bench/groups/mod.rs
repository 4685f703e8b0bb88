//! Groups of metrics that are measured together.

mod agent;
mod attach;
mod binaries;
mod coldstart;
mod connected;
mod coordinator;
mod durability;
mod enroll;
mod gateway;
mod growth;
mod idle;
mod invoke;
mod moves;
mod onnx;
mod proof;
mod recovery;
mod reports;
mod services;
mod task;

use anyhow::{Context as _, Result};

pub(crate) use agent::deploy_digits;

use crate::report::Bench;

/// A group.
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: &'static str,
    /// Metrics that it reports, or the beginnings of their names.
    pub(crate) metrics: &'static [&'static str],
    run: fn(&Bench) -> Result<()>,
}

/// All, in the order in which they run.
pub(crate) const ALL: &[Group] = &[
    Group {
        name: "binaries",
        metrics: &["agent.binary_mb", "coordinator.binary_mb", "cli.binary_mb"],
        run: binaries::run,
    },
    Group {
        name: "agent",
        metrics: &[
            "agent.pss_mib",
            "agent.cpu_percent",
            "agent.pss_with_model_mib",
            "agent.model_child_pss_mib",
            "coordinator.pss_mib",
        ],
        run: agent::run,
    },
    Group {
        name: "coordinator",
        metrics: &["coordinator.start_ms", "coordinator.restart_ms"],
        run: coordinator::run,
    },
    Group {
        name: "enroll",
        metrics: &["enroll."],
        run: enroll::run,
    },
    Group {
        name: "connected",
        metrics: &[
            "coordinator.rss_mib",
            "coordinator.cpu_percent",
            "coordinator.kib_per_agent",
            "coordinator.connects_per_s",
        ],
        run: connected::run,
    },
    Group {
        name: "reports",
        metrics: &["telemetry.reports_per_s_per_core"],
        run: reports::run,
    },
    Group {
        name: "idle",
        metrics: &["telemetry.idle_bits_per_s", "telemetry.watched_bits_per_s"],
        run: idle::run,
    },
    Group {
        name: "invoke",
        metrics: &["invoke."],
        run: invoke::run,
    },
    Group {
        name: "coldstart",
        metrics: &["coldstart."],
        run: coldstart::run,
    },
    Group {
        name: "task",
        metrics: &["task."],
        run: task::run,
    },
    Group {
        name: "onnx",
        metrics: &["onnx."],
        run: onnx::run,
    },
    Group {
        name: "attach",
        metrics: &["attach."],
        run: attach::run,
    },
    Group {
        name: "gateway",
        metrics: &["gateway."],
        run: gateway::run,
    },
    Group {
        name: "services",
        metrics: &["apply.", "service.", "checkpoint.", "restart."],
        run: services::run,
    },
    Group {
        name: "durability",
        metrics: &["commit.", "failover.", "offline_boot."],
        run: durability::run,
    },
    Group {
        name: "growth",
        metrics: &[
            "growth.write_amplification",
            "growth.disk_mib_start",
            "growth.disk_mib_end",
            "growth.disk_mib_peak",
        ],
        run: growth::run,
    },
    // Apart: on a slow disk each takes a quarter of an hour.
    Group {
        name: "growth_minutes",
        metrics: &[
            "growth.write_amplification.minutes",
            "growth.disk_mib_end.minutes",
            "growth.disk_mib_peak.minutes",
        ],
        run: growth::run_minutes,
    },
    Group {
        name: "recovery",
        metrics: &["recovery."],
        run: recovery::run,
    },
    Group {
        name: "proof",
        metrics: &["powercut.", "sim."],
        run: proof::run,
    },
    Group {
        name: "moves",
        metrics: &["move."],
        run: moves::run,
    },
];

/// Runs one group.
pub(crate) fn run(name: &str, bench: &Bench) -> Result<()> {
    let group = ALL
        .iter()
        .find(|group| group.name == name)
        .context("there is no such group")?;
    (group.run)(bench)
}
