//! A store with an instance in it: made from the module, brought to an image's state, run, and
//! read back. Knows nothing of calls' meaning.

use std::sync::Arc;

use wasmtime::{
    Global as Hidden, Instance, Memory, ModuleExport, Store, StoreContextMut, TypedFunc, Val,
    WasmParams, WasmResults,
};

use super::call::{Call, Current, Data};
use super::dirty::Tracker;
use super::failure::StartError;
use super::image::pages::{PAGE_BYTES, Pages};
use super::image::{Global, GlobalType, Held, Image};
use super::log::{Log, Stream};
use super::module::ServiceModule;
use super::types::{Failure, Setup};
use crate::wasm::meter::{Halt, Meter};
use crate::wasm::wasi::{Host, Setup as HostSetup};
use crate::wasm::{
    CancelToken, GuestClock, GuestRandom, InputBytes, Limits, SeededRandom, Usage, VirtualClock,
};

/// How far a reading moves a guest's clock, so that a loop that waits on it ends.
const CLOCK_STEP_NS: u64 = 1_000;
/// What `hop3_schema` may take: it returns a constant.
const SCHEMA_CPU_MS: u64 = 100;

pub(super) type Handler = TypedFunc<(), i32>;

/// An instance that can run.
pub(super) struct Live {
    /// Before the store, so that it is dropped first: it watches the store's memory.
    tracker: Option<Tracker>,
    pub(super) store: Store<Data>,
    instance: Instance,
    memory: Memory,
    globals: Vec<(Hidden, GlobalType)>,
    pub(super) request: Option<Handler>,
    pub(super) message: Option<Handler>,
    pub(super) timer: Option<Handler>,
}

impl Live {
    /// Makes a store and instantiates the module in it. Its start function runs, and nothing of
    /// the world is open to it.
    pub(super) fn new(
        module: &ServiceModule,
        setup: &Arc<Setup>,
        cancel: &CancelToken,
        now_ms: u64,
    ) -> Result<Self, StartError> {
        let log = Arc::new(Log::default());
        let host = HostSetup {
            args: Vec::new(),
            env: setup.env.clone(),
            stdin: Arc::new(InputBytes::default()),
            stdout: Arc::new(Stream(Arc::clone(&log), 0)),
            stderr: Arc::new(Stream(Arc::clone(&log), 1)),
            clock: clock(now_ms, 0),
            random: random(setup, 0),
            meter: Meter::start(limits(setup), cancel.clone()),
        };
        let data = Data {
            host: Host::new(host, &crate::wasm::Grants::default())?,
            setup: Arc::clone(setup),
            log,
            held: Held::default(),
            call: Call::default(),
        };
        let mut store = Store::new(&module.engine.engine, data);
        store.limiter(|data| &mut data.host.meter);
        store.epoch_deadline_callback(|context| Ok(context.data().host.meter.tick()?));
        store.set_epoch_deadline(1);
        let instance = {
            let _ticking = module.engine.ticker.guard();
            module.pre.instantiate(&mut store)
        };
        let instance = instance.map_err(|error| StartError::of(&error))?;
        store.data_mut().host.open_files(&setup.grants)?;
        Self::bind(module, store, instance).map_err(|error| StartError::of(&error))
    }

    /// Finds the exports.
    fn bind(
        module: &ServiceModule,
        mut store: Store<Data>,
        instance: Instance,
    ) -> wasmtime::Result<Self> {
        let exports = &module.exports;
        let memory = instance.get_module_export(&mut store, &exports.memory);
        let memory = memory.and_then(wasmtime::Extern::into_memory);
        let memory = memory.ok_or_else(|| wasmtime::Error::msg("`memory` is gone"))?;
        store.data_mut().host.memory = Some(memory);
        let mut globals = Vec::with_capacity(exports.globals.len());
        for (export, ty) in &exports.globals {
            let global = instance.get_module_export(&mut store, export);
            let global = global.and_then(wasmtime::Extern::into_global);
            let global = global.ok_or_else(|| wasmtime::Error::msg("a global is gone"))?;
            globals.push((global, *ty));
        }
        let mut live = Self {
            tracker: None,
            store,
            instance,
            memory,
            globals,
            request: None,
            message: None,
            timer: None,
        };
        live.request = live.function(exports.request.as_ref())?;
        live.message = live.function(exports.message.as_ref())?;
        live.timer = live.function(exports.timer.as_ref())?;
        Ok(live)
    }

    /// An exported function, if it is there.
    pub(super) fn function<P: WasmParams, R: WasmResults>(
        &mut self,
        export: Option<&ModuleExport>,
    ) -> wasmtime::Result<Option<TypedFunc<P, R>>> {
        let Some(export) = export else {
            return Ok(None);
        };
        let function = self.instance.get_module_export(&mut self.store, export);
        let function = function.and_then(wasmtime::Extern::into_func);
        let function = function.ok_or_else(|| wasmtime::Error::msg("a handler is gone"))?;
        function.typed(&self.store).map(Some)
    }

