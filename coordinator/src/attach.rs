//! Attached clients: frames between a client of the API and a task's node, relayed as they are.
//!
//! Nothing is kept here but a few frames each way. When the node's session ends, the client's ends
//! too, without an exit frame: it comes back, says by `Resume` what it has, and waits here (bounded)
//! until the node is back. The protocol's offsets see to it that no byte is lost or doubled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hop3_common::{
    api::TaskPhase,
    codes::{Code, Problem},
    id::{InstanceId, TaskId},
    spec::Stdin,
    wire::{End, TaskResult, Usage, attach::Frame},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    Core,
    registry::{FrameSink, FrameSource, Link},
    tasks,
};

/// Frames that wait for the client: with the largest, 320 KiB.
const FRAMES_MAX: usize = 8;
/// Frames that wait for the node: a client's whole credit, and its own credits between.
const CLIENT_FRAMES_MAX: usize = 32;
/// How long a client waits for a node that is away.
const NODE_WAIT: Duration = Duration::from_secs(30);
/// How long an ended task's client may take for its last frames.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A client's end. Dropping it ends the relay.
pub struct AttachSession {
    to_task: mpsc::Sender<Frame>,
    from_task: mpsc::Receiver<Frame>,
}

impl AttachSession {
    /// A frame of the client's.
    ///
    /// # Errors
    /// When the relay has ended: the client comes back.
    pub async fn send(&self, frame: Frame) -> Result<(), Problem> {
        self.to_task
            .send(frame)
            .await
            .map_err(|_| Problem::new(Code::NodeUnreachable, "the task's node went away"))
    }

    /// The next frame for the client. `None` without an exit frame before it: come back. Safe to
    /// drop and call again.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.from_task.recv().await
    }

    /// The next frame for the client if there is one already.
    pub fn try_recv(&mut self) -> Option<Frame> {
        self.from_task.try_recv().ok()
    }
}

/// Begins to relay. The task may still be waiting for its node.
pub(crate) fn attach(core: &Core, id: &TaskId) -> Result<AttachSession, Problem> {
    let task = tasks::find(core, id.as_str())?;
    if task.body.spec.stdin != Stdin::Attached {
        let message = format!("task `{id}` was submitted without attached input");
        return Err(Problem::new(Code::TaskNotAttached, message));
    }
    let core = core
        .this
        .upgrade()
        .ok_or_else(|| Problem::new(Code::Unavailable, "the coordinator goes down"))?;
    let (to_task, from_client) = mpsc::channel(CLIENT_FRAMES_MAX);
    let (to_client, from_task) = mpsc::channel(FRAMES_MAX);
    let relay = Relay {
        core,
        id: id.clone(),
        from_client,
        to_client,
    };
    tokio::spawn(relay.run());
    Ok(AttachSession { to_task, from_task })
}

struct Relay {
    core: Arc<Core>,
    id: TaskId,
    from_client: mpsc::Receiver<Frame>,
    to_client: mpsc::Sender<Frame>,
}

/// How waiting for the node ended.
enum Found {
    /// The task is there. When it has ended, its node may still have output for the client, and the
    /// result is what is told if it has not.
    Node(
        Arc<dyn Link>,
        hop3_common::ownership::Epoch,
        Option<TaskResult>,
    ),
    Ended(Option<TaskResult>),
    /// The client left.
    Left,
}

impl Relay {
    async fn run(mut self) {
        let mut early = Vec::new();
        match self.find(&mut early).await {
            Found::Left => {}
            Found::Ended(result) => self.say_ended(result).await,
            Found::Node(link, epoch, ended) => {
                let heard = match link.attach(InstanceId::task(&self.id), epoch).await {
                    Ok((sink, source)) => self.relay(early, sink, source).await,
                    Err(problem) => {
                        tracing::debug!(task = %self.id, %problem, "not attached");
                        false
                    }
                };
                // Otherwise the client comes back.
                if ended.is_some() && !heard {
                    self.say_ended(ended).await;
                }
            }
        }
    }

