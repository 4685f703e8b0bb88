//! Threads that guests run on: bounded in number, lower in priority than the agent's own, and
//! never those of an async runtime.
//!
//! Short invocations share a small pool with a bounded queue; long tasks get a thread of their
//! own. A full pool is a typed refusal, never a wait. A closure that panics is reported and harms
//! nobody else (where panics unwind).
//!
//! Nor does an invocation that is not short: when no worker took anything for [`PATIENCE`]
//! although something waits, a stand-in does, until nothing waits. The system then shares the
//! cores among those that compute and those that only answer.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};
use tracing::{error, warn};

use super::cancel::lock;
use super::engine::Engine;

/// Workers, and tasks at once: each is a thread.
const THREADS_MAX: usize = 4_096;
/// Invocations that may wait: at 1 ms each, a minute's worth on one worker.
const QUEUE_MAX: usize = 65_536;
/// Invocations that take longer than this hold others up; most take less than a millisecond.
const PATIENCE: Duration = Duration::from_millis(20);
/// The watching thread only counts.
const WATCH_STACK_BYTES: usize = 64 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// How many threads, and how they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadOptions {
    /// Threads for short invocations, at least 1.
    pub workers: usize,
    /// More of them while all are held up by invocations that take long.
    pub stand_ins_max: usize,
    /// Invocations that may wait for a worker.
    pub queue_max: usize,
    /// Long tasks at once.
    pub tasks_max: usize,
    /// Niceness of the workers above the process's own (0 to 19; higher is lower in priority).
    pub worker_niceness: i32,
    /// The same of the tasks.
    pub task_niceness: i32,
    /// Native stack of each thread, bytes.
    pub stack_bytes: usize,
}

impl ThreadOptions {
    /// A worker per core, twice as many tasks as cores (at least 8), stacks that fit `engine`.
    #[must_use]
    pub fn for_engine(engine: &Engine) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: cores,
            // Each costs what its guest uses of its stack.
            stand_ins_max: 64,
            queue_max: 1_024,
            tasks_max: (2 * cores).max(8),
            worker_niceness: 5,
            task_niceness: 10,
            stack_bytes: engine.native_stack_bytes(),
        }
    }
}

/// There is no room for more work now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// As many invocations wait as may.
    #[error("{0} invocations are waiting already")]
    Queue(usize),
    /// As many tasks run as may.
    #[error("{0} tasks are running already")]
    Tasks(usize),
    /// The system has no thread to give.
    #[error("the system refused another thread")]
    System,
}

/// The threads. Cheap to clone; dropping the last handle ends the workers after their current
/// invocation and forgets what waits. Running tasks end by their own limits or cancel tokens.
#[derive(Clone)]
pub struct GuestThreads(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    options: ThreadOptions,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Something waits and no worker is idle.
    held_up: Condvar,
    tasks: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
    /// Workers that wait for something to do.
    idle: usize,
    stand_ins: usize,
    /// Jobs taken so far.
    taken: u64,
    /// Nobody looks whether workers are held up.
    unwatched: bool,
}

