//! The child: a process that holds one model and answers one request after the other.
//!
//! It ends when its standard input ends, when a frame makes no sense, or after a panic: the panic
//! hook sends a typed reply and exits, so that it is the same whether panics unwind or abort.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    panic::PanicHookInfo,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    Backend, ModelError, Session, Tract,
    error::reason,
    heap, jail,
    wire::{self, CHUNK_BYTES, MODEL_BYTES_MAX, Reply, Request},
};

/// Argument before the memory limit in bytes.
pub(super) const MEMORY_ARGUMENT: &str = "--memory-bytes";
/// Argument before the number of optimised plans to keep.
pub(super) const PLANS_ARGUMENT: &str = "--plans";

/// Bad arguments, or the jail could not be closed.
const EXIT_SETUP: u8 = 70;
/// The agent's frames made no sense.
const EXIT_PROTOCOL: u8 = 76;
/// A panic, already reported.
const EXIT_PANIC: i32 = 71;

/// Runs the child to its end. To be called first thing in `main`, while there is one thread, with
/// the arguments that [`super::ModelHost`] appends: `--memory-bytes N --plans N`.
#[must_use]
pub fn serve_child(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    heap::keep();
    let ready = Settings::parse(arguments).and_then(|settings| {
        Tract::warm_up().map_err(|e| e.to_string())?;
        std::panic::set_hook(Box::new(report_panic));
        jail(settings.memory_bytes).map_err(|e| format!("cannot close the jail: {e}"))?;
        Ok(settings)
    });
    let settings = match ready {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("model process: {message}");
            return ExitCode::from(EXIT_SETUP);
        }
    };
    let backend = Tract::new(settings.plans);
    match serve(&mut io::stdin().lock(), &mut io::stdout().lock(), &backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("model process: {e}");
            ExitCode::from(EXIT_PROTOCOL)
        }
    }
}

struct Settings {
    memory_bytes: u64,
    plans: usize,
}

impl Settings {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut memory_bytes, mut plans) = (None, None);
        while let Some(name) = arguments.next() {
            let value: Option<u64> = arguments
                .next()
                .and_then(|v| v.to_str().and_then(|v| v.parse().ok()));
            match name.to_str() {
                Some(MEMORY_ARGUMENT) => memory_bytes = value,
                Some(PLANS_ARGUMENT) => plans = value.and_then(|n| usize::try_from(n).ok()),
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        match (memory_bytes, plans) {
            (Some(memory_bytes), Some(plans)) => Ok(Self {
                memory_bytes,
                plans,
            }),
            _ => Err(format!("needs {MEMORY_ARGUMENT} N and {PLANS_ARGUMENT} N")),
        }
    }
}

fn serve(input: &mut impl Read, output: &mut impl Write, backend: &dyn Backend) -> io::Result<()> {
    send(output, &Reply::Ready)?;
    let mut session: Option<Box<dyn Session>> = None;
    while let Some(request) = wire::read(input)? {
        let reply = match request {
            Request::Load { bytes, specs } => {
                session = None;
                let model = read_model(input, bytes)?;
                let begin = Instant::now();
                match model.and_then(|model| backend.load(model, &specs)) {
                    Ok(loaded) => {
                        let facts = session.insert(loaded).facts().clone();
                        Reply::Loaded {
                            facts,
                            load_us: us(begin.elapsed()),
                        }
                    }
                    Err(e) => Reply::Failed(e),
                }
            }
            Request::Infer { inputs } => {
                let session = session.as_mut().ok_or_else(|| unexpected("an inference"))?;
                let begin = Instant::now();
                match session.run(&inputs) {
                    Ok(outcome) => Reply::Outputs {
                        infer_us: us(begin.elapsed().saturating_sub(outcome.plan)),
                        plan_us: us(outcome.plan),
                        outputs: outcome.outputs,
                    },
                    Err(e) => Reply::Failed(e),
                }
            }
            Request::Chunk(_) => return Err(unexpected("a chunk")),
        };
        send(output, &reply)?;
    }
    Ok(())
}

/// Reads the chunks of a model. The inner result says whether it fits into memory.
fn read_model(input: &mut impl Read, bytes: u64) -> io::Result<Result<Vec<u8>, ModelError>> {
    if bytes > MODEL_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a model of {bytes} bytes is announced"
        )));
    }
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut model = Vec::new();
    if model.try_reserve_exact(bytes).is_err() {
        // The rest of the chunks is not read: the agent ends a process that is out of memory.
        return Ok(Err(ModelError::OutOfMemory));
    }
    while model.len() < bytes {
        match wire::read(input)? {
            Some(Request::Chunk(chunk)) if (1..=CHUNK_BYTES).contains(&chunk.len()) => {
                model.extend_from_slice(&chunk);
            }
            _ => return Err(unexpected("something else than a chunk")),
        }
    }
    if model.len() > bytes {
        return Err(unexpected("a chunk beyond the model's size"));
    }
    Ok(Ok(model))
}

fn send(output: &mut impl Write, reply: &Reply) -> io::Result<()> {
    output.write_all(&wire::encode(reply).map_err(io::Error::other)?)?;
    output.flush()
}

fn report_panic(info: &PanicHookInfo<'_>) {
    let text = info.payload_as_str().unwrap_or("without a message");
    let error = if is_allocation_failure(text) {
        ModelError::OutOfMemory
    } else {
        let place = info
            .location()
            .map(|l| format!(" ({}:{})", l.file(), l.line()));
        ModelError::Panicked {
            reason: reason(&format!("{text}{}", place.unwrap_or_default())),
        }
    };
    // If the agent is gone, there is nobody to tell.
    let _ = send(&mut io::stdout().lock(), &Reply::Failed(error));
    std::process::exit(EXIT_PANIC);
}

/// tract asserts on null from the allocator; std panics on sizes that no machine has.
fn is_allocation_failure(panic: &str) -> bool {
    ["failed to allocate", "data.is_null()", "capacity overflow"]
        .iter()
        .any(|s| panic.contains(s))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::other(format!("{what} came at the wrong time"))
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
