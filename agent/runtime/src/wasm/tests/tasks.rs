use super::*;

const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read"
        (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (loop $more
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 4096))
            (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))
                (then unreachable))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (if (i32.load (i32.const 8)) (then
                (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12))
                    (then unreachable))
                (br $more))))))"#;

#[test]
fn exit_codes_pass_through() {
    for code in [0, 1, 42, 255, -1] {
        assert_eq!(
            code_of(
                &[],
                "",
                &format!("(i32.const {code})"),
                TaskInput::default()
            ),
            code
        );
    }
    let returns = load(r#"(module (func (export "_start")))"#);
    assert_eq!(run(&returns, TaskInput::default()).end, End::Exit(0));
}

#[test]
fn a_function_call_gives_its_input_back() {
    let echo = load(ECHO);
    let input: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let limits = Limits::default();
    let result = invoke(&echo, &input, &limits, &CancelToken::new()).unwrap();
    assert_eq!(result.outcome.end, End::Exit(0));
    assert!(result.output == input);
    let usage = result.outcome.usage;
    assert_eq!(usage.output_bytes, 100_000);
    assert_eq!(usage.memory_peak_bytes, 65_536);
    assert_eq!(usage.host_calls, 2 * 25 + 1);
    // Nothing is carried over from one call to the next.
    let again = invoke(&echo, b"x", &limits, &CancelToken::new()).unwrap();
    assert_eq!(again.output, b"x");
}

#[test]
fn a_stream_crosses_while_the_guest_runs() {
    let (stdin, stdout) = (Pipe::new(16), Pipe::new(16));
    let input = TaskInput {
        stdin: Arc::new(stdin.clone()),
        stdout: Arc::new(stdout.clone()),
        ..TaskInput::default()
    };
    let guest = std::thread::spawn(move || run(&load(ECHO), input));
    let wait = Wait {
        cancel: CancelToken::new(),
        deadline: None,
    };
    let mut back = [0; 5];
    for word in [b"hello", b"world"] {
        assert_eq!(stdin.write(word, &wait).unwrap(), 5);
        let mut got = 0;
        while got < 5 {
            got += stdout.read(&mut back[got..], &wait).unwrap();
        }
        assert_eq!(&back, word);
    }
    stdin.end();
    assert_eq!(guest.join().unwrap().end, End::Exit(0));
}

#[test]
fn arguments_and_environment_arrive() {
    let print = |sizes: &str, get: &str| {
        program(
            &[EXIT, (sizes, I2), (get, I2), ("fd_write", I4)],
            "",
            &format!(
                "(drop (call ${sizes} (i32.const 0) (i32.const 4)))
                 (drop (call ${get} (i32.const 100) (i32.const 2000)))
                 (i32.store (i32.const 8) (i32.load (i32.const 100)))
                 (i32.store (i32.const 12) (i32.load (i32.const 4)))
                 (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))
                 (call $proc_exit (i32.load (i32.const 0)))"
            ),
        )
    };
    let input = |out: &Arc<Captured>| TaskInput {
        args: vec!["tool".into(), "-x".into(), "ü".into()],
        env: vec![("A".into(), "1".into()), ("B".into(), "x=y".into())],
        stdout: Arc::clone(out) as Arc<dyn Output>,
        ..TaskInput::default()
    };
    let out = Arc::new(Captured::new(100));
    let args = load(&print("args_sizes_get", "args_get"));
    assert_eq!(run(&args, input(&out)).end, End::Exit(3));
    assert_eq!(out.take(), "tool\0-x\0ü\0".as_bytes());
    let env = load(&print("environ_sizes_get", "environ_get"));
    assert_eq!(run(&env, input(&out)).end, End::Exit(2));
    assert_eq!(out.take(), b"A=1\0B=x=y\0");
}

#[test]
fn unacceptable_input_is_refused_before_the_guest_runs() {
    let module = load(r#"(module (func (export "_start") unreachable))"#);
    let volume = |guest_path: &str| Volume {
        guest_path: guest_path.into(),
        host_dir: "/nonexistent/hop3".into(),
        read_only: true,
    };
    let grant = |volumes| TaskInput {
        grants: Grants { volumes },
        ..TaskInput::default()
    };
    let refused = [
        TaskInput {
            args: vec!["a\0b".into()],
            ..TaskInput::default()
        },
        TaskInput {
            args: vec![String::new(); 5_000],
            ..TaskInput::default()
        },
        TaskInput {
            env: vec![("a=b".into(), String::new())],
            ..TaskInput::default()
        },
        grant(vec![volume("data")]),
        grant(vec![volume("/a/../b")]),
        grant(vec![volume("/a"), volume("/a")]),
        grant((0..17).map(|n| volume(&format!("/v{n}"))).collect()),
    ];
    for input in refused {
        assert!(matches!(
            run_task(&module, input),
            Err(RunError::Input { .. })
        ));
    }
    let missing = run_task(&module, grant(vec![volume("/data")])).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "volume /data: cannot open /nonexistent/hop3"
    );
    let limits = run_task(&module, limited(|l| l.cpu_ms = 0)).unwrap_err();
    assert!(matches!(limits, RunError::Limits(_)));
}

