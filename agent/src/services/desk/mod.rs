//! What the agent keeps beside a guest's state, in the same image, so that both change together:
//! replies by idempotency key, client streams, calls under way, messages that wait for subscribers,
//! and who was heard up to where.
//!
//! Pure. Every operation changes the memory here and notes what to write ([`Desk::take_writes`]);
//! [`Desk::load`] of what was written gives the same desk again (tested). Whoever holds the desk
//! puts the writes into the image before the image is made durable.
//!
//! Limits: [`replies::KEYS_MAX`], [`lines::PIECES_MAX`], [`CALLS_MAX`], [`HEARD_MAX`].

pub mod calls;
pub mod letters;
pub mod lines;
pub mod replies;

use std::collections::BTreeMap;

use bytes::Bytes;
use hop3_common::id::InstanceId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
    calls::{Call, Calls},
    letters::{Letter, Letters},
    lines::Lines,
    replies::Replies,
};

/// Calls of the guest that have not ended: the guest itself is refused more.
pub const CALLS_MAX: usize = hop3_runtime::service::CALLS_MAX;
/// Publishing instances whose highest message number is remembered; the one heard longest ago
/// goes first, and a repeat of its would be taken for new.
pub const HEARD_MAX: usize = 1024;

/// A key of the desk and its new value; `None` removes it.
pub type Write = (Vec<u8>, Option<Bytes>);

/// A stored entry of the desk does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the entry `{key}` of the agent's own notes in the state is damaged")]
pub struct Damaged {
    key: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Desk {
    replies: Replies,
    lines: Lines,
    calls: Calls,
    letters: Letters,
    heard: Heard,
    writes: Writes,
}

impl PartialEq for Desk {
    fn eq(&self, other: &Self) -> bool {
        self.replies == other.replies
            && self.lines == other.lines
            && self.calls == other.calls
            && self.letters == other.letters
            && self.heard == other.heard
    }
}

/// What must be written, in order.
#[derive(Debug, Default)]
pub(super) struct Writes(Vec<Write>);

impl Writes {
    fn put(&mut self, key: Vec<u8>, value: &impl Serialize) -> Bytes {
        let bytes = postcard::to_allocvec(value).expect("plain data can always be encoded");
        let bytes = Bytes::from(bytes);
        self.0.push((key, Some(bytes.clone())));
        bytes
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.0.push((key, None));
    }
}

/// First byte of each kind's keys. Frozen: they are in stored images.
mod kind {
    pub(super) const REPLY: u8 = b'k';
    pub(super) const LINE: u8 = b's';
    pub(super) const PIECE: u8 = b'o';
    pub(super) const CALL: u8 = b'c';
    pub(super) const HEARD: u8 = b'h';
    pub(super) const LETTER: u8 = b'm';
}

fn numbered(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![kind];
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn value<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

impl Desk {
    /// The desk that these entries are.
    ///
    /// # Errors
    /// [`Damaged`], naming the entry.
    pub fn load(entries: impl IntoIterator<Item = (Vec<u8>, Bytes)>) -> Result<Self, Damaged> {
        let mut desk = Self::default();
        for (key, bytes) in entries {
            if desk.entry(&key, &bytes).is_none() {
                let key = key.escape_ascii().to_string();
                return Err(Damaged { key });
            }
        }
        Ok(desk)
    }

    fn entry(&mut self, key: &[u8], bytes: &Bytes) -> Option<()> {
        let (kind, rest) = key.split_first()?;
        match *kind {
            kind::REPLY => self.replies.load(std::str::from_utf8(rest).ok()?, bytes),
            kind::LINE => self.lines.load_head(number(rest)?, value(bytes)?),
            kind::PIECE => {
                let (stream, seq) = rest.split_at_checked(8)?;
                let (stream, seq) = (number(stream)?, number(seq)?);
                self.lines.load_piece(stream, seq, value(bytes)?)
            }
            kind::CALL => self.calls.load(number(rest)?, bytes),
            kind::LETTER => {
                self.letters.load(number(rest)?, value(bytes)?);
                Some(())
            }
            kind::HEARD => {
                let from = std::str::from_utf8(rest).ok()?.parse().ok()?;
                self.heard.load(from, value(bytes)?);
                Some(())
            }
            _ => None,
        }
    }

    /// What is to be written since the last time.
    pub fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes.0)
    }

