//! `hop3 task run` as a person types it: process start, TLS, upload if the module is new,
//! placement, run, output, exit code, process end.

use std::time::Instant;

use anyhow::Result;
use hop3_tests::guest;

use super::coldstart::variants;
use crate::{cast, report::Bench, stage};

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    let hello = guest("hello").display().to_string();
    let once = |path: &str| {
        let begun = Instant::now();
        mesh.hop3(&["task", "run", path, "--", "bench"]).ok();
        cast::ms(begun.elapsed())
    };
    for _ in 0..2 {
        once(&hello);
    }
    let known: Vec<f64> = (0..bench.pick(7, 25)).map(|_| once(&hello)).collect();
    bench.report("task.run_ms", &known, None);
    let fresh = variants(&mesh, "hello", "new", bench.pick(5, 15))?;
    let fresh: Vec<f64> = fresh.iter().map(|path| once(path)).collect();
    bench.report("task.first_ms", &fresh, None);
    Ok(())
}
