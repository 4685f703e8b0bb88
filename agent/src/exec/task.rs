//! One run of a task: prepare, wait for the word, run, keep the output.
//!
//! The guest takes its first step only after the supervisor made "running" durable, so that a
//! task that must not be repeated is never begun twice. Output is durable here before the end is.

use std::{
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
};

use hop3_common::{
    chunks::BlobReader,
    codes::{Code, Problem},
    spec::VolumeGrant,
    wire::{Assignment, End, Event, StdinSource, TaskResult, TaskWork, Usage, Work},
};
use hop3_runtime::wasm::{
    CancelToken, Grants, InputBytes, Outcome, Output, Readiness, RunError, Stdin, Stop, TaskInput,
    Volume, Wait, run_task,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Exec, Ready, Run, RunIo,
    attach::{ABSENCE, Hub},
    cancelled, convert, internal, micros,
    spool::{Cut, Spool},
};
use crate::{blobs::Pin, supervisor::core::Progress};

/// Everything that a run needs before its first step.
struct Prepared {
    ready: Ready,
    stdin: Arc<dyn Stdin>,
    grants: Grants,
    /// Blobs that must stay while it runs.
    _pins: Vec<Pin>,
    /// Its place among the tasks of this node.
    _place: OwnedSemaphorePermit,
}

/// Runs the task to its end and says how it went.
pub(super) async fn run(exec: Exec, assignment: Arc<Assignment>, run: Arc<Run>) {
    let Work::Task(work) = &assignment.work else {
        return;
    };
    let (instance, token) = (&assignment.instance, run.token);
    exec.progress(instance, token, Progress::Preparing).await;
    let io = match RunIo::of(&exec, work, &run) {
        Ok(io) => io,
        Err(problem) => return exec.finish(instance, token, Event::Failed(problem)).await,
    };
    exec.ios()
        .insert(instance.clone(), (token.epoch, io.clone()));
    let event = Box::pin(lifecycle(&exec, &assignment, work, &run, &io)).await;
    io.end(&event);
    let has_output = !crate::supervisor::core::outputs_of(&event).is_empty();
    exec.finish(instance, token, event).await;
    if let RunIo::Attached(hub) = &io {
        // The client may still be reading, or away for a while.
        let linger = ABSENCE * 10;
        tokio::select! {
            () = hub.done.cancelled() => {}
            () = hub.abandoned() => {}
            () = tokio::time::sleep(linger) => {}
        }
    }
    if !has_output {
        exec.forget_output(instance, token);
    }
}

async fn lifecycle(
    exec: &Exec,
    assignment: &Assignment,
    work: &TaskWork,
    run: &Run,
    io: &RunIo,
) -> Event {
    let prepared = tokio::select! {
        prepared = prepare(exec, work, io, run) => prepared,
        () = io.unwanted(run) => return cancelled(&assignment.work),
    };
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => return Event::Failed(problem),
    };
    let Ready {
        fetch_us, load_us, ..
    } = prepared.ready;
    let progress = Progress::Prepared { fetch_us, load_us };
    exec.progress(&assignment.instance, run.token, progress)
        .await;
    tokio::select! {
        () = run.go.notified() => {}
        () = io.unwanted(run) => return cancelled(&assignment.work),
    }
    exec.free_thread().await;
    io.status("running");
    let input = input(work, io, run, &prepared);
    let mut answer = match begin(exec, prepared, input) {
        Ok(answer) => answer,
        Err(problem) => return Event::Failed(problem),
    };
    let ran = tokio::select! {
        ran = &mut answer => ran,
        () = io.unwanted(run) => {
            run.guest.cancel();
            answer.await
        }
    };
    match ran {
        Ok(Ok(outcome)) => ended(exec, io, &outcome).await,
        Ok(Err(error)) => Event::Failed(convert::run_problem(&error)),
        Err(_) => Event::Failed(internal("the thread of the guest panicked")),
    }
}

