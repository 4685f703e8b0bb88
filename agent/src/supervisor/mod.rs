//! The instances of this node: the shell around [`core`].
//!
//! One actor takes commands in order, in batches: step, make everything of the batch durable in
//! one commit and, if ownership changed, one write of the [`ledger`], then act. Nothing acts on
//! what is not durable in both. A disk that is full is waited for; a store that is broken ends the
//! agent, which recovers when it is started again.
//!
//! Limits: [`COMMANDS_MAX`] commands wait; a commit takes at most [`BATCH_BYTES`] bytes.

pub mod core;
pub mod ledger;
mod past;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hop3_common::{
    id::{Digest, InstanceId, UnixMs},
    ownership::Token,
    store::{self, MetaStore, TXN_OPS_MAX},
    wire::{Assignment, Held, Output, Phase, Report, StdinSource, Work},
};
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    core::{Action, Core, Input, Progress, Stored},
    ledger::Ledger,
    records::Changes,
};
use crate::session::outbox::{Diverged, Outbox, OutboxId};

/// Commands that may wait; whoever sends more waits.
const COMMANDS_MAX: usize = 256;
/// A batch is committed when it reaches this size; one more step may cross it.
const BATCH_BYTES: usize = 256 << 10;
/// A batch is committed when it has so many changes; one more step adds at most 32.
const BATCH_CHANGES: usize = TXN_OPS_MAX / 2;
/// Most steps in one batch.
const BATCH_STEPS: usize = 32;
/// Acknowledged reports are removed at the latest after this time: fewer, larger commits.
const ACK_FLUSH: Duration = Duration::from_secs(2);
/// Acknowledged reports removed per commit.
const ACKS_PER_COMMIT: u64 = 64;
/// Between tries while the disk is full.
const DISK_RETRY: Duration = Duration::from_secs(2);

/// What runs instances. Nothing here may block; progress comes back through the [`Handle`].
pub trait Executor: Send + Sync + 'static {
    /// Begins a run.
    fn start(&self, assignment: Arc<Assignment>, token: Token);
    /// A prepared task may take its first step.
    fn go(&self, instance: &InstanceId, token: Token);
    /// Ends a run.
    fn cancel(&self, instance: &InstanceId, token: Token);
    /// Brings outputs to the coordinator.
    fn deliver(&self, instance: &InstanceId, token: Token, outputs: Vec<Output>);
    /// Makes the final checkpoint of a service's run.
    fn seal(&self, instance: &InstanceId, token: Token);
    /// Makes a checkpoint of a service's run.
    fn checkpoint(&self, instance: &InstanceId, token: Token);
    /// Removes what is kept of a service's instance.
    fn discard(&self, instance: &InstanceId);
}

enum Command {
    Step(Input),
    Acked(u64),
    Inventory(oneshot::Sender<Vec<Held>>),
    References(oneshot::Sender<BTreeSet<Digest>>),
    Connected(u64, oneshot::Sender<Result<(), Diverged>>),
    Renumber(OutboxId, oneshot::Sender<()>),
}

/// Talks to the supervisor. Clones talk to the same one.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    outbox: Arc<Mutex<Outbox>>,
    reports: Arc<Notify>,
}

/// The supervisor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor has ended")]
pub struct Ended;

impl Handle {
    async fn send(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_| Ended)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Ended)
    }

    /// Takes an input; waits while too many wait.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn step(&self, input: Input) -> Result<(), Ended> {
        self.send(Command::Step(input)).await
    }

    /// What an executor says about its run.
    pub async fn progress(&self, instance: &InstanceId, token: Token, progress: Progress) {
        let instance = instance.clone();
        // After the end nobody wants to know; what is durable is done again at the next start.
        let _ = self
            .step(Input::Run {
                instance,
                token,
                progress,
            })
            .await;
    }

    /// Everything held.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn inventory(&self) -> Result<Vec<Held>, Ended> {
        self.ask(Command::Inventory).await
    }

    /// Blobs that instances refer to.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn references(&self) -> Result<BTreeSet<Digest>, Ended> {
        self.ask(Command::References).await
    }

    /// A session stands: the coordinator has reports up to `acked`.
    ///
    /// # Errors
    /// [`Ended`]; inside, [`Diverged`]: call [`Handle::renumber`] and connect again.
    pub async fn connected(&self, acked: u64) -> Result<Result<(), Diverged>, Ended> {
        self.ask(|reply| Command::Connected(acked, reply)).await
    }

    /// Numbers the outbox anew under `id`.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn renumber(&self, id: OutboxId) -> Result<(), Ended> {
        self.ask(|reply| Command::Renumber(id, reply)).await
    }

    /// Reports up to `seq` are durable at the coordinator.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn acked(&self, seq: u64) -> Result<(), Ended> {
        self.send(Command::Acked(seq)).await
    }

    /// The next report to send on this connection.
    #[must_use]
    pub fn next_unsent(&self) -> Option<(u64, Report)> {
        let mut outbox = lock(&self.outbox);
        outbox
            .next_unsent()
            .map(|(seq, report)| (seq, report.clone()))
    }

    /// Waits for new reports; may return without any.
    pub async fn new_reports(&self) {
        self.reports.notified().await;
    }

    /// The outbox's name.
    #[must_use]
    pub fn outbox_id(&self) -> OutboxId {
        lock(&self.outbox).id()
    }
}

