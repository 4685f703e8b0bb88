//! Runs what the supervisor owns, and answers calls.
//!
//! Guests run on the runtime's own bounded threads, models in guarded child processes; async
//! tasks only prepare and relay. Everything here is bounded: tasks at once by the configuration,
//! calls in flight per stream, compilations at once, output by the task's limits.

mod attach;
mod calls;
pub(crate) mod convert;
mod models;
mod services;
mod spool;
mod task;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId},
    ownership::{Epoch, Token},
    store::{MasterKey, crypt::Purpose, disk::OsDisk},
    wire::{
        Assignment, End, Event, Output, ServiceWork, StreamHeader, Work, attach::Channel, close,
        io::Error,
    },
};
use hop3_runtime::{
    onnx::{HostOptions, ModelHosts},
    service::{ServiceEngine, ServiceOptions},
    wasm::{
        AddressSpace, CancelToken, CompiledCache, Engine, EngineOptions, GuestThreads,
        LoadedModule, ThreadOptions,
    },
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{
    runtime::RuntimeFlavor,
    sync::{Notify, Semaphore, oneshot},
};
use tokio_util::sync::CancellationToken;

use self::{attach::Hub, models::Models, spool::Spool};
use crate::{
    blobs::{BLOCKING_THREADS_MAX, Blobs},
    config::{Config, Volume},
    services::{
        Services, keeper::Order, kept::Kept, make_dir, outgoing::Outgoing, suspects::Suspects,
    },
    supervisor::{
        Executor, Handle,
        core::{Progress, cancelled_before_start},
    },
};

/// Modules compiled at once: compiling is hungry, and running work comes first.
const COMPILES_MAX: usize = 2;
/// Threads that may be ending while others begin: their work is done, their place not yet free.
const THREADS_ENDING: usize = 8;
/// Invocations that wait for a worker.
const INVOCATIONS_WAITING_MAX: usize = 2048;
/// Inferences at once on this node: each waits on a blocking thread.
const INFERENCES_MAX: usize = BLOCKING_THREADS_MAX / 2;
/// Largest module, bytes: it is in memory while it is compiled.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Time that ending guests get when the agent goes down.
const GRACE: Duration = Duration::from_secs(3);

/// Why the executor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The Wasm engine.
    #[error(transparent)]
    Engine(#[from] hop3_runtime::wasm::OptionsError),
    /// A directory or thread.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// See the module. Clones are the same executor.
#[derive(Clone)]
pub struct Exec(Arc<Inner>);

struct Inner {
    engine: Engine,
    threads: GuestThreads,
    threads_max: usize,
    blobs: Blobs,
    models: Models,
    services: Services,
    volumes: std::collections::BTreeMap<String, Volume>,
    spool_dir: PathBuf,
    tasks: Arc<Semaphore>,
    compiles: Semaphore,
    supervisor: OnceLock<Handle>,
    runs: Mutex<HashMap<InstanceId, Arc<Run>>>,
    /// Outputs of runs, until they are delivered; hubs, until their client has the exit.
    ios: Mutex<HashMap<InstanceId, (Epoch, RunIo)>>,
    leaving: AtomicBool,
}

/// One live run.
struct Run {
    token: Token,
    /// Ends it: preparation at once, the guest at its next check.
    cancel: CancellationToken,
    guest: CancelToken,
    /// It may take its first step.
    go: Notify,
}

/// Where a run's bytes go.
#[derive(Clone)]
enum RunIo {
    Background {
        stdout: Arc<Spool>,
        stderr: Arc<Spool>,
    },
    Attached(Arc<Hub>),
}

impl Exec {
    /// The executor of this node. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        config: &Config,
        master: &MasterKey,
        blobs: Blobs,
        kept: Kept,
        outgoing: Outgoing,
        memory_bytes: u64,
    ) -> Result<Self, StartError> {
        let system = |action| move |source| StartError::System { action, source };
        let (engine, service_engine) = engines(config, master, memory_bytes)?;
        let threads_max = config.tasks_max as usize
            + COMPILES_MAX
            + crate::services::COMPILES_MAX
            + THREADS_ENDING;
        let threads = GuestThreads::new(ThreadOptions {
            queue_max: INVOCATIONS_WAITING_MAX,
            tasks_max: threads_max,
            stack_bytes: engine
                .native_stack_bytes()
                .max(service_engine.native_stack_bytes()),
            ..ThreadOptions::for_engine(&engine)
        });
        let threads = threads.map_err(system("start the threads of guests"))?;
        let spool_dir = config.data_dir.join("tmp");
        std::fs::create_dir_all(&spool_dir).map_err(system("make the directory for output"))?;
        let dir = config.data_dir.join("services");
        make_dir(&dir).map_err(system("make the directory of services"))?;
        let suspects = Suspects::open(&config.data_dir, master.mac(Purpose::Suspects));
        let services = Services::new(crate::services::Options {
            engine: service_engine,
            threads: threads.clone(),
            volumes: config.volumes.clone(),
            blobs: blobs.clone(),
            kept,
            disk: Arc::new(OsDisk),
            dir,
            cipher: master.cipher(Purpose::ServiceLog),
            outgoing,
            suspects,
        });
        let host = HostOptions::new("/proc/self/exe", vec!["model-host".into()]);
        let hosts = ModelHosts::new(host, config.models_max as usize);
        Ok(Self(Arc::new(Inner {
            engine,
            threads,
            threads_max,
            models: Models::new(hosts, INFERENCES_MAX),
            services,
            blobs,
            volumes: config.volumes.clone(),
            spool_dir,
            tasks: Arc::new(Semaphore::new(config.tasks_max as usize)),
            compiles: Semaphore::new(COMPILES_MAX),
            supervisor: OnceLock::new(),
            runs: Mutex::default(),
            ios: Mutex::default(),
            leaving: AtomicBool::new(false),
        })))
    }

    /// Where progress goes. To be called once, before anything runs.
    pub fn connect(&self, supervisor: Handle) {
        let _ = self.0.supervisor.set(supervisor);
    }

    /// Hash of everything that compiled code depends on, in hex.
    #[must_use]
    pub fn engine_hash(&self) -> String {
        self.0.engine.compat_hash()[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// The services of this node.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.0.services
    }

    /// Has a service's instance ready before it comes.
    pub fn prefetch(&self, instance: InstanceId, work: ServiceWork) {
        self.0.services.prefetch(instance, work);
    }

    /// The next instance for which that is done, as well as it could be.
    pub async fn prefetched(&self) -> InstanceId {
        self.0.services.prefetched().await
    }

    /// Runs in hand.
    #[must_use]
    pub fn running(&self) -> usize {
        self.runs().len()
    }

    /// Resident memory of model children, bytes.
    #[must_use]
    pub fn models_rss_bytes(&self) -> u64 {
        self.0.models.rss_bytes()
    }

    /// Ends idle model children, until dropped.
    pub async fn tend(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(10));
        loop {
            tick.tick().await;
            self.0.models.stop_idle(Instant::now());
        }
    }

    /// Ends all runs and waits for them, at most [`GRACE`]. Their ends are not reported: at the
    /// next start each is lost, repeated or restarted, as it declares.
    pub async fn leave(&self) {
        self.0.leaving.store(true, Ordering::SeqCst);
        for run in self.runs().values() {
            run.guest.cancel();
            run.cancel.cancel();
        }
        let gone = async {
            while self.0.threads.tasks() > 0 || self.0.services.running() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(GRACE, gone).await.is_err() {
            tracing::warn!("some guests did not end in time");
        }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Run>>> {
        // Maps change in single steps.
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ios(&self) -> MutexGuard<'_, HashMap<InstanceId, (Epoch, RunIo)>> {
        self.0.ios.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_of(&self, instance: &InstanceId, token: Token) -> Option<Arc<Run>> {
        self.runs()
            .get(instance)
            .filter(|run| run.token == token)
            .cloned()
    }

    async fn progress(&self, instance: &InstanceId, token: Token, progress: Progress) {
        if let Some(supervisor) = self.0.supervisor.get() {
            supervisor.progress(instance, token, progress).await;
        }
    }

    /// The last word of a run that another follows.
    async fn over(&self, instance: &InstanceId, token: Token, progress: Progress) {
        self.runs().remove(instance);
        if !self.0.leaving.load(Ordering::SeqCst) {
            self.progress(instance, token, progress).await;
        }
    }

    /// The last word of a run.
    async fn finish(&self, instance: &InstanceId, token: Token, event: Event) {
        self.runs().remove(instance);
        let cut_short = match &event {
            Event::TaskEnded(result) => result.end == End::Cancelled,
            Event::Stopped => true,
            _ => false,
        };
        if self.0.leaving.load(Ordering::SeqCst) && cut_short {
            return;
        }
        self.progress(instance, token, Progress::Finished(event))
            .await;
    }

    /// A module ready to run, fetched and compiled if it must be; how long each took.
    async fn module(&self, digest: Digest, bytes: u64) -> Result<Ready, Problem> {
        if bytes > MODULE_BYTES_MAX {
            let message = format!("the module has {bytes} bytes; {MODULE_BYTES_MAX} is the limit");
            return Err(Problem::new(Code::TooLarge, message));
        }
        let began = Instant::now();
        if let Some(module) = self.compiled(digest).await {
            return Ok(Ready {
                module,
                fetch_us: 0,
                load_us: micros(began),
            });
        }
        let was_here = self.0.blobs.store().contains(&digest);
        let _pin = self.0.blobs.fetch(digest, bytes).await?;
        let fetch_us = if was_here { 0 } else { micros(began) };
        let began = Instant::now();
        let _turn = self.0.compiles.acquire().await;
        // Of many that wait for the same module only the first compiles it.
        if let Some(module) = self.compiled(digest).await {
            return Ok(Ready {
                module,
                fetch_us,
                load_us: micros(began),
            });
        }
        self.free_thread().await;
        let (reply, answer) = oneshot::channel();
        let (engine, store) = (self.0.engine.clone(), self.0.blobs.store().clone());
        let job = move || {
            let wasm = store.read(&digest, MODULE_BYTES_MAX);
            let loaded = wasm
                .map_err(|e| Problem::new(Code::Storage, e.to_string()))
                .and_then(|wasm| {
                    engine
                        .load(&wasm, &digest.0)
                        .map_err(|e| convert::module_problem(&e))
                });
            let _ = reply.send(loaded);
        };
        self.0
            .threads
            .spawn_task("hop3-compile", job)
            .map_err(|busy| Problem::new(Code::Busy, busy.to_string()))?;
        let module = answer
            .await
            .map_err(|_| internal("compiling the module panicked"))??;
        Ok(Ready {
            module,
            fetch_us,
            load_us: micros(began),
        })
    }

    /// A module that is ready in memory or compiled on disk.
    async fn compiled(&self, digest: Digest) -> Option<Arc<LoadedModule>> {
        let engine = &self.0.engine;
        if tokio::runtime::Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
            // Most often some tenths of a millisecond: waking another thread and being woken by
            // it would cost as much. Other tasks go on elsewhere.
            return tokio::task::block_in_place(|| engine.find(&digest.0));
        }
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.find(&digest.0))
            .await
            .ok()
            .flatten()
    }

    /// Waits until most threads whose work is done have ended. Whoever asks holds a permit, so
    /// there will be one.
    async fn free_thread(&self) {
        const LOOK: Duration = Duration::from_millis(1);
        while self.0.threads.tasks() >= self.0.threads_max - THREADS_ENDING / 2 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Serves one stream that the coordinator opened.
    ///
    /// # Errors
    /// The coordinator broke the protocol: the connection must be closed.
    pub async fn serve(
        &self,
        header: StreamHeader,
        mut send: SendStream,
        recv: RecvStream,
    ) -> Result<(), Error> {
        match header {
            StreamHeader::Calls => calls::serve(self.clone(), send, recv).await,
            StreamHeader::Attach { instance, epoch } => {
                self.attach(&instance, epoch, send, recv).await
            }
            StreamHeader::Logs {
                instance,
                channel,
                offset,
                follow,
            } => {
                self.logs(&instance, channel, offset, follow, &mut send)
                    .await;
                Ok(())
            }
            StreamHeader::CheckModel => models::check(self, send, recv).await,
            StreamHeader::Client { instance, epoch } => {
                let actor = self.0.services.actor(&instance, epoch);
                crate::services::client::serve(actor, send, recv).await
            }
            StreamHeader::Control
            | StreamHeader::Telemetry
            | StreamHeader::Outgoing
            | StreamHeader::BlobGet { .. }
            | StreamHeader::BlobPut { .. } => {
                let _ = send.reset(VarInt::from_u32(close::PROTOCOL));
                Ok(())
            }
        }
    }

    async fn attach(
        &self,
        instance: &InstanceId,
        epoch: Epoch,
        mut send: SendStream,
        recv: RecvStream,
    ) -> Result<(), Error> {
        let io = self.ios().get(instance).cloned();
        match io {
            Some((of, RunIo::Attached(hub))) if of == epoch => hub.serve(send, recv).await,
            _ => {
                // Not here (yet, or any more): the coordinator tries again while it should be.
                let _ = send.reset(VarInt::from_u32(close::BUSY));
                Ok(())
            }
        }
    }

    /// Sends output from `offset`; to its end if `follow`.
    async fn logs(
        &self,
        instance: &InstanceId,
        channel: Channel,
        mut offset: u64,
        follow: bool,
        send: &mut SendStream,
    ) {
        if let Some(ring) = self.0.services.ring(instance) {
            return services::logs(&ring, channel, offset, follow, send).await;
        }
        let io = self.ios().get(instance).map(|(_, io)| io.clone());
        let spool = match (io, channel) {
            (Some(RunIo::Background { stdout, .. }), Channel::Stdout) => stdout,
            (Some(RunIo::Background { stderr, .. }), Channel::Stderr) => stderr,
            _ => {
                let _ = send.reset(VarInt::from_u32(close::DONE));
                return;
            }
        };
        loop {
            match spool.read(offset) {
                Ok(Some(piece)) if !piece.is_empty() => {
                    offset += piece.len() as u64;
                    if send.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                Ok(Some(_)) if follow => tokio::select! {
                    () = spool.ready(offset) => {}
                    // The reader went away.
                    _ = send.stopped() => return,
                },
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%instance, %error, "output cannot be read back");
                    let _ = send.reset(VarInt::from_u32(close::BUSY));
                    return;
                }
            }
        }
        let _ = send.finish();
    }
}

/// A module that can be instantiated.
struct Ready {
    module: Arc<LoadedModule>,
    fetch_us: u64,
    load_us: u64,
}

impl Executor for Exec {
    fn start(&self, assignment: Arc<Assignment>, token: Token) {
        let run = Arc::new(Run {
            token,
            cancel: CancellationToken::new(),
            guest: CancelToken::new(),
            go: Notify::new(),
        });
        self.runs().insert(assignment.instance.clone(), run.clone());
        let exec = self.clone();
        match &assignment.work {
            Work::Task(_) => tokio::spawn(task::run(exec, assignment, run)),
            Work::Model(_) => tokio::spawn(models::run(exec, assignment, run)),
            Work::Service(_) => tokio::spawn(services::run(exec, assignment, run)),
        };
    }

    fn go(&self, instance: &InstanceId, token: Token) {
        if let Some(run) = self.run_of(instance, token) {
            run.go.notify_one();
        }
    }

    fn cancel(&self, instance: &InstanceId, token: Token) {
        if let Some(run) = self.run_of(instance, token) {
            run.cancel.cancel();
            run.guest.cancel();
        }
    }

    fn deliver(&self, instance: &InstanceId, token: Token, outputs: Vec<Output>) {
        let (exec, instance) = (self.clone(), instance.clone());
        tokio::spawn(async move {
            let mut kept = true;
            for output in outputs {
                kept &= exec.0.blobs.deliver(output).await;
            }
            // Log streams that are open go on from their own handles.
            exec.forget_output(&instance, token);
            exec.progress(&instance, token, Progress::Delivered { kept })
                .await;
        });
    }

    fn seal(&self, instance: &InstanceId, token: Token) {
        self.0.services.order(instance, token, Order::Seal);
    }

    fn checkpoint(&self, instance: &InstanceId, token: Token) {
        self.0.services.order(instance, token, Order::Checkpoint);
    }

    fn discard(&self, instance: &InstanceId) {
        self.0.services.discard(instance);
    }
}

impl Exec {
    fn forget_output(&self, instance: &InstanceId, token: Token) {
        let mut ios = self.ios();
        if ios
            .get(instance)
            .is_some_and(|(epoch, _)| *epoch == token.epoch)
        {
            ios.remove(instance);
        }
    }
}

/// The engines, with as much address space as the system gives.
fn engines(
    config: &Config,
    master: &MasterKey,
    memory_bytes: u64,
) -> Result<(Engine, ServiceEngine), StartError> {
    let cache = |dir: &str| {
        let key = *master.subkey(Purpose::CodeCache);
        CompiledCache::open(config.data_dir.join(dir), key, config.code_cache.0).map_err(|source| {
            StartError::System {
                action: "open the cache of compiled modules",
                source,
            }
        })
    };
    let mut options = EngineOptions::for_machine(memory_bytes);
    if let Some(max) = config.guest_memory_max {
        options.memory_bytes_max = max.0 / 65_536 * 65_536;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    // Tasks, and one invocation per worker.
    options.instances_max = options.instances_max.max(config.tasks_max + cores);
    let mut services = ServiceOptions::for_machine(memory_bytes);
    if config.guest_memory_max.is_some() {
        let most = services.engine.memory_bytes_max;
        services.engine.memory_bytes_max = options.memory_bytes_max.min(most);
    }
    let both = |tasks: &EngineOptions, services: &ServiceOptions| -> Result<_, StartError> {
        let engine = Engine::new(tasks.clone(), Some(cache("code")?))?;
        let services = ServiceEngine::new(services.clone(), Some(cache("code-services")?))?;
        Ok((engine, services))
    };
    match both(&options, &services) {
        Err(StartError::Engine(error)) => {
            tracing::warn!(%error, "the Wasm engines go on with less address space");
            for options in [&mut options, &mut services.engine] {
                options.address_space = AddressSpace::Compact;
                options.memory_bytes_max = options.memory_bytes_max.min(256 << 20);
            }
            both(&options, &services)
        }
        made => made,
    }
}

/// Runs the guarded child that serves one model: see `hop3_runtime::onnx`.
#[must_use]
pub fn model_host() -> ExitCode {
    hop3_runtime::onnx::serve_child(std::env::args_os().skip(2))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn internal(message: impl Into<String>) -> Problem {
    Problem::new(Code::Internal, message)
}

/// The event of a run that was ended before its first step.
fn cancelled(work: &Work) -> Event {
    match work {
        Work::Task(_) => cancelled_before_start(),
        Work::Model(_) | Work::Service(_) => Event::Stopped,
    }
}
