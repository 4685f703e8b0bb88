//! The stream of an attached client: frames both ways, relayed as they are. Flow control is the
//! protocol's own credit, and QUIC's below it; nothing is kept here but one frame each way.

use std::time::Duration;

use hop3_common::{
    codes::Problem,
    id::InstanceId,
    ownership::Epoch,
    wire::{
        StreamHeader, attach,
        attach::Frame,
        io::{self, FrameReader},
    },
};
use quinn::{RecvStream, SendStream};
use tokio::time::Instant;

use super::link::NodeLink;

/// Longest wait for the stream to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Frames towards the task. Dropping it ends the client's side.
#[derive(Debug)]
pub struct AttachSender {
    link: NodeLink,
    stream: SendStream,
}

/// Frames from the task. Dropping it tells the node that nobody listens.
pub struct AttachReceiver {
    link: NodeLink,
    frames: FrameReader<RecvStream>,
}

pub(super) async fn attach(
    link: &NodeLink,
    instance: InstanceId,
    epoch: Epoch,
) -> Result<(AttachSender, AttachReceiver), Problem> {
    let header = StreamHeader::Attach { instance, epoch };
    let (stream, recv) = link.open(&header, Instant::now() + OPEN_TIMEOUT).await?;
    let frames = FrameReader::new(recv, attach::FRAME_MAX);
    Ok((AttachSender { link: link.clone(), stream }, AttachReceiver { link: link.clone(), frames }))
}

impl AttachSender {
    /// Sends a frame; waits while the node takes no more.
    ///
    /// # Errors
    /// `NodeUnreachable` when the stream or the session ended.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Problem> {
        match io::write(&mut self.stream, &frame, attach::FRAME_MAX).await {
            // Our own frame, not the node's: nothing to hold against it.
            Err(error) if error.is_protocol() => Err(Problem::new(
                hop3_common::codes::Code::TooLarge,
                format!("an attach frame does not fit: {error}"),
            )),
            written => self.link.wrote(written),
        }
    }
}

impl AttachReceiver {
    /// The next frame; `None` when the stream or the session ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        let next = self.frames.next().await;
        self.link.wrote(next).ok().flatten()
    }
}
