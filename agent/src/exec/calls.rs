//! Short invocations: many to a stream, answered in the order in which they end.
//!
//! The hot path: one task reads, guests run on the worker threads and encode their replies into a
//! shared buffer themselves, one task writes whatever has gathered in one go. Nothing is spawned
//! per call once its module is loaded.
//!
//! Limits per stream: [`IN_FLIGHT_MAX`] calls; no more are read while [`REPLIES_BYTES_MAX`] bytes
//! of replies wait for the network.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use hop3_common::{
    codes::{Code, Problem},
    id::Digest,
    wire::{
        CALL_FRAME_MAX, Call, CallResult, End, Reply, Target, frame,
        io::{Error, FrameReader},
    },
};
use hop3_runtime::wasm::{CancelToken, Invocation, Limits, LoadedModule, RunError, invoke};
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;

use super::{Exec, convert};
use crate::services::inbox::Ask;

/// Calls in flight on one stream.
const IN_FLIGHT_MAX: usize = 1024;
/// Replies that wait for the network before no more calls are read; one more of each call in
/// flight may come.
const REPLIES_BYTES_MAX: usize = 8 << 20;
/// Modules remembered per stream, so that a call does not search.
const MODULES_MAX: usize = 8;
/// Most output of an invocation: it travels in one frame.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// Standard error shown with a failure.
const LOG_BYTES_SHOWN: usize = 1024;
/// Host calls per second of an invocation.
const HOST_CALLS_PER_S: u64 = 2_000_000;

/// What the reader, the workers and the writer of a stream share.
struct Stream {
    replies: Mutex<Replies>,
    /// Replies were added, or the end was.
    added: Notify,
    /// The writer took what there was.
    taken: Notify,
    in_flight: Mutex<HashMap<u64, CancelToken>>,
}

#[derive(Default)]
struct Replies {
    buffer: BytesMut,
    ended: bool,
}

impl Stream {
    fn replies(&self) -> MutexGuard<'_, Replies> {
        // Frames are appended whole or not at all.
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<u64, CancelToken>> {
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call in; `None` if there are too many, or one of that id.
    fn admit(&self, id: u64) -> Result<CancelToken, Problem> {
        let mut calls = self.in_flight();
        if calls.len() >= IN_FLIGHT_MAX {
            let message = format!("{IN_FLIGHT_MAX} calls are in flight on this stream");
            return Err(Problem::new(Code::Busy, message));
        }
        let cancel = CancelToken::new();
        if calls.insert(id, cancel.clone()).is_some() {
            return Err(Problem::new(
                Code::Protocol,
                format!("call {id} is already in flight"),
            ));
        }
        Ok(cancel)
    }

    /// The end of a call that was admitted.
    fn reply(&self, id: u64, result: Result<CallResult, Problem>) {
        self.in_flight().remove(&id);
        self.refuse(id, result);
    }

    /// An answer for a call, admitted or not.
    fn refuse(&self, id: u64, result: Result<CallResult, Problem>) {
        let reply = Reply { id, result };
        let mut replies = self.replies();
        if let Err(error) = frame::encode(&reply, CALL_FRAME_MAX, &mut replies.buffer) {
            let result = Err(Problem::new(Code::TooLarge, format!("the reply: {error}")));
            let short = frame::encode(&Reply { id, result }, CALL_FRAME_MAX, &mut replies.buffer);
            debug_assert!(short.is_ok(), "a problem fits a frame");
        }
        drop(replies);
        self.added.notify_one();
    }

    fn end(&self) {
        for cancel in self.in_flight().values() {
            cancel.cancel();
        }
        self.replies().ended = true;
        self.added.notify_one();
    }

    /// Waits until there is room for more replies.
    async fn room(&self) {
        loop {
            if self.replies().buffer.len() < REPLIES_BYTES_MAX {
                return;
            }
            self.taken.notified().await;
        }
    }
}

/// Serves one `Calls` stream to its end.
pub(super) async fn serve(exec: Exec, send: SendStream, recv: RecvStream) -> Result<(), Error> {
    let stream = Arc::new(Stream {
        replies: Mutex::default(),
        added: Notify::new(),
        taken: Notify::new(),
        in_flight: Mutex::default(),
    });
    let writer = tokio::spawn(write(stream.clone(), send));
    let mut reader = Reader {
        exec,
        stream: stream.clone(),
        modules: Vec::new(),
    };
    let read = reader.read(recv).await;
    stream.end();
    let _ = writer.await;
    read
}

async fn write(stream: Arc<Stream>, mut send: SendStream) {
    loop {
        let (bytes, ended) = {
            let mut replies = stream.replies();
            (replies.buffer.split().freeze(), replies.ended)
        };
        if !bytes.is_empty() {
            stream.taken.notify_one();
            if send.write_chunk(bytes).await.is_err() {
                // The reader sees the end of the connection itself.
                return;
            }
        } else if ended {
            let _ = send.finish();
            return;
        } else {
            stream.added.notified().await;
        }
    }
}

/// The reading side.
struct Reader {
    exec: Exec,
    stream: Arc<Stream>,
    /// Most recently used last.
    modules: Vec<(Digest, Arc<LoadedModule>)>,
}

/// An invocation of a module.
struct Job {
    id: u64,
    input: Bytes,
    memory_bytes: u64,
    cpu_ms: u64,
    until: Instant,
    cancel: CancelToken,
}

impl Reader {
    async fn read(&mut self, recv: RecvStream) -> Result<(), Error> {
        let mut frames = FrameReader::new(recv, CALL_FRAME_MAX);
        loop {
            self.stream.room().await;
            match frames.next::<Call>().await {
                Ok(Some(call)) => self.dispatch(call),
                Ok(None) => return Ok(()),
                Err(error) if error.is_protocol() => return Err(error),
                // The connection is gone.
                Err(_) => return Ok(()),
            }
        }
    }

