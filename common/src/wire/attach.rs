//! The attach protocol: a client's stdin, stdout and stderr to and from a running task.
//!
//! The same [`Frame`]s travel from the CLI to the coordinator (one per binary WebSocket message,
//! bare postcard) and on to the agent (length-prefixed on an `Attach` stream); the coordinator
//! relays them. Bytes are named by channel and absolute offset, so that a reconnect repeats what
//! was not credited and the receiver drops what it has: nothing is lost and nothing doubled.
//!
//! Flow control is by credit: a sender may send bytes below the highest `upto` it was given. The
//! receiver keeps `upto - consumed <= WINDOW_BYTES`, which bounds memory at both ends.
//!
//! Both ends are sans-I/O: [`Sender`] keeps what may have to be repeated, [`Receiver`] drops
//! duplicates and says when to give credit.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{End, Usage, frame};

/// Bytes in flight per channel: what a sender may have to repeat.
pub const WINDOW_BYTES: u64 = 256 << 10;
/// Most bytes in one data frame.
pub const DATA_BYTES_MAX: usize = 32 << 10;
/// Largest encoded frame.
pub const FRAME_MAX: usize = DATA_BYTES_MAX + (8 << 10);

/// A byte stream of a task.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Client to guest.
    Stdin,
    /// Guest to client.
    Stdout,
    /// Guest to client.
    Stderr,
}

/// One message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// The client's first frame: what it has of stdout and stderr.
    Resume {
        /// Bytes of stdout that it has.
        stdout: u64,
        /// Bytes of stderr that it has.
        stderr: u64,
    },
    /// Bytes of a channel. Empty data with `fin` ends it.
    Data {
        /// Which channel.
        channel: Channel,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
        /// The channel ends after them.
        fin: bool,
    },
    /// Everything below `consumed` arrived for good; bytes below `upto` may be sent.
    Credit {
        /// Which channel.
        channel: Channel,
        /// Delivered for good.
        consumed: u64,
        /// Bound of what may be sent.
        upto: u64,
    },
    /// The task ended, after all of its output. The last frame to the client.
    Exit {
        /// How it ended.
        end: End,
        /// What it used.
        usage: Usage,
    },
    /// Where the task stands, for people who wait (`fetching`, `compiling`, `running on edge-1`).
    Status(String),
    /// The client asks for the task's end.
    Cancel,
    /// The client has the exit: the task may be forgotten.
    Bye,
}

impl Frame {
    /// Room for the encoded frame: for data more than enough, for the rest a beginning.
    #[must_use]
    pub fn room_bytes(&self) -> usize {
        match self {
            Self::Data { bytes, .. } => bytes.len() + 32,
            _ => 64,
        }
    }

    /// The frame as a message of a WebSocket.
    ///
    /// # Errors
    /// None in practice: a frame holds nothing but plain data.
    pub fn to_body(&self) -> Result<Bytes, frame::Error> {
        let mut out = BytesMut::with_capacity(frame::PREFIX_BYTES + self.room_bytes());
        frame::encode(self, FRAME_MAX, &mut out)?;
        Ok(out.freeze().slice(frame::PREFIX_BYTES..))
    }
}

/// The sending end of one channel.
#[derive(Debug)]
pub struct Sender {
    channel: Channel,
    /// Bytes from `base` on that are not credited as consumed.
    kept: BytesMut,
    base: u64,
    /// Next offset to send on this connection.
    next: u64,
    upto: u64,
    finished: bool,
    fin_sent: bool,
}

