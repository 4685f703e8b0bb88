//! Frames and messages of the mesh protocol, telemetry, and the two ends of an attached stream.

use std::{fmt::Debug, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use hop3_common::{
    codes::Problem,
    identity::enroll::{EnrollReply, EnrollRequest},
    wire::{
        self, BlobReply, CALL_FRAME_MAX, CLIENT_FRAME_MAX, CONTROL_FRAME_MAX, Call, ClientDown,
        ClientUp, Down, ENROLL_FRAME_MAX, HEADER_FRAME_MAX, ModelCheck, ModelFacts, Outgoing,
        OutgoingReply, Reply, StreamHeader, TELEMETRY_FRAME_MAX, Up,
        attach::{self, Channel, Frame, Receiver, Sender},
        frame,
        telemetry::{Batch, SAMPLES_MAX},
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::input::Input;

/// A kind of message: its bound, and the promise that its bodies keep.
pub struct Kind {
    /// Largest body, bytes.
    pub max: usize,
    check: fn(&[u8], usize) -> bool,
}

/// Every kind of message; the first byte of an input chooses by number. Appended to only, so that
/// the corpus keeps its meaning.
pub const KINDS: &[Kind] = &[
    kind::<StreamHeader>(HEADER_FRAME_MAX),
    kind::<BlobReply>(HEADER_FRAME_MAX),
    kind::<Up>(CONTROL_FRAME_MAX),
    kind::<Down>(CONTROL_FRAME_MAX),
    kind::<Call>(CALL_FRAME_MAX),
    kind::<Reply>(CALL_FRAME_MAX),
    kind::<Outgoing>(CALL_FRAME_MAX),
    kind::<OutgoingReply>(CALL_FRAME_MAX),
    kind::<ClientUp>(CLIENT_FRAME_MAX),
    kind::<ClientDown>(CLIENT_FRAME_MAX),
    kind::<Frame>(attach::FRAME_MAX),
    kind::<Batch>(TELEMETRY_FRAME_MAX),
    kind::<ModelCheck>(HEADER_FRAME_MAX),
    kind::<Result<ModelFacts, Problem>>(CONTROL_FRAME_MAX),
    kind::<EnrollRequest>(ENROLL_FRAME_MAX),
    kind::<EnrollReply>(ENROLL_FRAME_MAX),
];

const fn kind<T: Serialize + DeserializeOwned + PartialEq + Debug>(max: usize) -> Kind {
    Kind {
        max,
        check: round::<T>,
    }
}

/// What an unknown error code may take more when it is passed on: it becomes a known one.
const SLACK_BYTES: usize = 4;

/// What decodes survives another round, and its own encoding is no longer than what came: so a
/// message in memory is bounded by its frame.
fn round<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8], max: usize) -> bool {
    let Ok(message) = frame::decode::<T>(body) else {
        return false;
    };
    let again = frame::to_bytes(&message, max.max(body.len()) + SLACK_BYTES).unwrap();
    let again = &again[frame::PREFIX_BYTES..];
    assert!(
        again.len() <= body.len() + SLACK_BYTES,
        "{} bytes became {}",
        body.len(),
        again.len()
    );
    assert_eq!(frame::decode::<T>(again).unwrap(), message);
    let longer = frame::decode::<T>(&[body, &[0]].concat());
    assert!(
        matches!(longer, Err(frame::Error::Trailing(1))),
        "{longer:?}"
    );
    true
}

/// The body of one message, after the byte that names its kind.
pub fn messages(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = &KINDS[usize::from(input.u8()) % KINDS.len()];
    (kind.check)(input.0, kind.max)
}

/// A stream of frames: however it is cut on its way, the same frames come out, and what follows
/// a frame that is too long is never read.
pub fn frames(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = &KINDS[usize::from(input.u8()) % KINDS.len()];
    let cut = usize::from(input.u8()) + 1;
    let whole = split_all(input.0, input.0.len().max(1), kind.max);
    let pieces = split_all(input.0, cut, kind.max);
    assert_eq!(whole, pieces, "cut every {cut} bytes");
    let (bodies, left) = whole;
    let (lengths, end) = announced(input.0, kind.max);
    assert_eq!(left, end, "what is left at the end");
    assert_eq!(bodies.iter().map(Bytes::len).collect::<Vec<_>>(), lengths);
    let mut valid = 0;
    for body in &bodies {
        valid += usize::from((kind.check)(body, kind.max));
    }
    left == Some(0) && valid == bodies.len() && valid > 0
}

/// What the prefixes of a stream say: the lengths of its whole frames, and how much is left behind
/// them; `None` when a length is more than `max`.
fn announced(mut stream: &[u8], max: usize) -> (Vec<usize>, Option<usize>) {
    let mut lengths = Vec::new();
    while let Some((prefix, rest)) = stream.split_first_chunk::<{ frame::PREFIX_BYTES }>() {
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > max {
            return (lengths, None);
        }
        let Some(rest) = rest.get(len..) else { break };
        lengths.push(len);
        stream = rest;
    }
    (lengths, Some(stream.len()))
}

/// The bodies of a stream that comes in pieces, and how much was left at its end; `None` when it
/// was refused.
fn split_all(stream: &[u8], cut: usize, max: usize) -> (Vec<Bytes>, Option<usize>) {
    let (mut buffer, mut bodies) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match frame::split(&mut buffer, max) {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => break,
                Err(frame::Error::TooLarge { .. }) => return (bodies, None),
                Err(error) => panic!("splitting looks at lengths only: {error}"),
            }
        }
        assert!(
            buffer.len() < frame::PREFIX_BYTES + max,
            "a whole frame waits"
        );
    }
    (bodies, Some(buffer.len()))
}