fn lock(outbox: &Mutex<Outbox>) -> std::sync::MutexGuard<'_, Outbox> {
    // Each change of the outbox is whole, whatever panicked elsewhere.
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The actor.
pub struct Supervisor {
    store: Arc<dyn MetaStore>,
    ledger: Ledger,
    core: Core,
    /// Parts stored of each assignment.
    parts: BTreeMap<InstanceId, u16>,
    outbox: Arc<Mutex<Outbox>>,
    /// Reports up to here are removed from the store.
    removed: u64,
    reports: Arc<Notify>,
    commands: mpsc::Receiver<Command>,
    /// What the restart asks for.
    pending: Vec<Vec<Action>>,
}

impl Supervisor {
    /// Recovers what the store and the ledger hold. Nothing starts before [`Supervisor::run`].
    ///
    /// # Errors
    /// The store's.
    pub async fn open(
        store: Arc<dyn MetaStore>,
        mut ledger: Ledger,
    ) -> Result<(Self, Handle), store::Error> {
        let mut stored = records::load(&*store).await?;
        let behind = ledger.join(&mut stored);
        let outbox = records::load_outbox(&*store, rand::random()).await?;
        let parts = stored
            .iter()
            .map(|(id, _, parts)| (id.clone(), *parts))
            .collect();
        let stored = stored.into_iter().map(|(id, stored, _)| (id, stored));
        let (core, steps) = Core::restore(stored, UnixMs::now());
        // The store first, so that it is never behind the file.
        let mended = behind.into_iter().map(|id| vec![Action::Persist(id)]);
        let pending = mended.chain(steps).collect();
        ledger.replace(
            core.ledger()
                .map(|(id, entry)| (id.clone(), entry))
                .collect(),
        );
        let removed = outbox.acked();
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let outbox = Arc::new(Mutex::new(outbox));
        let reports = Arc::new(Notify::new());
        let handle = Handle {
            commands: sender,
            outbox: outbox.clone(),
            reports: reports.clone(),
        };
        let supervisor = Self {
            store,
            ledger,
            core,
            parts,
            outbox,
            removed,
            reports,
            commands,
            pending,
        };
        Ok((supervisor, handle))
    }

    /// The instances held now.
    #[must_use]
    pub fn held(&self) -> BTreeSet<InstanceId> {
        self.core.instances().map(|(id, _)| id.clone()).collect()
    }

