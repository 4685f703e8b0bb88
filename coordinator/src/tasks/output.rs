//! Output of tasks: what was kept of an ended one, what the node has of a running one.

use std::sync::Arc;

use hop3_common::{
    api::TaskPhase,
    codes::{Code, Problem},
    id::{InstanceId, TaskId},
    spec::Stdin,
    wire::attach::Channel,
};

use super::{ByteStream, Task, find};
use crate::{Core, artifacts};

/// The output of a task from `offset`. With `follow`, waits until there is some and goes on until
/// the task ends; without, gives what there is.
pub(crate) async fn output(
    core: &Core,
    id: &TaskId,
    channel: Channel,
    offset: u64,
    follow: bool,
) -> Result<ByteStream, Problem> {
    if channel == Channel::Stdin {
        let message = "`channel` must be stdout or stderr: input is not kept";
        return Err(Problem::new(Code::InvalidField, message));
    }
    let mut changes = core.tasks.changes();
    loop {
        changes.mark_unchanged();
        let task = find(core, id.as_str())?;
        if task.body.spec.stdin == Stdin::Attached {
            let message = format!("output of task `{id}` goes to its client and is not kept");
            return Err(Problem::new(Code::OutputGone, message));
        }
        match task.state.phase {
            phase if phase.is_final() => return kept(core, &task, channel, offset).await,
            TaskPhase::Running => {
                let node = task
                    .state
                    .node
                    .as_ref()
                    .and_then(|node| core.nodes.get(node));
                if let Some(link) = node.and_then(|node| node.link()) {
                    return link
                        .logs(InstanceId::task(id), channel, offset, follow)
                        .await;
                }
                if !follow {
                    return Err(Problem::new(
                        Code::NodeUnreachable,
                        task.state.reason.clone(),
                    ));
                }
            }
            _ if !follow => return Ok(Box::pin(tokio::io::empty())),
            _ => {}
        }
        if changes.changed().await.is_err() {
            return Err(Problem::new(Code::Unavailable, "the coordinator goes down"));
        }
    }
}

async fn kept(
    core: &Core,
    task: &Arc<Task>,
    channel: Channel,
    offset: u64,
) -> Result<ByteStream, Problem> {
    let result = task.state.result.as_ref();
    let output = result.and_then(|result| match channel {
        Channel::Stderr => result.stderr,
        _ => result.stdout,
    });
    let Some(output) = output.filter(|output| offset < output.bytes) else {
        return Ok(Box::pin(tokio::io::empty()));
    };
    match artifacts::read(core, &output.digest, offset).await {
        Ok(blob) => Ok(blob.reader),
        Err(problem) if problem.code == Code::ArtifactUnknown => {
            let message = format!("output of task `{}` is not kept any more", task.body.id);
            Err(Problem::new(Code::OutputGone, message))
        }
        Err(problem) => Err(problem),
    }
}
