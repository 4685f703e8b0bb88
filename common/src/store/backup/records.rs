//! The records in a backup: an export in parts, since its length is known at its end only.

use std::{
    io::{self, Read, SeekFrom, Write},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

/// Takes an export in. Blocks: whoever waits for it has a thread for that.
pub(super) struct Parts<W>(W);

impl<W: Write> Parts<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.0.write_all(&0_u32.to_le_bytes())
    }
}

impl<W: Write + Unpin> AsyncWrite for Parts<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Ok(len @ 1..) = u32::try_from(bytes.len()) else {
            return Poll::Ready(Ok(0));
        };
        let head = self.0.write_all(&len.to_le_bytes());
        let written = head.and_then(|()| self.0.write_all(bytes));
        Poll::Ready(written.map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Gives an export out, again and again: `open` begins anew.
pub(super) struct Whole<R, F> {
    open: F,
    input: R,
    /// Bytes left of the part.
    left: usize,
    position: u64,
    ended: bool,
}

impl<R: Read, F: FnMut() -> io::Result<R>> Whole<R, F> {
    pub(super) fn new(mut open: F) -> io::Result<Self> {
        Ok(Self {
            input: open()?,
            open,
            left: 0,
            position: 0,
            ended: false,
        })
    }

    /// What follows the records. Passes over what was not read.
    pub(super) fn into_rest(mut self) -> io::Result<R> {
        let mut buf = [0; 4096];
        while self.take(&mut buf)? > 0 {}
        Ok(self.input)
    }

    fn take(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut len = [0; 4];
            self.input.read_exact(&mut len)?;
            self.left = u32::from_le_bytes(len) as usize;
            self.ended = self.left == 0;
        }
        let want = buf.len().min(self.left);
        let len = self.input.read(&mut buf[..want])?;
        if len == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= len;
        self.position += len as u64;
        Ok(len)
    }
}

impl<R: Read + Unpin, F: FnMut() -> io::Result<R> + Unpin> AsyncRead for Whole<R, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        let want = bytes.len().min(buf.remaining());
        let read = self.take(&mut bytes[..want]);
        Poll::Ready(read.map(|len| buf.put_slice(&bytes[..len])))
    }
}

impl<R: Read + Unpin, F: FnMut() -> io::Result<R> + Unpin> AsyncSeek for Whole<R, F> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        match to {
            SeekFrom::Start(0) => {
                self.input = (self.open)()?;
                (self.left, self.position, self.ended) = (0, 0, false);
            }
            SeekFrom::Current(0) => {}
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
