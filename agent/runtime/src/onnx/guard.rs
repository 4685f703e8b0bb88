//! One model behind its child process.
//!
//! Calls block and take turns; each ends within its deadline. The child is started by the first
//! call that needs it, and killed when it is late, out of memory or talks nonsense; the next call
//! starts a new one, with growing pauses after repeated failures. What a model *is* (not ONNX, an
//! unknown operator) is remembered: such a model is not loaded twice.

use std::{
    ffi::OsString,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hop3_common::tensor::{Tensor, TensorSpec};

use super::{
    Error, Facts, ModelError, Stage,
    backoff::Backoff,
    child::{Broken, Child},
    wire::{self, CHUNK_BYTES, MODEL_BYTES_MAX, Reply, Request},
};

/// Calls that may wait for their turn at one model. More are refused: with inference taking
/// turns, a longer queue only turns into missed deadlines.
pub const WAITING_MAX: usize = 256;

/// Reads a model's bytes, whenever a child starts: they are not kept in the agent's memory.
pub type Source = Arc<dyn Fn() -> io::Result<Bytes> + Send + Sync>;

/// How children are started and limited.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The program: the agent's own binary (`/proc/self/exe`).
    pub program: PathBuf,
    /// Arguments that make it call [`super::serve_child`].
    pub args: Vec<OsString>,
    /// Address space of a child beyond what its binary needs. Loading takes several times the
    /// model's size.
    pub memory_bytes_max: u64,
    /// Optimised plans to keep per model: one per combination of input shapes.
    pub plans_max: usize,
    /// Most time to start a child and load the model. Not part of a call's deadline, else a short
    /// deadline could never be met by the first call.
    pub load_ms_max: u64,
    /// Time without a call after which [`ModelHost::stop_if_idle`] ends the child.
    pub idle_ms_max: u64,
}

impl HostOptions {
    /// Options with the usual limits: 512 MiB, 8 plans, one minute to load, five minutes idle.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, args: Vec<OsString>) -> Self {
        Self {
            program: program.into(),
            args,
            memory_bytes_max: 512 << 20,
            plans_max: 8,
            load_ms_max: 60_000,
            idle_ms_max: 300_000,
        }
    }
}

/// What an inference gave, and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// Outputs in the model's order.
    pub outputs: Vec<Tensor>,
    /// Time in the model, microseconds.
    pub infer_us: u64,
    /// Time to optimise for these input shapes; 0 unless they were new.
    pub plan_us: u64,
    /// Time to decode and prepare the model; 0 unless this call started the child.
    pub load_us: u64,
}

/// Memory of a child, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Its share: pages used by several processes count in parts.
    pub pss_bytes: u64,
    /// All that it has in memory.
    pub rss_bytes: u64,
}

/// One model and the child that runs it.
pub struct ModelHost {
    options: HostOptions,
    specs: Vec<TensorSpec>,
    source: Source,
    slot: Mutex<Slot>,
    turn_free: Condvar,
}

#[derive(Default)]
struct Slot {
    child: Option<Child>,
    /// Also while the child is lent to a call.
    pid: Option<u32>,
    is_busy: bool,
    waiting: usize,
    is_retired: bool,
    facts: Option<Facts>,
    refusal: Option<ModelError>,
    backoff: Backoff,
    last_used: Option<Instant>,
}

impl fmt::Debug for ModelHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelHost")
            .field("specs", &self.specs)
            .finish_non_exhaustive()
    }
}

impl ModelHost {
    /// A host for the model that `source` reads. Starts nothing.
    #[must_use]
    pub fn new(options: HostOptions, specs: Vec<TensorSpec>, source: Source) -> Self {
        let (slot, turn_free) = (Mutex::default(), Condvar::new());
        Self {
            options,
            specs,
            source,
            slot,
            turn_free,
        }
    }

    /// Starts the child if needed and says what the model takes and gives: the admission check.
    /// Returns the facts and the time it took to load, in microseconds (0 if it was loaded).
    ///
    /// # Errors
    /// If the model is not usable or the child fails.
    pub fn load(&self) -> Result<(Facts, u64), Error> {
        let limit = Duration::from_millis(self.options.load_ms_max);
        let mut turn = self.turn(limit)?;
        let load_us = turn.start()?;
        Ok((self.facts().unwrap_or_default(), load_us))
    }

