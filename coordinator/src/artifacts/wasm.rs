//! Looks at a module before it is kept: is it Wasm, is it valid, can an agent run it. Pure; says
//! what is wrong, where, and what to do. Agents look again: they trust nobody's word.

use hop3_common::{
    codes::{Code, Problem},
    spec::nearest,
};
use wasmparser::{
    BinaryReaderError, CompositeInnerType, Export, ExternalKind, Parser, Payload, SubType, TypeRef,
    ValType, Validator, WasmFeatures,
};

use super::{abi, wasi};

/// Largest module, in bytes: what agents accept.
pub(super) const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Most imports: all of WASI preview 1 several times over.
const IMPORTS_MAX: usize = 256;
/// Most mutable globals of a service: what agents capture.
const GLOBALS_MAX: usize = 1_024;
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
///
/// # Errors
/// What is wrong with it, where, and what to do.
pub fn check(wasm: &[u8]) -> Result<(), Problem> {
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

fn exact(import: &str) -> Problem {
    let message = format!(
        "the module uses `custom_descriptors`, which agents do not run: the import `{}` is exact",
        quoted(import)
    );
    Problem::new(Code::WasmUnsupported, message)
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

/// What of a module decides how it can be run.
#[derive(Default)]
struct Names<'a> {
    imports: usize,
    /// Imports of the service interface; the first one is named where it does not belong.
    hop3: Option<&'a str>,
    memory: bool,
    start: bool,
    initialize: bool,
    /// An export that is something else than its name says, and what it must be.
    wrong: Option<&'static str>,
    /// An export whose name is the host's.
    reserved: bool,
    /// Mutable globals.
    globals: usize,
    /// Exported functions of the service interface, and whether they have the right type.
    handlers: Vec<(&'a str, bool)>,
}

/// A module is run as a task if it has `_start`, as a service if it has a handler.
fn check_names(wasm: &[u8]) -> Result<(), Problem> {
    let names = names(wasm)?;
    let export = |missing: &str| {
        let message = format!("the module does not export {missing}");
        Err(Problem::new(Code::WasmExport, message))
    };
    if names.handles() {
        return service(&names);
    }
    if let Some(wrong) = names.wrong {
        let message = format!("the module's export {wrong}");
        return Err(Problem::new(Code::WasmExport, message));
    }
    if let Some(import) = names.hop3 {
        let message = format!(
            "the module imports `{}.{import}` as services do, and exports no handler \
             (`hop3_request`, `hop3_message` or `hop3_timer`)",
            abi::MODULE
        );
        return Err(Problem::new(Code::WasmExport, message));
    }
    if !names.start && names.initialize {
        return export("`_start`, or a handler: it is a library (reactor), link it as a command");
    }
    if !names.start {
        return export("`_start`: build it as a WASI command, with a `main`");
    }
    if names.imports > 0 && !names.memory {
        return export("`memory`: host calls exchange data through it");
    }
    Ok(())
}

/// Checks that a module which was admitted can be run as a service. Answers whether it exports
/// `hop3_upgrade`.
///
/// # Errors
/// What it lacks.
pub fn check_service(wasm: &[u8]) -> Result<bool, Problem> {
    let names = names(wasm)?;
    service(&names)?;
    Ok(names
        .handlers
        .iter()
        .any(|(name, _)| *name == "hop3_upgrade"))
}

fn service(names: &Names<'_>) -> Result<(), Problem> {
    let refuse = |message: String| Err(Problem::new(Code::WasmExport, message));
    if !names.handles() {
        return refuse(
            "the module exports no handler of a service: `hop3_request`, `hop3_message` or \
             `hop3_timer`"
                .into(),
        );
    }
    if !names.memory {
        return refuse("the module does not export `memory`: services need it".into());
    }
    if names.reserved {
        return refuse("names of exports that begin with `hop3:` are left to the host".into());
    }
    if names.globals > GLOBALS_MAX {
        let message = format!(
            "the module has {} mutable globals: a service may have {GLOBALS_MAX}",
            names.globals
        );
        return Err(Problem::new(Code::TooLarge, message));
    }
    match names.handlers.iter().find(|(_, right)| !right) {
        Some((name, _)) => {
            let form = match *name {
                "hop3_upgrade" => "(i32) -> i32",
                "_initialize" => "() -> ()",
                _ => "() -> i32",
            };
            refuse(format!("the module's `{name}` is not a function `{form}`"))
        }
        None => Ok(()),
    }
}

impl<'a> Names<'a> {
    /// Takes an export; `of` is its type if it is a function.
    fn export(&mut self, export: &Export<'a>, of: Option<&Signature>) {
        let function = export.kind == ExternalKind::Func;
        match export.name {
            "memory" => {
                self.memory = export.kind == ExternalKind::Memory;
                if !self.memory {
                    self.wrong = Some("`memory` must be a linear memory");
                }
            }
            "_start" => {
                self.start = true;
                if !function {
                    self.wrong = Some("`_start` must be a function");
                }
            }
            name if abi::EXPORTS.contains(&name) || name == "_initialize" => {
                let wanted = match name {
                    "hop3_upgrade" => Signature::I32ToI32,
                    "_initialize" => Signature::Nothing,
                    _ => Signature::ToI32,
                };
                self.initialize |= name == "_initialize";
                self.handlers.push((name, function && of == Some(&wanted)));
            }
            name => self.reserved |= name.starts_with(abi::RESERVED),
        }
    }

    fn handles(&self) -> bool {
        let handler = |(name, _): &(&str, bool)| abi::HANDLERS.contains(name);
        self.handlers.iter().any(handler)
    }
}

fn names(wasm: &[u8]) -> Result<Names<'_>, Problem> {
    let mut names = Names::default();
    // Types, then the type of each function.
    let (mut types, mut functions) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|e| malformed(&e))? {
            Payload::TypeSection(section) => {
                for group in section {
                    let group = group.map_err(|e| malformed(&e))?;
                    types.extend(group.into_types().map(|of| signature(&of)));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|e| malformed(&e))?;
                    check_import(import.module, import.name)?;
                    if import.module == abi::MODULE {
                        names.hop3.get_or_insert(import.name);
                    }
                    match import.ty {
                        TypeRef::Func(of) => functions.push(of),
                        // The validator lets it pass, whatever proposals are allowed.
                        TypeRef::FuncExact(_) => return Err(exact(import.name)),
                        _ => {}
                    }
                    names.imports += 1;
                    if names.imports > IMPORTS_MAX {
                        let message = format!("the module has more than {IMPORTS_MAX} imports");
                        return Err(Problem::new(Code::WasmImport, message));
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for of in section {
                    functions.push(of.map_err(|e| malformed(&e))?);
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let global = global.map_err(|e| malformed(&e))?;
                    names.globals += usize::from(global.ty.mutable);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(|e| malformed(&e))?;
                    let of = functions.get(export.index as usize);
                    let of = of.and_then(|of| types.get(*of as usize));
                    names.export(&export, of);
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// Types that matter.
#[derive(Debug, PartialEq, Eq)]
enum Signature {
    Nothing,
    ToI32,
    I32ToI32,
    Other,
}

fn signature(of: &SubType) -> Signature {
    let CompositeInnerType::Func(func) = &of.composite_type.inner else {
        return Signature::Other;
    };
    match (func.params(), func.results()) {
        ([], []) => Signature::Nothing,
        ([], [ValType::I32]) => Signature::ToI32,
        ([ValType::I32], [ValType::I32]) => Signature::I32ToI32,
        _ => Signature::Other,
    }
}

fn check_import(module: &str, name: &str) -> Result<(), Problem> {
    let known: &[&str] = match module {
        wasi::MODULE => wasi::NAMES,
        abi::MODULE => abi::IMPORTS,
        _ => &[],
    };
    if known.contains(&name) {
        return Ok(());
    }
    let hint = match (module, name) {
        (wasi::MODULE | abi::MODULE, name) => {
            let short: String = name.chars().take(QUOTED_CHARS_MAX).collect();
            match nearest(&short, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if module == abi::MODULE => "services have no such function".into(),
                None => "WASI preview 1 has no such function".into(),
            }
        }
        ("wasi_unstable", _) => "this is WASI preview 0: build it with a newer toolchain".into(),
        ("wasi", "thread-spawn") => "guests have no threads".into(),
        (module, _) if module.starts_with("wasi:") => {
            "this is WASI 0.2: build it for wasm32-wasip1".into()
        }
        ("env", _) => format!(
            "undefined when it was linked: guests have `{}` and `{}` only",
            wasi::MODULE,
            abi::MODULE
        ),
        _ => format!("guests have `{}` and `{}` only", wasi::MODULE, abi::MODULE),
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
        let shadow = r#"(module (global (export "memory") i32 (i32.const 0))
            (func (export "_start")))"#;
        let (code, message) = refused(shadow);
        assert_eq!(code, Code::WasmExport);
        assert!(message.contains("must be a linear memory"), "{message}");
    }

    fn service_of(handlers: &str) -> String {
        format!(
            r#"(module (import "hop3" "now_ms" (func (result i64))) (memory (export "memory") 1)
               (func (export "hop3_schema") (result i32) (i32.const 1)) {handlers})"#
        )
    }

    #[test]
    fn a_service_has_a_handler_of_the_right_type() {
        let good = r#"(func (export "hop3_request") (result i32) (i32.const 0))"#;
        let good = wat::parse_str(service_of(good)).unwrap();
        check(&good).unwrap();
        check_service(&good).unwrap();
        let cases = [
            ("", "`hop3.now_ms`"),
            (r#"(func (export "hop3_timer"))"#, "`hop3_timer` is not"),
            (
                r#"(global (export "hop3_request") i32 (i32.const 0))"#,
                "`hop3_request` is not",
            ),
            (
                r#"(func (export "hop3_request") (result i32) (i32.const 0))
                   (func (export "_initialize") (param i32))"#,
                "`_initialize` is not a function `() -> ()`",
            ),
            (
                r#"(func (export "hop3_request") (export "hop3:g0") (result i32) (i32.const 0))"#,
                "left to the host",
            ),
        ];
        for (handlers, says) in cases {
            let (code, message) = refused(&service_of(handlers));
            assert_eq!(code, Code::WasmExport, "{message}");
            assert!(message.contains(says), "{message}");
        }
        let (code, message) =
            refused(r#"(module (import "hop3" "kv_gett" (func)) (func (export "hop3_request")))"#);
        assert_eq!(code, Code::WasmImport);
        assert!(message.contains("`kv_get`?"), "{message}");
        // A task is none.
        let task = check_service(&wat::parse_str(COMMAND).unwrap()).unwrap_err();
        assert!(task.message.contains("exports no handler"), "{task}");
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
