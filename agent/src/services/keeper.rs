//! Keeps one instance while it serves: makes its changes durable, its checkpoints, its sealing,
//! and its end. One task per instance; it sleeps while nothing happens.
//!
//! Calls go on while the keeper waits for the disk; one sync then releases everything that was
//! done before it. A disk that fails blocks new requests, and the keeper tries again: nothing
//! that was acknowledged is lost, nothing that was done is forgotten.

use std::{pin::Pin, sync::Arc, time::Duration};

use hop3_common::{
    codes::{Code, Problem},
    store::BoxFuture,
    wire::{Checkpoint, Output},
};
use hop3_runtime::service::Image;
use tokio::{sync::mpsc, task::spawn_blocking, time::Instant};

use super::{
    actor::Actor,
    replica::Replica,
    storage::{Prepared, Storage},
};
use crate::{blobs::Blobs, supervisor::core::Progress};

/// Time for a sealing, the way of its parts to the coordinator included.
pub const SEAL_MAX: Duration = Duration::from_secs(30);
/// Between tries while the disk fails.
const DISK_RETRY: Duration = Duration::from_secs(2);
/// Between tries while the coordinator cannot be reached.
const REPLICA_RETRY: Duration = Duration::from_millis(200);
/// Orders that wait; they are few and repeated by whoever gives them.
pub const ORDERS_MAX: usize = 4;

/// What the supervisor wants of an instance that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A checkpoint, here and at the coordinator.
    Checkpoint,
    /// The final checkpoint.
    Seal,
}

/// How serving ended.
#[derive(Debug)]
pub enum Ended {
    /// By order, or because the agent goes down.
    Stopped,
    /// With this, the epoch is given up.
    Sealed(Checkpoint),
    /// The runtime lost the guest.
    Lost,
    /// Its lease ended.
    Fenced,
}

/// Whom an instance belongs to: the supervisor, and the coordinator behind it.
pub trait Owner: Send + Sync {
    /// Something is to be reported.
    fn hear(&self, progress: Progress) -> BoxFuture<'_, ()>;
    /// Brings a part of a checkpoint to the coordinator, however long it takes; `false`: it
    /// refuses it for good.
    fn deliver(&self, part: Output) -> BoxFuture<'_, bool>;
}

type Job = BoxFuture<'static, Result<Prepared, Problem>>;

/// See the module.
pub struct Keeper<H> {
    actor: Arc<Actor>,
    /// None for an instance without state.
    storage: Option<Storage>,
    /// Where its changes are too.
    replica: Option<Replica<H>>,
    /// A checkpoint on its way, from which the replica can begin anew.
    truncation: Option<BoxFuture<'static, Option<(Checkpoint, Image)>>>,
    blobs: Blobs,
    every: Option<Duration>,
    owner: Arc<H>,
    /// A checkpoint in the making.
    job: Option<Job>,
    /// What it, or the last one that failed, is of; where nothing else keeps it.
    job_image: Option<Image>,
    /// It is for the coordinator too.
    job_sent: bool,
    /// One is wanted for the coordinator.
    wanted: bool,
    next: Option<Instant>,
    retry: Option<Instant>,
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn truncated<T>(delivery: &mut Option<BoxFuture<'static, Option<T>>>) -> Option<T> {
    match delivery {
        Some(delivery) => delivery.await,
        None => std::future::pending().await,
    }
}

async fn done(job: &mut Option<Job>) -> Result<Prepared, Problem> {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}

impl<H: Owner + 'static> Keeper<H> {
    /// Keeps `actor`, which serves already.
    #[must_use]
    pub fn new(
        actor: Arc<Actor>,
        storage: Option<Storage>,
        replica: Option<Replica<H>>,
        blobs: Blobs,
        owner: Arc<H>,
    ) -> Self {
        let every_ms = actor.work().checkpoint_every.0;
        let every = (every_ms > 0).then(|| Duration::from_millis(every_ms));
        Self {
            next: every.map(|every| Instant::now() + every),
            actor,
            storage,
            replica,
            truncation: None,
            blobs,
            every,
            owner,
            job: None,
            job_image: None,
            job_sent: false,
            wanted: false,
            retry: None,
        }
    }

