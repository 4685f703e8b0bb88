//! The imports of the ABI, answered by the thread's [`World`](super::world::World). The same
//! functions as on Wasm, with the same answers.

use super::{
    Effect,
    world::{World, with},
};

const ABSENT: i32 = -1;
const NOT_GRANTED: i32 = -2;
const LIMIT: i32 = -3;
const NOT_NOW: i32 = -4;
const INVALID: i32 = -5;

// The defaults of `spec.limits`, and the host's own.
const REPLY_BYTES: usize = 1 << 20;
const KV_BYTES: usize = 16 << 20;
const TIMERS: usize = 1_000;
const STREAMS: usize = 1_000;
const KEY_BYTES: usize = 1 << 10;
const HEADERS: usize = 64;

fn length(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap_or(i32::MAX)
}

fn copy(bytes: &[u8], offset: usize, buf: &mut [u8]) -> i32 {
    let rest = bytes.get(offset..).unwrap_or_default();
    let count = rest.len().min(buf.len());
    buf[..count].copy_from_slice(&rest[..count]);
    length(bytes)
}

pub(crate) fn input(field: i32, offset: usize, buf: &mut [u8]) -> i32 {
    with(|world| match world.input.get(field) {
        Some(bytes) => copy(bytes, offset, buf),
        None => ABSENT,
    })
}

/// Does `work` if a request is being handled.
fn replying(work: impl FnOnce(&mut World) -> i32) -> i32 {
    with(|world| match world.input.kind {
        1 => work(world),
        _ => NOT_NOW,
    })
}

pub(crate) fn reply_status(status: i32) -> i32 {
    replying(|world| match u16::try_from(status) {
        Ok(status @ 100..600) => {
            world.answer.status = status;
            0
        }
        _ => INVALID,
    })
}

pub(crate) fn reply_header(name: &[u8], value: &[u8]) -> i32 {
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let plain = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
    if name.is_empty() || !name.iter().all(token) || !value.iter().all(plain) {
        return replying(|_| INVALID);
    }
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    replying(|world| {
        if world.answer.headers.len() == HEADERS {
            return LIMIT;
        }
        let name = text(name).to_ascii_lowercase();
        world.answer.headers.push((name, text(value)));
        0
    })
}

pub(crate) fn reply_write(bytes: &[u8]) -> i32 {
    replying(|world| {
        if world.answer.body.len() + bytes.len() > REPLY_BYTES {
            return LIMIT;
        }
        world.answer.body.extend_from_slice(bytes);
        0
    })
}

pub(crate) fn reply_stream() -> i64 {
    let mut opened = 0;
    let refused = replying(|world| {
        let state = &mut world.state;
        if world.answer.stream.is_none() {
            if state.streams.len() == STREAMS {
                return LIMIT;
            }
            state.streams_opened += 1;
            state.streams.insert(state.streams_opened);
            world.answer.stream = Some(state.streams_opened);
        }
        opened = state.streams_opened.cast_signed();
        0
    });
    if refused == 0 { opened } else { refused.into() }
}

/// Counts bytes that a call sends; 0, or over the limit.
fn send(world: &mut World, bytes: usize) -> i32 {
    world.sent += bytes;
    if world.sent > REPLY_BYTES { LIMIT } else { 0 }
}

pub(crate) fn stream_send(stream: i64, bytes: &[u8], text: bool) -> i32 {
    with(|world| {
        let stream = stream.cast_unsigned();
        if !world.state.streams.contains(&stream) {
            return ABSENT;
        }
        let answer = send(world, bytes.len());
        if answer == 0 {
            let bytes = bytes.to_vec();
            world.effects.push(Effect::Send {
                stream,
                bytes,
                text,
            });
        }
        answer
    })
}

pub(crate) fn stream_close(stream: i64, code: i32) -> i32 {
    with(|world| {
        let stream = stream.cast_unsigned();
        if !world.state.streams.remove(&stream) {
            return ABSENT;
        }
        let code = code.cast_unsigned();
        world.effects.push(Effect::Close { stream, code });
        0
    })
}

