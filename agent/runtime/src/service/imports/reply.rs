//! Replies to requests, and client streams.

use bytes::Bytes;
use hop3_common::wire::{HEADERS_BYTES_MAX, HEADERS_MAX};

use super::{ABSENT, Answer, Cx, INVALID, LIMIT, NOT_NOW, Refused, refuse};
use crate::service::types::Effect;

pub(super) fn reply_status(cx: &mut Cx<'_>, status: i32) -> Answer<i32> {
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    match u16::try_from(status) {
        // Of the provisional ones only the switch to another protocol is a reply.
        Ok(status @ (101 | 200..=599)) => cx.data.call.status = Some(status),
        _ => refuse!(INVALID),
    }
    Ok(Ok(0))
}

pub(super) fn reply_header(cx: &mut Cx<'_>, name: (u32, u32), value: (u32, u32)) -> Answer<i32> {
    let (name, value) = (cx.bytes(name)?, cx.bytes(value)?);
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    if !is_token(name)
        || !value
            .iter()
            .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 128..))
    {
        refuse!(INVALID);
    }
    let bytes = cx.data.call.header_bytes + name.len() + value.len();
    if cx.data.call.headers.len() >= HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        refuse!(LIMIT);
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let value = Bytes::copy_from_slice(value);
    cx.data.call.header_bytes = bytes;
    cx.data.call.headers.push((name, value));
    Ok(Ok(0))
}

/// A header's name, or a method.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    let other = b"!#$%&'*+-.^_`|~";
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || other.contains(byte))
}

pub(super) fn reply_write(cx: &mut Cx<'_>, ptr: u32, len: u32) -> Answer<i32> {
    cx.bytes((ptr, len))?;
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    if cx.data.call.body.len() as u64 + u64::from(len) > cx.sent_max() {
        // A guest that does not look would answer a part as the whole.
        cx.data.call.cut = true;
        refuse!(LIMIT);
    }
    let bytes = &cx.memory[ptr as usize..][..len as usize];
    cx.data.call.body.extend_from_slice(bytes);
    Ok(Ok(0))
}

pub(super) fn reply_stream(cx: &mut Cx<'_>) -> Answer<i64> {
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    if let Some(stream) = cx.data.call.stream {
        return Ok(Ok(stream.cast_signed()));
    }
    if cx.data.held.streams.len() >= cx.data.setup.limits.streams as usize {
        refuse!(LIMIT);
    }
    cx.data.held.counters.streams += 1;
    let stream = cx.data.held.counters.streams;
    cx.data.streams_mut().insert(stream);
    cx.data.call.stream = Some(stream);
    Ok(Ok(stream.cast_signed()))
}

pub(super) fn stream_send(cx: &mut Cx<'_>, stream: u64, at: (u32, u32), text: bool) -> Answer<i32> {
    let bytes = cx.bytes(at)?;
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    if !cx.data.held.streams.contains(&stream) {
        refuse!(ABSENT);
    }
    if text && std::str::from_utf8(bytes).is_err() {
        refuse!(INVALID);
    }
    let sent = cx.data.call.sent.streams + u64::from(at.1);
    if sent > cx.sent_max() || !cx.has_room() {
        refuse!(LIMIT);
    }
    let bytes = Bytes::copy_from_slice(bytes);
    cx.data.call.sent.streams = sent;
    cx.data.call.effects.push(Effect::StreamSend {
        stream,
        text,
        bytes,
    });
    Ok(Ok(0))
}

pub(super) fn stream_close(cx: &mut Cx<'_>, stream: u64, code: i32) -> Answer<i32> {
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let Ok(code) = u16::try_from(code) else {
        refuse!(INVALID);
    };
    if !cx.has_room() {
        refuse!(LIMIT);
    }
    if !cx.data.held.streams.contains(&stream) {
        refuse!(ABSENT);
    }
    cx.data.streams_mut().remove(&stream);
    cx.data
        .call
        .effects
        .push(Effect::StreamClose { stream, code });
    Ok(Ok(0))
}
