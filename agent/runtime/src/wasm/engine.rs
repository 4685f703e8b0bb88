//! The compiler and allocator that all guests of one agent share.
//!
//! Instances come from a pool of fixed size: instantiation takes microseconds and memory is
//! bounded. **Address space** (not memory) is reserved for every instance up front:
//! - [`AddressSpace::Fast`]: 4 GiB + 32 MiB per instance, so that code needs no bounds checks.
//!   64 instances reserve 258 GiB, fine on a 64-bit machine with 47 or 48 address bits.
//! - [`AddressSpace::Compact`]: `memory_bytes_max` + 64 KiB per instance and explicit bounds
//!   checks (some tens of per cent slower code): for devices with 39 address bits, small
//!   `ulimit -v`, or operators who read VSZ as memory.
//!
//! Nothing of it is resident until guests touch it; a finished instance gives its pages back,
//! but for `keep_resident_bytes` that make the next start faster.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Config, InstanceAllocationStrategy, Linker, OptLevel, PoolingAllocationConfig};

use super::cache::CompiledCache;
use super::limits::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN};
use super::meter::TABLE_ELEMENTS_MAX;
use super::module::Loaded;
use super::outcome::FRAMES_MAX;
use super::ticker::Ticker;
use super::wasi::{self, Host};

/// Instances at once: each costs address space and a slot.
const INSTANCES_MAX: u32 = 4_096;
/// Wasm stack: native threads must fit it.
const STACK_BYTES_MAX: usize = 8 << 20;
/// Tables per module: toolchains make one.
const TABLES_PER_MODULE_MAX: u32 = 4;

/// How much address space each instance reserves; see the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSpace {
    /// 4 GiB and a guard: the fastest code.
    Fast,
    /// The largest memory and a small guard: explicit bounds checks.
    Compact,
}

/// How an engine is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Instances that can live at once (1 to 4,096).
    pub instances_max: u32,
    /// Largest linear memory of any instance, bytes (64 KiB to 4 GiB).
    pub memory_bytes_max: u64,
    /// Address space per instance.
    pub address_space: AddressSpace,
    /// Wasm call stack of every guest, bytes (64 KiB to 8 MiB). Threads that run guests need
    /// this plus [`Engine::native_stack_bytes`]'s margin.
    pub wasm_stack_bytes: usize,
    /// Make every NaN canonical: the same results on every machine, slower floats.
    pub canonical_nans: bool,
    /// How often a computing guest is checked, milliseconds (1 to 100).
    pub tick_ms: u64,
    /// Memory of a finished instance that stays resident for the next, bytes (up to 16 MiB).
    pub keep_resident_bytes: usize,
    /// Modules kept ready in memory (1 to 1,024).
    pub loaded_max: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            instances_max: 64,
            memory_bytes_max: 1 << 30,
            address_space: AddressSpace::Fast,
            wasm_stack_bytes: 512 * 1024,
            canonical_nans: false,
            tick_ms: 2,
            keep_resident_bytes: 64 * 1024,
            loaded_max: 64,
        }
    }
}

impl EngineOptions {
    /// Options for a machine with this much memory: under 2 GiB, fewer and smaller instances
    /// in a compact address space (16 × (a quarter of memory + 64 KiB)).
    #[must_use]
    pub fn for_machine(memory_bytes: u64) -> Self {
        let options = Self::default();
        if memory_bytes >= 2 << 30 {
            return options;
        }
        let quarter = memory_bytes / 4 / MEMORY_BYTES_MIN * MEMORY_BYTES_MIN;
        Self {
            instances_max: 16,
            memory_bytes_max: quarter.clamp(16 << 20, 512 << 20),
            address_space: AddressSpace::Compact,
            loaded_max: 16,
            ..options
        }
    }

    pub(crate) fn validate(&self) -> Result<(), OptionsError> {
        let ranges = [
            (
                "instances_max",
                u64::from(self.instances_max),
                1,
                u64::from(INSTANCES_MAX),
            ),
            (
                "memory_bytes_max",
                self.memory_bytes_max,
                MEMORY_BYTES_MIN,
                MEMORY_BYTES_MAX,
            ),
            (
                "wasm_stack_bytes",
                self.wasm_stack_bytes as u64,
                64 << 10,
                STACK_BYTES_MAX as u64,
            ),
            ("tick_ms", self.tick_ms, 1, 100),
            (
                "keep_resident_bytes",
                self.keep_resident_bytes as u64,
                0,
                16 << 20,
            ),
            ("loaded_max", self.loaded_max as u64, 1, 1_024),
        ];
        for (field, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(OptionsError::Range {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        let (reservation, guard) = match self.address_space {
            AddressSpace::Fast => (4 << 30, 32 << 20),
            AddressSpace::Compact => (self.memory_bytes_max, 64 << 10),
        };
        // Must agree with `inspect::FEATURES`; threads, GC, exceptions and components are not
        // even compiled in.
        config
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .wasm_tail_call(true)
            .wasm_simd(true)
            .wasm_relaxed_simd(true)
            .relaxed_simd_deterministic(true)
            .epoch_interruption(true)
            .max_wasm_stack(self.wasm_stack_bytes)
            .cranelift_opt_level(OptLevel::Speed)
            .cranelift_nan_canonicalization(self.canonical_nans)
            .memory_reservation(reservation)
            .memory_guard_size(guard)
            .memory_may_move(false)
            .memory_init_cow(true)
            .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable)
            .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(FRAMES_MAX))
            // Registering unwind tables is quadratic in loaded modules and serves only
            // debuggers.
            .native_unwind_info(false)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(self.pool()));
        config
    }

