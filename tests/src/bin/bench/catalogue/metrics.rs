//! The entries.

use super::{Entry, less, more, plain};

/// All metrics, in the order of the page. A static: entries are told apart by address.
pub(crate) static ALL: &[Entry] = &[
    less(
        "agent.pss_mib",
        "MiB",
        "PSS of an idle agent with a session, settled; no model child has ever run",
    )
    .bar(15.0),
    less(
        "agent.cpu_percent",
        "% of a core",
        "user and system time of the same agent over an idle window",
    )
    .bar(0.1),
    plain(
        "agent.pss_with_model_mib",
        "MiB",
        "PSS of the agent after it deployed a model and answered inferences",
    ),
    plain(
        "agent.model_child_pss_mib",
        "MiB",
        "PSS of the agent's model process (skl_mlp)",
    ),
    less("agent.binary_mb", "MB", "size of `hop3-agent`").bar(25.0),
    plain("coordinator.binary_mb", "MB", "size of `hop3-coordinator`"),
    plain("cli.binary_mb", "MB", "size of `hop3`"),
    less(
        "coordinator.start_ms",
        "ms",
        "process start to ready file, in an empty data directory: CA and admin token \
         are made",
    )
    .bar(50.0),
    less(
        "coordinator.restart_ms",
        "ms",
        "the same with the data of before, after SIGKILL",
    )
    .bar(50.0),
    plain(
        "coordinator.pss_mib",
        "MiB",
        "PSS of an idle coordinator with one idle agent, settled",
    ),
    more(
        "enroll.per_s",
        "/s",
        "enrolments from one load process, 32 at once, each with its own token, key, \
         CSR and QUIC connection",
    ),
    more(
        "enroll.tokens_per_s",
        "/s",
        "join tokens made over REST, 8 connections",
    ),
    plain(
        "coordinator.rss_mib",
        "MiB",
        "RSS of a coordinator with N idle connected agents",
    ),
    plain(
        "coordinator.cpu_percent",
        "% of a core",
        "CPU time of that coordinator over a window in which each agent reports at the \
         idle pace",
    ),
    less(
        "coordinator.kib_per_agent",
        "KiB",
        "RSS with the most agents, less RSS of a fresh coordinator, for each agent",
    )
    .bar(64.0),
    more(
        "coordinator.connects_per_s",
        "/s",
        "sessions established until all of N agents had one, after a restart",
    ),
    more(
        "telemetry.reports_per_s_per_core",
        "/s",
        "telemetry batches accepted for each second of the coordinator's CPU time, less \
         its idle time",
    ),
    less(
        "telemetry.idle_bits_per_s",
        "bit/s",
        "all UDP datagrams between an idle agent and the coordinator, both ways, with \
         IP and UDP headers",
    )
    .bar(250.0),
    plain(
        "telemetry.watched_bits_per_s",
        "bit/s",
        "the same while somebody watches the node (1 Hz)",
    ),
    less(
        "invoke.p50_ms",
        "ms",
        "REST to Wasm and back, 1 KiB in and out (`echo_small`), N in flight: median",
    )
    .bar(0.5),
    less("invoke.p99_ms", "ms", "the same: 99th percentile"),
    more("invoke.per_s", "/s", "the same: throughput"),
    more("invoke.per_s.64", "/s", "the same: throughput").bar(20_000.0),
    less("invoke.p50_ms.64", "ms", "the same: median"),
    less(
        "invoke.empty_p50_ms",
        "ms",
        "the same with an empty function, no input and no output: median",
    )
    .bar(0.5),
    less("invoke.empty_p50_ms.64", "ms", "the same: median"),
    less("invoke.empty_p99_ms", "ms", "the same: 99th percentile"),
    more("invoke.empty_per_s", "/s", "the same: throughput"),
    more("invoke.empty_per_s.64", "/s", "the same: throughput").bar(20_000.0),
    plain(
        "invoke.baseline_p50_ms",
        "ms",
        "the same load on a server of the same HTTP and TLS stack that answers what it \
         was sent: median",
    ),
    plain("invoke.baseline_per_s", "/s", "the same: throughput"),
    plain(
        "invoke.node_us",
        "µs",
        "time on the node's worker, as the answer's `hop3-wall-us` says: median, one in \
         flight",
    ),
    less(
        "coldstart.ms",
        "ms",
        "`echo_small` compiled on disk, in an agent process that has not run it: load \
         of the code and the run, from the task's record",
    )
    .bar(0.3),
    plain(
        "coldstart.wordcount_ms",
        "ms",
        "the same for a 33 KB module with libc",
    ),
    plain(
        "coldstart.invoke_ms",
        "ms",
        "first invocation over REST of a module that the agent has compiled on disk and \
         not run since its start",
    ),
    plain(
        "coldstart.compile_ms",
        "ms",
        "compilation of a module never seen (`wordcount`, 33 KB), from the task's \
         record",
    ),
    less(
        "task.run_ms",
        "ms",
        "`hop3 task run hello.wasm`: from process start to process end",
    ),
    less(
        "task.first_ms",
        "ms",
        "the same for a module never seen: upload, placement, transfer, compilation and \
         run",
    )
    .bar(100.0),
    less(
        "onnx.ratio",
        "×",
        "median time in the model through Hop3, over onnxruntime's on the same model \
         and input, asked in turns, one thread",
    )
    .against("equal"),
    less("onnx.us", "µs", "median time in the model through Hop3").against("onnxruntime"),
    plain(
        "onnx.total_us",
        "µs",
        "median time of that inference at the coordinator, from request to answer",
    ),
    more(
        "attach.mb_per_s",
        "MB/s",
        "`hop3 task run upper.wasm` from file to file, long lines",
    )
    .against("tr a-z A-Z"),
    less(
        "gateway.p50_ms",
        "ms",
        "`GET` of a constant from a service through the gateway, wrk with N kept TLS \
         connections: median",
    )
    .against("nginx"),
    less("gateway.p99_ms", "ms", "the same: 99th percentile").against("nginx"),
    more("gateway.per_s", "/s", "the same: throughput").against("nginx"),
    plain(
        "gateway.wasmtime_serve_p50_ms",
        "ms",
        "the same load on `wasmtime serve` with a component that answers the same constant, plain \
         HTTP: median",
    ),
    plain(
        "gateway.wasmtime_serve_p99_ms",
        "ms",
        "the same: 99th percentile",
    ),
    plain(
        "gateway.wasmtime_serve_per_s",
        "/s",
        "the same: throughput",
    ),
    less(
        "gateway.durable_p50_ms",
        "ms",
        "`POST` that changes a keyed service with `durability: node`: on the node's disk \
         before it is answered; N connections: median",
    ),
    more("gateway.durable_per_s", "/s", "the same: throughput"),
    less(
        "apply.first_answer_ms",
        "ms",
        "from the start of `hop3 apply` to the first good answer of the gateway, for a \
         module that no agent has seen",
    )
    .bar(100.0),
    less(
        "service.kib_per_instance",
        "KiB",
        "PSS that 1,000 idle instances of `echo` add to an agent, for each",
    )
    .bar(16.0),
    more(
        "service.instances_per_gib",
        "/GiB",
        "the same, turned round",
    ),
    plain("service.threads", "threads", "threads of that agent"),
    less(
        "checkpoint.ms",
        "ms",
        "a checkpoint on request after 64 KiB changed, over REST: on the node's disk and at \
         the coordinator; memory of N",
    ),
    plain("checkpoint.mib", "MiB", "its size"),
    less(
        "restart.first_answer_ms",
        "ms",
        "from the start of an agent after SIGKILL to the answer of its service with its \
         state, through the coordinator; memory of N",
    ),
    more(
        "commit.per_s",
        "/s",
        "changes of four `counters` instances through the gateway, 64 connections, each acknowledged \
         at durability N",
    ),
    less("commit.p99_ms", "ms", "the same: 99th percentile"),
    less("commit.p50_ms", "ms", "the same over one connection: median"),
    more(
        "commit.per_s.node_10ms",
        "/s",
        "the same at durability `node` with 10 ms more for every sync of the agent",
    ),
    less("commit.p99_ms.node_10ms", "ms", "the same: 99th percentile"),
    less(
        "commit.p50_ms.node_10ms",
        "ms",
        "the same over one connection: median",
    ),
    less(
        "growth.write_amplification",
        "×",
        "bytes that an agent had written to the disk during 86,400 changes, one after another, of \
         104 bytes each, of 1,000 keys, at durability `node`, over the bytes that clients sent; \
         `minutes`: with a checkpoint after every 60 changes, as one change a second has it",
    ),
    plain(
        "growth.disk_mib_start",
        "MiB",
        "size of the agent's data directory on the disk before the first change",
    ),
    less("growth.disk_mib_end", "MiB", "the same after the last change"),
    less("growth.disk_mib_peak", "MiB", "the largest of its sizes in between"),
    less(
        "recovery.sled_ms",
        "ms",
        "start of a coordinator with 10,000 artifacts after SIGKILL, its index deleted: from \
         process start to ready file, the index built anew from the journal",
    )
    .against("intact"),
    plain(
        "recovery.intact_ms",
        "ms",
        "the same with the index as SIGKILL left it",
    ),
    less(
        "failover.ms",
        "ms",
        "from SIGKILL of the owner's agent, which stays away, to the next good answer with the \
         state; `durability: replicated`, lease of N",
    )
    .bar(5000.0),
    less(
        "offline_boot.first_answer_ms",
        "ms",
        "from the start of an agent that has no coordinator to the first answer of its service with \
         its state, at the node's own gateway",
    )
    .bar(1000.0),
    more(
        "powercut.images",
        "images",
        "images of disks after a power cut, each opened and compared with what was acknowledged",
    ),
    less("powercut.lost", "images", "of them, those that lacked something"),
    more(
        "sim.schedules",
        "schedules",
        "schedules of the simulation of ownership",
    ),
    less("sim.violations", "schedules", "of them, those that broke an invariant"),
    less(
        "move.downtime_ms",
        "ms",
        "planned move of an instance with N of memory under load: from the order to stop to \
         readiness at the target",
    )
    .bar(10.0),
    plain("move.final_mib", "MiB", "state sent while it was stopped"),
    plain(
        "move.client_ms",
        "ms",
        "the longest that any of 8 clients waited, over all moves",
    ),
    less(
        "move.lost",
        "changes",
        "changes acknowledged and not there, or there twice, of `move.requests`",
    ),
    plain(
        "move.requests",
        "changes",
        "changes acknowledged during the moves",
    ),
];
