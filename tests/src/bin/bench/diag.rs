//! Where an agent's memory is: `smaps_rollup`, and PSS by what is mapped. For people who look for
//! what to save; nothing here is published.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use hop3_tests::guest;

use crate::{
    cast,
    figures::show,
    groups::deploy_digits,
    proc::{self, field},
    stage,
};

/// Mappings shown.
const TOP: usize = 14;

/// Prints the memory of a real agent: idle, after a task, with a model; and its children's.
pub(crate) fn run() -> Result<()> {
    proc::raise_open_files();
    let mesh = stage::mesh();
    let pid = stage::agent_pid(&mesh)?;
    proc::settled_pss_mib(pid)?;
    show_process("agent, idle", pid)?;
    let cpu = proc::cpu_percent(pid, Duration::from_secs(10))?;
    println!("CPU while idle for 10 s: {} % of a core\n", show(cpu));
    mesh.hop3(&["task", "run", &guest("hello").display().to_string()])
        .ok();
    proc::settled_pss_mib(pid)?;
    show_process("agent, after a task", pid)?;
    deploy_digits(&mesh);
    proc::settled_pss_mib(pid)?;
    show_process("agent, with a model", pid)?;
    for child in proc::children(pid) {
        show_process("model process", child)?;
    }
    show_process("coordinator", mesh.coordinator.pid())
}

fn show_process(what: &str, pid: u32) -> Result<()> {
    let threads = proc::status(pid, "Threads").unwrap_or(0);
    println!("== {what} (pid {pid}, {threads} threads)");
    for (name, kib) in proc::rollup(pid)? {
        if kib > 0 {
            println!("{name:>20} {:>9} MiB", show(cast::mib(kib)));
        }
    }
    println!(
        "{:>20} {:>9} {:>9} {:>9}  mappings",
        "by mapping, MiB", "pss", "private", "rss"
    );
    for (name, sum) in mappings(pid)?.into_iter().take(TOP) {
        let [pss, private, rss] = [sum.pss, sum.private, sum.rss].map(|kib| show(cast::mib(kib)));
        println!(
            "{:>20} {pss:>9} {private:>9} {rss:>9}  {} × {name}",
            "", sum.count
        );
    }
    println!();
    Ok(())
}

/// Memory of all mappings of one name and protection, KiB.
#[derive(Default)]
struct Sum {
    pss: u64,
    private: u64,
    rss: u64,
    count: u32,
}

/// Mappings by name and protection, largest PSS first.
fn mappings(pid: u32) -> Result<Vec<(String, Sum)>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).context(path)?;
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            let mut words = line.split_whitespace().skip(1);
            let protection = words.next().unwrap_or_default();
            let file = words.nth(3).unwrap_or("[anonymous]");
            name = format!("{protection} {}", file.rsplit('/').next().unwrap_or(file));
            sums.entry(name.clone()).or_default().count += 1;
        } else if let Some((field, kib)) = field(line) {
            let sum = sums.entry(name.clone()).or_default();
            match field.as_str() {
                "Pss" => sum.pss += kib,
                "Rss" => sum.rss += kib,
                "Private_Clean" | "Private_Dirty" => sum.private += kib,
                _ => {}
            }
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.pss));
    Ok(sums)
}