    fn pool(&self) -> PoolingAllocationConfig {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(self.instances_max)
            .total_memories(self.instances_max)
            .total_tables(self.instances_max.saturating_mul(TABLES_PER_MODULE_MAX))
            .max_memories_per_module(1)
            .max_tables_per_module(TABLES_PER_MODULE_MAX)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_memory_size(usize::try_from(self.memory_bytes_max).unwrap_or(usize::MAX))
            .linear_memory_keep_resident(self.keep_resident_bytes)
            .table_keep_resident(self.keep_resident_bytes.min(4_096))
            .max_unused_warm_slots(8);
        pool
    }
}

/// An engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// An option is out of range.
    #[error("engine option `{field}` is {value}; it must be between {min} and {max}")]
    Range {
        /// The option's name.
        field: &'static str,
        /// What it was.
        value: u64,
        /// Least that is allowed.
        min: u64,
        /// Most that is allowed.
        max: u64,
    },
    /// The system refused: most often its address space is too small for the pool.
    #[error(
        "the Wasm engine cannot start ({message}); try fewer instances or a compact \
             address space"
    )]
    Engine {
        /// The engine's words.
        message: String,
    },
    /// No thread for the ticker.
    #[error("the epoch thread cannot start")]
    Ticker(#[source] std::io::Error),
}

/// Compiles, caches and links modules. Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    options: EngineOptions,
    linker: Linker<Host>,
    ticker: Arc<Ticker>,
    cache: Option<CompiledCache>,
    loaded: Loaded,
    compat_hash: [u8; 32],
}

impl Engine {
    /// Makes an engine, with or without a cache on disk. Its ticker thread sleeps while no
    /// guest runs.
    ///
    /// # Errors
    /// Options out of range, or the system cannot give the address space or a thread.
    pub fn new(options: EngineOptions, cache: Option<CompiledCache>) -> Result<Self, OptionsError> {
        options.validate()?;
        let refused = |error: wasmtime::Error| OptionsError::Engine {
            message: format!("{error:#}"),
        };
        let engine = wasmtime::Engine::new(&options.config()).map_err(refused)?;
        let mut linker = Linker::new(&engine);
        wasi::add_to(&mut linker).map_err(refused)?;
        let ticker = Ticker::start(engine.weak(), Duration::from_millis(options.tick_ms))
            .map_err(OptionsError::Ticker)?;
        let ticker = Arc::new(ticker);
        let compat_hash = compat_hash_of(&engine);
        let loaded = Loaded::default();
        Ok(Self(Arc::new(Inner {
            engine,
            options,
            linker,
            ticker,
            cache,
            loaded,
            compat_hash,
        })))
    }

    /// Code compiled by an engine runs on every engine with the same hash (same wasmtime,
    /// target, CPU features and options).
    #[must_use]
    pub fn compat_hash(&self) -> &[u8; 32] {
        &self.0.compat_hash
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// Native stack that a thread needs to run a guest of this engine, bytes: the Wasm stack,
    /// and 512 KiB for the host calls on top of it.
    #[must_use]
    pub fn native_stack_bytes(&self) -> usize {
        self.0.options.wasm_stack_bytes + 512 * 1024
    }

    /// Forgets the modules kept ready in memory; running instances keep theirs.
    pub fn forget_loaded(&self) {
        self.0.loaded.clear();
    }

    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    pub(super) fn linker(&self) -> &Linker<Host> {
        &self.0.linker
    }

    pub(super) fn cache(&self) -> Option<&CompiledCache> {
        self.0.cache.as_ref()
    }

    pub(super) fn loaded(&self) -> &Loaded {
        &self.0.loaded
    }

    pub(super) fn ticker(&self) -> Arc<Ticker> {
        Arc::clone(&self.0.ticker)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Engine").field(&self.0.options).finish()
    }
}

/// The hash of all that decides whether code compiled elsewhere runs on `engine`.
pub(crate) fn compat_hash_of(engine: &wasmtime::Engine) -> [u8; 32] {
    let mut hash = Blake3Hasher(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hash);
    *hash.0.finalize().as_bytes()
}

/// Collects what is hashed, instead of mixing it into 64 bits.
struct Blake3Hasher(blake3::Hasher);

impl Hasher for Blake3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        hash.as_bytes()[..8]
            .iter()
            .fold(0, |n, byte| n << 8 | u64::from(*byte))
    }
}
