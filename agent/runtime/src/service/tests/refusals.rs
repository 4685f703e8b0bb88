use super::*;
use crate::wasm::Error;

fn load_error(wat: &str) -> Error {
    let wasm = wat::parse_str(wat).unwrap();
    let engine = engine(Tracking::Auto);
    engine.load(&wasm, &digest_of(&wasm)).unwrap_err()
}

#[test]
fn what_is_no_service_is_refused_by_name() {
    let missing = [
        ("(module (memory (export \"memory\") 1))", "hop3_request"),
        (
            "(module (func (export \"hop3_timer\") (result i32) i32.const 0))",
            "memory",
        ),
    ];
    for (wat, expected) in missing {
        match load_error(wat) {
            Error::MissingExport { name, .. } => assert_eq!(name, expected),
            other => panic!("{other:?}"),
        }
    }
    let wrong = [
        (guest("(func (export \"hop3_request\"))"), "hop3_request"),
        (
            guest("(func (export \"hop3_upgrade\") (result i32) i32.const 0)"),
            "hop3_upgrade",
        ),
        (
            guest("(global (export \"hop3:g0\") i32 (i32.const 0))"),
            "hop3:…",
        ),
    ];
    for (wat, expected) in wrong {
        match load_error(&wat) {
            Error::WrongExport { name, .. } => assert_eq!(name, expected),
            other => panic!("{other:?}"),
        }
    }
    match load_error(r#"(module (import "hop3" "kv_put" (func)))"#) {
        Error::UnsupportedImport { hint, .. } => assert!(hint.contains("kv_"), "{hint}"),
        other => panic!("{other:?}"),
    }
    let wat = r#"(module (import "hop3" "now_ms" (func (param i32))) (memory (export "memory") 1)
        (func (export "hop3_timer") (result i32) i32.const 0))"#;
    assert!(matches!(load_error(wat), Error::ImportType { .. }));
    let wat = guest(
        "(func (export \"hop3_timer\") (result i32) i32.const 0)
         (func (export \"hop3_schema\") (result i32) unreachable)",
    );
    // The version is the guest's to say, within its limits: when it is created.
    let created = Instance::create(&load(&wat), setup(), NOW, &CancelToken::new());
    assert!(created.is_err(), "`hop3_schema` trapped");
}

#[test]
fn hidden_state_that_cannot_be_kept_is_refused_with_function_and_reason() {
    let table = "(table $t 1 funcref) (elem $e func $f)";
    let bodies = [
        (
            "(table.set $t (i32.const 0) (ref.null func))",
            "changes a table",
        ),
        (
            "(drop (table.grow $t (ref.null func) (i32.const 1)))",
            "changes a table",
        ),
        (
            "(table.fill $t (i32.const 0) (ref.null func) (i32.const 0))",
            "changes a table",
        ),
        (
            "(table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 0))",
            "changes a table",
        ),
        (
            "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 0))",
            "changes a table",
        ),
        ("(elem.drop $e)", "drops an element segment"),
        ("(data.drop $d)", "drops a data segment"),
    ];
    for (code, expected) in bodies {
        let wat = handler(
            &format!("{table} (data $d \"x\") (func $f) (func $culprit {code})"),
            "(call $culprit) (i32.const 0)",
        );
        let module = load(&wat);
        let (function, reason) = module.refusal().unwrap();
        assert!(function.contains("culprit"), "{function}");
        assert_eq!(reason, expected);
        let refused = Instance::create(&module, setup(), NOW, &CancelToken::new());
        assert!(matches!(refused, Err(StartError::Stateful { .. })));
        let stateless = Setup {
            stateful: false,
            ..setup()
        };
        let mut instance = start_with(&wat, stateless);
        done(&mut instance, request("/", ""));
    }
    let wat = handler("(global (mut funcref) (ref.null func))", "(i32.const 0)");
    assert!(load(&wat).refusal().unwrap().1.contains("reference"));
}

#[test]
fn effects_are_refused_while_the_module_starts() {
    let wat = handler(
        "(global $said (mut i32) (i32.const 0))
         (func $start (global.set $said
            (call $timer_set (i64.const 1) (i64.const 1)))
            (drop (call $kv_set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))))
         (start $start)",
        "(i32.store (i32.const 0) (global.get $said))
         (drop (call $reply_write (i32.const 0) (i32.const 4))) (i32.const 0)",
    );
    let mut instance = start(&wat);
    let reply = done(&mut instance, request("/", "")).reply.unwrap();
    assert_eq!(&reply.body[..], (-4i32).to_le_bytes());
    assert_eq!(instance.image().next_timer(), None);
}

#[test]
fn a_compiled_module_comes_out_of_the_cache_with_its_facts() {
    let dir = tempfile::tempdir().unwrap();
    let wat = handler(
        "(table $t 1 funcref) (global $g (mut i64) (i64.const 7))
         (func (export \"hop3_schema\") (result i32) (i32.const 4))",
        "(table.set $t (i32.const 0) (ref.null func)) (i32.const 0)",
    );
    let wasm = wat::parse_str(&wat).unwrap();
    let digest = digest_of(&wasm);
    let cached = || {
        let cache = crate::wasm::CompiledCache::open(dir.path(), [3; 32], 1 << 30).unwrap();
        ServiceEngine::new(options(Tracking::Compare), Some(cache)).unwrap()
    };
    assert!(cached().find(&digest).is_none());
    cached().load(&wasm, &digest).unwrap();
    let module = cached().find(&digest).unwrap();
    assert_eq!(
        (
            module.schema(&setup()).unwrap(),
            module.has_request(),
            module.has_timer()
        ),
        (4, true, false)
    );
    assert_eq!(module.refusal().unwrap().1, "changes a table");
    assert_eq!(module.exports.globals.len(), 1);
}
