//! One instance while it runs: an inbox, the guest, and what has happened but is not durable.
//!
//! ```text
//! ask ─► Inbox ─► turn (a guest worker) ─► Unsettled ─► keeper: durable ─► released
//! ```
//!
//! No thread and no task belongs to an actor: when there is something to do it is submitted to
//! the shared workers, does it for at most [`QUANTUM`], and goes to the back of the queue. So one
//! call runs at a time, and idle instances cost memory only.
//!
//! Invariants: items are handled in the order in which they came (timers that are due first, by turns); a
//! reply or effect is released in the order of the calls, and, for a durable instance, after the
//! image that contains it is durable.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, UnixMs},
    ownership::Token,
    spec::{Durability, State},
    wire::{ServiceRequest, ServiceWork, TopicMessage},
};
use hop3_runtime::{
    service::Image,
    wasm::{CancelToken, GuestThreads},
};
use tokio::sync::Notify;

use super::{
    desk::letters::Letter,
    inbox::{Ask, Inbox, Item, Phase, not_here},
    leases::Lease,
    links::Links,
    mail::Mail,
    release::{Release, World},
    ring::Ring,
    suspects::Suspects,
    turn::Cell,
    wheel::{Sleeper, SleeperId, Wheel},
};

/// Time on a worker before others have their turn.
pub const QUANTUM: Duration = Duration::from_millis(5);
/// Replies and effects that wait for the disk before the instance pauses.
pub const UNSETTLED_MAX: usize = 4096;
/// Bytes of them.
pub const UNSETTLED_BYTES_MAX: usize = 8 << 20;
/// Things let out on the event loop before others have their turn: one call may cause 10,000.
const RELEASES_AT_ONCE: usize = 128;
/// Between tries while every worker is taken and their queue full.
const AGAIN: Duration = Duration::from_millis(2);

/// What an actor is made of.
pub struct Parts {
    /// Its name.
    pub instance: InstanceId,
    /// The run.
    pub token: Token,
    /// What it runs.
    pub work: ServiceWork,
    /// Workers.
    pub threads: GuestThreads,
    /// The clock.
    pub wheel: Wheel,
    /// Its log.
    pub ring: Arc<Ring>,
    /// Where its effects go.
    pub world: Arc<dyn World>,
    /// Inputs that are not given to its guest.
    pub suspects: Suspects,
    /// Its right to run, if it is fenced.
    pub lease: Option<Lease>,
}

/// See the module.
pub struct Actor {
    pub(super) parts: Parts,
    pub(super) links: Links,
    pub(super) mail: Mail,
    inbox: Mutex<Inbox>,
    cell: Mutex<Option<Cell>>,
    unsettled: Mutex<Unsettled>,
    /// There is something to make durable.
    pub(super) settle: Notify,
    /// A turn ended and none follows.
    idle: Notify,
    /// Ends the call that runs.
    running: Mutex<Option<CancelToken>>,
    sleeper: SleeperId,
    runtime: tokio::runtime::Handle,
    in_flight: AtomicU64,
    me: Weak<Self>,
}

/// What happened and is not durable yet.
#[derive(Default)]
pub(super) struct Unsettled {
    /// The newest image, if it changed since the last was taken.
    pub(super) image: Option<Image>,
    pub(super) releases: Vec<Release>,
    bytes: usize,
    /// The keeper has taken some and is not done.
    taken: bool,
}

impl Unsettled {
    fn is_full(&self) -> bool {
        self.releases.len() >= UNSETTLED_MAX || self.bytes >= UNSETTLED_BYTES_MAX
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A turn that panics leaves the cell empty; everything else changes in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Actor {
    /// An actor that takes nothing yet. Needs a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let sleeper = parts.wheel.register();
        let inbox = Mutex::new(Inbox::new(parts.work.limits.queue));
        Arc::new_cyclic(|me| Self {
            parts,
            links: Links::default(),
            mail: Mail::default(),
            inbox,
            cell: Mutex::default(),
            unsettled: Mutex::default(),
            settle: Notify::new(),
            idle: Notify::new(),
            running: Mutex::default(),
            sleeper,
            runtime: tokio::runtime::Handle::current(),
            in_flight: AtomicU64::new(0),
            me: me.clone(),
        })
    }

    /// Whether what it acknowledges must be on the disk.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.is_stateful() && self.parts.work.durability != Durability::Memory
    }

