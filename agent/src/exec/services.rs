//! Service instances as the executor has them; what they are is [`crate::services`].

use std::sync::Arc;

use hop3_common::{
    id::InstanceId,
    ownership::Token,
    store::BoxFuture,
    wire::{Assignment, Output, Work, attach::Channel},
};
use quinn::SendStream;

use super::{Exec, Run};
use crate::{
    services::{keeper::Owner, ring::Ring},
    supervisor::core::Progress,
};

/// One run, as its instance sees the rest of the agent.
struct Reporter {
    exec: Exec,
    instance: InstanceId,
    token: Token,
}

impl Owner for Reporter {
    fn hear(&self, progress: Progress) -> BoxFuture<'_, ()> {
        Box::pin(self.exec.progress(&self.instance, self.token, progress))
    }

    fn deliver(&self, part: Output) -> BoxFuture<'_, bool> {
        Box::pin(self.exec.0.blobs.deliver(part))
    }
}

/// Runs one instance until it is stopped, sealed, or cannot go on.
pub(super) async fn run(exec: Exec, assignment: Arc<Assignment>, run: Arc<Run>) {
    let Work::Service(work) = &assignment.work else {
        return;
    };
    let (instance, token) = (&assignment.instance, run.token);
    let reporter = Arc::new(Reporter {
        exec: exec.clone(),
        instance: instance.clone(),
        token,
    });
    let services = exec.services();
    let ran = services.run(instance, token, work, reporter, &run.cancel);
    match Box::pin(ran).await {
        Progress::Finished(event) => exec.finish(instance, token, event).await,
        other => exec.over(instance, token, other).await,
    }
}

/// Sends an instance's log from `offset`; on and on if `follow`. All of it is one channel.
pub(super) async fn logs(
    ring: &Ring,
    channel: Channel,
    mut offset: u64,
    follow: bool,
    send: &mut SendStream,
) {
    // Standard error is part of the same log.
    if channel != Channel::Stdout {
        let _ = send.finish();
        return;
    }
    loop {
        let (piece, next) = ring.read(offset);
        if !piece.is_empty() {
            if send.write_chunk(piece).await.is_err() {
                return;
            }
            offset = next;
        } else if follow {
            tokio::select! {
                () = ring.ready(offset) => {}
                // The reader went away.
                _ = send.stopped() => return,
            }
        } else {
            break;
        }
    }
    let _ = send.finish();
}
