//! Keeps a client stream attached to its instance, wherever that is, and carries data between it
//! and the client's connection.
//!
//! Limits: [`UP_PIECES`] and [`DOWN_PIECES`] between connection and relay, besides the machine's
//! own; a link that takes nothing for [`SEND_TIMEOUT`] is broken; without an instance for
//! `Options::stream_patience` the stream is lost; when the client has gone, its close is tried to
//! be told for as long. [`CLOSING_MAX`] streams beyond `Options::streams_max` may be in closing.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    wire::ClientDown,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::machine::{Item, Machine, Violation};
use crate::{Delivered, Gateway, Instance, Link, Pick, delivery::changed, policy};

/// Pieces from the client in hand: each at most 1 MiB.
const UP_PIECES: usize = 2;
/// Pieces for the client in hand.
const DOWN_PIECES: usize = 4;
/// Time for one attempt to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a link to take one frame.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a finished link is kept for its last acknowledgement to arrive.
const LINGER: Duration = Duration::from_secs(2);
/// Streams that are only being closed, beyond those that may be open.
const CLOSING_MAX: u64 = 1_000;
/// Close codes: the client has gone; the stream is broken; there is no instance.
const GOING_AWAY: u16 = 1001;
const BROKEN: u16 = 1011;
const TRY_AGAIN: u16 = 1013;

/// A client stream that an instance opened and nobody attached to yet. Dropped, it is closed.
pub(crate) struct Opened {
    parts: Option<Parts>,
}

struct Parts {
    gateway: Gateway,
    service: ServiceName,
    index: u32,
    stream: u64,
    full: bool,
    _count: Count,
}

/// Counts an open stream.
struct Count(Gateway);

/// The side of the client's connection.
pub(crate) struct Client {
    /// From the client. Dropping it does not close.
    pub(crate) up: mpsc::Sender<Item>,
    /// To the client. Dropping it says that the client has gone.
    pub(crate) down: mpsc::Receiver<Down>,
}

/// What comes for the client. If it ends without [`Item::Close`], the stream broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Down {
    /// From the instance.
    Item(Item),
    /// The stream broke; a WebSocket close code that says why.
    Lost(u16),
}

/// Why there is no link.
enum NoLink {
    /// Later perhaps.
    Later,
    /// Never again.
    Gone(Problem),
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.inner.counters.streams.fetch_sub(1, Relaxed);
    }
}

impl Gateway {
    /// The client stream that a reply opened.
    pub(crate) fn opened(&self, service: &ServiceName, delivered: &Delivered) -> Option<Opened> {
        let stream = delivered.reply.stream?;
        let open = self.inner.counters.streams.fetch_add(1, Relaxed);
        let max = self.inner.options.streams_max;
        let count = Count(self.clone());
        if open >= max.saturating_add(CLOSING_MAX) {
            tracing::warn!(%service, stream, "a client stream beyond all bounds was not closed");
            return Some(Opened { parts: None });
        }
        let parts = Parts {
            gateway: self.clone(),
            service: service.clone(),
            index: delivered.index,
            stream,
            full: open >= max,
            _count: count,
        };
        Some(Opened { parts: Some(parts) })
    }

    /// Closes the client stream that a reply opened, for a caller that has no use for it: another
    /// service. Returns at once.
    pub fn close_stream(&self, service: &ServiceName, delivered: &Delivered) {
        drop(self.opened(service, delivered));
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (relay, client) = Relay::new(parts);
            drop(client);
            runtime.spawn(relay.run());
        }
    }
}

impl Opened {
    /// The relay, to be run, and the client's side of it.
    ///
    /// # Errors
    /// Too many streams are open; this one will be closed.
    pub(crate) fn relay(mut self) -> Result<(Relay, Client), Problem> {
        match self.parts.take() {
            Some(parts) if !parts.full => Ok(Relay::new(parts)),
            parts => {
                self.parts = parts;
                let message = "too many client streams are open at this gateway";
                Err(Problem::new(Code::Busy, message))
            }
        }
    }
}