async fn prepare(exec: &Exec, work: &TaskWork, io: &RunIo, run: &Run) -> Result<Prepared, Problem> {
    let grants = grants(exec, &work.volumes)?;
    let mut pins = vec![exec.0.blobs.pin(work.module)];
    io.status("fetching and compiling");
    let ready = exec.module(work.module, work.module_bytes).await?;
    let stdin: Arc<dyn Stdin> = match (&work.stdin, io) {
        (StdinSource::Blob { digest, bytes }, _) => {
            io.status("fetching its input");
            pins.push(exec.0.blobs.fetch(*digest, *bytes).await?);
            let reader = exec.0.blobs.store().reader(digest, 0);
            let reader = reader.map_err(|e| Problem::new(Code::Storage, e.to_string()))?;
            Arc::new(BlobInput {
                reader: Mutex::new(reader),
                cancel: run.guest.clone(),
            })
        }
        (StdinSource::Attached, RunIo::Attached(hub)) => Arc::new(hub.pipes().stdin.clone()),
        _ => Arc::new(InputBytes::default()),
    };
    io.status("waiting for its turn");
    let place = exec.0.tasks.clone().acquire_owned().await;
    let place = place.map_err(|_| internal("the agent is going down"))?;
    Ok(Prepared {
        ready,
        stdin,
        grants,
        _pins: pins,
        _place: place,
    })
}

/// What of the asked-for volumes this node offers.
fn grants(exec: &Exec, asked: &[VolumeGrant]) -> Result<Grants, Problem> {
    let offered = &exec.0.volumes;
    let grant = |grant: &VolumeGrant| {
        let unknown = |why: &str| {
            let names: Vec<_> = offered.keys().map(String::as_str).collect();
            let message = format!(
                "volume `{}` {why}; this node offers: {}",
                grant.name,
                if names.is_empty() {
                    "none".into()
                } else {
                    names.join(", ")
                }
            );
            Problem::new(Code::VolumeUnknown, message)
        };
        let volume = offered
            .get(&grant.name)
            .ok_or_else(|| unknown("is not offered"))?;
        if grant.writable && !volume.writable {
            return Err(unknown("is offered read-only"));
        }
        Ok(Volume {
            guest_path: grant.path.clone(),
            host_dir: volume.path.clone(),
            read_only: !grant.writable,
        })
    };
    Ok(Grants {
        volumes: asked.iter().map(grant).collect::<Result<_, _>>()?,
    })
}

fn input(work: &TaskWork, io: &RunIo, run: &Run, prepared: &Prepared) -> TaskInput {
    let (stdout, stderr, output_bytes): (Arc<dyn Output>, Arc<dyn Output>, u64) = match io {
        RunIo::Background { stdout, stderr } => {
            // Each spool keeps its own bound; one byte more lets it be noticed there first.
            let both = work.limits.output.0.saturating_mul(2).saturating_add(2);
            (stdout.clone(), stderr.clone(), both)
        }
        RunIo::Attached(hub) => {
            let pipes = hub.pipes();
            let (stdout, stderr) = (pipes.stdout.clone(), pipes.stderr.clone());
            (
                Arc::new(stdout),
                Arc::new(stderr),
                convert::OUTPUT_UNBOUNDED,
            )
        }
    };
    TaskInput {
        args: std::iter::once(&work.program)
            .chain(&work.args)
            .cloned()
            .collect(),
        env: work
            .env
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        stdin: prepared.stdin.clone(),
        stdout,
        stderr,
        grants: prepared.grants.clone(),
        limits: convert::limits(&work.limits, output_bytes),
        cancel: run.guest.clone(),
        ..TaskInput::default()
    }
}

type Ran = oneshot::Receiver<Result<Outcome, RunError>>;

fn begin(exec: &Exec, prepared: Prepared, input: TaskInput) -> Result<Ran, Problem> {
    let (reply, answer) = oneshot::channel();
    let job = move || {
        let ran = run_task(&prepared.ready.module, input);
        drop(prepared);
        let _ = reply.send(ran);
    };
    let spawned = exec.0.threads.spawn_task("hop3-task", job);
    spawned
        .map(|()| answer)
        .map_err(|busy| Problem::new(Code::Busy, busy.to_string()))
}

