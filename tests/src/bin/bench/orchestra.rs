//! Runs the groups, each in a process of its own, and gathers their metrics.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::{
    figures::show,
    groups,
    machine::Machine,
    proc,
    report::{self, Line, MARK, Metric},
};

/// Longest time for one group; more than three times what the slowest takes on two cores.
pub(crate) const GROUP_MAX: Duration = Duration::from_secs(1500);
/// How often a signal to end is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// What goes beside the list of results.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Raw {
    /// Where.
    pub(crate) machine: Machine,
    /// Each metric with all of its runs.
    pub(crate) metrics: Vec<Line>,
}

/// The file beside a results file that describes the machine.
pub(crate) fn raw_path(results: &Path) -> PathBuf {
    results.with_extension("raw.json")
}

/// Measures what `names` select, prints a table, writes JSON. `false` when a group failed.
pub(crate) fn run(names: &[String], quick: bool, json: Option<&Path>) -> Result<bool> {
    let wanted: Vec<_> = groups::ALL
        .iter()
        .filter(|group| group.metrics.iter().any(|name| report::wanted(names, name)))
        .collect();
    anyhow::ensure!(
        !wanted.is_empty(),
        "no metric begins with {names:?}: see `hop3-bench list`"
    );
    proc::raise_open_files();
    let machine = Machine::here(quick);
    eprintln!("{}", machine.describe());
    // Everything that groups leave in files is under one directory, removed at the end.
    let dir = tempfile::Builder::new().prefix("hop3-bench-").tempdir()?;
    let interrupted = interrupts()?;
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for group in wanted {
        let begun = Instant::now();
        eprintln!("==> {}", group.name);
        let ended = group_process(
            group.name,
            names,
            quick,
            dir.path(),
            &interrupted,
            &mut lines,
        );
        if let Err(error) = ended {
            eprintln!("    failed: {error:#}");
            failed.push(group.name);
        }
        eprintln!("    {:.0} s", begun.elapsed().as_secs_f64());
        if interrupted.is_interrupted() {
            anyhow::bail!("interrupted");
        }
    }
    print_table(&lines);
    if let Some(path) = json {
        write(path, &lines, machine)?;
    }
    if !failed.is_empty() {
        eprintln!("failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn write(path: &Path, lines: &[Line], machine: Machine) -> Result<()> {
    let metrics: Vec<&Metric> = lines.iter().map(|line| &line.metric).collect();
    let text = serde_json::to_string_pretty(&metrics)?;
    std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    let raw = Raw {
        machine,
        metrics: lines.to_vec(),
    };
    let beside = raw_path(path);
    let text = serde_json::to_string_pretty(&raw)?;
    std::fs::write(&beside, text + "\n").with_context(|| beside.display().to_string())
}

fn print_table(lines: &[Line]) {
    let width = lines
        .iter()
        .map(|line| line.metric.name.len())
        .max()
        .unwrap_or(0);
    println!(
        "{:width$} {:>12} {:12} {:>12}",
        "metric", "value", "unit", "baseline"
    );
    for Line { metric, .. } in lines {
        let baseline = metric.baseline.map(show).unwrap_or_default();
        let Metric {
            name, value, unit, ..
        } = metric;
        println!(
            "{name:width$} {:>12} {unit:12} {baseline:>12}",
            show(*value)
        );
    }
}

/// Runs one group to its end; its metrics go to `lines` as they come.
fn group_process(
    group: &str,
    names: &[String],
    quick: bool,
    dir: &Path,
    interrupted: &Interrupts,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["group", group])
        .args(names)
        .env("TMPDIR", dir);
    if quick {
        command.arg("--quick");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start the group's process")?;
    // Its process group has the same number: nothing that it started outlives it.
    let all = KillGroup(i32::try_from(child.id()).ok().and_then(Pid::from_raw));
    let stdout = child.stdout.take().context("no pipe")?;
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + GROUP_MAX;
    let status = loop {
        match receive.recv_timeout(LOOK) {
            Ok(line) => take(&line, lines),
            Err(RecvTimeoutError::Disconnected) => break child.wait()?,
            // What it started may hold the pipe open after its end.
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    receive.try_iter().for_each(|line| take(&line, lines));
                    break status;
                }
            }
        }
        anyhow::ensure!(!interrupted.is_interrupted(), "interrupted");
        anyhow::ensure!(Instant::now() < deadline, "not done within {GROUP_MAX:?}");
    };
    drop(all);
    let _ = reader.join();
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}

fn take(line: &str, lines: &mut Vec<Line>) {
    let parsed = line.strip_prefix(MARK).map(serde_json::from_str::<Line>);
    match parsed {
        Some(Ok(line)) => {
            let Metric {
                name,
                value,
                unit,
                baseline,
            } = &line.metric;
            let baseline = baseline
                .map(|b| format!("  ({})", show(b)))
                .unwrap_or_default();
            eprintln!("    {name} = {} {unit}{baseline}", show(*value));
            lines.push(line);
        }
        Some(Err(error)) => eprintln!("    bad metric: {error}"),
        None => eprintln!("    {line}"),
    }
}

struct KillGroup(Option<Pid>);

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Whether somebody asked this program to end.
struct Interrupts(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Interrupts {
    fn is_interrupted(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Groups are in process groups of their own, which the terminal's Ctrl-C does not reach.
fn interrupts() -> Result<Interrupts> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let raised = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut int), Ok(mut term)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) else {
                return;
            };
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            raised.store(true, std::sync::atomic::Ordering::Relaxed);
            std::future::pending::<()>().await;
        });
    });
    Ok(Interrupts(flag))
}
