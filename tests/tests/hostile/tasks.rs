//! Hostile tasks, as WAT, and how each must end.

/// A task that means no good.
pub(crate) struct Task {
    /// Its name, and its module's.
    pub(crate) name: &'static str,
    /// Its module, as text.
    pub(crate) wat: String,
    /// Its limits, as in a manifest.
    pub(crate) limits: &'static str,
    /// How it must end: an exit code, or a code of Hop3's.
    pub(crate) end: &'static str,
}

/// What may be imported, and a memory of so many pages.
fn program(pages: u32, fields: &str) -> String {
    format!(
        r#"(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read"
        (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get"
        (func $clock (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") {pages}) {fields})"#
    )
}

/// A program of one page whose `_start` is `body`.
fn start(body: &str) -> String {
    program(1, &format!("(func (export \"_start\") {body})"))
}

/// Writes 64 KiB to `fd` for ever.
fn flood(fd: u32) -> String {
    let body = format!(
        "(i32.store (i32.const 0) (i32.const 8)) (i32.store (i32.const 4) (i32.const 65000))
         (loop $l (br_if $l (i32.eqz (call $write (i32.const {fd}) (i32.const 0) (i32.const 1)
             (i32.const 70000)))))"
    );
    program(2, &format!("(func (export \"_start\") {body})"))
}

/// Recursion through a table, which no compiler can turn into a loop.
const INDIRECT: &str = "(type $f (func (param i32) (result i32))) (table 2 funcref)
    (elem (i32.const 0) $even $odd)
    (func $even (param i32) (result i32) (i32.add (i32.const 1)
        (call_indirect (type $f) (i32.add (local.get 0) (i32.const 1)) (i32.const 1))))
    (func $odd (param i32) (result i32) (i32.add (i32.const 1)
        (call_indirect (type $f) (i32.add (local.get 0) (i32.const 1)) (i32.const 0))))
    (func (export \"_start\") (drop (call $even (i32.const 0))))";

/// Deeply nested blocks with a table of jumps to each of them.
pub(crate) fn nested(depth: usize) -> String {
    let labels: String = (0..depth).map(|label| format!(" {label}")).collect();
    format!(
        "{} local.get 0 br_table{labels} {}",
        "block ".repeat(depth),
        "end ".repeat(depth)
    )
}

/// Every hostile task.
pub(crate) fn all() -> Vec<Task> {
    const CPU: &str = "{memory: 4MiB, cpu_time: 200ms, timeout: 60s}";
    const WIDE: &str = "{memory: 64MiB, cpu_time: 500ms, timeout: 60s}";
    const BRIEF: &str = "{memory: 4MiB, timeout: 300ms}";
    let task = |name, wat, limits, end| Task {
        name,
        wat,
        limits,
        end,
    };
    let calls = "{memory: 4MiB, cpu_time: 10s, timeout: 60s, host_calls_per_s: 10000}";
    let output = "{memory: 4MiB, cpu_time: 10s, timeout: 60s, output: 4MiB}";
    let grow = "(loop $l (if (i32.ne (memory.grow (i32.const 16)) (i32.const -1)) (then
        (memory.fill (i32.mul (i32.sub (memory.size) (i32.const 16)) (i32.const 65536))
            (i32.const 1) (i32.const 1048576)) (br $l))))";
    let grow_on = format!("(loop $again {grow} (br $again))");
    let fill = "(drop (memory.grow (i32.const 1000))) (loop $l
        (memory.fill (i32.const 0) (i32.const 7) (i32.const 65000000)) (br $l))";
    let copy = "(drop (memory.grow (i32.const 1000))) (loop $l
        (memory.copy (i32.const 1) (i32.const 0) (i32.const 65000000)) (br $l))";
    let table = "(table $t 1 funcref) (func (export \"_start\") (loop $l
        (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l)))";
    let mutual = "(func $a (result i32) (i32.add (call $b) (i32.const 1)))
        (func $b (result i32) (i32.add (call $a) (i32.const 2)))
        (func (export \"_start\") (drop (call $a)))";
    let spins = "(func $s (loop $l (br $l))) (start $s) (func (export \"_start\"))";
    let asks = "(func $s (loop $l (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 0)))
        (br $l))) (start $s) (func (export \"_start\"))";
    let outside = "(func (export \"_start\") (call $exit (call $write (i32.const 1)
        (i32.const -8) (i32.const 4) (i32.const -4))))";
    let wild = "(func (export \"_start\") (call $exit (call $open (i32.const 3) (i32.const -1)
        (i32.const -9) (i32.const 1000000) (i32.const -1) (i64.const -1) (i64.const -1)
        (i32.const -1) (i32.const -4))))";
    let random = "(loop $l (drop (call $random (i32.const 0) (i32.const 65536))) (br $l))";
    let reads = "(i32.store (i32.const 4) (i32.const 65000)) (loop $l (drop (call $read
        (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32))) (br $l))";
    // A subscription to a clock, an hour from now.
    let sleeps = "(i64.store (i32.const 24) (i64.const 3600000000000)) (loop $l
        (drop (call $poll (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))
        (br $l))";
    let many = format!(
        "{} (func (export \"_start\"))",
        "(func (result i32) (i32.const 1))".repeat(20_000)
    );
    let deep = format!(
        "(func $d (param i32) {}) (func (export \"_start\") (call $d (i32.const 3)))",
        nested(2_000)
    );
    let wrong_type = "(type $f (func (param i64))) (table 1 funcref) (elem (i32.const 0) $g)
        (func $g) (func (export \"_start\") (call_indirect (type $f) (i64.const 1)
            (i32.const 0)))";
    let data = format!(
        "(data (i32.const 65530) \"{}\") (func (export \"_start\"))",
        "x".repeat(4 << 20)
    );
    let deeper = "(func $f (param i32) (result i32) (i32.add (i32.const 1)
        (call $f (i32.add (local.get 0) (i32.const 1)))))
        (func (export \"_start\") (drop (call $f (i32.const 0))))";
    vec![
        task("spin", start("(loop $l (br $l))"), CPU, "HOP3-0504"),
        task("spin-late", start("(loop $l (br $l))"), BRIEF, "HOP3-0510"),
        task("spin-start", program(1, spins), CPU, "HOP3-0504"),
        task("ask-start", program(1, asks), calls, "HOP3-0504"),
        task("grow", start(grow), WIDE, "0"),
        task("grow-on", start(&grow_on), WIDE, "HOP3-0504"),
        task(
            "huge-memory",
            program(65_535, "(func (export \"_start\"))"),
            CPU,
            "HOP3-0103",
        ),
        task("huge-data", program(1, &data), CPU, "HOP3-0503"),
        task("recurse", program(1, deeper), CPU, "HOP3-0504"),
        task("recurse-indirect", program(1, INDIRECT), CPU, "HOP3-0504"),
        task("recurse-mutual", program(1, mutual), CPU, "HOP3-0504"),
        task("flood-stdout", flood(1), output, "HOP3-0504"),
        task("flood-stderr", flood(2), output, "HOP3-0504"),
        task(
            "flood-clock",
            start(
                "(loop $l (drop (call $clock (i32.const 0) (i64.const 0)
            (i32.const 0))) (br $l))",
            ),
            calls,
            "HOP3-0504",
        ),
        task("flood-random", start(random), CPU, "HOP3-0504"),
        task("flood-read", start(reads), calls, "HOP3-0504"),
        task("sleep", start(sleeps), BRIEF, "HOP3-0510"),
        task("fill", start(fill), WIDE, "HOP3-0504"),
        task("copy", start(copy), WIDE, "HOP3-0504"),
        task("tables", program(1, table), CPU, "HOP3-0504"),
        task("trap", start("unreachable"), CPU, "HOP3-0503"),
        task("trap-type", program(1, wrong_type), CPU, "HOP3-0503"),
        // EFAULT; a guest's pointers are the guest's trouble.
        task("outside", program(1, outside), CPU, "21"),
        task("outside-path", program(1, wild), CPU, "21"),
        task("many-functions", program(1, &many), CPU, "0"),
        task("deep-blocks", program(1, &deep), CPU, "0"),
    ]
}