impl Sender {
    /// A sender that may send nothing until its first credit.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let kept = BytesMut::new();
        Self {
            channel,
            kept,
            base: 0,
            next: 0,
            upto: 0,
            finished: false,
            fin_sent: false,
        }
    }

    /// How many bytes may be pushed now without keeping more than the window.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.finished {
            return 0;
        }
        (WINDOW_BYTES as usize).saturating_sub(self.kept.len())
    }

    /// Takes bytes to send: at most [`Self::room`] are taken; returns how many.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.kept.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// No more bytes will come.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// A new connection: the peer has everything below `consumed`; what follows is sent again.
    pub fn resume(&mut self, consumed: u64) {
        self.consumed(consumed);
        self.next = self.base;
        self.upto = self.base;
        self.fin_sent = false;
    }

    /// The peer's credit.
    pub fn credit(&mut self, consumed: u64, upto: u64) {
        self.consumed(consumed);
        self.upto = self.upto.max(upto);
    }

    fn consumed(&mut self, consumed: u64) {
        let end = self.base + self.kept.len() as u64;
        let consumed = consumed.clamp(self.base, end);
        let _ = self.kept.split_to((consumed - self.base) as usize);
        self.base = consumed;
        self.next = self.next.max(consumed);
    }

    /// The next frame to send, if credit and data allow one.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let end = self.base + self.kept.len() as u64;
        let sendable = end.min(self.upto).saturating_sub(self.next);
        let len = (sendable as usize).min(DATA_BYTES_MAX);
        let offset = self.next;
        let fin = self.finished && offset + len as u64 == end && !self.fin_sent;
        if len == 0 && !fin {
            return None;
        }
        let from = (offset - self.base) as usize;
        let bytes = Bytes::copy_from_slice(&self.kept[from..from + len]);
        self.next += len as u64;
        self.fin_sent |= fin;
        Some(Frame::Data {
            channel: self.channel,
            offset,
            bytes,
            fin,
        })
    }

    /// Whether everything pushed was sent on this connection, and the end too.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.fin_sent && self.next == self.base + self.kept.len() as u64
    }

    /// Whether the peer has everything, and no more will come.
    #[must_use]
    pub fn is_consumed(&self) -> bool {
        self.finished && self.kept.is_empty()
    }
}

/// The peer sent what it may not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Data beyond the credit given.
    #[error("{len} bytes at {offset} exceed the credit of {upto}")]
    OverCredit {
        /// First offset.
        offset: u64,
        /// Length.
        len: usize,
        /// Credit.
        upto: u64,
    },
    /// Data that does not join on to what came before.
    #[error("bytes at {offset} leave a gap after {received}")]
    Gap {
        /// First offset.
        offset: u64,
        /// End of what was received.
        received: u64,
    },
}

/// The receiving end of one channel.
#[derive(Debug)]
pub struct Receiver {
    channel: Channel,
    received: u64,
    consumed: u64,
    granted: u64,
    fin: bool,
}

