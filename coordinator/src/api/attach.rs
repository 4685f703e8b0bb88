//! `GET /v1/tasks/{id}/attach`: frames of the attach protocol, one per binary message.

use axum::{
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    response::Response,
};
use hop3_common::{
    api::ProblemDetails,
    wire::{attach, frame},
};

use super::{Shared, problem::Answer};
use crate::core::AttachSession;

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
        .max_frame_size(attach::FRAME_MAX);
    Ok(upgrade.on_upgrade(move |socket| relay(socket, session)))
}

/// Relays frames both ways until either side ends. Bounded: one frame in hand per direction.
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
                // Frames always encode: they hold nothing but plain data.
                let Ok(body) = postcard::to_stdvec(&frame) else {
                    break (close_code::ERROR, "a frame did not encode");
                };
                if socket.send(Message::Binary(body.into())).await.is_err() {
                    return;
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
