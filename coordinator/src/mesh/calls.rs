//! Calls to a node, many to a stream.
//!
//! A node has a few long-lived streams ("lanes"), opened when needed. Each has one writer, which
//! gives the stream whatever was queued as one write, and one reader, which completes the callers.
//! A caller encodes straight into the lane's queue and waits on its own one-shot: no task, no
//! channel and no lock is held per call. Large inputs get a stream of their own, so that they do
//! not stand in front of small ones.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    wire::{
        CALL_FRAME_MAX, Call, CallResult, Reply, StreamHeader, Target,
        io::{self, FrameReader},
    },
};
use quinn::{RecvStream, SendStream};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    inflight::{self, InFlight},
    link::PRIORITY_CALLS,
    outgoing::{self, Outgoing},
    peer::{Breach, Peer},
};

/// Most lanes per node. Half of the streams that an agent grants at first.
const LANES_MAX: usize = 4;
/// Calls in flight on every lane before one more is opened: fewer lanes coalesce better, more
/// suffer less from a lost packet.
const LANE_CALLS: usize = 64;
/// Most bytes of calls that wait in a lane for the node to take them.
const LANE_BYTES_MAX: usize = 1 << 20;
/// An input from this size on has its own stream: above it, the copy costs more than the stream.
const LARGE_BYTES: usize = 64 << 10;
/// Lanes tried for one call before the node counts as unreachable: it may have just ended some.
const ENTER_TRIES: usize = LANES_MAX + 1;
/// Most large calls at once per node: 8 MiB each, twice (input and output).
const LARGE_MAX: usize = 4;

type Outcome = Result<CallResult, Problem>;
type Waiting = InFlight<oneshot::Sender<Outcome>>;

/// The calls of one session.
pub(super) struct Calls {
    peer: Arc<Peer>,
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// One opens at a time.
    opening: tokio::sync::Mutex<()>,
    large: Semaphore,
}

/// One long-lived stream.
struct Lane {
    outgoing: Outgoing,
    waiting: Mutex<Waiting>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can leave them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    pub(super) fn new(peer: Arc<Peer>) -> Self {
        let (lanes, opening) = (Mutex::default(), tokio::sync::Mutex::default());
        Self {
            peer,
            lanes,
            opening,
            large: Semaphore::new(LARGE_MAX),
        }
    }

    /// See [`NodeLink::call`](super::NodeLink::call).
    pub(super) async fn call(&self, target: Target, deadline: Duration) -> Outcome {
        let until = Instant::now() + deadline;
        let bytes = input_bytes(&target);
        if bytes > CALL_FRAME_MAX {
            let message = format!("an input of {bytes} bytes exceeds {CALL_FRAME_MAX}");
            return Err(Problem::new(Code::TooLarge, message));
        }
        self.peer.counters.calls.one();
        let outcome = if bytes >= LARGE_BYTES {
            timeout_at(until, Box::pin(self.large(target, until))).await
        } else {
            timeout_at(until, self.small(target, until)).await
        };
        outcome.unwrap_or_else(|_| {
            let message = format!(
                "node `{}` did not answer within {deadline:?}",
                self.peer.node
            );
            Err(Problem::new(Code::Deadline, message))
        })
    }

    async fn small(&self, target: Target, until: Instant) -> Outcome {
        let (lane, id, reply) = self.enter(until).await?;
        let mut pending = Pending {
            calls: self,
            lane: &lane,
            id,
            armed: true,
        };
        let asks = matches!(target, Target::Service { .. });
        let call = Call {
            id,
            deadline_ms: left_ms(until),
            target,
        };
        lane.outgoing
            .push(&call, CALL_FRAME_MAX)
            .map_err(|error| self.not_sent(&error))?;
        let outcome = reply.await.unwrap_or_else(|_| Err(self.peer.unreachable()));
        pending.armed = false;
        self.answered(outcome, asks)
    }

