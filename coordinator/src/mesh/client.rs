//! The stream of a client of a service's instance: frames both ways, as they are. Flow control is
//! QUIC's; nothing is kept here but one frame each way.

use std::sync::Arc;

use hop3_common::{
    codes::Problem,
    id::InstanceId,
    ownership::Epoch,
    wire::{
        CLIENT_FRAME_MAX, ClientDown, ClientUp, StreamHeader,
        io::{self, FrameReader},
    },
};
use quinn::{RecvStream, SendStream};
use tokio::time::Instant;

use super::peer::{OPEN_TIMEOUT, Peer};

/// An attached client stream. Dropping it detaches.
pub struct ClientLink {
    peer: Arc<Peer>,
    stream: SendStream,
    frames: FrameReader<RecvStream>,
}

pub(super) async fn client(
    peer: &Arc<Peer>,
    instance: InstanceId,
    epoch: Epoch,
) -> Result<ClientLink, Problem> {
    let header = StreamHeader::Client { instance, epoch };
    let (stream, recv) = peer.open(&header, Instant::now() + OPEN_TIMEOUT).await?;
    Ok(ClientLink {
        peer: peer.clone(),
        stream,
        frames: FrameReader::new(recv, CLIENT_FRAME_MAX),
    })
}

#[async_trait::async_trait]
impl hop3_gateway::Link for ClientLink {
    async fn send(&mut self, frame: ClientUp) -> Result<(), Problem> {
        self.peer
            .written(io::write(&mut self.stream, &frame, CLIENT_FRAME_MAX).await)
    }

    async fn recv(&mut self) -> Option<ClientDown> {
        let next = self.frames.next().await;
        self.peer.read(next).ok().flatten()
    }
}
