//! `GET /v1/tasks/{id}/attach`: frames of the attach protocol, one per binary message.

use axum::{
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    response::Response,
};
use futures_util::SinkExt as _;
use hop3_common::{
    api::ProblemDetails,
    wire::{attach, frame},
};

use super::{Shared, problem::Answer};
use crate::core::AttachSession;

/// Frames sent before a flush.
const FLUSH_FRAMES_MAX: usize = 8;
/// Bytes that the socket is read by. The library clears so many before each read.
const READ_BYTES: usize = 32 << 10;

/// Attaches to a task submitted with attached input: a WebSocket whose binary messages are
/// postcard-encoded frames (see `hop3_common::wire::attach`).
#[utoipa::path(get, path = "/v1/tasks/{task}/attach", tag = "tasks",
    params(("task" = String, Path)),
    responses((status = 101), (status = 409, body = ProblemDetails)))]
pub(super) async fn attach(
    State(core): State<Shared>,
    Path(task): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Answer<Response> {
    let id = core.task(&task).await?.id;
    let session = core.attach_task(&id).await?;
    let upgrade = upgrade
        .max_message_size(attach::FRAME_MAX)
        .max_frame_size(attach::FRAME_MAX)
        .read_buffer_size(READ_BYTES);
    Ok(upgrade.on_upgrade(move |socket| relay(socket, session)))
}

/// Relays frames both ways until either side ends. Bounded: one frame in hand towards the task,
/// and towards the client what a socket takes between two flushes.
async fn relay(mut socket: WebSocket, mut session: AttachSession) {
    let (code, reason) = loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(body))) => match frame::decode::<attach::Frame>(&body) {
                    Ok(frame) => if session.send(frame).await.is_err() {
                        break (close_code::NORMAL, "the task is gone");
                    },
                    Err(_) => break (close_code::PROTOCOL, "not an attach frame"),
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(Message::Text(_))) => break (close_code::UNSUPPORTED, "binary frames only"),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            },
            frame = session.recv() => {
                let Some(frame) = frame else { break (close_code::NORMAL, "") };
                match forward(&mut socket, &mut session, frame).await {
                    Ok(()) => {}
                    Err(Failed::Encode) => break (close_code::ERROR, "a frame did not encode"),
                    Err(Failed::Socket) => return,
                }
            }
        }
    };
    let close = CloseFrame {
        code,
        reason: reason.into(),
    };
    let _ = socket.send(Message::Close(Some(close))).await;
}

enum Failed {
    Encode,
    Socket,
}

/// Sends `frame` and those that are there after it, in one flush: each is a packet and a wake-up.
async fn forward(
    socket: &mut WebSocket,
    session: &mut AttachSession,
    frame: attach::Frame,
) -> Result<(), Failed> {
    let mut next = frame;
    for left in (0..FLUSH_FRAMES_MAX).rev() {
        let body = next.to_body().map_err(|_| Failed::Encode)?;
        let fed = socket.feed(Message::Binary(body)).await;
        fed.map_err(|_| Failed::Socket)?;
        let more = if left > 0 { session.try_recv() } else { None };
        let Some(frame) = more else { break };
        next = frame;
    }
    socket.flush().await.map_err(|_| Failed::Socket)
}
