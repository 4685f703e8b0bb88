//! An instance: an image, and a store that is in the image's state or gone.
//!
//! After a failed call the store is dropped and, at the next call, made anew from the image.
//! Stateless instances keep nothing of their memory: theirs is made anew from the module, and
//! `_initialize` and `hop3_init` run again, without effects.
//!
//! What no longer concerns the guest (a timer that is not set, data on a stream that it closed,
//! an end that it has no handler for) is taken as a call that ended well and did nothing.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::TypedFunc;

use super::call::Current;
use super::failure::{StartError, failure, in_full};
use super::image::{Held, Image};
use super::live::{Handler, Live};
use super::module::ServiceModule;
use super::types::{Called, Done, Failure, Input, Letters, LogLine, Reply, Setup};
use crate::wasm::{CancelToken, Usage};

/// Bytes of the host's own for an instance, beyond its memory: a rough figure.
const OVERHEAD_BYTES: u64 = 16 * 1024;

/// An instance of a service. Handles one input at a time, on the calling thread, which must
/// have `ServiceEngine::native_stack_bytes` of stack.
pub struct Instance {
    module: Arc<ServiceModule>,
    setup: Arc<Setup>,
    image: Image,
    live: Option<Live>,
    /// Calls of the guest that have not ended.
    calls: usize,
    letters: Option<Letters>,
}

impl Instance {
    /// Makes a new instance: `_initialize` and `hop3_init` run, and what they want to happen is
    /// in the result.
    ///
    /// # Errors
    /// It cannot be made; what the guest did is undone.
    pub fn create(
        module: &Arc<ServiceModule>,
        setup: Setup,
        now_ms: u64,
        cancel: &CancelToken,
    ) -> Result<(Self, Called), StartError> {
        let mut instance = Self::new(module, setup, Image::new(*module.digest()))?;
        let schema = module.schema(&instance.setup)?;
        instance.image.inner_mut().held.counters.schema = schema;
        let mut live = Live::new(module, &instance.setup, cancel, now_ms)?;
        if instance.setup.stateful {
            live.capture_initial(module, &mut instance.image);
        }
        let held = instance.image.0.held.clone();
        live.begin(Current::Init, held, now_ms, cancel);
        let outcome = initialize(module, &mut live);
        let called = instance.finish(live, outcome, 0);
        instance.started(called)
    }

    /// Makes an instance that goes on from an image. Nothing of the guest runs, if the image is of
    /// the same module. Memory that another build of the guest laid out means nothing to this one:
    /// it begins with memory of its own, and `hop3_upgrade` makes of the key-value data what it
    /// needs. Timers and client streams stay.
    ///
    /// # Errors
    /// The guest cannot take the state over.
    pub fn restore(
        module: &Arc<ServiceModule>,
        setup: Setup,
        image: Image,
        now_ms: u64,
        cancel: &CancelToken,
    ) -> Result<(Self, Called), StartError> {
        let from = image.schema();
        let same = image.module() == module.digest();
        let mut instance = Self::new(module, setup, image)?;
        if same {
            let live = instance.rebuild(now_ms, cancel)?;
            let usage = live.usage();
            instance.live = Some(live);
            return Ok((instance, nothing_to_do(usage)));
        }
        let to = module.schema(&instance.setup)?;
        if !module.has_upgrade() {
            return Err(StartError::Schema { from, to });
        }
        instance.image.inner_mut().module = *module.digest();
        let mut live = Live::new(module, &instance.setup, cancel, now_ms)?;
        if instance.setup.stateful {
            live.capture_initial(module, &mut instance.image);
        }
        let mut held = instance.image.0.held.clone();
        held.counters.schema = to;
        live.begin(Current::Upgrade, held, now_ms, cancel);
        let outcome = upgrade(module, &mut live, from);
        let called = instance.finish(live, outcome, 1);
        instance.started(called)
    }

    /// Goes on from a later image of the same module, for an instance that was made ready before
    /// that image was known: only what the two do not share is written.
    ///
    /// # Errors
    /// The image is of another module or layout; the instance is as it was.
    pub fn advance(&mut self, image: Image) -> Result<(), StartError> {
        if image.module() != self.image.module() || !self.setup.stateful {
            return Err(StartError::Layout);
        }
        if let Some(mut live) = self.live.take() {
            // One that fails half way is made anew from the image.
            if live.advance(&self.image, &image).is_ok() {
                self.live = Some(live);
            }
        }
        self.image = image;
        Ok(())
    }

    fn new(module: &Arc<ServiceModule>, setup: Setup, image: Image) -> Result<Self, StartError> {
        if let (true, Some((function, reason))) = (setup.stateful, module.refusal()) {
            return Err(StartError::Stateful {
                function: function.to_owned(),
                reason: reason.to_owned(),
            });
        }
        Ok(Self {
            module: Arc::clone(module),
            setup: Arc::new(setup),
            image,
            live: None,
            calls: 0,
            letters: None,
        })
    }