    /// Waits until the task is on a node that can be reached. Frames that the client sends
    /// meanwhile go to `early`.
    async fn find(&mut self, early: &mut Vec<Frame>) -> Found {
        let mut changes = self.core.tasks.changes();
        let mut said = String::new();
        let mut away_until = None;
        loop {
            changes.mark_unchanged();
            let Ok(task) = tasks::find(&self.core, self.id.as_str()) else {
                return Found::Ended(None);
            };
            let node = task
                .state
                .node
                .as_ref()
                .and_then(|node| self.core.nodes.get(node));
            let link = node.and_then(|node| node.link());
            let (epoch, result) = (task.state.epoch, task.state.result.clone());
            match (task.state.phase, link) {
                (phase, Some(link)) if phase.is_final() => return Found::Node(link, epoch, result),
                (phase, None) if phase.is_final() => return Found::Ended(result),
                (TaskPhase::Running, Some(link)) => return Found::Node(link, epoch, None),
                (TaskPhase::Pending, _) | (_, Some(_)) => away_until = None,
                (_, None) => {
                    away_until.get_or_insert_with(|| Instant::now() + NODE_WAIT);
                }
            }
            if said != task.state.reason {
                said.clone_from(&task.state.reason);
                if self
                    .to_client
                    .send(Frame::Status(said.clone()))
                    .await
                    .is_err()
                {
                    return Found::Left;
                }
            }
            let until = away_until.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(until) => {
                    if away_until.is_some() {
                        return Found::Ended(Some(away(&task.state.reason)));
                    }
                }
                frame = self.from_client.recv(), if early.len() < CLIENT_FRAMES_MAX => match frame {
                    None => return Found::Left,
                    Some(Frame::Cancel) => self.cancel().await,
                    Some(frame) => early.push(frame),
                },
            }
        }
    }

    async fn cancel(&self) {
        if let Err(problem) = tasks::cancel(&self.core, &self.id).await {
            tracing::debug!(task = %self.id, %problem, "not cancelled");
        }
    }

    async fn say_ended(&self, result: Option<TaskResult>) {
        let (end, usage) = match result {
            Some(result) => (result.end, result.usage),
            None => {
                let problem = Problem::new(Code::TaskUnknown, "the task is not kept any more");
                (End::Failed(problem), Usage::default())
            }
        };
        let _ = self
            .to_client
            .send_timeout(Frame::Exit { end, usage }, LAST_WORDS)
            .await;
    }

    /// Relays until either side ends. Each direction has its own future: a send that waits for
    /// credit does not hold up the other, and is never cut in the middle of a frame. Whether the
    /// node said anything.
    async fn relay(
        &mut self,
        early: Vec<Frame>,
        mut sink: Box<dyn FrameSink>,
        mut source: Box<dyn FrameSource>,
    ) -> bool {
        let Self {
            id,
            from_client,
            to_client,
            ..
        } = self;
        let heard = AtomicBool::new(false);
        let up = async {
            for frame in early {
                sink.send(frame).await?;
            }
            while let Some(frame) = from_client.recv().await {
                sink.send(frame).await?;
            }
            Ok::<(), Problem>(())
        };
        let down = async {
            let mut exit = false;
            while let Some(frame) = source.recv().await {
                heard.store(true, Relaxed);
                exit = matches!(frame, Frame::Exit { .. });
                if to_client.send(frame).await.is_err() || exit {
                    break;
                }
            }
            exit
        };
        tokio::pin!(up, down);
        let mut up_open = true;
        let exited = loop {
            tokio::select! {
                exited = &mut down => break exited,
                up = &mut up, if up_open => {
                    up_open = false;
                    // The client left: the node is told by the stream's end.
                    if up.is_ok() { break false }
                }
            }
        };
        if exited && up_open {
            // The client's `Bye` lets the node forget the task.
            let _ = tokio::time::timeout(LAST_WORDS, up).await;
        }
        tracing::debug!(task = %id, exited, "detached");
        heard.load(Relaxed)
    }
}

fn away(reason: &str) -> TaskResult {
    let message = format!("{reason}; the task may still run there, see `hop3 task show`");
    let end = End::Failed(Problem::new(Code::NodeUnreachable, message));
    TaskResult {
        end,
        usage: Usage::default(),
        stdout: None,
        stderr: None,
    }
}