impl GuestThreads {
    /// Starts the workers. Counts out of range are moved to the nearest bound.
    ///
    /// # Errors
    /// The system has no threads to give.
    pub fn new(options: ThreadOptions) -> std::io::Result<Self> {
        let options = ThreadOptions {
            workers: options.workers.clamp(1, THREADS_MAX),
            queue_max: options.queue_max.clamp(1, QUEUE_MAX),
            stand_ins_max: options.stand_ins_max.min(THREADS_MAX),
            tasks_max: options.tasks_max.min(THREADS_MAX),
            ..options
        };
        let workers = options.workers;
        let (queue, tasks) = (Mutex::default(), AtomicUsize::new(0));
        let shared = Arc::new(Shared {
            options,
            queue,
            changed: Condvar::new(),
            held_up: Condvar::new(),
            tasks,
        });
        let handle = Handle(Arc::clone(&shared));
        for n in 0..workers {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("hop3-invoke-{n}"));
            let stack_bytes = shared.options.stack_bytes;
            builder
                .stack_size(stack_bytes)
                .spawn(move || shared.work(false))?;
        }
        if shared.options.stand_ins_max > 0 {
            let builder = thread::Builder::new().name("hop3-invoke-watch".into());
            builder
                .stack_size(WATCH_STACK_BYTES)
                .spawn(move || shared.watch())?;
        }
        Ok(Self(Arc::new(handle)))
    }

    /// Runs a short job on a worker, in order of arrival.
    ///
    /// # Errors
    /// The queue is full; the job was dropped without being run.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        let shared = &self.0.0;
        {
            let mut queue = lock(&shared.queue);
            if queue.jobs.len() >= shared.options.queue_max {
                return Err(Busy::Queue(queue.jobs.len()));
            }
            queue.jobs.push_back(Box::new(job));
            shared.see(&mut queue);
        }
        shared.changed.notify_one();
        Ok(())
    }

    /// Runs a long job on a thread of its own.
    ///
    /// # Errors
    /// As many tasks as allowed are running, or the system has no thread; the job was dropped
    /// without being run.
    pub fn spawn_task(&self, name: &str, job: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        let shared = &self.0.0;
        let most = shared.options.tasks_max;
        let more = |running| (running < most).then_some(running + 1);
        if shared
            .tasks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_err()
        {
            return Err(Busy::Tasks(most));
        }
        let slot = TaskSlot(Arc::clone(shared));
        // A NUL would make the thread's name invalid.
        let builder = thread::Builder::new().name(name.replace('\0', ""));
        let spawned = builder
            .stack_size(shared.options.stack_bytes)
            .spawn(move || {
                lower_priority(slot.0.options.task_niceness);
                run_caught(Box::new(job));
            });
        spawned.map(drop).map_err(|_| Busy::System)
    }

    /// Tasks running now.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.0.0.tasks.load(Ordering::SeqCst)
    }

    /// Invocations waiting now.
    #[must_use]
    pub fn queued(&self) -> usize {
        lock(&self.0.0.queue).jobs.len()
    }
}

/// A running task's place; free again when dropped, with its thread or without it.
struct TaskSlot(Arc<Shared>);

impl Drop for TaskSlot {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn work(&self, stand_in: bool) {
        lower_priority(self.options.worker_niceness);
        while let Some(job) = self.next(stand_in) {
            run_caught(job);
        }
    }

    /// Has somebody look whether the workers are held up, if they may be.
    fn see(&self, queue: &mut Queue) {
        if !queue.jobs.is_empty() && queue.idle == 0 && queue.unwatched {
            queue.unwatched = false;
            self.held_up.notify_one();
        }
    }

    /// Starts stand-ins for workers that are held up.
    fn watch(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        while !queue.closed {
            if queue.jobs.is_empty() || queue.idle > 0 {
                queue.unwatched = true;
                let seen = self.held_up.wait(queue);
                queue = seen.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let taken = queue.taken;
            let waited = self.held_up.wait_timeout(queue, PATIENCE);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            let held_up = queue.taken == taken && !queue.jobs.is_empty() && !queue.closed;
            if held_up && queue.stand_ins < self.options.stand_ins_max {
                queue.stand_ins += 1;
                drop(queue);
                let began = self.stand_in();
                queue = lock(&self.queue);
                if !began {
                    queue.stand_ins -= 1;
                }
            }
        }
    }

    fn stand_in(self: &Arc<Self>) -> bool {
        let shared = Arc::clone(self);
        let builder = thread::Builder::new().name("hop3-stand-in".into());
        let spawned = builder
            .stack_size(self.options.stack_bytes)
            .spawn(move || shared.work(true));
        spawned.is_ok()
    }

    fn next(&self, stand_in: bool) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                queue.taken += 1;
                self.see(&mut queue);
                return Some(job);
            }
            if stand_in {
                queue.stand_ins -= 1;
                return None;
            }
            queue.idle += 1;
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let forgotten = {
            let mut queue = lock(&self.0.queue);
            queue.closed = true;
            std::mem::take(&mut queue.jobs)
        };
        self.0.changed.notify_all();
        self.0.held_up.notify_all();
        drop(forgotten);
    }
}

fn run_caught(job: Job) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        let name = thread::current().name().unwrap_or("?").to_owned();
        error!(
            thread = name,
            "a guest's thread panicked; this is a bug of the runtime"
        );
    }
}

/// Makes the calling thread nicer than its process. On Linux niceness belongs to the thread,
/// and anybody may raise their own.
fn lower_priority(niceness: i32) {
    static WARNED: Once = Once::new();
    let lowered = getpriority_process(None)
        .and_then(|own| setpriority_process(None, (own + niceness.clamp(0, 19)).min(19)));
    if let Err(error) = lowered {
        WARNED.call_once(|| warn!(%error, "guest threads run at normal priority"));
    }
}

#[cfg(test)]
#[path = "threads_tests.rs"]
mod tests;