    /// Runs until every [`Handle`] is gone.
    ///
    /// # Errors
    /// The store is broken: the agent must be started again.
    pub async fn run(mut self, executor: Arc<dyn Executor>) -> Result<(), store::Error> {
        let mut batch = Batch {
            steps: std::mem::take(&mut self.pending),
            answers: Vec::new(),
        };
        let mut flush = tokio::time::interval(ACK_FLUSH);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.settle(&mut batch, &*executor).await?;
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.take(command, &mut batch),
                    None => return Ok(()),
                },
                _ = flush.tick(), if self.removed < lock(&self.outbox).acked() => {
                    self.remove_acked().await?;
                }
            }
            while batch.steps.len() < BATCH_STEPS {
                let Ok(command) = self.commands.try_recv() else {
                    break;
                };
                self.take(command, &mut batch);
            }
        }
    }

    fn take(&mut self, command: Command, batch: &mut Batch) {
        match command {
            Command::Step(Input::Assign(assignment)) if !records::fits(&assignment) => {
                let report = records::too_large(UnixMs::now(), &assignment);
                batch.steps.push(vec![Action::Report(Box::new(report))]);
            }
            Command::Step(input) => {
                tracing::debug!(?input, "step");
                batch.steps.push(self.core.step(input, UnixMs::now()));
            }
            Command::Acked(seq) => lock(&self.outbox).ack(seq),
            Command::References(reply) => {
                let _ = reply.send(references(&self.core));
            }
            // These see the batch's steps, so they wait for its commit.
            other => batch.answers.push(other),
        }
    }

    /// Makes a batch durable and acts on it.
    async fn settle(
        &mut self,
        batch: &mut Batch,
        executor: &dyn Executor,
    ) -> Result<(), store::Error> {
        let mut acts = Vec::new();
        let mut changes = Changes::default();
        let mut reports = Vec::new();
        for step in batch.steps.drain(..) {
            // A step becomes durable as a whole: its record and its report belong together.
            for action in step {
                self.collect(action, &mut changes, &mut reports, &mut acts)?;
            }
            if changes.len() >= BATCH_CHANGES || changes.bytes() >= BATCH_BYTES {
                self.commit(std::mem::take(&mut changes)).await?;
            }
        }
        self.commit(changes).await?;
        self.write_ledger().await?;
        self.publish(reports);
        for act in acts {
            perform(act, executor);
        }
        for answer in std::mem::take(&mut batch.answers) {
            self.answer(answer).await?;
        }
        Ok(())
    }

    /// Puts what must be durable into `changes` and `reports`, the rest into `acts`.
    fn collect(
        &mut self,
        action: Action,
        changes: &mut Changes,
        reports: &mut Vec<Report>,
        acts: &mut Vec<Action>,
    ) -> Result<(), store::Error> {
        match action {
            Action::Persist(id) | Action::Erase(id) => {
                let before = self.parts.get(&id).copied().unwrap_or(0);
                let stored = self.core.stored(&id);
                let entry = stored.as_ref().map(Stored::ledger);
                self.ledger.note(&id, entry);
                // An assignment changes only with a new epoch, before any run of it begins.
                let anew = before == 0
                    || self
                        .core
                        .get(&id)
                        .is_some_and(|i| i.phase == Phase::Accepted);
                match changes.instance(&id, stored.as_ref(), before, anew)? {
                    0 => self.parts.remove(&id),
                    parts => self.parts.insert(id, parts),
                };
            }
            Action::Report(report) => {
                let admits = lock(&self.outbox).admits(&report.event);
                if !admits || !records::report_fits(&report) {
                    tracing::warn!(instance = %report.instance, "a report was left out");
                    return Ok(());
                }
                let seq = lock(&self.outbox).last() + 1 + reports.len() as u64;
                changes.report(seq, &report)?;
                reports.push(*report);
            }
            act => acts.push(act),
        }
        Ok(())
    }

    /// Shows the session what is durable.
    fn publish(&self, reports: Vec<Report>) {
        if reports.is_empty() {
            return;
        }
        let mut outbox = lock(&self.outbox);
        for report in reports {
            log_report(&report);
            outbox.push(report);
        }
        drop(outbox);
        self.reports.notify_one();
    }

    async fn commit(&self, changes: Changes) -> Result<(), store::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let txn = changes.into_txn();
        loop {
            match self.store.commit(txn.clone()).await {
                Ok(_durable) => return Ok(()),
                Err(error) => wait_for_disk(error).await?,
            }
        }
    }

    async fn write_ledger(&mut self) -> Result<(), store::Error> {
        loop {
            match self.ledger.write().await {
                Ok(()) => return Ok(()),
                Err(error) => wait_for_disk(error).await?,
            }
        }
    }

    async fn answer(&mut self, command: Command) -> Result<(), store::Error> {
        match command {
            Command::Inventory(reply) => {
                let _ = reply.send(self.core.inventory());
            }
            Command::Connected(acked, reply) => {
                let _ = reply.send(lock(&self.outbox).connected(acked));
            }
            Command::Renumber(id, reply) => {
                self.renumber(id).await?;
                let _ = reply.send(());
            }
            Command::Step(_) | Command::Acked(_) | Command::References(_) => {}
        }
        Ok(())
    }

    /// Removes what was acknowledged from the store.
    async fn remove_acked(&mut self) -> Result<(), store::Error> {
        let (id, acked) = {
            let outbox = lock(&self.outbox);
            (outbox.id(), outbox.acked())
        };
        while self.removed < acked {
            let upto = acked.min(self.removed + ACKS_PER_COMMIT);
            let mut changes = Changes::default();
            for seq in self.removed + 1..=upto {
                changes.drop_report(seq)?;
            }
            changes.acked(id, upto)?;
            self.commit(changes).await?;
            self.removed = upto;
        }
        Ok(())
    }

    /// Stores the outbox under a new name: new reports first would collide with old numbers, so
    /// the old ones go first. A crash in between leaves a shorter outbox; its instances are in
    /// the inventory.
    async fn renumber(&mut self, id: OutboxId) -> Result<(), store::Error> {
        tracing::warn!(
            "the coordinator's memory of this node's reports differs: all are sent again"
        );
        self.remove_acked().await?;
        let old = lock(&self.outbox).clone();
        let seqs: Vec<u64> = old.reports().map(|(seq, _)| seq).collect();
        let new = old.renumbered(id);
        for part in seqs.chunks(ACKS_PER_COMMIT as usize) {
            let mut changes = Changes::default();
            part.iter().try_for_each(|seq| changes.drop_report(*seq))?;
            self.commit(changes).await?;
        }
        let mut changes = Changes::default();
        changes.acked(id, 0)?;
        for (seq, report) in new.reports() {
            changes.report(seq, report)?;
            if changes.len() >= BATCH_CHANGES || changes.bytes() >= BATCH_BYTES {
                self.commit(std::mem::take(&mut changes)).await?;
            }
        }
        self.commit(changes).await?;
        self.removed = 0;
        *lock(&self.outbox) = new;
        Ok(())
    }
}

