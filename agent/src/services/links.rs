//! The client streams of an instance as the world sees them: only what is durable, numbered both
//! ways, to whoever holds the client's connection at the moment.
//!
//! ```text
//! guest ─► desk (with its state) ─ durable ─► Links ─► Attached ─► client
//! client ─► Attached ─► inbox ─► guest ─ durable ─► Links: acknowledged
//! ```
//!
//! A newer attachment replaces the older. A stream that nobody is attached to for
//! [`ABSENCE_MAX`] is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    wire::ClientDown,
};
use tokio::sync::Notify;

use super::desk::lines::{Lines, Piece};

/// Time without an attached client until the guest is told that it is gone.
pub const ABSENCE_MAX: Duration = Duration::from_secs(30);
/// Pieces of a client that wait for the instance, per stream.
pub const WAITING_MAX: usize = 16;

#[derive(Default)]
struct Line {
    /// For the client: durable, not acknowledged.
    pieces: VecDeque<(u64, Piece)>,
    /// From the client: handled durably.
    received: u64,
    /// From the client: taken in.
    queued: u64,
    /// From the client: taken in, not handled.
    waiting: usize,
    /// Who is attached.
    link: Option<u64>,
    absent_since: Option<Instant>,
    /// Anything of this changed.
    changed: Arc<Notify>,
}

impl Line {
    fn new(now: Instant) -> Self {
        Self {
            absent_since: Some(now),
            ..Self::default()
        }
    }
}

#[derive(Default)]
struct Table {
    lines: BTreeMap<u64, Line>,
    /// What clients have acknowledged since the instance last looked.
    acks: BTreeMap<u64, u64>,
    last_link: u64,
    /// What the desk held is here: before that, nobody knows which streams there are.
    loaded: bool,
    ended: bool,
}

/// See the module.
#[derive(Default)]
pub struct Links(Mutex<Table>);

fn gone(stream: u64) -> Problem {
    let message = format!("client stream {stream} is gone: it was closed, or nobody held it");
    Problem::new(Code::StreamGone, message)
}

impl Links {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a desk holds when its instance begins: all of it is durable.
    pub fn load(&self, lines: &Lines, now: Instant) {
        let mut table = self.table();
        for (stream, line) in lines.iter() {
            let mut loaded = Line::new(now);
            loaded.received = line.received();
            loaded.queued = line.received();
            loaded.pieces = line.pieces().map(|(n, piece)| (n, piece.clone())).collect();
            table.lines.insert(stream, loaded);
        }
        table.loaded = true;
    }

    /// A stream was opened, durably.
    pub fn open(&self, stream: u64, now: Instant) {
        let mut table = self.table();
        table.lines.entry(stream).or_insert_with(|| Line::new(now));
    }

    /// Something for the client is durable.
    pub fn send(&self, stream: u64, seq: u64, piece: Piece) {
        if let Some(line) = self.table().lines.get_mut(&stream) {
            line.pieces.push_back((seq, piece));
            line.changed.notify_waiters();
        }
    }

    /// Something of the client was handled, durably.
    pub fn handled(&self, stream: u64, seq: u64) {
        if let Some(line) = self.table().lines.get_mut(&stream) {
            line.received = line.received.max(seq);
            line.changed.notify_waiters();
        }
    }

    /// Something of the client left the inbox.
    pub fn taken(&self, stream: u64) {
        if let Some(line) = self.table().lines.get_mut(&stream) {
            line.waiting = line.waiting.saturating_sub(1);
            line.changed.notify_waiters();
        }
    }

    /// A stream is no more.
    pub fn remove(&self, stream: u64) {
        let mut table = self.table();
        table.acks.remove(&stream);
        if let Some(line) = table.lines.remove(&stream) {
            line.changed.notify_waiters();
        }
    }

    /// The instance is no more here: every attachment ends.
    pub fn end(&self) {
        let mut table = self.table();
        table.ended = true;
        for line in std::mem::take(&mut table.lines).into_values() {
            line.changed.notify_waiters();
        }
    }

