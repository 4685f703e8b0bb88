//! Every metric: its unit, what it compares with, how it is measured. The reference page of
//! figures is made from this and from results, never typed.

use std::fmt::Write as _;

/// What is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Less.
    Less,
    /// More.
    More,
    /// Neither: it explains another metric.
    Neither,
}

/// A metric, or a family of them (`NAME.CASE`).
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its name, or what comes before the case.
    pub(crate) name: &'static str,
    /// Unit of its figures.
    pub(crate) unit: &'static str,
    /// What is good.
    pub(crate) better: Better,
    /// The bar of ANCHORS, where there is one.
    pub(crate) bar: Option<f64>,
    /// What the baseline is.
    pub(crate) against: &'static str,
    /// How it is measured, in a sentence.
    pub(crate) how: &'static str,
}

const fn entry(
    name: &'static str,
    unit: &'static str,
    better: Better,
    bar: Option<f64>,
    against: &'static str,
    how: &'static str,
) -> Entry {
    Entry { name, unit, better, bar, against, how }
}

use Better::{Less, More, Neither};

/// All metrics, in the order of the page.
pub(crate) const ALL: &[Entry] = &[
    entry("agent.pss_mib", "MiB", Less, Some(15.0), "bar",
        "PSS of an idle agent with a session, settled; no model child has ever run"),
    entry("agent.cpu_percent", "% of a core", Less, Some(0.1), "bar",
        "user and system time of the same agent over an idle window"),
    entry("agent.pss_with_model_mib", "MiB", Neither, None, "",
        "PSS of the agent after it deployed a model and answered inferences"),
    entry("agent.model_child_pss_mib", "MiB", Neither, None, "",
        "PSS of the agent's model process (skl_mlp)"),
    entry("agent.binary_mb", "MB", Less, Some(25.0), "bar", "size of `hop3-agent`"),
    entry("coordinator.binary_mb", "MB", Neither, None, "", "size of `hop3-coordinator`"),
    entry("cli.binary_mb", "MB", Neither, None, "", "size of `hop3`"),
    entry("coordinator.start_ms", "ms", Less, Some(50.0), "bar",
        "process start to ready file, in an empty data directory: CA and admin token are made"),
    entry("coordinator.restart_ms", "ms", Less, Some(50.0), "bar",
        "the same with the data of before, after SIGKILL"),
    entry("coordinator.pss_mib", "MiB", Neither, None, "",
        "PSS of an idle coordinator with one idle agent, settled"),
    entry("enroll.per_s", "/s", More, None, "",
        "enrolments from one load process, 32 at once, each with its own token, key, CSR and \
         QUIC connection"),
    entry("enroll.tokens_per_s", "/s", More, None, "",
        "join tokens made over REST, 8 connections"),
    entry("coordinator.rss_mib", "MiB", Neither, None, "",
        "RSS of a coordinator with N idle connected agents"),
    entry("coordinator.cpu_percent", "% of a core", Neither, None, "",
        "CPU time of that coordinator over a window in which each agent reports at the idle pace"),
    entry("coordinator.kib_per_agent", "KiB", Less, Some(64.0), "bar",
        "RSS with the most agents, less RSS of a fresh coordinator, for each agent"),
    entry("coordinator.connects_per_s", "/s", More, None, "",
        "sessions established until all of N agents had one, after a restart"),
    entry("telemetry.reports_per_s_per_core", "/s", More, None, "",
        "telemetry batches accepted for each second of the coordinator's CPU time, less its idle \
         time"),
    entry("telemetry.idle_bits_per_s", "bit/s", Less, Some(250.0), "bar",
        "all UDP datagrams between an idle agent and the coordinator, both ways, with IP and UDP \
         headers"),
    entry("telemetry.watched_bits_per_s", "bit/s", Neither, None, "",
        "the same while somebody watches the node (1 Hz)"),
    entry("invoke.p50_ms", "ms", Less, Some(0.5), "bar",
        "REST to Wasm and back, 1 KiB in and out (`echo_small`), N in flight: median"),
    entry("invoke.p99_ms", "ms", Less, None, "", "the same: 99th percentile"),
    entry("invoke.per_s", "/s", More, None, "", "the same: throughput"),
    entry("invoke.per_s.64", "/s", More, Some(20_000.0), "bar", "the same: throughput"),
    entry("invoke.p50_ms.64", "ms", Less, None, "", "the same: median"),
    entry("invoke.empty_p50_ms", "ms", Less, Some(0.5), "bar",
        "the same with an empty function, no input and no output: median"),
    entry("invoke.empty_p50_ms.64", "ms", Less, None, "", "the same: median"),
    entry("invoke.empty_p99_ms", "ms", Less, None, "", "the same: 99th percentile"),
    entry("invoke.empty_per_s", "/s", More, None, "", "the same: throughput"),
    entry("invoke.empty_per_s.64", "/s", More, Some(20_000.0), "bar", "the same: throughput"),
    entry("invoke.baseline_p50_ms", "ms", Neither, None, "",
        "the same load on a server of the same HTTP and TLS stack that answers what it was sent: \
         median"),
    entry("invoke.baseline_per_s", "/s", Neither, None, "", "the same: throughput"),
    entry("invoke.node_us", "µs", Neither, None, "",
        "time on the node's worker, as the answer's `hop3-wall-us` says: median, one in flight"),
    entry("coldstart.ms", "ms", Less, Some(0.3), "bar",
        "`echo_small` compiled on disk, in an agent process that has not run it: load of the \
         code and the run, from the task's record"),
    entry("coldstart.wordcount_ms", "ms", Neither, None, "",
        "the same for a 33 KB module with libc"),
    entry("coldstart.invoke_ms", "ms", Neither, None, "",
        "first invocation over REST of a module that the agent has compiled on disk and not run \
         since its start"),
    entry("coldstart.compile_ms", "ms", Neither, None, "",
        "compilation of a module never seen (`wordcount`, 33 KB), from the task's record"),
    entry("task.run_ms", "ms", Less, None, "",
        "`hop3 task run hello.wasm`: from process start to process end"),
    entry("task.first_ms", "ms", Less, Some(100.0), "bar",
        "the same for a module never seen: upload, placement, transfer, compilation and run"),
    entry("onnx.ratio", "×", Less, None, "equal",
        "median time in the model through Hop3, over onnxruntime's on the same model and input \
         in the same run, one thread"),
    entry("onnx.us", "µs", Less, None, "onnxruntime",
        "median time in the model through Hop3"),
    entry("onnx.total_us", "µs", Neither, None, "",
        "median time of that inference at the coordinator, from request to answer"),
    entry("attach.mb_per_s", "MB/s", More, None, "tr a-z A-Z",
        "`hop3 task run upper.wasm` from file to file, long lines"),
];

