//! The compiler and allocator that all services of one agent share.
//!
//! Apart from the tasks' engine: its code is deterministic (canonical NaNs) and its pool has
//! many small instances. Address space is reserved for each, as the tasks' engine says
//! ([`AddressSpace`]): 4,096 instances reserve 16 TiB of 128 where that is fast, and no memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::{info, warn};
use wasmtime::{Linker, Module};

use super::call::Data;
use super::dirty::Kernel;
use super::module::ServiceModule;
use super::{expose, imports, inspect};
use crate::wasm::cache::{Lookup, hex};
use crate::wasm::cancel::lock;
use crate::wasm::engine::compat_hash_of;
use crate::wasm::ticker::Ticker;
use crate::wasm::{
    AddressSpace, CompiledCache, EngineOptions, Error, ModuleDigest, OptionsError, digest_of,
    native, wasi,
};

/// Version of what is done to a module before it is compiled: part of the cache's key.
const PASS_VERSION: u32 = 1;
/// Native stack on top of the Wasm stack, for host calls.
const HOST_STACK_BYTES: usize = 512 * 1024;

/// How changed pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tracking {
    /// By the kernel where it can, else by comparing.
    #[default]
    Auto,
    /// By comparing every page.
    Compare,
}

/// How a service engine is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceOptions {
    /// As for tasks; `canonical_nans` is always on.
    pub engine: EngineOptions,
    /// How changed pages are found.
    pub tracking: Tracking,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            engine: EngineOptions {
                instances_max: 4_096,
                memory_bytes_max: 1 << 30,
                canonical_nans: true,
                // Services are made seldom, and there may be thousands.
                keep_resident_bytes: 0,
                loaded_max: 256,
                ..EngineOptions::default()
            },
            tracking: Tracking::Auto,
        }
    }
}

impl ServiceOptions {
    /// Options for a machine with this much memory: under 2 GiB, 256 instances of at most 256
    /// MiB in a compact address space (64 GiB).
    #[must_use]
    pub fn for_machine(memory_bytes: u64) -> Self {
        let mut options = Self::default();
        if memory_bytes < 2 << 30 {
            let small = EngineOptions::for_machine(memory_bytes);
            options.engine.instances_max = 256;
            options.engine.memory_bytes_max = small.memory_bytes_max.min(256 << 20);
            options.engine.address_space = AddressSpace::Compact;
            options.engine.loaded_max = 32;
        }
        options
    }
}

/// Compiles, caches and links services' modules. Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct ServiceEngine {
    shared: Arc<Shared>,
    modules: Arc<Modules>,
}

/// What instances need of their engine.
pub(super) struct Shared {
    pub(super) engine: wasmtime::Engine,
    pub(super) linker: Linker<Data>,
    pub(super) ticker: Ticker,
    pub(super) kernel: Option<Arc<Kernel>>,
    options: ServiceOptions,
    compat_hash: [u8; 32],
    cache: Option<CompiledCache>,
}

/// Modules kept ready in memory, least recently used out first, and who is making which.
#[derive(Default)]
struct Modules {
    ready: Mutex<Vec<Arc<ServiceModule>>>,
    making: Mutex<HashMap<ModuleDigest, Arc<Mutex<()>>>>,
}

