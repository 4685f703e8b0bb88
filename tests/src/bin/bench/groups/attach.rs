//! Throughput of an attached task: `hop3 task run upper.wasm < FILE > FILE` against `tr a-z A-Z`
//! on the same file. Bytes go CLI → coordinator → agent → guest and back, with flow control.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};
use hop3_tests::guest;

use crate::{cast, figures, report::Bench, stage};

/// Bytes of a line, its end included.
const LINE_BYTES: usize = 4096;

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    let bytes = bench.pick(16 << 20, 64 << 20);
    let input = mesh.file("input", text(bytes));
    let output = mesh.path("output");
    let module = guest("upper").display().to_string();
    // Compiles it.
    mesh.hop3_with(&["task", "run", &module], b"warm\n").ok();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.pick(2, 5) {
        ours.push(mb_per_s(
            mesh.command(&["task", "run", &module]),
            &input,
            &output,
        )?);
        let upper = std::fs::read(&output)?;
        let mut tr = Command::new("tr");
        tr.args(["a-z", "A-Z"]).env("LC_ALL", "C");
        theirs.push(mb_per_s(tr, &input, &output)?);
        anyhow::ensure!(
            upper == std::fs::read(&output)?,
            "the task's output is wrong"
        );
    }
    bench.report("attach.mb_per_s", &ours, Some(figures::median(&theirs)));
    Ok(())
}

fn text(bytes: usize) -> Vec<u8> {
    let byte = |i: usize| match i % LINE_BYTES {
        end if end == LINE_BYTES - 1 => b'\n',
        at => b'a' + (at % 23) as u8,
    };
    (0..bytes).map(byte).collect()
}

fn mb_per_s(mut command: Command, input: &Path, output: &Path) -> Result<f64> {
    let bytes = std::fs::metadata(input)?.len();
    let begun = Instant::now();
    let ran = command
        .stdin(File::open(input)?)
        .stdout(File::create(output)?)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("{command:?}"))?;
    let took = begun.elapsed().as_secs_f64();
    anyhow::ensure!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(cast::figure(bytes) / 1e6 / took)
}
