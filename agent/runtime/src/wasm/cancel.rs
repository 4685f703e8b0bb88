//! Stopping a guest from another thread, and waiting that can be stopped.
//!
//! A guest that computes notices a cancelled token at its next epoch check; one that is blocked
//! in a host call is woken by the token itself. Wakers are few: one per blocked wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Called once when the token is cancelled; must be short and must not block.
pub(crate) type WakeFn = Arc<dyn Fn() + Send + Sync>;

/// Locks a mutex whose data stays valid whatever panicked while it was held.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a run to end. Clones share the same request; it cannot be taken back.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    wakers: Mutex<Wakers>,
    changed: Condvar,
}

#[derive(Default)]
struct Wakers {
    next_id: u64,
    entries: Vec<(u64, WakeFn)>,
}

impl CancelToken {
    /// A token that nobody has cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to end and wakes it if it is blocked. Idempotent.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        // Under the lock the flag and a waiter's check cannot miss each other; the wakers run
        // after it, since they take locks of their own.
        let entries: Vec<WakeFn> = {
            let wakers = lock(&self.0.wakers);
            wakers
                .entries
                .iter()
                .map(|(_, wake)| Arc::clone(wake))
                .collect()
        };
        self.0.changed.notify_all();
        for wake in entries {
            wake();
        }
    }

    /// Whether [`cancel`](Self::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Calls `wake` on cancellation until the registration is dropped. The caller checks
    /// [`is_cancelled`](Self::is_cancelled) after registering: an earlier cancel is not replayed.
    #[must_use]
    pub(crate) fn on_cancel(&self, wake: WakeFn) -> Registration<'_> {
        let mut wakers = lock(&self.0.wakers);
        let id = wakers.next_id;
        wakers.next_id += 1;
        wakers.entries.push((id, wake));
        Registration { token: self, id }
    }

    /// Sleeps until `until`, or for ever if `None`.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] as soon as the token is cancelled.
    pub fn sleep_until(&self, until: Option<Instant>) -> Result<(), Stop> {
        let mut wakers = lock(&self.0.wakers);
        loop {
            if self.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            wakers = match until {
                None => self
                    .0
                    .changed
                    .wait(wakers)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(());
                    }
                    let waited = self.0.changed.wait_timeout(wakers, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CancelToken")
            .field(&self.is_cancelled())
            .finish()
    }
}

/// Removes its waker when dropped.
pub(crate) struct Registration<'a> {
    token: &'a CancelToken,
    id: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        lock(&self.token.0.wakers)
            .entries
            .retain(|(id, _)| *id != self.id);
    }
}

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The token was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
}

/// How long a blocking call may wait: until the token is cancelled or the deadline passes.
#[derive(Debug, Clone)]
pub struct Wait {
    /// Ends the wait at once.
    pub cancel: CancelToken,
    /// Ends the wait at this instant; `None` waits for ever.
    pub deadline: Option<Instant>,
}

impl Wait {
    /// Whether the wait is over.
    ///
    /// # Errors
    /// Why it is.
    pub fn check(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Stop::Deadline),
            _ => Ok(()),
        }
    }

    /// Waits on `changed` once, at most until the deadline.
    ///
    /// # Errors
    /// As [`check`](Self::check), before waiting.
    pub(crate) fn block_on<'a, T>(
        &self,
        changed: &Condvar,
        guard: MutexGuard<'a, T>,
    ) -> Result<MutexGuard<'a, T>, Stop> {
        self.check()?;
        Ok(match self.deadline {
            None => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                changed
                    .wait_timeout(guard, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn sleeping_ends_on_cancel_from_another_thread() {
        let token = CancelToken::new();
        let sleeper = thread::spawn({
            let token = token.clone();
            move || token.sleep_until(None)
        });
        token.cancel();
        assert_eq!(sleeper.join().unwrap(), Err(Stop::Cancelled));
    }

    #[test]
    fn sleeping_ends_at_its_instant() {
        let token = CancelToken::new();
        let until = Instant::now() + Duration::from_millis(2);
        assert_eq!(token.sleep_until(Some(until)), Ok(()));
        assert!(Instant::now() >= until);
    }

    #[test]
    fn a_dropped_registration_is_not_called() {
        let token = CancelToken::new();
        let called = Arc::new(AtomicBool::new(false));
        let wake: WakeFn = {
            let called = Arc::clone(&called);
            Arc::new(move || called.store(true, Ordering::SeqCst))
        };
        drop(token.on_cancel(Arc::clone(&wake)));
        let kept = CancelToken::new();
        let _registration = kept.on_cancel(wake);
        token.cancel();
        assert!(!called.load(Ordering::SeqCst));
        kept.cancel();
        assert!(called.load(Ordering::SeqCst));
    }
}
