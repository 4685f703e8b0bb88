//! One clock for all instances: whoever sleeps leaves a time and is woken at it. One task and one
//! ordered map, however many sleep.
//!
//! Times are wall-clock times, since guests' timers are; a clock that is set is noticed within
//! [`LOOK_MAX`]. A sleeper has one time at most: the newest wish counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hop3_common::id::UnixMs;
use tokio::sync::Notify;

/// The longest sleep: the clock may be set meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Who can be woken. Must not block.
pub trait Sleeper: Send + Sync {
    /// Its time has come.
    fn wake(self: Arc<Self>);
}

/// Names a sleeper.
pub type SleeperId = u64;

#[derive(Default)]
struct Times {
    due: BTreeMap<(u64, SleeperId), Weak<dyn Sleeper>>,
    of: HashMap<SleeperId, u64>,
    last: SleeperId,
}

impl Times {
    fn remove(&mut self, id: SleeperId) {
        if let Some(at_ms) = self.of.remove(&id) {
            self.due.remove(&(at_ms, id));
        }
    }

    fn take_due(&mut self, now_ms: u64) -> Vec<Arc<dyn Sleeper>> {
        let mut woken = Vec::new();
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now_ms
        {
            let ((_, id), sleeper) = entry.remove_entry();
            self.of.remove(&id);
            woken.extend(sleeper.upgrade());
        }
        woken
    }
}

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub struct Wheel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    times: Mutex<Times>,
    changed: Notify,
}

impl Wheel {
    fn times(&self) -> MutexGuard<'_, Times> {
        // Both maps are changed in one breath, nothing in between can panic.
        self.0.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new sleeper's name.
    #[must_use]
    pub fn register(&self) -> SleeperId {
        let mut times = self.times();
        times.last += 1;
        times.last
    }

    /// Wakes `sleeper` at a time, or not at all; replaces what was asked before.
    pub fn set(&self, id: SleeperId, at_ms: Option<u64>, sleeper: Weak<dyn Sleeper>) {
        let mut times = self.times();
        if times.of.get(&id).copied() == at_ms {
            return;
        }
        times.remove(id);
        let Some(at_ms) = at_ms else { return };
        let first = times.due.first_key_value().map(|((first, _), _)| *first);
        times.of.insert(id, at_ms);
        times.due.insert((at_ms, id), sleeper);
        drop(times);
        if first.is_none_or(|first| at_ms < first) {
            self.0.changed.notify_one();
        }
    }

    /// Wakes sleepers, until dropped.
    pub async fn run(self) {
        loop {
            let now_ms = UnixMs::now().0;
            let (woken, next) = {
                let mut times = self.times();
                let woken = times.take_due(now_ms);
                (woken, times.due.first_key_value().map(|((at, _), _)| *at))
            };
            for sleeper in woken {
                sleeper.wake();
            }
            let wait = next.map_or(LOOK_MAX, |at| {
                Duration::from_millis(at.saturating_sub(now_ms)).min(LOOK_MAX)
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.changed.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::mpsc;

    use super::*;

    struct Tells(u8, mpsc::UnboundedSender<u8>);

    impl Sleeper for Tells {
        fn wake(self: Arc<Self>) {
            let _ = self.1.send(self.0);
        }
    }

    #[tokio::test]
    async fn sleepers_wake_in_order_and_only_at_their_last_wish() {
        let wheel = Wheel::default();
        let (tell, mut told) = mpsc::unbounded_channel();
        let sleepers: Vec<Arc<dyn Sleeper>> = (0..4)
            .map(|n| Arc::new(Tells(n, tell.clone())) as Arc<dyn Sleeper>)
            .collect();
        let task = tokio::spawn(wheel.clone().run());
        let now = UnixMs::now().0;
        let set = |n: usize, at| wheel.set(n as u64, at, Arc::downgrade(&sleepers[n]));
        set(0, Some(now + 80));
        set(1, Some(now + 40));
        set(2, Some(now));
        set(3, Some(now + 20));
        set(3, None);
        set(1, Some(now + 60));
        let mut order = Vec::new();
        for _ in 0..3 {
            let next = tokio::time::timeout(Duration::from_secs(20), told.recv());
            order.push(next.await.unwrap().unwrap());
        }
        assert_eq!(order, [2, 1, 0]);
        assert!(wheel.times().of.is_empty() && wheel.times().due.is_empty());
        task.abort();
    }
}
