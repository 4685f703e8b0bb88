//! Where requests wait for an instance: one line per service and instance, first come first
//! served, and bounded.
//!
//! Invariants
//! - A line that has waiters has one whose turn it is; only that one may ask an instance. It
//!   keeps its turn until it leaves, or finds one in the line that came before it.
//! - A place is left when its [`Place`] is dropped: a caller who goes away frees it.
//!
//! Limits: [`WAITING_MAX`] in all with [`WAITING_BYTES_MAX`] of bodies, [`WAITING_PER_SERVICE_MAX`]
//! per service. Locks are spread over [`SHARDS`], held for a few map operations, and not taken at
//! all where nobody waits.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
};
use tokio::sync::Notify;

/// Requests that wait at a gateway: some KiB each, besides their bodies.
pub const WAITING_MAX: usize = 10_000;
/// Bytes of their bodies together: a small gateway's memory.
pub const WAITING_BYTES_MAX: usize = 256 << 20;
/// Requests that wait for one service: one that is down must not use up all places.
pub const WAITING_PER_SERVICE_MAX: usize = 2_048;
/// Locks that the lines are spread over.
const SHARDS: usize = 64;

/// All lines.
pub(crate) struct Waiting {
    shards: Box<[Shard]>,
    total: AtomicUsize,
    bytes: AtomicUsize,
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    /// Waiters in this shard, to pass it without its lock when there are none.
    waiters: AtomicUsize,
    services: Mutex<HashMap<ServiceName, Lines>>,
}

#[derive(Default)]
struct Lines {
    waiters: usize,
    lines: BTreeMap<Option<u32>, Line>,
}

struct Line {
    waiters: BTreeMap<u64, Arc<Notify>>,
    turn: u64,
    open: bool,
}

/// A place in a line.
pub(crate) struct Place {
    waiting: Arc<Waiting>,
    service: ServiceName,
    target: Option<u32>,
    ticket: u64,
    bytes: usize,
    called: Arc<Notify>,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            total: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, service: &ServiceName) -> &Shard {
        let hash = self.hasher.hash_one(service);
        let at = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
        &self.shards[at]
    }

    /// Whether somebody waits there already: then who comes now goes behind.
    pub(crate) fn any(&self, service: &ServiceName, target: Option<u32>) -> bool {
        let shard = self.shard(service);
        shard.waiters.load(Ordering::Acquire) > 0
            && lock(&shard.services)
                .get(service)
                .is_some_and(|lines| lines.lines.contains_key(&target))
    }

    /// Takes a place for a request with a body of `bytes`. Tickets are unique; a lower one came
    /// before. An instance that has just refused it is told by [`Place::refused`].
    pub(crate) fn enter(
        self: &Arc<Self>,
        service: &ServiceName,
        target: Option<u32>,
        ticket: u64,
        bytes: usize,
    ) -> Result<Place, Problem> {
        let total = self.total.fetch_add(1, Ordering::AcqRel);
        let held = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let shard = self.shard(service);
        let mut services = lock(&shard.services);
        let waiters = services.get(service).map_or(0, |lines| lines.waiters);
        let full = total >= WAITING_MAX || waiters >= WAITING_PER_SERVICE_MAX;
        if full || held.saturating_add(bytes) > WAITING_BYTES_MAX {
            self.total.fetch_sub(1, Ordering::AcqRel);
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            let message = format!(
                "{waiters} requests wait for `{service}`, and {total} with {held} bytes at this \
                 gateway: no more than {WAITING_PER_SERVICE_MAX}, and {WAITING_MAX} with \
                 {WAITING_BYTES_MAX} bytes, may"
            );
            return Err(Problem::new(Code::Busy, message));
        }
        let lines = services.entry(service.clone()).or_default();
        lines.waiters += 1;
        shard.waiters.fetch_add(1, Ordering::AcqRel);
        let called = Arc::new(Notify::new());
        let line = lines.lines.entry(target).or_insert_with(|| Line {
            waiters: BTreeMap::new(),
            turn: ticket,
            open: false,
        });
        line.waiters.insert(ticket, Arc::clone(&called));
        drop(services);
        Ok(Place {
            waiting: Arc::clone(self),
            service: service.clone(),
            target,
            ticket,
            bytes,
            called,
        })
    }

    /// Requests that wait now.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held; if it did, the maps are still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Gives the turn to the first in line.
    fn pass(&mut self) {
        if let Some((&first, called)) = self.waiters.first_key_value() {
            self.turn = first;
            called.notify_one();
        }
    }
}