    /// Prepares for a call that starts from `held`.
    pub(super) fn begin(
        &mut self,
        current: Current,
        held: Held,
        now_ms: u64,
        cancel: &CancelToken,
    ) {
        let data = self.store.data_mut();
        data.host.meter.restart(limits(&data.setup), cancel.clone());
        data.host.clock = clock(now_ms, held.counters.clock_ns);
        data.host.random = random(&data.setup, held.counters.random);
        data.held = held;
        data.call = Call::new(current);
        self.store.set_epoch_deadline(1);
    }

    /// Runs guest code.
    pub(super) fn run<T>(
        &mut self,
        module: &ServiceModule,
        code: impl FnOnce(StoreContextMut<'_, Data>) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        let _ticking = module.engine.ticker.guard();
        // Cancelled while it waited for its turn: no epoch check may come in a short call.
        let wait = self.store.data().host.meter.wait();
        wait.check().map_err(Halt::Stop)?;
        code(wasmtime::AsContextMut::as_context_mut(&mut self.store))
    }

    /// What the call used.
    pub(super) fn usage(&self) -> Usage {
        self.store.data().host.meter.usage()
    }

    /// What the host holds for the guest after a call.
    pub(super) fn take_held(&mut self) -> Held {
        let data = self.store.data_mut();
        let mut held = std::mem::take(&mut data.held);
        if let GuestRandom::Seeded(stream) = &data.host.random {
            held.counters.random = stream.position;
        }
        if let GuestClock::Virtual(clock) = &data.host.clock {
            held.counters.clock_ns = clock.monotonic_ns;
        }
        held
    }

    /// Bytes of the memory, touched or not.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.data_size(&self.store) as u64
    }

    /// Writes the state of a new instance into `image` and begins to track changes.
    pub(super) fn capture_initial(&mut self, module: &ServiceModule, image: &mut Image) {
        let memory = self.memory.data(&self.store);
        let scan = || {
            let mut pages = Pages::default();
            Tracker::Compare.collect(memory, &mut pages);
            pages
        };
        let pages = match module.exports.start {
            true => scan(),
            false => module.initial.get_or_init(scan).clone(),
        };
        let tracker = Tracker::start(module.engine.kernel.as_ref(), memory);
        self.tracker = Some(tracker);
        let inner = image.inner_mut();
        inner.pages = pages;
        let types = self.globals.iter().map(|(_, ty)| *ty);
        inner.globals = types.map(|ty| Global { ty, bits: 0 }).collect();
        self.capture(image);
    }

    /// Brings `image` to the state of memory and globals.
    pub(super) fn capture(&mut self, image: &mut Image) {
        let Some(tracker) = &mut self.tracker else {
            return;
        };
        let inner = image.inner_mut();
        let size = self.memory.size(&self.store);
        inner.wasm_pages = u32::try_from(size).expect("a 32-bit memory has at most 65,536 pages");
        tracker.collect(self.memory.data(&self.store), &mut inner.pages);
        for (slot, (global, _)) in inner.globals.iter_mut().zip(&self.globals) {
            slot.bits = bits(&global.get(&mut self.store));
        }
    }

    /// Brings memory and globals to the state of `image`, and begins to track changes.
    pub(super) fn restore(
        &mut self,
        module: &ServiceModule,
        image: &Image,
    ) -> Result<(), StartError> {
        let inner = &*image.0;
        let size = self.memory.size(&self.store);
        let stateless = inner.wasm_pages == 0 && size > 0;
        if image.layout() != *module.layout() || stateless {
            return Err(StartError::Layout);
        }
        if let Some(more) = u64::from(inner.wasm_pages).checked_sub(size) {
            let grown = self.memory.grow(&mut self.store, more);
            grown.map_err(|error| StartError::of(&error))?;
        }
        let memory = self.memory.data_mut(&mut self.store);
        let count = memory.len() / PAGE_BYTES;
        let initial = module.initial.get().filter(|_| !module.exports.start);
        match initial {
            Some(initial) => {
                let pages = inner.pages.unshared(initial);
                pages.for_each(|(n, _)| put_page(memory, &inner.pages, n));
            }
            None => (0..count).for_each(|n| put_page(memory, &inner.pages, n)),
        }
        self.set_globals(image)?;
        let memory = self.memory.data(&self.store);
        self.tracker = Some(Tracker::start(module.engine.kernel.as_ref(), memory));
        Ok(())
    }

