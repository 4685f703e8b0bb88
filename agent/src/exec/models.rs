//! Model instances: load, serve, stop; and the check of a model that is only pushed.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hop3_common::{
    chunks::BlobStore,
    codes::{Code, Problem},
    id::{Digest, InstanceId},
    ownership::Epoch,
    spec::ByteSize,
    tensor::{Tensor, TensorSpec},
    wire::{
        Assignment, CONTROL_FRAME_MAX, CallResult, Event, ModelCheck, ModelFacts, ModelWork, Work,
        io::{Error, read, write},
    },
};
use hop3_runtime::onnx::{self, ModelHosts, ModelKey, Source};
use quinn::{RecvStream, SendStream};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{Exec, Run, convert, internal};
use crate::{backoff, supervisor::core::Progress};

/// Largest model file: what the child takes.
const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Starts of a model before it has failed for good, when the cause may pass.
const STARTS_MAX: u32 = 6;

/// The models of this node.
pub(super) struct Models {
    hosts: Arc<ModelHosts>,
    served: Mutex<HashMap<InstanceId, Arc<Served>>>,
    inferences: Semaphore,
}

/// One instance that serves.
struct Served {
    epoch: Epoch,
    key: ModelKey,
    source: Source,
    deadline: Duration,
}

impl Models {
    pub(super) fn new(hosts: ModelHosts, inferences_max: usize) -> Self {
        let (served, inferences) = (Mutex::default(), Semaphore::new(inferences_max));
        Self {
            hosts: Arc::new(hosts),
            served,
            inferences,
        }
    }

    fn served(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Served>>> {
        // The map changes in single steps.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rss_bytes(&self) -> u64 {
        let children = self.hosts.children();
        children
            .iter()
            .filter_map(|child| child.memory)
            .map(|memory| memory.rss_bytes)
            .sum()
    }

    pub(super) fn stop_idle(&self, now: Instant) {
        self.hosts.stop_idle(now);
    }

    /// Runs a model once.
    pub(super) async fn infer(
        &self,
        instance: &InstanceId,
        epoch: Epoch,
        inputs: Vec<Tensor>,
        limit: Duration,
    ) -> Result<CallResult, Problem> {
        let served = self.served().get(instance).cloned();
        let served = served
            .filter(|served| served.epoch == epoch)
            .ok_or_else(|| {
                let message = format!("{instance} is not served on this node in epoch {epoch}");
                Problem::new(Code::ModelNotReady, message)
            })?;
        let _place = self.inferences.try_acquire().map_err(|_| {
            Problem::new(Code::Busy, "too many inferences are waiting on this node")
        })?;
        let hosts = self.hosts.clone();
        let limit = limit.min(served.deadline);
        let ran =
            spawn_blocking(move || hosts.infer(&served.key, &served.source, inputs, limit)).await;
        let ran = ran.map_err(|_| internal("the thread of the inference panicked"))?;
        let inference = ran.map_err(|e| convert::model_problem(&e))?;
        let onnx::Inference {
            outputs, infer_us, ..
        } = inference;
        Ok(CallResult::Model { outputs, infer_us })
    }

    async fn load(&self, key: ModelKey, source: Source) -> Result<ModelFacts, onnx::Error> {
        let hosts = self.hosts.clone();
        let loaded = spawn_blocking(move || hosts.load(&key, &source)).await;
        let (facts, load_us) = loaded.unwrap_or(Err(onnx::Error::Retired))?;
        Ok(convert::model_facts(facts, load_us))
    }
}

fn key(model: Digest, specs: &[TensorSpec], memory: ByteSize) -> ModelKey {
    ModelKey {
        digest: model,
        specs: specs.to_vec(),
        memory_bytes_max: memory.0,
    }
}

fn source(store: &BlobStore, digest: Digest) -> Source {
    let store = store.clone();
    Arc::new(move || {
        let read = store.read(&digest, MODEL_BYTES_MAX);
        read.map(Bytes::from).map_err(io::Error::from)
    })
}

/// Runs one instance until it is stopped.
pub(super) async fn run(exec: Exec, assignment: Arc<Assignment>, run: Arc<Run>) {
    let Work::Model(work) = &assignment.work else {
        return;
    };
    let (instance, token) = (&assignment.instance, run.token);
    exec.progress(instance, token, Progress::Preparing).await;
    let event = tokio::select! {
        event = serve(&exec, instance, work, &run) => event,
        () = run.cancel.cancelled() => Event::Stopped,
    };
    let models = &exec.0.models;
    let last = {
        let mut served = models.served();
        let mine = served.remove(instance);
        mine.filter(|mine| served.values().all(|other| other.key != mine.key))
    };
    if let Some(last) = last {
        models.hosts.remove(&last.key);
    }
    exec.finish(instance, token, event).await;
}

/// Loads the model and serves; returns only if it cannot.
async fn serve(exec: &Exec, instance: &InstanceId, work: &ModelWork, run: &Run) -> Event {
    let _pin = match exec.0.blobs.fetch(work.model, work.model_bytes).await {
        Ok(pin) => pin,
        Err(problem) => return Event::Failed(problem),
    };
    let models = &exec.0.models;
    let key = key(work.model, &work.inputs, work.memory);
    let source = source(exec.0.blobs.store(), work.model);
    let mut attempt = 0;
    let facts = loop {
        match models.load(key.clone(), source.clone()).await {
            Ok(facts) => break facts,
            Err(error) if error.retryable() && attempt + 1 < STARTS_MAX => {
                tracing::warn!(%instance, %error, "the model is started again");
                tokio::time::sleep(backoff::delay(attempt, rand::random())).await;
                attempt += 1;
            }
            Err(error) => return Event::Failed(convert::model_problem(&error)),
        }
    };
    let served = Served {
        epoch: run.token.epoch,
        key,
        source,
        deadline: Duration::from_millis(work.deadline.0),
    };
    models.served().insert(instance.clone(), Arc::new(served));
    exec.progress(instance, run.token, Progress::Serving(facts))
        .await;
    std::future::pending().await
}

/// Answers whether this node can run a model.
pub(super) async fn check(
    exec: &Exec,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), Error> {
    let Some(check) = read::<ModelCheck>(&mut recv, CONTROL_FRAME_MAX).await? else {
        return Ok(());
    };
    let answer = admit(exec, check).await;
    // The asker may have gone meanwhile.
    if write(&mut send, &answer, CONTROL_FRAME_MAX).await.is_ok() {
        let _ = send.finish();
    }
    Ok(())
}

async fn admit(exec: &Exec, check: ModelCheck) -> Result<ModelFacts, Problem> {
    let _pin = exec.0.blobs.fetch(check.model, check.model_bytes).await?;
    let models = &exec.0.models;
    let key = key(check.model, &check.inputs, check.memory);
    let source = source(exec.0.blobs.store(), check.model);
    let loaded = models.load(key.clone(), source).await;
    // Unless it is served anyway, its child is not needed any longer.
    if models.served().values().all(|served| served.key != key) {
        models.hosts.remove(&key);
    }
    loaded.map_err(|e| convert::model_problem(&e))
}
