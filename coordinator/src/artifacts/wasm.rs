//! Looks at a module before it is kept: is it Wasm, is it valid, can an agent run it. Pure; says
//! what is wrong, where, and what to do. Agents look again: they trust nobody's word.

use hop3_common::{
    codes::{Code, Problem},
    spec::nearest,
};
use wasmparser::{BinaryReaderError, Parser, Payload, Validator, WasmFeatures};

use super::wasi;

/// Largest module, in bytes: what agents accept.
pub(super) const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Most imports: all of WASI preview 1 several times over.
const IMPORTS_MAX: usize = 256;
/// Longest name that is quoted, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// The proposals that agents allow.
const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST);

/// Checks a module's bytes and the names of what it imports and exports.
pub(super) fn check(wasm: &[u8]) -> Result<(), Problem> {
    if !wasm.starts_with(b"\0asm\x01\0\0\0") {
        let message = format!("this is no core Wasm module but {}", looks_like(wasm));
        return Err(Problem::new(Code::NotWasm, message));
    }
    if let Err(error) = Validator::new_with_features(FEATURES).validate_all(wasm) {
        return Err(invalid(wasm, &error));
    }
    check_names(wasm)
}

fn malformed(error: &BinaryReaderError) -> Problem {
    let (offset, why) = (error.offset(), quoted(error.message()));
    Problem::new(
        Code::NotWasm,
        format!("the module is malformed at byte {offset}: {why}"),
    )
}

/// Malformed, or fine but for a proposal that agents do not allow.
fn invalid(wasm: &[u8], error: &BinaryReaderError) -> Problem {
    let validates = |features| {
        Validator::new_with_features(features)
            .validate_all(wasm)
            .is_ok()
    };
    if !validates(WasmFeatures::all()) {
        return malformed(error);
    }
    let missing = WasmFeatures::all().difference(FEATURES);
    let alone = missing
        .iter_names()
        .find(|(_, feature)| validates(FEATURES.union(*feature)));
    let name = alone.map_or("several proposals".to_owned(), |(name, _)| {
        name.to_lowercase()
    });
    let (offset, why) = (error.offset(), quoted(error.message()));
    let message =
        format!("the module uses `{name}`, which agents do not run (byte {offset}: {why})");
    Problem::new(Code::WasmUnsupported, message)
}

fn check_names(wasm: &[u8]) -> Result<(), Problem> {
    let (mut imports, mut exports) = (0, Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|e| malformed(&e))? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|e| malformed(&e))?;
                    check_import(import.module, import.name)?;
                    imports += 1;
                    if imports > IMPORTS_MAX {
                        let message = format!("the module has more than {IMPORTS_MAX} imports");
                        return Err(Problem::new(Code::WasmImport, message));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let name = export.map_err(|e| malformed(&e))?.name;
                    if ["_start", "_initialize", "memory"].contains(&name) {
                        exports.push(name);
                    }
                }
            }
            _ => {}
        }
    }
    let has = |name| exports.contains(&name);
    let missing = if !has("_start") && has("_initialize") {
        "`_start`: it is a library (reactor), link it as a command"
    } else if !has("_start") {
        "`_start`: build it as a WASI command, with a `main`"
    } else if imports > 0 && !has("memory") {
        "`memory`: host calls exchange data through it"
    } else {
        return Ok(());
    };
    Err(Problem::new(
        Code::WasmExport,
        format!("the module does not export {missing}"),
    ))
}

fn check_import(module: &str, name: &str) -> Result<(), Problem> {
    if module == wasi::MODULE && wasi::NAMES.contains(&name) {
        return Ok(());
    }
    let hint = match (module, name) {
        (wasi::MODULE, name) => {
            let short: String = name.chars().take(QUOTED_CHARS_MAX).collect();
            match nearest(&short, wasi::NAMES.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "WASI preview 1 has no such function".into(),
            }
        }
        ("wasi_unstable", _) => "this is WASI preview 0: build it with a newer toolchain".into(),
        ("wasi", "thread-spawn") => "guests have no threads".into(),
        (module, _) if module.starts_with("wasi:") => {
            "this is WASI 0.2: build it for wasm32-wasip1".into()
        }
        ("env", _) => format!(
            "undefined when it was linked: guests have `{}` only",
            wasi::MODULE
        ),
        _ => format!("guests have `{}` only", wasi::MODULE),
    };
    let message = format!(
        "unknown import `{}.{}`: {hint}",
        quoted(module),
        quoted(name)
    );
    Err(Problem::new(Code::WasmImport, message))
}