/// See the module's head.
pub(crate) struct Relay {
    parts: Parts,
    machine: Machine,
    up: Option<mpsc::Receiver<Item>>,
    down: Option<mpsc::Sender<Down>>,
    /// For the client, when it has room.
    held: Option<Item>,
    /// The client has gone; until when its close is tried to be told.
    gone: Option<Instant>,
}

impl Relay {
    fn new(parts: Parts) -> (Self, Client) {
        let (up_in, up) = mpsc::channel(UP_PIECES);
        let (down, down_out) = mpsc::channel(DOWN_PIECES);
        let relay = Self {
            machine: Machine::new(parts.stream),
            parts,
            up: Some(up),
            down: Some(down),
            held: None,
            gone: None,
        };
        let client = Client {
            up: up_in,
            down: down_out,
        };
        (relay, client)
    }

    /// Runs until the stream is closed or lost.
    pub(crate) async fn run(mut self) {
        let patience = self.parts.gateway.inner.options.stream_patience;
        let mut tries = 0;
        loop {
            let progress = self.machine.progress();
            let until = Instant::now() + patience;
            let until = self.gone.map_or(until, |gone| gone.min(until));
            let mut link = match timeout_at(until, self.link(&mut tries)).await {
                Ok(Ok(link)) => link,
                Ok(Err(problem)) => return self.lost(BROKEN, &problem),
                Err(_) => {
                    let message = format!("its instance was away for {patience:?}");
                    return self.lost(TRY_AGAIN, &Problem::new(Code::ServiceNotReady, message));
                }
            };
            match self.carry(&mut *link).await {
                Ok(()) => return linger(&mut *link).await,
                Err(Some(violation @ Violation::Lost { .. })) => {
                    let problem = Problem::new(Code::StreamGone, violation.to_string());
                    return self.lost(BROKEN, &problem);
                }
                Err(Some(violation)) => {
                    let service = &self.parts.service;
                    tracing::warn!(%service, %violation, "a client stream attaches again");
                }
                Err(None) => {}
            }
            if self.machine.progress() == progress {
                // Links that break at once must not make it spin.
                tries += 1;
                tokio::time::sleep(policy::pause(tries)).await;
            } else {
                tries = 0;
            }
        }
    }

    fn lost(self, code: u16, problem: &Problem) {
        let Parts { service, index, .. } = &self.parts;
        tracing::info!(%service, index, %problem, "a client stream is lost");
        if let Some(down) = self.down {
            // If there is no room, the end of the channel says the same.
            let _ = down.try_send(Down::Lost(code));
        }
    }

    /// A link, attached; waits until there is one.
    async fn link(&mut self, tries: &mut u32) -> Result<Box<dyn Link>, Problem> {
        let router = Arc::clone(&self.parts.gateway.inner.router);
        loop {
            let version = router.version();
            if *tries > 0 {
                router.service(&self.parts.service)?;
            }
            let picked = router.pick(&self.parts.service, Some(self.parts.index));
            let wait = match picked {
                Pick::Wait(_) => policy::PAUSE_MAX,
                Pick::Ready(instances) => match self.try_link(&instances).await {
                    Ok(link) => return Ok(link),
                    Err(NoLink::Gone(problem)) => return Err(problem),
                    Err(NoLink::Later) => {
                        tokio::time::sleep(policy::ATTEMPT_FLOOR).await;
                        policy::pause(tries.saturating_add(1))
                    }
                },
            };
            *tries = tries.saturating_add(1);
            changed(&*router, version, wait).await;
        }
    }

    /// Attaches once.
    async fn try_link(&mut self, to: &[Arc<dyn Instance>]) -> Result<Box<dyn Link>, NoLink> {
        let instance = to.first().ok_or(NoLink::Later)?;
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        let link = instance.attach(self.machine.attach(), deadline.into_std());
        let link = timeout_at(deadline, link).await;
        let link = link.map_err(|_| NoLink::Later)?;
        self.begin(link.map_err(later)?, deadline).await
    }