    fn started(self, called: Called) -> Result<(Self, Called), StartError> {
        match called.result {
            Ok(_) => Ok((self, called)),
            Err(failure) => Err(StartError::Guest {
                failure,
                log: called.log,
            }),
        }
    }

    /// A store in the image's state.
    fn rebuild(&self, now_ms: u64, cancel: &CancelToken) -> Result<Live, StartError> {
        let mut live = Live::new(&self.module, &self.setup, cancel, now_ms)?;
        if self.setup.stateful {
            live.restore(&self.module, &self.image)?;
            return Ok(live);
        }
        // What it sets and sends was done by the first one, or is in the image.
        live.begin(Current::Init, Held::default(), now_ms, cancel);
        match initialize(&self.module, &mut live) {
            Ok(0) => {}
            Ok(said) => {
                let failure = Failure::Said(said);
                let log = live.store.data().log.take();
                return Err(StartError::Guest { failure, log });
            }
            Err(error) => return Err(StartError::of(&error)),
        }
        live.store.data_mut().host.reset_files(&self.setup.grants)?;
        live.store.data().log.take();
        Ok(live)
    }

    /// Handles an input at the time `now_ms` (ms since 1970).
    pub fn call(&mut self, input: Input, now_ms: u64, cancel: &CancelToken) -> Called {
        let mut held = self.image.0.held.clone();
        let Some(due_ms) = concerns(&input, &mut held) else {
            return self.skip(held);
        };
        let (name, there) = match &input {
            Input::Request { .. } => ("hop3_request", self.module.has_request()),
            Input::Timer { .. } => ("hop3_timer", self.module.has_timer()),
            _ => ("hop3_message", self.module.has_message()),
        };
        if !there {
            return match &input {
                Input::StreamClosed { .. } | Input::CallEnded { .. } => self.skip(held),
                _ => failed(Failure::NoHandler(name)),
            };
        }
        let live = match self.live.take() {
            Some(live) => Ok(live),
            None => self.rebuild(now_ms, cancel),
        };
        let mut live = match live {
            Ok(live) => live,
            Err(error) => return failed(Failure::Ended(in_full(&error))),
        };
        let handler = match &input {
            Input::Request { .. } => live.request.clone(),
            Input::Timer { .. } => live.timer.clone(),
            _ => live.message.clone(),
        };
        let Some(handler) = handler else {
            return failed(Failure::NoHandler(name));
        };
        live.begin(Current::Input(input, due_ms), held, now_ms, cancel);
        live.store.data_mut().call.calls = self.calls;
        live.store.data_mut().call.letters = self.letters;
        let outcome = live.run(&self.module, |store| handler.call(store, ()));
        self.finish(live, outcome, 1)
    }

    /// Takes over what a call did, or drops the store.
    fn finish(&mut self, mut live: Live, outcome: wasmtime::Result<i32>, calls: u64) -> Called {
        let usage = live.usage();
        let log = live.store.data().log.take();
        let data = live.store.data_mut();
        let files = data.host.reset_files(&self.setup.grants);
        let (reply, cut) = (data.call.take_reply(), data.call.cut);
        let result = match outcome {
            Err(error) => Err(failure(&error)),
            Ok(0) => files
                .map_err(|error| Failure::Ended(in_full(&error)))
                .and_then(|()| check(reply, cut)),
            Ok(said) => Err(Failure::Said(said)),
        };
        let result = result.map(|reply| {
            let effects = std::mem::take(&mut live.store.data_mut().call.effects);
            let mut held = live.take_held();
            held.counters.seq += calls;
            self.image.inner_mut().held = held;
            live.capture(&mut self.image);
            // What it looked at is not needed any more.
            live.store.data_mut().call = super::call::Call::default();
            self.live = Some(live);
            Done { reply, effects }
        });
        Called { result, log, usage }
    }

    /// A call that ends well without the guest.
    fn skip(&mut self, mut held: Held) -> Called {
        held.counters.seq += 1;
        self.image.inner_mut().held = held;
        nothing_to_do(Usage::default())
    }

    /// The state after the last call that ended well. Of a stateless instance: without memory.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Sets or removes an entry of the desk: the host's own, part of the image, unseen by the
    /// guest.
    pub fn set_desk(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        let inner = self.image.inner_mut();
        inner.held.counters.desk += 1;
        match value {
            Some(value) => inner.desk.insert(key.into(), value),
            None => {
                inner.desk.remove(&key);
            }
        }
    }

    /// Forgets a timer, for one whose handler fails time and again. Whether it was set.
    pub fn drop_timer(&mut self, timer: u64) -> bool {
        let held = &mut self.image.inner_mut().held;
        held.counters.desk += 1;
        Arc::make_mut(&mut held.timers).remove(&timer).is_some()
    }