    fn dispatch(&mut self, call: Call) {
        let Call {
            id,
            deadline_ms,
            target,
        } = call;
        if let Target::Cancel { id } = target {
            if let Some(cancel) = self.stream.in_flight().get(&id).cloned() {
                cancel.cancel();
            }
            return;
        }
        let cancel = match self.stream.admit(id) {
            Ok(cancel) => cancel,
            Err(problem) => return self.stream.refuse(id, Err(problem)),
        };
        let limit = Duration::from_millis(deadline_ms.into());
        let until = Instant::now() + limit;
        match target {
            Target::Module {
                module,
                module_bytes,
                memory_bytes,
                cpu_ms,
                input,
            } => {
                let cpu_ms = u64::from(if cpu_ms == 0 { deadline_ms } else { cpu_ms });
                let job = Job {
                    id,
                    input,
                    memory_bytes,
                    cpu_ms,
                    until,
                    cancel,
                };
                match self.module(&module) {
                    Some(module) => submit(&self.exec, &self.stream, module, job),
                    None => self.load(module, module_bytes, job),
                }
            }
            Target::Model {
                instance,
                epoch,
                inputs,
            } => {
                let (exec, stream) = (self.exec.clone(), self.stream.clone());
                tokio::spawn(async move {
                    let infer = exec.0.models.infer(&instance, epoch, inputs, limit);
                    let result = infer.await;
                    stream.reply(id, result);
                });
            }
            Target::Service {
                instance,
                epoch,
                request,
            } => match self.exec.services().actor(&instance, epoch) {
                Ok(actor) => actor.request(request, self.ask(id, until, cancel)),
                Err(problem) => self.stream.reply(id, Err(problem)),
            },
            Target::Message {
                instance,
                epoch,
                message,
            } => match self.exec.services().actor(&instance, epoch) {
                Ok(actor) => actor.message(message, self.ask(id, until, cancel)),
                Err(problem) => self.stream.reply(id, Err(problem)),
            },
            Target::Cancel { .. } => {}
        }
    }

