//! Whole guests, written as WAT, run to their ends: hostile ones, ordinary ones, broken ones.
#![allow(clippy::unwrap_used)]

mod files;
mod hostile;
mod loading;
mod tasks;

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use super::*;

/// One engine for all tests: it is what an agent has, and tests share the cost.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let options = EngineOptions {
            memory_bytes_max: 64 << 20,
            ..EngineOptions::default()
        };
        Engine::new(options, None).unwrap()
    })
}

fn load(wat: &str) -> Arc<LoadedModule> {
    let wasm = wat::parse_str(wat).unwrap();
    engine().load(&wasm, &digest_of(&wasm)).unwrap()
}

fn load_error(wasm: &[u8]) -> Error {
    engine().load(wasm, &digest_of(wasm)).unwrap_err()
}

/// A module of one page with these imports, data at 1024, and this `_start` body.
fn program(imports: &[(&str, &str)], data: &str, body: &str) -> String {
    let mut wat = String::from("(module ");
    for (name, ty) in imports {
        let module = "wasi_snapshot_preview1";
        write!(wat, "(import \"{module}\" \"{name}\" (func ${name} {ty}))").unwrap();
    }
    write!(
        wat,
        "(memory (export \"memory\") 1)
         (data (i32.const 1024) \"{data}\")
         (func $_start (export \"_start\") {body}))"
    )
    .unwrap();
    wat
}

const EXIT: (&str, &str) = ("proc_exit", "(param i32)");
const I2: &str = "(param i32 i32) (result i32)";
const I3: &str = "(param i32 i32 i32) (result i32)";
const I4: &str = "(param i32 i32 i32 i32) (result i32)";

fn run(module: &LoadedModule, input: TaskInput) -> Outcome {
    run_task(module, input).unwrap()
}

/// Runs a program whose exit code is what `body` leaves on the stack.
fn code_of(imports: &[(&str, &str)], data: &str, body: &str, input: TaskInput) -> i32 {
    let imports: Vec<_> = [EXIT].into_iter().chain(imports.iter().copied()).collect();
    let wat = program(&imports, data, &format!("{body} call $proc_exit"));
    match run(&load(&wat), input).end {
        End::Exit(code) => code,
        other => panic!("{other:?}"),
    }
}

fn limited(change: impl FnOnce(&mut Limits)) -> TaskInput {
    let mut input = TaskInput::default();
    change(&mut input.limits);
    input
}
