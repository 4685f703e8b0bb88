use std::thread;
use std::time::{Duration, Instant};

use super::*;

const SPIN: &str = r#"(module (func (export "_start") (loop $l br $l)))"#;

fn limit_of(end: &End) -> (Which, u64) {
    match end {
        End::LimitExceeded(limit) => {
            assert!(limit.used >= limit.limit);
            (limit.which, limit.limit)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_spinning_guest_ends_by_its_cpu_limit() {
    let outcome = run(&load(SPIN), limited(|l| l.cpu_ms = 20));
    assert_eq!(limit_of(&outcome.end), (Which::CpuMs, 20));
    assert!(outcome.usage.cpu_us >= 20_000);
}

#[test]
fn a_spinning_guest_ends_by_deadline_and_by_cancel() {
    let outcome = run(&load(SPIN), limited(|l| l.wall_ms = 20));
    assert_eq!(outcome.end, End::DeadlineExceeded);
    let input = TaskInput::default();
    let cancel = input.cancel.clone();
    let guest = thread::spawn(move || run(&load(SPIN), input));
    cancel.cancel();
    assert_eq!(guest.join().unwrap().end, End::Cancelled);
}

#[test]
fn a_guest_cancelled_before_its_turn_does_not_run() {
    let input = TaskInput::default();
    input.cancel.cancel();
    let module = load(r#"(module (func (export "_start") unreachable))"#);
    assert_eq!(run(&module, input).end, End::Cancelled);
}

#[test]
fn a_spinning_start_section_is_ended_too() {
    let wat = r#"(module (func $s (loop $l br $l)) (start $s) (func (export "_start")))"#;
    let outcome = run(&load(wat), limited(|l| l.cpu_ms = 10));
    assert_eq!(limit_of(&outcome.end), (Which::CpuMs, 10));
}

#[test]
fn memory_grows_to_the_limit_and_not_beyond() {
    // Grows page by page until refused, then exits with the number of pages.
    let wat = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
            (call $exit (memory.size))))"#;
    let outcome = run(&load(wat), limited(|l| l.memory_bytes = 10 * 65_536 + 5));
    assert_eq!(outcome.end, End::Exit(10));
    assert_eq!(outcome.usage.memory_peak_bytes, 10 * 65_536);
    assert_eq!(outcome.usage.memory_refused, 1);
    // The engine's own bound (64 MiB here) holds where the limit is higher.
    let outcome = run(&load(wat), limited(|l| l.memory_bytes = 1 << 30));
    assert_eq!(outcome.end, End::Exit(1_024));
}

#[test]
fn a_module_that_starts_too_large_is_ended_before_it_runs() {
    let wat = r#"(module (memory (export "memory") 100) (func (export "_start") unreachable))"#;
    let outcome = run(&load(wat), limited(|l| l.memory_bytes = 99 * 65_536));
    assert_eq!(limit_of(&outcome.end), (Which::MemoryBytes, 99 * 65_536));
}

#[test]
fn endless_recursion_ends_by_the_stack_limit() {
    let wat = r#"(module (func $f (export "_start") call $f call $f))"#;
    let outcome = run(&load(wat), TaskInput::default());
    assert_eq!(limit_of(&outcome.end), (Which::StackBytes, 512 * 1024));
}

#[test]
fn an_output_flood_ends_at_the_exact_byte() {
    for fd in [1, 2] {
        let body = format!(
            "(i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 7))
             (loop $more
                (drop (call $fd_write (i32.const {fd}) (i32.const 0) (i32.const 1)
                    (i32.const 8)))
                (br $more))"
        );
        let module = load(&program(&[EXIT, ("fd_write", I4)], "0123456", &body));
        let out = Arc::new(Captured::new(10_000));
        let mut input = limited(|l| l.output_bytes = 1_000);
        input.stdout = Arc::clone(&out) as Arc<dyn Output>;
        input.stderr = Arc::clone(&out) as Arc<dyn Output>;
        let outcome = run(&module, input);
        assert_eq!(limit_of(&outcome.end), (Which::OutputBytes, 1_000));
        assert_eq!(out.take().len(), 1_000);
        assert_eq!(outcome.usage.output_bytes, 1_000);
    }
}

#[test]
fn a_reader_who_does_not_read_holds_the_guest_until_it_is_cancelled() {
    let body = "
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 7))
        (loop $more
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br $more))";
    let module = load(&program(&[EXIT, ("fd_write", I4)], "0123456", body));
    let (input, pipe) = (TaskInput::default(), Pipe::new(100));
    let cancel = input.cancel.clone();
    let input = TaskInput {
        stdout: Arc::new(pipe.clone()),
        ..input
    };
    let guest = thread::spawn(move || run(&module, input));
    let deadline = Instant::now() + Duration::from_secs(20);
    while pipe.written() < 100 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    cancel.cancel();
    let outcome = guest.join().unwrap();
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(outcome.usage.output_bytes, 100);
}

#[test]
fn a_closed_reader_is_a_broken_pipe() {
    let pipe = Pipe::new(100);
    pipe.close();
    let input = TaskInput {
        stdout: Arc::new(pipe),
        ..TaskInput::default()
    };
    let body = "(i32.store (i32.const 4) (i32.const 1))
        (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))";
    assert_eq!(code_of(&[("fd_write", I4)], "", body, input), 64);
}

