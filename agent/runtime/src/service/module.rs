//! A service's module, compiled and linked.

use std::sync::Arc;
use std::sync::OnceLock;

use wasmtime::{ExternType, InstancePre, Module, ModuleExport, Mutability, ValType};

use super::call::Data;
use super::engine::Shared;
use super::failure::StartError;
use super::image::pages::Pages;
use super::image::{GlobalType, layout_of};
use super::types::Setup;
use super::{expose, live};
use crate::wasm::{Error, ModuleDigest};

/// A module that was checked, compiled and linked, of which instances can be made at will.
pub struct ServiceModule {
    pub(super) engine: Arc<Shared>,
    pub(super) pre: InstancePre<Data>,
    pub(super) exports: Exports,
    /// Contents of a new instance's memory: of modules without a start function always the
    /// same, hence shared by all images. Set when the first instance is made.
    pub(super) initial: OnceLock<Pages>,
    layout: [u8; 32],
    refusal: Option<(String, String)>,
    schema: OnceLock<u32>,
    digest: ModuleDigest,
}

/// Where the exports are.
pub(super) struct Exports {
    pub(super) memory: ModuleExport,
    pub(super) initialize: Option<ModuleExport>,
    pub(super) init: Option<ModuleExport>,
    pub(super) request: Option<ModuleExport>,
    pub(super) message: Option<ModuleExport>,
    pub(super) timer: Option<ModuleExport>,
    pub(super) upgrade: Option<ModuleExport>,
    pub(super) schema: Option<ModuleExport>,
    /// The mutable globals, in order of their indices.
    pub(super) globals: Vec<(ModuleExport, GlobalType)>,
    /// A start function runs at instantiation.
    pub(super) start: bool,
}

impl ServiceModule {
    /// The digest of the module's bytes.
    #[must_use]
    pub fn digest(&self) -> &ModuleDigest {
        &self.digest
    }

    /// The version of its state's form, asked once. The guest that says it has the limits of the
    /// instance for which it is asked.
    pub(super) fn schema(&self, setup: &Setup) -> Result<u32, StartError> {
        if let Some(schema) = self.schema.get() {
            return Ok(*schema);
        }
        let schema = match self.exports.schema.is_some() {
            true => live::schema_of(self, setup)?,
            false => 1,
        };
        Ok(*self.schema.get_or_init(|| schema))
    }

    /// Whether it handles requests.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.exports.request.is_some()
    }

    /// Whether it handles messages, stream data and ends of calls.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.exports.message.is_some()
    }

    /// Whether it handles timers.
    #[must_use]
    pub fn has_timer(&self) -> bool {
        self.exports.timer.is_some()
    }

    /// Whether it takes over states of other versions.
    #[must_use]
    pub fn has_upgrade(&self) -> bool {
        self.exports.upgrade.is_some()
    }

    /// The function and the reason why its state cannot be captured, if so. It can still run
    /// stateless.
    #[must_use]
    pub fn refusal(&self) -> Option<(&str, &str)> {
        let refusal = self.refusal.as_ref();
        refusal.map(|(function, why)| (function.as_str(), why.as_str()))
    }

    /// The hash of its globals' types.
    pub(super) fn layout(&self) -> &[u8; 32] {
        &self.layout
    }

    /// Links a module whose hidden state was exposed.
    pub(super) fn link(
        engine: &Arc<Shared>,
        module: &Module,
        digest: ModuleDigest,
    ) -> Result<Self, Error> {
        let exports = Exports::of(module)?;
        let pre = engine.linker.instantiate_pre(module);
        let pre = pre.map_err(|error| Error::ImportType {
            message: format!("{error:#}"),
        })?;
        let refusal = module.exports().find_map(|export| {
            let (function, why) = export
                .name()
                .strip_prefix(expose::REFUSAL)?
                .split_once('\t')?;
            Some((function.to_owned(), why.to_owned()))
        });
        let layout = layout_of(exports.globals.iter().map(|(_, ty)| *ty));
        Ok(Self {
            engine: Arc::clone(engine),
            pre,
            exports,
            initial: OnceLock::new(),
            layout,
            refusal,
            schema: OnceLock::new(),
            digest,
        })
    }
}

impl Exports {
    fn of(module: &Module) -> Result<Self, Error> {
        let (name, expected) = ("memory", "a linear memory");
        let memory = module.get_export_index("memory");
        let memory = memory.ok_or(Error::WrongExport { name, expected })?;
        let mut globals = Vec::new();
        for export in module.exports() {
            let Some(index) = export.name().strip_prefix(expose::GLOBAL) else {
                continue;
            };
            let (ExternType::Global(ty), Ok(index)) = (export.ty(), index.parse::<u32>()) else {
                continue;
            };
            debug_assert_eq!(ty.mutability(), Mutability::Var);
            let at = module.get_export_index(export.name());
            if let (Some(at), Some(ty)) = (at, global_type(ty.content())) {
                globals.push((index, at, ty));
            }
        }
        globals.sort_by_key(|(index, ..)| *index);
        let globals = globals.into_iter().map(|(_, at, ty)| (at, ty)).collect();
        let at = |name: &str| module.get_export_index(name);
        Ok(Self {
            memory,
            initialize: at("_initialize"),
            init: at("hop3_init"),
            request: at("hop3_request"),
            message: at("hop3_message"),
            timer: at("hop3_timer"),
            upgrade: at("hop3_upgrade"),
            schema: at("hop3_schema"),
            globals,
            start: at(expose::START).is_some(),
        })
    }
}

fn global_type(ty: &ValType) -> Option<GlobalType> {
    Some(match ty {
        ValType::I32 => GlobalType::I32,
        ValType::I64 => GlobalType::I64,
        ValType::F32 => GlobalType::F32,
        ValType::F64 => GlobalType::F64,
        ValType::V128 => GlobalType::V128,
        ValType::Ref(_) => return None,
    })
}

impl std::fmt::Debug for ServiceModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceModule")
            .field("digest", &crate::wasm::cache::hex(&self.digest))
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}
