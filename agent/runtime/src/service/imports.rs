//! The functions of the import module `hop3`, as `agent/sdk/ABI.md` has them.
//!
//! Each call is counted and sees the guest's memory as a checked slice: a pointer outside of it
//! traps. A refusal is a negative number, and then nothing was changed.

use bytes::Bytes;
use wasmtime::{Caller, Extern, Linker, Trap};

use super::call::Data;
use super::image::map::weight;
use super::types::Effect;
use crate::wasm::Error;

/// The import module.
pub(super) const MODULE: &str = "hop3";
/// What it offers.
const NAMES: &[&str] = &[
    "input",
    "reply_status",
    "reply_header",
    "reply_write",
    "reply_stream",
    "stream_send",
    "stream_close",
    "kv_get",
    "kv_set",
    "kv_delete",
    "kv_next",
    "timer_set",
    "timer_clear",
    "publish",
    "call",
    "log",
    "now_ms",
];

/// Not there.
const ABSENT: i32 = -1;
/// Not granted.
const DENIED: i32 = -2;
/// Over a limit.
const LIMIT: i32 = -3;
/// Not now.
const NOT_NOW: i32 = -4;
/// Invalid.
const INVALID: i32 = -5;

/// Bytes of a key: it is compared at every look-up.
const KEY_BYTES_MAX: usize = 1_024;
/// Effects of one call: each is written to a log and carried out.
const EFFECTS_MAX: usize = 10_000;
/// Headers of a reply: what HTTP servers allow.
const HEADERS_MAX: usize = 100;
/// Bytes of all headers of a reply.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a topic, service name or path.
const NAME_BYTES_MAX: usize = 4_096;

/// Why a call of a guest is refused; becomes its result.
struct Refused(i32);
type Answer<T> = wasmtime::Result<Result<T, Refused>>;

/// The memory and the host's data.
struct Cx<'a> {
    memory: &'a mut [u8],
    data: &'a mut Data,
}

/// Ends a host function with a refusal.
macro_rules! refuse {
    ($code:expr) => {
        return Ok(Err(Refused($code)))
    };
}

/// The verdict on an import, or `None` if it is not of this module.
pub(super) fn check(module: &str, name: &str) -> Option<Result<(), Error>> {
    if module != MODULE {
        return None;
    }
    if NAMES.contains(&name) {
        return Some(Ok(()));
    }
    let near = |known: &&&str| (strsim::jaro_winkler(known, name) * 1e6) as u32;
    let hint = NAMES
        .iter()
        .max_by_key(near)
        .map_or_else(String::new, |nearest| {
            format!("the nearest known is `{nearest}`")
        });
    Some(Err(Error::UnsupportedImport {
        module: MODULE.into(),
        name: crate::wasm::outcome::printable(name),
        hint,
    }))
}

