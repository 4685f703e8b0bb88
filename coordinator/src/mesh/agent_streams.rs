//! Streams that an agent opens beside its control stream: telemetry, blobs, and what its
//! instances ask of the mesh.
//!
//! Their number is bounded by the stream limits of the connection, so each is one small task.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hop3_common::wire::{
    HEADER_FRAME_MAX, StreamHeader, TELEMETRY_FRAME_MAX, close,
    io::{self, FrameReader},
    telemetry::Batch,
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use super::{
    NodeLink,
    admission::TokenBucket,
    blobs::{self, Transfer},
    endpoint::Shared,
    outgoing_streams,
    peer::Breach,
};

/// Longest wait for a stream's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Telemetry batches per second: ten times what a watched node sends.
const BATCHES_PER_S: u32 = 10;
/// Of them, at once.
const BATCHES_BURST: u32 = 60;

/// Serves the streams until the node breaks the protocol, or the connection ends (`None`).
pub(super) async fn accept(shared: &Arc<Shared>, link: &NodeLink) -> Option<Breach> {
    let connection = &link.peer().connection;
    let transfers = Arc::new(Semaphore::new(blobs::TRANSFERS_MAX));
    let mut tasks: JoinSet<Result<(), Breach>> = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let (send, recv) = stream.ok()?;
                let transfer = Transfer {
                    shared: shared.clone(),
                    link: link.clone(),
                    limit: transfers.clone(),
                };
                tasks.spawn(bidi(transfer, send, recv));
            }
            stream = connection.accept_uni() => {
                tasks.spawn(uni(shared.clone(), link.clone(), stream.ok()?));
            }
            Some(done) = tasks.join_next() => match done {
                Ok(Err(breach)) => return Some(breach),
                Ok(Ok(())) => {}
                Err(error) => tracing::error!(%error, "a stream's task failed"),
            },
        }
    }
}

/// The header; `None` when the stream ended before it.
async fn header(recv: &mut RecvStream) -> Result<Option<StreamHeader>, Breach> {
    match timeout(HEADER_TIMEOUT, io::read(recv, HEADER_FRAME_MAX)).await {
        Ok(Ok(header)) => Ok(header),
        Ok(Err(error)) if error.is_protocol() => Err(Breach(error.to_string())),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(Breach("a stream without a header".into())),
    }
}

async fn bidi(transfer: Transfer, send: SendStream, mut recv: RecvStream) -> Result<(), Breach> {
    match header(&mut recv).await? {
        None => Ok(()),
        Some(StreamHeader::BlobGet { digest, offset }) => {
            let _ = recv.stop(VarInt::from_u32(close::DONE));
            Box::pin(transfer.get(send, digest, offset)).await;
            Ok(())
        }
        Some(StreamHeader::BlobPut { digest, size }) => {
            Box::pin(transfer.put(send, recv, digest, size)).await;
            Ok(())
        }
        Some(StreamHeader::Outgoing) => {
            let Transfer { shared, link, .. } = transfer;
            Box::pin(outgoing_streams::serve(shared, link, send, recv)).await
        }
        Some(other) => Err(Breach(format!("an agent may not open {}", name(&other)))),
    }
}

async fn uni(shared: Arc<Shared>, link: NodeLink, mut recv: RecvStream) -> Result<(), Breach> {
    match header(&mut recv).await? {
        None => return Ok(()),
        Some(StreamHeader::Telemetry) => {}
        Some(other) => {
            return Err(Breach(format!("{} is not a one-way stream", name(&other))));
        }
    }
    let mut frames = FrameReader::new(recv, TELEMETRY_FRAME_MAX);
    let mut rate = TokenBucket::new(BATCHES_PER_S, BATCHES_BURST, Instant::now());
    loop {
        let batch: Batch = match frames.next().await {
            Ok(Some(batch)) => batch,
            Err(error) if error.is_protocol() => return Err(Breach(error.to_string())),
            Ok(None) | Err(_) => return Ok(()),
        };
        if !rate.take(Instant::now()) {
            shared.counters.telemetry_dropped.one();
            continue;
        }
        let samples = batch.decode().map_err(|error| Breach(error.to_string()))?;
        shared.counters.samples.add(samples.len() as u64);
        shared.brain.telemetry(&link, samples);
    }
}

fn name(header: &StreamHeader) -> &'static str {
    match header {
        StreamHeader::Control => "Control",
        StreamHeader::Telemetry => "Telemetry",
        StreamHeader::BlobGet { .. } => "BlobGet",
        StreamHeader::BlobPut { .. } => "BlobPut",
        StreamHeader::Calls => "Calls",
        StreamHeader::Attach { .. } => "Attach",
        StreamHeader::Logs { .. } => "Logs",
        StreamHeader::CheckModel => "CheckModel",
        StreamHeader::Client { .. } => "Client",
        StreamHeader::Outgoing => "Outgoing",
    }
}