pub(crate) fn kv_get(key: &[u8], offset: usize, buf: &mut [u8]) -> i32 {
    with(|world| match world.state.kv.get(key) {
        Some(value) => copy(value, offset, buf),
        None => ABSENT,
    })
}

pub(crate) fn kv_set(key: &[u8], value: &[u8]) -> i32 {
    if key.is_empty() || key.len() > KEY_BYTES {
        return INVALID;
    }
    with(|world| {
        let kv = &mut world.state.kv;
        let others = kv.iter().filter(|(other, _)| *other != key);
        let held: usize = others.map(|(key, value)| key.len() + value.len()).sum();
        if held + key.len() + value.len() > KV_BYTES {
            return LIMIT;
        }
        kv.insert(key.to_vec(), value.to_vec());
        0
    })
}

pub(crate) fn kv_delete(key: &[u8]) -> i32 {
    with(|world| i32::from(world.state.kv.remove(key).is_some()))
}

pub(crate) fn kv_next(key: &[u8], buf: &mut [u8]) -> i32 {
    with(|world| {
        let mut keys = world.state.kv.keys();
        let next = keys.find(|other| key.is_empty() || other.as_slice() > key);
        let Some(next) = next else { return ABSENT };
        if next.len() <= buf.len() {
            buf[..next.len()].copy_from_slice(next);
        }
        length(next)
    })
}

pub(crate) fn timer_set(timer: i64, at_ms: i64) -> i32 {
    let Ok(at_ms) = u64::try_from(at_ms) else {
        return INVALID;
    };
    with(|world| {
        let (timers, timer) = (&mut world.state.timers, timer.cast_unsigned());
        if timers.len() == TIMERS && !timers.contains_key(&timer) {
            return LIMIT;
        }
        timers.insert(timer, at_ms);
        0
    })
}

pub(crate) fn timer_clear(timer: i64) -> i32 {
    with(|world| i32::from(world.state.timers.remove(&timer.cast_unsigned()).is_some()))
}

pub(crate) fn publish(topic: &[u8], payload: &[u8]) -> i32 {
    let Ok(topic) = std::str::from_utf8(topic) else {
        return INVALID;
    };
    with(|world| {
        if !world.topics.iter().any(|grant| covers(grant, topic)) {
            return NOT_GRANTED;
        }
        let answer = send(world, topic.len() + payload.len());
        if answer == 0 {
            let (topic, payload) = (topic.to_owned(), payload.to_vec());
            world.effects.push(Effect::Publish { topic, payload });
        }
        answer
    })
}

fn covers(grant: &str, topic: &str) -> bool {
    match grant.strip_suffix('*') {
        Some(prefix) => topic.len() > prefix.len() && topic.starts_with(prefix),
        None => grant == topic,
    }
}

pub(crate) fn call(service: &[u8], method: &[u8], path: &[u8], body: &[u8]) -> i64 {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (service, method, path) = (text(service), text(method), text(path));
    if method.is_empty() || !path.starts_with('/') {
        return INVALID.into();
    }
    with(|world| {
        if !world.services.contains(&service) {
            return NOT_GRANTED.into();
        }
        let answer = send(world, path.len() + body.len());
        if answer != 0 {
            return answer.into();
        }
        world.state.calls += 1;
        let (call, body) = (world.state.calls, body.to_vec());
        world.effects.push(Effect::Call {
            call,
            service,
            method,
            path,
            body,
        });
        call.cast_signed()
    })
}

pub(crate) fn log(level: i32, text: &[u8]) {
    let line = String::from_utf8_lossy(text).into_owned();
    with(|world| world.log.push((u8::try_from(level).unwrap_or(3), line)));
}

pub(crate) fn now_ms() -> i64 {
    with(|world| world.now_ms.cast_signed())
}
