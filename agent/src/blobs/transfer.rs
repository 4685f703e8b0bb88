//! One blob over one stream, in either direction. The disk side runs on a blocking thread behind
//! a short queue, so that neither side waits for the other more than it must.

use bytes::Bytes;
use hop3_common::{
    chunks::{self, BlobStore},
    codes::{Code, Problem},
    id::Digest,
    wire::{self, BlobReply, HEADER_FRAME_MAX, Output, StreamHeader, close},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{Failure, disk};

/// Bytes on the way between disk and network at a time: 4 × 64 KiB per transfer.
const QUEUE_PIECES: usize = 4;
/// Bytes of one piece: a segment of the store.
const PIECE_BYTES: usize = 64 << 10;
/// Below control and calls (0).
const PRIORITY: i32 = -1;

fn link(error: impl std::fmt::Display) -> Failure {
    Failure::Link(error.to_string())
}

/// Opens a stream and says what it carries.
async fn open(
    connection: &Connection,
    header: &StreamHeader,
) -> Result<(SendStream, RecvStream), Failure> {
    let (mut send, recv) = connection.open_bi().await.map_err(link)?;
    let _ = send.set_priority(PRIORITY);
    wire::io::write(&mut send, header, HEADER_FRAME_MAX)
        .await
        .map_err(link)?;
    Ok((send, recv))
}

async fn reply(recv: &mut RecvStream) -> Result<BlobReply, Failure> {
    let reply = wire::io::read(recv, HEADER_FRAME_MAX).await.map_err(link)?;
    match reply.ok_or_else(|| link("the stream ended early"))? {
        BlobReply::Refused(problem) => Err(Failure::Refused(problem)),
        reply => Ok(reply),
    }
}

fn disk_failure(error: &chunks::Error) -> Failure {
    match error {
        chunks::Error::HashMismatch { .. } => Failure::Wrong(error.to_string()),
        chunks::Error::SizeMismatch { .. } => Failure::Link(error.to_string()),
        _ => Failure::Disk(disk(error)),
    }
}

fn joined<T>(result: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    result.map_err(|e| Failure::Disk(Problem::new(Code::Internal, e.to_string())))?
}

/// Fetches a blob, going on where an earlier try ended.
pub(super) async fn get(
    store: &BlobStore,
    connection: &Connection,
    digest: Digest,
    size: u64,
) -> Result<(), Failure> {
    let of = store.clone();
    let resumed = spawn_blocking(move || of.resume(&digest, size).map_err(|e| disk_failure(&e)));
    let mut partial = joined(resumed.await)?;
    let offset = partial.offset();
    let (mut send, mut recv) = open(connection, &StreamHeader::BlobGet { digest, offset }).await?;
    let _ = send.finish();
    match reply(&mut recv).await? {
        BlobReply::Ready {
            size: theirs,
            offset: at,
        } if theirs == size && at == offset => {}
        other => {
            let _ = recv.stop(VarInt::from_u32(close::PROTOCOL));
            return Err(Failure::Wrong(format!(
                "expected {size} bytes from {offset}: {other:?}"
            )));
        }
    }
    let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE_PIECES);
    let writer = spawn_blocking(move || {
        while let Some(piece) = queue.blocking_recv() {
            partial.append(&piece).map_err(|e| disk_failure(&e))?;
        }
        if !partial.complete() {
            return Err(link("the stream ended early"));
        }
        partial.commit().map(drop).map_err(|e| disk_failure(&e))
    });
    let mut broken = None;
    loop {
        match recv.read_chunk(PIECE_BYTES, true).await {
            Ok(Some(chunk)) => {
                if pieces.send(chunk.bytes).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                broken = Some(link(error));
                break;
            }
        }
    }
    drop(pieces);
    let written = joined(writer.await);
    match (written, broken) {
        (Err(Failure::Link(_)), Some(broken)) => Err(broken),
        (written, _) => written,
    }
}

/// Brings a blob to the coordinator; done when it is durable there.
pub(super) async fn put(
    store: &BlobStore,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let Output {
        digest,
        bytes: size,
    } = output;
    let (mut send, mut recv) = open(connection, &StreamHeader::BlobPut { digest, size }).await?;
    let offset = match reply(&mut recv).await? {
        BlobReply::Stored => return Ok(()),
        BlobReply::Ready { offset, .. } if offset <= size => offset,
        other => return Err(link(format!("an unexpected answer: {other:?}"))),
    };
    let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE_PIECES);
    let of = store.clone();
    let reader = spawn_blocking(move || {
        use std::io::Read as _;
        let mut reader = of.reader(&digest, offset).map_err(|e| disk_failure(&e))?;
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let n = reader
                .read(&mut piece)
                .map_err(|e| Failure::Disk(Problem::new(Code::Storage, e.to_string())))?;
            piece.truncate(n);
            if n == 0 || pieces.blocking_send(piece.into()).is_err() {
                return Ok(());
            }
        }
    });
    let mut sent = Ok(());
    while let Some(piece) = queue.recv().await {
        sent = send.write_chunk(piece).await;
        if sent.is_err() {
            break;
        }
    }
    drop(queue);
    joined(reader.await)?;
    // Whoever stops reading may have said why.
    if sent.is_ok() {
        let _ = send.finish();
    }
    match reply(&mut recv).await? {
        BlobReply::Stored => Ok(()),
        other => Err(link(format!("an unexpected answer: {other:?}"))),
    }
}