/// Gives back what no waiting mends.
async fn wait_for_disk(error: store::Error) -> Result<(), store::Error> {
    if !error.retryable() {
        return Err(error);
    }
    tracing::error!(%error, "the supervisor waits for the disk");
    tokio::time::sleep(DISK_RETRY).await;
    Ok(())
}

/// What one round does.
struct Batch {
    steps: Vec<Vec<Action>>,
    /// Questions about the state after it.
    answers: Vec<Command>,
}

fn perform(act: Action, executor: &dyn Executor) {
    match act {
        Action::Start { assignment, token } => executor.start(assignment, token),
        Action::Go { instance, token } => executor.go(&instance, token),
        Action::Cancel { instance, token } => executor.cancel(&instance, token),
        Action::Deliver {
            instance,
            token,
            outputs,
        } => {
            executor.deliver(&instance, token, outputs);
        }
        Action::Seal { instance, token } => executor.seal(&instance, token),
        Action::Checkpoint { instance, token } => executor.checkpoint(&instance, token),
        Action::Discard(instance) => executor.discard(&instance),
        Action::Persist(_) | Action::Erase(_) | Action::Report(_) => {}
    }
}

/// Blobs that the instances need, or whose delivery is not over.
fn references(core: &Core) -> BTreeSet<Digest> {
    let mut digests = BTreeSet::new();
    for (_, instance) in core.instances() {
        match &instance.assignment.work {
            Work::Task(task) if instance.outcome.is_none() => {
                digests.insert(task.module);
                if let StdinSource::Blob { digest, .. } = task.stdin {
                    digests.insert(digest);
                }
            }
            Work::Model(model) => {
                digests.insert(model.model);
            }
            Work::Service(service) => {
                digests.insert(service.module);
                let restore = service.restore.iter().flat_map(|cp| &cp.parts);
                digests.extend(restore.map(|part| part.digest));
            }
            Work::Task(_) => {}
        }
        if let Some(outcome) = &instance.outcome {
            digests.extend(
                core::outputs_of(&outcome.event)
                    .iter()
                    .map(|output| output.digest),
            );
        }
    }
    digests
}

fn log_report(report: &Report) {
    use hop3_common::wire::Event;
    let (instance, token) = (&report.instance, report.token);
    match &report.event {
        Event::Failed(problem) => tracing::warn!(%instance, %token, %problem, "failed"),
        Event::TaskEnded(result) => tracing::info!(%instance, %token, end = ?result.end, "ended"),
        Event::Started { .. } => tracing::info!(%instance, %token, "started"),
        Event::ModelReady(_) => tracing::info!(%instance, %token, "ready"),
        Event::Stopped => tracing::info!(%instance, %token, "stopped"),
        Event::ServiceReady(facts) => {
            tracing::info!(%instance, %token, seq = facts.seq, "serves");
        }
        Event::Checkpointed(made) => {
            tracing::info!(%instance, %token, seq = made.seq, bytes = made.bytes(), "checkpoint");
        }
        Event::Sealed(made) => {
            tracing::info!(%instance, %token, seq = made.seq, bytes = made.bytes(), "sealed");
        }
        Event::NotSealed(problem) => {
            tracing::warn!(%instance, %token, %problem, "not sealed; it goes on");
        }
    }
}

#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
