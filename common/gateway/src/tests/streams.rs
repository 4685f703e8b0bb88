//! Client streams: numbers under loss, and the durable far side that the other tests attach to.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    wire::{ClientDown, ClientUp},
};
use proptest::prelude::*;
use tokio::sync::Notify;

use crate::{
    Link,
    stream::{Item, Machine, WINDOW_BYTES},
};

/// What a far side does with what comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Keep,
    /// Sends it back, and closes when the client does.
    Echo,
    /// Counts bytes, and answers with their number when the client closes.
    Count,
}

/// The instance's side of a stream: what it holds survives links, as it would moves.
#[derive(Default)]
pub(super) struct Far {
    state: Mutex<FarState>,
    news: Notify,
    /// Links break after this many frames; 0 = never.
    pub(super) break_after: AtomicU32,
    pub(super) links: AtomicU32,
    /// Attaching is refused with this.
    pub(super) refuse: Mutex<Option<Code>>,
    pub(super) refused: AtomicU32,
}

#[derive(Default)]
struct FarState {
    mode: Mode,
    received: u64,
    got: Vec<(bool, Bytes)>,
    closed: Option<u16>,
    /// Sent and not acknowledged.
    out: VecDeque<ClientDown>,
    last: u64,
    acked: u64,
}

impl FarState {
    fn send(&mut self, item: Item) {
        self.last += 1;
        let seq = self.last;
        self.out.push_back(match item {
            Item::Data { text, bytes } => ClientDown::Data { seq, text, bytes },
            Item::Close { code } => ClientDown::Close { seq, code },
        });
    }

    fn take(&mut self, seq: u64, item: Item) {
        assert!(
            seq <= self.received + 1,
            "a gap: {seq} after {}",
            self.received
        );
        if seq <= self.received {
            return;
        }
        self.received = seq;
        match (item, self.mode) {
            (Item::Data { text, bytes }, mode) => {
                self.got.push((text, bytes.clone()));
                if mode == Mode::Echo {
                    self.send(Item::Data { text, bytes });
                }
            }
            (Item::Close { code }, mode) => {
                self.closed = Some(code);
                if mode == Mode::Count {
                    let total: usize = self.got.iter().map(|(_, bytes)| bytes.len()).sum();
                    let bytes = Bytes::from(total.to_string());
                    self.send(Item::Data { text: false, bytes });
                }
                if mode != Mode::Keep {
                    self.send(Item::Close { code: 0 });
                }
            }
        }
    }
}

impl Far {
    pub(super) fn new(mode: Mode) -> Arc<Self> {
        let far = Self::default();
        far.state.lock().unwrap().mode = mode;
        Arc::new(far)
    }

    pub(super) fn send(&self, item: Item) {
        self.state.lock().unwrap().send(item);
        self.news.notify_one();
    }

    pub(super) fn say(&self, text: &'static str) {
        let bytes = Bytes::from_static(text.as_bytes());
        self.send(Item::Data { text: true, bytes });
    }

    pub(super) fn got(&self) -> Vec<(bool, Bytes)> {
        self.state.lock().unwrap().got.clone()
    }

    pub(super) fn closed(&self) -> Option<u16> {
        self.state.lock().unwrap().closed
    }

    /// How much of what it sent has reached the client.
    pub(super) fn acked(&self) -> u64 {
        self.state.lock().unwrap().acked
    }
}

pub(super) struct FarLink {
    far: Arc<Far>,
    attached: bool,
    ack_sent: u64,
    sent: u64,
    frames: u32,
}

impl FarLink {
    pub(super) fn attach(far: &Arc<Far>, first: &ClientUp) -> Result<Self, Problem> {
        let ClientUp::Attach { received, .. } = first else {
            panic!("the first frame is no attach: {first:?}");
        };
        if let Some(code) = *far.refuse.lock().unwrap() {
            far.refused.fetch_add(1, Relaxed);
            return Err(Problem::new(code, "refused"));
        }
        far.links.fetch_add(1, Relaxed);
        Ok(Self {
            far: Arc::clone(far),
            attached: false,
            ack_sent: 0,
            sent: *received,
            frames: 0,
        })
    }

