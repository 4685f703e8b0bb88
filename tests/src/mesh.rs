//! A coordinator and its agents.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Daemon, bin, eventually};

/// What a mesh under test is made of.
#[derive(Default)]
pub struct Options {
    /// Nodes to enroll and start: name and tier.
    pub nodes: Vec<(&'static str, &'static str)>,
    /// Lines for the coordinator's configuration file.
    pub coordinator_config: String,
    /// Lines for every agent's configuration file.
    pub agent_config: String,
    /// Where the coordinator listens; on the loopback if nothing is said.
    pub listen: Option<IpAddr>,
    /// What the commands of the coordinator and of nodes begin with, by name (`coordinator`):
    /// where or how their processes run.
    pub before: BTreeMap<&'static str, Vec<String>>,
}

impl Options {
    /// A command for a process of the coordinator or a node.
    fn command(&self, name: &str, program: &str) -> Command {
        let words = self.before.get(name).map_or(&[][..], Vec::as_slice);
        match words.split_first() {
            None => Command::new(bin(program)),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(bin(program));
                command
            }
        }
    }
}

/// What a finished `hop3` command left behind.
pub struct Run {
    /// Exit code; 255 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(255),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Its standard output, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stderr: {}\nstdout: {}",
            self.stderr, self.stdout
        );
        self.stdout
    }

    /// Its standard output as JSON, if it succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Its standard error, if it failed with `code` and says all of `parts`.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> String {
        assert_eq!(
            self.code, code,
            "stderr: {}\nstdout: {}",
            self.stderr, self.stdout
        );
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in: {}",
                self.stderr
            );
        }
        self.stderr
    }
}

/// A running mesh.
pub struct Mesh {
    /// The coordinator.
    pub coordinator: Daemon,
    /// The agents, by node name.
    pub agents: BTreeMap<String, Daemon>,
    /// Where the mesh listens (UDP).
    pub mesh_address: String,
    /// The REST API.
    pub api: String,
    /// Where clients of services come in.
    pub gateway: String,
    options: Options,
    /// Last: what is dropped before it may still read its logs.
    dir: TempDir,
}

impl Mesh {
    /// Starts a mesh with one node per name and tier, and waits until all are ready.
    #[must_use]
    pub fn start(nodes: &[(&'static str, &'static str)]) -> Self {
        Self::with(Options {
            nodes: nodes.to_vec(),
            ..Options::default()
        })
    }

    /// Starts a mesh.
    #[must_use]
    pub fn with(options: Options) -> Self {
        let any = SocketAddr::new(options.listen.unwrap_or(Ipv4Addr::LOCALHOST.into()), 0);
        Self::found(directory(), any, options)
    }

    /// Starts the mesh whose data directories are in `dir`; nodes of `options` that have none are
    /// enrolled. Nodes know where they find the coordinator: it must listen for them on `address`.
    #[must_use]
    pub fn found(dir: TempDir, address: SocketAddr, options: Options) -> Self {
        write(
            &dir.path().join("coordinator.toml"),
            &options.coordinator_config,
        );
        // On one machine a lost session should show at once.
        let agent_config = format!("keep_alive = \"1s\"\n{}", options.agent_config);
        write(&dir.path().join("agent.toml"), &agent_config);
        let any = SocketAddr::new(address.ip(), 0).to_string();
        let (coordinator, [mesh_address, api, gateway]) =
            start_coordinator(&options, dir.path(), [&address.to_string(), &any, &any]);
        let mut mesh = Self {
            dir,
            coordinator,
            agents: BTreeMap::new(),
            mesh_address,
            api,
            gateway,
            options,
        };
        for (name, tier) in mesh.options.nodes.clone() {
            if !mesh.path(name).exists() {
                mesh.enroll(name, tier).ok();
            }
            mesh.start_agent(name);
        }
        for (name, _) in mesh.options.nodes.clone() {
            mesh.wait_ready(name);
        }
        mesh
    }

    /// A path within the mesh's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file into the mesh's directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The admin token.
    #[must_use]
    pub fn token(&self) -> String {
        let token = fs::read_to_string(self.path("coordinator/admin.token")).unwrap_or_default();
        token.trim().to_owned()
    }

    /// A `hop3` command for this mesh.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bin("hop3"));
        command
            .args(args)
            .env("HOP3_HOME", self.path("home"))
            .env("HOP3_API", &self.api)
            .env("HOP3_CA_FILE", self.path("coordinator/ca.pem"))
            .env("HOP3_TOKEN_FILE", self.path("coordinator/admin.token"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `hop3` to its end.
    pub fn hop3(&self, args: &[&str]) -> Run {
        let output = self.command(args).output();
        Run::of(output.unwrap_or_else(|error| panic!("hop3 {args:?}: {error}")))
    }

    /// Runs `hop3` with `input` on its standard input.
    pub fn hop3_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("hop3 {args:?}: {error}"));
        let mut stdin = child
            .stdin
            .take()
            .unwrap_or_else(|| unreachable!("it is piped"));
        let input = input.to_vec();
        // On a thread: the child may write before it has read everything.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output();
        let _ = writer.join();
        Run::of(output.unwrap_or_else(|error| panic!("hop3 {args:?}: {error}")))
    }

