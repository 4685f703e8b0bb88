//! What a node's instances ask of the mesh, many to a stream: each request is one small task, its
//! answer goes back when it is there, in any order.

use std::sync::Arc;

use hop3_common::{
    codes::{Code, Problem},
    wire::{
        CALL_FRAME_MAX, Outgoing, OutgoingReply,
        io::{self, FrameReader},
    },
};
use quinn::{RecvStream, SendStream};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::{Duration, timeout},
};

use super::{NodeLink, endpoint::Shared, peer::Breach};

/// Requests of one stream that may be under way: each may hold a body of 8 MiB, most hold little.
const ASKED_MAX: usize = 2048;
/// Longest time for one request, whatever the node says: an hour, as limits of services.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Serves the stream until it ends. While [`ASKED_MAX`] are under way no more are read.
pub(super) async fn serve(
    shared: Arc<Shared>,
    link: NodeLink,
    send: SendStream,
    recv: RecvStream,
) -> Result<(), Breach> {
    let mut frames = FrameReader::new(recv, CALL_FRAME_MAX);
    let send = Arc::new(Mutex::new(send));
    let room = Arc::new(Semaphore::new(ASKED_MAX));
    let mut asked: JoinSet<()> = JoinSet::new();
    loop {
        // Never closed while this lives.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return Ok(());
        };
        let next: Outgoing = match frames.next().await {
            Ok(Some(next)) => next,
            Err(error) if error.is_protocol() => return Err(Breach(error.to_string())),
            // The node asks no more: what is under way is given up with the set.
            Ok(None) | Err(_) => return Ok(()),
        };
        while asked.try_join_next().is_some() {}
        let (shared, link, send) = (shared.clone(), link.clone(), send.clone());
        asked.spawn(async move {
            let id = next.id;
            let within = DEADLINE.min(Duration::from_millis(u64::from(next.deadline_ms)));
            let answer = timeout(within, shared.brain.outgoing(&link, next)).await;
            let result = answer.unwrap_or_else(|_| {
                let message = format!("no answer within {within:?}");
                Err(Problem::new(Code::Deadline, message))
            });
            let reply = OutgoingReply { id, result };
            let mut send = send.lock().await;
            if let Err(error) = io::write(&mut *send, &reply, CALL_FRAME_MAX).await {
                // The session or the stream is over: whoever asked knows.
                tracing::debug!(node = %link.node(), %error, "an answer was not sent");
            }
            drop(permit);
        });
    }
}