impl ServiceEngine {
    /// Makes an engine, with or without a cache on disk (one of its own, not the tasks').
    ///
    /// # Errors
    /// Options out of range, or the system cannot give the address space or a thread.
    pub fn new(
        mut options: ServiceOptions,
        cache: Option<CompiledCache>,
    ) -> Result<Self, OptionsError> {
        options.engine.canonical_nans = true;
        options.engine.validate()?;
        let refused = |error: wasmtime::Error| OptionsError::Engine {
            message: format!("{error:#}"),
        };
        let engine = wasmtime::Engine::new(&options.engine.config()).map_err(refused)?;
        let mut linker = Linker::new(&engine);
        wasi::add_to(&mut linker).map_err(refused)?;
        imports::add_to(&mut linker).map_err(refused)?;
        let tick = Duration::from_millis(options.engine.tick_ms);
        let ticker = Ticker::start(engine.weak(), tick).map_err(OptionsError::Ticker)?;
        let kernel = match options.tracking {
            Tracking::Compare => None,
            Tracking::Auto => Kernel::open()
                .inspect_err(|error| info!(%error, "changed pages are found by comparing"))
                .ok(),
        };
        let compat_hash = blake3::Hasher::new()
            .update(&compat_hash_of(&engine))
            .update(b"hop3 service pass")
            .update(&PASS_VERSION.to_le_bytes())
            .finalize();
        let shared = Shared {
            engine,
            linker,
            ticker,
            kernel,
            options,
            compat_hash: *compat_hash.as_bytes(),
            cache,
        };
        Ok(Self {
            shared: Arc::new(shared),
            modules: Arc::default(),
        })
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &ServiceOptions {
        &self.shared.options
    }

    /// Native stack that a thread needs to run a guest of this engine, bytes.
    #[must_use]
    pub fn native_stack_bytes(&self) -> usize {
        self.shared.options.engine.wasm_stack_bytes + HOST_STACK_BYTES
    }

    /// Whether the kernel finds changed pages; else they are found by comparing.
    #[must_use]
    pub fn tracks_by_kernel(&self) -> bool {
        self.shared.kernel.is_some()
    }

    /// The module `digest` if it is ready in memory or in the disk cache; never compiles.
    #[must_use]
    pub fn find(&self, digest: &ModuleDigest) -> Option<Arc<ServiceModule>> {
        self.modules.get(digest).or_else(|| {
            let module = self.cached(digest)?;
            let linked = ServiceModule::link(&self.shared, &module, *digest);
            linked.ok().map(|module| self.keep(module))
        })
    }

    /// Makes a module ready: from memory, from the disk cache, or by checking and compiling
    /// `wasm` (milliseconds to many seconds of CPU: call it on a guest thread). Calls for the
    /// same digest wait for each other, so that it is compiled once. `wasm` is looked at only
    /// if it must be compiled.
    ///
    /// # Errors
    /// The module cannot be run here, or `wasm` does not have that digest.
    pub fn load(&self, wasm: &[u8], digest: &ModuleDigest) -> Result<Arc<ServiceModule>, Error> {
        if let Some(module) = self.modules.get(digest) {
            return Ok(module);
        }
        let turn = Arc::clone(lock(&self.modules.making).entry(*digest).or_default());
        let made = {
            let _turn = lock(&turn);
            match self.find(digest) {
                Some(module) => Ok(module),
                None => self.compile(wasm, digest),
            }
        };
        lock(&self.modules.making).remove(digest);
        made
    }

    fn compile(&self, wasm: &[u8], digest: &ModuleDigest) -> Result<Arc<ServiceModule>, Error> {
        let shared = &self.shared;
        let facts = inspect::check(wasm, shared.options.engine.memory_bytes_max)?;
        if digest_of(wasm) != *digest {
            return Err(Error::DigestMismatch {
                expected: hex(digest),
            });
        }
        let exposed = expose::expose(wasm, &facts)?;
        let module = Module::from_binary(&shared.engine, &exposed);
        let module = module.map_err(|error| Error::Compile {
            message: format!("{error:#}"),
        })?;
        let linked = ServiceModule::link(shared, &module, *digest)?;
        if let Some(cache) = &shared.cache {
            let code = module.serialize().map_err(std::io::Error::other);
            let put = code.and_then(|code| cache.put(&shared.compat_hash, digest, &code));
            if let Err(error) = put {
                warn!(module = hex(digest), %error, "compiled module not cached");
            }
        }
        Ok(self.keep(linked))
    }

    fn cached(&self, digest: &ModuleDigest) -> Option<Module> {
        let cache = self.shared.cache.as_ref()?;
        let why = match cache.get(&self.shared.compat_hash, digest) {
            Lookup::Hit(code) => match native::deserialize(&self.shared.engine, &code) {
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

    fn keep(&self, module: ServiceModule) -> Arc<ServiceModule> {
        let module = Arc::new(module);
        let mut ready = lock(&self.modules.ready);
        ready.retain(|other| other.digest() != module.digest());
        ready.push(Arc::clone(&module));
        let excess = ready
            .len()
            .saturating_sub(self.shared.options.engine.loaded_max);
        ready.drain(..excess);
        module
    }
}

impl Modules {
    fn get(&self, digest: &ModuleDigest) -> Option<Arc<ServiceModule>> {
        let mut ready = lock(&self.ready);
        let at = ready.iter().rposition(|module| module.digest() == digest)?;
        let module = ready.remove(at);
        ready.push(Arc::clone(&module));
        Some(module)
    }
}

impl std::fmt::Debug for ServiceEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServiceEngine")
            .field(&self.shared.options)
            .finish()
    }
}
