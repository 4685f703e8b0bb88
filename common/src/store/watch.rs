//! Watches: bounded queues of changes. A watcher that is too slow is told so and cut off; it never
//! slows a commit down.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Key, Revision};

/// Most events that wait for one watcher. Values are shared, so this bounds its backlog to 8 MiB
/// of the largest values.
pub const WATCH_EVENTS_MAX: usize = 256;

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has this value now.
    Put(Bytes),
    /// It is gone.
    Delete,
}

/// One change of one key. A commit of several keys gives several events of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Key,
    /// What happened.
    pub change: Change,
    /// The commit.
    pub revision: Revision,
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was too slow and events were dropped.
    #[error("the watcher fell {WATCH_EVENTS_MAX} events behind: watch and list again")]
    Lagged,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// The receiving end of a watch.
#[derive(Debug)]
pub struct Watch {
    start: Revision,
    events: mpsc::Receiver<Event>,
    lagged: Arc<AtomicBool>,
}

impl Watch {
    /// Every matching change after this revision is delivered.
    #[must_use]
    pub fn start(&self) -> Revision {
        self.start
    }

    /// The next change, in order.
    ///
    /// Cancel-safe. What was queued before a lag is still delivered first.
    ///
    /// # Errors
    /// [`WatchError`], and the same again from then on.
    pub async fn next(&mut self) -> Result<Event, WatchError> {
        self.events.recv().await.ok_or_else(|| self.end())
    }

    /// The next change if one waits already.
    ///
    /// # Errors
    /// [`WatchError`], and the same again from then on.
    pub fn try_next(&mut self) -> Result<Option<Event>, WatchError> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(self.end()),
        }
    }

    fn end(&self) -> WatchError {
        if self.lagged.load(Ordering::Acquire) {
            WatchError::Lagged
        } else {
            WatchError::Closed
        }
    }
}

#[derive(Debug)]
struct Watcher {
    prefix: Vec<u8>,
    events: mpsc::Sender<Event>,
    lagged: Arc<AtomicBool>,
}

/// All watches of a store, and the last revision that they were told. Lock around it: a new watch
/// must not slip between a commit's revision and its events.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    revision: Revision,
    list: Vec<Watcher>,
}

impl Watchers {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            revision,
            list: Vec::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn add(&mut self, prefix: &[u8]) -> Watch {
        let (events, receiver) = mpsc::channel(WATCH_EVENTS_MAX);
        let lagged = Arc::new(AtomicBool::new(false));
        self.list.retain(|w| !w.events.is_closed());
        self.list.push(Watcher {
            prefix: prefix.into(),
            events,
            lagged: lagged.clone(),
        });
        Watch {
            start: self.revision,
            events: receiver,
            lagged,
        }
    }

    /// Whether anyone follows `key`.
    pub(super) fn wants(&self, key: &Key) -> bool {
        self.list
            .iter()
            .any(|w| key.as_bytes().starts_with(&w.prefix))
    }

    /// Tells everyone who follows the event's key.
    pub(super) fn publish(&mut self, event: &Event) {
        self.list.retain(|w| {
            if !event.key.as_bytes().starts_with(&w.prefix) {
                return true;
            }
            match w.events.try_send(event.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    w.lagged.store(true, Ordering::Release);
                    false
                }
            }
        });
    }

    /// Marks the end of a commit's events.
    pub(super) fn advance(&mut self, revision: Revision) {
        debug_assert!(revision >= self.revision, "revisions never go back");
        self.revision = revision;
    }
}