    /// Whether what it acknowledges must be at the coordinator too.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        self.is_stateful() && self.parts.work.durability == Durability::Replicated
    }

    /// Waits until its right to run has ended; for ever if it needs none.
    pub(super) async fn fenced(&self) {
        match &self.parts.lease {
            Some(lease) => lease.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it has state that outlives a call.
    #[must_use]
    pub fn is_stateful(&self) -> bool {
        self.parts.work.state != State::None
    }

    /// Its name.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.parts.instance
    }

    /// The run.
    #[must_use]
    pub fn token(&self) -> Token {
        self.parts.token
    }

    /// What it runs.
    #[must_use]
    pub fn work(&self) -> &ServiceWork {
        &self.parts.work
    }

    /// Requests that were taken in and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether its guest was lost in a panic of the runtime.
    pub(super) fn is_lost(&self) -> bool {
        self.inbox().phase() == Phase::Ended
    }

    /// Whether it has changed since it was last stored.
    pub(super) fn has_changed(&self) -> bool {
        lock(&self.unsettled).image.is_some()
    }

    /// Requests and messages that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inbox().waiting()
    }

    /// Whether its changes cannot be stored at the moment.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.inbox().is_blocked()
    }

    /// Whether it serves now.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.inbox().phase() == Phase::Serving
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    // ---- taking in ----

    /// Takes a request in. The answer comes through `ask`, whatever happens.
    pub fn request(self: &Arc<Self>, request: ServiceRequest, ask: Ask) {
        let (bytes, most) = (request.body.len() as u64, self.parts.work.limits.request.0);
        if bytes > most {
            let message = format!("the body has {bytes} bytes; `limits.request` is {most}");
            return (ask.reply)(Err(Problem::new(Code::TooLarge, message)));
        }
        let ask = self.counted(ask);
        self.ask(Item::Request(Box::new(request), ask));
    }

    /// Takes a message in. The answer comes through `ask`, whatever happens.
    pub fn message(self: &Arc<Self>, message: TopicMessage, ask: Ask) {
        self.ask(Item::Message(Box::new(message), ask));
    }

    fn counted(self: &Arc<Self>, ask: Ask) -> Ask {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let (me, reply) = (self.me.clone(), ask.reply);
        let reply = move |result| {
            if let Some(me) = me.upgrade() {
                me.in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            reply(result);
        };
        Ask {
            reply: Box::new(reply),
            ..ask
        }
    }

    fn ask(self: &Arc<Self>, item: Item) {
        let taken = self.inbox().ask(item);
        let Err(refused) = taken else {
            return self.schedule();
        };
        if let (Item::Request(_, ask) | Item::Message(_, ask), problem) = *refused {
            (ask.reply)(Err(problem));
        }
    }

    /// Takes in what is bounded elsewhere.
    pub fn push(self: &Arc<Self>, item: Item) {
        self.inbox().push(item);
        self.schedule();
    }

    /// Sends a kept message on its way.
    pub(super) fn post(self: &Arc<Self>, number: u64, letter: Letter) {
        if self.mail.post(number, letter) {
            self.parts.world.carry(self);
        }
    }

    /// Where its tasks run.
    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Whether it may act now.
    pub(super) fn may_act(&self) -> bool {
        !self.is_lost() && self.parts.lease.as_ref().is_none_or(Lease::holds)
    }

    // ---- phases ----

    /// Begins to serve with a guest.
    pub(super) fn serve(self: &Arc<Self>, cell: Cell) {
        *lock(&self.cell) = Some(cell);
        let _ = self.inbox().set_phase(Phase::Serving);
        self.schedule();
    }

    /// Goes on after a sealing that failed.
    pub(super) fn resume(self: &Arc<Self>) {
        let _ = self.inbox().set_phase(Phase::Serving);
        self.schedule();
    }

    /// Takes no more, and waits until no call runs. What waits and has not begun is told so; the
    /// rest stays, in case it goes on.
    pub(super) async fn pause(&self) {
        self.close(Phase::Sealing);
        self.quiet().await;
    }

    /// Ends for good: the call that runs is cut off. The cell is given back if the guest is whole.
    pub(super) async fn end(&self) -> Option<Cell> {
        self.close(Phase::Ended);
        if let Some(running) = &*lock(&self.running) {
            running.cancel();
        }
        self.quiet().await;
        self.links.end();
        let nobody: Weak<Self> = Weak::new();
        self.parts.wheel.set(self.sleeper, None, nobody);
        lock(&self.cell).take()
    }

    fn close(&self, phase: Phase) {
        let asks = self.inbox().set_phase(phase);
        let why = match phase {
            Phase::Ended => not_here(),
            _ => super::inbox::not_ready("it moves"),
        };
        refuse(asks, &why);
    }

    async fn quiet(&self) {
        loop {
            let idle = self.idle.notified();
            if !self.inbox().scheduled {
                return;
            }
            idle.await;
        }
    }

    /// Changes cannot be stored, or can again.
    pub(super) fn set_blocked(self: &Arc<Self>, why: Option<Problem>) {
        let asks = self.inbox().set_blocked(why.clone());
        match why {
            Some(why) => refuse(asks, &why),
            None => self.schedule(),
        }
    }

    // ---- turns ----

    /// Makes sure that a worker comes by, if there is anything to do.
    pub(super) fn schedule(self: &Arc<Self>) {
        {
            let mut inbox = self.inbox();
            if inbox.scheduled || !inbox.runnable() {
                return;
            }
            inbox.scheduled = true;
        }
        self.submit();
    }

    fn submit(self: &Arc<Self>) {
        let me = self.clone();
        if self.parts.threads.submit(move || me.turn()).is_ok() {
            return;
        }
        let me = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(AGAIN).await;
            me.submit();
        });
    }

    /// One turn on a worker.
    fn turn(self: Arc<Self>) {
        let mut ended = TurnEnd {
            actor: &self,
            again: false,
            whole: false,
        };
        let began = Instant::now();
        let mut slot = lock(&self.cell);
        let Some(mut cell) = slot.take() else {
            return;
        };
        cell.begin(&self);
        loop {
            if lock(&self.unsettled).is_full() {
                // The keeper schedules it when there is room.
                break;
            }
            if began.elapsed() >= QUANTUM {
                ended.again = true;
                break;
            }
            if !self.inbox().runnable() || !cell.step(&self) {
                break;
            }
        }
        let at = cell.next_wake(&self);
        *slot = Some(cell);
        drop(slot);
        ended.whole = true;
        let me: Weak<Self> = self.me.clone();
        self.parts.wheel.set(self.sleeper, at, me);
    }

    /// The next item, if it can be handled now.
    pub(super) fn pop(&self) -> Option<Item> {
        self.inbox().pop()
    }

    /// Notes which call runs, so that it can be ended.
    pub(super) fn set_running(&self, cancel: Option<CancelToken>) {
        if let Some(cancel) = &cancel
            && self.inbox().phase() == Phase::Ended
        {
            cancel.cancel();
        }
        *lock(&self.running) = cancel;
    }

    /// What a handled item led to: released now, or when it is durable.
    pub(super) fn settle(self: &Arc<Self>, image: Option<Image>, releases: Vec<Release>) {
        let changed = image.is_some();
        let now = {
            let mut unsettled = lock(&self.unsettled);
            if changed {
                unsettled.image = image;
            }
            let waits = changed || unsettled.image.is_some() || unsettled.taken;
            if self.is_durable() && waits {
                unsettled.bytes += releases.iter().map(Release::bytes).sum::<usize>();
                unsettled.releases.extend(releases);
                Vec::new()
            } else {
                releases
            }
        };
        if changed || now.is_empty() {
            self.settle.notify_one();
        }
        self.release(now);
    }

    /// Carries out what may leave.
    pub(super) fn release(self: &Arc<Self>, releases: Vec<Release>) {
        let may = self.parts.lease.as_ref().is_none_or(Lease::holds);
        for release in releases {
            if may {
                release.carry_out(self);
            } else {
                release.withhold();
            }
        }
    }

    /// What is to be made durable, with what waits for it. To be followed by
    /// [`settled`](Self::settled).
    pub(super) fn take_unsettled(&self) -> Unsettled {
        let mut unsettled = lock(&self.unsettled);
        let taken = std::mem::take(&mut *unsettled);
        unsettled.taken = true;
        taken
    }

    /// Carries out what may leave, without keeping the event loop for long.
    pub(super) async fn release_by_turns(self: &Arc<Self>, releases: Vec<Release>) {
        let mut releases = releases.into_iter();
        loop {
            self.release(releases.by_ref().take(RELEASES_AT_ONCE).collect());
            if releases.len() == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// What was taken is durable, and has left.
    pub(super) fn settled(self: &Arc<Self>) {
        lock(&self.unsettled).taken = false;
        self.schedule();
    }

    /// What was taken could not be made durable: it waits again, before what came meanwhile.
    pub(super) fn unsettle(&self, taken: Unsettled) {
        let mut unsettled = lock(&self.unsettled);
        let newer = std::mem::replace(&mut *unsettled, taken);
        unsettled.taken = false;
        unsettled.bytes += newer.bytes;
        unsettled.releases.extend(newer.releases);
        if newer.image.is_some() {
            unsettled.image = newer.image;
        }
    }

    /// The image now. Only while no turn runs.
    pub(super) fn image(&self) -> Option<Image> {
        let mut slot = lock(&self.cell);
        let cell = slot.as_mut()?;
        Some(cell.flush().clone())
    }

    /// Keeps lines of the guest's log.
    pub(super) fn log(&self, lines: &[hop3_runtime::service::LogLine]) {
        self.parts.ring.add(UnixMs::now(), lines);
    }
}

/// Ends a turn, however it ends.
struct TurnEnd<'a> {
    actor: &'a Arc<Actor>,
    again: bool,
    /// The guest is back in its place. Else the turn panicked, and the instance is lost.
    whole: bool,
}

impl Drop for TurnEnd<'_> {
    fn drop(&mut self) {
        if !self.whole {
            self.actor.close(Phase::Ended);
            self.actor.settle.notify_one();
        }
        let again = {
            let mut inbox = self.actor.inbox();
            let again = inbox.runnable() && (self.again || !inbox.is_empty());
            let again = again && !lock(&self.actor.unsettled).is_full();
            inbox.scheduled = again;
            again
        };
        if again {
            self.actor.submit();
        } else {
            self.actor.idle.notify_waiters();
        }
    }
}

impl Sleeper for Actor {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}

/// Tells everybody who waits why they did not begin.
fn refuse(asks: Vec<Ask>, why: &Problem) {
    for ask in asks {
        (ask.reply)(Err(why.clone()));
    }
}
