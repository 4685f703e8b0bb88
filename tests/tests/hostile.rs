//! Hostile guests, all at once on one node: every one of them ends as it must, the agent stays
//! whole, small and quick, and who shares the node with them is served.

// The counts of a run are its result.
#![allow(clippy::print_stdout)]

#[path = "hostile/services.rs"]
mod services;
#[path = "hostile/tasks.rs"]
mod tasks;

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hop3_tests::{Mesh, Options, Web, eventually, guest, web::block_on, within};
use serde_json::Value;
use services::{Asks, Service};
use tasks::Task;

/// Tasks at once on the node, each with at most so much memory.
const TASKS_MAX: u64 = 4;
const TASK_BYTES: u64 = 64 << 20;
/// Beside what guests may have: two compilations of the largest modules here, loaded code, log
/// rings, buffers of the mesh.
const AGENT_BYTES: u64 = 192 << 20;
/// Time between the neighbour's requests: a pace, nothing waits for it.
const PACE: Duration = Duration::from_millis(10);
/// Time between looks at a task, and between the neighbour's tasks.
const LOOK: Duration = Duration::from_millis(250);
/// Compiling all of it on a busy machine takes a while.
const LONG: Duration = Duration::from_secs(150);

fn long() -> bool {
    std::env::var_os("HOP3_LONG").is_some()
}

/// A number of `/proc/PID/status`, KiB.
fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or_else(|| panic!("no {field} in the status of {pid}"))
}

fn push(mesh: &Mesh, name: &str, wat: &str) -> Result<(), String> {
    let wasm = wat::parse_str(wat).unwrap_or_else(|error| panic!("{name}: {error}"));
    let file = mesh.file(&format!("{name}.wasm"), wasm);
    let file = file.display().to_string();
    let pushed = mesh.hop3(&["artifact", "push", &file, "--name", name]);
    match pushed.code {
        0 => Ok(()),
        _ => Err(pushed.stderr),
    }
}

fn apply(mesh: &Mesh, service: &Service) -> Result<(), String> {
    push(mesh, service.name, &service.wat)?;
    let manifest = format!(
        "kind: Service\nname: {name}\nspec:\n  module: {name}\n  limits: {limits}\n  {spec}\n",
        name = service.name,
        limits = services::LIMITS,
        spec = service.spec,
    );
    let applied = mesh.hop3_with(
        &["apply", "-f", "-", "--no-wait", "--output", "json"],
        manifest.as_bytes(),
    );
    match applied.code {
        0 => Ok(()),
        _ => Err(applied.stderr),
    }
}

fn submit(mesh: &Mesh, task: &Task) -> String {
    let manifest = format!(
        "kind: Task\nname: {name}\nspec:\n  module: t-{name}\n  limits: {limits}\n",
        name = task.name,
        limits = task.limits,
    );
    let file = mesh.file(&format!("{}.yaml", task.name), manifest);
    mesh.submit(&["-f", &file.display().to_string()])
}

/// A status, or the code of Hop3's own that is in the answer.
fn outcome(status: u16, text: &str) -> String {
    let code = text.find("HOP3-").and_then(|at| text.get(at..at + 9));
    code.map_or(status.to_string(), str::to_owned)
}

/// Asks one hostile service everything, in turn.
async fn ask(web: &Web, service: &Service, counts: &mut BTreeMap<String, u32>) -> Vec<String> {
    let Asks::Answers(asks) = &service.asks else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    for (path, expected) in asks {
        let name = service.name;
        let answer = web.get(&format!("/{name}{path}")).await;
        let answer = answer.unwrap_or_else(|error| panic!("{name}{path}: {error:?}"));
        let found = outcome(answer.status, &answer.text);
        if !expected.split(' ').any(|one| one == found) {
            let text = answer.text;
            wrong.push(format!(
                "{name}{path}: {expected} expected, {found}: {text}"
            ));
        }
        *counts.entry(found).or_default() += 1;
    }
    wrong
}

