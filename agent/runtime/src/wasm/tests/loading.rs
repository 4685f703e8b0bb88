use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "hello")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 5))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn error_text(wat: &str) -> String {
    load_error(&wat::parse_str(wat).unwrap()).to_string()
}

#[test]
fn what_is_not_wasm_is_named() {
    let cases: [(&[u8], &str); 10] = [
        (b"", "an empty file"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x02\0\0\0", "unknown version"),
        (b"\0asm\x01", "cut short"),
        (b"\x7fELF\x02\x01", "native (ELF)"),
        (b"  (module)", "Wasm text"),
        (b"(\n module)", "Wasm text"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"#!/bin/sh", "script"),
        (b"hello", "does not begin as Wasm"),
    ];
    for (bytes, expected) in cases {
        let error = load_error(bytes);
        assert!(matches!(error, Error::NotWasm { .. }), "{bytes:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn malformed_modules_tell_where() {
    let mut wasm = wat::parse_str(HELLO).unwrap();
    wasm.truncate(wasm.len() - 10);
    match load_error(&wasm) {
        Error::Malformed { offset, message } => {
            assert!(offset > 8 && offset <= wasm.len() as u64);
            assert!(!message.is_empty());
        }
        other => panic!("{other}"),
    }
    let typed = r#"(module (func (export "_start") (i32.add (f32.const 1) (i32.const 1)) drop))"#;
    assert!(error_text(typed).contains("type mismatch"));
}

#[test]
fn proposals_that_are_off_are_named() {
    let cases = [
        (r#"(memory 1 1 shared)"#, "threads"),
        (r#"(memory i64 1)"#, "memory64"),
        (r#"(memory 1) (memory 1)"#, "multi_memory"),
        (r#"(tag)"#, "exceptions"),
        (r#"(type (struct))"#, "gc"),
    ];
    for (part, proposal) in cases {
        match load_error(&wat::parse_str(format!("(module {part})")).unwrap()) {
            Error::UnsupportedProposal {
                proposal: found, ..
            } => assert_eq!(found, proposal),
            other => panic!("{part}: {other}"),
        }
    }
}

#[test]
fn unknown_imports_name_the_nearest_or_the_way_out() {
    let import = |module: &str, name: &str| {
        error_text(&format!(
            r#"(module (import "{module}" "{name}" (func)) (func (export "_start")))"#
        ))
    };
    let text = import("wasi_snapshot_preview1", "fd_wriet");
    assert_eq!(
        text,
        "the module imports `wasi_snapshot_preview1::fd_wriet`, which is not available: \
         the nearest known is `fd_write`"
    );
    assert!(import("wasi_unstable", "fd_write").contains("preview 0"));
    assert!(import("wasi:io/streams@0.2.0", "drop").contains("wasm32-wasip1"));
    assert!(import("wasi", "thread-spawn").contains("threads"));
    assert!(import("env", "printf").contains("undefined symbol"));
    assert!(import("mine", "\\07f").contains("mine::\u{fffd}f"));
    let wrong_type = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func (param i64)))
        (memory (export "memory") 1) (func (export "_start")))"#;
    let text = error_text(wrong_type);
    assert!(
        text.contains("wrong type") && text.contains("fd_write"),
        "{text}"
    );
}

#[test]
fn exports_are_checked() {
    assert!(error_text("(module)").contains("does not export `_start`"));
    assert!(error_text(r#"(module (func (export "_initialize")))"#).contains("reactor"));
    let no_memory = r#"(module
        (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
        (func (export "_start")))"#;
    assert!(error_text(no_memory).contains("`memory`"));
    let typed = r#"(module (func (export "_start") (param i32)))"#;
    assert!(error_text(typed).contains("must be a function without"));
    let shadow = r#"(module (global (export "memory") i32 (i32.const 0))
        (func (export "_start")))"#;
    assert!(error_text(shadow).contains("must be a linear memory"));
}

#[test]
fn what_is_too_large_is_refused() {
    let huge = vec![0; 33 << 20];
    assert!(matches!(
        load_error(&huge),
        Error::TooLarge {
            what: "the module",
            ..
        }
    ));
    let memory = r#"(module (memory (export "memory") 1025) (func (export "_start")))"#;
    match load_error(&wat::parse_str(memory).unwrap()) {
        Error::TooLarge {
            bytes, bytes_max, ..
        } => {
            assert_eq!((bytes, bytes_max), (1_025 << 16, 64 << 20));
        }
        other => panic!("{other}"),
    }
    let tables = r#"(module (table 30000 funcref) (func (export "_start")))"#;
    assert!(matches!(
        load_error(&wat::parse_str(tables).unwrap()),
        Error::Compile { .. }
    ));
}

#[test]
fn bytes_of_another_digest_are_refused() {
    let wasm = wat::parse_str(HELLO).unwrap();
    let error = engine().load(&wasm, &[7; 32]).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }));
    assert!(engine().find(&[7; 32]).is_none());
}

#[test]
fn options_out_of_range_are_named() {
    let bad = [
        EngineOptions {
            instances_max: 0,
            ..EngineOptions::default()
        },
        EngineOptions {
            memory_bytes_max: 5 << 30,
            ..EngineOptions::default()
        },
        EngineOptions {
            wasm_stack_bytes: 0,
            ..EngineOptions::default()
        },
        EngineOptions {
            tick_ms: 0,
            ..EngineOptions::default()
        },
    ];
    for options in bad {
        assert!(matches!(
            Engine::new(options, None),
            Err(OptionsError::Range { .. })
        ));
    }
    let small = EngineOptions::for_machine(1 << 30);
    assert_eq!(small.address_space, AddressSpace::Compact);
    assert!(u64::from(small.instances_max) * small.memory_bytes_max <= 4 << 30);
}

fn small_engine(dir: &Path, key: u8) -> Engine {
    let options = EngineOptions {
        instances_max: 2,
        memory_bytes_max: 1 << 20,
        address_space: AddressSpace::Compact,
        loaded_max: 2,
        ..EngineOptions::default()
    };
    let cache = CompiledCache::open(dir, [key; 32], 64 << 20).unwrap();
    Engine::new(options, Some(cache)).unwrap()
}

fn says_hello(module: &LoadedModule) -> bool {
    let result = invoke(module, b"", &Limits::default(), &CancelToken::new()).unwrap();
    result.outcome.end == End::Exit(0) && result.output == b"hello"
}

#[test]
fn compiled_code_is_cached_and_damage_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = wat::parse_str(HELLO).unwrap();
    let digest = digest_of(&wasm);
    let first = small_engine(dir.path(), 1);
    assert!(first.find(&digest).is_none());
    assert!(says_hello(&first.load(&wasm, &digest).unwrap()));
    // Another engine of the same kind and key takes the code from the cache, without bytes.
    let second = small_engine(dir.path(), 1);
    assert_eq!(first.compat_hash(), second.compat_hash());
    assert!(says_hello(&second.load(b"", &digest).unwrap()));
    let file = fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = fs::read(&file).unwrap();
    for at in [0, 9, 50, 79, 100, 112, 500, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&file, &bad).unwrap();
        second.forget_loaded();
        assert!(second.find(&digest).is_none(), "flip at {at}");
        assert!(says_hello(&second.load(&wasm, &digest).unwrap()));
        assert!(fs::read(&file).unwrap() == good, "repaired");
    }
    // A whole, valid file of another machine's key.
    let stranger = small_engine(dir.path(), 2);
    assert!(stranger.find(&digest).is_none());
    assert!(says_hello(&stranger.load(&wasm, &digest).unwrap()));
    second.forget_loaded();
    assert!(second.find(&digest).is_none());
}

#[test]
fn engines_of_another_kind_do_not_share_code() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = wat::parse_str(HELLO).unwrap();
    let digest = digest_of(&wasm);
    let plain = small_engine(dir.path(), 1);
    plain.load(&wasm, &digest).unwrap();
    let options = EngineOptions {
        canonical_nans: true,
        ..plain.options().clone()
    };
    let cache = CompiledCache::open(dir.path(), [1; 32], 64 << 20).unwrap();
    let canonical = Engine::new(options, Some(cache)).unwrap();
    assert_ne!(plain.compat_hash(), canonical.compat_hash());
    assert!(canonical.find(&digest).is_none());
}

