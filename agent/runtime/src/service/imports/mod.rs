//! The functions of the import module `hop3`, as `agent/sdk/ABI.md` has them.
//!
//! Each call is counted and sees the guest's memory as a checked slice: a pointer outside of it
//! traps. A refusal is a negative number, and then nothing was changed.

mod keep;
mod reply;
mod send;

use wasmtime::{Caller, Extern, Linker, Trap};

use self::keep::{kv_delete, kv_get, kv_next, kv_set, timer_clear, timer_set};
use self::reply::{
    reply_header, reply_status, reply_stream, reply_write, stream_close, stream_send,
};
use self::send::{call, publish};
use super::call::Data;
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

/// Effects of one call: each is written to a log and carried out.
const EFFECTS_MAX: usize = 10_000;
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

use refuse;

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

fn log(cx: &mut Cx<'_>, level: i32, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let text = cx.bytes((ptr, len))?;
    if cx.data.host.meter.output_left(text.len()) < text.len() {
        return Err(cx.data.host.meter.output_exceeded(text.len()).into());
    }
    cx.data.log.add(level, text);
    cx.data.host.meter.wrote_output(len as usize);
    Ok(())
}
