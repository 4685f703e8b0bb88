//! Services written as WAT: what handlers and imports do, what hostile ones cannot, and that
//! state comes back.
#![allow(clippy::unwrap_used)]

mod effects;
mod hostile;
mod keeping;
mod refusals;
mod speed;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::*;
use crate::wasm::{CancelToken, EngineOptions, digest_of};

/// Ms since 1970 in the tests.
const NOW: u64 = 1_800_000_000_000;

fn options(tracking: Tracking) -> ServiceOptions {
    let engine = EngineOptions {
        instances_max: 64,
        memory_bytes_max: 128 << 20,
        ..ServiceOptions::default().engine
    };
    ServiceOptions { engine, tracking }
}

/// One engine per way to find changed pages.
fn engine(tracking: Tracking) -> &'static ServiceEngine {
    static AUTO: OnceLock<ServiceEngine> = OnceLock::new();
    static COMPARE: OnceLock<ServiceEngine> = OnceLock::new();
    let cell = match tracking {
        Tracking::Auto => &AUTO,
        Tracking::Compare => &COMPARE,
    };
    cell.get_or_init(|| ServiceEngine::new(options(tracking), None).unwrap())
}

fn load(wat: &str) -> Arc<ServiceModule> {
    load_on(Tracking::Auto, wat)
}

fn load_on(tracking: Tracking, wat: &str) -> Arc<ServiceModule> {
    let wasm = wat::parse_str(wat).unwrap();
    engine(tracking).load(&wasm, &digest_of(&wasm)).unwrap()
}

fn setup() -> Setup {
    Setup {
        name: "service/test/1".into(),
        index: 1,
        count: 3,
        publish: vec!["out/*".into()],
        calls: ["other".to_owned()].into(),
        stateful: true,
        seed: [5; 32],
        ..Setup::default()
    }
}

fn start(wat: &str) -> Instance {
    start_with(wat, setup())
}

fn start_with(wat: &str, setup: Setup) -> Instance {
    let created = Instance::create(&load(wat), setup, NOW, &CancelToken::new());
    created.unwrap().0
}

fn restore(module: &Arc<ServiceModule>, image: Image) -> Instance {
    let restored = Instance::restore(module, setup(), image, NOW, &CancelToken::new());
    restored.unwrap().0
}

fn request(path: &str, body: &str) -> Input {
    Input::Request {
        method: "POST".into(),
        path: path.into(),
        headers: vec![("x-a".into(), Bytes::from_static(b"1"))],
        body: Bytes::copy_from_slice(body.as_bytes()),
        more: false,
        from: None,
    }
}

fn send(instance: &mut Instance, input: Input) -> Called {
    instance.call(input, NOW, &CancelToken::new())
}

fn done(instance: &mut Instance, input: Input) -> Done {
    send(instance, input).result.unwrap()
}

fn body(instance: &mut Instance, text: &str) -> String {
    let reply = done(instance, request("/", text)).reply.unwrap();
    String::from_utf8(reply.body.to_vec()).unwrap()
}

/// All imports of `hop3`, memory of a page, and these fields.
fn guest(fields: &str) -> String {
    format!("(module {IMPORTS} (memory (export \"memory\") 1) {fields})")
}

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
    (import "hop3" "timer_clear" (func $timer_clear (param i64) (result i32)))
    (import "hop3" "publish" (func $publish (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "call" (func $call
        (param i32 i32 i32 i32 i32 i32 i32 i32) (result i64)))
    (import "hop3" "log" (func $log (param i32 i32 i32)))
    (import "hop3" "now_ms" (func $now_ms (result i64)))"#;

/// A handler for requests with this body, which must leave the result.
fn handler(fields: &str, body: &str) -> String {
    guest(&format!(
        "{fields} (func $handler (export \"hop3_request\") (result i32) {body})"
    ))
}

/// What an expression of type `i32` gives in a request's handler.
fn value_of(data: &str, expression: &str, setup: Setup) -> i32 {
    let wat = handler(
        &format!("(data (i32.const 64) \"{data}\")"),
        &format!(
            "(i32.store (i32.const 0) {expression})
             (drop (call $reply_write (i32.const 0) (i32.const 4))) (i32.const 0)"
        ),
    );
    let reply = done(&mut start_with(&wat, setup), request("/", "abc"))
        .reply
        .unwrap();
    i32::from_le_bytes(reply.body[..4].try_into().unwrap())
}
