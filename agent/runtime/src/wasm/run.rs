//! Runs one instance of a module to its end, on the calling thread.
//!
//! The thread must have [`Engine::native_stack_bytes`](super::Engine::native_stack_bytes) of
//! stack and should be one of [`GuestThreads`](super::GuestThreads), never one of an async
//! runtime. Nothing of an instance outlives its run.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::{Func, PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use super::cancel::{CancelToken, Stop};
use super::clock::GuestClock;
use super::limits::{Limits, LimitsError};
use super::meter::{Halt, Meter};
use super::module::LoadedModule;
use super::outcome::{End, Frame, Limit, Outcome, TrapKind, Which};
use super::random::GuestRandom;
use super::stdio::{Captured, Discard, InputBytes, Output, Stdin};
use super::wasi::{Grants, Host, HostError, Setup};

/// Output of an invocation that is kept: it travels in one frame.
pub const INVOKE_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Standard error of an invocation that is kept: enough to see why it failed.
pub const INVOKE_LOG_BYTES_MAX: usize = 16 * 1024;

/// What a task is given. By default: nothing, and the default limits.
pub struct TaskInput {
    /// The program's name and its arguments.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Arc<dyn Stdin>,
    /// Standard output.
    pub stdout: Arc<dyn Output>,
    /// Standard error.
    pub stderr: Arc<dyn Output>,
    /// What it may touch.
    pub grants: Grants,
    /// What it may use.
    pub limits: Limits,
    /// The time it sees.
    pub clock: GuestClock,
    /// The randomness it sees.
    pub random: GuestRandom,
    /// Ends it from another thread.
    pub cancel: CancelToken,
}

impl Default for TaskInput {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            stdin: Arc::new(InputBytes::default()),
            stdout: Arc::new(Discard),
            stderr: Arc::new(Discard),
            grants: Grants::default(),
            limits: Limits::default(),
            clock: GuestClock::default(),
            random: GuestRandom::default(),
            cancel: CancelToken::new(),
        }
    }
}

/// A run could not be started: nothing of the guest was executed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A limit is out of range.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Arguments, environment or volumes are not acceptable.
    #[error("{what}: {why}")]
    Input {
        /// Which one.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A granted directory cannot be opened.
    #[error("volume {guest_path}: cannot open {}", host_dir.display())]
    Volume {
        /// Where the guest would find it.
        guest_path: String,
        /// The directory.
        host_dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// As many instances as the engine allows are running; try again later.
    #[error("all instances of the engine are in use")]
    Busy,
    /// The host could not make the instance.
    #[error("the instance could not be made: {message}")]
    Instantiate {
        /// The engine's words.
        message: String,
    },
}

impl From<HostError> for RunError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Input { what, why } => Self::Input { what, why },
            HostError::Volume {
                guest_path,
                host_dir,
                source,
            } => Self::Volume {
                guest_path,
                host_dir,
                source,
            },
        }
    }
}

/// Runs a task to its end.
///
/// # Errors
/// It could not be started. Whatever happens once it runs is an [`Outcome`].
pub fn run_task(module: &LoadedModule, input: TaskInput) -> Result<Outcome, RunError> {
    input.limits.validate()?;
    let setup = Setup {
        args: input.args,
        env: input.env,
        stdin: input.stdin,
        stdout: input.stdout,
        stderr: input.stderr,
        clock: input.clock,
        random: input.random,
        meter: Meter::start(input.limits, input.cancel),
    };
    execute(module, Host::new(setup, &input.grants)?)
}

/// The result of [`invoke`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// How it ended and what it used.
    pub outcome: Outcome,
    /// Its standard output.
    pub output: Vec<u8>,
    /// The beginning of its standard error, at most [`INVOKE_LOG_BYTES_MAX`].
    pub log: Vec<u8>,
}

