//! Seeded simulation of ownership: see `sim`. A failing seed prints `HOP3_SEED=…`, which replays
//! just that one; `HOP3_LONG=1` runs many more.
#![allow(clippy::print_stdout)]

mod sim;

use sim::world::{Break, Counts, World};

/// Things go wrong for so long, ms.
const TROUBLE_MS: u64 = 25_000;
/// And all must be well after that, ms.
const CONVERGED_MS: u64 = 15_000;

/// In one of so many schedules the coordinator is away for an hour.
const LONELY: u64 = 100;

/// One schedule.
fn run(seed: u64, broken: Break) -> Result<Counts, String> {
    let mut world = World::new(seed, broken);
    world.run_until(world.now + TROUBLE_MS);
    if seed.is_multiple_of(LONELY) {
        world.lonely_hour();
        world.run_until(world.now + TROUBLE_MS);
    }
    world.heal();
    world.run_until(world.now + CONVERGED_MS);
    if world.violation.is_none() {
        world.check_converged();
    }
    world.violation.map_or(Ok(world.counts), Err)
}

#[test]
fn every_schedule_keeps_the_invariants_and_converges() {
    let one = std::env::var("HOP3_SEED").ok();
    let long = std::env::var_os("HOP3_LONG").is_some();
    let seeds = match one.map(|seed| seed.parse().expect("HOP3_SEED is a number")) {
        Some(seed) => seed..seed + 1,
        None => 0..if long { 100_000 } else { 2_000 },
    };
    let (schedules, mut all) = (seeds.end - seeds.start, Counts::default());
    for seed in seeds {
        match run(seed, Break::Nothing) {
            Ok(counts) => all.add(counts),
            Err(what) => panic!("HOP3_SEED={seed}: {what}"),
        }
    }
    let Counts {
        events,
        acked,
        failovers,
        moves,
        takeovers,
        ..
    } = all;
    let Counts {
        resumed,
        fenced,
        crashes,
        restarts,
        partitions,
        ..
    } = all;
    println!(
        "sim: schedules={schedules} events={events} violations=0 failovers={failovers} \
         moves={moves} takeovers={takeovers} resumed={resumed} fenced={fenced} acked={acked} \
         crashes={crashes} restarts={restarts} partitions={partitions}"
    );
    assert!(
        schedules == 1
            || [failovers, moves, takeovers, resumed, fenced]
                .iter()
                .all(|n| *n > 0)
    );
}

#[test]
fn broken_rules_show() {
    let rules = [
        Break::NoLeaseCheck,
        Break::AckBeforeSync,
        Break::AckBeforeReplica,
        Break::NoWait,
        Break::NoWaitAfterRestart,
        Break::StreamBeforeSync,
        Break::AnyStreamWrites,
        Break::NoBar,
        Break::WallClock,
    ];
    for broken in rules {
        let mut runs = (0..10_000).map(|seed| (seed, run(seed, broken)));
        let found = runs.find_map(|(seed, run)| Some((seed, run.err()?)));
        let Some((seed, what)) = found else {
            panic!("nothing broke with {broken:?}");
        };
        let what: String = what.chars().take(160).collect();
        println!("sim: {broken:?}: seed {seed}: {what}");
    }
}