    /// Keeps it until it ends. `stop`: it must.
    pub async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        stop: impl Future<Output = ()>,
    ) -> Ended {
        tokio::pin!(stop);
        loop {
            self.begin_job();
            tokio::select! {
                () = &mut stop => break,
                () = self.actor.fenced() => return self.fenced().await,
                () = self.actor.settle.notified(), if self.retry.is_none() => {
                    if self.actor.is_lost() {
                        return self.lost().await;
                    }
                    self.commit().await;
                }
                () = at(self.retry) => self.commit().await,
                prepared = done(&mut self.job) => {
                    self.job = None;
                    self.prepared(prepared).await;
                }
                delivered = truncated(&mut self.truncation) => {
                    self.truncation = None;
                    if let (Some(replica), Some((made, image))) = (&mut self.replica, delivered)
                        && let Err(problem) = replica.truncate(made, image).await
                    {
                        tracing::info!(instance = %self.actor.instance(), %problem,
                            "its replica begins anew at the next change");
                    }
                }
                () = at(self.next) => {
                    self.next = self.every.map(|every| Instant::now() + every);
                    if self.has_changed() && self.job.is_none() {
                        self.start_job(false);
                    }
                }
                Some(order) = orders.recv() => match order {
                    Order::Checkpoint => self.wanted = true,
                    Order::Seal => match self.seal(stop.as_mut()).await {
                        Ok(Some(made)) => {
                            let cell = self.actor.end().await;
                            // Nobody should wait until a large state is freed.
                            spawn_blocking(move || drop((cell, self)));
                            return Ended::Sealed(made);
                        }
                        Ok(None) => break,
                        Err(problem) => self.not_sealed(problem).await,
                    },
                }
            }
        }
        self.stop().await;
        Ended::Stopped
    }

    fn has_changed(&self) -> bool {
        let stale = self.storage.as_ref().is_some_and(Storage::is_stale);
        let unsaved = self.actor.has_changed() || self.job_image.is_some();
        unsaved || stale && self.actor.is_durable()
    }

    // ---- commits ----

    /// Makes durable what has gathered. What cannot be stored waits.
    async fn commit(&mut self) {
        if let (Some(storage), true) = (&mut self.storage, self.actor.is_durable()) {
            if let Err(problem) = commit(&self.actor, storage, self.replica.as_mut()).await {
                return self.blocked(problem);
            }
            if storage.is_long() && self.job.is_none() {
                self.start_job(false);
            }
        }
        self.unblocked();
    }

    fn blocked(&mut self, problem: Problem) {
        if self.retry.is_none() {
            tracing::error!(instance = %self.actor.instance(), %problem,
                "changes cannot be stored; new requests are refused until they can");
        }
        let wait = match problem.code {
            Code::Storage => DISK_RETRY,
            _ => REPLICA_RETRY,
        };
        self.retry = Some(Instant::now() + wait);
        self.actor.set_blocked(Some(problem));
    }

    fn unblocked(&mut self) {
        if self.retry.take().is_some() {
            tracing::info!(instance = %self.actor.instance(), "changes can be stored again");
            self.actor.set_blocked(None);
        }
    }

    // ---- checkpoints ----

    fn begin_job(&mut self) {
        if !self.wanted || self.job.is_some() {
            return;
        }
        if self.storage.is_none() {
            // Without state there is nothing to have a checkpoint of.
            self.wanted = false;
            return;
        }
        self.wanted = false;
        self.start_job(true);
    }

    fn start_job(&mut self, sent: bool) {
        let Some(storage) = &self.storage else { return };
        let image = if self.actor.is_durable() {
            storage.last().clone()
        } else {
            let taken = self.actor.take_unsettled();
            let image = taken.image.or(self.job_image.take());
            let image = image.unwrap_or_else(|| storage.last().clone());
            // In memory nothing waits for the disk.
            self.actor.release(taken.releases);
            self.actor.settled();
            self.job_image = Some(image.clone());
            image
        };
        self.job = Some(Box::pin(storage.prepare(image)));
        self.job_sent = sent;
    }

    async fn prepared(&mut self, prepared: Result<Prepared, Problem>) {
        let sent = std::mem::take(&mut self.job_sent);
        let Some(storage) = &mut self.storage else {
            return;
        };
        let adopted = match prepared {
            Ok(prepared) => {
                let image = prepared.image.clone();
                storage.adopt(prepared).await.map(|made| (made, image))
            }
            Err(problem) => Err(problem),
        };
        match adopted {
            Ok((made, image)) => {
                self.job_image = None;
                if sent {
                    self.send(made.clone());
                }
                if self.replica.is_some() {
                    self.truncate(made, image);
                }
            }
            Err(problem) => {
                tracing::error!(instance = %self.actor.instance(), %problem,
                    "a checkpoint could not be made");
                // Orders are repeated by whoever gave them.
                self.next = self.every.map(|_| Instant::now() + DISK_RETRY);
            }
        }
    }

    /// Brings a checkpoint to the coordinator, in the background.
    fn send(&self, made: Checkpoint) {
        let (blobs, owner) = (self.blobs.clone(), self.owner.clone());
        let pins: Vec<_> = made
            .parts
            .iter()
            .map(|part| blobs.pin(part.digest))
            .collect();
        tokio::spawn(async move {
            if deliver(&*owner, &made).await.is_ok() {
                owner.hear(Progress::Checkpointed(made)).await;
            }
            drop(pins);
        });
    }

    /// Brings a checkpoint to the coordinator so that the replica can begin anew with it.
    fn truncate(&mut self, made: Checkpoint, image: Image) {
        let (blobs, owner) = (self.blobs.clone(), self.owner.clone());
        self.truncation = Some(Box::pin(async move {
            let parts = made.parts.iter();
            let _pins: Vec<_> = parts.map(|part| blobs.pin(part.digest)).collect();
            deliver(&*owner, &made).await.ok()?;
            Some((made, image))
        }));
    }

    // ---- the end ----

    /// It must not go on here. Its state stays as it is: whoever goes on has what was
    /// acknowledged.
    async fn fenced(&mut self) -> Ended {
        tracing::warn!(instance = %self.actor.instance(), token = %self.actor.token(),
            "its lease ended: it stops until the coordinator can be reached");
        let cell = self.actor.end().await;
        spawn_blocking(move || drop(cell));
        // Whoever waits for the replica is told that the outcome is not known.
        let taken = self.actor.take_unsettled();
        self.actor.release(taken.releases);
        Ended::Fenced
    }

    /// Stops, makes the final checkpoint, brings it to the coordinator. `None`: it was told to
    /// end meanwhile. Only the waits can be cut off; what is stored is stored whole.
    async fn seal(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Checkpoint>, Problem> {
        let until = Instant::now() + SEAL_MAX;
        tokio::select! {
            () = self.actor.pause() => {}
            () = &mut stop => return Ok(None),
            () = tokio::time::sleep_until(until) => return Err(late("a call did not end")),
        }
        let made = self.last_checkpoint().await?;
        tokio::select! {
            delivered = deliver(&*self.owner, &made) => delivered.map(|()| Some(made)),
            () = &mut stop => Ok(None),
            () = tokio::time::sleep_until(until) => {
                Err(late("its checkpoint did not reach the coordinator"))
            }
        }
    }

    async fn last_checkpoint(&mut self) -> Result<Checkpoint, Problem> {
        let Some(storage) = &mut self.storage else {
            let message = "an instance without state has nothing to be sealed";
            return Err(Problem::new(Code::MoveRefused, message));
        };
        if self.actor.is_durable() {
            commit(&self.actor, storage, self.replica.as_mut()).await?;
        }
        if let Some(job) = self.job.take() {
            // It may be close to the final state, and then only a delta follows.
            storage.adopt(job.await?).await?;
        }
        let image = self.actor.image();
        let image = image.ok_or_else(|| Problem::new(Code::Internal, "the guest was lost"))?;
        let prepared = storage.prepare(image).await?;
        storage.adopt(prepared).await
    }

    async fn not_sealed(&mut self, problem: Problem) {
        self.job = None;
        self.owner.hear(Progress::NotSealed(problem)).await;
        self.actor.resume();
    }

    /// The orderly end: what happened is durable, and so is the newest state.
    async fn stop(&mut self) {
        let cell = self.actor.end().await;
        let (Some(mut cell), Some(storage)) = (cell, &mut self.storage) else {
            return;
        };
        let stored = if self.actor.is_durable() {
            commit(&self.actor, storage, self.replica.as_mut()).await
        } else if self.actor.has_changed() || self.job_image.is_some() {
            let prepared = storage.prepare(cell.flush().clone()).await;
            match prepared {
                Ok(prepared) => storage.adopt(prepared).await.map(drop),
                Err(problem) => Err(problem),
            }
        } else {
            Ok(())
        };
        if let Err(problem) = stored {
            tracing::error!(instance = %self.actor.instance(), %problem,
                "its last changes could not be stored; they were not acknowledged");
        }
    }

    async fn lost(&mut self) -> Ended {
        drop(self.actor.end().await);
        if let (Some(storage), true) = (&mut self.storage, self.actor.is_durable()) {
            // What was done before is whole.
            let _ = commit(&self.actor, storage, self.replica.as_mut()).await;
        }
        Ended::Lost
    }
}

