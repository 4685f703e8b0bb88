//! What the kernel knows of a process: memory, CPU time, children.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{cast, figures};

/// Unit of `st_blocks`.
const BLOCK: u64 = 512;
/// Looks that must agree before memory counts as settled, one per second.
const LOOKS: usize = 5;
/// They agree when they are within this part of each other.
const AGREE: f64 = 0.01;
/// Longest wait for that, in looks.
const LOOKS_MAX: usize = 60;

/// Fields of `smaps_rollup`, in KiB.
pub(crate) fn rollup(pid: u32) -> Result<BTreeMap<String, u64>> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(text.lines().skip(1).filter_map(field).collect())
}

/// `Name:   123 kB`.
pub(crate) fn field(line: &str) -> Option<(String, u64)> {
    let (name, rest) = line.split_once(':')?;
    let kib = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some((name.to_owned(), kib))
}

/// Proportional set size: private memory and this process's part of what is shared.
pub(crate) fn pss_mib(pid: u32) -> Result<f64> {
    Ok(cast::mib(
        *rollup(pid)?
            .get("Pss")
            .context("no Pss: smaps_rollup needs Linux 4.14")?,
    ))
}

/// Resident set size.
pub(crate) fn rss_mib(pid: u32) -> Result<f64> {
    Ok(cast::mib(*rollup(pid)?.get("Rss").context("no Rss")?))
}

/// Waits until PSS stays the same for some seconds; returns those looks.
pub(crate) fn settled_pss_mib(pid: u32) -> Result<Vec<f64>> {
    let mut looks = Vec::new();
    loop {
        looks.push(pss_mib(pid)?);
        let last = &looks[looks.len().saturating_sub(LOOKS)..];
        let middle = figures::median(last);
        let agree = last
            .iter()
            .all(|look| (look - middle).abs() <= middle * AGREE);
        if (last.len() == LOOKS && agree) || looks.len() == LOOKS_MAX {
            return Ok(last.to_vec());
        }
        pause(Duration::from_secs(1));
    }
}

/// Bytes that a process wrote so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Pages that it had written to a disk; 0 where the file system does not count them (tmpfs).
    pub(crate) to_disk: u64,
    /// What it gave to `write` and its kin: files, pipes, wake-ups; not what sockets send.
    pub(crate) by_calls: u64,
}

/// What a process wrote so far, with all of its threads.
pub(crate) fn written(pid: u32) -> Result<Written> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let number = |name: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let value = fields.find(|(field, _)| *field == name)?.1;
        value.trim().parse().ok()
    };
    Ok(Written {
        to_disk: number("write_bytes").context("no write_bytes")?,
        by_calls: number("wchar").context("no wchar")?,
    })
}

/// What the files below a directory take on the disk, in bytes.
pub(crate) fn disk_usage(dir: &Path) -> u64 {
    // What goes while we look takes nothing.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let own = metadata.blocks() * BLOCK;
        let below = match metadata.is_dir() {
            true => disk_usage(&entry.path()),
            false => 0,
        };
        Some(own + below)
    });
    sizes.sum()
}

/// Lets time pass: a measurement's window, not a synchronisation.
pub(crate) fn pause(time: Duration) {
    let until = std::time::Instant::now() + time;
    while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// CPU time of all of a process's threads so far, user and system; exact to a tick (10 ms).
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // After the command's name, which may hold anything: state is field 3.
    let (_, rest) = text.rsplit_once(')').with_context(|| path.clone())?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let (user, system) = (ticks().context("no utime")?, ticks().context("no stime")?);
    let hz = cast::figure(rustix::param::clock_ticks_per_second());
    Ok(Duration::from_secs_f64(cast::figure(user + system) / hz))
}

/// CPU time used in a window from now on, in percent of one core.
pub(crate) fn cpu_percent(pid: u32, window: Duration) -> Result<f64> {
    let (before, begun) = (cpu(pid)?, std::time::Instant::now());
    pause(window);
    let used = cpu(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0)
}

/// Direct children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parent.and_then(|parent| parent.parse().ok()) == Some(pid)
    };
    pids.filter(is_child).collect()
}

/// One number of `/proc/PID/status` (`Threads`, …).
pub(crate) fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Takes as many open files as this process may have; its children inherit it.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        eprintln!("open files stay limited to {:?}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_time_and_threads() {
        let pid = std::process::id();
        assert!(pss_mib(pid).is_ok_and(|pss| pss > 0.1));
        assert!(rss_mib(pid).is_ok_and(|rss| rss > 0.1));
        assert!(cpu(pid).is_ok());
        assert!(status(pid, "Threads").is_some_and(|threads| threads >= 1));
        assert!(children(std::os::unix::process::parent_id()).contains(&pid));
        let before = written(std::process::id()).map(|written| written.by_calls);
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("sub")).expect("a directory");
        fs::write(dir.path().join("sub/file"), [1; 100_000]).expect("a file");
        let after = written(std::process::id()).map(|written| written.by_calls);
        assert!(after.expect("io") >= before.expect("io") + 100_000);
        assert!((100_000..1_000_000).contains(&disk_usage(dir.path())));
        assert_eq!(field("Pss:      12 kB"), Some(("Pss".to_owned(), 12)));
        assert_eq!(field("VmFlags: rd wr"), None);
    }
}
