//! What the stand-in knows: the input, the state that is not memory, and what a call did so far.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{Answer, Effect};

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

/// Works on the thread's host.
pub(crate) fn with<T>(work: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(work)
}

/// The fields of what is being handled.
#[derive(Default)]
pub(crate) struct Input {
    pub(crate) kind: u8,
    fields: BTreeMap<i32, Vec<u8>>,
}

impl Input {
    pub(crate) fn of(kind: u8, fields: &[(i32, &[u8])]) -> Self {
        let fields = fields.iter().map(|(field, value)| (*field, value.to_vec()));
        let mut input = Self {
            kind,
            fields: fields.collect(),
        };
        for (field, value) in [
            (0, &[kind][..]),
            (14, b"service/test/0"),
            (15, &0_u32.to_le_bytes()),
            (16, &1_u32.to_le_bytes()),
        ] {
            input = input.with(field, value);
        }
        input
    }

    pub(crate) fn with(mut self, field: i32, value: &[u8]) -> Self {
        self.fields.insert(field, value.to_vec());
        self
    }

    pub(crate) fn get(&self, field: i32) -> Option<&[u8]> {
        self.fields.get(&field).map(Vec::as_slice)
    }
}

/// What is put back when a handler fails.
#[derive(Default, Clone)]
pub(crate) struct State {
    pub(crate) kv: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) timers: BTreeMap<u64, u64>,
    pub(crate) streams: BTreeSet<u64>,
    pub(crate) streams_opened: u64,
    pub(crate) calls: u64,
}

/// One thread's host.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) topics: Vec<String>,
    pub(crate) services: Vec<String>,
    pub(crate) now_ms: u64,
    pub(crate) input: Input,
    pub(crate) answer: Answer,
    pub(crate) effects: Vec<Effect>,
    pub(crate) log: Vec<(u8, String)>,
    /// Bytes of effects of this call.
    pub(crate) sent: usize,
}

impl World {
    pub(crate) fn begin(&mut self, input: Input) {
        self.input = input;
        self.answer = Answer {
            status: 200,
            ..Answer::default()
        };
        self.effects.clear();
        self.log.clear();
        self.sent = 0;
    }

    pub(crate) fn end(&mut self) -> (Answer, Vec<Effect>, Vec<(u8, String)>) {
        self.input = Input::default();
        let answer = mem::take(&mut self.answer);
        (
            answer,
            mem::take(&mut self.effects),
            mem::take(&mut self.log),
        )
    }
}
