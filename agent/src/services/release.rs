//! What a handled item leads to in the world, once it may leave. Nothing here blocks.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    wire::{CallResult, ServiceRequest},
};

use super::{
    actor::Actor,
    desk::{letters::Letter, lines::Piece},
    inbox::ReplyTo,
};

/// One thing that leaves.
pub enum Release {
    /// An answer.
    Reply {
        /// Where to.
        to: ReplyTo,
        /// What.
        result: Result<CallResult, Problem>,
    },
    /// A client stream was opened.
    Open(u64),
    /// Something for a client.
    Piece {
        /// Which stream.
        stream: u64,
        /// Its number.
        seq: u64,
        /// What.
        piece: Piece,
    },
    /// Something of a client was handled.
    Handled {
        /// Which stream.
        stream: u64,
        /// Its number.
        seq: u64,
    },
    /// A client stream is over.
    Over(u64),
    /// A message. That of a durable instance is in its desk too, until every subscriber has it.
    Publish {
        /// Its number.
        seq: u64,
        /// The topic.
        topic: String,
        /// What.
        payload: Bytes,
    },
    /// A call of the guest.
    Call {
        /// Its number.
        call: u64,
        /// Which service.
        service: String,
        /// What.
        request: Box<ServiceRequest>,
        /// It was made before, by an earlier run.
        again: bool,
    },
}

/// Where the effects of instances go.
pub trait World: Send + Sync + 'static {
    /// Passes a message on; at most once.
    fn publish(&self, from: &Arc<Actor>, seq: u64, topic: String, payload: Bytes);
    /// There are messages in the actor's mail, and nobody carries them yet.
    fn carry(&self, from: &Arc<Actor>);
    /// Makes a call; its end comes back as an item of the actor.
    fn call(
        &self,
        from: &Arc<Actor>,
        call: u64,
        service: &str,
        request: ServiceRequest,
        again: bool,
    );
}

impl Release {
    /// About how many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Reply {
                result: Ok(CallResult::Service(reply)),
                ..
            } => reply.body.len(),
            Self::Piece {
                piece: Piece::Data { bytes, .. },
                ..
            } => bytes.len(),
            Self::Publish { payload, .. } => payload.len(),
            Self::Call { request, .. } => request.body.len(),
            _ => 0,
        }
    }

    /// Does not let it out: the run has lost its right to. Whoever waits is told that the outcome
    /// is not known; the rest is in the state, if that is still the instance's.
    pub fn withhold(self) {
        if let Self::Reply { to, .. } = self {
            let message = "the lease of the instance ended before its answer could leave";
            to(Err(Problem::new(Code::OutcomeUnknown, message)));
        }
    }

    /// Lets it out.
    pub fn carry_out(self, actor: &Arc<Actor>) {
        let world = &actor.parts.world;
        match self {
            Self::Reply { to, result } => to(result),
            Self::Open(stream) => actor.links.open(stream, Instant::now()),
            Self::Piece { stream, seq, piece } => actor.links.send(stream, seq, piece),
            Self::Handled { stream, seq } => actor.links.handled(stream, seq),
            Self::Over(stream) => actor.links.remove(stream),
            Self::Publish {
                seq,
                topic,
                payload,
            } if actor.is_durable() => actor.post(seq, Letter { topic, payload }),
            Self::Publish {
                seq,
                topic,
                payload,
            } => world.publish(actor, seq, topic, payload),
            Self::Call {
                call,
                service,
                request,
                again,
            } => world.call(actor, call, &service, *request, again),
        }
    }
}
