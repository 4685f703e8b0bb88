//! Looks at a service's module before it is compiled: is it valid, does it have handlers of the
//! right types, does it import only what there is, what hidden state does it have. Pure.

use std::collections::BTreeSet;

use wasmparser::{
    CompositeInnerType, ExternalKind, KnownCustom, Name, Operator, Parser, Payload, TypeRef,
    ValType,
};

use super::image::GlobalType;
use super::imports;
use crate::wasm::Error;
use crate::wasm::inspect::{
    IMPORTS_MAX, check_bytes, check_import, check_kind, check_memory, malformed,
};
use crate::wasm::outcome::printable;

/// What begins the names that only the host may export.
pub(super) const RESERVED: &str = "hop3:";
/// Mutable globals of a module: each is read after every call. Toolchains make a handful.
const GLOBALS_MAX: usize = 1_024;
/// The exported functions that the host calls: name, parameters, results.
const FUNCTIONS: &[(&str, usize, usize)] = &[
    ("_initialize", 0, 0),
    ("hop3_init", 0, 1),
    ("hop3_request", 0, 1),
    ("hop3_message", 0, 1),
    ("hop3_timer", 0, 1),
    ("hop3_upgrade", 1, 1),
    ("hop3_schema", 0, 1),
];

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Index and type of each mutable global that can be captured.
    pub(super) globals: Vec<(u32, GlobalType)>,
    /// The function and the reason why its state cannot be captured.
    pub(super) refusal: Option<(String, &'static str)>,
    /// A start function runs at instantiation.
    pub(super) start: bool,
}

