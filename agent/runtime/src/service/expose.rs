//! Exports what a module hides, so that it can be captured and put back: its mutable globals,
//! under reserved names. Only the export section is written anew; everything else is copied as
//! it is, and no index changes.
//!
//! Two facts about the module are kept as further exports, so that they are there when it comes
//! out of the cache of compiled modules without its bytes.

use wasm_encoder::{ExportKind, ExportSection, Module, RawSection};
use wasmparser::{ExternalKind, Parser, Payload};

use super::inspect::{self, Facts};
use crate::wasm::Error;
use crate::wasm::inspect::malformed;

/// A global's name is this and its index.
pub(super) const GLOBAL: &str = "hop3:g";
/// Exported by a module that has a start function.
pub(super) const START: &str = "hop3:start";
/// Begins the export that says why the state cannot be captured: `FUNCTION`, a tab, the reason.
pub(super) const REFUSAL: &str = "hop3:refusal:";

/// Checks a module as [`ServiceEngine::load`](super::ServiceEngine::load) does before it compiles
/// anything, and gives what it would compile. Pure.
///
/// # Errors
/// The module cannot be run as a service with that much memory.
pub fn prepare(wasm: &[u8], memory_bytes_max: u64) -> Result<Vec<u8>, Error> {
    expose(wasm, &inspect::check(wasm, memory_bytes_max)?)
}

/// The module with its hidden state exported.
pub(super) fn expose(wasm: &[u8], facts: &Facts) -> Result<Vec<u8>, Error> {
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(malformed)?;
        if let Payload::ExportSection(section) = &payload {
            let mut exports = ExportSection::new();
            for export in section.clone() {
                let export = export.map_err(malformed)?;
                exports.export(export.name, kind_of(export.kind), export.index);
            }
            add(&mut exports, facts);
            module.section(&exports);
        } else if let Some((id, range)) = payload.as_section() {
            let data = &wasm[range];
            module.section(&RawSection { id, data });
        }
    }
    Ok(module.finish())
}

fn add(exports: &mut ExportSection, facts: &Facts) {
    for (index, _) in &facts.globals {
        exports.export(&format!("{GLOBAL}{index}"), ExportKind::Global, *index);
    }
    // Every service has a memory: something of that kind can stand for a fact.
    if facts.start {
        exports.export(START, ExportKind::Memory, 0);
    }
    if let Some((function, why)) = &facts.refusal {
        exports.export(
            &format!("{REFUSAL}{function}\t{why}"),
            ExportKind::Memory,
            0,
        );
    }
}

fn kind_of(kind: ExternalKind) -> ExportKind {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
        ExternalKind::Table => ExportKind::Table,
        ExternalKind::Memory => ExportKind::Memory,
        ExternalKind::Global => ExportKind::Global,
        ExternalKind::Tag => ExportKind::Tag,
    }
}
