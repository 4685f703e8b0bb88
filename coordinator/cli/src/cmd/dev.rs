//! `hop3 dev`: a whole mesh on this machine, as separate processes of the sibling binaries.
//!
//! Everything is as in production: real enrolment with one-use tokens, mutual TLS, encrypted
//! stores. State stays in its directory, so a second start carries on. A process that dies is
//! started again. Secrets pass by files of mode 0600, never as arguments.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use hop3_common::{
    api::{JoinTokenCreated, JoinTokenRequest, NodeStatus, NodeView},
    id::NodeId,
    spec::{Millis, Tier},
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    args::Dev,
    client::Client,
    context::{Context, home, private_dir, read_small, write_private},
    output::{note, print_line},
};

/// How long the whole mesh may take to come up.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long processes may take to stop before they are killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Time between looks.
const POLL: Duration = Duration::from_millis(50);
/// A process that lived less than this is not started again at once.
const QUICK_DEATH: Duration = Duration::from_secs(5);
/// Longest pause before a process is started again.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A log larger than this is begun anew.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// Tells a daemon to end when the process that started it does.
const DIE_WITH_PARENT: &str = "HOP3_DIE_WITH_PARENT";

/// What a coordinator writes when it is ready.
#[derive(Debug, Clone, Deserialize)]
struct Ready {
    mesh: String,
    api: String,
    gateway: String,
    ca: PathBuf,
    token: PathBuf,
    pid: u32,
}

/// The addresses of this mesh: its nodes remember them, so they stay.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Ports {
    mesh: String,
    api: String,
    /// Absent in the state of an older release.
    #[serde(default = "any_port")]
    gateway: String,
}

fn any_port() -> String {
    "127.0.0.1:0".to_owned()
}

/// Where everything of a dev mesh is.
struct Layout {
    dir: PathBuf,
    coordinator: PathBuf,
    agent: PathBuf,
}