    /// Runs the model on inputs in its own order. Blocks for at most `limit`, plus the time to
    /// start the child if there is none.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::retryable`] tells whether the same call may succeed later.
    pub fn infer(&self, inputs: Vec<Tensor>, limit: Duration) -> Result<Inference, Error> {
        let begin = Instant::now();
        let mut turn = self.turn(limit)?;
        let before_start = Instant::now();
        let load_us = turn.start()?;
        let until = begin + limit + before_start.elapsed();
        turn.infer(inputs, until, limit).map(|inference| Inference {
            load_us,
            ..inference
        })
    }

    /// What the model takes and gives; none before it was first loaded.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        self.slot().facts.clone()
    }

    /// The child's process id; none if there is no child.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.slot().pid
    }

    /// Whether a call is running or waiting.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let slot = self.slot();
        slot.is_busy || slot.waiting > 0
    }

    /// The child's memory, to be shown apart from the agent's; none if there is no child or it
    /// cannot be read.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()?)).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        Some(Memory {
            pss_bytes: field("Pss:")?,
            rss_bytes: field("Rss:")?,
        })
    }

    /// Ends the child if nobody has used it for `idle_ms_max`. Returns whether it did.
    pub fn stop_if_idle(&self, now: Instant) -> bool {
        let idle = Duration::from_millis(self.options.idle_ms_max);
        let mut slot = self.slot();
        let is_idle = !slot.is_busy
            && slot.waiting == 0
            && slot
                .last_used
                .is_none_or(|at| now.saturating_duration_since(at) >= idle);
        if !is_idle {
            return false;
        }
        slot.pid = None;
        let child = slot.child.take();
        drop(slot);
        child.is_some()
    }

    /// Ends the child now if no call is at it, and refuses all calls from now on.
    pub fn retire(&self) {
        let mut slot = self.slot();
        slot.is_retired = true;
        let child = slot.child.take();
        if child.is_some() {
            slot.pid = None;
        }
        drop(slot);
        self.turn_free.notify_all();
        drop(child);
    }

    /// Every change of the slot is complete in itself, so a panicking caller spoils nothing.
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the model to be free.
    fn turn(&self, limit: Duration) -> Result<Turn<'_>, Error> {
        let until = Instant::now() + limit;
        let mut slot = self.slot();
        if slot.is_busy && slot.waiting >= WAITING_MAX {
            return Err(Error::Busy);
        }
        slot.waiting += 1;
        while slot.is_busy && !slot.is_retired {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                slot.waiting -= 1;
                return Err(late(Stage::Queue, limit));
            }
            let waited = self.turn_free.wait_timeout(slot, left);
            (slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        slot.waiting -= 1;
        if slot.is_retired {
            return Err(Error::Retired);
        }
        slot.is_busy = true;
        Ok(Turn {
            host: self,
            child: slot.child.take(),
        })
    }
}

/// The right to use the child; gives it back when dropped.
struct Turn<'a> {
    host: &'a ModelHost,
    child: Option<Child>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut slot = self.host.slot();
        slot.is_busy = false;
        slot.last_used = Some(Instant::now());
        let mut child = self.child.take();
        if !slot.is_retired {
            slot.child = child.take();
        }
        slot.pid = slot.child.as_ref().map(Child::pid);
        drop(slot);
        self.host.turn_free.notify_one();
        drop(child);
    }
}

