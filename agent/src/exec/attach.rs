//! An attached run: one client at a time, over as many connections as it takes.
//!
//! Frames go through the state machines of `wire::attach`, bytes through the runtime's pipes:
//! credit bounds what the client sends, the pipes hold the guest back when the client is slow or
//! away. [`Exchange`] is free of I/O; [`Hub`] is the shell. A run that no client has been at for
//! [`ABSENCE`] is cancelled.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use hop3_common::wire::{
    End, Usage,
    attach::{Channel, FRAME_MAX, Frame, Receiver, Sender, Violation},
    close, frame, io,
};
use hop3_runtime::wasm::{Pipe, TryRead, TryWrite};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How long a run lives on without a client.
pub(super) const ABSENCE: Duration = Duration::from_secs(60);
/// Bytes between guest and client in each pipe; with the window this bounds a run's memory.
const PIPE_BYTES: usize = 64 << 10;
/// Encoded frames that wait for the network.
const OUT_BYTES: usize = 64 << 10;
/// Bytes moved from a pipe at a time.
const MOVE_BYTES: usize = 32 << 10;

/// How long output is gathered after the last frame of it, unless the client speaks meanwhile or
/// a pipe is half full: a guest that writes a kilobyte at a time would else make a packet and four
/// wake-ups of each.
const GATHER: Duration = Duration::from_millis(1);

/// The guest's ends.
#[derive(Clone)]
pub(super) struct Pipes {
    /// Client to guest.
    pub(super) stdin: Pipe,
    /// Guest to client.
    pub(super) stdout: Pipe,
    /// Guest to client.
    pub(super) stderr: Pipe,
}

/// What the client asks for besides bytes.
#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Nothing,
    Cancel,
    Bye,
}

/// The state of the exchange with whichever client there is.
struct Exchange {
    pipes: Pipes,
    stdin: Receiver,
    /// Received, not yet taken by the guest's pipe: at most a window.
    pending: VecDeque<Bytes>,
    /// The guest's input was ended: once, since ending it wakes us.
    stdin_ended: bool,
    stdout: Sender,
    stderr: Sender,
    status: Option<String>,
    exit: Option<(End, Usage)>,
    /// On this connection.
    resumed: bool,
    status_sent: bool,
    exit_sent: bool,
}

impl Exchange {
    fn new(pipes: Pipes) -> Self {
        Self {
            pipes,
            stdin: Receiver::new(Channel::Stdin),
            pending: VecDeque::new(),
            stdin_ended: false,
            stdout: Sender::new(Channel::Stdout),
            stderr: Sender::new(Channel::Stderr),
            status: None,
            exit: None,
            resumed: false,
            status_sent: false,
            exit_sent: false,
        }
    }

    /// A new connection: nothing goes out before the client says what it has.
    fn disconnect(&mut self) {
        self.resumed = false;
    }

    fn resume(&mut self, stdout: u64, stderr: u64) {
        self.stdout.resume(stdout);
        self.stderr.resume(stderr);
        self.pending.clear();
        self.stdin.resume();
        (self.resumed, self.status_sent, self.exit_sent) = (true, false, false);
    }

    fn take(&mut self, frame: Frame) -> Result<Ask, Violation> {
        match frame {
            Frame::Resume { stdout, stderr } => self.resume(stdout, stderr),
            Frame::Data {
                channel: Channel::Stdin,
                offset,
                bytes,
                fin,
            } => {
                let fresh = self.stdin.data(offset, bytes, fin)?;
                if !fresh.is_empty() {
                    self.pending.push_back(fresh);
                }
            }
            Frame::Credit {
                channel: Channel::Stdout,
                consumed,
                upto,
            } => {
                self.stdout.credit(consumed, upto);
            }
            Frame::Credit {
                channel: Channel::Stderr,
                consumed,
                upto,
            } => {
                self.stderr.credit(consumed, upto);
            }
            Frame::Cancel => return Ok(Ask::Cancel),
            Frame::Bye => return Ok(Ask::Bye),
            // What only goes the other way is ignored, so that newer clients may say more.
            Frame::Data { .. } | Frame::Credit { .. } | Frame::Exit { .. } | Frame::Status(_) => {}
        }
        Ok(Ask::Nothing)
    }

