//! Services without Wasm: an in-memory stand-in for Hop3, for unit tests.
//!
//! ```
//! use hop3_guest::{Error, Request, Response, Service, publish, testing::{Effect, Host}};
//!
//! struct Bell;
//! impl Service for Bell {
//!     fn request(_: Request) -> Result<Response, Error> {
//!         publish("bell/rung", "ding")?;
//!         Ok(Response::no_content())
//!     }
//! }
//!
//! let mut host = Host::<Bell>::new();
//! let refused = host.request("POST", "/ring", b"");
//! assert!(refused.failed() && refused.log[0].1.contains("not granted"));
//!
//! host.grant_topic("bell/*");
//! let rung = host.request("POST", "/ring", b"");
//! assert_eq!(rung.reply().status, 204);
//! assert!(matches!(&rung.effects[..], [Effect::Publish { payload, .. }] if payload == b"ding"));
//! ```
//!
//! There is one host per thread, and a test runs in a thread of its own; so state in a
//! `thread_local!` is each test's own too. Key-value data, timers and streams are put back when a
//! handler fails, as Hop3 does. Memory is not: that only a real instance can do. Limits are the
//! defaults of `spec.limits`.

pub(crate) mod imports;
mod world;

use std::{collections::BTreeMap, marker::PhantomData};

use crate::{Service, run};
use world::{Input, World, with};

/// A stand-in for Hop3 that runs `S`.
pub struct Host<S> {
    service: PhantomData<S>,
}

/// What a handler wants to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Publish a message.
    Publish {
        /// The topic.
        topic: String,
        /// What.
        payload: Vec<u8>,
    },
    /// Call a service.
    Call {
        /// The call's number.
        call: u64,
        /// Which service.
        service: String,
        /// `GET`, …
        method: String,
        /// Path and query.
        path: String,
        /// Body.
        body: Vec<u8>,
    },
    /// Send on a client stream.
    Send {
        /// Which.
        stream: u64,
        /// What.
        bytes: Vec<u8>,
        /// A WebSocket's text message.
        text: bool,
    },
    /// Close a client stream.
    Close {
        /// Which.
        stream: u64,
        /// Close code.
        code: u32,
    },
}

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// The client stream that it opened.
    pub stream: Option<u64>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        crate::http::header(&self.headers, name)
    }
}

/// How a handler ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// What it returned; not 0 when it failed.
    pub code: i32,
    /// The reply, if it was a request that did not fail.
    pub answer: Option<Answer>,
    /// What must happen, in order; nothing when it failed.
    pub effects: Vec<Effect>,
    /// What it logged: level (0 error to 3 debug) and text.
    pub log: Vec<(u8, String)>,
}

impl Called {
    /// Whether it failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.code != 0
    }

    /// The reply.
    ///
    /// # Panics
    /// The handler failed, or was none of a request.
    #[must_use]
    pub fn reply(&self) -> &Answer {
        let Some(answer) = &self.answer else {
            panic!(
                "no reply: the handler returned {}; log: {:?}",
                self.code, self.log
            )
        };
        answer
    }
}

impl<S: Service> Default for Host<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Service> Host<S> {
    /// A new instance, initialised. Replaces the thread's host.
    ///
    /// # Panics
    /// `init` failed.
    #[must_use]
    pub fn new() -> Self {
        with(|world| *world = World::default());
        let mut host = Self {
            service: PhantomData,
        };
        let called = host.call(Input::of(7, &[]), run::init::<S>);
        assert!(!called.failed(), "init failed: {:?}", called.log);
        host
    }

    /// Lets it publish to a topic, or with `a/*` to all below `a`.
    pub fn grant_topic(&mut self, topic: &str) {
        with(|world| world.topics.push(topic.to_owned()));
    }

    /// Lets it call a service.
    pub fn grant_service(&mut self, service: &str) {
        with(|world| world.services.push(service.to_owned()));
    }

    /// Sets the clock, in milliseconds since 1970.
    pub fn set_now(&mut self, ms: u64) {
        with(|world| world.now_ms = ms);
    }

    /// A request without headers.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Called {
        self.request_with(method, path, &[], body)
    }

    /// A request.
    pub fn request_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Called {
        let lines = headers.iter().map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            format!("{name}: {value}\n")
        });
        let lines: String = lines.collect();
        let fields = [
            (1, method.as_bytes()),
            (2, path.as_bytes()),
            (3, lines.as_bytes()),
        ];
        let input = Input::of(1, &fields).with(4, body).with(13, &[0]);
        self.call(input, run::request::<S>)
    }

    /// A message on a topic, from outside.
    pub fn topic(&mut self, topic: &str, payload: &[u8]) -> Called {
        let input = Input::of(2, &[(5, topic.as_bytes()), (4, payload)]);
        self.call(input, run::message::<S>)
    }

    /// Data that a client sends on its stream.
    pub fn data(&mut self, stream: u64, bytes: &[u8], text: bool) -> Called {
        let number = stream.to_le_bytes();
        let input = Input::of(3, &[(7, &number), (4, bytes), (8, &[u8::from(text)])]);
        self.call(input, run::message::<S>)
    }

    /// The client's end of a stream.
    pub fn closed(&mut self, stream: u64, code: u32) -> Called {
        with(|world| world.state.streams.remove(&stream));
        let number = stream.to_le_bytes();
        let input = Input::of(4, &[(7, &number), (17, &code.to_le_bytes())]);
        self.call(input, run::message::<S>)
    }

    /// The end of a call: status and body, or why there is no reply.
    pub fn call_ended(&mut self, call: u64, result: Result<(u16, &[u8]), &str>) -> Called {
        let (status, body) = match result {
            Ok((status, body)) => (status.to_string(), body),
            Err(why) => ("0".to_owned(), why.as_bytes()),
        };
        let number = call.to_le_bytes();
        let mut input = Input::of(5, &[(9, &number), (10, status.as_bytes()), (4, body)]);
        if result.is_ok() {
            input = input.with(3, b"");
        }
        self.call(input, run::message::<S>)
    }

    /// Timers that are set: number and time.
    #[must_use]
    pub fn timers(&self) -> BTreeMap<u64, u64> {
        with(|world| world.state.timers.clone())
    }

    /// Moves the clock to the earliest timer, if it is later than now, and runs it; none is set:
    /// nothing.
    pub fn next_timer(&mut self) -> Option<Called> {
        let timers = self.timers();
        let (number, due) = timers
            .into_iter()
            .min_by_key(|(number, due)| (*due, *number))?;
        with(|world| {
            world.now_ms = world.now_ms.max(due);
            world.state.timers.remove(&number);
        });
        let (number, due) = (number.to_le_bytes(), due.to_le_bytes());
        let input = Input::of(6, &[(11, &number), (12, &due)]);
        Some(self.call(input, run::timer::<S>))
    }

    /// The upgrade of a state of version `from`.
    pub fn upgrade(&mut self, from: u32) -> Called {
        let handler = || run::upgrade::<S>(from.cast_signed());
        self.call(Input::of(8, &[]), handler)
    }

    fn call(&mut self, input: Input, handler: impl FnOnce() -> i32) -> Called {
        let request = input.kind == 1;
        let before = with(|world| {
            world.begin(input);
            world.state.clone()
        });
        let code = handler();
        with(|world| {
            let (answer, effects, log) = world.end();
            if code != 0 {
                world.state = before;
                return Called {
                    code,
                    answer: None,
                    effects: Vec::new(),
                    log,
                };
            }
            Called {
                code,
                answer: request.then_some(answer),
                effects,
                log,
            }
        })
    }
}