    /// A place in a lane.
    async fn enter(
        &self,
        until: Instant,
    ) -> Result<(Arc<Lane>, u64, oneshot::Receiver<Outcome>), Problem> {
        let (mut sender, receiver) = oneshot::channel();
        for _ in 0..ENTER_TRIES {
            let lane = match self.least_busy(LANE_CALLS) {
                Some(lane) => lane,
                None => self.open_lane(until).await?,
            };
            // The guard must be gone before anything is awaited.
            let inserted = lock(&lane.waiting).insert(sender);
            match inserted {
                Ok(id) => return Ok((lane, id, receiver)),
                Err(inflight::Rejected::Full(_)) => return Err(self.busy()),
                Err(inflight::Rejected::Closed(back)) => {
                    sender = back;
                    lock(&self.lanes).retain(|known| !Arc::ptr_eq(known, &lane));
                }
            }
        }
        Err(self.peer.unreachable())
    }

    /// The lane with the fewest calls, if it has fewer than `below` or no lane may be added.
    fn least_busy(&self, below: usize) -> Option<Arc<Lane>> {
        let lanes = lock(&self.lanes);
        let (calls, lane) = lanes
            .iter()
            .map(|lane| (lock(&lane.waiting).len(), lane))
            .min_by_key(|l| l.0)?;
        (calls < below || lanes.len() >= LANES_MAX).then(|| lane.clone())
    }

    async fn open_lane(&self, until: Instant) -> Result<Arc<Lane>, Problem> {
        let _one = self.opening.lock().await;
        if let Some(lane) = self.least_busy(LANE_CALLS) {
            return Ok(lane);
        }
        let opened = self.peer.open(&StreamHeader::Calls, until).await;
        let (send, recv) = match opened {
            Ok(streams) => streams,
            // The node grants no more streams: share what there is.
            Err(problem) if problem.code == Code::Busy => {
                return self.least_busy(usize::MAX).ok_or(problem);
            }
            Err(problem) => return Err(problem),
        };
        // Fails only when the stream is gone, which the writer notices.
        let _ = send.set_priority(PRIORITY_CALLS);
        let lane = Arc::new(Lane {
            outgoing: Outgoing::new(LANE_BYTES_MAX),
            waiting: Mutex::default(),
        });
        lock(&self.lanes).push(lane.clone());
        tokio::spawn(write_lane(lane.clone(), send, self.peer.clone()));
        let reader = Reader {
            peer: self.peer.clone(),
            lane: lane.clone(),
        };
        tokio::spawn(reader.run(recv));
        Ok(lane)
    }

    /// A call on its own stream. Dropping the streams tells the node to give it up.
    async fn large(&self, target: Target, until: Instant) -> Outcome {
        let _permit = self.large.try_acquire().map_err(|_| self.busy())?;
        let (mut send, mut recv) = self.peer.open(&StreamHeader::Calls, until).await?;
        let asks = matches!(target, Target::Service { .. });
        let call = Call {
            id: 1,
            deadline_ms: left_ms(until),
            target,
        };
        self.peer
            .written(io::write(&mut send, &call, CALL_FRAME_MAX).await)?;
        let reply = self
            .peer
            .read(io::read::<Reply>(&mut recv, CALL_FRAME_MAX).await)
            .and_then(|reply| reply.ok_or_else(|| self.peer.unreachable()));
        let reply = match reply {
            Ok(reply) => reply,
            Err(problem) => return self.answered(Err(problem), asks),
        };
        if reply.id != call.id {
            let breach = Breach(format!("no call {}", reply.id));
            self.peer.breach(&breach);
            return self.answered(Err(self.peer.unreachable()), asks);
        }
        // The stream has served; its end may get lost with the session.
        let _ = send.finish();
        reply.result
    }

