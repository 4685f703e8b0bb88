//! How much was tried to break it, and what broke: the counts that the tests print.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::report::Bench;

/// The tests that count, for nextest.
const COUNTING: &str = "test(/power/) | binary(simulation)";

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mut tests = Command::new("cargo");
    tests.args(["nextest", "run", "--workspace", "--locked", "--no-capture"]);
    tests.args(["-E", COUNTING]);
    if bench.pick(false, true) {
        tests.env("HOP3_LONG", "1");
    }
    let output = tests.output().context("cargo nextest does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(
        output.status.success(),
        "the tests failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let sum = |line: &str, key: &str| counted(&text, line, key);
    bench.report("powercut.images", &[sum("powercut:", "images")], None);
    bench.report("powercut.lost", &[sum("powercut:", "lost")], None);
    bench.report("sim.schedules", &[sum("sim:", "schedules")], None);
    bench.report("sim.violations", &[sum("sim:", "violations")], None);
    Ok(())
}

/// The sum of `key=N` over all lines that begin with `line`.
fn counted(text: &str, line: &str, key: &str) -> f64 {
    let lines = text
        .lines()
        .filter_map(|said| said.trim().strip_prefix(line));
    let words = lines.flat_map(|said| said.split([' ', ',']));
    let values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_lines() {
        let text = "x\npowercut: of=a, workloads=2, images=40, lost=0\nsim: schedules=7 \
                    violations=0\npowercut: of=b, images=2, lost=0\n";
        assert_eq!(
            counted(text, "powercut:", "images").to_bits(),
            42f64.to_bits()
        );
        assert_eq!(counted(text, "sim:", "schedules").to_bits(), 7f64.to_bits());
    }
}