    /// Whether there is so little output that more may be waited for.
    fn may_gather(&self) -> bool {
        let little = |pipe: &Pipe| pipe.room() > PIPE_BYTES / 2;
        self.exit.is_none() && little(&self.pipes.stdout) && little(&self.pipes.stderr)
    }

    /// Moves bytes between the pipes and the state machines; those of the guest's output only if
    /// it is due.
    fn pump(&mut self, output_due: bool) {
        if output_due {
            fill(&mut self.stdout, &self.pipes.stdout);
            fill(&mut self.stderr, &self.pipes.stderr);
        }
        while let Some(front) = self.pending.front_mut() {
            let moved = match self.pipes.stdin.try_write(front) {
                TryWrite::Wrote(n) => n,
                TryWrite::Full => break,
                // The guest reads no more: what comes is dropped.
                TryWrite::Closed => front.len(),
            };
            self.stdin.consume(moved);
            front.advance(moved);
            if front.is_empty() {
                self.pending.pop_front();
            }
        }
        let all_here = self.stdin.is_finished() && self.pending.is_empty();
        if all_here && !std::mem::replace(&mut self.stdin_ended, true) {
            self.pipes.stdin.end();
        }
    }

    fn next_frame(&mut self) -> Option<Frame> {
        if !self.resumed {
            return None;
        }
        if !self.status_sent {
            self.status_sent = true;
            if let Some(status) = &self.status {
                return Some(Frame::Status(status.clone()));
            }
        }
        if let Some(credit) = self.stdin.next_credit() {
            return Some(credit);
        }
        if let Some(data) = self
            .stdout
            .next_frame()
            .or_else(|| self.stderr.next_frame())
        {
            return Some(data);
        }
        let (end, usage) = self.exit.as_ref()?;
        if self.exit_sent || !self.stdout.is_drained() || !self.stderr.is_drained() {
            return None;
        }
        self.exit_sent = true;
        Some(Frame::Exit {
            end: end.clone(),
            usage: *usage,
        })
    }
}

fn fill(sender: &mut Sender, pipe: &Pipe) {
    loop {
        let room = sender.room().min(MOVE_BYTES);
        if room == 0 {
            return;
        }
        match pipe.try_read(room) {
            TryRead::Bytes { bytes, .. } => {
                sender.push(&bytes);
            }
            TryRead::Empty => return,
            TryRead::End => return sender.finish(),
        }
    }
}

/// One attached run, from its assignment until its client has its exit.
pub(super) struct Hub {
    pipes: Pipes,
    exchange: Mutex<Exchange>,
    changed: Arc<Notify>,
    /// Counts connections: only the newest serves.
    connection: watch::Sender<u64>,
    /// Since when no client is there.
    absent: watch::Sender<Option<Instant>>,
    /// The client asks for the end.
    pub(super) cancel: CancellationToken,
    /// The client has the exit.
    pub(super) done: CancellationToken,
}

impl Hub {
    pub(super) fn new() -> Arc<Self> {
        let pipe = || Pipe::new(PIPE_BYTES);
        let pipes = Pipes {
            stdin: pipe(),
            stdout: pipe(),
            stderr: pipe(),
        };
        let changed = Arc::new(Notify::new());
        let wake = || {
            let changed = changed.clone();
            move || changed.notify_one()
        };
        pipes.stdin.on_writable(wake());
        pipes.stdout.on_readable(wake());
        pipes.stderr.on_readable(wake());
        Arc::new(Self {
            exchange: Mutex::new(Exchange::new(pipes.clone())),
            pipes,
            changed,
            connection: watch::Sender::new(0),
            absent: watch::Sender::new(Some(Instant::now())),
            cancel: CancellationToken::new(),
            done: CancellationToken::new(),
        })
    }

