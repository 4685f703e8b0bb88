//! Looks at a module before anything is compiled: is it Wasm, is it valid, does it want only
//! what we offer. Pure; says what is wrong and what to do.

use wasmparser::{Export, ExternalKind, Parser, Payload, TypeRef, Validator, WasmFeatures};

use super::module::Error;
use super::outcome::printable;
use super::wasi;

/// Largest module accepted. The largest known guest (a Python interpreter) has 18 MB.
pub(super) const MODULE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most imports: all of WASI preview 1 twice over, with room.
pub(crate) const IMPORTS_MAX: usize = 256;

/// The proposals that guests may use. Must agree with `engine::config`.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
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

/// Checks a module's bytes, the names of what it imports and exports, and that its memory can
/// start within `memory_bytes_max`: all that is asked of a task's module before it is compiled.
///
/// # Errors
/// What is wrong with it.
pub fn check(wasm: &[u8], memory_bytes_max: u64) -> Result<(), Error> {
    check_bytes(wasm)?;
    check_sections(wasm, memory_bytes_max)
}

/// Checks that a module's bytes are valid Wasm that uses only what this engine offers.
pub(crate) fn check_bytes(wasm: &[u8]) -> Result<(), Error> {
    if wasm.len() > MODULE_BYTES_MAX {
        return Err(Error::TooLarge {
            what: "the module",
            bytes: wasm.len() as u64,
            bytes_max: MODULE_BYTES_MAX as u64,
        });
    }
    if !wasm.starts_with(b"\0asm\x01\0\0\0") {
        return Err(Error::NotWasm {
            looks_like: looks_like(wasm),
        });
    }
    validate(wasm)
}

fn validate(wasm: &[u8]) -> Result<(), Error> {
    let Err(error) = Validator::new_with_features(FEATURES).validate_all(wasm) else {
        return Ok(());
    };
    let offset = error.offset() as u64;
    let missing = error.missing_wasm_feature().or_else(|| {
        // The validator does not say so where a second memory is what is wrong.
        let more = FEATURES.union(WasmFeatures::MULTI_MEMORY);
        let again = Validator::new_with_features(more).validate_all(wasm);
        let further = again.map_or_else(|other| other.offset() > error.offset(), |_| true);
        further.then_some(WasmFeatures::MULTI_MEMORY)
    });
    Err(
        match missing.and_then(|missing| missing.iter_names().next()) {
            Some((name, _)) => Error::UnsupportedProposal {
                proposal: name.to_lowercase(),
                offset,
            },
            None => Error::Malformed {
                offset,
                message: printable(error.message()),
            },
        },
    )
}

fn check_sections(wasm: &[u8], memory_bytes_max: u64) -> Result<(), Error> {
    let (mut imports, mut exports) = (0, Exports::default());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ImportSection(section) => {
                let offset = section.range().start;
                for import in section.into_imports() {
                    let import = import.map_err(malformed)?;
                    check_import(import.module, import.name)?;
                    check_kind(&import.ty, offset)?;
                    imports += 1;
                    if imports > IMPORTS_MAX {
                        return Err(Error::TooManyImports { max: IMPORTS_MAX });
                    }
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let pages = memory.map_err(malformed)?.initial;
                    check_memory(pages, memory_bytes_max)?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    exports.see(&export.map_err(malformed)?);
                }
            }
            _ => {}
        }
    }
    exports.check(imports > 0)
}

/// What the parser says, as an error of ours.
pub(crate) fn malformed(error: wasmparser::Error) -> Error {
    Error::Malformed {
        offset: error.offset() as u64,
        message: printable(error.message()),
    }
}

/// Refuses exact imports: the validator lets them pass, whatever proposals are allowed, and the
/// compiler has no such thing.
pub(crate) fn check_kind(ty: &TypeRef, section_offset: usize) -> Result<(), Error> {
    match ty {
        TypeRef::FuncExact(_) => Err(Error::UnsupportedProposal {
            proposal: "custom_descriptors".into(),
            offset: section_offset as u64,
        }),
        _ => Ok(()),
    }
}

/// Checks that a memory can start within `bytes_max`.
pub(crate) fn check_memory(pages: u64, bytes_max: u64) -> Result<(), Error> {
    let bytes = pages.saturating_mul(64 * 1024);
    if bytes > bytes_max {
        return Err(Error::TooLarge {
            what: "the module's initial memory",
            bytes,
            bytes_max,
        });
    }
    Ok(())
}

#[derive(Default)]
struct Exports {
    start: bool,
    initialize: bool,
    memory: bool,
    /// One that is something else than its name says, and what it must be.
    wrong: Option<(&'static str, &'static str)>,
}

impl Exports {
    fn see(&mut self, export: &Export<'_>) {
        match export.name {
            "_start" => {
                self.start = true;
                if export.kind != ExternalKind::Func {
                    self.wrong = Some(("_start", "a function without parameters and results"));
                }
            }
            "_initialize" => self.initialize = true,
            "memory" => {
                self.memory = true;
                if export.kind != ExternalKind::Memory {
                    self.wrong = Some(("memory", "a linear memory"));
                }
            }
            _ => {}
        }
    }

    fn check(&self, imports: bool) -> Result<(), Error> {
        if let Some((name, expected)) = self.wrong {
            return Err(Error::WrongExport { name, expected });
        }
        let missing = if !self.start && self.initialize {
            Some(("_start", "it is a library (reactor): link it as a command"))
        } else if !self.start {
            Some(("_start", "build it as a WASI command, with a `main`"))
        } else if imports && !self.memory {
            Some((
                "memory",
                "host calls exchange data through an exported memory",
            ))
        } else {
            None
        };
        missing.map_or(Ok(()), |(name, hint)| {
            Err(Error::MissingExport { name, hint })
        })
    }
}

/// Checks that an import is of WASI preview 1.
pub(crate) fn check_import(module: &str, name: &str) -> Result<(), Error> {
    if module == wasi::MODULE && wasi::NAMES.contains(&name) {
        return Ok(());
    }
    let hint = if module == wasi::MODULE {
        let nearest = wasi::NAMES
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
        nearest.map_or_else(String::new, |nearest| {
            format!("the nearest known is `{nearest}`")
        })
    } else if module == "wasi_unstable" {
        "this is WASI preview 0: build it with a newer toolchain".into()
    } else if module.starts_with("wasi:") {
        "this is WASI 0.2: build it for wasm32-wasip1".into()
    } else if module == "wasi" && name == "thread-spawn" {
        "threads are not available to guests".into()
    } else if module == "env" {
        format!(
            "an undefined symbol at link time; guests import from `{}` only",
            wasi::MODULE
        )
    } else {
        format!("guests import from `{}` only", wasi::MODULE)
    };
    Err(Error::UnsupportedImport {
        module: printable(module),
        name: printable(name),
        hint,
    })
}

/// What bytes that are no core module look like.
fn looks_like(bytes: &[u8]) -> &'static str {
    let text = bytes
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .take(8);
    let text: Vec<u8> = text.collect();
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
        _ if text.starts_with(b"(module") => "Wasm text (WAT); convert it with wat2wasm first",
        _ if text.starts_with(b"(") => "Wasm text (WAT); convert it with wat2wasm first",
        _ if text.starts_with(b"{") => "JSON",
        _ => "something that does not begin as Wasm does",
    }
}