#[test]
fn modules_in_memory_are_shared_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let engine = small_engine(dir.path(), 1);
    let load = |n: i32| {
        let wat = format!(r#"(module (func (export "_start") (drop (i32.const {n}))))"#);
        let wasm = wat::parse_str(wat).unwrap();
        engine.load(&wasm, &digest_of(&wasm)).unwrap()
    };
    let first = load(0);
    assert!(Arc::ptr_eq(&first, &load(0)));
    load(1);
    load(2); // two are kept: 0 goes
    assert!(!Arc::ptr_eq(&first, &load(0)));
}

#[test]
fn many_callers_compile_a_module_once() {
    let wasm = wat::parse_str(HELLO.replace("hello", "once!")).unwrap();
    let digest = digest_of(&wasm);
    let loaded: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| engine().load(&wasm, &digest).unwrap()))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    assert!(loaded.iter().all(|module| Arc::ptr_eq(module, &loaded[0])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_make_loading_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = engine().load(&bytes, &digest_of(&bytes));
        bytes.splice(0..0, *b"\0asm\x01\0\0\0");
        let _ = engine().load(&bytes, &digest_of(&bytes));
    }

    #[test]
    fn no_damage_to_a_module_makes_loading_or_running_panic(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut wasm = wat::parse_str(HELLO).unwrap();
        for (at, value) in flips {
            let at = at.index(wasm.len());
            wasm[at] = value;
        }
        if let Some(cut) = cut {
            wasm.truncate(cut.index(wasm.len()));
        }
        if let Ok(module) = engine().load(&wasm, &digest_of(&wasm)) {
            let limits = Limits { cpu_ms: 50, wall_ms: 500, ..Limits::default() };
            let _ = invoke(&module, b"", &limits, &CancelToken::new());
        }
    }
}
