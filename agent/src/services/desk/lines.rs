//! Client streams as the instance knows them: how far the client's data was handled, and what
//! the client has not acknowledged, numbered from 1 in both directions.
//!
//! Limits: [`PIECES_MAX`] and [`BYTES_MAX`] per stream; a stream that would exceed them is
//! refused its next piece, and whoever holds the desk closes it. How many streams there are is
//! the guest's limit.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Writes, kind, numbered};

/// Pieces that a client has not acknowledged.
pub const PIECES_MAX: usize = 1024;
/// Bytes that a client has not acknowledged; one piece may have as many.
pub const BYTES_MAX: usize = hop3_common::wire::STREAM_DATA_BYTES_MAX;

/// Something for the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
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

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Data { bytes, .. } => bytes.len(),
            Self::Close { .. } => 0,
        }
    }
}

/// Why a piece was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The client is too slow, or the piece too large.
    #[error("the client has not acknowledged {PIECES_MAX} pieces or {BYTES_MAX} bytes")]
    Full,
    /// There is no such stream, or it is closed.
    #[error("the stream is closed")]
    Closed,
}

/// One client stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    head: Head,
    pieces: VecDeque<(u64, Piece)>,
    bytes: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The client's data handled up to here.
    received: u64,
    /// Pieces for the client so far.
    last: u64,
    /// A `Close` is among them.
    closed: bool,
}

impl Line {
    /// The client's data handled up to here.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.head.received
    }

    /// Number of the newest piece for the client.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.head.last
    }

    /// Nothing more will be added for the client.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.head.closed
    }

    /// What the client has not acknowledged, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.pieces.iter().map(|(seq, piece)| (*seq, piece))
    }
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub struct Lines(BTreeMap<u64, Line>);

impl Lines {
    pub(super) fn load_head(&mut self, stream: u64, head: Head) -> Option<()> {
        self.0.entry(stream).or_default().head = head;
        Some(())
    }

    pub(super) fn load_piece(&mut self, stream: u64, seq: u64, piece: Piece) -> Option<()> {
        // Keys come in order: heads and pieces of a stream in either, pieces by number.
        let line = self.0.entry(stream).or_default();
        if line.pieces.back().is_some_and(|(last, _)| *last >= seq) {
            return None;
        }
        line.bytes += piece.len();
        line.pieces.push_back((seq, piece));
        Some(())
    }

    /// One stream.
    #[must_use]
    pub fn get(&self, stream: u64) -> Option<&Line> {
        self.0.get(&stream)
    }

    /// All streams.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Line)> {
        self.0.iter().map(|(stream, line)| (*stream, line))
    }

    pub(super) fn open(&mut self, stream: u64, writes: &mut Writes) {
        let line = self.0.entry(stream).or_default();
        writes.put(numbered(kind::LINE, &[stream]), &line.head);
    }

    pub(super) fn push(
        &mut self,
        stream: u64,
        piece: Piece,
        writes: &mut Writes,
    ) -> Result<u64, Refused> {
        let line = self.0.get_mut(&stream).ok_or(Refused::Closed)?;
        if line.head.closed {
            return Err(Refused::Closed);
        }
        // A close needs no room, so that every stream can be closed.
        let close = matches!(piece, Piece::Close { .. });
        let full = line.pieces.len() >= PIECES_MAX || line.bytes + piece.len() > BYTES_MAX;
        if full && !close {
            return Err(Refused::Full);
        }
        line.head.last += 1;
        line.head.closed = close;
        let seq = line.head.last;
        writes.put(numbered(kind::LINE, &[stream]), &line.head);
        writes.put(numbered(kind::PIECE, &[stream, seq]), &piece);
        line.bytes += piece.len();
        line.pieces.push_back((seq, piece));
        Ok(seq)
    }

    pub(super) fn received(&mut self, stream: u64, seq: u64, writes: &mut Writes) {
        if let Some(line) = self.0.get_mut(&stream)
            && seq > line.head.received
        {
            line.head.received = seq;
            writes.put(numbered(kind::LINE, &[stream]), &line.head);
        }
    }

    pub(super) fn acked(&mut self, stream: u64, seq: u64, writes: &mut Writes) -> bool {
        let Some(line) = self.0.get_mut(&stream) else {
            return true;
        };
        while let Some((first, piece)) = line.pieces.front()
            && *first <= seq
        {
            writes.remove(numbered(kind::PIECE, &[stream, *first]));
            line.bytes -= piece.len();
            line.pieces.pop_front();
        }
        let over = line.head.closed && line.pieces.is_empty();
        if over {
            self.drop(stream, writes);
        }
        over
    }

    pub(super) fn drop(&mut self, stream: u64, writes: &mut Writes) {
        if let Some(line) = self.0.remove(&stream) {
            writes.remove(numbered(kind::LINE, &[stream]));
            for (seq, _) in line.pieces {
                writes.remove(numbered(kind::PIECE, &[stream, seq]));
            }
        }
    }
}
