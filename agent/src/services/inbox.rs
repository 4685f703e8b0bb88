//! What waits for an instance. Pure, under the actor's lock.
//!
//! Requests and messages are counted against the service's `limits.queue`; what the instance
//! itself caused (ends of its calls, streams that are gone) is bounded by what it may have under
//! way, stream data by each stream's window ([`super::links::WAITING_MAX`]).

use std::{collections::VecDeque, time::Instant};

use hop3_common::{
    codes::{Code, Problem},
    wire::{CallResult, ServiceReply, ServiceRequest, TopicMessage},
};
use hop3_runtime::wasm::CancelToken;

use super::desk::lines::Piece;

/// Where an answer goes.
pub type ReplyTo = Box<dyn FnOnce(Result<CallResult, Problem>) + Send>;

/// Something that wants an answer.
pub struct Ask {
    /// Latest beginning and end.
    pub until: Instant,
    /// Given up by whoever asked.
    pub cancel: CancelToken,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

/// One thing to handle.
pub enum Item {
    /// A request.
    Request(Box<ServiceRequest>, Ask),
    /// A message.
    Message(Box<TopicMessage>, Ask),
    /// From the client of a stream.
    Client {
        /// Which stream.
        stream: u64,
        /// Its number.
        seq: u64,
        /// Data, or the end.
        piece: Piece,
    },
    /// A client stream is gone: nobody came back for it, or its client is too slow.
    Gone {
        /// Which stream.
        stream: u64,
        /// Close code for the guest.
        code: u16,
    },
    /// A call of the guest ended.
    CallEnded {
        /// Which.
        call: u64,
        /// How.
        result: Result<ServiceReply, Problem>,
        /// It was refused before it was noted as under way.
        refused: bool,
    },
}

/// Whether the instance takes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet.
    Starting,
    /// Yes.
    Serving,
    /// It stops to be sealed; it may go on.
    Sealing,
    /// Never again.
    Ended,
}

/// See the module.
pub struct Inbox {
    phase: Phase,
    /// Changes cannot be stored at the moment.
    blocked: Option<Problem>,
    items: VecDeque<Item>,
    /// Requests and messages among them.
    asks: usize,
    asks_max: usize,
    /// A worker has the instance in hand, or will have.
    pub scheduled: bool,
}

impl Inbox {
    /// An empty inbox of an instance that starts.
    #[must_use]
    pub fn new(asks_max: u32) -> Self {
        Self {
            phase: Phase::Starting,
            blocked: None,
            items: VecDeque::new(),
            asks: 0,
            asks_max: asks_max as usize,
            scheduled: false,
        }
    }