/// How a task must end, and how it ended.
fn task_end(mesh: &Mesh, id: &str) -> Option<(String, Value)> {
    let deadline = Instant::now() + LONG;
    let task = loop {
        let task = mesh.json(&["task", "show", id]);
        let ended = ["succeeded", "failed", "cancelled"].contains(&task["phase"].as_str()?);
        if ended || Instant::now() >= deadline {
            break task;
        }
        // Looking costs more than the task, and comes before it.
        thread::park_timeout(LOOK);
    };
    let end = &task["result"]["end"];
    let code = end["failed"]["code"].as_str().map(str::to_owned);
    let exited = end["exited"].as_i64().map(|code| code.to_string());
    Some((code.or(exited).unwrap_or_default(), task))
}

/// Somebody who means well, on the same node: a counter that is asked all the time, and a task
/// that is run all the time.
struct Neighbour {
    stop: Arc<AtomicBool>,
    worst_ms: Arc<AtomicU32>,
    asks: thread::JoinHandle<u64>,
    runs: thread::JoinHandle<u64>,
}

impl Neighbour {
    fn start(mesh: &Arc<Mesh>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let worst_ms = Arc::new(AtomicU32::new(0));
        let (web, stopped, worst) = (Web::new(mesh), stop.clone(), worst_ms.clone());
        let asks = thread::spawn(move || {
            block_on(async {
                let mut count = 0;
                let mut pace = tokio::time::interval(PACE);
                while !stopped.load(Ordering::Relaxed) {
                    pace.tick().await;
                    count += 1;
                    let began = Instant::now();
                    let answer = web.post("/good/a/add?n=1", "").await;
                    let answer = answer.unwrap_or_else(|error| panic!("{error:?}"));
                    let text = answer.text.trim();
                    assert_eq!((answer.status, text), (200, count.to_string().as_str()));
                    let took = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
                    worst.fetch_max(took, Ordering::Relaxed);
                }
                count
            })
        });
        let (mesh, stopped) = (mesh.clone(), stop.clone());
        let runs = thread::spawn(move || {
            let hello = guest("hello").display().to_string();
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let said = mesh
                    .hop3(&["task", "run", &hello, "--wait", "--", "a"])
                    .ok();
                assert!(!said.is_empty());
                count += 1;
                thread::park_timeout(LOOK);
            }
            count
        });
        Self {
            stop,
            worst_ms,
            asks,
            runs,
        }
    }

    /// Requests and runs that were answered, and the slowest request, ms.
    fn stop(self) -> (u64, u64, u32) {
        self.stop.store(true, Ordering::Relaxed);
        let asks = self
            .asks
            .join()
            .unwrap_or_else(|_| panic!("a neighbour was harmed"));
        let runs = self
            .runs
            .join()
            .unwrap_or_else(|_| panic!("a neighbour was harmed"));
        (asks, runs, self.worst_ms.load(Ordering::Relaxed))
    }
}

/// What the agent may use of the machine, bytes, when it used `idle` before: an instance has its
/// memory and the image of it, and the same of its key-value data.
fn budget(idle: u64, services: &[Service]) -> u64 {
    let each = 2 * services::MEMORY_BYTES + 2 * services::KV_BYTES + services::QUEUE_BYTES;
    idle + services.len() as u64 * each + TASKS_MAX * TASK_BYTES + AGENT_BYTES
}

fn loop_p99_ms(mesh: &Mesh) -> u64 {
    let node = mesh.node("edge-1");
    node["latest"]["loop_delay_p99_ms"].as_u64().unwrap_or(0)
}