    fn broken(&mut self) -> bool {
        self.frames += 1;
        let after = self.far.break_after.load(Relaxed);
        after > 0 && self.frames > after
    }

    fn next(&mut self) -> Option<ClientDown> {
        let state = self.far.state.lock().unwrap();
        if !self.attached {
            self.attached = true;
            return Some(ClientDown::Attached {
                received: state.received,
            });
        }
        if self.ack_sent < state.received {
            self.ack_sent = state.received;
            return Some(ClientDown::Ack {
                seq: state.received,
            });
        }
        let after = |frame: &&ClientDown| match frame {
            ClientDown::Data { seq, .. } | ClientDown::Close { seq, .. } => *seq > self.sent,
            _ => false,
        };
        let frame = state.out.iter().find(after).cloned();
        if frame.is_some() {
            self.sent += 1;
        }
        frame
    }
}

#[async_trait::async_trait]
impl Link for FarLink {
    async fn send(&mut self, frame: ClientUp) -> Result<(), Problem> {
        if self.broken() {
            return Err(Problem::new(Code::NodeUnreachable, "the link broke"));
        }
        let mut state = self.far.state.lock().unwrap();
        match frame {
            ClientUp::Attach { .. } => panic!("attached twice"),
            ClientUp::Data { seq, text, bytes } => state.take(seq, Item::Data { text, bytes }),
            ClientUp::Close { seq, code } => state.take(seq, Item::Close { code }),
            ClientUp::Ack { seq } => {
                assert!(seq <= state.last, "what was not sent is acknowledged");
                state.acked = state.acked.max(seq);
                let acked = state.acked;
                state.out.retain(|frame| match frame {
                    ClientDown::Data { seq, .. } | ClientDown::Close { seq, .. } => *seq > acked,
                    _ => false,
                });
            }
        }
        Ok(())
    }

    async fn recv(&mut self) -> Option<ClientDown> {
        loop {
            if let Some(frame) = self.next() {
                return (!self.broken()).then_some(frame);
            }
            let far = Arc::clone(&self.far);
            far.news.notified().await;
        }
    }
}

/// One thing that happens to a stream.
#[derive(Debug, Clone)]
enum Event {
    ClientSends(u8),
    FarSends(u8),
    /// A frame goes up, and arrives, or is lost with all after it when the link breaks.
    Up,
    Down,
    /// The client takes what came.
    Taken,
    /// The link breaks; what was under way is lost. The far side may forget what it did not
    /// acknowledge: it was not durable.
    Break {
        forget: bool,
    },
}

/// The pieces between the two sides of a model.
struct Model {
    near: Machine,
    far: FarState,
    acked_up: u64,
    sent_down: u64,
    from_client: Vec<Item>,
    at_client: Vec<Item>,
    from_far: Vec<Item>,
    held: Option<Item>,
}

fn data(n: u8) -> Item {
    let bytes = Bytes::from(vec![n; usize::from(n)]);
    Item::Data {
        text: n.is_multiple_of(2),
        bytes,
    }
}