    /// Whether it takes anything.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether changes cannot be stored at the moment.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Requests and messages that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.asks
    }

    /// Changes the phase; whoever waits and surely has not begun gets to know.
    #[must_use]
    pub fn set_phase(&mut self, phase: Phase) -> Vec<Ask> {
        self.phase = phase;
        match phase {
            Phase::Starting | Phase::Serving => Vec::new(),
            Phase::Sealing => self.take_asks(),
            Phase::Ended => {
                let asks = self.take_asks();
                self.items.clear();
                asks
            }
        }
    }

    /// Changes cannot be stored, or can again. Gives what waits and must be refused.
    #[must_use]
    pub fn set_blocked(&mut self, why: Option<Problem>) -> Vec<Ask> {
        self.blocked = why;
        match self.blocked {
            Some(_) => self.take_asks(),
            None => Vec::new(),
        }
    }

    fn take_asks(&mut self) -> Vec<Ask> {
        let mut asks = Vec::with_capacity(self.asks);
        let mut rest = VecDeque::new();
        for item in self.items.drain(..) {
            match item {
                Item::Request(_, ask) | Item::Message(_, ask) => asks.push(ask),
                other => rest.push_back(other),
            }
        }
        (self.items, self.asks) = (rest, 0);
        asks
    }

    /// Why nothing can begin now, if so. Whatever it says: surely nothing began.
    ///
    /// # Errors
    /// The refusal.
    pub fn open(&self) -> Result<(), Problem> {
        match (self.phase, &self.blocked) {
            (Phase::Starting, _) => Err(not_ready("it starts")),
            (Phase::Sealing, _) => Err(not_ready("it moves")),
            (Phase::Ended, _) => Err(not_here()),
            (Phase::Serving, Some(why)) => Err(why.clone()),
            (Phase::Serving, None) => Ok(()),
        }
    }

    /// Takes a request or message in.
    ///
    /// # Errors
    /// Why not; the item comes back, so that its asker can be told.
    pub fn ask(&mut self, item: Item) -> Result<(), Box<(Item, Problem)>> {
        if let Err(problem) = self.open() {
            return Err(Box::new((item, problem)));
        }
        if self.asks >= self.asks_max {
            let message = format!("{} requests and messages wait for it", self.asks);
            return Err(Box::new((item, Problem::new(Code::Busy, message))));
        }
        self.asks += 1;
        self.items.push_back(item);
        Ok(())
    }

    /// Takes in what is bounded elsewhere; it is lost only with the instance.
    pub fn push(&mut self, item: Item) {
        if self.phase != Phase::Ended {
            self.items.push_back(item);
        }
    }

    /// Whether something can be handled now.
    #[must_use]
    pub fn runnable(&self) -> bool {
        self.phase == Phase::Serving && self.blocked.is_none()
    }

    /// The next item, if it can be handled now.
    pub fn pop(&mut self) -> Option<Item> {
        if !self.runnable() {
            return None;
        }
        let item = self.items.pop_front()?;
        if matches!(item, Item::Request(..) | Item::Message(..)) {
            self.asks -= 1;
        }
        Some(item)
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// It starts or moves.
#[must_use]
pub fn not_ready(why: &str) -> Problem {
    let message = format!("the instance takes no requests now: {why}");
    Problem::new(Code::ServiceNotReady, message)
}

/// It is not on this node, or not in this epoch.
#[must_use]
pub fn not_here() -> Problem {
    Problem::new(
        Code::NotHere,
        "this node does not run the instance in that epoch",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    fn request(answers: &Arc<Mutex<Vec<Code>>>) -> Item {
        let answers = answers.clone();
        let request = ServiceRequest {
            method: "GET".into(),
            path: "/".into(),
            headers: vec![],
            body: Default::default(),
            more: false,
            idempotency_key: None,
            from: None,
        };
        let reply = move |result: Result<CallResult, Problem>| {
            answers.lock().unwrap().push(result.unwrap_err().code);
        };
        let ask = Ask {
            until: Instant::now(),
            cancel: CancelToken::new(),
            reply: Box::new(reply),
        };
        Item::Request(Box::new(request), ask)
    }

    #[test]
    fn every_refusal_says_why_and_nothing_internal_is_lost() {
        let answers = Arc::default();
        let mut inbox = Inbox::new(2);
        let refused = |inbox: &mut Inbox| {
            inbox
                .ask(request(&answers))
                .err()
                .map(|refused| refused.1.code)
        };
        assert_eq!(refused(&mut inbox), Some(Code::ServiceNotReady));
        assert!(inbox.set_phase(Phase::Serving).is_empty());
        assert_eq!(refused(&mut inbox), None);
        assert_eq!(refused(&mut inbox), None);
        assert_eq!(refused(&mut inbox), Some(Code::Busy));
        inbox.push(Item::Gone { stream: 1, code: 0 });
        assert_eq!(inbox.set_phase(Phase::Sealing).len(), 2);
        assert_eq!(refused(&mut inbox), Some(Code::ServiceNotReady));
        assert!(inbox.pop().is_none() && !inbox.is_empty(), "it waits");
        assert!(inbox.set_phase(Phase::Serving).is_empty());
        let full = Problem::new(Code::Storage, "the disk is full");
        let _ = inbox.set_blocked(Some(full));
        assert_eq!(refused(&mut inbox), Some(Code::Storage));
        assert!(inbox.pop().is_none());
        let _ = inbox.set_blocked(None);
        assert!(matches!(inbox.pop(), Some(Item::Gone { .. })));
        let _ = inbox.set_phase(Phase::Ended);
        assert_eq!(refused(&mut inbox), Some(Code::NotHere));
    }
}