impl Layout {
    fn find(dir: Option<&Path>) -> Result<Self> {
        let dir = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None => home()?.join("dev"),
        };
        let here = std::env::current_exe().context("where is this program?")?;
        let sibling = |name: &str| {
            let path = here.with_file_name(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(anyhow!(
                "{} is missing: build it with `cargo build --bins`",
                path.display()
            ))
        };
        Ok(Self {
            coordinator: sibling("hop3-coordinator")?,
            agent: sibling("hop3-agent")?,
            dir,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The process's standard error, for its log.
    fn log(&self, name: &str) -> Result<fs::File> {
        let path = self.dir.join("logs").join(format!("{name}.log"));
        let grown = fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX);
        let mut options = fs::OpenOptions::new();
        options
            .create(true)
            .append(!grown)
            .write(true)
            .truncate(grown);
        options
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A process that is started again when it dies.
struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    child: Child,
    started: Instant,
    pause: Duration,
    /// When to start it again, while it is dead.
    again: Option<Instant>,
}

impl Daemon {
    fn start(layout: &Layout, name: &str, program: &Path, args: Vec<String>) -> Result<Self> {
        let child = spawn(layout, name, program, &args)?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            child,
            started: Instant::now(),
            pause: Duration::ZERO,
            again: None,
        })
    }

    /// Starts it again if it died and its pause is over.
    fn supervise(&mut self, layout: &Layout) -> Result<()> {
        let now = Instant::now();
        if let Some(at) = self.again {
            if now >= at {
                self.child = spawn(layout, &self.name, &self.program, &self.args)?;
                self.started = now;
                self.again = None;
            }
            return Ok(());
        }
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let quick = self.started.elapsed() < QUICK_DEATH;
        let longer = (self.pause * 2).clamp(Duration::from_millis(250), PAUSE_MAX);
        self.pause = if quick { longer } else { Duration::ZERO };
        note(&format!(
            "{} ended ({status}); starting it again",
            self.name
        ));
        self.again = Some(now + self.pause);
        Ok(())
    }

    fn signal_stop(&self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

fn spawn(layout: &Layout, name: &str, program: &Path, args: &[String]) -> Result<Child> {
    Command::new(program)
        .args(args)
        .env(DIE_WITH_PARENT, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(layout.log(name)?)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// The name and tier of the `index`-th node: cloud-1, edge-1, iot-1, cloud-2, …
fn node(index: u16) -> Result<(NodeId, Tier)> {
    let tier = Tier::ALL[usize::from(index) % Tier::ALL.len()];
    let name = format!("{tier}-{}", usize::from(index) / Tier::ALL.len() + 1);
    Ok((name.parse()?, tier))
}

/// Runs the mesh until Ctrl-C.
pub async fn run(args: &Dev) -> Result<()> {
    let layout = Layout::find(args.dir.as_deref())?;
    private_dir(&layout.path("logs"))?;
    let _lock = lock(&layout)?;
    let volumes = volumes(&args.volume)?;
    let mut daemons = Vec::new();
    let mut stop = std::pin::pin!(stop_signal());
    let started = tokio::select! {
        started = Box::pin(start(&layout, args.nodes, &volumes, &mut daemons)) => started,
        () = &mut stop => Err(anyhow!("interrupted")),
    };
    let result = match started {
        Ok(()) => loop {
            tokio::select! {
                () = &mut stop => break Ok(()),
                () = sleep(POLL * 4) => {
                    if let Some(error) = supervise(&layout, &mut daemons) {
                        break Err(error);
                    }
                }
            }
        },
        Err(error) => Err(error),
    };
    stop_all(daemons).await;
    result
}

fn supervise(layout: &Layout, daemons: &mut [Daemon]) -> Option<anyhow::Error> {
    daemons
        .iter_mut()
        .find_map(|daemon| daemon.supervise(layout).err())
}

/// One `hop3 dev` per directory.
fn lock(layout: &Layout) -> Result<fs::File> {
    let path = layout.path("lock");
    let file =
        fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock().map_err(|_| {
        anyhow!(
            "another `hop3 dev` runs in {}: stop it, or choose another --dir",
            layout.dir.display()
        )
    })?;
    Ok(file)
}

/// `NAME=PATH` and `NAME=PATH:rw`, as tables of the agents' configuration.
fn volumes(offers: &[String]) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    for offer in offers {
        let (name, rest) = offer
            .split_once('=')
            .ok_or_else(|| anyhow!("--volume `{offer}` must be NAME=PATH or NAME=PATH:rw"))?;
        let (path, writable) = match rest.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (rest, false),
        };
        let path = fs::canonicalize(path).with_context(|| format!("--volume {name}: {path}"))?;
        let mut entry = toml::Table::new();
        entry.insert("path".to_owned(), path.display().to_string().into());
        entry.insert("writable".to_owned(), writable.into());
        table.insert(name.to_owned(), entry.into());
    }
    Ok(table)
}

async fn start(
    layout: &Layout,
    nodes: u16,
    volumes: &toml::Table,
    daemons: &mut Vec<Daemon>,
) -> Result<()> {
    let begun = Instant::now();
    let ready = start_coordinator(layout, daemons).await?;
    let context = Context {
        api: ready.api.clone(),
        gateway: Some(ready.gateway.clone()),
        ca_file: ready.ca.clone(),
        token_file: ready.token.clone(),
    };
    context.save()?;
    let client = Client::new(&context)?;
    note(&format!(
        "coordinator: API {}, gateway {}, mesh {} (udp)",
        ready.api, ready.gateway, ready.mesh
    ));
    let mut names = Vec::new();
    for index in 0..nodes {
        let (name, tier) = node(index)?;
        start_agent(layout, &client, &name, tier, volumes, daemons).await?;
        names.push(name);
    }
    wait_nodes(layout, &client, &names, daemons).await?;
    note(&format!(
        "state in {}; logs in {}",
        layout.dir.display(),
        layout.path("logs").display()
    ));
    let took = Millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
    note(&format!(
        "{nodes} nodes ready after {took}; stop with Ctrl-C"
    ));
    print_line("ready");
    Ok(())
}

async fn start_coordinator(layout: &Layout, daemons: &mut Vec<Daemon>) -> Result<Ready> {
    let ready_file = layout.path("ready.json");
    let ports_file = layout.path("ports.toml");
    let ports: Ports = match read_small(&ports_file) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{}", ports_file.display()))?,
        Err(_) => Ports {
            mesh: any_port(),
            api: any_port(),
            gateway: any_port(),
        },
    };
    let args = |ports: &Ports| {
        [
            "run",
            "--mesh",
            "dev",
            "--data-dir",
            &layout.path("coordinator").display().to_string(),
            "--mesh-listen",
            &ports.mesh,
            "--api-listen",
            &ports.api,
            "--gateway-listen",
            &ports.gateway,
            "--ready-file",
            &ready_file.display().to_string(),
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let _ = fs::remove_file(&ready_file);
    let daemon = Daemon::start(layout, "coordinator", &layout.coordinator, args(&ports))?;
    daemons.push(daemon);
    let index = daemons.len() - 1;
    let deadline = Instant::now() + READY_WITHIN;
    let ready: Ready = loop {
        if let Ok(text) = read_small(&ready_file)
            && let Ok(ready) = serde_json::from_str::<Ready>(&text)
            && Some(ready.pid) == daemons[index].child.id()
        {
            break ready;
        }
        if let Some(status) = daemons[index].child.try_wait()? {
            return Err(died(layout, "coordinator", status));
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "the coordinator is not ready: see {}",
            layout.path("logs").display()
        );
        sleep(POLL).await;
    };
    let address = |url: &str| url.trim_start_matches("https://").to_owned();
    let ports = Ports {
        mesh: ready.mesh.clone(),
        api: address(&ready.api),
        gateway: address(&ready.gateway),
    };
    write_private(&ports_file, &toml::to_string(&ports)?)?;
    // Started again on the same ports: its nodes know them.
    daemons[index].args = args(&ports);
    Ok(ready)
}

async fn start_agent(
    layout: &Layout,
    client: &Client,
    name: &NodeId,
    tier: Tier,
    volumes: &toml::Table,
    daemons: &mut Vec<Daemon>,
) -> Result<()> {
    let data = layout.path(name.as_str());
    let enrolled = layout.path(&format!("{name}.enrolled"));
    if !enrolled.exists() {
        let request = JoinTokenRequest {
            tier,
            labels: BTreeMap::new(),
            node: Some(name.clone()),
            ttl: None,
        };
        let created: JoinTokenCreated = client.post("/v1/join-tokens", &request).await?;
        let token = layout.path(&format!("{name}.token"));
        write_private(&token, &created.token)?;
        let status = Command::new(&layout.agent)
            .args(["enroll", "--name", name.as_str(), "--token-file"])
            .arg(&token)
            .arg("--data-dir")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(layout.log(name.as_str())?)
            .kill_on_drop(true)
            .status()
            .await?;
        let _ = fs::remove_file(&token);
        if !status.success() {
            return Err(died(layout, name.as_str(), status));
        }
        write_private(&enrolled, "")?;
    }
    let mut config = toml::Table::new();
    // On one machine a lost session should show at once.
    config.insert("keep_alive".to_owned(), "1s".into());
    config.insert("volumes".to_owned(), volumes.clone().into());
    let config_file = layout.path(&format!("{name}.toml"));
    write_private(&config_file, &toml::to_string(&config)?)?;
    let args = vec![
        "run".to_owned(),
        "--data-dir".to_owned(),
        data.display().to_string(),
        "--config".to_owned(),
        config_file.display().to_string(),
    ];
    daemons.push(Daemon::start(layout, name.as_str(), &layout.agent, args)?);
    Ok(())
}

async fn wait_nodes(
    layout: &Layout,
    client: &Client,
    names: &[NodeId],
    daemons: &mut [Daemon],
) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
        let ready = |name: &&NodeId| {
            nodes
                .iter()
                .any(|node| node.id == **name && node.status == NodeStatus::Ready)
        };
        let missing: Vec<_> = names.iter().filter(|name| !ready(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if let Some(error) = supervise(layout, daemons) {
            return Err(error);
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "not ready after {} s: {missing:?}; see {}",
            READY_WITHIN.as_secs(),
            layout.path("logs").display()
        );
        sleep(POLL).await;
    }
}

/// The end of a daemon's log, as the reason of its death.
fn died(layout: &Layout, name: &str, status: std::process::ExitStatus) -> anyhow::Error {
    const TAIL_LINES: usize = 8;
    let path = layout.dir.join("logs").join(format!("{name}.log"));
    let log = fs::read(&path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log[log.len().saturating_sub(8 << 10)..]).into_owned();
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    anyhow!(
        "{name} ended ({status}); its log {} ends:\n  {tail}",
        path.display()
    )
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Agents first, so that they can say good-bye.
async fn stop_all(mut daemons: Vec<Daemon>) {
    note("stopping");
    let deadline = Instant::now() + STOP_WITHIN;
    daemons.reverse();
    for daemon in &mut daemons {
        daemon.signal_stop();
        if tokio::time::timeout_at(deadline, daemon.child.wait())
            .await
            .is_err()
        {
            note(&format!("{} did not stop in time: killed", daemon.name));
            let _ = daemon.child.kill().await;
        }
    }
}