impl Receiver {
    /// A receiver that has nothing and has granted nothing.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            received: 0,
            consumed: 0,
            granted: 0,
            fin: false,
        }
    }

    /// Takes a data frame; returns the new bytes in it (duplicates cut off).
    pub fn data(&mut self, offset: u64, mut bytes: Bytes, fin: bool) -> Result<Bytes, Violation> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.granted {
            return Err(Violation::OverCredit {
                offset,
                len: bytes.len(),
                upto: self.granted,
            });
        }
        if offset > self.received {
            return Err(Violation::Gap {
                offset,
                received: self.received,
            });
        }
        let old = (self.received - offset).min(bytes.len() as u64);
        let fresh = bytes.split_off(old as usize);
        self.received = self.received.max(end);
        self.fin |= fin && end == self.received;
        Ok(fresh)
    }

    /// `len` received bytes reached their destination for good.
    pub fn consume(&mut self, len: usize) {
        self.consumed = (self.consumed + len as u64).min(self.received);
    }

    /// A credit frame, when one is worth sending: at first, and after each half window.
    pub fn next_credit(&mut self) -> Option<Frame> {
        let upto = self.consumed + WINDOW_BYTES;
        if self.granted != 0 && upto - self.granted < WINDOW_BYTES / 2 {
            return None;
        }
        self.grant()
    }

    /// A credit frame now: on a new connection, so that the peer knows where to begin.
    pub fn grant(&mut self) -> Option<Frame> {
        let upto = self.consumed + WINDOW_BYTES;
        self.granted = upto;
        Some(Frame::Credit {
            channel: self.channel,
            consumed: self.consumed,
            upto,
        })
    }

    /// A new connection begins: forget what came but was not consumed; it is sent again.
    pub fn resume(&mut self) {
        self.received = self.consumed;
        self.granted = 0;
        self.fin = false;
    }

    /// Bytes that reached their destination.
    #[must_use]
    pub fn consumed_bytes(&self) -> u64 {
        self.consumed
    }

    /// Whether the end was received.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.fin
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Delivers until nothing moves; returns what the receiver consumed.
    fn pump(sender: &mut Sender, receiver: &mut Receiver, sink: &mut Vec<u8>, frames_max: usize) {
        for _ in 0..frames_max {
            if let Some(Frame::Credit { consumed, upto, .. }) = receiver.next_credit() {
                sender.credit(consumed, upto);
            }
            let Some(Frame::Data {
                offset, bytes, fin, ..
            }) = sender.next_frame()
            else {
                return;
            };
            let fresh = receiver.data(offset, bytes, fin).unwrap();
            sink.extend_from_slice(&fresh);
            receiver.consume(fresh.len());
        }
    }

    proptest! {
        /// Whatever is cut off when, the receiver gets exactly the sender's bytes.
        #[test]
        fn nothing_is_lost_or_doubled_over_reconnects(
            sizes in prop::collection::vec(1usize..200_000, 1..8),
            cuts in prop::collection::vec(0usize..12, 0..6),
        ) {
            let total: usize = sizes.iter().sum();
            let source: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
            let (mut sender, mut receiver) =
                (Sender::new(Channel::Stdout), Receiver::new(Channel::Stdout));
            let (mut sink, mut pushed) = (Vec::new(), 0);
            let mut cuts = cuts.into_iter();
            for _ in 0..1000 {
                pushed += sender.push(&source[pushed..]);
                if pushed == total { sender.finish(); }
                match cuts.next() {
                    Some(frames) => {
                        pump(&mut sender, &mut receiver, &mut sink, frames);
                        let _lost = sender.next_frame();
                        receiver.resume();
                        sender.resume(receiver.consumed_bytes());
                    }
                    None => pump(&mut sender, &mut receiver, &mut sink, usize::MAX),
                }
                if receiver.is_finished() && cuts.len() == 0 { break; }
            }
            prop_assert!(receiver.is_finished());
            prop_assert!(sink == source);
        }
    }

    #[test]
    fn a_sender_never_exceeds_its_credit() {
        let mut sender = Sender::new(Channel::Stdin);
        assert_eq!(sender.push(&[7; 300_000]), WINDOW_BYTES as usize);
        assert_eq!(sender.next_frame(), None);
        sender.credit(0, 10);
        let Some(Frame::Data { bytes, .. }) = sender.next_frame() else {
            panic!()
        };
        assert_eq!(bytes.len(), 10);
        assert_eq!(sender.next_frame(), None);
    }

    #[test]
    fn a_receiver_refuses_gaps_and_excess() {
        let mut receiver = Receiver::new(Channel::Stdin);
        let data = Bytes::from_static(b"abc");
        assert!(matches!(
            receiver.data(0, data.clone(), false),
            Err(Violation::OverCredit { .. })
        ));
        let _ = receiver.grant();
        assert!(matches!(
            receiver.data(1, data.clone(), false),
            Err(Violation::Gap { .. })
        ));
        assert_eq!(receiver.data(0, data.clone(), false).unwrap(), data);
        assert_eq!(
            receiver.data(1, data, false).unwrap(),
            Bytes::from_static(b"c")
        );
    }
}
