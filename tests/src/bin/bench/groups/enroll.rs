//! Enrolments per second: a coordinator, one load process. Join tokens are made first, over REST;
//! then 32 at once connect, send token and CSR, and get their certificates, which they check.
//! Each enrolment is durable before it is answered, so the disk's sync time is in it.

use std::time::Instant;

use anyhow::Result;

use crate::{
    cast,
    fleet::{self, Door, tokens},
    http::Api,
    report::Bench,
    stage,
};

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::coordinator();
    let runtime = fleet::runtime()?;
    let (runs, count) = (bench.pick(2, 4), bench.pick(100, 400));
    let (mut enrolled, mut made) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let (door, api) = (Door::new(&mesh)?, Api::of(&mesh)?);
        let per_s = |count: usize, begun: Instant| {
            cast::figure(count as u64) / begun.elapsed().as_secs_f64()
        };
        for run in 0..runs {
            let begun = Instant::now();
            let tokens = tokens(&api, run * count, count).await?;
            made.push(per_s(count, begun));
            let begun = Instant::now();
            door.enroll_all(&tokens).await?;
            enrolled.push(per_s(count, begun));
        }
        anyhow::Ok(())
    })?;
    bench.report("enroll.per_s", &enrolled, None);
    bench.report("enroll.tokens_per_s", &made, None);
    Ok(())
}
