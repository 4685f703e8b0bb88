use super::*;

/// Counts in memory, a hidden global, key-value data and a timer, and then does what the body
/// says: `s`pin, `t`rap, `r`ecurse, `g`row, `f`lood, `l`og, `n`o, a bad `p`ointer; else it replies.
fn counter() -> String {
    handler(
        "(global $count (mut i64) (i64.const 0))
         (func $deep (call $deep) (call $deep))",
        "(i32.store (i32.const 256) (i32.add (i32.load (i32.const 256)) (i32.const 1)))
         (global.set $count (i64.add (global.get $count) (i64.const 1)))
         (i64.store (i32.const 264) (global.get $count))
         (drop (call $kv_set (i32.const 256) (i32.const 4) (i32.const 264) (i32.const 8)))
         (drop (call $timer_set (global.get $count) (i64.const 99)))
         (drop (call $input (i32.const 4) (i32.const 0) (i32.const 512) (i32.const 1)))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 115)) (then (loop $l (br $l))))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 116)) (then unreachable))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 114)) (then (call $deep)))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 103)) (then
            (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
            (i32.store (i32.const 65536) (i32.const 1)) unreachable))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 102)) (then
            (loop $l (drop (call $now_ms)) (br $l))))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 108)) (then
            (loop $l (call $log (i32.const 0) (i32.const 0) (i32.const 1000)) (br $l))))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 110)) (then
            (return (i32.const 7))))
         (if (i32.eq (i32.load8_u (i32.const 512)) (i32.const 112)) (then
            (drop (call $reply_write (i32.const -8) (i32.const 16)))))
         (drop (call $reply_write (i32.const 256) (i32.const 16)))
         (i32.const 0)",
    )
}

fn counts(instance: &mut Instance) -> (u32, u64) {
    let reply = done(instance, request("/", "ok")).reply.unwrap();
    let memory = u32::from_le_bytes(reply.body[..4].try_into().unwrap());
    let global = u64::from_le_bytes(reply.body[8..16].try_into().unwrap());
    (memory, global)
}

fn limited() -> Setup {
    let limits = Limits {
        memory_bytes: 4 << 20,
        cpu_ms: 50,
        reply_bytes: 10_000,
        host_calls_per_s: 20_000,
        ..Limits::default()
    };
    Setup { limits, ..setup() }
}

#[test]
fn a_failed_call_leaves_no_trace_and_the_instance_lives_on() {
    let cases = [
        ("s", "CPU time"),
        ("t", "unreachable"),
        ("r", "stack"),
        ("g", "unreachable"),
        ("f", "host calls"),
        ("l", "log output"),
        ("n", "returned 7"),
        ("p", "out of bounds"),
    ];
    let mut instance = start_with(&counter(), limited());
    assert_eq!(counts(&mut instance), (1, 1));
    for (n, (what, expected)) in (2..).zip(cases) {
        let before = instance.image().clone();
        let called = send(&mut instance, request("/", what));
        let failure = called.result.unwrap_err().to_string();
        assert!(failure.contains(expected), "{what}: {failure}");
        assert_eq!(*instance.image(), before);
        assert_eq!(counts(&mut instance), (n, u64::from(n)));
        assert_eq!(instance.image().memory_bytes(), 65_536);
        assert_eq!(instance.image().seq(), u64::from(n));
    }
}

#[test]
fn cancelled_and_late_calls_leave_no_trace() {
    let mut setup = limited();
    setup.limits.cpu_ms = 60_000;
    setup.limits.wall_ms = 30;
    let mut instance = start_with(&counter(), setup);
    let late = send(&mut instance, request("/", "s")).result.unwrap_err();
    assert!(late.to_string().contains("time limit"), "{late}");
    let cancel = CancelToken::new();
    cancel.cancel();
    let cancelled = instance.call(request("/", "ok"), NOW, &cancel);
    assert_eq!(
        cancelled.result.unwrap_err(),
        Failure::Ended("cancelled".into())
    );
    assert_eq!(counts(&mut instance), (1, 1));
}

#[test]
fn a_stateless_instance_forgets_its_memory_when_it_fails() {
    let stateless = Setup {
        stateful: false,
        ..limited()
    };
    let mut instance = start_with(&counter(), stateless);
    assert_eq!(counts(&mut instance), (1, 1));
    assert_eq!(counts(&mut instance), (2, 2));
    send(&mut instance, request("/", "t")).result.unwrap_err();
    assert_eq!(counts(&mut instance), (1, 1));
    assert_eq!(instance.image().memory_bytes(), 0);
}

