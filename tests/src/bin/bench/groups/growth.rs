//! What a day of a busy durable service leaves on the disk and has written to it: a change a
//! second for 24 hours, at full speed. One after another, so that each is a commit of its own, as
//! it would be at that pace.
//!
//! Twice: with the default schedule of checkpoints, of which few come in the minute that it takes,
//! and (`minutes`) with a checkpoint asked for where the schedule of a real day would make one.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hop3_tests::{Mesh, web::block_on};

use super::services::{apply, push};
use crate::{
    cast,
    http::{Api, Connection},
    proc,
    report::{Bench, say},
    stage,
};

/// Keys, which change in turn.
const KEYS: u32 = 1000;
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Changes between two checkpoints at one a second, by the default of a minute.
const CHANGES_A_MINUTE: u32 = 60;
/// Between looks at the disk.
const LOOK: Duration = Duration::from_millis(250);

/// With the default schedule of checkpoints.
pub(super) fn run(bench: &Bench) -> Result<()> {
    day(bench, false, "")
}

/// With as many checkpoints as in a real day.
pub(super) fn run_minutes(bench: &Bench) -> Result<()> {
    day(bench, true, ".minutes")
}

fn day(bench: &Bench, checkpoints: bool, case: &str) -> Result<()> {
    let changes = bench.pick(8_640, 86_400);
    let mut day = Day::begin()?;
    let (start, before) = (day.peak, proc::written(day.agent)?);
    let begun = Instant::now();
    let sent = block_on(day.pass(changes, checkpoints))?;
    let took = begun.elapsed();
    let after = proc::written(day.agent)?;
    let end = day.look();
    let (to_disk, by_calls) = (
        after.to_disk - before.to_disk,
        after.by_calls - before.by_calls,
    );
    say(format_args!(
        "{changes} changes in {:.0} s: {sent} bytes sent, {to_disk} to the disk, {by_calls} \
             by calls of write",
        took.as_secs_f64()
    ));
    let counted = if to_disk == 0 {
        say("this file system does not count what goes to a disk: calls of write count");
        by_calls
    } else {
        to_disk
    };
    let mib = |bytes: u64| cast::mib(bytes / 1024);
    let report = |what: &str, figure: f64| {
        bench.report(&format!("growth.{what}{case}"), &[figure], None);
    };
    report(
        "write_amplification",
        cast::figure(counted) / cast::figure(sent),
    );
    if !checkpoints {
        report("disk_mib_start", mib(start));
    }
    report("disk_mib_end", mib(end));
    report("disk_mib_peak", mib(day.peak));
    Ok(())
}

struct Day {
    mesh: Mesh,
    agent: u32,
    /// The agent's data directory, and the largest size that it had.
    dir: PathBuf,
    peak: u64,
    looked: Instant,
}

impl Day {
    fn begin() -> Result<Self> {
        let mesh = stage::mesh();
        push(&mesh, "svc_store");
        apply(
            &mesh,
            "store",
            "svc_store",
            "state: single\n  durability: node",
        );
        let mut day = Self {
            agent: stage::agent_pid(&mesh)?,
            dir: mesh.path(stage::NODE),
            mesh,
            peak: 0,
            looked: Instant::now(),
        };
        day.look();
        Ok(day)
    }

    /// What the agent's data directory takes now.
    fn look(&mut self) -> u64 {
        let now = proc::disk_usage(&self.dir);
        self.peak = self.peak.max(now);
        self.looked = Instant::now();
        now
    }

    /// Makes all changes and checks what is there afterwards. How many bytes of keys and values
    /// were sent.
    async fn pass(&mut self, changes: u32, checkpoints: bool) -> Result<u64> {
        let gateway = Api::at(&self.mesh, &self.mesh.gateway)?;
        let api = Api::of(&self.mesh)?;
        let checkpoint = "/v1/services/store/checkpoint";
        let checkpoint = api.request("POST", checkpoint, "application/json", b"");
        let mut orders = api.connect().await?;
        let mut client = gateway.connect().await?;
        let mut last = vec![Vec::new(); KEYS as usize];
        let (mut sent, mut draw) = (0, Draw(0x9e37_79b9_7f4a_7c15));
        for change in 0..changes {
            let key = change % KEYS;
            let value = draw.bytes();
            let kind = "application/octet-stream";
            let request = gateway.request("PUT", &path(key), kind, &value);
            client.good(&request).await?;
            sent += (name(key).len() + value.len()) as u64;
            last[key as usize] = value;
            if checkpoints && (change + 1).is_multiple_of(CHANGES_A_MINUTE) {
                orders.good(&checkpoint).await?;
            }
            if self.looked.elapsed() >= LOOK {
                self.look();
            }
        }
        check(&gateway, &mut client, &last).await?;
        Ok(sent)
    }
}

async fn check(gateway: &Api, client: &mut Connection, last: &[Vec<u8>]) -> Result<()> {
    for (key, value) in (0..).zip(last) {
        let request = gateway.request("GET", &path(key), "text/plain", b"");
        let answer = client.good(&request).await.context(name(key))?;
        anyhow::ensure!(answer.body == value.as_slice(), "{} is wrong", name(key));
    }
    Ok(())
}

fn name(key: u32) -> String {
    format!("k{key:03}")
}

fn path(key: u32) -> String {
    format!("/store/{}", name(key))
}

/// Bytes that do not compress, the same in every run: xorshift.
struct Draw(u64);

impl Draw {
    fn bytes(&mut self) -> Vec<u8> {
        let words = std::iter::repeat_with(|| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        });
        words.flatten().take(VALUE_BYTES).collect()
    }
}