/// The event of a run that ended, its output durable here.
async fn ended(exec: &Exec, io: &RunIo, outcome: &Outcome) -> Event {
    let (mut end, usage) = (convert::end(outcome), convert::usage(&outcome.usage));
    let RunIo::Background { stdout, stderr } = io else {
        return task_ended(end, usage, None, None);
    };
    for (name, spool) in [("stdout", stdout), ("stderr", stderr)] {
        match spool.cut() {
            Some(Cut::Limit) => {
                let message = format!("the run reached `limits.output` with its {name}");
                end = End::Failed(Problem::new(Code::TaskLimit, message));
            }
            Some(Cut::Disk(why)) => {
                let message = format!("its {name} could not be kept: {why}");
                end = End::Failed(Problem::new(Code::Storage, message));
            }
            None => {}
        }
    }
    let began = std::time::Instant::now();
    let (out, err) = (stdout.clone(), stderr.clone());
    let store = exec.0.blobs.store().clone();
    let kept = tokio::task::spawn_blocking(move || Ok((out.keep(&store)?, err.keep(&store)?)));
    let kept: Result<_, hop3_common::chunks::Error> = match kept.await {
        Ok(kept) => kept,
        Err(_) => return Event::Failed(internal("keeping the output panicked")),
    };
    tracing::debug!(us = micros(began), "output kept");
    match kept {
        Ok((stdout, stderr)) => task_ended(end, usage, stdout, stderr),
        Err(error) => {
            let message = format!("the run ended ({end:?}), but its output is lost: {error}");
            Event::Failed(Problem::new(Code::Storage, message))
        }
    }
}

fn task_ended(
    end: End,
    usage: Usage,
    stdout: Option<hop3_common::wire::Output>,
    stderr: Option<hop3_common::wire::Output>,
) -> Event {
    Event::TaskEnded(Box::new(TaskResult {
        end,
        usage,
        stdout,
        stderr,
    }))
}

impl RunIo {
    fn of(exec: &Exec, work: &TaskWork, run: &Run) -> Result<Self, Problem> {
        if work.stdin == StdinSource::Attached {
            return Ok(Self::Attached(Hub::new()));
        }
        let spool = || {
            Spool::new(&exec.0.spool_dir, work.limits.output.0, run.guest.clone())
                .map(Arc::new)
                .map_err(|e| Problem::new(Code::Storage, e.to_string()))
        };
        Ok(Self::Background {
            stdout: spool()?,
            stderr: spool()?,
        })
    }

    fn status(&self, status: &str) {
        if let Self::Attached(hub) = self {
            hub.status(status);
        }
    }

    /// Returns when nobody wants the run any more.
    async fn unwanted(&self, run: &Run) {
        match self {
            Self::Background { .. } => run.cancel.cancelled().await,
            Self::Attached(hub) => tokio::select! {
                () = run.cancel.cancelled() => {}
                () = hub.cancel.cancelled() => {}
                () = hub.abandoned() => {}
            },
        }
    }

    /// No more output comes; an attached client gets the exit.
    fn end(&self, event: &Event) {
        match self {
            Self::Background { stdout, stderr } => {
                stdout.end();
                stderr.end();
            }
            Self::Attached(hub) => match event {
                Event::TaskEnded(result) => hub.exit(result.end.clone(), result.usage),
                Event::Failed(problem) => hub.exit(End::Failed(problem.clone()), Usage::default()),
                _ => hub.exit(End::Cancelled, Usage::default()),
            },
        }
    }
}

/// A blob as standard input. Damage ends the run: the guest must not take it for the end.
struct BlobInput {
    reader: Mutex<BlobReader>,
    cancel: CancelToken,
}

impl Stdin for BlobInput {
    fn read(&self, buf: &mut [u8], _wait: &Wait) -> Result<usize, Stop> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read(buf).map_err(|error| {
            tracing::error!(%error, "a task's input is damaged; the task is ended");
            self.cancel.cancel();
            Stop::Cancelled
        })
    }

    fn ready(&self, _wait: &Wait) -> Result<Readiness, Stop> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Readiness {
            bytes: reader.remaining(),
            end: true,
        })
    }
}