#[test]
fn traps_are_told_apart_and_located() {
    let cases = [
        ("unreachable", TrapKind::Unreachable),
        (
            "(drop (i32.load (i32.const -1)))",
            TrapKind::MemoryOutOfBounds,
        ),
        (
            "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
            TrapKind::DivisionByZero,
        ),
        (
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            TrapKind::IntegerOverflow,
        ),
        (
            "(drop (i32.trunc_f32_s (f32.const nan)))",
            TrapKind::BadConversion,
        ),
        ("(call_indirect (i32.const 0))", TrapKind::BadIndirectCall),
        ("(call_indirect (i32.const 9))", TrapKind::TableOutOfBounds),
    ];
    for (body, expected) in cases {
        let module = load(&format!(
            "(module (memory 1) (table 1 funcref)
                (func $inner {body}) (func $outer (export \"_start\") call $inner))"
        ));
        match run(&module, TaskInput::default()).end {
            End::Trap { kind, frames, .. } => {
                assert_eq!(kind, expected, "{body}");
                let names: Vec<_> = frames.iter().map(|frame| frame.function.as_str()).collect();
                assert_eq!(names, ["inner", "outer"]);
                assert!(frames[0].offset.is_some());
            }
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn seeded_randomness_and_virtual_time_repeat() {
    let body = "
        (drop (call $random_get (i32.const 0) (i32.const 16)))
        (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 16)))
        (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 24)))
        (drop (call $clock_time_get (i32.const 2) (i64.const 0) (i32.const 32)))
        (i32.store (i32.const 104) (i32.const 40))
        (drop (call $fd_write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 200)))";
    let clock_type = "(param i32 i64 i32) (result i32)";
    let imports = [
        EXIT,
        ("random_get", I2),
        ("clock_time_get", clock_type),
        ("fd_write", I4),
    ];
    let module = load(&program(&imports, "", body));
    let once = |virtual_time: bool| {
        let out = Arc::new(Captured::new(100));
        let mut input = TaskInput {
            stdout: Arc::clone(&out) as Arc<dyn Output>,
            ..TaskInput::default()
        };
        if virtual_time {
            input.random = GuestRandom::Seeded(SeededRandom {
                seed: [1; 32],
                position: 0,
            });
            let clock = VirtualClock {
                epoch_ns: 1 << 60,
                monotonic_ns: 0,
                step_ns: 1,
            };
            input.clock = GuestClock::Virtual(clock);
        }
        assert_eq!(run(&module, input).end, End::Exit(0));
        out.take()
    };
    assert_eq!(once(true).len(), 40);
    assert_eq!(once(true), once(true));
    assert_ne!(once(false), once(false));
}

#[test]
fn sleeping_in_virtual_time_takes_no_time() {
    // Two timers of 10 and 20 hours: the first one fires.
    let body = "
        (i64.store (i32.const 0) (i64.const 7))
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 36000000000000))
        (i64.store (i32.const 48) (i64.const 8))
        (i32.store (i32.const 64) (i32.const 1))
        (i64.store (i32.const 72) (i64.const 72000000000000))
        (drop (call $poll_oneoff (i32.const 0) (i32.const 200) (i32.const 2) (i32.const 400)))
        (call $proc_exit (i32.add
            (i32.mul (i32.load (i32.const 400)) (i32.const 100)) (i32.load (i32.const 200))))";
    let module = load(&program(&[EXIT, ("poll_oneoff", I4)], "", body));
    let clock = VirtualClock {
        epoch_ns: 0,
        monotonic_ns: 0,
        step_ns: 0,
    };
    let input = TaskInput {
        clock: GuestClock::Virtual(clock),
        ..TaskInput::default()
    };
    assert_eq!(run(&module, input).end, End::Exit(107));
}