/// Walks a module once.
#[derive(Default)]
struct Walk<'a> {
    facts: Facts,
    /// Per type: parameters and results, if it is a function of `i32`s.
    types: Vec<Option<(usize, usize)>>,
    /// Type of each function, imported ones first.
    functions: Vec<u32>,
    imported_functions: u32,
    imports: usize,
    globals: u32,
    memories: u32,
    code: u32,
    exports: Vec<(&'a str, ExternalKind, u32)>,
    names: Vec<(u32, &'a str)>,
    culprit: Option<(u32, &'static str)>,
}

/// Checks a module and says what must be known of it.
pub(super) fn check(wasm: &[u8], memory_bytes_max: u64) -> Result<Facts, Error> {
    check_bytes(wasm)?;
    let mut walk = Walk::default();
    for payload in Parser::new(0).parse_all(wasm) {
        walk.see(payload.map_err(malformed)?, memory_bytes_max)?;
    }
    walk.check_exports()?;
    Ok(walk.finish())
}

impl<'a> Walk<'a> {
    fn see(&mut self, payload: Payload<'a>, memory_bytes_max: u64) -> Result<(), Error> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    for ty in group.map_err(malformed)?.into_types() {
                        self.types.push(shape(&ty.composite_type.inner));
                    }
                }
            }
            Payload::ImportSection(section) => {
                let offset = section.range().start;
                for import in section.into_imports() {
                    let import = import.map_err(malformed)?;
                    check_kind(&import.ty, offset)?;
                    self.import(import.module, import.name, &import.ty)?;
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.functions.push(ty.map_err(malformed)?);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    check_memory(memory.map_err(malformed)?.initial, memory_bytes_max)?;
                    self.memories += 1;
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let ty = global.map_err(malformed)?.ty;
                    self.global(ty.content_type, ty.mutable)?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    self.exports.push((export.name, export.kind, export.index));
                }
            }
            Payload::StartSection { .. } => self.facts.start = true,
            Payload::CodeSectionEntry(body) => {
                let mut operators = body.get_operators_reader().map_err(malformed)?;
                let index = self.imported_functions + self.code;
                self.code += 1;
                while self.culprit.is_none() && !operators.eof() {
                    let operator = operators.read().map_err(malformed)?;
                    self.culprit = changes_hidden(&operator).map(|why| (index, why));
                }
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(names) = section.as_known() {
                    // Names are a courtesy: broken ones are as good as none. The reader does not move
                    // past an error, so the first one must be the last.
                    for name in names.into_iter().map_while(Result::ok) {
                        if let Name::Function(map) = name {
                            let named = map.into_iter().map_while(Result::ok);
                            self.names.extend(named.map(|n| (n.index, n.name)));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, module: &str, name: &str, ty: &TypeRef) -> Result<(), Error> {
        self.imports += 1;
        if self.imports > IMPORTS_MAX {
            return Err(Error::TooManyImports { max: IMPORTS_MAX });
        }
        imports::check(module, name).unwrap_or_else(|| check_import(module, name))?;
        match ty {
            TypeRef::Func(ty) => {
                self.functions.push(*ty);
                self.imported_functions += 1;
            }
            // Linking refuses them: there is nothing of that kind to import.
            TypeRef::Global(ty) => {
                self.globals += 1;
                if ty.mutable {
                    self.refuse("the module", "imports a mutable global");
                }
            }
            TypeRef::Memory(_) => self.refuse("the module", "imports a memory"),
            _ => {}
        }
        Ok(())
    }

    fn global(&mut self, ty: ValType, mutable: bool) -> Result<(), Error> {
        let index = self.globals;
        self.globals += 1;
        if !mutable {
            return Ok(());
        }
        let ty = match ty {
            ValType::I32 => GlobalType::I32,
            ValType::I64 => GlobalType::I64,
            ValType::F32 => GlobalType::F32,
            ValType::F64 => GlobalType::F64,
            ValType::V128 => GlobalType::V128,
            ValType::Ref(_) => {
                self.refuse("the module", "has a mutable global that holds a reference");
                return Ok(());
            }
        };
        if self.facts.globals.len() == GLOBALS_MAX {
            return Err(Error::TooLarge {
                what: "the table of the module's mutable globals",
                bytes: u64::from(index),
                bytes_max: GLOBALS_MAX as u64,
            });
        }
        self.facts.globals.push((index, ty));
        Ok(())
    }

    fn refuse(&mut self, what: &str, why: &'static str) {
        self.facts.refusal.get_or_insert((what.to_owned(), why));
    }

    fn check_exports(&self) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for (name, kind, index) in &self.exports {
            if name.starts_with(RESERVED) {
                return Err(Error::WrongExport {
                    name: "hop3:…",
                    expected: "left to the host: names that begin with `hop3:` are reserved",
                });
            }
            let known = FUNCTIONS.iter().find(|(known, ..)| known == name);
            if let Some((known, params, results)) = known {
                let ty = match kind {
                    ExternalKind::Func => self.functions.get(*index as usize),
                    _ => None,
                };
                let shape = ty.and_then(|ty| self.types.get(*ty as usize).copied().flatten());
                if shape != Some((*params, *results)) {
                    return Err(Error::WrongExport {
                        name: known,
                        expected: expected(*params, *results),
                    });
                }
                seen.insert(*known);
            }
            if *name == "memory" {
                if *kind != ExternalKind::Memory {
                    let (name, expected) = ("memory", "a linear memory");
                    return Err(Error::WrongExport { name, expected });
                }
                seen.insert("memory");
            }
        }
        let handlers = ["hop3_request", "hop3_message", "hop3_timer"];
        if !handlers.iter().any(|name| seen.contains(name)) {
            return Err(Error::MissingExport {
                name: "hop3_request",
                hint: "a service needs `hop3_request`, `hop3_message` or `hop3_timer`; what \
                       has a `main` is a task",
            });
        }
        if !seen.contains("memory") {
            return Err(Error::MissingExport {
                name: "memory",
                hint: "host calls exchange data through an exported memory",
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Facts {
        if self.memories > 1 {
            self.refuse("the module", "has more than one memory");
        }
        if let Some((index, why)) = self.culprit {
            let named = self.names.iter().find(|(n, _)| *n == index);
            let function = named.map_or_else(
                || format!("func[{index}]"),
                |(_, name)| format!("func[{index}] `{}`", printable(name)),
            );
            self.facts.refusal = Some((function, why));
        }
        self.facts
    }
}

/// Parameters and results of a function type of `i32`s only.
fn shape(ty: &CompositeInnerType) -> Option<(usize, usize)> {
    let CompositeInnerType::Func(ty) = ty else {
        return None;
    };
    let mut all = ty.params().iter().chain(ty.results());
    all.all(|ty| *ty == ValType::I32)
        .then(|| (ty.params().len(), ty.results().len()))
}

fn expected(params: usize, results: usize) -> &'static str {
    match (params, results) {
        (0, 0) => "a function without parameters and results",
        (0, _) => "a function without parameters that gives an i32",
        _ => "a function from an i32 to an i32",
    }
}

/// Why state that this changes cannot be captured.
fn changes_hidden(operator: &Operator<'_>) -> Option<&'static str> {
    match operator {
        Operator::TableSet { .. }
        | Operator::TableGrow { .. }
        | Operator::TableFill { .. }
        | Operator::TableCopy { .. }
        | Operator::TableInit { .. } => Some("changes a table"),
        Operator::ElemDrop { .. } => Some("drops an element segment"),
        Operator::DataDrop { .. } => Some("drops a data segment"),
        _ => None,
    }
}