    /// Replies by idempotency key.
    #[must_use]
    pub fn replies(&self) -> &Replies {
        &self.replies
    }

    /// Client streams.
    #[must_use]
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Messages that not every subscriber has.
    #[must_use]
    pub fn letters(&self) -> &Letters {
        &self.letters
    }

    /// Keeps a message until every subscriber has it.
    pub fn keep_letter(&mut self, number: u64, letter: Letter) {
        self.letters.keep(number, letter, &mut self.writes);
    }

    /// Every subscriber has the messages up to `number`. Whether any waited.
    pub fn arrived(&mut self, number: u64) -> bool {
        self.letters.arrived(number, &mut self.writes)
    }

    /// Keeps the reply to a request under its key; the first one stays.
    pub fn keep_reply(&mut self, key: &str, reply: &hop3_common::wire::ServiceReply, now_ms: u64) {
        self.replies.keep(key, reply, now_ms, &mut self.writes);
    }

    /// Opens a client stream.
    pub fn open_line(&mut self, stream: u64) {
        self.lines.open(stream, &mut self.writes);
    }

    /// Adds a piece for the client; its number.
    ///
    /// # Errors
    /// [`lines::Refused`]: there is no room, or no such stream.
    pub fn push(&mut self, stream: u64, piece: lines::Piece) -> Result<u64, lines::Refused> {
        self.lines.push(stream, piece, &mut self.writes)
    }

    /// The client's data number `seq` was handled.
    pub fn received(&mut self, stream: u64, seq: u64) {
        self.lines.received(stream, seq, &mut self.writes);
    }

    /// The client has everything up to `seq`. Whether the stream is over.
    pub fn acked(&mut self, stream: u64, seq: u64) -> bool {
        self.lines.acked(stream, seq, &mut self.writes)
    }

    /// Forgets a client stream.
    pub fn drop_line(&mut self, stream: u64) {
        self.lines.drop(stream, &mut self.writes);
    }

    /// A call of the guest begins; `false`: too many are under way. With what it asks, if it is to
    /// be made again after a restart.
    #[must_use]
    pub fn begin_call(&mut self, number: u64, call: Option<Call>) -> bool {
        self.calls.begin(number, call, &mut self.writes)
    }

    /// A call of the guest ended; `false`: it had ended before.
    #[must_use]
    pub fn end_call(&mut self, call: u64) -> bool {
        self.calls.end(call, &mut self.writes)
    }

    /// Calls under way.
    #[must_use]
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// A message number `seq` of `from` is to be handled; `false`: it was before.
    #[must_use]
    pub fn hear(&mut self, from: &InstanceId, seq: u64) -> bool {
        self.heard.hear(from, seq, &mut self.writes)
    }
}

/// The highest message number of each publishing instance.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    by: BTreeMap<InstanceId, HeardRecord>,
    order: BTreeMap<u64, InstanceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct HeardRecord {
    seq: u64,
    /// Grows with every message.
    order: u64,
}

fn heard_key(from: &InstanceId) -> Vec<u8> {
    let mut key = vec![kind::HEARD];
    key.extend_from_slice(from.as_str().as_bytes());
    key
}

impl Heard {
    fn load(&mut self, from: InstanceId, record: HeardRecord) {
        self.order.insert(record.order, from.clone());
        self.by.insert(from, record);
    }

    fn hear(&mut self, from: &InstanceId, seq: u64, writes: &mut Writes) -> bool {
        let before = self.by.get(from).copied();
        if before.is_some_and(|before| seq <= before.seq) {
            return false;
        }
        if let Some(before) = before {
            self.order.remove(&before.order);
        }
        let order = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
        let record = HeardRecord { seq, order };
        writes.put(heard_key(from), &record);
        self.load(from.clone(), record);
        if self.by.len() > HEARD_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.by.remove(&oldest);
            writes.remove(heard_key(&oldest));
        }
        true
    }
}

#[cfg(test)]
mod tests;