/// Offers all functions to guests.
pub(super) fn add_to(linker: &mut Linker<Data>) -> wasmtime::Result<()> {
    macro_rules! offer {
        ($name:literal, |$cx:ident $(, $arg:ident: $ty:ty)*| -> $out:ty $body:block) => {
            linker.func_wrap(
                MODULE,
                $name,
                |mut caller: Caller<'_, Data> $(, $arg: $ty)*| -> wasmtime::Result<$out> {
                    let $cx = &mut enter(&mut caller)?;
                    let answer: Answer<$out> = $body;
                    Ok(answer?.unwrap_or_else(|Refused(code)| code.into()))
                },
            )?;
        };
    }
    offer!("input", |cx,
                     field: i32,
                     offset: u32,
                     buf: u32,
                     cap: u32|
     -> i32 { input(cx, field, offset, buf, cap) });
    offer!("reply_status", |cx, status: i32| -> i32 {
        reply_status(cx, status)
    });
    offer!("reply_header", |cx,
                            name: u32,
                            name_len: u32,
                            value: u32,
                            value_len: u32|
     -> i32 {
        reply_header(cx, (name, name_len), (value, value_len))
    });
    offer!("reply_write", |cx, ptr: u32, len: u32| -> i32 {
        reply_write(cx, ptr, len)
    });
    offer!("reply_stream", |cx| -> i64 { reply_stream(cx) });
    offer!("stream_send", |cx,
                           stream: u64,
                           ptr: u32,
                           len: u32,
                           text: i32|
     -> i32 {
        stream_send(cx, stream, (ptr, len), text != 0)
    });
    offer!("stream_close", |cx, stream: u64, code: i32| -> i32 {
        stream_close(cx, stream, code)
    });
    offer!("kv_get", |cx,
                      key: u32,
                      key_len: u32,
                      offset: u32,
                      buf: u32,
                      cap: u32|
     -> i32 {
        kv_get(cx, (key, key_len), offset, (buf, cap))
    });
    offer!("kv_set", |cx,
                      key: u32,
                      key_len: u32,
                      value: u32,
                      value_len: u32|
     -> i32 {
        kv_set(cx, (key, key_len), (value, value_len))
    });
    offer!("kv_delete", |cx, key: u32, key_len: u32| -> i32 {
        kv_delete(cx, (key, key_len))
    });
    offer!("kv_next", |cx,
                       key: u32,
                       key_len: u32,
                       buf: u32,
                       cap: u32|
     -> i32 {
        kv_next(cx, (key, key_len), (buf, cap))
    });
    offer!("timer_set", |cx, timer: u64, at_ms: i64| -> i32 {
        timer_set(cx, timer, at_ms)
    });
    offer!("timer_clear", |cx, timer: u64| -> i32 {
        timer_clear(cx, timer)
    });
    offer!("publish", |cx,
                       topic: u32,
                       topic_len: u32,
                       ptr: u32,
                       len: u32|
     -> i32 {
        publish(cx, (topic, topic_len), (ptr, len))
    });
    offer!("call", |cx,
                    service: u32,
                    service_len: u32,
                    method: u32,
                    method_len: u32,
                    path: u32,
                    path_len: u32,
                    body: u32,
                    body_len: u32|
     -> i64 {
        let head = [
            (service, service_len),
            (method, method_len),
            (path, path_len),
        ];
        call(cx, head, (body, body_len))
    });
    offer!("now_ms", |cx| -> i64 {
        let ns = cx.data.host.clock.realtime_ns();
        Ok(Ok(i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)))
    });
    linker.func_wrap(
        MODULE,
        "log",
        |mut caller: Caller<'_, Data>, level: i32, ptr: u32, len: u32| -> wasmtime::Result<()> {
            log(&mut enter(&mut caller)?, level, ptr, len)
        },
    )?;
    Ok(())
}

/// Counts the call and opens the guest's memory.
fn enter<'a>(caller: &'a mut Caller<'_, Data>) -> wasmtime::Result<Cx<'a>> {
    caller.data_mut().host.meter.host_call()?;
    let memory = match caller.data().host.memory {
        Some(memory) => Some(memory),
        // Only while the module's own start function runs.
        None => caller.get_export("memory").and_then(Extern::into_memory),
    };
    let memory = memory.ok_or(Trap::MemoryOutOfBounds)?;
    let (memory, data) = memory.data_and_store_mut(caller);
    Ok(Cx { memory, data })
}

impl Cx<'_> {
    fn bytes(&self, (ptr, len): (u32, u32)) -> wasmtime::Result<&[u8]> {
        let (start, len) = (ptr as usize, len as usize);
        let range = self.memory.get(start..).and_then(|rest| rest.get(..len));
        Ok(range.ok_or(Trap::MemoryOutOfBounds)?)
    }

    /// UTF-8, not too long; else `None`.
    fn text(&self, at: (u32, u32)) -> wasmtime::Result<Option<&str>> {
        let bytes = self.bytes(at)?;
        Ok(std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.len() <= NAME_BYTES_MAX))
    }

    /// What one call may send of a kind, bytes.
    fn sent_max(&self) -> u64 {
        self.data.setup.limits.reply_bytes
    }

    /// Whether one more effect fits.
    fn has_room(&self) -> bool {
        self.data.call.effects.len() < EFFECTS_MAX
    }
}

/// Copies what of `from` lies at `offset` into the guest's buffer; its whole length.
fn copy_out(
    memory: &mut [u8],
    from: &[u8],
    offset: u32,
    (buf, cap): (u32, u32),
) -> wasmtime::Result<i32> {
    let from_offset = from.get(offset as usize..).unwrap_or(&[]);
    let len = from_offset.len().min(cap as usize);
    let target = memory.get_mut(buf as usize..);
    let target = target.and_then(|rest| rest.get_mut(..cap as usize));
    let target = target.ok_or(Trap::MemoryOutOfBounds)?;
    target[..len].copy_from_slice(&from_offset[..len]);
    Ok(i32::try_from(from.len()).unwrap_or(i32::MAX))
}

