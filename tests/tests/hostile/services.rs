//! Hostile services, as WAT, and what each must answer.

use super::tasks::nested;

/// A service that means no good.
pub(crate) struct Service {
    /// Its name, and its module's.
    pub(crate) name: &'static str,
    /// Its module, as text.
    pub(crate) wat: String,
    /// More of its specification than [`LIMITS`], as in a manifest.
    pub(crate) spec: &'static str,
    /// What is asked of it and must be answered.
    pub(crate) asks: Asks,
}

/// What is asked of a hostile service.
pub(crate) enum Asks {
    /// Paths, and the status or the code of Hop3's, or several of which any will do.
    Answers(Vec<(String, &'static str)>),
    /// Nothing: it never becomes ready, and this is in the reason.
    NeverReady(&'static str),
    /// Nothing: it is refused when it is applied, with this.
    Refused(&'static str),
}

/// Limits of all hostile services.
pub(crate) const LIMITS: &str = "{memory: 4MiB, kv: 1MiB, cpu_time: 200ms, deadline: 5s, \
    request: 64KiB, reply: 64KiB, timers: 100, streams: 10, queue: 16, host_calls_per_s: 50000}";
/// Those of them that take memory of the agent, bytes.
pub(crate) const MEMORY_BYTES: u64 = 4 << 20;
/// Key-value data, bytes.
pub(crate) const KV_BYTES: u64 = 1 << 20;
/// Requests that wait and a reply, bytes: `queue`, `request`, `reply`.
pub(crate) const QUEUE_BYTES: u64 = 17 * (64 << 10);

const IMPORTS: &str = r#"
    (import "hop3" "input" (func $input (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "reply_status" (func $reply_status (param i32) (result i32)))
    (import "hop3" "reply_header" (func $reply_header (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "reply_write" (func $reply_write (param i32 i32) (result i32)))
    (import "hop3" "reply_stream" (func $reply_stream (result i64)))
    (import "hop3" "stream_send" (func $stream_send (param i64 i32 i32 i32) (result i32)))
    (import "hop3" "stream_close" (func $stream_close (param i64 i32) (result i32)))
    (import "hop3" "kv_get" (func $kv_get (param i32 i32 i32 i32 i32) (result i32)))
    (import "hop3" "kv_set" (func $kv_set (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "kv_delete" (func $kv_delete (param i32 i32) (result i32)))
    (import "hop3" "kv_next" (func $kv_next (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "timer_set" (func $timer_set (param i64 i64) (result i32)))
    (import "hop3" "publish" (func $publish (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "call" (func $call
        (param i32 i32 i32 i32 i32 i32 i32 i32) (result i64)))
    (import "hop3" "log" (func $log (param i32 i32 i32)))
    (import "hop3" "now_ms" (func $now_ms (result i64)))"#;

/// A module with these fields and so many pages of memory.
fn guest(pages: u32, fields: &str) -> String {
    format!("(module {IMPORTS} (memory (export \"memory\") {pages}) {fields})")
}

/// A module whose handler of requests is `body`.
fn handler(fields: &str, body: &str) -> String {
    let handler = format!("(func $h (export \"hop3_request\") (result i32) {body})");
    guest(2, &format!("{fields} {handler}"))
}

/// Every import that takes a pointer, called with one outside of memory: the path says which.
fn outside() -> (String, usize) {
    const AT: &str = "(i32.const -64) (i32.const 100)";
    let calls = [
        "(drop (call $input (i32.const 2) (i32.const 0) (i32.const -64) (i32.const 100)))".into(),
        format!("(drop (call $reply_header {AT} {AT}))"),
        format!("(drop (call $reply_write {AT}))"),
        format!("(drop (call $stream_send (i64.const 1) {AT} (i32.const 0)))"),
        format!("(drop (call $kv_get {AT} (i32.const 0) {AT}))"),
        format!("(drop (call $kv_set (i32.const 0) (i32.const 4) {AT}))"),
        format!("(drop (call $kv_delete {AT}))"),
        format!("(drop (call $kv_next {AT} {AT}))"),
        format!("(drop (call $publish {AT} {AT}))"),
        format!("(drop (call $call {AT} {AT} {AT} {AT}))"),
        format!("(call $log (i32.const 0) {AT})"),
    ];
    let body: String = calls
        .iter()
        .zip(u32::from('a')..)
        .map(|(call, letter)| {
            format!("(if (i32.eq (i32.load8_u (i32.const 0)) (i32.const {letter})) (then {call}))")
        })
        .collect();
    let path = "(drop (call $input (i32.const 2) (i32.const 1) (i32.const 0) (i32.const 1)))";
    let wat = handler("", &format!("{path} {body} (i32.const 0)"));
    (wat, calls.len())
}

/// Calls itself or another until it is refused, at a request and at the end of every call.
fn calls(service: &str) -> String {
    let flood = format!(
        "(loop $l (br_if $l (i64.gt_s (call $call (i32.const 64) (i32.const {len})
            (i32.const 128) (i32.const 1) (i32.const 132) (i32.const 1)
            (i32.const 0) (i32.const 0)) (i64.const 0)))) (i32.const 0)",
        len = service.len(),
    );
    let data = format!(
        "(data (i32.const 64) \"{service}\") (data (i32.const 128) \"G\")
         (data (i32.const 132) \"/\") (func (export \"hop3_message\") (result i32) {flood})"
    );
    handler(&data, &flood)
}

fn asked(times: usize, path: &str, answer: &'static str) -> Asks {
    Asks::Answers(vec![(path.to_owned(), answer); times])
}

/// Every hostile service.
pub(crate) fn all() -> Vec<Service> {
    const SPIN: &str = "(loop $l (br $l)) (i32.const 0)";
    const DONE: &str = "(i32.const 0)";
    let fails = || asked(1, "/", "HOP3-0523");
    let answers = || asked(2, "/", "200");
    // Its own messages or requests may fill its queue.
    let crowded = || asked(2, "/", "200 HOP3-0509 HOP3-0510");
    let service = |name, wat, spec, asks| Service {
        name,
        wat,
        spec,
        asks,
    };
    let on_init = |body: &str| {
        let init = format!("(func (export \"hop3_init\") (result i32) {body})");
        handler(&init, DONE)
    };
    let on_start = |body: &str| handler(&format!("(func $s {body}) (start $s)"), DONE);
    let schema = |body: &str| {
        let schema = format!("(func (export \"hop3_schema\") (result i32) {body})");
        handler(&schema, DONE)
    };
    let grow = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (memory.fill (i32.const 0) (i32.const 1) (i32.const 4000000)) unreachable";
    let recurse = "(func $f (param i32) (result i32) (i32.add (i32.const 1)
        (call $f (i32.add (local.get 0) (i32.const 1)))))";
    let indirect = "(type $t (func (param i32) (result i32))) (table 1 funcref)
        (elem (i32.const 0) $f) (func $f (param i32) (result i32) (i32.add (i32.const 1)
        (call_indirect (type $t) (i32.add (local.get 0) (i32.const 1)) (i32.const 0))))";
    let fill = "(drop (memory.grow (i32.const 60))) (loop $l
        (memory.fill (i32.const 0) (i32.const 7) (i32.const 4000000)) (br $l)) (i32.const 0)";
    let keys = "(local $n i32) (loop $l (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (i32.store (i32.const 0) (local.get $n))
        (br_if $l (i32.eqz (call $kv_set (i32.const 0) (i32.const 4) (i32.const 64)
            (i32.const 100))))) (i32.const 0)";
    let values = "(drop (memory.grow (i32.const 40)))
        (drop (call $kv_set (i32.const 0) (i32.const 4) (i32.const 64) (i32.const 2000000)))
        (call $kv_set (i32.const 0) (i32.const 4) (i32.const 64) (i32.const 1000000))";
    let timers = "(local $n i64) (loop $l (local.set $n (i64.add (local.get $n) (i64.const 1)))
        (br_if $l (i32.eqz (call $timer_set (local.get $n) (i64.const 0))))) (i32.const 0)";
    let on_timer = |body: &str| {
        let timer = format!("(func (export \"hop3_timer\") (result i32) {body})");
        handler(&timer, timers)
    };
    let publishes = "(loop $l (br_if $l (i32.eqz (call $publish (i32.const 64) (i32.const 7)
        (i32.const 64) (i32.const 1))))) (i32.const 0)";
    let publisher = format!(
        "(data (i32.const 64) \"flood/x\") (func (export \"hop3_message\") (result i32)
         {publishes})"
    );
    let headers = "(loop $l (br_if $l (i32.eqz (call $reply_header (i32.const 64) (i32.const 1)
        (i32.const 64) (i32.const 1))))) (i32.const 0)";
    let bad_reply = "(drop (call $reply_status (i32.const 99999)))
        (drop (call $reply_status (i32.const -1)))
        (drop (call $reply_header (i32.const 0) (i32.const 4) (i32.const 64) (i32.const 1)))
        (drop (call $reply_header (i32.const 64) (i32.const 1) (i32.const 80) (i32.const 2)))
        (i32.const 0)";
    let log = "(loop $l (call $log (i32.const 0) (i32.const 0) (i32.const 1000)) (br $l))
        (i32.const 0)";
    let clock = "(loop $l (drop (call $now_ms)) (br $l)) (i32.const 0)";
    let big = "(loop $l (br_if $l (i32.eqz (call $reply_write (i32.const 0) (i32.const 65536)))))
        (i32.const 0)";
    let closed = "(drop (call $stream_send (i64.const 77) (i32.const 0) (i32.const 4)
        (i32.const 0))) (drop (call $stream_close (i64.const -1) (i32.const 99999)))
        (i32.const 0)";
    let table = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l))
        (i32.const 0)";
    let early = "(drop (call $kv_set (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4)))
        (drop (call $timer_set (i64.const 1) (i64.const 1)))
        (drop (call $publish (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4)))";
    let deep = format!("(func $d (param i32) {}) ", nested(1_000));
    let (outside, imports) = outside();
    let each = (0..imports).map(|n| (format!("/{}", char::from(b'a' + n as u8)), "HOP3-0523"));
    vec![
        service("h-spin", handler("", SPIN), "", fails()),
        service(
            "h-trap",
            handler("", "unreachable"),
            "state: single",
            fails(),
        ),
        service("h-says-no", handler("", "(i32.const 7)"), "", fails()),
        service("h-grow", handler("", grow), "state: single", fails()),
        service(
            "h-recurse",
            handler(recurse, "(call $f (i32.const 0))"),
            "",
            fails(),
        ),
        service(
            "h-indirect",
            handler(indirect, "(call $f (i32.const 0))"),
            "",
            fails(),
        ),
        service("h-fill", handler("", fill), "state: single", fails()),
        service(
            "h-table",
            handler("(table $t 1 funcref)", table),
            "",
            fails(),
        ),
        service("h-log", handler("", log), "", fails()),
        service("h-clock", handler("", clock), "", fails()),
        service(
            "h-outside",
            outside,
            "state: single",
            Asks::Answers(each.collect()),
        ),
        service("h-keys", handler("", keys), "state: single", answers()),
        service("h-values", handler("", values), "state: single", answers()),
        service(
            "h-timers-trap",
            on_timer("unreachable"),
            "state: single",
            answers(),
        ),
        service(
            "h-timers-again",
            on_timer(&format!("(drop (call $h)) {DONE}")),
            "state: single",
            answers(),
        ),
        service(
            "h-publish",
            handler(&publisher, publishes),
            "subscribe: [flood/*]\n  publish: [flood/*]",
            crowded(),
        ),
        service(
            "h-calls-self",
            calls("h-calls-self"),
            "calls: [h-calls-self]",
            crowded(),
        ),
        service(
            "h-calls-away",
            calls("nobody"),
            "calls: [nobody]",
            answers(),
        ),
        service(
            "h-headers",
            handler("(data (i32.const 64) \"x\")", headers),
            "",
            answers(),
        ),
        service(
            "h-reply",
            handler(
                "(data (i32.const 64) \"x\") (data (i32.const 80) \"\\0d\\0a\")",
                bad_reply,
            ),
            "",
            answers(),
        ),
        service("h-big", handler("", big), "", asked(1, "/", "HOP3-0524")),
        service(
            "h-switch",
            handler(
                "",
                "(drop (call $reply_status (i32.const 101))) (i32.const 0)",
            ),
            "",
            asked(1, "/", "HOP3-0524"),
        ),
        service(
            "h-publish-kept",
            handler(&publisher, publishes),
            "state: single\n  subscribe: [flood/*]\n  publish: [flood/*]",
            crowded(),
        ),
        service(
            "h-calls-kept",
            calls("h-calls-kept"),
            "state: single\n  calls: [h-calls-kept]",
            crowded(),
        ),
        service("h-closed", handler("", closed), "", answers()),
        service("h-early", on_start(early), "state: single", answers()),
        service("h-blocks", handler(&deep, DONE), "state: single", answers()),
        service(
            "h-init-trap",
            on_init("unreachable"),
            "state: single",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-init-spin",
            on_init(SPIN),
            "",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-start-spin",
            on_start("(loop $l (br $l))"),
            "",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-schema-spin",
            schema(SPIN),
            "",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-schema-grow",
            schema("(loop $l (drop (memory.grow (i32.const 100))) (br $l)) (i32.const 0)"),
            "",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-memory",
            guest(
                10_000,
                "(func (export \"hop3_request\") (result i32) (i32.const 0))",
            ),
            "",
            Asks::NeverReady("HOP3-0523"),
        ),
        service(
            "h-type",
            guest(1, "(func (export \"hop3_request\") (param i32))"),
            "",
            Asks::Refused("HOP3-0404"),
        ),
        service(
            "h-import",
            "(module (import \"hop3\" \"kv_sett\" (func)) (memory (export \"memory\") 1)
             (func (export \"hop3_timer\") (result i32) (i32.const 0)))"
                .into(),
            "",
            Asks::Refused("HOP3-0403"),
        ),
    ]
}
