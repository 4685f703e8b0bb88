//! A bounded queue of encoded frames towards one stream.
//!
//! Frames are encoded straight into one buffer; the writer takes the whole buffer and gives it to
//! the stream at once. So a burst is one write, a message is no allocation, and putting one in
//! never waits. The bound is in bytes, which is what costs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use hop3_common::wire::frame;
use serde::Serialize;
use tokio::sync::Notify;

/// Room kept in an empty buffer: some dozens of usual frames.
const BUFFER_BYTES: usize = 4 << 10;

/// See the module. One writer takes, anybody puts.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: Mutex<Queue>,
    changed: Notify,
    /// A frame is taken while fewer bytes than this wait: so at most one frame above it is kept.
    bytes_max: usize,
}

#[derive(Debug)]
struct Queue {
    bytes: BytesMut,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    /// No more is taken; what waits is still written.
    Finished,
    /// Nothing is taken nor written.
    Closed,
}

/// Why a frame was not queued.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The stream has ended.
    #[error("the stream has ended")]
    Closed,
    /// As many bytes wait as may.
    #[error("the peer does not take what is sent")]
    Full,
    /// The message itself is too large.
    #[error(transparent)]
    Frame(#[from] frame::Error),
}

impl Outgoing {
    pub(super) fn new(bytes_max: usize) -> Self {
        let queue = Mutex::new(Queue {
            bytes: BytesMut::new(),
            ending: Ending::Open,
        });
        Self {
            queue,
            changed: Notify::new(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Encoding leaves the buffer whole whatever happens, so a poisoned lock is still good.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `message` as a frame of at most `frame_max` bytes. Never waits.
    pub(super) fn push<T: Serialize>(&self, message: &T, frame_max: usize) -> Result<(), Error> {
        let mut queue = self.lock();
        if queue.ending != Ending::Open {
            return Err(Error::Closed);
        }
        if queue.bytes.len() >= self.bytes_max {
            return Err(Error::Full);
        }
        frame::encode(message, frame_max, &mut queue.bytes)?;
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes no more; the writer writes what is left and ends.
    pub(super) fn finish(&self) {
        let mut queue = self.lock();
        if queue.ending == Ending::Open {
            queue.ending = Ending::Finished;
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Drops all that waits.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.ending = Ending::Closed;
        queue.bytes = BytesMut::new();
        drop(queue);
        self.changed.notify_one();
    }

    /// All frames that wait; `None` when there will be no more. Cancel-safe.
    pub(super) async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut queue = self.lock();
                if !queue.bytes.is_empty() {
                    return Some(queue.bytes.split().freeze());
                }
                if queue.ending != Ending::Open {
                    return None;
                }
                // A large burst's allocation goes with it; the next one begins small again.
                if queue.bytes.capacity() > BUFFER_BYTES {
                    queue.bytes = BytesMut::new();
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_burst_is_one_piece_in_order() {
        let out = Outgoing::new(1024);
        out.push(&1u8, 16).unwrap();
        out.push(&2u8, 16).unwrap();
        assert_eq!(
            &out.take().await.unwrap()[..],
            [1, 0, 0, 0, 1, 1, 0, 0, 0, 2]
        );
        assert!(out.take().now_or_never().is_none());
        out.push(&3u8, 16).unwrap();
        out.finish();
        assert!(matches!(out.push(&4u8, 16), Err(Error::Closed)));
        assert_eq!(out.take().await.unwrap().len(), 5);
        assert!(out.take().await.is_none());
    }

    #[tokio::test]
    async fn it_is_bounded_and_refuses_large_frames_whole() {
        let out = Outgoing::new(8);
        assert!(matches!(out.push(&[7u8; 9], 8), Err(Error::Frame(_))));
        assert!(out.take().now_or_never().is_none());
        out.push(&[7u8; 8], 8).unwrap();
        assert!(matches!(out.push(&1u8, 8), Err(Error::Full)));
        assert_eq!(out.take().await.unwrap().len(), 12);
        out.push(&1u8, 8).unwrap();
        out.close();
        assert!(out.take().await.is_none());
    }

    #[tokio::test]
    async fn a_waiting_writer_is_woken() {
        let out = std::sync::Arc::new(Outgoing::new(64));
        let writer = tokio::spawn({
            let out = out.clone();
            async move { out.take().await }
        });
        tokio::task::yield_now().await;
        out.push(&5u8, 8).unwrap();
        assert_eq!(writer.await.unwrap().unwrap().len(), 5);
    }
}
