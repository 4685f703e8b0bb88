//! Frames over any async byte stream. Neutral to the runtime: only tokio's I/O traits.

use std::io;

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed or ended within a frame.
    #[error("the stream failed")]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] frame::Error),
}

impl Error {
    /// Whether the peer is to blame, so that the connection must be closed with a code.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        matches!(self, Self::Frame(_))
    }
}

/// Reads one frame; `None` at a clean end of the stream. Not cancel-safe: a dropped read loses
/// what it had; use [`FrameReader`] inside `select!`.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Option<T>, Error> {
    let mut prefix = [0; frame::PREFIX_BYTES];
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..]).await?;
    let mut body = vec![0; frame::check_len(prefix, max)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(frame::decode(&body)?))
}

/// Writes one frame. Does not flush.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
    max: usize,
) -> Result<(), Error> {
    stream.write_all(&frame::to_bytes(message, max)?).await?;
    Ok(())
}

/// Bytes asked from the stream at a time.
const READ_BYTES: usize = 16 << 10;

/// A buffered reader of frames. Cancel-safe: what was read stays in its buffer.
pub struct FrameReader<S> {
    stream: S,
    buffer: BytesMut,
    max: usize,
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    /// Reads frames of at most `max` bytes from `stream`.
    pub fn new(stream: S, max: usize) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            max,
        }
    }

    /// The next frame's body; `None` at a clean end.
    pub async fn next_body(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(body) = frame::split(&mut self.buffer, self.max)? {
                return Ok(Some(body));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// The next message; `None` at a clean end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let body = self.next_body().await?;
        Ok(body.map(|body| frame::decode(&body)).transpose()?)
    }

    /// The stream and what was read beyond the last frame.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.buffer)
    }
}
