//! A WebSocket of a client, carried by a client stream of its instance. Pings and the closing
//! handshake are dealt with here.
//!
//! Limits: messages of [`STREAM_DATA_BYTES_MAX`]; a client that is silent for [`SILENCE_MAX`]
//! (it is pinged every [`PING_EVERY`]) or takes nothing for [`SEND_TIMEOUT`] has gone.

use std::time::Duration;

use axum::{
    extract::{
        FromRequestParts as _, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::Response,
};
use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    wire::{STREAM_DATA_BYTES_MAX, ServiceReply},
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::{Error, error::ProtocolError};

use super::head;
use crate::stream::{Client, Down, Item, Opened};

/// Time between pings.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client that has sent nothing for this long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// A client that takes nothing for this long has gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the client's part of the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The subprotocol that is chosen when the guest chooses none: a browser that offers its token as
/// a subprotocol wants one of those it offers chosen, and the token shall not be.
const PLAIN_PROTOCOL: &str = "hop3";

/// The upgrade that a request wants, if it does.
pub(super) async fn wanted(parts: &mut Parts) -> Result<Option<WebSocketUpgrade>, Problem> {
    if !parts.headers.contains_key(header::SEC_WEBSOCKET_VERSION) {
        return Ok(None);
    }
    match WebSocketUpgrade::from_request_parts(parts, &()).await {
        Ok(upgrade) => Ok(Some(upgrade)),
        Err(error) => {
            let message = format!("no proper WebSocket request: {error}");
            Err(Problem::new(Code::InvalidField, message))
        }
    }
}

/// Accepts the WebSocket, as the guest did.
pub(super) fn accept(
    mut upgrade: WebSocketUpgrade,
    offered: &HeaderMap,
    reply: &ServiceReply,
    opened: Opened,
) -> Result<Response, Problem> {
    let chosen = reply
        .headers
        .iter()
        .find(|(name, _)| name == header::SEC_WEBSOCKET_PROTOCOL.as_str());
    if let Some((_, chosen)) = chosen {
        let chosen = HeaderValue::from_maybe_shared(chosen.clone());
        upgrade.set_selected_protocol(chosen.map_err(crate::reply::invalid)?);
    } else if head::offers(offered, PLAIN_PROTOCOL) {
        upgrade.set_selected_protocol(HeaderValue::from_static(PLAIN_PROTOCOL));
    }
    let (relay, client) = opened.relay()?;
    let first = reply.body.clone();
    // One byte more: whoever exceeds the limit is told so.
    Ok(upgrade
        .max_message_size(STREAM_DATA_BYTES_MAX + 1)
        .max_frame_size(STREAM_DATA_BYTES_MAX + 1)
        .on_upgrade(move |socket| async move {
            tokio::join!(relay.run(), serve(socket, client, first));
        }))
}

/// Why a WebSocket ended.
enum End {
    /// The client closed, or broke off: the code for the instance.
    Client(u16),
    /// The instance closed, or the gateway does: the code for the client.
    Here(u16, &'static str),
}

async fn serve(mut socket: WebSocket, client: Client, first: Bytes) {
    let Client { up, mut down } = client;
    let mut end = None;
    if !first.is_empty() {
        end = send(&mut socket, Message::Binary(first)).await.err();
    }
    let end = match end {
        Some(end) => end,
        None => carry(&mut socket, &up, &mut down).await,
    };
    let (code, reason) = match end {
        End::Client(code) => (code, None),
        End::Here(code, reason) => (code, Some(reason)),
    };
    // The relay takes it, or has ended. Dropping `down` after it says that the client has gone.
    let _ = timeout(CLOSE_TIMEOUT, up.send(Item::Close { code })).await;
    drop(down);
    let handshake = async {
        if let Some(reason) = reason {
            let reason = reason.into();
            let frame = CloseFrame { code, reason };
            if socket.send(Message::Close(Some(frame))).await.is_err() {
                return;
            }
        }
        while let Some(Ok(_)) = socket.recv().await {}
    };
    // If the client does not take part, it is dropped.
    let _ = timeout(CLOSE_TIMEOUT, handshake).await;
}

async fn carry(
    socket: &mut WebSocket,
    up: &tokio::sync::mpsc::Sender<Item>,
    down: &mut tokio::sync::mpsc::Receiver<Down>,
) -> End {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut held: Option<Item> = None;
    // Once the relay has ended, what it said last is still in `down`.
    let mut relayed = true;
    loop {
        tokio::select! {
            message = socket.recv(), if held.is_none() && relayed => {
                heard = Instant::now();
                match taken(message) {
                    Ok(item) => held = item,
                    Err(end) => return end,
                }
            }
            slot = up.reserve(), if held.is_some() => match (slot, held.take()) {
                (Ok(slot), Some(item)) => slot.send(item),
                _ => relayed = false,
            },
            item = down.recv() => {
                let message = match item {
                    Some(Down::Item(Item::Data { text, bytes })) => message(text, bytes),
                    other => return ended(other),
                };
                if let Err(end) = send(socket, message).await {
                    return end;
                }
            }
            _ = ping.tick() => {
                // While a message is held back, nothing can be heard.
                if held.is_none() && relayed && heard.elapsed() > SILENCE_MAX {
                    return End::Client(close_code::ABNORMAL);
                }
                if let Err(end) = send(socket, Message::Ping(Bytes::new())).await {
                    return end;
                }
            }
        }
    }
}

/// What a message of the client means.
fn taken(message: Option<Result<Message, axum::Error>>) -> Result<Option<Item>, End> {
    let (text, bytes) = match message {
        None => return Err(End::Client(close_code::ABNORMAL)),
        Some(Err(error)) => return Err(failed(error)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(None),
        Some(Ok(Message::Close(frame))) => {
            let code = frame.map_or(close_code::STATUS, |frame| frame.code);
            return Err(End::Client(code));
        }
        Some(Ok(Message::Text(text))) => (true, Bytes::from(text)),
        Some(Ok(Message::Binary(bytes))) => (false, bytes),
    };
    if bytes.len() > STREAM_DATA_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Some(Item::Data { text, bytes }))
}

/// What a failure to read means.
fn failed(error: axum::Error) -> End {
    let error = error.into_inner();
    match error.downcast_ref::<Error>() {
        Some(Error::Capacity(_)) => too_large(),
        Some(Error::Utf8(_)) => End::Here(close_code::INVALID, "a text is not UTF-8"),
        Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
            End::Client(close_code::ABNORMAL)
        }
        Some(Error::Protocol(_)) => End::Here(close_code::PROTOCOL, "not as RFC 6455 says"),
        _ => End::Client(close_code::ABNORMAL),
    }
}

fn too_large() -> End {
    End::Here(close_code::SIZE, "a message is larger than 1 MiB")
}

fn message(text: bool, bytes: Bytes) -> Message {
    if !text {
        return Message::Binary(bytes);
    }
    match bytes.clone().try_into() {
        Ok(text) => Message::Text(text),
        // A guest's text that is none goes as what it is.
        Err(_) => Message::Binary(bytes),
    }
}

fn ended(last: Option<Down>) -> End {
    match last {
        Some(Down::Item(Item::Close { code })) => End::Here(sendable(code), ""),
        Some(Down::Lost(code)) => End::Here(code, "the service's instance is away"),
        Some(Down::Item(Item::Data { .. })) | None => End::Here(close_code::ERROR, ""),
    }
}

/// A close code that may be sent (RFC 6455, 7.4): others have no meaning in a frame.
fn sendable(code: u16) -> u16 {
    match code {
        0 | 1005 => close_code::NORMAL,
        1000..=1003 | 1007..=1014 | 3000..=4999 => code,
        _ => close_code::ERROR,
    }
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), End> {
    match timeout(SEND_TIMEOUT, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Client(close_code::ABNORMAL)),
    }
}
