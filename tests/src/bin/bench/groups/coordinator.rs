//! Start-up of the control plane: from the start of the process to the ready file, which appears
//! when both ports are bound. A first start makes CA, keys and admin token; a restart finds the
//! data of a process that was killed.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use hop3_tests::{Daemon, PATIENCE, bin};

use crate::{cast, proc, report::Bench};

/// Between looks for the ready file.
const LOOK: Duration = Duration::from_micros(250);

pub(super) fn run(bench: &Bench) -> Result<()> {
    let runs = bench.pick(5, 15);
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let dir = tempfile::tempdir()?;
        for times in [&mut first, &mut again] {
            let (mut daemon, took) = start(dir.path())?;
            daemon.kill();
            let took = cast::ms(took);
            // The first of all reads the program from the disk.
            if run > 0 {
                times.push(took);
            }
        }
    }
    bench.report("coordinator.start_ms", &first, None);
    bench.report("coordinator.restart_ms", &again, None);
    Ok(())
}

/// Starts a coordinator whose files are in `dir`: it, and how long until its ready file was there.
pub(super) fn start(dir: &Path) -> Result<(Daemon, Duration)> {
    let ready = dir.join("ready.json");
    let _ = std::fs::remove_file(&ready);
    let mut command = Command::new(bin("hop3-coordinator"));
    let listen = "127.0.0.1:0";
    command.args([
        "run",
        "--mesh",
        "bench",
        "--mesh-listen",
        listen,
        "--api-listen",
        listen,
    ]);
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--ready-file")
        .arg(&ready);
    let begun = Instant::now();
    let mut daemon = Daemon::start(command, &dir.join("log"));
    while !ready.exists() {
        if daemon.ended().is_some() || begun.elapsed() > PATIENCE {
            bail!("the coordinator did not start: {}", daemon.log());
        }
        proc::pause(LOOK);
    }
    let took = begun.elapsed();
    Ok((daemon, took))
}
