//! What the host knows while a guest runs: the instance's setup, the state it may change, the
//! input it looks at, and what it has said so far.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::image::Held;
use super::log::Log;
use super::types::{Effect, Input, Letters, Reply, Setup};
use crate::wasm::wasi::{HasHost, Host};

/// The data of an instance's store.
pub(super) struct Data {
    pub(super) host: Host,
    pub(super) setup: Arc<Setup>,
    pub(super) log: Arc<Log>,
    /// The state as the call has changed it; becomes the image's if the call ends well.
    pub(super) held: Held,
    pub(super) call: Call,
}

impl HasHost for Data {
    fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }
}

impl Data {
    pub(super) fn timers_mut(&mut self) -> &mut BTreeMap<u64, u64> {
        Arc::make_mut(&mut self.held.timers)
    }

    pub(super) fn streams_mut(&mut self) -> &mut BTreeSet<u64> {
        Arc::make_mut(&mut self.held.streams)
    }
}

/// What is being handled.
#[derive(Debug, Default)]
pub(super) enum Current {
    /// The module's own start function, or `hop3_schema`: nothing may happen.
    #[default]
    Nothing,
    /// `hop3_init`.
    Init,
    /// `hop3_upgrade`.
    Upgrade,
    /// An input. A timer comes with the time when it was due.
    Input(Input, u64),
}

/// Bytes that a call has sent, by kind: each kind has its own bound.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) streams: u64,
    pub(super) published: u64,
    pub(super) called: u64,
}

/// One call.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) current: Current,
    /// The headers as the guest reads them, made when it first asks.
    lines: Option<Vec<u8>>,
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<(String, Bytes)>,
    pub(super) header_bytes: usize,
    pub(super) body: BytesMut,
    pub(super) stream: Option<u64>,
    /// A part of the reply was refused.
    pub(super) cut: bool,
    pub(super) effects: Vec<Effect>,
    pub(super) sent: Sent,
    /// Calls of the guest that have not ended, those of this call included.
    pub(super) calls: usize,
    /// Kept messages that wait, those of this call included; none if they are not kept.
    pub(super) letters: Option<Letters>,
}

/// The fields that `input` knows, by number.
mod field {
    pub(super) const KIND: i32 = 0;
    pub(super) const METHOD: i32 = 1;
    pub(super) const PATH: i32 = 2;
    pub(super) const HEADERS: i32 = 3;
    pub(super) const BODY: i32 = 4;
    pub(super) const TOPIC: i32 = 5;
    pub(super) const FROM: i32 = 6;
    pub(super) const STREAM: i32 = 7;
    pub(super) const TEXT: i32 = 8;
    pub(super) const CALL: i32 = 9;
    pub(super) const STATUS: i32 = 10;
    pub(super) const TIMER: i32 = 11;
    pub(super) const DUE: i32 = 12;
    pub(super) const MORE: i32 = 13;
    pub(super) const INSTANCE: i32 = 14;
    pub(super) const INDEX: i32 = 15;
    pub(super) const COUNT: i32 = 16;
    pub(super) const CODE: i32 = 17;
}

impl Call {
    pub(super) fn new(current: Current) -> Self {
        Self {
            current,
            ..Self::default()
        }
    }

    /// Whether nothing may happen now.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.current, Current::Nothing)
    }

    /// Whether a request is being handled.
    pub(super) fn is_request(&self) -> bool {
        matches!(self.current, Current::Input(Input::Request { .. }, _))
    }

    /// The reply as it stands.
    pub(super) fn take_reply(&mut self) -> Option<Reply> {
        self.is_request().then(|| Reply {
            status: self.status.unwrap_or(200),
            headers: std::mem::take(&mut self.headers),
            body: std::mem::take(&mut self.body).freeze(),
            stream: self.stream,
        })
    }

    /// The field of that number, if it is there now.
    pub(super) fn field<'a>(&'a mut self, number: i32, setup: &'a Setup) -> Option<Cow<'a, [u8]>> {
        match number {
            field::KIND => Some(Cow::Owned(vec![self.current.kind()?])),
            field::INSTANCE => Some(Cow::Borrowed(setup.name.as_bytes())),
            field::INDEX => Some(Cow::Owned(setup.index.to_le_bytes().to_vec())),
            field::COUNT => Some(Cow::Owned(setup.count.to_le_bytes().to_vec())),
            field::HEADERS => {
                if self.lines.is_none() {
                    self.lines = Some(lines(self.current.headers()?));
                }
                self.lines.as_deref().map(Cow::Borrowed)
            }
            number => self.current.field(number),
        }
    }
}