    /// What clients acknowledged since the last time.
    #[must_use]
    pub fn take_acks(&self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut self.table().acks)
    }

    /// Streams that nobody has held for too long. Each is told once.
    #[must_use]
    pub fn take_absent(&self, now: Instant) -> Vec<u64> {
        let mut absent = Vec::new();
        for (stream, line) in &mut self.table().lines {
            if line
                .absent_since
                .is_some_and(|since| now >= since + ABSENCE_MAX)
            {
                line.absent_since = None;
                absent.push(*stream);
            }
        }
        absent
    }

    /// When the next stream will have been without a client for too long.
    #[must_use]
    pub fn next_absence(&self) -> Option<Instant> {
        let table = self.table();
        let since = table.lines.values().filter_map(|line| line.absent_since);
        since.min().map(|since| since + ABSENCE_MAX)
    }

    /// Attaches to a stream whose client has everything up to `received`.
    ///
    /// # Errors
    /// The stream is gone; or the instance is not here yet, or no more.
    pub fn attach(&self, stream: u64, received: u64) -> Result<Cursor, Problem> {
        let mut table = self.table();
        if !table.loaded || table.ended {
            let message = "the instance starts, or has left: attach again";
            return Err(Problem::new(Code::ServiceNotReady, message));
        }
        table.last_link += 1;
        let link = table.last_link;
        let line = table.lines.get_mut(&stream).ok_or_else(|| gone(stream))?;
        line.link = Some(link);
        line.absent_since = None;
        line.changed.notify_waiters();
        let ticket = Ticket { stream, link };
        let cursor = Cursor {
            ticket,
            sent: received,
            acked: line.received,
            greeting: Some(line.received),
        };
        drop(table);
        self.acked(ticket, received);
        Ok(cursor)
    }

    /// Whoever held the stream let it go.
    pub fn detach(&self, ticket: Ticket, now: Instant) -> bool {
        let mut table = self.table();
        match table.lines.get_mut(&ticket.stream) {
            Some(line) if line.link == Some(ticket.link) => {
                line.link = None;
                line.absent_since = Some(now);
                true
            }
            _ => false,
        }
    }

    /// The client has everything up to `seq`.
    pub fn acked(&self, ticket: Ticket, seq: u64) {
        let mut table = self.table();
        let Some(line) = table.lines.get_mut(&ticket.stream) else {
            return;
        };
        if line.link != Some(ticket.link) {
            return;
        }
        let before = line.pieces.len();
        line.pieces.retain(|(n, _)| *n > seq);
        if line.pieces.len() < before {
            table.acks.insert(ticket.stream, seq);
        }
    }

    /// The next frame for whoever holds `cursor`; waits for one. `None`: the attachment is over.
    /// Cancel-safe.
    pub async fn next(&self, cursor: &mut Cursor) -> Option<ClientDown> {
        loop {
            let changed = {
                let table = self.table();
                let line = table.lines.get(&cursor.ticket.stream)?;
                if line.link != Some(cursor.ticket.link) {
                    return None;
                }
                if let Some(frame) = cursor.frame(line) {
                    return Some(frame);
                }
                let changed = line.changed.clone().notified_owned();
                drop(table);
                changed
            };
            changed.await;
        }
    }

    /// Admits a piece of the client: `Ok(true)` if it is to be handled, `Ok(false)` if it was
    /// already. Waits while too many wait.
    ///
    /// # Errors
    /// The stream is gone, or the numbering has a gap.
    pub async fn admit(&self, ticket: Ticket, seq: u64) -> Result<bool, Problem> {
        loop {
            let changed = {
                let mut table = self.table();
                if table.ended {
                    return Err(super::inbox::not_here());
                }
                let line = table.lines.get_mut(&ticket.stream);
                let line = line.filter(|line| line.link == Some(ticket.link));
                let line = line.ok_or_else(|| gone(ticket.stream))?;
                if seq <= line.queued {
                    return Ok(false);
                }
                if seq != line.queued + 1 {
                    let message = format!("piece {seq} of a stream came after {}", line.queued);
                    return Err(Problem::new(Code::Protocol, message));
                }
                if line.waiting < WAITING_MAX {
                    line.queued = seq;
                    line.waiting += 1;
                    return Ok(true);
                }
                let changed = line.changed.clone().notified_owned();
                drop(table);
                changed
            };
            changed.await;
        }
    }
}

/// Names one attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    stream: u64,
    link: u64,
}

impl Ticket {
    /// Which stream.
    #[must_use]
    pub fn stream(self) -> u64 {
        self.stream
    }
}

/// One attachment, and how far its client is.
#[derive(Debug)]
pub struct Cursor {
    ticket: Ticket,
    sent: u64,
    acked: u64,
    greeting: Option<u64>,
}