impl Model {
    fn new() -> Self {
        Self {
            near: Machine::new(7),
            far: FarState::default(),
            acked_up: 0,
            sent_down: 0,
            from_client: Vec::new(),
            at_client: Vec::new(),
            from_far: Vec::new(),
            held: None,
        }
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::ClientSends(n) if self.near.room() => {
                self.from_client.push(data(*n));
                self.near.push(data(*n));
            }
            Event::FarSends(n) => {
                self.from_far.push(data(*n));
                self.far.send(data(*n));
            }
            Event::Up => match self.near.next() {
                Some(ClientUp::Data { seq, text, bytes }) => {
                    self.far.take(seq, Item::Data { text, bytes });
                }
                Some(ClientUp::Close { seq, code }) => self.far.take(seq, Item::Close { code }),
                Some(ClientUp::Ack { seq }) => self.far.acked = self.far.acked.max(seq),
                Some(ClientUp::Attach { .. }) => panic!("not by itself"),
                None => {}
            },
            Event::Down if self.held.is_none() => self.down(),
            Event::Taken => self.taken(),
            Event::Break { forget } => {
                if *forget {
                    let kept = usize::try_from(self.acked_up).unwrap();
                    self.far.got.truncate(kept);
                    self.far.received = self.acked_up;
                }
                let ClientUp::Attach { received, .. } = self.near.attach() else {
                    panic!("no attach");
                };
                assert!(received >= self.far.acked);
                self.sent_down = received;
                self.near.attached(self.far.received).unwrap();
            }
            Event::ClientSends(_) | Event::Down => {}
        }
    }

    fn down(&mut self) {
        if self.acked_up < self.far.received {
            self.acked_up = self.far.received;
            let seq = self.acked_up;
            assert_eq!(self.near.receive(ClientDown::Ack { seq }), Ok(None));
        }
        let at = usize::try_from(self.sent_down).unwrap();
        if let Some(frame) = self.far.out.get(at).cloned() {
            self.sent_down += 1;
            self.held = self.near.receive(frame).unwrap();
        }
    }

    fn taken(&mut self) {
        if let Some(item) = self.held.take() {
            self.at_client.push(item);
            self.near.delivered();
        }
    }

    fn at_far(&self) -> Vec<Item> {
        let item = |(text, bytes): &(bool, Bytes)| Item::Data {
            text: *text,
            bytes: bytes.clone(),
        };
        self.far.got.iter().map(item).collect()
    }
}

proptest! {
    #[test]
    fn everything_arrives_once_and_in_order(
        events in proptest::collection::vec(prop_oneof![
            3 => any::<u8>().prop_map(Event::ClientSends),
            3 => any::<u8>().prop_map(Event::FarSends),
            6 => Just(Event::Up),
            6 => Just(Event::Down),
            6 => Just(Event::Taken),
            1 => any::<bool>().prop_map(|forget| Event::Break { forget }),
        ], 0..300),
    ) {
        let mut model = Model::new();
        for event in &events {
            model.step(event);
            let so_far = model.at_far();
            prop_assert_eq!(&so_far, &model.from_client[..so_far.len()]);
            prop_assert_eq!(&model.at_client, &model.from_far[..model.at_client.len()]);
        }
        // One more break, and then all goes through.
        model.step(&Event::Break { forget: true });
        for _ in 0..events.len() * 3 + 10 {
            for event in [Event::Up, Event::Down, Event::Taken] {
                model.step(&event);
            }
        }
        prop_assert_eq!(model.at_far(), model.from_client);
        prop_assert_eq!(model.at_client, model.from_far);
        prop_assert!(model.near.room() && model.near.next().is_none());
    }
}

#[test]
fn the_window_bounds_what_is_kept() {
    let mut machine = Machine::new(1);
    let piece = Item::Data {
        text: false,
        bytes: Bytes::from(vec![0; 64 << 10]),
    };
    let mut taken = 0;
    while machine.room() {
        machine.push(piece.clone());
        taken += 1;
    }
    assert_eq!(taken * (64 << 10), WINDOW_BYTES);
    machine.receive(ClientDown::Ack { seq: 1 }).unwrap();
    assert!(machine.room());
    machine.push(Item::Close { code: 0 });
    assert!(!machine.room(), "nothing follows a close");
}

#[test]
fn wrong_numbers_are_violations() {
    let mut machine = Machine::new(1);
    let data = |seq| ClientDown::Data {
        seq,
        text: false,
        bytes: Bytes::new(),
    };
    assert!(machine.receive(data(2)).is_err());
    assert!(machine.receive(ClientDown::Ack { seq: 1 }).is_err());
    assert!(machine.attached(1).is_err());
    machine.push(Item::Close { code: 0 });
    machine.receive(ClientDown::Ack { seq: 1 }).unwrap();
    assert!(
        machine.attached(0).is_err(),
        "what was acknowledged is lost"
    );
    machine
        .receive(ClientDown::Close { seq: 1, code: 0 })
        .unwrap();
    assert!(machine.receive(data(2)).is_err(), "nothing follows a close");
    assert!(!machine.finished());
    machine.delivered();
    assert_eq!(machine.next(), Some(ClientUp::Ack { seq: 1 }));
    assert!(machine.finished());
}