impl Place {
    fn line<T>(&self, look: impl FnOnce(&mut Line) -> T) -> Option<T> {
        let mut services = lock(&self.waiting.shard(&self.service).services);
        let line = services
            .get_mut(&self.service)
            .and_then(|lines| lines.lines.get_mut(&self.target));
        line.map(look)
    }

    /// Returns when it is this one's turn, giving way to any that came before. Cancel-safe.
    pub(crate) async fn turn(&self) {
        loop {
            let mine = self.line(|line| {
                let first = line.waiters.first_key_value().map(|(&ticket, _)| ticket);
                if line.turn == self.ticket && first != Some(self.ticket) {
                    line.pass();
                }
                line.turn == self.ticket
            });
            // The line is there as long as this place is in it.
            if mine.unwrap_or(true) {
                return;
            }
            self.called.notified().await;
        }
    }

    /// Whether the one before got through: then each may ask as soon as the one before it has
    /// begun to. If not, the first asks alone, as a scout.
    pub(crate) fn open(&self) -> bool {
        self.line(|line| line.open).unwrap_or(false)
    }

    /// Says that this one got through, and leaves.
    pub(crate) fn got_through(self) {
        self.line(|line| line.open = true);
    }

    /// Says that an instance refused: the line is not open.
    pub(crate) fn refused(&self) {
        self.line(|line| line.open = false);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shard = self.waiting.shard(&self.service);
        let mut services = lock(&shard.services);
        if let Some(lines) = services.get_mut(&self.service) {
            lines.waiters -= 1;
            if let Some(line) = lines.lines.get_mut(&self.target) {
                line.waiters.remove(&self.ticket);
                if line.turn == self.ticket {
                    line.pass();
                }
                if line.waiters.is_empty() {
                    lines.lines.remove(&self.target);
                }
            }
            if lines.waiters == 0 {
                services.remove(&self.service);
            }
        }
        shard.waiters.fetch_sub(1, Ordering::AcqRel);
        self.waiting.total.fetch_sub(1, Ordering::AcqRel);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn turns_come_by_ticket_and_leaving_passes_them_on() {
        let waiting = Arc::new(Waiting::new());
        let enter = |ticket| waiting.enter(&name("a"), Some(1), ticket, 0).unwrap();
        let ready = |place: &Place| place.turn().now_or_never().is_some();
        let (five, three, nine) = (enter(5), enter(3), enter(9));
        assert!(!ready(&three), "5 was first at the line and has not looked");
        assert!(!ready(&five), "it gives way to 3");
        assert!(ready(&three) && !ready(&nine));
        drop(five);
        assert!(ready(&three) && !ready(&nine));
        drop(three);
        assert!(ready(&nine));
        assert!(waiting.any(&name("a"), Some(1)) && !waiting.any(&name("a"), None));
        drop(nine);
        assert!(!waiting.any(&name("a"), Some(1)));
        assert_eq!(waiting.total(), 0);
    }

    #[test]
    fn a_line_is_open_once_one_got_through_and_until_a_refusal() {
        let waiting = Arc::new(Waiting::new());
        let enter = |ticket| waiting.enter(&name("a"), None, ticket, 0).unwrap();
        let (one, two) = (enter(1), enter(2));
        assert!(!two.open());
        one.got_through();
        assert!(two.open() && two.turn().now_or_never().is_some());
        let three = enter(3);
        assert!(three.open());
        enter(0).refused();
        assert!(!three.open());
    }

    #[test]
    fn places_are_bounded_per_service_and_in_all() {
        let waiting = Arc::new(Waiting::new());
        let mut places = Vec::new();
        let mut ticket = 0;
        let mut fill = |service: &str, places: &mut Vec<Place>| {
            loop {
                ticket += 1;
                match waiting.enter(&name(service), Some(0), ticket, 1) {
                    Ok(place) => places.push(place),
                    Err(problem) => return problem.code,
                }
            }
        };
        assert_eq!(fill("a", &mut places), Code::Busy);
        assert_eq!(places.len(), WAITING_PER_SERVICE_MAX);
        for service in ["b", "c", "d", "e", "f"] {
            fill(service, &mut places);
        }
        assert_eq!(places.len(), WAITING_MAX);
        places.truncate(1);
        fill("a", &mut places);
        assert_eq!(places.len(), WAITING_PER_SERVICE_MAX);
        drop(places);
        assert_eq!(waiting.total(), 0);
        let big = waiting.enter(&name("a"), None, 0, WAITING_BYTES_MAX);
        let one_more = waiting.enter(&name("a"), None, 1, 1);
        assert!(big.is_ok() && one_more.is_err());
    }
}