    /// Forgets a client stream, for one whose end the guest fails to handle. Whether it was open.
    pub fn drop_stream(&mut self, stream: u64) -> bool {
        let held = &mut self.image.inner_mut().held;
        held.counters.desk += 1;
        Arc::make_mut(&mut held.streams).remove(&stream)
    }

    /// Says how many calls of the guest have not ended: at most [`CALLS_MAX`](super::CALLS_MAX)
    /// may be under way, the next input's included.
    pub fn set_calls(&mut self, calls: usize) {
        self.calls = calls;
    }

    /// Says which messages of the guest are kept and wait for subscribers; `None`: they are not
    /// kept. Beyond [`LETTERS_MAX`](super::LETTERS_MAX) the guest is refused more.
    pub fn set_letters(&mut self, letters: Option<Letters>) {
        self.letters = letters;
    }

    /// Gives up the store until the next call, which makes it anew from the image: for
    /// instances that are idle. Stateless ones keep theirs, which is all that they have.
    pub fn rest(&mut self) {
        if self.setup.stateful {
            self.live = None;
        }
    }

    /// Bytes of the machine's memory that it takes, about: the image's pages, as many again
    /// while there is a store, and the host's own.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let image = self.image.state_bytes();
        let store = self
            .live
            .as_ref()
            .map_or(0, |live| match self.setup.stateful {
                true => image,
                false => live.memory_bytes(),
            });
        image + store + OVERHEAD_BYTES
    }

    /// To put a test's instance into a state.
    #[cfg(test)]
    pub(super) fn image_mut(&mut self) -> &mut super::image::Inner {
        self.image.inner_mut()
    }

    /// The module that it runs.
    #[must_use]
    pub fn module(&self) -> &Arc<ServiceModule> {
        &self.module
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("name", &self.setup.name)
            .field("seq", &self.image.seq())
            .finish_non_exhaustive()
    }
}

/// What an input does to the host's side before the guest sees it. For a timer the time when it
/// was due (else 0); `None` if there is nothing for the guest to see.
fn concerns(input: &Input, held: &mut Held) -> Option<u64> {
    match input {
        Input::Timer { timer } => Arc::make_mut(&mut held.timers).remove(timer),
        Input::StreamData { stream, .. } => held.streams.contains(stream).then_some(0),
        Input::StreamClosed { stream, .. } => {
            Arc::make_mut(&mut held.streams).remove(stream).then_some(0)
        }
        _ => Some(0),
    }
}

/// Whether a reply is acceptable. `cut`: a part of it was refused, and the guest went on.
fn check(reply: Option<Reply>, cut: bool) -> Result<Option<Reply>, Failure> {
    match &reply {
        Some(_) if cut => Err(Failure::Reply("its body is above `limits.reply`".into())),
        Some(reply) if reply.status == 101 && reply.stream.is_none() => {
            let why = "status 101 without a client stream";
            Err(Failure::Reply(why.into()))
        }
        _ => Ok(reply),
    }
}

fn initialize(module: &ServiceModule, live: &mut Live) -> wasmtime::Result<i32> {
    let initialize: Option<TypedFunc<(), ()>> =
        live.function(module.exports.initialize.as_ref())?;
    let init: Option<Handler> = live.function(module.exports.init.as_ref())?;
    live.run(module, |mut store| {
        if let Some(initialize) = initialize {
            initialize.call(&mut store, ())?;
        }
        init.map_or(Ok(0), |init| init.call(&mut store, ()))
    })
}

fn upgrade(module: &ServiceModule, live: &mut Live, from: u32) -> wasmtime::Result<i32> {
    let initialize: Option<TypedFunc<(), ()>> =
        live.function(module.exports.initialize.as_ref())?;
    let upgrade: Option<TypedFunc<i32, i32>> = live.function(module.exports.upgrade.as_ref())?;
    let upgrade = upgrade.ok_or_else(|| wasmtime::Error::msg("`hop3_upgrade` is gone"))?;
    live.run(module, |mut store| {
        if let Some(initialize) = initialize {
            initialize.call(&mut store, ())?;
        }
        upgrade.call(&mut store, from.cast_signed())
    })
}

impl Called {
    /// A call that ended well and did nothing.
    #[must_use]
    pub fn nothing() -> Self {
        nothing_to_do(Usage::default())
    }
}

fn nothing_to_do(usage: Usage) -> Called {
    Called {
        result: Ok(Done::default()),
        log: Vec::<LogLine>::new(),
        usage,
    }
}

fn failed(failure: Failure) -> Called {
    Called {
        result: Err(failure),
        log: Vec::new(),
        usage: Usage::default(),
    }
}