fn input(cx: &mut Cx<'_>, field: i32, offset: u32, buf: u32, cap: u32) -> Answer<i32> {
    let Data { call, setup, .. } = &mut *cx.data;
    match call.field(field, setup) {
        Some(bytes) => copy_out(cx.memory, &bytes, offset, (buf, cap)).map(Ok),
        None => refuse!(ABSENT),
    }
}

fn reply_status(cx: &mut Cx<'_>, status: i32) -> Answer<i32> {
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

fn reply_header(cx: &mut Cx<'_>, name: (u32, u32), value: (u32, u32)) -> Answer<i32> {
    let (name, value) = (cx.bytes(name)?, cx.bytes(value)?);
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    if !is_token(name)
        || !value
            .iter()
            .all(|byte| matches!(byte, b'\t' | 32..127 | 128..))
    {
        refuse!(INVALID);
    }
    let bytes = cx.data.call.header_bytes + name.len() + value.len();
    if cx.data.call.headers.len() >= HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        refuse!(LIMIT);
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let value = Bytes::copy_from_slice(value);
    cx.data.call.header_bytes = bytes;
    cx.data.call.headers.push((name, value));
    Ok(Ok(0))
}

/// A header's name, or a method.
fn is_token(bytes: &[u8]) -> bool {
    let other = b"!#$%&'*+-.^_`|~";
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || other.contains(byte))
}

fn reply_write(cx: &mut Cx<'_>, ptr: u32, len: u32) -> Answer<i32> {
    cx.bytes((ptr, len))?;
    if !cx.data.call.is_request() {
        refuse!(NOT_NOW);
    }
    if cx.data.call.body.len() as u64 + u64::from(len) > cx.sent_max() {
        refuse!(LIMIT);
    }
    let bytes = &cx.memory[ptr as usize..][..len as usize];
    cx.data.call.body.extend_from_slice(bytes);
    Ok(Ok(0))
}

