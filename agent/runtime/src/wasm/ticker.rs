//! Moves an engine's epoch while guests run, and sleeps for good while none do.
//!
//! Starting a guest costs one atomic addition; only when the ticker has gone to sleep must it
//! be woken. It lingers a little after the last guest, so that a stream of short calls does not
//! wake it for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::EngineWeak;

/// Ticks without any guest after which the ticker sleeps.
const LINGER_TICKS: u32 = 50;

/// The thread that ticks; stops when dropped.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl Ticker {
    /// Starts the thread, asleep.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(engine: EngineWeak, tick: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let handle = thread::Builder::new()
            .name("hop3-epoch".into())
            .stack_size(128 * 1024)
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(&engine, tick)
            })?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
            handle: Some(handle),
        })
    }

    /// Ticks at least until the guard is dropped.
    pub(crate) fn guard(&self) -> Guard<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        // The ticker says that it sleeps, then looks at `running`; we count, then look whether
        // it sleeps. One of the two sees the other.
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Guard(&self.shared)
    }

    /// Whether the ticker sleeps.
    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.shared.asleep.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn run(&self, engine: &EngineWeak, tick: Duration) {
        let mut idle_ticks = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            if self.running.load(Ordering::SeqCst) > 0 {
                idle_ticks = 0;
            } else if idle_ticks < LINGER_TICKS {
                idle_ticks += 1;
            } else {
                self.sleep();
                idle_ticks = 0;
                continue;
            }
            thread::sleep(tick);
            let Some(engine) = engine.upgrade() else {
                return;
            };
            engine.increment_epoch();
        }
    }

    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.asleep.load(Ordering::SeqCst)
            && self.running.load(Ordering::SeqCst) == 0
            && !self.stopped.load(Ordering::SeqCst)
        {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// A guest runs.
pub(crate) struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use super::*;

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn sleeps_without_guests_and_wakes_for_them() {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        let engine = wasmtime::Engine::new(&config).unwrap();
        let ticker = Ticker::start(engine.weak(), Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            eventually("asleep", || ticker.is_asleep());
            let guard = ticker.guard();
            assert!(!ticker.is_asleep());
            drop(guard);
        }
    }
}