    /// Runs `hop3 … --output json` and parses what it prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        self.hop3(&args).json()
    }

    /// A `hop3-agent` command with `name`'s data directory.
    #[must_use]
    pub fn agent_command(&self, name: &str, verb: &str) -> Command {
        let mut command = self.options.command(name, "hop3-agent");
        command
            .arg(verb)
            .arg("--data-dir")
            .arg(self.path(name))
            .stdin(Stdio::null());
        command
    }

    /// Makes a join token and enrolls a node with it, without starting it.
    pub fn enroll(&self, name: &str, tier: &str) -> Run {
        let token = self.hop3(&[
            "node", "token", "create", "--tier", tier, "--name", name, "--quiet",
        ]);
        self.enroll_with(name, &token.ok())
    }

    /// Enrolls a node with a token of one's own.
    pub fn enroll_with(&self, name: &str, token: &str) -> Run {
        let file = self.file(&format!("{name}.token"), token);
        let mut command = self.agent_command(name, "enroll");
        let output = command
            .arg("--name")
            .arg(name)
            .arg("--token-file")
            .arg(file)
            .output();
        Run::of(output.unwrap_or_else(|error| panic!("hop3-agent enroll: {error}")))
    }

    /// Starts the agent of an enrolled node.
    pub fn start_agent(&mut self, name: &str) {
        let mut command = self.agent_command(name, "run");
        command.arg("--config").arg(self.path("agent.toml"));
        let daemon = Daemon::start(command, &self.path(&format!("{name}.log")));
        self.agents.insert(name.to_owned(), daemon);
    }

    /// Starts the coordinator again, on the same addresses.
    pub fn start_coordinator(&mut self) {
        self.coordinator.kill();
        let [api, gateway] = [&self.api, &self.gateway].map(|url| url.replace("https://", ""));
        let addresses = [self.mesh_address.as_str(), &api, &gateway];
        let (coordinator, _) = start_coordinator(&self.options, self.dir.path(), addresses);
        self.coordinator = coordinator;
    }

    /// One node as the API shows it.
    pub fn node(&self, name: &str) -> Value {
        self.json(&["node", "show", name])
    }

    /// Waits until a node's session stands.
    pub fn wait_ready(&self, name: &str) {
        eventually(&format!("{name} is ready"), || {
            let nodes = self.json(&["node", "ls"]);
            let ready = |node: &Value| node["id"] == *name && node["status"] == "ready";
            nodes.as_array()?.iter().any(ready).then_some(())
        });
    }

    /// Kills an agent without warning.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(mut agent) = self.agents.remove(name) {
            agent.kill();
        }
    }

    /// Applies a manifest and waits until it is met.
    pub fn apply(&self, manifest: &str) -> Run {
        self.hop3_with(&["apply", "-f", "-"], manifest.as_bytes())
    }

    /// One service as the API shows it.
    pub fn service(&self, name: &str) -> Value {
        self.json(&["service", "show", name])
    }

    /// The node of a service's instance.
    #[must_use]
    pub fn node_of(&self, service: &str, index: usize) -> String {
        let service = self.service(service);
        let node = service["instances"][index]["node"].as_str();
        node.unwrap_or_default().to_owned()
    }

    /// Waits until a task reaches one of `phases`; returns it.
    pub fn wait_task(&self, id: &str, phases: &[&str]) -> Value {
        eventually(&format!("{id} becomes {phases:?}"), || {
            let task = self.json(&["task", "show", id]);
            phases.contains(&task["phase"].as_str()?).then_some(task)
        })
    }

    /// Submits a task in the background; returns its id.
    pub fn submit(&self, args: &[&str]) -> String {
        let mut all = vec!["task", "submit"];
        all.extend(args);
        let at = all.iter().position(|arg| *arg == "--").unwrap_or(all.len());
        all.splice(at..at, ["--output", "json"]);
        let tasks = self.hop3(&all).json();
        tasks[0]["id"].as_str().unwrap_or_default().to_owned()
    }
}

/// A new directory for a mesh.
///
/// # Panics
/// There is no room for one.
#[must_use]
pub fn directory() -> TempDir {
    let made = tempfile::Builder::new().prefix("hop3-test-").tempdir();
    made.unwrap_or_else(|error| panic!("no temporary directory: {error}"))
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Starts a coordinator that listens on `addresses`: mesh, API, gateway; answers where it does.
fn start_coordinator(options: &Options, dir: &Path, addresses: [&str; 3]) -> (Daemon, [String; 3]) {
    let [mesh, api, gateway] = addresses;
    let ready = dir.join("ready.json");
    let _ = fs::remove_file(&ready);
    let mut command = options.command("coordinator", "hop3-coordinator");
    command
        .args([
            "run",
            "--mesh",
            "test",
            "--mesh-listen",
            mesh,
            "--api-listen",
            api,
            "--gateway-listen",
            gateway,
        ])
        .arg("--config")
        .arg(dir.join("coordinator.toml"))
        .arg("--data-dir")
        .arg(dir.join("coordinator"))
        .arg("--ready-file")
        .arg(&ready);
    let mut daemon = Daemon::start(command, &dir.join("coordinator.log"));
    let view: Value = eventually("the coordinator is ready", || {
        assert!(
            daemon.ended().is_none(),
            "the coordinator died: {}",
            daemon.log()
        );
        serde_json::from_slice(&fs::read(&ready).ok()?).ok()
    });
    let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
    (daemon, ["mesh", "api", "gateway"].map(text))
}
