//! From bytes to a module that is ready to be instantiated, by way of the caches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tracing::warn;
use wasmtime::{ExternType, InstancePre, Module, ModuleExport};

use super::cache::{Lookup, hex};
use super::cancel::lock;
use super::engine::Engine;
use super::ticker::Ticker;
use super::wasi::Host;
use super::{inspect, native};

/// SHA-256 of a module's bytes.
pub type ModuleDigest = [u8; 32];

/// The digest of `wasm`.
#[must_use]
pub fn digest_of(wasm: &[u8]) -> ModuleDigest {
    Sha256::digest(wasm).into()
}

/// A module cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are no core Wasm module.
    #[error("not a Wasm module: it looks like {looks_like}")]
    NotWasm {
        /// What they look like instead, and what to do.
        looks_like: &'static str,
    },
    /// It begins as Wasm does, but is not valid.
    #[error("malformed Wasm at byte {offset}: {message}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What.
        message: String,
    },
    /// It uses a Wasm proposal that guests may not use.
    #[error(
        "the module uses the Wasm proposal `{proposal}` at byte {offset}, which is not \
             available; build it without"
    )]
    UnsupportedProposal {
        /// Its name.
        proposal: String,
        /// Where it is first used.
        offset: u64,
    },
    /// It imports something that we do not offer.
    #[error("the module imports `{module}::{name}`, which is not available: {hint}")]
    UnsupportedImport {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
        /// What to do.
        hint: String,
    },
    /// It imports something that we offer under another type.
    #[error("an import of the module has the wrong type: {message}")]
    ImportType {
        /// Which, and which type is right.
        message: String,
    },
    /// It has more imports than there are things to import.
    #[error("the module has more than {max} imports")]
    TooManyImports {
        /// The bound.
        max: usize,
    },
    /// It lacks an export that a task needs.
    #[error("the module does not export `{name}`: {hint}")]
    MissingExport {
        /// Which one.
        name: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// An export is not what it must be.
    #[error("the module's export `{name}` must be {expected}")]
    WrongExport {
        /// Which one.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// Something about it is larger than this engine allows.
    #[error("{what} has {bytes} bytes; at most {bytes_max} are allowed here")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large it is.
        bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
    /// The bytes are not those that the digest names.
    #[error("the module's bytes do not have the digest {expected}")]
    DigestMismatch {
        /// The digest that was asked for.
        expected: String,
    },
    /// Valid, but this engine cannot compile it.
    #[error("compiling the module failed: {message}")]
    Compile {
        /// The compiler's words.
        message: String,
    },
}

/// A module that was compiled, linked to our host functions, and can be instantiated at will.
pub struct LoadedModule {
    pub(super) ticker: Arc<Ticker>,
    pub(super) wasm_stack_bytes: u64,
    pub(super) pre: InstancePre<Host>,
    pub(super) start: ModuleExport,
    pub(super) memory: Option<ModuleExport>,
    digest: ModuleDigest,
}

impl LoadedModule {
    /// The digest of the module's bytes.
    #[must_use]
    pub fn digest(&self) -> &ModuleDigest {
        &self.digest
    }

    fn link(engine: &Engine, module: &Module, digest: ModuleDigest) -> Result<Self, Error> {
        let start = match module.get_export("_start") {
            Some(ExternType::Func(ty)) if ty.params().len() == 0 && ty.results().len() == 0 => {
                module.get_export_index("_start")
            }
            _ => None,
        };
        let expected = "a function without parameters and results";
        let start = start.ok_or(Error::WrongExport {
            name: "_start",
            expected,
        })?;
        let memory = match module.get_export("memory") {
            Some(ExternType::Memory(_)) => module.get_export_index("memory"),
            Some(_) => {
                return Err(Error::WrongExport {
                    name: "memory",
                    expected: "a linear memory",
                });
            }
            None => None,
        };
        let pre = engine
            .linker()
            .instantiate_pre(module)
            .map_err(|error| Error::ImportType {
                message: format!("{error:#}"),
            })?;
        let wasm_stack_bytes = engine.options().wasm_stack_bytes as u64;
        let ticker = engine.ticker();
        Ok(Self {
            ticker,
            wasm_stack_bytes,
            pre,
            start,
            memory,
            digest,
        })
    }
}

impl std::fmt::Debug for LoadedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LoadedModule")
            .field(&hex(&self.digest))
            .finish()
    }
}