#[test]
fn a_guest_that_fails_at_its_start_gives_no_instance() {
    let wat = handler(
        "(func (export \"hop3_init\") (result i32)
            (call $log (i32.const 1) (i32.const 64) (i32.const 2)) (i32.const 3))
         (data (i32.const 64) \"no\")",
        "(i32.const 0)",
    );
    match Instance::create(&load(&wat), setup(), NOW, &CancelToken::new()) {
        Err(StartError::Guest { failure, log }) => {
            assert_eq!(failure, Failure::Said(3));
            assert_eq!(log[0].text, "no");
        }
        other => panic!("{other:?}"),
    }
    let wat = format!(
        "(module {IMPORTS} (memory (export \"memory\") 65)
        (func (export \"hop3_timer\") (result i32) (i32.const 0)))"
    );
    let refused = Instance::create(&load(&wat), limited(), NOW, &CancelToken::new());
    assert!(refused.unwrap_err().to_string().contains("memory"));
}

#[test]
fn a_guest_that_calls_and_calls_is_refused_by_number() {
    let wat = handler(
        "(data (i32.const 64) \"otherG/p\")",
        "(local $calls i32)
         (loop $l (if (i64.gt_s (call $call (i32.const 64) (i32.const 5) (i32.const 69)
                (i32.const 1) (i32.const 70) (i32.const 1) (i32.const 0) (i32.const 0))
                (i64.const 0))
            (then (local.set $calls (i32.add (local.get $calls) (i32.const 1))) (br $l))))
         (i32.store (i32.const 0) (local.get $calls))
         (drop (call $reply_write (i32.const 0) (i32.const 4))) (i32.const 0)",
    );
    let mut instance = start_with(&wat, setup());
    for (under_way, made) in [(0, CALLS_MAX), (1_000, CALLS_MAX - 1_000), (CALLS_MAX, 0)] {
        instance.set_calls(under_way);
        let done = done(&mut instance, request("/", ""));
        assert_eq!(done.effects.len(), made);
        let said = done.reply.unwrap().body[..4].try_into().unwrap();
        assert_eq!(u32::from_le_bytes(said) as usize, made);
    }
}

#[test]
fn kept_messages_are_bounded_and_others_are_not_counted() {
    let wat = handler(
        "(data (i32.const 64) \"out/1\")",
        "(local $n i32)
         (loop $l (if (i32.eqz (call $publish (i32.const 64) (i32.const 5) (i32.const 64)
                (i32.const 1)))
            (then (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $l (i32.lt_u (local.get $n) (i32.const 5000))))))
         (i32.const 0)",
    );
    let mut instance = start_with(&wat, setup());
    let kept = |count, bytes| Some(Letters { count, bytes });
    for (letters, sent) in [
        (kept(0, 0), LETTERS_MAX),
        (kept(LETTERS_MAX - 2, 0), 2),
        (kept(0, LETTER_BYTES_MAX - 11), 1),
        (None, 5_000),
    ] {
        instance.set_letters(letters);
        let done = done(&mut instance, request("/", ""));
        assert_eq!(done.effects.len(), sent, "{letters:?}");
    }
}

#[test]
fn a_schema_is_asked_within_the_memory_of_its_instance() {
    let wat = |pages: u32| {
        format!(
            "(module {IMPORTS} (memory (export \"memory\") {pages})
            (func (export \"hop3_schema\") (result i32)
               (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
               (i32.sub (memory.size) (i32.const 60)))
            (func (export \"hop3_timer\") (result i32) (i32.const 0)))"
        )
    };
    // 4 MiB are 64 pages.
    let made = Instance::create(&load(&wat(1)), limited(), NOW, &CancelToken::new());
    assert_eq!(made.unwrap().0.image().schema(), 4);
    let refused = Instance::create(&load(&wat(65)), limited(), NOW, &CancelToken::new());
    assert!(refused.unwrap_err().to_string().contains("memory"));
    let spins = guest(
        "(func (export \"hop3_schema\") (result i32) (loop $l (br $l)) (i32.const 1))
         (func (export \"hop3_timer\") (result i32) (i32.const 0))",
    );
    let refused = Instance::create(&load(&spins), limited(), NOW, &CancelToken::new());
    assert!(refused.unwrap_err().to_string().contains("hop3_schema"));
}