#[test]
fn a_flood_of_host_calls_is_ended() {
    let body = "(loop $more
        (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 0))) (br $more))";
    let clock = ("clock_time_get", "(param i32 i64 i32) (result i32)");
    let module = load(&program(&[EXIT, clock], "", body));
    let input = limited(|l| (l.host_calls_per_s, l.host_calls_burst) = (1_000, 5_000));
    let outcome = run(&module, input);
    assert_eq!(limit_of(&outcome.end), (Which::HostCallsPerS, 1_000));
    assert!(outcome.usage.host_calls > 5_000);
}

/// Sleeps for an hour.
const SLEEP: &str = "
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 0) (i32.const 200) (i32.const 1) (i32.const 400)))";

#[test]
fn a_sleeping_guest_is_woken_by_cancel_and_by_its_deadline() {
    let module = load(&program(&[EXIT, ("poll_oneoff", I4)], "", SLEEP));
    let input = TaskInput::default();
    let cancel = input.cancel.clone();
    let guest = thread::spawn({
        let module = Arc::clone(&module);
        move || run(&module, input)
    });
    cancel.cancel();
    assert_eq!(guest.join().unwrap().end, End::Cancelled);
    let outcome = run(&module, limited(|l| l.wall_ms = 10));
    assert_eq!(outcome.end, End::DeadlineExceeded);
}

#[test]
fn a_guest_blocked_on_input_is_woken_by_cancel_and_by_its_deadline() {
    let body = "(i32.store (i32.const 4) (i32.const 1))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))";
    let module = load(&program(&[EXIT, ("fd_read", I4)], "", body));
    let blocked = |input: TaskInput| TaskInput {
        stdin: Arc::new(Pipe::new(1)),
        ..input
    };
    let input = blocked(TaskInput::default());
    let cancel = input.cancel.clone();
    let guest = thread::spawn({
        let module = Arc::clone(&module);
        move || run(&module, input)
    });
    cancel.cancel();
    assert_eq!(guest.join().unwrap().end, End::Cancelled);
    let outcome = run(&module, blocked(limited(|l| l.wall_ms = 10)));
    assert_eq!(outcome.end, End::DeadlineExceeded);
    assert!(outcome.usage.cpu_us < 1_000_000);
}

#[test]
fn bad_pointers_are_efault() {
    let call = |iovs: i32, buf: i32, len: i32, out: i32| {
        let body = format!(
            "(i32.store (i32.const 0) (i32.const {buf}))
             (i32.store (i32.const 4) (i32.const {len}))
             (call $fd_write (i32.const 1) (i32.const {iovs}) (i32.const 1) (i32.const {out}))"
        );
        code_of(&[("fd_write", I4)], "", &body, TaskInput::default())
    };
    assert_eq!(call(0, 0, 65_536, 8), 0);
    assert_eq!(call(0, 1, 65_536, 8), 21);
    assert_eq!(call(0, -1, 2, 8), 21);
    assert_eq!(call(0, 0, -1, 8), 21);
    assert_eq!(call(65_530, 0, 1, 8), 21);
    assert_eq!(call(-1, 0, 1, 8), 21);
    assert_eq!(call(0, 0, 1, 65_533), 21);
    let many = "(call $fd_read (i32.const 0) (i32.const 0) (i32.const 2000) (i32.const 8))";
    assert_eq!(
        code_of(&[("fd_read", I4)], "", many, TaskInput::default()),
        28
    );
    let huge = "(call $random_get (i32.const 0) (i32.const 0x7fffffff))";
    assert_eq!(
        code_of(&[("random_get", I2)], "", huge, TaskInput::default()),
        28
    );
}

#[test]
fn one_call_moves_a_bounded_number_of_bytes() {
    let wat = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 64)
        (func (export "_start")
            (i32.store (i32.const 4) (i32.const 4000000))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (call $exit (i32.load (i32.const 8)))))"#;
    assert_eq!(
        run(&load(wat), TaskInput::default()).end,
        End::Exit(1 << 20)
    );
}

#[test]
fn more_instances_than_the_engine_has_are_refused() {
    let options = EngineOptions {
        instances_max: 1,
        memory_bytes_max: 1 << 20,
        address_space: AddressSpace::Compact,
        ..EngineOptions::default()
    };
    let engine = Engine::new(options, None).unwrap();
    let wat = program(
        &[EXIT, ("fd_read", I4)],
        "",
        "(i32.store (i32.const 4) (i32.const 1))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))",
    );
    let wasm = wat::parse_str(wat).unwrap();
    let module = engine.load(&wasm, &digest_of(&wasm)).unwrap();
    let stdin = Pipe::new(1);
    let guest = thread::spawn({
        let (module, stdin) = (Arc::clone(&module), stdin.clone());
        move || loop {
            let input = TaskInput {
                stdin: Arc::new(stdin.clone()),
                ..TaskInput::default()
            };
            match run_task(&module, input) {
                // The probe below has the only place just now.
                Err(RunError::Busy) => thread::yield_now(),
                ran => return ran.unwrap(),
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline);
        match run_task(&module, TaskInput::default()) {
            Err(RunError::Busy) => break,
            Ok(_) => thread::yield_now(), // the other has not started yet
            Err(other) => panic!("{other}"),
        }
        if guest.is_finished() {
            panic!("the blocked guest lost its place");
        }
    }
    stdin.end();
    assert_eq!(guest.join().unwrap().end, End::Exit(0));
    assert_eq!(run(&module, TaskInput::default()).end, End::Exit(0));
}