/// A text of the module's, fit for a message.
fn quoted(text: &str) -> String {
    let plain = text
        .chars()
        .take(3 * QUOTED_CHARS_MAX)
        .flat_map(char::escape_default);
    plain.take(3 * QUOTED_CHARS_MAX).collect()
}

fn looks_like(bytes: &[u8]) -> &'static str {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    match bytes {
        [] => "an empty file",
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => {
            "a Wasm component; build a core module (wasm32-wasip1) instead"
        }
        [0, b'a', b's', b'm', _, _, _, _, ..] => "Wasm of an unknown version",
        [0, b'a', b's', b'm', ..] => "a Wasm header cut short",
        [0x7f, b'E', b'L', b'F', ..] => "a native (ELF) program; build it for wasm32-wasip1",
        [0x1f, 0x8b, ..] => "a gzip archive; unpack it first",
        [b'P', b'K', 3, 4, ..] => "a zip archive; unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd archive; unpack it first",
        [b'#', b'!', ..] => "a script",
        [b'B', b'C', 0xc0, 0xde, ..] => "LLVM bitcode; link it first",
        _ if first == Some(&b'(') => "Wasm text (WAT); convert it with wat2wasm first",
        _ if first == Some(&b'{') => "JSON",
        _ => "something that does not begin as Wasm does",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn refused(wat: &str) -> (Code, String) {
        let problem = check(&wat::parse_str(wat).unwrap()).unwrap_err();
        (problem.code, problem.message)
    }

    const COMMAND: &str = r#"(module
        (import "wasi_snapshot_preview1" "fd_write"
            (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (func (export "_start")))"#;

    #[test]
    fn a_command_passes() {
        check(&wat::parse_str(COMMAND).unwrap()).unwrap();
        check(&wat::parse_str(r#"(module (func (export "_start")))"#).unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_module_is_named() {
        let cases: [(&[u8], &str); 7] = [
            (b"", "an empty file"),
            (b"\x7fELF\x02", "ELF"),
            (b" (module)", "wat2wasm"),
            (b"\0asm\x0d\0\x01\0", "component"),
            (b"\0asm", "cut short"),
            (b"\0asm\x02\0\0\0", "unknown version"),
            (b"hello", "does not begin as Wasm"),
        ];
        for (bytes, says) in cases {
            let problem = check(bytes).unwrap_err();
            assert_eq!(problem.code, Code::NotWasm);
            assert!(problem.message.contains(says), "{problem}");
        }
    }

    #[test]
    fn damage_names_its_place() {
        let mut wasm = wat::parse_str(COMMAND).unwrap();
        wasm.truncate(wasm.len() - 3);
        let problem = check(&wasm).unwrap_err();
        assert_eq!(problem.code, Code::NotWasm);
        assert!(problem.message.contains("malformed at byte"), "{problem}");
    }

    #[test]
    fn imports_exports_and_proposals_are_checked() {
        let import = |module, name| {
            format!(r#"(module (import "{module}" "{name}" (func)) (func (export "_start")))"#)
        };
        let cases = [
            (
                import("wasi_snapshot_preview1", "fd_wriet"),
                Code::WasmImport,
                "`fd_write`?",
            ),
            (
                import("env", "malloc"),
                Code::WasmImport,
                "undefined when it was linked",
            ),
            (
                import("wasi:io/streams@0.2.0", "read"),
                Code::WasmImport,
                "WASI 0.2",
            ),
            (import("a\\nb", "\\00"), Code::WasmImport, "a\\nb"),
            ("(module)".into(), Code::WasmExport, "`_start`"),
            (
                r#"(module (func (export "_initialize")))"#.into(),
                Code::WasmExport,
                "reactor",
            ),
            (
                r#"(module (memory 1 1 shared) (func (export "_start")))"#.into(),
                Code::WasmUnsupported,
                "threads",
            ),
            (
                r#"(module (memory i64 1) (func (export "_start")))"#.into(),
                Code::WasmUnsupported,
                "memory64",
            ),
        ];
        for (wat, code, says) in cases {
            let (found, message) = refused(&wat);
            assert_eq!(found, code, "{wat}: {message}");
            assert!(message.contains(says), "{wat}: {message}");
        }
        let no_memory = r#"(module (import "wasi_snapshot_preview1" "sched_yield"
            (func (result i32))) (func (export "_start")))"#;
        assert_eq!(refused(no_memory).0, Code::WasmExport);
    }

    proptest! {
        #[test]
        fn altered_modules_are_answered(at in 8usize..80, byte in any::<u8>(), cut in 8usize..120) {
            let mut wasm = wat::parse_str(COMMAND).unwrap();
            let len = wasm.len();
            wasm[at % len] = byte;
            wasm.truncate(cut.min(len));
            let _ = check(&wasm);
        }
    }
}
