#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use hop3_common::wire::ServiceReply;
use proptest::prelude::*;

use super::{
    lines::{Piece, Refused},
    replies::{AGE_MS_MAX, BYTES_MAX, KEYS_MAX, Known},
    *,
};

fn reply(body: usize) -> ServiceReply {
    ServiceReply {
        status: 200,
        headers: vec![],
        body: vec![7; body].into(),
        stream: None,
    }
}

/// The image: what was written.
#[derive(Default)]
struct Stored(BTreeMap<Vec<u8>, Bytes>);

impl Stored {
    fn write(&mut self, desk: &mut Desk) {
        for (key, value) in desk.take_writes() {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    fn load(&self) -> Desk {
        Desk::load(self.0.clone()).unwrap()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Keep(u8, usize),
    Later(u64),
    Open(u64),
    Push(u64, usize),
    Close(u64),
    Received(u64, u64),
    Acked(u64, u64),
    Drop(u64),
    Begin(u64),
    End(u64),
    Hear(u8, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let (stream, seq) = (1u64..4, 0u64..20);
    prop_oneof![
        3 => (any::<u8>(), prop_oneof![0usize..100, Just(400_000usize), Just(BYTES_MAX)])
            .prop_map(|(key, size)| Op::Keep(key % 20, size)),
        1 => (0u64..AGE_MS_MAX).prop_map(Op::Later),
        2 => stream.clone().prop_map(Op::Open),
        5 => (stream.clone(), prop_oneof![0usize..100, Just(600_000usize)])
            .prop_map(|(stream, size)| Op::Push(stream, size)),
        1 => stream.clone().prop_map(Op::Close),
        3 => (stream.clone(), seq.clone()).prop_map(|(stream, seq)| Op::Received(stream, seq)),
        3 => (stream.clone(), seq.clone()).prop_map(|(stream, seq)| Op::Acked(stream, seq)),
        1 => stream.prop_map(Op::Drop),
        2 => (0u64..9).prop_map(Op::Begin),
        2 => (0u64..9).prop_map(Op::End),
        3 => (0u8..4, seq).prop_map(|(from, seq)| Op::Hear(from, seq)),
    ]
}

proptest! {
    /// Whatever is done: what was written is the desk, the bounds hold, a key's first answer
    /// stays, no message is taken twice.
    #[test]
    fn what_is_written_is_the_desk(ops in prop::collection::vec(op(), 0..80)) {
        let (mut desk, mut stored) = (Desk::default(), Stored::default());
        let (mut now, mut heard) = (0, BTreeMap::<u8, u64>::new());
        for op in ops {
            match op {
                Op::Keep(key, size) => {
                    let key = key.to_string();
                    let before = desk.replies().get(&key, now);
                    desk.keep_reply(&key, &reply(size), now);
                    let after = desk.replies().get(&key, now);
                    if before.is_some() {
                        prop_assert_eq!(after, before);
                    } else if size < BYTES_MAX {
                        prop_assert_eq!(after, Some(Known::Reply(reply(size))));
                    } else {
                        prop_assert_eq!(after, Some(Known::TooLarge));
                    }
                }
                Op::Later(ms) => now += ms,
                Op::Open(stream) => desk.open_line(stream),
                Op::Push(stream, size) => {
                    let piece = Piece::Data { text: false, bytes: vec![1; size].into() };
                    let last = desk.lines().get(stream).map(lines::Line::last);
                    if let Ok(seq) = desk.push(stream, piece) {
                        prop_assert_eq!(Some(seq - 1), last);
                    }
                }
                Op::Close(stream) => { let _ = desk.push(stream, Piece::Close { code: 0 }); }
                Op::Received(stream, seq) => desk.received(stream, seq),
                Op::Acked(stream, seq) => {
                    let over = desk.acked(stream, seq);
                    prop_assert_eq!(over, desk.lines().get(stream).is_none());
                }
                Op::Drop(stream) => desk.drop_line(stream),
                Op::Begin(call) => prop_assert!(desk.begin_call(call, called(call))),
                Op::End(call) => {
                    let known = desk.calls().iter().any(|(c, _)| c == call);
                    prop_assert_eq!(desk.end_call(call), known);
                }
                Op::Hear(from, seq) => {
                    let id = format!("service/s/{from}").parse().unwrap();
                    let new = heard.get(&from).is_none_or(|last| seq > *last);
                    prop_assert_eq!(desk.hear(&id, seq), new);
                    if new {
                        heard.insert(from, seq);
                    }
                }
            }
            stored.write(&mut desk);
            prop_assert!(stored.load() == desk);
            prop_assert!(desk.replies().len() <= KEYS_MAX && desk.replies().bytes() <= BYTES_MAX);
            for (_, line) in desk.lines().iter() {
                let bytes: usize = line.pieces().map(|(_, piece)| match piece {
                    Piece::Data { bytes, .. } => bytes.len(),
                    Piece::Close { .. } => 0,
                }).sum();
                prop_assert!(bytes <= lines::BYTES_MAX);
                // Without gaps, up to the newest.
                let seqs: Vec<u64> = line.pieces().map(|(seq, _)| seq).collect();
                let first = line.last() + 1 - seqs.len() as u64;
                prop_assert_eq!(seqs, (first..=line.last()).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn the_oldest_keys_go_first() {
    let mut desk = Desk::default();
    for n in 0..KEYS_MAX + 10 {
        desk.keep_reply(&n.to_string(), &reply(1), 0);
    }
    assert_eq!(desk.replies().len(), KEYS_MAX);
    assert!(desk.replies().get("9", 0).is_none() && desk.replies().get("10", 0).is_some());
    desk.keep_reply("new", &reply(1), AGE_MS_MAX + 1);
    assert_eq!(desk.replies().len(), 1, "the others are too old");
    assert!(desk.replies().get("new", 2 * AGE_MS_MAX + 2).is_none());
}

#[test]
fn a_slow_client_is_refused_more_and_can_still_be_closed() {
    let mut desk = Desk::default();
    desk.open_line(1);
    let piece = || Piece::Data {
        text: true,
        bytes: Bytes::from_static(b"x"),
    };
    for _ in 0..lines::PIECES_MAX {
        desk.push(1, piece()).unwrap();
    }
    assert_eq!(desk.push(1, piece()), Err(Refused::Full));
    desk.push(1, Piece::Close { code: 1013 }).unwrap();
    assert_eq!(desk.push(1, piece()), Err(Refused::Closed));
    assert_eq!(desk.push(2, piece()), Err(Refused::Closed));
    assert!(!desk.acked(1, 3));
    assert!(desk.acked(1, lines::PIECES_MAX as u64 + 1));
}

/// Every second one is not made again.
fn called(number: u64) -> Option<Call> {
    number.is_multiple_of(2).then(|| Call {
        epoch: 3,
        service: "other".into(),
        method: "POST".into(),
        path: "/x".into(),
        body: vec![1; 100].into(),
    })
}

#[test]
fn requests_of_calls_are_kept_up_to_a_bound() {
    let mut desk = Desk::default();
    let large = |body: usize| {
        called(0).map(|call| Call {
            body: vec![0; body].into(),
            ..call
        })
    };
    let half = calls::REQUEST_BYTES_MAX / 2;
    for (number, body) in [(1, half), (2, half), (3, 10)] {
        assert!(desk.begin_call(number, large(body)));
    }
    let kept = |desk: &Desk| -> Vec<u64> {
        let kept = desk.calls().iter().filter(|(_, call)| call.is_some());
        kept.map(|(number, _)| number).collect()
    };
    assert_eq!(kept(&desk), [1, 3], "the second does not fit");
    assert!(desk.end_call(1) && desk.begin_call(4, large(half)));
    assert_eq!(kept(&desk), [3, 4]);
}

#[test]
fn calls_and_voices_are_bounded() {
    let mut desk = Desk::default();
    for call in 0..CALLS_MAX as u64 {
        assert!(desk.begin_call(call, None));
    }
    assert!(!desk.begin_call(CALLS_MAX as u64, None));
    for n in 0..HEARD_MAX as u64 + 5 {
        assert!(desk.hear(&format!("service/s/{n}").parse().unwrap(), 1));
    }
    assert_eq!(desk.heard.by.len(), HEARD_MAX);
}

#[test]
fn letters_go_in_order_and_only_up_to_what_arrived() {
    let mut desk = Desk::default();
    let letter = |n: u8| Letter {
        topic: "t".into(),
        payload: vec![n; 10].into(),
    };
    for n in [3, 5, 9] {
        desk.keep_letter(n, letter(1));
    }
    assert_eq!(desk.letters().size().count, 3);
    assert_eq!(desk.letters().size().bytes, 33);
    assert!(desk.arrived(5) && !desk.arrived(8));
    let left: Vec<u64> = desk.letters().iter().map(|(n, _)| n).collect();
    assert_eq!(left, [9]);
    let mut stored = std::collections::BTreeMap::new();
    for (key, value) in desk.take_writes() {
        match value {
            Some(value) => drop(stored.insert(key, value)),
            None => drop(stored.remove(&key)),
        }
    }
    assert_eq!(Desk::load(stored).unwrap(), desk);
}

#[test]
fn a_damaged_entry_is_named() {
    for key in [b"k\xff".to_vec(), b"x1".to_vec(), b"s12".to_vec()] {
        assert!(Desk::load([(key, Bytes::from_static(b"\xff"))]).is_err());
    }
}