impl Current {
    fn kind(&self) -> Option<u8> {
        Some(match self {
            Self::Nothing => return None,
            Self::Init => 7,
            Self::Upgrade => 8,
            Self::Input(input, _) => match input {
                Input::Request { .. } => 1,
                Input::Topic { .. } => 2,
                Input::StreamData { .. } => 3,
                Input::StreamClosed { .. } => 4,
                Input::CallEnded { .. } => 5,
                Input::Timer { .. } => 6,
            },
        })
    }

    fn headers(&self) -> Option<&[(String, Bytes)]> {
        match self {
            Self::Input(Input::Request { headers, .. }, _) => Some(headers),
            Self::Input(Input::CallEnded { result, .. }, _) => {
                Some(result.as_ref().map_or(&[][..], |reply| &reply.headers))
            }
            _ => None,
        }
    }

    fn field(&self, number: i32) -> Option<Cow<'_, [u8]>> {
        fn bytes(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
            Some(Cow::Borrowed(bytes))
        }
        let Self::Input(input, due_ms) = self else {
            return None;
        };
        let number8 = |n: &u64| Some(Cow::Owned(n.to_le_bytes().to_vec()));
        let flag = |on: &bool| Some(Cow::Owned(vec![u8::from(*on)]));
        match (input, number) {
            (Input::Request { method, .. }, field::METHOD) => bytes(method.as_bytes()),
            (Input::Request { path, .. }, field::PATH) => bytes(path.as_bytes()),
            (Input::Request { body, .. }, field::BODY) => bytes(body),
            (Input::Request { more, .. }, field::MORE) => flag(more),
            (Input::Request { from, .. } | Input::Topic { from, .. }, field::FROM) => {
                from.as_ref().map(|from| Cow::Borrowed(from.as_bytes()))
            }
            (Input::Topic { topic, .. }, field::TOPIC) => bytes(topic.as_bytes()),
            (Input::Topic { payload, .. }, field::BODY) => bytes(payload),
            (Input::StreamData { bytes: data, .. }, field::BODY) => bytes(data),
            (Input::StreamData { text, .. }, field::TEXT) => flag(text),
            (
                Input::StreamData { stream, .. } | Input::StreamClosed { stream, .. },
                field::STREAM,
            ) => number8(stream),
            (Input::StreamClosed { code, .. }, field::CODE) => {
                Some(Cow::Owned(u32::from(*code).to_le_bytes().to_vec()))
            }
            (Input::CallEnded { call, .. }, field::CALL) => number8(call),
            (Input::CallEnded { result, .. }, field::STATUS) => {
                let status = result.as_ref().map_or(0, |reply| reply.status);
                Some(Cow::Owned(status.to_string().into_bytes()))
            }
            (Input::CallEnded { result, .. }, field::BODY) => match result {
                Ok(reply) => bytes(&reply.body),
                Err(why) => bytes(why.as_bytes()),
            },
            (Input::Timer { timer }, field::TIMER) => number8(timer),
            (Input::Timer { .. }, field::DUE) => number8(due_ms),
            _ => None,
        }
    }
}

/// Headers as lines.
fn lines(headers: &[(String, Bytes)]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        lines.put_slice(name.as_bytes());
        lines.put_slice(b": ");
        lines.put_slice(value);
        lines.push(b'\n');
    }
    lines
}