/// Makes durable what has gathered, and lets out what waited for it.
async fn commit<H: Owner + 'static>(
    actor: &Arc<Actor>,
    storage: &mut Storage,
    replica: Option<&mut Replica<H>>,
) -> Result<(), Problem> {
    let taken = actor.take_unsettled();
    if let Some(image) = &taken.image
        && let Err(problem) = store(storage, replica, image).await
    {
        actor.unsettle(taken);
        return Err(problem);
    }
    // Whoever is answered finds it open again.
    if actor.is_blocked() {
        actor.set_blocked(None);
    }
    actor.release_by_turns(taken.releases).await;
    actor.settled();
    Ok(())
}

/// Makes an image durable wherever it must be.
async fn store<H: Owner + 'static>(
    storage: &mut Storage,
    replica: Option<&mut Replica<H>>,
    image: &Image,
) -> Result<(), Problem> {
    storage.append(image.clone()).await?;
    match replica {
        Some(replica) => replica.follow(storage, image).await,
        None => Ok(()),
    }
}

fn late(what: &str) -> Problem {
    let message = format!("sealing took more than {} s: {what}", SEAL_MAX.as_secs());
    Problem::new(Code::Deadline, message)
}

/// Brings all parts of a checkpoint to the coordinator.
pub(super) async fn deliver(owner: &impl Owner, made: &Checkpoint) -> Result<(), Problem> {
    for part in &made.parts {
        if !owner.deliver(*part).await {
            let message = "the coordinator does not take a part of the checkpoint";
            return Err(Problem::new(Code::Storage, message));
        }
    }
    Ok(())
}
