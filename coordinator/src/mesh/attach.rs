//! The stream of an attached client: frames both ways, relayed as they are. Flow control is the
//! protocol's own credit, and QUIC's below it; nothing is kept here but one frame each way.

use std::sync::Arc;

use bytes::BytesMut;
use hop3_common::{
    codes::Problem,
    id::InstanceId,
    ownership::Epoch,
    wire::{StreamHeader, attach, attach::Frame, frame, io::FrameReader},
};
use quinn::{RecvStream, SendStream};
use tokio::time::Instant;

use super::peer::{OPEN_TIMEOUT, Peer};

/// Frames towards the task. Dropping it ends the client's side.
pub struct AttachSender {
    peer: Arc<Peer>,
    stream: SendStream,
}

/// Frames from the task. Dropping it tells the node that nobody listens.
pub struct AttachReceiver {
    peer: Arc<Peer>,
    frames: FrameReader<RecvStream>,
}

pub(super) async fn attach(
    peer: &Arc<Peer>,
    instance: InstanceId,
    epoch: Epoch,
) -> Result<(AttachSender, AttachReceiver), Problem> {
    let header = StreamHeader::Attach { instance, epoch };
    let (stream, recv) = peer.open(&header, Instant::now() + OPEN_TIMEOUT).await?;
    let frames = FrameReader::new(recv, attach::FRAME_MAX);
    Ok((
        AttachSender {
            peer: peer.clone(),
            stream,
        },
        AttachReceiver {
            peer: peer.clone(),
            frames,
        },
    ))
}

impl AttachSender {
    /// Sends a frame; waits while the node takes no more.
    ///
    /// # Errors
    /// `NodeUnreachable` when the stream or the session ended, `TooLarge`.
    pub async fn send(&mut self, message: Frame) -> Result<(), Problem> {
        let mut out = BytesMut::with_capacity(frame::PREFIX_BYTES + message.room_bytes());
        let written = match frame::encode(&message, attach::FRAME_MAX, &mut out) {
            // Whole, so that nothing is copied once more.
            Ok(()) => self.stream.write_chunk(out.freeze()).await,
            Err(error) => return self.peer.written(Err(error.into())),
        };
        self.peer
            .written(written.map_err(|error| std::io::Error::from(error).into()))
    }
}

impl AttachReceiver {
    /// The next frame; `None` when the stream or the session ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        let next = self.frames.next().await;
        self.peer.read(next).ok().flatten()
    }
}
