//! Streams that the coordinator opens: their header is read, the rest is the executor's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hop3_common::wire::{HEADER_FRAME_MAX, StreamHeader, close, io};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::transport::{STREAMS_FIRST, STREAMS_MAX};
use crate::exec::Exec;

/// Time for a stream's header.
const HEADER: Duration = Duration::from_secs(10);

/// Accepts streams until the connection ends. They end with it.
pub(super) async fn accept(connection: Connection, exec: Exec) {
    let live = Arc::new(AtomicU32::new(0));
    let mut limit = STREAMS_FIRST;
    while let Ok((send, recv)) = connection.accept_bi().await {
        // Memory follows the limit: raise it only when it is used.
        if live.fetch_add(1, Ordering::Relaxed) + 1 > limit / 2 && limit < STREAMS_MAX {
            limit *= 2;
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(limit));
        }
        let (exec, connection, live) = (exec.clone(), connection.clone(), live.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(&exec, send, recv).await
                && error.is_protocol()
            {
                tracing::error!(%error, "the coordinator broke the protocol on a stream");
                connection.close(
                    VarInt::from_u32(close::PROTOCOL),
                    error.to_string().as_bytes(),
                );
            }
            live.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve(exec: &Exec, send: SendStream, mut recv: RecvStream) -> Result<(), io::Error> {
    let header = io::read::<StreamHeader>(&mut recv, HEADER_FRAME_MAX);
    match tokio::time::timeout(HEADER, header).await {
        Ok(header) => match header? {
            Some(header) => Box::pin(exec.serve(header, send, recv)).await,
            None => Ok(()),
        },
        Err(_) => {
            let _ = recv.stop(VarInt::from_u32(close::PROTOCOL));
            Ok(())
        }
    }
}