    /// Brings memory and globals from the state of `from` to that of `to`, an image of the same
    /// module: writes only the pages that the two do not share.
    pub(super) fn advance(&mut self, from: &Image, to: &Image) -> Result<(), StartError> {
        let inner = &*to.0;
        let size = self.memory.size(&self.store);
        let more = u64::from(inner.wasm_pages).checked_sub(size);
        // A memory does not shrink.
        let more = more.ok_or(StartError::Layout)?;
        let Some(tracker) = self
            .tracker
            .as_mut()
            .filter(|_| to.layout() == from.layout())
        else {
            return Err(StartError::Layout);
        };
        if more > 0 {
            let grown = self.memory.grow(&mut self.store, more);
            grown.map_err(|error| StartError::of(&error))?;
        }
        let memory = self.memory.data_mut(&mut self.store);
        for (index, _) in inner.pages.unshared(&from.0.pages) {
            put_page(memory, &inner.pages, index);
        }
        // What was written here is no change of the guest's.
        let mut known = inner.pages.clone();
        tracker.collect(self.memory.data(&self.store), &mut known);
        self.set_globals(to)
    }

    fn set_globals(&mut self, image: &Image) -> Result<(), StartError> {
        for ((global, ty), value) in self.globals.iter().zip(&image.0.globals) {
            let set = global.set(&mut self.store, val(*ty, value.bits));
            set.map_err(|error| StartError::of(&error))?;
        }
        Ok(())
    }
}

/// Makes a page of `memory` what it is in `pages`.
fn put_page(memory: &mut [u8], pages: &Pages, index: usize) {
    let wanted = pages.bytes(index);
    let target = memory.get_mut(index * PAGE_BYTES..(index + 1) * PAGE_BYTES);
    // Compared first: a page that is not written stays shared with the module.
    if let Some(target) = target.filter(|target| **target != wanted[..]) {
        target.copy_from_slice(wanted);
    }
}

/// Calls `hop3_schema` on an instance that is made for it, within the memory of `setup`.
pub(super) fn schema_of(module: &ServiceModule, setup: &Setup) -> Result<u32, StartError> {
    let mut quiet = Setup::default();
    quiet.limits.memory_bytes = setup.limits.memory_bytes;
    quiet.limits.cpu_ms = SCHEMA_CPU_MS;
    let mut live = Live::new(module, &Arc::new(quiet), &CancelToken::new(), 0)?;
    let schema: wasmtime::Result<Option<Handler>> = live.function(module.exports.schema.as_ref());
    let schema = schema.and_then(|function| {
        let function = function.ok_or_else(|| wasmtime::Error::msg("it is gone"))?;
        live.run(module, |store| function.call(store, ()))
    });
    schema.map(i32::cast_unsigned).map_err(|error| {
        let why = super::failure::failure(&error);
        let failure = Failure::Ended(format!("`hop3_schema` must return a constant: {why}"));
        let log = Vec::new();
        StartError::Guest { failure, log }
    })
}

fn clock(now_ms: u64, not_before_ns: u64) -> GuestClock {
    GuestClock::Virtual(VirtualClock {
        epoch_ns: 0,
        monotonic_ns: now_ms.saturating_mul(1_000_000).max(not_before_ns),
        step_ns: CLOCK_STEP_NS,
    })
}

fn random(setup: &Setup, position: u64) -> GuestRandom {
    GuestRandom::Seeded(SeededRandom {
        seed: setup.seed,
        position,
    })
}

fn limits(setup: &Setup) -> Limits {
    let limits = &setup.limits;
    Limits {
        memory_bytes: limits.memory_bytes,
        cpu_ms: limits.cpu_ms,
        wall_ms: limits.wall_ms,
        output_bytes: limits.reply_bytes,
        host_calls_per_s: limits.host_calls_per_s,
        host_calls_burst: limits.host_calls_per_s,
    }
}

fn bits(value: &Val) -> u128 {
    match value {
        Val::I32(value) => u128::from(value.cast_unsigned()),
        Val::I64(value) => u128::from(value.cast_unsigned()),
        Val::F32(bits) => u128::from(*bits),
        Val::F64(bits) => u128::from(*bits),
        Val::V128(value) => value.as_u128(),
        _ => unreachable!("globals that hold references are not captured"),
    }
}

/// The value of that type. The bits fit it: images are checked when they are decoded.
fn val(ty: GlobalType, bits: u128) -> Val {
    let (low, long) = (bits as u32, bits as u64);
    match ty {
        GlobalType::I32 => Val::I32(low.cast_signed()),
        GlobalType::I64 => Val::I64(long.cast_signed()),
        GlobalType::F32 => Val::F32(low),
        GlobalType::F64 => Val::F64(long),
        GlobalType::V128 => Val::V128(bits.into()),
    }
}