#[test]
fn hostile_guests_harm_nobody() {
    let mesh = Mesh::with(Options {
        nodes: vec![("edge-1", "edge")],
        agent_config: format!("tasks_max = {TASKS_MAX}\n"),
        ..Options::default()
    });
    let pid = mesh.agents["edge-1"].pid();
    let good = guest("counters").display().to_string();
    mesh.hop3(&["artifact", "push", &good]).ok();
    mesh.apply("kind: Service\nname: good\nspec: {module: counters, state: single}\n")
        .ok();
    let idle = status_kib(pid, "VmHWM") << 10;
    let (services, tasks) = (services::all(), tasks::all());
    for task in &tasks {
        let pushed = push(&mesh, &format!("t-{}", task.name), &task.wat);
        pushed.unwrap_or_else(|why| panic!("{}: {why}", task.name));
    }

    let shared = Arc::new(mesh);
    let neighbour = Neighbour::start(&shared);
    let mesh_ref = &*shared;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut refused = BTreeMap::new();
    for service in &services {
        if let Err(why) = apply(mesh_ref, service) {
            refused.insert(service.name, why);
        }
    }
    for service in &services {
        settle(mesh_ref, service, refused.get(service.name), &mut wrong);
        if !matches!(service.asks, Asks::Answers(_)) {
            *counts.entry("unready".to_owned()).or_default() += 1;
        }
    }
    let mut p99 = 0;
    let mut ids = Vec::new();
    for round in 0..if long() { 4 } else { 2 } {
        if round == 0 || long() {
            let submitted = tasks.iter().map(|task| (task, submit(mesh_ref, task)));
            ids.extend(submitted);
        }
        let web = Web::new(mesh_ref);
        let all = services.iter().map(|service| {
            let web = &web;
            async move {
                let mut counts = BTreeMap::new();
                (ask(web, service, &mut counts).await, counts)
            }
        });
        for (found, more) in block_on(join_all(all)) {
            wrong.extend(found);
            for (outcome, n) in more {
                *counts.entry(outcome).or_default() += n;
            }
        }
        p99 = p99.max(loop_p99_ms(mesh_ref));
    }
    for (task, id) in &ids {
        let (end, view) = task_end(mesh_ref, id).unwrap_or_else(|| panic!("{id} has no phase"));
        if end != task.end {
            let name = task.name;
            wrong.push(format!("task {name}: {} expected, {end}: {view}", task.end));
        }
        *counts.entry(end).or_default() += 1;
    }
    // A sample that was taken after the last of it.
    let seen = mesh_ref.node("edge-1")["latest"]["at"].clone();
    p99 = p99.max(eventually("another sample", || {
        let node = mesh_ref.node("edge-1");
        let latest = &node["latest"];
        (latest["at"] != seen).then(|| latest["loop_delay_p99_ms"].as_u64())?
    }));
    let (asked, ran, worst_ms) = neighbour.stop();
    let peak = status_kib(pid, "VmHWM") << 10;
    let budget = budget(idle, &services);
    let outcomes: Vec<String> = counts.iter().map(|(k, n)| format!("{k}:{n}")).collect();
    println!(
        "hostile: guests={} outcomes={} loop_p99_ms={p99} agent_rss_peak_mib={} budget_mib={} \
         neighbour_requests={asked} neighbour_worst_ms={worst_ms} neighbour_tasks={ran}",
        services.len() + tasks.len(),
        outcomes.join(","),
        peak >> 20,
        budget >> 20,
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked > 0 && ran > 0);
    assert!(peak <= budget, "{} MiB of {} MiB", peak >> 20, budget >> 20);
    if long() {
        assert!(p99 < 50, "the event loop is {p99} ms late");
    }
    let mut mesh = Arc::into_inner(shared).unwrap_or_else(|| panic!("a neighbour still runs"));
    let agent = mesh
        .agents
        .get_mut("edge-1")
        .unwrap_or_else(|| panic!("no agent"));
    assert!(agent.ended().is_none() && agent.pid() == pid);
    let log = agent.log();
    assert_eq!(log.matches("agent started").count(), 1, "it was restarted");
    assert!(!log.contains("panicked"), "{log}");
}

/// Waits until a service is ready, or as bad as it must be.
fn settle(mesh: &Mesh, service: &Service, refused: Option<&String>, wrong: &mut Vec<String>) {
    let name = service.name;
    match (&service.asks, refused) {
        (Asks::Refused(code), Some(why)) if why.contains(code) => {}
        (Asks::Refused(code), why) => wrong.push(format!("{name}: {code} expected, {why:?}")),
        (_, Some(why)) => wrong.push(format!("{name} was refused: {why}")),
        (Asks::Answers(_), None) => within(LONG, &format!("{name} is ready"), || {
            (mesh.service(name)["status"] == "ready").then_some(())
        }),
        (Asks::NeverReady(code), None) => within(LONG, &format!("{name} fails"), || {
            let service = mesh.service(name);
            let reason = service["instances"][0]["reason"].as_str()?;
            reason.contains(code).then_some(())
        }),
    }
}
