//! The machine that measured, said by itself.

use std::fs;

use serde::{Deserialize, Serialize};

/// Machine and build of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Processor model.
    pub(crate) cpu: String,
    /// Logical CPUs that this process may use.
    pub(crate) cpus: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Distribution.
    pub(crate) os: String,
    /// Day of the run, UTC.
    pub(crate) date: String,
    /// The measured tree, if known.
    pub(crate) commit: String,
    /// `release` or `debug`.
    pub(crate) profile: String,
    /// Fewer repetitions and smaller fleets.
    pub(crate) quick: bool,
}

impl Machine {
    /// This one.
    pub(crate) fn here(quick: bool) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once([':', '=']));
            value
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let kib = after(&text("/proc/meminfo"), "MemTotal");
        let kib = kib
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse::<u64>().ok());
        let binary = hop3_tests::bin("hop3-agent");
        let dir = binary.parent().and_then(|dir| dir.file_name());
        Self {
            cpu: after(&text("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib.unwrap_or(0) / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            os: after(&text("/etc/os-release"), "PRETTY_NAME"),
            date: time::OffsetDateTime::now_utc().date().to_string(),
            commit: std::env::var("HOP3_BENCH_COMMIT").unwrap_or_default(),
            profile: dir
                .map(|dir| dir.to_string_lossy().into_owned())
                .unwrap_or_default(),
            quick,
        }
    }

    /// One paragraph.
    pub(crate) fn describe(&self) -> String {
        let Self {
            cpu,
            cpus,
            memory_mib,
            kernel,
            os,
            date,
            commit,
            profile,
            quick,
        } = self;
        let commit = if commit.is_empty() {
            String::new()
        } else {
            format!(", commit {commit}")
        };
        let how = if *quick { "quick run" } else { "full run" };
        format!(
            "{cpu}, {cpus} logical CPUs, {memory_mib} MiB of memory, Linux {kernel}, {os}; \
             {profile} build{commit}; {how} of {date}. Load and system share the machine."
        )
    }
}
