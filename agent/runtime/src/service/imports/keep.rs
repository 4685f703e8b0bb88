//! Key-value data and timers.

use bytes::Bytes;

use super::{ABSENT, Answer, Cx, INVALID, LIMIT, NOT_NOW, Refused, copy_out, refuse};
use crate::service::image::map::weight;

/// Bytes of a key: it is compared at every look-up.
const KEY_BYTES_MAX: usize = 1_024;

pub(super) fn kv_get(
    cx: &mut Cx<'_>,
    key: (u32, u32),
    offset: u32,
    buf: (u32, u32),
) -> Answer<i32> {
    let key = cx.bytes(key)?;
    match cx.data.held.kv.get(key) {
        Some(value) => copy_out(cx.memory, value, offset, buf).map(Ok),
        None => refuse!(ABSENT),
    }
}

pub(super) fn kv_set(cx: &mut Cx<'_>, key: (u32, u32), value: (u32, u32)) -> Answer<i32> {
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

pub(super) fn kv_delete(cx: &mut Cx<'_>, (ptr, len): (u32, u32)) -> Answer<i32> {
    cx.bytes((ptr, len))?;
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let key = &cx.memory[ptr as usize..][..len as usize];
    Ok(Ok(i32::from(cx.data.held.kv.remove(key))))
}

pub(super) fn kv_next(cx: &mut Cx<'_>, key: (u32, u32), buf: (u32, u32)) -> Answer<i32> {
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

pub(super) fn timer_set(cx: &mut Cx<'_>, timer: u64, at_ms: i64) -> Answer<i32> {
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

pub(super) fn timer_clear(cx: &mut Cx<'_>, timer: u64) -> Answer<i32> {
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    if !cx.data.held.timers.contains_key(&timer) {
        return Ok(Ok(0));
    }
    cx.data.timers_mut().remove(&timer);
    Ok(Ok(1))
}