fn reply_stream(cx: &mut Cx<'_>) -> Answer<i64> {
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

fn stream_send(cx: &mut Cx<'_>, stream: u64, at: (u32, u32), text: bool) -> Answer<i32> {
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

fn stream_close(cx: &mut Cx<'_>, stream: u64, code: i32) -> Answer<i32> {
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

fn kv_get(cx: &mut Cx<'_>, key: (u32, u32), offset: u32, buf: (u32, u32)) -> Answer<i32> {
    let key = cx.bytes(key)?;
    match cx.data.held.kv.get(key) {
        Some(value) => copy_out(cx.memory, value, offset, buf).map(Ok),
        None => refuse!(ABSENT),
    }
}

fn kv_set(cx: &mut Cx<'_>, key: (u32, u32), value: (u32, u32)) -> Answer<i32> {
    let (key, value) = (cx.bytes(key)?, cx.bytes(value)?);
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    if key.is_empty() {
        // `kv_next` could not name it.
        refuse!(INVALID);
    }
    let kv = &cx.data.held.kv;
    let old = kv.get(key).map_or(0, |old| weight(key, old));
    let bytes = kv.bytes() - old + weight(key, value);
    if key.len() > KEY_BYTES_MAX || bytes > cx.data.setup.limits.kv_bytes {
        refuse!(LIMIT);
    }
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    cx.data.held.kv.insert(key, value);
    Ok(Ok(0))
}

fn kv_delete(cx: &mut Cx<'_>, (ptr, len): (u32, u32)) -> Answer<i32> {
    cx.bytes((ptr, len))?;
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let key = &cx.memory[ptr as usize..][..len as usize];
    Ok(Ok(i32::from(cx.data.held.kv.remove(key))))
}

fn kv_next(cx: &mut Cx<'_>, key: (u32, u32), buf: (u32, u32)) -> Answer<i32> {
    let key = cx.bytes(key)?;
    let key = (!key.is_empty()).then_some(key);
    let Some((next, _)) = cx.data.held.kv.after(key) else {
        refuse!(ABSENT);
    };
    if next.len() > buf.1 as usize {
        return Ok(Ok(i32::try_from(next.len()).unwrap_or(i32::MAX)));
    }
    copy_out(cx.memory, next, 0, buf).map(Ok)
}

fn timer_set(cx: &mut Cx<'_>, timer: u64, at_ms: i64) -> Answer<i32> {
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let Ok(at_ms) = u64::try_from(at_ms) else {
        refuse!(INVALID);
    };
    let timers = &cx.data.held.timers;
    if timers.len() >= cx.data.setup.limits.timers as usize && !timers.contains_key(&timer) {
        refuse!(LIMIT);
    }
    cx.data.timers_mut().insert(timer, at_ms);
    Ok(Ok(0))
}

fn timer_clear(cx: &mut Cx<'_>, timer: u64) -> Answer<i32> {
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    if !cx.data.held.timers.contains_key(&timer) {
        return Ok(Ok(0));
    }
    cx.data.timers_mut().remove(&timer);
    Ok(Ok(1))
}

fn publish(cx: &mut Cx<'_>, topic: (u32, u32), at: (u32, u32)) -> Answer<i32> {
    let (topic, payload) = (cx.text(topic)?, cx.bytes(at)?);
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let Some(topic) = topic.filter(|topic| is_topic(topic)) else {
        refuse!(INVALID);
    };
    if !cx
        .data
        .setup
        .publish
        .iter()
        .any(|grant| covers(grant, topic))
    {
        refuse!(DENIED);
    }
    let sent = cx.data.call.sent.published + (topic.len() + payload.len()) as u64;
    if sent > cx.sent_max() || !cx.has_room() {
        refuse!(LIMIT);
    }
    let (topic, payload) = (topic.to_owned(), Bytes::copy_from_slice(payload));
    cx.data.call.sent.published = sent;
    cx.data.held.counters.effects += 1;
    let seq = cx.data.held.counters.effects;
    cx.data.call.effects.push(Effect::Publish {
        seq,
        topic,
        payload,
    });
    Ok(Ok(0))
}

/// Segments between slashes, none of them empty or a pattern.
fn is_topic(topic: &str) -> bool {
    topic
        .split('/')
        .all(|part| !part.is_empty() && part != "*" && !part.contains(char::is_control))
}

/// Whether a granted topic is `topic`, or one of which all below are granted.
fn covers(grant: &str, topic: &str) -> bool {
    match grant.strip_suffix('*') {
        Some(above) if above.ends_with('/') => {
            topic.len() > above.len() && topic.starts_with(above)
        }
        _ => grant == topic,
    }
}

fn call(cx: &mut Cx<'_>, head: [(u32, u32); 3], at: (u32, u32)) -> Answer<i64> {
    let [service, method, path] = head;
    let (service, method, path) = (cx.text(service)?, cx.text(method)?, cx.text(path)?);
    let body = cx.bytes(at)?;
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let (Some(service), Some(method), Some(path)) = (service, method, path) else {
        refuse!(INVALID);
    };
    let path_ok = path.starts_with('/') && path.bytes().all(|byte| matches!(byte, 33..127));
    if !is_token(method.as_bytes()) || !path_ok {
        refuse!(INVALID);
    }
    if !cx.data.setup.calls.contains(service) {
        refuse!(DENIED);
    }
    let bytes = service.len() + method.len() + path.len() + body.len();
    let sent = cx.data.call.sent.called + bytes as u64;
    if sent > cx.sent_max() || !cx.has_room() {
        refuse!(LIMIT);
    }
    let [service, method, path] = [service, method, path].map(str::to_owned);
    let body = Bytes::copy_from_slice(body);
    cx.data.call.sent.called = sent;
    cx.data.held.counters.effects += 1;
    let call = cx.data.held.counters.effects;
    let effect = Effect::Call {
        call,
        service,
        method,
        path,
        body,
    };
    cx.data.call.effects.push(effect);
    Ok(Ok(call.cast_signed()))
}

fn log(cx: &mut Cx<'_>, level: i32, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let text = cx.bytes((ptr, len))?;
    if cx.data.host.meter.output_left(text.len()) < text.len() {
        return Err(cx.data.host.meter.output_exceeded(text.len()).into());
    }
    cx.data.log.add(level, text);
    cx.data.host.meter.wrote_output(len as usize);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_cover_themselves_and_what_is_below_a_star() {
        assert!(covers("a/b", "a/b") && !covers("a/b", "a/b/c") && !covers("a/b", "a"));
        assert!(covers("a/*", "a/b") && covers("a/*", "a/b/c"));
        assert!(!covers("a/*", "a/") && !covers("a/*", "a") && !covers("a/*", "ab/c"));
        assert!(!covers("*", "a") && !covers("a*", "ab"));
        assert!(is_topic("a/b") && !is_topic("a//b") && !is_topic("") && !is_topic("a/*"));
    }
}