/// Modules kept ready in memory, least recently used out first, and who is making which.
#[derive(Default)]
pub(super) struct Loaded {
    ready: Mutex<Vec<Arc<LoadedModule>>>,
    making: Mutex<HashMap<ModuleDigest, Arc<Mutex<()>>>>,
}

impl Loaded {
    fn get(&self, digest: &ModuleDigest) -> Option<Arc<LoadedModule>> {
        let mut ready = lock(&self.ready);
        let at = ready.iter().rposition(|module| module.digest == *digest)?;
        let module = ready.remove(at);
        ready.push(Arc::clone(&module));
        Some(module)
    }

    fn insert(&self, module: Arc<LoadedModule>, count_max: usize) {
        let mut ready = lock(&self.ready);
        ready.retain(|other| other.digest != module.digest);
        ready.push(module);
        let excess = ready.len().saturating_sub(count_max);
        ready.drain(..excess);
    }

    pub(super) fn clear(&self) {
        lock(&self.ready).clear();
    }
}

impl Engine {
    /// The module `digest` if it is ready in memory or in the disk cache; never compiles.
    #[must_use]
    pub fn find(&self, digest: &ModuleDigest) -> Option<Arc<LoadedModule>> {
        self.loaded().get(digest).or_else(|| {
            let module = self.cached(digest)?;
            LoadedModule::link(self, &module, *digest)
                .ok()
                .map(|module| self.keep(module))
        })
    }

    /// Makes a module ready: from memory, from the disk cache, or by checking and compiling
    /// `wasm` (milliseconds to many seconds of CPU: call it on a guest thread). Calls for the
    /// same digest wait for each other, so that it is compiled once. `wasm` is looked at only
    /// if it must be compiled.
    ///
    /// # Errors
    /// The module cannot be run here, or `wasm` does not have that digest.
    pub fn load(&self, wasm: &[u8], digest: &ModuleDigest) -> Result<Arc<LoadedModule>, Error> {
        if let Some(module) = self.loaded().get(digest) {
            return Ok(module);
        }
        let turn = Arc::clone(lock(&self.loaded().making).entry(*digest).or_default());
        let made = {
            let _turn = lock(&turn);
            match self.find(digest) {
                Some(module) => Ok(module),
                None => self.compile(wasm, digest),
            }
        };
        lock(&self.loaded().making).remove(digest);
        made
    }

    fn compile(&self, wasm: &[u8], digest: &ModuleDigest) -> Result<Arc<LoadedModule>, Error> {
        inspect::check(wasm, self.options().memory_bytes_max)?;
        if digest_of(wasm) != *digest {
            return Err(Error::DigestMismatch {
                expected: hex(digest),
            });
        }
        let module = Module::from_binary(self.inner(), wasm).map_err(|error| Error::Compile {
            message: format!("{error:#}"),
        })?;
        let loaded = LoadedModule::link(self, &module, *digest)?;
        if let Some(cache) = self.cache() {
            let code = module.serialize().map_err(std::io::Error::other);
            if let Err(error) = code.and_then(|c| cache.put(self.compat_hash(), digest, &c)) {
                warn!(module = hex(digest), %error, "compiled module not cached");
            }
        }
        Ok(self.keep(loaded))
    }

    fn cached(&self, digest: &ModuleDigest) -> Option<Module> {
        let why = match self.cache()?.get(self.compat_hash(), digest) {
            Lookup::Hit(code) => match native::deserialize(self.inner(), &code) {
                Ok(module) => return Some(module),
                Err(error) => format!("{error:#}"),
            },
            Lookup::Miss => return None,
            Lookup::Unusable(why) => why.into(),
        };
        warn!(
            module = hex(digest),
            why, "cached module not used; it will be compiled again"
        );
        None
    }

    fn keep(&self, module: LoadedModule) -> Arc<LoadedModule> {
        let module = Arc::new(module);
        self.loaded()
            .insert(Arc::clone(&module), self.options().loaded_max);
        module
    }
}