#[test]
fn polling_standard_input_wakes_for_bytes_and_for_the_end() {
    // Waits for input with a timer of an hour; exits with 10 * events + first event's userdata.
    let body = "
        (i64.store (i32.const 0) (i64.const 3))
        (i32.store8 (i32.const 8) (i32.const 1))
        (i64.store (i32.const 48) (i64.const 4))
        (i32.store (i32.const 64) (i32.const 1))
        (i64.store (i32.const 72) (i64.const 3600000000000))
        (drop (call $poll_oneoff (i32.const 0) (i32.const 200) (i32.const 2) (i32.const 400)))
        (call $proc_exit (i32.add
            (i32.mul (i32.load (i32.const 400)) (i32.const 10)) (i32.load (i32.const 200))))";
    let module = load(&program(&[EXIT, ("poll_oneoff", I4)], "", body));
    for ends in [false, true] {
        let stdin = Pipe::new(4);
        let input = TaskInput {
            stdin: Arc::new(stdin.clone()),
            ..TaskInput::default()
        };
        let guest = std::thread::spawn({
            let module = Arc::clone(&module);
            move || run(&module, input)
        });
        if ends {
            stdin.end();
        } else {
            assert_eq!(stdin.try_write(b"x"), TryWrite::Wrote(1));
        }
        assert_eq!(guest.join().unwrap().end, End::Exit(13));
    }
}

#[test]
fn every_preview_1_function_can_be_linked() {
    // What wasi-libc knows; types as in the specification.
    let signatures = [
        ("args_get", "i32 i32"),
        ("args_sizes_get", "i32 i32"),
        ("environ_get", "i32 i32"),
        ("environ_sizes_get", "i32 i32"),
        ("clock_res_get", "i32 i32"),
        ("clock_time_get", "i32 i64 i32"),
        ("fd_advise", "i32 i64 i64 i32"),
        ("fd_allocate", "i32 i64 i64"),
        ("fd_close", "i32"),
        ("fd_datasync", "i32"),
        ("fd_fdstat_get", "i32 i32"),
        ("fd_fdstat_set_flags", "i32 i32"),
        ("fd_fdstat_set_rights", "i32 i64 i64"),
        ("fd_filestat_get", "i32 i32"),
        ("fd_filestat_set_size", "i32 i64"),
        ("fd_filestat_set_times", "i32 i64 i64 i32"),
        ("fd_pread", "i32 i32 i32 i64 i32"),
        ("fd_prestat_get", "i32 i32"),
        ("fd_prestat_dir_name", "i32 i32 i32"),
        ("fd_pwrite", "i32 i32 i32 i64 i32"),
        ("fd_read", "i32 i32 i32 i32"),
        ("fd_readdir", "i32 i32 i32 i64 i32"),
        ("fd_renumber", "i32 i32"),
        ("fd_seek", "i32 i64 i32 i32"),
        ("fd_sync", "i32"),
        ("fd_tell", "i32 i32"),
        ("fd_write", "i32 i32 i32 i32"),
        ("path_create_directory", "i32 i32 i32"),
        ("path_filestat_get", "i32 i32 i32 i32 i32"),
        ("path_filestat_set_times", "i32 i32 i32 i32 i64 i64 i32"),
        ("path_link", "i32 i32 i32 i32 i32 i32 i32"),
        ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
        ("path_readlink", "i32 i32 i32 i32 i32 i32"),
        ("path_remove_directory", "i32 i32 i32"),
        ("path_rename", "i32 i32 i32 i32 i32 i32"),
        ("path_symlink", "i32 i32 i32 i32 i32"),
        ("path_unlink_file", "i32 i32 i32"),
        ("poll_oneoff", "i32 i32 i32 i32"),
        ("proc_raise", "i32"),
        ("random_get", "i32 i32"),
        ("sched_yield", ""),
        ("sock_accept", "i32 i32 i32"),
        ("sock_recv", "i32 i32 i32 i32 i32 i32"),
        ("sock_send", "i32 i32 i32 i32 i32"),
        ("sock_shutdown", "i32 i32"),
    ];
    let typed: Vec<_> = signatures
        .iter()
        .map(|(name, params)| (*name, format!("(param {params}) (result i32)")))
        .collect();
    let mut imports: Vec<_> = typed
        .iter()
        .map(|(name, ty)| (*name, ty.as_str()))
        .collect();
    imports.push(EXIT);
    assert_eq!(imports.len(), super::super::wasi::NAMES.len());
    // Each is called with pointers and numbers that are all wrong: an error, never a panic.
    let mut body = String::new();
    for (name, params) in &signatures {
        if *name == "poll_oneoff" {
            continue;
        }
        let args: String = params
            .split_whitespace()
            .map(|ty| format!("({ty}.const -1) "))
            .collect();
        write!(body, "(drop (call ${name} {args}))").unwrap();
    }
    let module = load(&program(&imports, "", &body));
    assert_eq!(run(&module, TaskInput::default()).end, End::Exit(0));
}