/// A telemetry batch: bounded, and stable after one round.
pub fn telemetry(data: &[u8]) -> bool {
    let mut input = Input(data);
    let batch = Batch {
        count: input.u16(),
        data: input.0.to_vec(),
    };
    let Ok(samples) = batch.decode() else {
        return false;
    };
    assert_eq!(samples.len(), usize::from(batch.count));
    assert!(samples.len() <= SAMPLES_MAX);
    assert_eq!(Batch::encode(&samples).decode().unwrap(), samples);
    true
}

/// Length of the pattern that streams repeat: a prime, so that no power of two hides a shift.
const PERIOD: usize = 251;
/// The pattern, as long as any piece of a stream.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..PERIOD as u8)
        .cycle()
        .take(4 * 65_536 + PERIOD)
        .collect()
});

/// The bytes of a stream at an offset.
fn bytes_at(offset: u64, len: usize) -> &'static [u8] {
    let at = (offset % PERIOD as u64) as usize;
    &PATTERN[at..at + len]
}

/// Both ends of an attached stream, whose peers send any frames in any order.
pub fn attach(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (mut sender, mut receiver) = (Sender::new(Channel::Stdin), Receiver::new(Channel::Stdout));
    let (mut pushed, mut upto, mut given, mut delivered) = (0u64, 0u64, 0u64, 0u64);
    let mut violations = 0;
    while !input.is_empty() {
        match input.u8() % 10 {
            0 => {
                let want = bytes_at(pushed, usize::from(input.u16()) * 4);
                let room = sender.room();
                let taken = sender.push(want);
                assert_eq!(taken, want.len().min(room));
                pushed += taken as u64;
            }
            1 => sender.finish(),
            2 => {
                let (consumed, to) = (spread(&mut input), spread(&mut input));
                sender.credit(consumed, to);
                upto = upto.max(to);
            }
            3 => {
                let consumed = spread(&mut input);
                sender.resume(consumed);
                // What is consumed may be sent without credit: there is nothing of it to send.
                upto = consumed.min(pushed);
            }
            4 | 5 => {
                if let Some(Frame::Data { offset, bytes, .. }) = sender.next_frame() {
                    let end = offset + bytes.len() as u64;
                    assert!(bytes.len() <= attach::DATA_BYTES_MAX && end <= pushed);
                    assert!(bytes.is_empty() || end <= upto, "beyond the credit");
                    assert_eq!(bytes, bytes_at(offset, bytes.len()));
                }
            }
            6 | 7 => {
                let offset = given.wrapping_add(spread(&mut input));
                let sent = bytes_at(offset, usize::from(input.u16()));
                match receiver.data(
                    offset,
                    Bytes::from_static(sent),
                    input.u8().is_multiple_of(4),
                ) {
                    Ok(fresh) => {
                        assert_eq!(fresh, bytes_at(given, fresh.len()), "a gap or a repeat");
                        given += fresh.len() as u64;
                    }
                    Err(_) => violations += 1,
                }
            }
            8 => {
                let len = usize::from(input.u16()).min((given - delivered) as usize);
                receiver.consume(len);
                delivered += len as u64;
                assert_eq!(receiver.consumed_bytes(), delivered);
            }
            _ => {
                if input.u8().is_multiple_of(4) {
                    receiver.resume();
                    given = delivered;
                }
                if let Some(Frame::Credit { consumed, upto, .. }) = receiver.next_credit() {
                    assert_eq!(consumed, delivered);
                    assert!(upto <= consumed + attach::WINDOW_BYTES);
                }
            }
        }
        assert!(
            given <= delivered + attach::WINDOW_BYTES,
            "an endless window"
        );
        assert!(sender.room() <= attach::WINDOW_BYTES as usize);
    }
    violations == 0 && pushed > 0 && given > 0
}

/// Mostly small numbers, now and then one at the end of the range.
fn spread(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => u64::MAX - u64::from(input.u16()),
        high => (u64::from(high) * 64).wrapping_add(u64::from(input.u16())),
    }
}

/// The body of `message` as an input of [`messages`].
///
/// # Panics
/// There is no such kind, or the message is too large.
#[must_use]
pub fn message<T: Serialize>(kind: u8, message: &T) -> Vec<u8> {
    let max = KINDS[usize::from(kind)].max;
    let framed = wire::frame::to_bytes(message, max).unwrap();
    let mut out = vec![kind];
    out.extend_from_slice(&framed[frame::PREFIX_BYTES..]);
    out
}
