//! Runs a page's commands against a real mesh, as a reader would paste them.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use hop3_tests::{Mesh, Options, bin, data, eventually, guest};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::pages::{Block, Page};

/// A mesh, and a directory for what the commands leave.
pub(crate) struct Runner {
    mesh: Mesh,
    dir: PathBuf,
}

impl Runner {
    /// A mesh of three nodes, like `hop3 dev`'s, whose agents offer the volume `shared`.
    pub(crate) fn start() -> Self {
        let offered = data("guests/data");
        let mesh = Mesh::with(Options {
            nodes: vec![("cloud-1", "cloud"), ("edge-1", "edge"), ("iot-1", "iot")],
            agent_config: format!("[volumes.shared]\npath = \"{}\"\n", offered.display()),
            ..Options::default()
        });
        let dir = mesh.path("page");
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{error}"));
        Self { mesh, dir }
    }

    /// Runs the blocks of `page` in order.
    pub(crate) fn run(&self, page: &Page) {
        let blocks = page.blocks();
        assert!(!blocks.is_empty(), "{} has nothing to run", page.path);
        for block in blocks {
            if block.fails {
                self.run_failing(page, &block);
            } else {
                let script = format!("set -euo pipefail\nset -x\n{}", block.script);
                let (code, log) = self.bash(&script);
                let at = format!("{}:{}", page.path, block.line);
                assert_eq!(code, Some(0), "{at} failed:\n{}{log}", block.script);
            }
        }
    }

    /// Every command of the block must fail by itself.
    fn run_failing(&self, page: &Page, block: &Block) {
        let joined = block.script.replace("\\\n", " ");
        for command in joined.lines().filter(|line| !line.trim().is_empty()) {
            let (code, log) = self.bash(command);
            let at = format!("{}:{}", page.path, block.line);
            assert_ne!(code, Some(0), "{at} should have failed: {command}\n{log}");
            assert!(code.is_some(), "{at} was killed: {command}\n{log}");
        }
    }

    /// Runs `script`; gives its exit code and what it printed. What it leaves running is ended.
    fn bash(&self, script: &str) -> (Option<i32>, String) {
        let log = self.dir.join("..").join("page.log");
        let file = fs::File::create(&log).unwrap_or_else(|error| panic!("{error}"));
        let errors = file.try_clone().unwrap_or_else(|error| panic!("{error}"));
        let bins = bin("hop3").parent().map(PathBuf::from).unwrap_or_default();
        let guests = guest("hello")
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        // The settings of `hop3` for this mesh.
        for (key, value) in self.mesh.command(&[]).get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let mut child = command
            .args(["-c", script])
            .current_dir(&self.dir)
            .env("PATH", format!("{}:{path}", bins.display()))
            .env("G", guests)
            .env("DATA", data("guests/data"))
            .env("MODELS", data("fixtures/models"))
            .env("COORDINATOR", self.mesh.path("coordinator"))
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("bash: {error}"));
        let group = Pid::from_child(&child);
        let status = eventually("the commands end", || child.try_wait().unwrap_or(None));
        let _ = kill_process_group(group, Signal::KILL);
        let text = fs::read(&log).unwrap_or_default();
        (status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}
