//! One client stream, as numbers: what was sent, acknowledged, received and passed on, through any
//! number of links. No clock, no I/O.
//!
//! Invariants
//! - Each piece of data reaches the instance, and the client, once and in order: what is sent is
//!   kept until it is acknowledged, and repeated on a new link from where the instance says it is;
//!   what comes again is dropped.
//! - What is kept is bounded: [`WINDOW_BYTES`] and one piece, and [`UNACKED_MAX`] pieces.

use std::collections::VecDeque;

use bytes::Bytes;
use hop3_common::wire::{ClientDown, ClientUp};

/// Bytes sent and not yet acknowledged before more is taken from the client.
pub(crate) const WINDOW_BYTES: usize = 256 << 10;
/// Pieces sent and not yet acknowledged.
pub(crate) const UNACKED_MAX: usize = 1_024;

/// What a stream carries, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// Data.
    Data {
        /// A WebSocket text message.
        text: bool,
        /// What.
        bytes: Bytes,
    },
    /// Nothing follows.
    Close {
        /// A WebSocket close code, or 0.
        code: u16,
    },
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Data { bytes, .. } => bytes.len(),
            Self::Close { .. } => 0,
        }
    }
}

/// What is wrong with a frame of the instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// Another link may mend it.
    #[error("data {got} came after {received}")]
    Gap {
        /// The number that came.
        got: u64,
        /// The last one before.
        received: u64,
    },
    /// Nothing mends it: data is lost, or the numbers are of another stream.
    #[error("the instance has received {received}, but had acknowledged {acked} of {sent}")]
    Lost {
        /// What it says.
        received: u64,
        /// What it acknowledged.
        acked: u64,
        /// What was sent at all.
        sent: u64,
    },
    /// A frame that does not belong here.
    #[error("a frame came that does not belong here")]
    Unexpected,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Machine {
    stream: u64,
    unacked: VecDeque<(u64, Item)>,
    unacked_bytes: usize,
    /// Last number given to data of the client.
    last: u64,
    /// Last number sent on this link.
    sent: u64,
    /// Last number that the instance acknowledged.
    acked: u64,
    closed_up: bool,
    /// Last number that came from the instance.
    received: u64,
    /// Last one of them that the client has.
    delivered: u64,
    /// Last one of them acknowledged on this link.
    ack_sent: Option<u64>,
    closed_down: bool,
}

impl Machine {
    pub(crate) fn new(stream: u64) -> Self {
        Self {
            stream,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            last: 0,
            sent: 0,
            acked: 0,
            closed_up: false,
            received: 0,
            delivered: 0,
            ack_sent: None,
            closed_down: false,
        }
    }

    /// The first frame on a new link.
    pub(crate) fn attach(&self) -> ClientUp {
        ClientUp::Attach {
            stream: self.stream,
            received: self.received,
        }
    }

    /// The instance attached, and has received this much.
    pub(crate) fn attached(&mut self, received: u64) -> Result<(), Violation> {
        if received < self.acked || received > self.last {
            return Err(Violation::Lost {
                received,
                acked: self.acked,
                sent: self.last,
            });
        }
        self.sent = received;
        self.ack_sent = None;
        Ok(())
    }

    /// A frame came on an attached link; what is new in it for the client.
    pub(crate) fn receive(&mut self, frame: ClientDown) -> Result<Option<Item>, Violation> {
        match frame {
            ClientDown::Data { seq, text, bytes } => {
                Ok(self.in_order(seq)?.then_some(Item::Data { text, bytes }))
            }
            ClientDown::Close { seq, code } => {
                let new = self.in_order(seq)?;
                self.closed_down |= new;
                Ok(new.then_some(Item::Close { code }))
            }
            ClientDown::Ack { seq } => {
                if seq > self.last {
                    return Err(Violation::Lost {
                        received: seq,
                        acked: self.acked,
                        sent: self.last,
                    });
                }
                self.acknowledged(seq);
                Ok(None)
            }
            ClientDown::Attached { .. } | ClientDown::Refused(_) => Err(Violation::Unexpected),
        }
    }

    fn in_order(&mut self, seq: u64) -> Result<bool, Violation> {
        if seq <= self.received {
            // It does not know that it came: it is told again.
            self.ack_sent = None;
            return Ok(false);
        }
        if self.closed_down {
            return Err(Violation::Unexpected);
        }
        if seq != self.received + 1 {
            return Err(Violation::Gap {
                got: seq,
                received: self.received,
            });
        }
        self.received = seq;
        Ok(true)
    }

    fn acknowledged(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
        while let Some((first, item)) = self.unacked.front() {
            if *first > self.acked {
                break;
            }
            self.unacked_bytes -= item.len();
            self.unacked.pop_front();
        }
    }

    /// Whether more may be taken from the client.
    pub(crate) fn room(&self) -> bool {
        self.unacked_bytes < WINDOW_BYTES && self.unacked.len() < UNACKED_MAX && !self.closed_up
    }

    /// Takes something from the client. After a close nothing is taken.
    pub(crate) fn push(&mut self, item: Item) {
        if self.closed_up {
            return;
        }
        self.closed_up = matches!(item, Item::Close { .. });
        self.last += 1;
        self.unacked_bytes += item.len();
        self.unacked.push_back((self.last, item));
    }

    /// All that [`receive`](Self::receive) gave has reached the client.
    pub(crate) fn delivered(&mut self) {
        self.delivered = self.received;
    }

    /// The next frame to send on an attached link.
    pub(crate) fn next(&mut self) -> Option<ClientUp> {
        if self.ack_sent.unwrap_or(0) < self.delivered {
            self.ack_sent = Some(self.delivered);
            return Some(ClientUp::Ack {
                seq: self.delivered,
            });
        }
        if self.sent == self.last {
            return None;
        }
        // Numbers are without gaps, and what is sent is not below what is acknowledged.
        let ahead = usize::try_from(self.sent.saturating_sub(self.acked)).ok()?;
        let (seq, item) = self.unacked.get(ahead)?;
        self.sent = *seq;
        Some(match item.clone() {
            Item::Data { text, bytes } => ClientUp::Data {
                seq: *seq,
                text,
                bytes,
            },
            Item::Close { code } => ClientUp::Close { seq: *seq, code },
        })
    }

    /// A number that grows with all that gets through.
    pub(crate) fn progress(&self) -> u64 {
        self.received + self.acked
    }

    /// The client's side is closed.
    pub(crate) fn closed_up(&self) -> bool {
        self.closed_up
    }

    /// The instance closed, the client has it, and the instance was told.
    pub(crate) fn finished(&self) -> bool {
        self.closed_down && self.delivered == self.received && self.ack_sent == Some(self.delivered)
    }

    /// The client's close is acknowledged, or the instance closed too.
    pub(crate) fn hung_up(&self) -> bool {
        self.closed_down || (self.closed_up && self.acked == self.last)
    }
}