impl Cursor {
    /// Its name.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    fn frame(&mut self, line: &Line) -> Option<ClientDown> {
        if let Some(received) = self.greeting.take() {
            return Some(ClientDown::Attached { received });
        }
        if line.received > self.acked {
            self.acked = line.received;
            return Some(ClientDown::Ack { seq: self.acked });
        }
        // Pieces are in order: what was not acknowledged and not sent on this attachment.
        let at = line.pieces.partition_point(|(seq, _)| *seq <= self.sent);
        let (seq, piece) = line.pieces.get(at)?;
        self.sent = *seq;
        Some(match piece.clone() {
            Piece::Data { text, bytes } => ClientDown::Data {
                seq: *seq,
                text,
                bytes,
            },
            Piece::Close { code } => ClientDown::Close { seq: *seq, code },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Of an instance that begins without streams.
    fn loaded() -> Links {
        let links = Links::default();
        links.load(&Lines::default(), Instant::now());
        links
    }

    fn data(text: &'static str) -> Piece {
        Piece::Data {
            text: true,
            bytes: text.into(),
        }
    }

    async fn next(links: &Links, cursor: &mut Cursor) -> ClientDown {
        let next = tokio::time::timeout(Duration::from_secs(20), links.next(cursor));
        next.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_comes_again_in_order() {
        let links = loaded();
        let now = Instant::now();
        links.open(1, now);
        for seq in 1..=3 {
            links.send(1, seq, data("x"));
        }
        let mut first = links.attach(1, 0).unwrap();
        assert_eq!(
            next(&links, &mut first).await,
            ClientDown::Attached { received: 0 }
        );
        for n in 1..=3 {
            assert!(
                matches!(next(&links, &mut first).await, ClientDown::Data { seq, .. } if seq == n)
            );
        }
        assert!(links.admit(first.ticket, 1).await.unwrap());
        assert!(!links.admit(first.ticket, 1).await.unwrap(), "a repeat");
        assert!(links.admit(first.ticket, 3).await.is_err(), "a gap");
        links.handled(1, 1);
        assert_eq!(next(&links, &mut first).await, ClientDown::Ack { seq: 1 });
        links.acked(first.ticket, 1);
        let mut second = links.attach(1, 2).unwrap();
        assert!(links.next(&mut first).await.is_none(), "replaced");
        assert!(!links.detach(first.ticket, now), "not its to let go");
        assert_eq!(
            next(&links, &mut second).await,
            ClientDown::Attached { received: 1 }
        );
        assert!(matches!(
            next(&links, &mut second).await,
            ClientDown::Data { seq: 3, .. }
        ));
        assert_eq!(links.take_acks(), BTreeMap::from([(1, 2)]));
        links.send(1, 4, Piece::Close { code: 7 });
        assert_eq!(
            next(&links, &mut second).await,
            ClientDown::Close { seq: 4, code: 7 }
        );
        assert_eq!(links.attach(9, 0).unwrap_err().code, Code::StreamGone);
        links.end();
        assert!(links.next(&mut second).await.is_none());
        let later = links.attach(1, 0).unwrap_err();
        assert_eq!(later.code, Code::ServiceNotReady, "it may be elsewhere");
    }

    #[test]
    fn before_the_desk_is_read_no_stream_is_gone() {
        let links = Links::default();
        let early = links.attach(1, 0).unwrap_err();
        assert_eq!(early.code, Code::ServiceNotReady, "the gateway comes again");
    }

    #[tokio::test]
    async fn a_stream_that_nobody_holds_is_gone_once() {
        let links = loaded();
        let now = Instant::now();
        links.open(1, now);
        assert!(links.take_absent(now).is_empty());
        let cursor = links.attach(1, 0).unwrap();
        assert_eq!(links.next_absence(), None);
        assert!(links.detach(cursor.ticket, now));
        assert_eq!(links.next_absence(), Some(now + ABSENCE_MAX));
        assert_eq!(links.take_absent(now + ABSENCE_MAX), [1]);
        assert!(links.take_absent(now + ABSENCE_MAX).is_empty());
    }

    #[tokio::test]
    async fn a_client_waits_while_too_much_of_it_waits() {
        let links = Arc::new(loaded());
        links.open(1, Instant::now());
        let cursor = links.attach(1, 0).unwrap();
        let most = WAITING_MAX as u64;
        for seq in 1..=most {
            assert!(links.admit(cursor.ticket, seq).await.unwrap());
        }
        let waits = {
            let links = links.clone();
            tokio::spawn(async move { links.admit(cursor.ticket, most + 1).await })
        };
        links.taken(1);
        assert!(waits.await.unwrap().unwrap());
    }
}