    /// What came of a call that was sent. A request to a service may have happened although its
    /// answer was lost, and whoever asked must know that it was sent.
    fn answered(&self, outcome: Outcome, asks: bool) -> Outcome {
        outcome.map_err(|problem| match problem.code {
            Code::NodeUnreachable | Code::Protocol if asks => {
                let why = problem.message;
                let message = format!("{why}, after the request was sent: it may have happened");
                Problem::new(Code::OutcomeUnknown, message)
            }
            _ => problem,
        })
    }

    fn busy(&self) -> Problem {
        let message = format!(
            "node `{}` has as many calls in flight as it may",
            self.peer.node
        );
        Problem::new(Code::Busy, message)
    }

    fn not_sent(&self, error: &outgoing::Error) -> Problem {
        match error {
            outgoing::Error::Closed => self.peer.unreachable(),
            outgoing::Error::Full => self.busy(),
            outgoing::Error::Frame(_) => {
                Problem::new(Code::TooLarge, format!("the call does not fit: {error}"))
            }
        }
    }
}

/// A call that has its place. If it is dropped unanswered, the place is freed and the node told.
struct Pending<'a> {
    calls: &'a Calls,
    lane: &'a Lane,
    id: u64,
    armed: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let inflight::Reply::For(_) = lock(&self.lane.waiting).take(self.id) {
            self.calls.peer.counters.calls_abandoned.one();
            let cancel = Target::Cancel { id: self.id };
            let cancel = Call {
                id: self.id,
                deadline_ms: 0,
                target: cancel,
            };
            // A full or closed lane: the node's own deadline ends the call.
            let _ = self.lane.outgoing.push(&cancel, CALL_FRAME_MAX);
        }
    }
}

/// Bytes of input, near enough to choose a stream by.
fn input_bytes(target: &Target) -> usize {
    match target {
        Target::Module { input, .. } => input.len(),
        Target::Model { inputs, .. } => inputs.iter().map(|tensor| tensor.data().len()).sum(),
        Target::Cancel { .. } => 0,
        Target::Service { request, .. } => request.body.len(),
        Target::Message { message, .. } => message.payload.len(),
    }
}

fn left_ms(until: Instant) -> u32 {
    let left = until.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1)
}

impl Lane {
    /// Takes no more calls and fails those that wait.
    fn end(&self, peer: &Peer) {
        self.outgoing.close();
        let waiting = lock(&self.waiting).close();
        for caller in waiting {
            // A caller that left needs no answer.
            let _ = caller.send(Err(peer.unreachable()));
        }
    }
}

async fn write_lane(lane: Arc<Lane>, mut send: SendStream, peer: Arc<Peer>) {
    while let Some(bytes) = lane.outgoing.take().await {
        if send.write_chunk(bytes).await.is_err() {
            break;
        }
    }
    lane.end(&peer);
}

/// Completes the callers of a lane.
struct Reader {
    peer: Arc<Peer>,
    lane: Arc<Lane>,
}

impl Reader {
    async fn run(self, recv: RecvStream) {
        if let Err(breach) = self.replies(recv).await {
            self.peer.breach(&breach);
        }
        self.lane.end(&self.peer);
    }

    /// Until the stream ends; an error when the node broke the protocol.
    async fn replies(&self, recv: RecvStream) -> Result<(), Breach> {
        let mut frames = FrameReader::new(recv, CALL_FRAME_MAX);
        loop {
            let reply: Reply = match frames.next().await {
                Ok(Some(reply)) => reply,
                Ok(None) => return Ok(()),
                Err(error) if error.is_protocol() => return Err(Breach::new(error)),
                Err(_) => return Ok(()),
            };
            let waiting = lock(&self.lane.waiting).take(reply.id);
            match waiting {
                inflight::Reply::For(caller) => {
                    let _ = caller.send(reply.result);
                }
                inflight::Reply::Late => {}
                inflight::Reply::Unknown => return Err(Breach(format!("no call {}", reply.id))),
            }
        }
    }
}
