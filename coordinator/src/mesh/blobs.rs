//! Blobs to and from an agent: resumable, hash-checked, behind everything else on the wire.
//!
//! Disk work happens on blocking threads, a piece at a time; a transfer holds at most one piece in
//! memory. What has arrived of an unfinished put stays on disk, to go on from in another session.

use std::{
    io::{self as std_io, Read},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hop3_common::{
    chunks::{self, BlobReader, PartialBlob},
    codes::{Code, Problem},
    id::Digest,
    wire::{BlobReply, HEADER_FRAME_MAX, close, io},
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{
    io::AsyncReadExt,
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use super::{NodeLink, endpoint::Shared, link::PRIORITY_BLOBS, peer::finish_and_wait};

/// Most transfers at once per node; more wait.
pub(super) const TRANSFERS_MAX: usize = 4;
/// Bytes in memory per transfer: two segments of a blob.
const PIECE_BYTES: usize = 128 << 10;
/// Longest time without progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What a transfer needs.
pub(super) struct Transfer {
    pub(super) shared: Arc<Shared>,
    pub(super) link: NodeLink,
    pub(super) limit: Arc<Semaphore>,
}

/// Why a transfer ended before its end.
enum Failed {
    /// The agent is told.
    Refused(Problem),
    /// The stream is gone, or stalled.
    Lost,
}

impl From<chunks::Error> for Failed {
    fn from(error: chunks::Error) -> Self {
        let code = match &error {
            chunks::Error::NotFound { .. } => Code::NotFound,
            chunks::Error::OutOfRange { .. } => Code::InvalidField,
            chunks::Error::HashMismatch { .. } => Code::DigestMismatch,
            chunks::Error::TooLarge { .. } | chunks::Error::SizeMismatch { .. } => Code::Protocol,
            chunks::Error::Busy { .. } => Code::Busy,
            _ => Code::Storage,
        };
        if code == Code::Storage {
            tracing::error!(%error, "the blob store failed");
        }
        Self::Refused(Problem::new(code, error.to_string()))
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl Transfer {
    /// Serves a `BlobGet`.
    pub(super) async fn get(self, mut send: SendStream, digest: Digest, offset: u64) {
        let _ = send.set_priority(PRIORITY_BLOBS);
        // Never closed while a transfer lives.
        let Ok(_turn) = self.limit.acquire().await else {
            return;
        };
        match self.send_blob(&mut send, digest, offset).await {
            Ok(()) => {
                let _ = send.finish();
            }
            Err(failed) => end(&mut send, failed).await,
        }
    }

    async fn send_blob(
        &self,
        send: &mut SendStream,
        digest: Digest,
        offset: u64,
    ) -> Result<(), Failed> {
        self.shared.brain.may_get(self.link.node(), &digest).await?;
        let blobs = self.shared.brain.blobs();
        let mut reader = blocking(move || blobs.reader(&digest, offset)).await??;
        reply(
            send,
            &BlobReply::Ready {
                size: reader.size(),
                offset,
            },
        )
        .await?;
        while reader.remaining() > 0 {
            let (back, piece) = blocking(move || {
                let piece = read_piece(&mut reader);
                (reader, piece)
            })
            .await?;
            reader = back;
            let piece = piece.map_err(|error| {
                // The node sees a reset: bytes have gone before, so no reply can be told apart.
                tracing::error!(%error, %digest, "a blob cannot be read");
                Failed::Lost
            })?;
            let len = piece.len() as u64;
            write_all(send, piece).await?;
            self.shared.counters.blob_bytes_sent.add(len);
        }
        Ok(())
    }

    /// Serves a `BlobPut`.
    pub(super) async fn put(
        self,
        mut send: SendStream,
        mut recv: RecvStream,
        digest: Digest,
        size: u64,
    ) {
        let _ = send.set_priority(PRIORITY_BLOBS);
        let Ok(_turn) = self.limit.acquire().await else {
            return;
        };
        let stored = self.take_blob(&mut send, &mut recv, digest, size).await;
        // Whatever is left is not read.
        let _ = recv.stop(VarInt::from_u32(close::DONE));
        match stored {
            Ok(()) => finish_and_wait(&mut send).await,
            Err(failed) => end(&mut send, failed).await,
        }
    }

    async fn take_blob(
        &self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        digest: Digest,
        size: u64,
    ) -> Result<(), Failed> {
        let (brain, node) = (&self.shared.brain, self.link.node());
        brain.may_put(node, &digest, size).await?;
        let blobs = brain.blobs();
        let known = blocking(move || known(&blobs, &digest)).await??;
        match known {
            Some(stored) if stored != size => {
                let message = format!("blob {digest} has {stored} bytes, not {size}");
                return Err(Problem::new(Code::DigestMismatch, message).into());
            }
            // It is here: nothing need be sent.
            Some(_) => reply(send, &BlobReply::Ready { size, offset: size }).await?,
            None => {
                let blobs = brain.blobs();
                let partial = blocking(move || blobs.resume(&digest, size)).await??;
                reply(
                    send,
                    &BlobReply::Ready {
                        size,
                        offset: partial.offset(),
                    },
                )
                .await?;
                let partial = self.fill(partial, recv).await?;
                blocking(move || partial.commit()).await??;
            }
        }
        // On a task of its own: begun, it must not be dropped with the session.
        let (brain, node) = (brain.clone(), node.clone());
        let told = tokio::spawn(async move { brain.stored(&node, &digest, size).await });
        told.await.map_err(|error| failed(&error))?;
        reply(send, &BlobReply::Stored).await
    }

    /// Takes the missing bytes.
    async fn fill(
        &self,
        mut partial: PartialBlob,
        recv: &mut RecvStream,
    ) -> Result<PartialBlob, Failed> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        loop {
            // One byte more than is wanted shows a blob that is longer than announced.
            let wanted = (partial.total_size() - partial.offset()).saturating_add(1);
            let room = usize::try_from(wanted)
                .unwrap_or(usize::MAX)
                .min(PIECE_BYTES);
            piece.clear();
            let ended = read_up_to(recv, &mut piece, room).await;
            let len = piece.len() as u64;
            // What came is kept even if the stream then failed: a resume goes on from there.
            let (back, buffer, appended) = blocking(move || {
                let mut partial = partial;
                let appended = partial.append(&piece);
                (partial, piece, appended)
            })
            .await?;
            (partial, piece) = (back, buffer);
            appended?;
            self.shared.counters.blob_bytes_received.add(len);
            if ended? {
                return Ok(partial);
            }
        }
    }
}

/// The size of a blob that is here, made young for the collector.
fn known(blobs: &chunks::BlobStore, digest: &Digest) -> chunks::Result<Option<u64>> {
    if blobs.touch(digest)? {
        blobs.size(digest).map(Some)
    } else {
        Ok(None)
    }
}

fn read_piece(reader: &mut BlobReader) -> std_io::Result<Bytes> {
    let len = usize::try_from(reader.remaining())
        .unwrap_or(usize::MAX)
        .min(PIECE_BYTES);
    let mut piece = vec![0; len];
    reader.read_exact(&mut piece)?;
    Ok(piece.into())
}

/// Reads until `room` bytes are in `piece` (`false`) or the stream ended well (`true`).
async fn read_up_to(
    recv: &mut RecvStream,
    piece: &mut BytesMut,
    room: usize,
) -> Result<bool, Failed> {
    while piece.len() < room {
        let mut rest = (&mut *recv).take((room - piece.len()) as u64);
        match timeout(STALL_TIMEOUT, rest.read_buf(piece)).await {
            Ok(Ok(0)) => return Ok(true),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(Failed::Lost),
        }
    }
    Ok(false)
}

async fn write_all(send: &mut SendStream, piece: Bytes) -> Result<(), Failed> {
    match timeout(STALL_TIMEOUT, send.write_chunk(piece)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Failed::Lost),
    }
}

async fn reply(send: &mut SendStream, reply: &BlobReply) -> Result<(), Failed> {
    match timeout(STALL_TIMEOUT, io::write(send, reply, HEADER_FRAME_MAX)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Failed::Lost),
    }
}

/// Ends a transfer that failed.
async fn end(send: &mut SendStream, failed: Failed) {
    match failed {
        Failed::Refused(problem) => {
            if reply(send, &BlobReply::Refused(problem)).await.is_ok() {
                finish_and_wait(send).await;
            }
        }
        Failed::Lost => {
            let _ = send.reset(VarInt::from_u32(close::DONE));
        }
    }
}

/// Runs disk work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failed> {
    spawn_blocking(work).await.map_err(|error| failed(&error))
}

fn failed(error: &JoinError) -> Failed {
    tracing::error!(%error, "a blob's task failed");
    Failed::Refused(Problem::new(
        Code::Internal,
        "the coordinator failed; see its log",
    ))
}