/// The entry for a metric: its own, else its family's.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    let family = |entry: &&Entry| {
        name.strip_prefix(entry.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    ALL.iter().filter(family).max_by_key(|entry| entry.name.len())
}

/// Every metric with its method, for `hop3-bench list`.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for entry in ALL {
        let bar = entry.bar.map(|bar| format!(" (bar {bar})")).unwrap_or_default();
        let _ = writeln!(out, "{} [{}]{bar}\n    {}", entry.name, entry.unit, entry.how);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_its_own_entry_or_its_family_s() {
        assert_eq!(find("invoke.per_s.64").and_then(|e| e.bar), Some(20_000.0));
        assert_eq!(find("invoke.per_s.1").and_then(|e| e.bar), None);
        assert_eq!(find("onnx.ratio.skl_mlp").map(|e| e.name), Some("onnx.ratio"));
        assert!(find("agent.pss_mibs").is_none());
    }

    #[test]
    fn names_are_unique_and_explained() {
        for (i, entry) in ALL.iter().enumerate() {
            assert!(!entry.how.is_empty() && !entry.unit.is_empty(), "{}", entry.name);
            assert!(ALL[..i].iter().all(|other| other.name != entry.name), "{}", entry.name);
            assert_eq!(entry.bar.is_some(), entry.against == "bar", "{}", entry.name);
        }
    }
}