impl Turn<'_> {
    /// Makes sure that there is a child with the model loaded. Returns the time to load, or 0.
    fn start(&mut self) -> Result<u64, Error> {
        // One that died between calls is replaced without a word: nobody's call was lost.
        if self.child.as_mut().is_some_and(Child::has_ended) {
            self.child = None;
        }
        if self.child.is_some() {
            return Ok(0);
        }
        let now = Instant::now();
        {
            let slot = self.host.slot();
            if let Some(refusal) = &slot.refusal {
                return Err(refusal.clone().into());
            }
            if let Some(wait) = slot.backoff.wait(now) {
                return Err(Error::BackingOff {
                    failures: slot.backoff.failures(),
                    retry_ms: ms(wait).max(1),
                });
            }
        }
        let limit = Duration::from_millis(self.host.options.load_ms_max);
        match self.start_new(now + limit) {
            Ok(Reply::Loaded { facts, load_us }) => {
                self.host.slot().facts = Some(facts);
                Ok(load_us)
            }
            Ok(Reply::Failed(e)) => {
                self.child = None;
                if e.is_fatal() {
                    return Err(self.broken(fatal(e), Stage::Load, limit));
                }
                self.host.slot().refusal = Some(e.clone());
                Err(e.into())
            }
            Ok(_) => Err(self.broken(out_of_turn(), Stage::Load, limit)),
            Err(StartError::Broken(e)) => Err(self.broken(e, Stage::Load, limit)),
            Err(StartError::Other(e)) => {
                self.child = None;
                Err(e)
            }
        }
    }

    fn start_new(&mut self, until: Instant) -> Result<Reply, StartError> {
        let options = &self.host.options;
        let model = (self.host.source)().map_err(|e| StartError::Other(Error::Source(e)))?;
        if model.len() as u64 > MODEL_BYTES_MAX {
            let e = ModelError::TooLarge {
                what: "the model".into(),
                bytes_max: MODEL_BYTES_MAX,
            };
            return Err(StartError::Other(e.into()));
        }
        let child = Child::spawn(options).map_err(|source| {
            StartError::Other(Error::Spawn {
                program: options.program.clone(),
                source,
            })
        })?;
        self.host.slot().pid = Some(child.pid());
        let child = self.child.insert(child);
        match child
            .exchange(std::iter::empty(), until)
            .map_err(StartError::Broken)?
        {
            Reply::Ready => {}
            _ => return Err(StartError::Broken(out_of_turn())),
        }
        let specs = self.host.specs.clone();
        let load = Request::Load {
            bytes: model.len() as u64,
            specs,
        };
        let chunks = (0..model.len())
            .step_by(CHUNK_BYTES)
            .map(|at| Request::Chunk(model.slice(at..model.len().min(at + CHUNK_BYTES))));
        // Encoded one by one, as the pipe takes them. Neither can exceed a frame.
        let frames = std::iter::once(load)
            .chain(chunks)
            .map_while(|r| wire::encode(&r).ok());
        child.exchange(frames, until).map_err(StartError::Broken)
    }

    fn infer(
        &mut self,
        inputs: Vec<Tensor>,
        until: Instant,
        limit: Duration,
    ) -> Result<Inference, Error> {
        let frame = wire::encode(&Request::Infer { inputs }).map_err(|_| ModelError::TooLarge {
            what: "the input".into(),
            bytes_max: wire::FRAME_BYTES_MAX as u64,
        })?;
        let Some(child) = self.child.as_mut() else {
            return Err(Error::Retired);
        };
        match child.exchange(std::iter::once(frame), until) {
            Ok(Reply::Outputs {
                outputs,
                infer_us,
                plan_us,
            }) => {
                self.host.slot().backoff.succeeded();
                Ok(Inference {
                    outputs,
                    infer_us,
                    plan_us,
                    load_us: 0,
                })
            }
            Ok(Reply::Failed(e)) if e.is_fatal() => Err(self.broken(fatal(e), Stage::Infer, limit)),
            Ok(Reply::Failed(e)) => Err(e.into()),
            Ok(_) => Err(self.broken(out_of_turn(), Stage::Infer, limit)),
            Err(e) => Err(self.broken(e, Stage::Infer, limit)),
        }
    }

    /// Kills the child, counts the failure and says what it was.
    fn broken(&mut self, broken: Broken, stage: Stage, limit: Duration) -> Error {
        self.child = None;
        self.host.slot().backoff.failed(Instant::now());
        match broken {
            Broken::Late => late(stage, limit),
            Broken::Memory => Error::MemoryExceeded {
                limit_bytes: self.host.options.memory_bytes_max,
            },
            Broken::Panicked(e) => e.into(),
            Broken::Died {
                signal,
                code,
                message,
            } => Error::Crashed {
                signal,
                code,
                message,
            },
            Broken::Protocol(reason) => Error::Protocol { reason },
            Broken::Io(e) => Error::Protocol {
                reason: format!("its pipe failed: {e}"),
            },
        }
    }
}

enum StartError {
    /// The child is at fault.
    Broken(Broken),
    /// Anything else.
    Other(Error),
}

fn fatal(e: ModelError) -> Broken {
    match e {
        ModelError::OutOfMemory => Broken::Memory,
        e => Broken::Panicked(e),
    }
}

fn out_of_turn() -> Broken {
    Broken::Protocol("a reply that was not asked for".into())
}

fn late(stage: Stage, limit: Duration) -> Error {
    Error::DeadlineExceeded {
        stage,
        limit_ms: ms(limit),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
