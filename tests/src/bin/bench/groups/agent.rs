//! What an idle agent takes of its machine, and what a model adds.
//!
//! One agent with a session, alone with its coordinator. PSS comes from `smaps_rollup`, once it
//! has stayed within 1 % for five seconds; CPU time over an idle window from `stat` (ticks of
//! 10 ms). The model is `skl_mlp`; its process is the agent's only child.

use std::time::Duration;

use anyhow::Result;
use hop3_tests::{Mesh, data};

use crate::{proc, report::Bench, stage};

/// Inferences before memory is looked at.
const INFERENCES: usize = 5;

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    let pid = stage::agent_pid(&mesh)?;
    bench.report("agent.pss_mib", &proc::settled_pss_mib(pid)?, None);
    let coordinator = proc::settled_pss_mib(mesh.coordinator.pid())?;
    bench.report("coordinator.pss_mib", &coordinator, None);
    if bench.wants("agent.cpu_percent") {
        let window = Duration::from_secs(bench.pick(15, 60));
        bench.report(
            "agent.cpu_percent",
            &[proc::cpu_percent(pid, window)?],
            None,
        );
    }
    if bench.wants("agent.pss_with_model_mib") || bench.wants("agent.model_child_pss_mib") {
        deploy_digits(&mesh);
        bench.report(
            "agent.pss_with_model_mib",
            &proc::settled_pss_mib(pid)?,
            None,
        );
        let children = proc::children(pid);
        anyhow::ensure!(!children.is_empty(), "the agent has no model process");
        let child = |pid: &u32| proc::pss_mib(*pid);
        let sum: f64 = children
            .iter()
            .map(child)
            .collect::<Result<Vec<_>>>()?
            .iter()
            .sum();
        bench.report("agent.model_child_pss_mib", &[sum], None);
    }
    Ok(())
}

/// Serves `skl_mlp` and asks it some times.
pub(crate) fn deploy_digits(mesh: &Mesh) {
    let path = |name: &str| {
        data(&format!("fixtures/models/{name}"))
            .display()
            .to_string()
    };
    let (file, spec) = (path("skl_mlp.onnx"), "X:f32[batch,64]");
    mesh.hop3(&["model", "push", "digits", &file, "--spec", spec])
        .ok();
    mesh.hop3(&["model", "deploy", "digits"]).ok();
    for _ in 0..INFERENCES {
        mesh.hop3(&[
            "model",
            "infer",
            "digits",
            "--input",
            &path("digits_10.npy"),
        ])
        .ok();
    }
}
