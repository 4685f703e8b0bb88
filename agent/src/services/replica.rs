//! The replica of an instance's changes at the coordinator, for `durability: replicated`.
//!
//! It follows the local log: a checkpoint whose parts are at the coordinator, then every change.
//! What was written without an answer may be there or not, so after any failure it begins anew.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    wire::{Checkpoint, REPLICA_CHANGE_BYTES_MAX, ReplicaChange, ReplicaWrite},
};
use hop3_runtime::service::Image;
use tokio::task::spawn_blocking;

use super::{
    actor::Actor,
    keeper::{Owner, deliver},
    outgoing::Outgoing,
    storage::{Storage, panicked},
};

/// Time for the parts of a checkpoint to reach the coordinator.
const BASE_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub struct Replica<H> {
    outgoing: Outgoing,
    actor: Arc<Actor>,
    owner: Arc<H>,
    /// What it has; `None`: that is not known.
    at: Option<Image>,
    /// How often it began.
    stream: u64,
}

impl<H: Owner + 'static> Replica<H> {
    /// The replica that a run writes. Nothing is written yet.
    #[must_use]
    pub fn new(outgoing: Outgoing, actor: Arc<Actor>, owner: Arc<H>) -> Self {
        Self {
            outgoing,
            actor,
            owner,
            at: None,
            stream: 0,
        }
    }

    /// Brings it to `image`, which `storage` has. Durable there when this returns `Ok`.
    ///
    /// # Errors
    /// The coordinator cannot be reached or does not take it; it may be tried again.
    pub async fn follow(&mut self, storage: &mut Storage, image: &Image) -> Result<(), Problem> {
        if let Some(at) = self.at.take() {
            let change = change(at, image.clone()).await?;
            if change.delta.len() <= REPLICA_CHANGE_BYTES_MAX {
                let stream = self.stream;
                self.write(ReplicaWrite::Change { stream, change }).await?;
                self.at = Some(image.clone());
                return Ok(());
            }
        }
        if !self.outgoing.stands() {
            let message = "the coordinator, which has the replica, cannot be reached";
            return Err(Problem::new(Code::Unavailable, message));
        }
        let made = storage.checkpoint(image).await?;
        tokio::select! {
            delivered = deliver(&*self.owner, &made) => delivered?,
            () = tokio::time::sleep(BASE_MAX) => {
                let message =
                    format!("its checkpoint did not reach the coordinator in {BASE_MAX:?}");
                return Err(Problem::new(Code::Deadline, message));
            }
            () = self.actor.fenced() => return Err(fenced()),
        }
        self.begin(made, None).await?;
        self.at = Some(image.clone());
        Ok(())
    }

    /// Begins it anew with a checkpoint of `image` whose parts are at the coordinator: everything
    /// before is needed no more.
    ///
    /// # Errors
    /// As of [`follow`](Self::follow).
    pub async fn truncate(&mut self, made: Checkpoint, image: Image) -> Result<(), Problem> {
        let Some(at) = self.at.take() else {
            return Ok(());
        };
        let since = change(image, at.clone()).await?;
        if since.delta.len() > REPLICA_CHANGE_BYTES_MAX {
            // It stays as it is until the next checkpoint.
            self.at = Some(at);
            return Ok(());
        }
        self.begin(made, Some(since)).await?;
        self.at = Some(at);
        Ok(())
    }

    async fn begin(
        &mut self,
        checkpoint: Checkpoint,
        since: Option<ReplicaChange>,
    ) -> Result<(), Problem> {
        self.stream += 1;
        let base = ReplicaWrite::Base {
            stream: self.stream,
            checkpoint,
            since,
        };
        self.write(base).await
    }

    /// Writes, unless the run has lost its right to: whoever owns it then has the replica's end.
    async fn write(&self, write: ReplicaWrite) -> Result<(), Problem> {
        let from = (self.actor.instance().clone(), self.actor.token());
        tokio::select! {
            written = self.outgoing.replicate(from, write) => written,
            () = self.actor.fenced() => Err(fenced()),
        }
    }
}

fn fenced() -> Problem {
    Problem::new(Code::Unavailable, "the lease of the instance ended")
}

async fn change(from: Image, to: Image) -> Result<ReplicaChange, Problem> {
    let seq = to.seq();
    let delta = spawn_blocking(move || to.delta(&from)).await;
    let delta = Bytes::from(delta.map_err(panicked)?);
    Ok(ReplicaChange { seq, delta })
}