/// Calls a module as a function: a fresh instance reads `input` as its standard input; its
/// standard output, at most [`INVOKE_OUTPUT_BYTES_MAX`] whatever the limits say, is the result.
///
/// # Errors
/// As [`run_task`].
pub fn invoke(
    module: &LoadedModule,
    input: &[u8],
    limits: &Limits,
    cancel: &CancelToken,
) -> Result<Invocation, RunError> {
    let output_bytes = limits.output_bytes.min(INVOKE_OUTPUT_BYTES_MAX as u64);
    let limits = Limits {
        output_bytes,
        ..*limits
    };
    limits.validate()?;
    let stdout = Arc::new(Captured::new(INVOKE_OUTPUT_BYTES_MAX));
    let stderr = Arc::new(Captured::new(INVOKE_LOG_BYTES_MAX));
    let setup = Setup {
        args: Vec::new(),
        env: Vec::new(),
        stdin: Arc::new(InputBytes::new(Bytes::copy_from_slice(input))),
        stdout: Arc::clone(&stdout) as Arc<dyn Output>,
        stderr: Arc::clone(&stderr) as Arc<dyn Output>,
        clock: GuestClock::Host,
        random: GuestRandom::Host,
        meter: Meter::start(limits, cancel.clone()),
    };
    let outcome = execute(module, Host::new(setup, &Grants::default())?)?;
    Ok(Invocation {
        outcome,
        output: stdout.take(),
        log: stderr.take(),
    })
}

fn execute(module: &LoadedModule, host: Host) -> Result<Outcome, RunError> {
    let mut store = Store::new(module.pre.module().engine(), host);
    store.limiter(|host| &mut host.meter);
    store.epoch_deadline_callback(|context| Ok(context.data().meter.tick()?));
    store.set_epoch_deadline(1);
    let end = {
        let _ticking = module.ticker.guard();
        match start(module, &mut store) {
            Ok(()) => End::Exit(0),
            Err(error) => end_of(module, &error)?,
        }
    };
    Ok(Outcome {
        end,
        usage: store.data().meter.usage(),
    })
}

fn start(module: &LoadedModule, store: &mut Store<Host>) -> wasmtime::Result<()> {
    // Cancelled while it waited for its turn: no epoch check may come in a short guest.
    store.data().meter.wait().check().map_err(Halt::Stop)?;
    let instance = module.pre.instantiate(&mut *store)?;
    if let Some(memory) = &module.memory {
        let export = instance.get_module_export(&mut *store, memory);
        store.data_mut().memory = export.and_then(wasmtime::Extern::into_memory);
    }
    let export = instance.get_module_export(&mut *store, &module.start);
    let start: Option<Func> = export.and_then(wasmtime::Extern::into_func);
    let start = start.ok_or_else(|| wasmtime::Error::msg("`_start` is gone"))?;
    start.typed::<(), ()>(&*store)?.call(&mut *store, ())
}

/// What an error of the engine means. Errors that are not the guest's doing are the host's.
fn end_of(module: &LoadedModule, error: &wasmtime::Error) -> Result<End, RunError> {
    if let Some(halt) = error.downcast_ref::<Halt>() {
        return Ok(match *halt {
            Halt::Exit(code) => End::Exit(code),
            Halt::Limit(limit) => End::LimitExceeded(limit),
            Halt::Stop(Stop::Cancelled) => End::Cancelled,
            Halt::Stop(Stop::Deadline) => End::DeadlineExceeded,
        });
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => {
            let bytes = module.wasm_stack_bytes;
            let which = Which::StackBytes;
            Ok(End::LimitExceeded(Limit {
                which,
                limit: bytes,
                used: bytes,
            }))
        }
        Some(trap) => {
            let frames = error.downcast_ref::<WasmBacktrace>();
            let frames = frames.map_or_else(Vec::new, |trace| {
                trace.frames().iter().map(Frame::of).collect()
            });
            Ok(End::Trap {
                kind: TrapKind::from(*trap),
                message: trap.to_string(),
                frames,
            })
        }
        None if error.is::<PoolConcurrencyLimitError>() => Err(RunError::Busy),
        None => Err(RunError::Instantiate {
            message: format!("{error:#}"),
        }),
    }
}
