//! The imports (`agent/sdk/ABI.md`) as safe functions on slices. The only module with `unsafe`.
//! Answers are passed on as they are: a count, or a negative error. On the host the in-memory
//! stand-in of [`crate::testing`] answers.

/// Numbers of the input's fields.
pub(crate) mod field {
    pub(crate) const KIND: i32 = 0;
    pub(crate) const METHOD: i32 = 1;
    pub(crate) const PATH: i32 = 2;
    pub(crate) const HEADERS: i32 = 3;
    pub(crate) const BODY: i32 = 4;
    pub(crate) const TOPIC: i32 = 5;
    pub(crate) const FROM: i32 = 6;
    pub(crate) const STREAM: i32 = 7;
    pub(crate) const TEXT: i32 = 8;
    pub(crate) const CALL: i32 = 9;
    pub(crate) const STATUS: i32 = 10;
    pub(crate) const TIMER: i32 = 11;
    pub(crate) const DUE: i32 = 12;
    pub(crate) const MORE: i32 = 13;
    pub(crate) const INSTANCE: i32 = 14;
    pub(crate) const INDEX: i32 = 15;
    pub(crate) const COUNT: i32 = 16;
    pub(crate) const CODE: i32 = 17;
}

/// Values of the field `KIND`.
pub(crate) mod kind {
    pub(crate) const TOPIC: u8 = 2;
    pub(crate) const STREAM_DATA: u8 = 3;
    pub(crate) const STREAM_CLOSED: u8 = 4;
    pub(crate) const CALL_ENDED: u8 = 5;
}

/// A whole field of the input; none if there is no such field now.
pub(crate) fn field(field: i32) -> Option<Vec<u8>> {
    let length = usize::try_from(input(field, 0, &mut [])).ok()?;
    let mut bytes = vec![0; length];
    let read = usize::try_from(input(field, 0, &mut bytes)).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// A field that is text.
pub(crate) fn text(number: i32) -> Option<String> {
    let bytes = field(number)?;
    Some(String::from_utf8(bytes).unwrap_or_else(|e| lossy(e.as_bytes())))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A field that is a little-endian number of up to 8 bytes; 0 without it.
pub(crate) fn number(number: i32) -> u64 {
    let mut bytes = [0; 8];
    input(number, 0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::*;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::imports::*;

#[cfg(target_arch = "wasm32")]
#[allow(
    unsafe_code,
    reason = "imports are foreign functions; each is wrapped once"
)]
mod wasm {
    // JUSTIFICATION: a module reaches its host by imports, which Rust can only declare as foreign
    // functions. Pointers are 32 bits wide here, so that `*const u8` and `usize` are the `i32` of
    // the interface.
    mod raw {
        #[link(wasm_import_module = "hop3")]
        unsafe extern "C" {
            pub(super) fn input(field: i32, offset: usize, buf: *mut u8, cap: usize) -> i32;
            pub(crate) safe fn reply_status(status: i32) -> i32;
            pub(super) fn reply_header(
                name: *const u8,
                name_len: usize,
                value: *const u8,
                value_len: usize,
            ) -> i32;
            pub(super) fn reply_write(ptr: *const u8, len: usize) -> i32;
            pub(crate) safe fn reply_stream() -> i64;
            pub(super) fn stream_send(stream: i64, ptr: *const u8, len: usize, text: i32) -> i32;
            pub(crate) safe fn stream_close(stream: i64, code: i32) -> i32;
            pub(super) fn kv_get(
                key: *const u8,
                key_len: usize,
                offset: usize,
                buf: *mut u8,
                cap: usize,
            ) -> i32;
            pub(super) fn kv_set(
                key: *const u8,
                key_len: usize,
                value: *const u8,
                value_len: usize,
            ) -> i32;
            pub(super) fn kv_delete(key: *const u8, key_len: usize) -> i32;
            pub(super) fn kv_next(key: *const u8, key_len: usize, buf: *mut u8, cap: usize) -> i32;
            pub(crate) safe fn timer_set(timer: i64, at_ms: i64) -> i32;
            pub(crate) safe fn timer_clear(timer: i64) -> i32;
            pub(super) fn publish(
                topic: *const u8,
                topic_len: usize,
                ptr: *const u8,
                len: usize,
            ) -> i32;
            pub(super) fn call(
                service: *const u8,
                service_len: usize,
                method: *const u8,
                method_len: usize,
                path: *const u8,
                path_len: usize,
                body: *const u8,
                body_len: usize,
            ) -> i64;
            pub(super) fn log(level: i32, ptr: *const u8, len: usize);
            pub(crate) safe fn now_ms() -> i64;
        }
    }

    // SAFETY, for every block below: the host reads `len` bytes at the pointer of a shared slice,
    // or writes at most `cap` bytes at the pointer of an exclusive one, while the call lasts; both
    // come from a slice that outlives the call, and the host keeps no pointer.

    pub(crate) fn input(field: i32, offset: usize, buf: &mut [u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::input(field, offset, buf.as_mut_ptr(), buf.len()) }
    }

    pub(crate) fn reply_header(name: &[u8], value: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::reply_header(name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
    }

    pub(crate) fn reply_write(bytes: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::reply_write(bytes.as_ptr(), bytes.len()) }
    }

    pub(crate) fn stream_send(stream: i64, bytes: &[u8], text: bool) -> i32 {
        // SAFETY: as above.
        unsafe { raw::stream_send(stream, bytes.as_ptr(), bytes.len(), i32::from(text)) }
    }

    pub(crate) fn kv_get(key: &[u8], offset: usize, buf: &mut [u8]) -> i32 {
        let (at, cap) = (buf.as_mut_ptr(), buf.len());
        // SAFETY: as above.
        unsafe { raw::kv_get(key.as_ptr(), key.len(), offset, at, cap) }
    }

    pub(crate) fn kv_set(key: &[u8], value: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::kv_set(key.as_ptr(), key.len(), value.as_ptr(), value.len()) }
    }

    pub(crate) fn kv_delete(key: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::kv_delete(key.as_ptr(), key.len()) }
    }

    pub(crate) fn kv_next(key: &[u8], buf: &mut [u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::kv_next(key.as_ptr(), key.len(), buf.as_mut_ptr(), buf.len()) }
    }

    pub(crate) fn publish(topic: &[u8], payload: &[u8]) -> i32 {
        // SAFETY: as above.
        unsafe { raw::publish(topic.as_ptr(), topic.len(), payload.as_ptr(), payload.len()) }
    }

    pub(crate) fn call(service: &[u8], method: &[u8], path: &[u8], body: &[u8]) -> i64 {
        // SAFETY: as above.
        unsafe {
            raw::call(
                service.as_ptr(),
                service.len(),
                method.as_ptr(),
                method.len(),
                path.as_ptr(),
                path.len(),
                body.as_ptr(),
                body.len(),
            )
        }
    }

    pub(crate) fn log(level: i32, text: &[u8]) {
        // SAFETY: as above.
        unsafe { raw::log(level, text.as_ptr(), text.len()) }
    }

    pub(crate) use raw::{
        now_ms, reply_status, reply_stream, stream_close, timer_clear, timer_set,
    };
}