    /// Reads a link's first frame.
    async fn begin(
        &mut self,
        mut link: Box<dyn Link>,
        deadline: Instant,
    ) -> Result<Box<dyn Link>, NoLink> {
        let first = timeout_at(deadline, link.recv()).await;
        match first {
            Ok(Some(ClientDown::Attached { received })) => {
                let attached = self.machine.attached(received);
                attached.map_err(|violation| {
                    NoLink::Gone(Problem::new(Code::StreamGone, violation.to_string()))
                })?;
                Ok(link)
            }
            Ok(Some(ClientDown::Refused(problem))) => Err(later(problem)),
            Ok(_) | Err(_) => Err(NoLink::Later),
        }
    }

    /// Carries data until the stream has ended, or the link broke.
    async fn carry(&mut self, link: &mut dyn Link) -> Result<(), Option<Violation>> {
        loop {
            while let Some(frame) = self.machine.next() {
                match timeout(SEND_TIMEOUT, link.send(frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Err(None),
                }
            }
            if self.machine.finished() || (self.gone.is_some() && self.machine.hung_up()) {
                return Ok(());
            }
            let give_up = self.gone.unwrap_or_else(Instant::now);
            let room = self.machine.room();
            let (up, down) = (&mut self.up, &self.down);
            tokio::select! {
                frame = link.recv(), if self.held.is_none() => {
                    let item = self.machine.receive(frame.ok_or(None)?).map_err(Some)?;
                    // Who has gone gets nothing more, and what it does not get is not
                    // acknowledged.
                    self.held = item.filter(|_| self.down.is_some());
                }
                () = room_for(down), if self.held.is_some() => self.hand_over(),
                () = closed(down), if down.is_some() && self.held.is_none() => self.went(),
                item = take(up), if up.is_some() && room => match item {
                    Some(item) => self.machine.push(item),
                    None => self.up = None,
                },
                () = sleep_until(give_up), if self.gone.is_some() => return Ok(()),
            }
        }
    }

    /// Gives the client what is held for it.
    fn hand_over(&mut self) {
        let item = self.held.take().map(Down::Item);
        let sent = item
            .zip(self.down.as_ref())
            .map(|(item, down)| down.try_send(item));
        match sent {
            Some(Ok(())) => self.machine.delivered(),
            _ => self.went(),
        }
    }

    /// The client has gone: what it sent last is sent on, and its close.
    fn went(&mut self) {
        self.down = None;
        self.held = None;
        while let Some(Ok(item)) = self.up.as_mut().map(mpsc::Receiver::try_recv) {
            self.machine.push(item);
        }
        self.up = None;
        if !self.machine.closed_up() {
            self.machine.push(Item::Close { code: GOING_AWAY });
        }
        let patience = self.parts.gateway.inner.options.stream_patience;
        self.gone = Some(Instant::now() + patience);
    }
}

fn later(problem: Problem) -> NoLink {
    match problem.code {
        Code::StreamGone | Code::ServiceUnknown => NoLink::Gone(problem),
        _ => NoLink::Later,
    }
}

/// Waits for room for one more, or until the client has gone.
async fn room_for(down: &Option<mpsc::Sender<Down>>) {
    if let Some(down) = down {
        // Nobody else sends: the room stays when the permit is given back.
        let _ = down.reserve().await;
    }
}

async fn closed(down: &Option<mpsc::Sender<Down>>) {
    if let Some(down) = down {
        down.closed().await;
    }
}

async fn take(up: &mut Option<mpsc::Receiver<Item>>) -> Option<Item> {
    match up {
        Some(up) => up.recv().await,
        None => None,
    }
}

/// Waits for the other side to take the last frame and to end the link.
async fn linger(link: &mut dyn Link) {
    let end = async { while link.recv().await.is_some() {} };
    // If it does not end, it is dropped.
    let _ = timeout(LINGER, end).await;
}
