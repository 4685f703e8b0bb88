//! A mesh as its users run it: the tests' harness shortens times; here all are the defaults.

use std::path::Path;

use anyhow::{Context as _, Result};
use hop3_tests::{Daemon, Mesh};

/// The one agent of most groups.
pub(crate) const NODE: &str = "edge-1";

/// A coordinator alone.
pub(crate) fn coordinator() -> Mesh {
    let mesh = Mesh::start(&[]);
    mesh.file("agent.toml", "");
    mesh
}

/// A coordinator and one agent with a session.
pub(crate) fn mesh() -> Mesh {
    let mut mesh = coordinator();
    mesh.enroll(NODE, "edge").ok();
    mesh.start_agent(NODE);
    mesh.wait_ready(NODE);
    mesh
}

/// The same; the agent, and nothing else, loads `library` before its own.
pub(crate) fn mesh_preloading(library: &Path) -> Mesh {
    let mut mesh = coordinator();
    mesh.enroll(NODE, "edge").ok();
    let mut command = mesh.agent_command(NODE, "run");
    command
        .arg("--config")
        .arg(mesh.path("agent.toml"))
        .env("LD_PRELOAD", library);
    let agent = Daemon::start(command, &mesh.path(&format!("{NODE}.log")));
    mesh.agents.insert(NODE.to_owned(), agent);
    mesh.wait_ready(NODE);
    mesh
}

/// The process of the one agent.
pub(crate) fn agent_pid(mesh: &Mesh) -> Result<u32> {
    Ok(mesh.agents.get(NODE).context("there is no agent")?.pid())
}
