//! A client stream of an instance over a QUIC stream: whoever holds the client's connection
//! attaches, and both sides repeat what the other has not acknowledged.

use std::{sync::Arc, time::Instant};

use hop3_common::{
    codes::{Code, Problem},
    wire::{
        CLIENT_FRAME_MAX, ClientDown, ClientUp,
        io::{Error, FrameReader, write},
    },
};
use quinn::{RecvStream, SendStream};

use super::{
    actor::Actor,
    desk::lines::Piece,
    inbox::Item,
    links::{Cursor, Ticket},
};

/// An attachment. Dropping it detaches.
pub struct Attached {
    actor: Arc<Actor>,
    cursor: Cursor,
}

/// The sending half of an attachment.
#[derive(Clone)]
pub struct Up {
    actor: Arc<Actor>,
    ticket: Ticket,
}

impl Attached {
    /// Attaches to a client stream of the actor.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn new(actor: &Arc<Actor>, stream: u64, received: u64) -> Result<Self, Problem> {
        let cursor = actor.links.attach(stream, received)?;
        Ok(Self {
            actor: actor.clone(),
            cursor,
        })
    }

    /// Its sending half.
    #[must_use]
    pub fn up(&self) -> Up {
        Up {
            actor: self.actor.clone(),
            ticket: self.cursor.ticket(),
        }
    }

    /// The next frame for the client; the first is `Attached`. `None`: the attachment is over.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<ClientDown> {
        self.actor.links.next(&mut self.cursor).await
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self
            .actor
            .links
            .detach(self.cursor.ticket(), Instant::now())
        {
            // So that its absence is noticed.
            self.actor.schedule();
        }
    }
}

impl Up {
    /// Takes a frame of the client; waits for room.
    ///
    /// # Errors
    /// The stream is gone, or the client broke the protocol.
    pub async fn take(&self, frame: ClientUp) -> Result<(), Problem> {
        let (seq, piece) = match frame {
            ClientUp::Attach { .. } => {
                return Err(Problem::new(Code::Protocol, "a second attach on a stream"));
            }
            ClientUp::Ack { seq } => {
                self.actor.links.acked(self.ticket, seq);
                return Ok(());
            }
            ClientUp::Data { seq, text, bytes } => (seq, Piece::Data { text, bytes }),
            ClientUp::Close { seq, code } => (seq, Piece::Close { code }),
        };
        if self.actor.links.admit(self.ticket, seq).await? {
            let stream = self.ticket.stream();
            self.actor.push(Item::Client { stream, seq, piece });
        }
        Ok(())
    }
}

/// Serves one QUIC stream. `actor`: none if the instance is not here in that epoch.
pub(crate) async fn serve(
    actor: Result<Arc<Actor>, Problem>,
    mut send: SendStream,
    recv: RecvStream,
) -> Result<(), Error> {
    let mut frames = FrameReader::new(recv, CLIENT_FRAME_MAX);
    let (stream, received) = match frames.next::<ClientUp>().await {
        Ok(Some(ClientUp::Attach { stream, received })) => (stream, received),
        Ok(Some(_)) => {
            let problem = Problem::new(Code::Protocol, "a client stream begins with an attach");
            return refuse(send, problem).await;
        }
        Ok(None) => return Ok(()),
        Err(error) if error.is_protocol() => return Err(error),
        Err(_) => return Ok(()),
    };
    let attached = actor.and_then(|actor| Attached::new(&actor, stream, received));
    let mut attached = match attached {
        Ok(attached) => attached,
        Err(problem) => return refuse(send, problem).await,
    };
    let up = attached.up();
    let reading = async {
        loop {
            match frames.next::<ClientUp>().await {
                Ok(Some(frame)) => {
                    if let Err(problem) = up.take(frame).await {
                        tracing::debug!(%problem, "a client stream was let go");
                        return Ok(());
                    }
                }
                // Its end is a frame of its own: whoever stops sending may still listen.
                Ok(None) => std::future::pending().await,
                Err(error) if error.is_protocol() => return Err(error),
                Err(_) => return Ok(()),
            }
        }
    };
    let writing = async {
        while let Some(frame) = attached.next().await {
            if write(&mut send, &frame, CLIENT_FRAME_MAX).await.is_err() {
                return;
            }
        }
        let _ = send.finish();
        // What is on its way arrives before the other side lets go.
        let _ = send.stopped().await;
    };
    tokio::select! {
        read = reading => read,
        () = writing => Ok(()),
    }
}

async fn refuse(mut send: SendStream, problem: Problem) -> Result<(), Error> {
    let refused = ClientDown::Refused(problem);
    // Whoever asked may have gone.
    if write(&mut send, &refused, CLIENT_FRAME_MAX).await.is_ok() {
        let _ = send.finish();
    }
    Ok(())
}