    fn ask(&self, id: u64, until: Instant, cancel: CancelToken) -> Ask {
        let stream = self.stream.clone();
        Ask {
            until,
            cancel,
            reply: Box::new(move |result| stream.reply(id, result)),
        }
    }

    /// A module that this stream has used lately, or that is ready in memory.
    fn module(&mut self, digest: &Digest) -> Option<Arc<LoadedModule>> {
        let at = self.modules.iter().position(|(known, _)| known == digest)?;
        if at + 1 < self.modules.len() {
            let entry = self.modules.remove(at);
            self.modules.push(entry);
        }
        self.modules.last().map(|(_, module)| module.clone())
    }

    /// The slow path: fetch, compile, run; later calls find it.
    fn load(&mut self, digest: Digest, bytes: u64, job: Job) {
        // Ready in memory or on disk: read once per stream.
        if let Some(module) = self.exec.0.engine.find(&digest.0) {
            if self.modules.len() >= MODULES_MAX {
                self.modules.remove(0);
            }
            self.modules.push((digest, module.clone()));
            return submit(&self.exec, &self.stream, module, job);
        }
        let (exec, stream) = (self.exec.clone(), self.stream.clone());
        tokio::spawn(async move {
            let loading = exec.module(digest, bytes);
            match tokio::time::timeout_at(job.until.into(), loading).await {
                Ok(Ok(ready)) => submit(&exec, &stream, ready.module, job),
                Ok(Err(problem)) => stream.reply(job.id, Err(problem)),
                Err(_) => stream.reply(job.id, Err(late("while its module was loaded"))),
            }
        });
    }
}

fn late(when: &str) -> Problem {
    Problem::new(Code::Deadline, format!("the call's deadline passed {when}"))
}

/// Gives an invocation to the workers.
fn submit(exec: &Exec, stream: &Arc<Stream>, module: Arc<LoadedModule>, job: Job) {
    let id = job.id;
    let on_worker = stream.clone();
    let submitted = exec.0.threads.submit(move || {
        let result = run(&module, &job);
        on_worker.reply(job.id, result);
    });
    if let Err(busy) = submitted {
        stream.reply(id, Err(Problem::new(Code::Busy, busy.to_string())));
    }
}

fn run(module: &LoadedModule, job: &Job) -> Result<CallResult, Problem> {
    let left = job.until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(late("while it waited for a worker"));
    }
    let wall_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    let limits = Limits {
        memory_bytes: job.memory_bytes,
        cpu_ms: job.cpu_ms.max(1),
        wall_ms,
        output_bytes: OUTPUT_BYTES_MAX,
        host_calls_per_s: HOST_CALLS_PER_S,
        host_calls_burst: HOST_CALLS_PER_S,
    };
    match invoke(module, &job.input, &limits, &job.cancel) {
        Ok(invocation) => result_of(invocation),
        Err(error @ RunError::Busy) => Err(Problem::new(Code::Busy, error.to_string())),
        Err(error) => Err(convert::run_problem(&error)),
    }
}

fn result_of(invocation: Invocation) -> Result<CallResult, Problem> {
    let usage = convert::usage(&invocation.outcome.usage);
    match convert::end(&invocation.outcome) {
        End::Exited(exit) => Ok(CallResult::Module {
            exit,
            output: invocation.output.into(),
            usage,
        }),
        End::Cancelled => Err(Problem::new(Code::TaskCancelled, "the call was cancelled")),
        End::Failed(problem) => {
            let shown = &invocation.log[..invocation.log.len().min(LOG_BYTES_SHOWN)];
            let log = String::from_utf8_lossy(shown);
            let log = log.trim();
            if log.is_empty() {
                return Err(problem);
            }
            let message = format!("{}\nit wrote to standard error:\n{log}", problem.message);
            Err(Problem::new(problem.code, message))
        }
    }
}