    /// The guest's ends.
    pub(super) fn pipes(&self) -> &Pipes {
        &self.pipes
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        // Its state machines change in single steps.
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the client where the run stands.
    pub(super) fn status(&self, status: impl Into<String>) {
        let mut exchange = self.exchange();
        exchange.status = Some(status.into());
        exchange.status_sent = false;
        drop(exchange);
        self.changed.notify_one();
    }

    /// The run ended: the client is told after all output.
    pub(super) fn exit(&self, end: End, usage: Usage) {
        self.pipes.stdout.end();
        self.pipes.stderr.end();
        self.pipes.stdin.close();
        self.exchange().exit = Some((end, usage));
        self.changed.notify_one();
    }

    /// Returns when no client has been there for [`ABSENCE`].
    pub(super) async fn abandoned(&self) {
        let mut absent = self.absent.subscribe();
        loop {
            let since = *absent.borrow_and_update();
            let changed = match since {
                None => absent.changed().await,
                Some(since) => tokio::select! {
                    () = tokio::time::sleep_until(since + ABSENCE) => return,
                    changed = absent.changed() => changed,
                },
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Serves one connection of the client, until it ends or a newer one comes.
    ///
    /// # Errors
    /// The other side broke the protocol.
    pub(super) async fn serve(
        &self,
        mut send: SendStream,
        recv: RecvStream,
    ) -> Result<(), io::Error> {
        let mut mine = 0;
        self.connection.send_modify(|n| {
            *n += 1;
            mine = *n;
        });
        self.exchange().disconnect();
        self.absent.send_replace(None);
        let _presence = Presence {
            hub: self,
            connection: mine,
        };
        let mut newer = self.connection.subscribe();
        let served = tokio::select! {
            served = self.relay(&mut send, recv) => served,
            _ = newer.wait_for(|n| *n != mine) => {
                let _ = send.reset(VarInt::from_u32(close::REPLACED));
                // A wake-up that was meant for the newer one.
                self.changed.notify_one();
                return Ok(());
            }
        };
        let _ = send.finish();
        served
    }

    async fn relay(&self, send: &mut SendStream, recv: RecvStream) -> Result<(), io::Error> {
        let mut reader = io::FrameReader::new(recv, FRAME_MAX);
        let mut out = BytesMut::new();
        let mut gather_until: Option<Instant> = None;
        loop {
            let gathering;
            {
                let mut exchange = self.exchange();
                let due = gather_until.is_none_or(|until| Instant::now() >= until);
                gathering = gather_until.filter(|_| !due && exchange.may_gather());
                exchange.pump(gathering.is_none());
                while out.len() < OUT_BYTES {
                    let Some(next) = exchange.next_frame() else {
                        break;
                    };
                    if matches!(next, Frame::Data { .. }) {
                        gather_until = Some(Instant::now() + GATHER);
                    }
                    out.reserve(frame::PREFIX_BYTES + next.room_bytes());
                    frame::encode(&next, FRAME_MAX, &mut out)?;
                }
            }
            tokio::select! {
                wrote = send.write(&out), if !out.is_empty() => match wrote {
                    Ok(n) => out.advance(n),
                    Err(_) => return Ok(()),
                },
                next = reader.next::<Frame>() => {
                    let frame = match next {
                        Ok(Some(frame)) => frame,
                        Ok(None) => return Ok(()),
                        Err(error) if error.is_protocol() => return Err(error),
                        Err(_) => return Ok(()),
                    };
                    if matches!(frame, Frame::Data { .. }) {
                        // It may be answered: at once.
                        gather_until = None;
                    }
                    let ask = self.exchange().take(frame);
                    match ask {
                        Ok(Ask::Nothing) => {}
                        Ok(Ask::Cancel) => self.cancel.cancel(),
                        Ok(Ask::Bye) => {
                            self.done.cancel();
                            return Ok(());
                        }
                        // A client's fault ends its stream, not the node's connection.
                        Err(violation) => {
                            tracing::warn!(%violation, "an attached client broke the protocol");
                            let _ = send.reset(VarInt::from_u32(close::PROTOCOL));
                            return Ok(());
                        }
                    }
                }
                () = self.changed.notified() => {}
                () = until(gathering) => {}
            }
        }
    }
}

/// Returns at that time; without one, never.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A client is there; when dropped, it is not, unless a newer one is.
struct Presence<'a> {
    hub: &'a Hub,
    connection: u64,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if *self.hub.connection.borrow() == self.connection {
            self.hub.absent.send_replace(Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A client: what it got, and its side of the protocol.
    struct Client {
        stdin: Sender,
        stdout: Receiver,
        got: Vec<u8>,
        exit: Option<End>,
    }

    impl Client {
        fn take(&mut self, frame: Frame) {
            match frame {
                Frame::Data {
                    channel: Channel::Stdout,
                    offset,
                    bytes,
                    fin,
                } => {
                    let fresh = self.stdout.data(offset, bytes, fin).unwrap();
                    self.stdout.consume(fresh.len());
                    self.got.extend_from_slice(&fresh);
                }
                Frame::Credit { consumed, upto, .. } => self.stdin.credit(consumed, upto),
                Frame::Exit { end, .. } => {
                    assert!(self.stdout.is_finished(), "the exit comes after all output");
                    self.exit = Some(end);
                }
                _ => {}
            }
        }

        fn connect(&mut self, exchange: &mut Exchange) {
            exchange.disconnect();
            assert_eq!(exchange.next_frame(), None, "nothing before the resume");
            self.stdout.resume();
            let stdout = self.stdout.consumed_bytes();
            exchange.take(Frame::Resume { stdout, stderr: 0 }).unwrap();
            self.stdin.resume(0);
            exchange.take(self.stdout.grant().unwrap()).unwrap();
            let (channel, upto) = (Channel::Stderr, 1000);
            exchange
                .take(Frame::Credit {
                    channel,
                    consumed: 0,
                    upto,
                })
                .unwrap();
        }
    }

    #[test]
    fn an_echo_survives_lost_connections_and_ends_with_its_exit() {
        let hub = Hub::new();
        let pipes = hub.pipes().clone();
        let mut exchange = hub.exchange();
        let mut client = Client {
            stdin: Sender::new(Channel::Stdin),
            stdout: Receiver::new(Channel::Stdout),
            got: Vec::new(),
            exit: None,
        };
        let source: Vec<u8> = (0..700_000u32).map(|i| (i % 249) as u8).collect();
        let (mut pushed, mut echoed) = (0, 0);
        client.connect(&mut exchange);
        for round in 0..4000 {
            if round % 37 == 36 {
                // What is on its way is lost.
                let _ = exchange.next_frame();
                let _ = client.stdin.next_frame();
                client.connect(&mut exchange);
            }
            pushed += client.stdin.push(&source[pushed..]);
            if pushed == source.len() {
                client.stdin.finish();
            }
            if let Some(frame) = client.stdin.next_frame() {
                assert_eq!(exchange.take(frame).unwrap(), Ask::Nothing);
            }
            // The guest: cat.
            if let TryRead::Bytes { bytes, .. } = pipes.stdin.try_read(pipes.stdout.room()) {
                echoed += bytes.len();
                assert_eq!(pipes.stdout.try_write(&bytes), TryWrite::Wrote(bytes.len()));
            }
            if echoed == source.len() && exchange.exit.is_none() {
                pipes.stdout.end();
                pipes.stderr.end();
                exchange.exit = Some((End::Exited(3), Usage::default()));
            }
            exchange.pump(true);
            while let Some(frame) = exchange.next_frame() {
                client.take(frame);
                if let Some(credit) = client.stdout.next_credit() {
                    exchange.take(credit).unwrap();
                }
                exchange.pump(true);
            }
            if client.exit.is_some() {
                break;
            }
        }
        assert_eq!(client.exit, Some(End::Exited(3)));
        assert!(client.got == source);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_without_a_client_is_abandoned_after_a_minute() {
        let hub = Hub::new();
        let began = Instant::now();
        hub.abandoned().await;
        assert!(began.elapsed() >= ABSENCE);
        hub.absent.send_replace(None);
        let waiting = tokio::time::timeout(ABSENCE * 10, hub.abandoned()).await;
        assert!(waiting.is_err(), "a client is there");
    }
}
