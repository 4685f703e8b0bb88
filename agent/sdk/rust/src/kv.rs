//! Key-value data: the part of the state that does not depend on how code lays out its memory.
//!
//! Keys are bytes, 1 to 1,024 of them, in byte order; `spec.limits.kv` bounds keys and values
//! together. Values are of any type that can be [encoded](Encode).
//!
//! ```
//! # struct S; impl hop3_guest::Service for S {}
//! # let host = hop3_guest::testing::Host::<S>::new();
//! use hop3_guest::kv;
//!
//! kv::set("room/a", "first")?;
//! kv::set("room/b", &7_u64)?;
//! assert_eq!(kv::get::<String>("room/a")?.as_deref(), Some("first"));
//! let keys: Vec<Vec<u8>> = kv::range("room/").map(|(key, _)| key).collect();
//! assert_eq!(keys, [b"room/a", b"room/b"]);
//! assert!(kv::delete("room/b")?);
//! # Ok::<(), hop3_guest::Error>(())
//! ```

use crate::{
    error::{Error, HostError, check},
    sys,
};

/// Longest key that is common; a longer one costs a second question.
const KEY_BYTES: usize = 1 << 10;

/// What can be a value.
pub trait Encode {
    /// As bytes.
    fn encode(&self) -> Vec<u8>;
}

/// What a value can be read as.
pub trait Decode: Sized {
    /// From bytes; none if they are not such a value.
    fn decode(bytes: Vec<u8>) -> Option<Self>;
}

/// The value of `key`.
///
/// # Errors
/// It is there and is not a `T`.
pub fn get<T: Decode>(key: impl AsRef<[u8]>) -> Result<Option<T>, Error> {
    let key = key.as_ref();
    let Some(bytes) = bytes_of(key) else {
        return Ok(None);
    };
    let length = bytes.len();
    match T::decode(bytes) {
        Some(value) => Ok(Some(value)),
        None => {
            let (key, wanted) = (String::from_utf8_lossy(key), std::any::type_name::<T>());
            Err(Error::new(format!(
                "the value of key `{key}` ({length} bytes) is not a {wanted}"
            )))
        }
    }
}

/// Sets the value of `key`.
///
/// # Errors
/// [`HostError::Limit`] where key-value data would get too large, [`HostError::Invalid`] for a key
/// that is empty or too long.
pub fn set<T: Encode + ?Sized>(key: impl AsRef<[u8]>, value: &T) -> Result<(), HostError> {
    check(sys::kv_set(key.as_ref(), &value.encode())).map(drop)
}

/// Removes `key`. Whether it was there.
///
/// # Errors
/// Not in the module's start function.
pub fn delete(key: impl AsRef<[u8]>) -> Result<bool, HostError> {
    check(sys::kv_delete(key.as_ref())).map(|there| there == 1)
}

/// Keys that begin with `prefix`, in order, with their values as bytes. Reads as it goes: what
/// changes behind it is not seen.
pub fn range(prefix: impl AsRef<[u8]>) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let prefix = prefix.as_ref().to_vec();
    let mut last: Option<Vec<u8>> = None;
    std::iter::from_fn(move || {
        let itself = || (!prefix.is_empty()).then(|| bytes_of(&prefix)).flatten();
        let found = match &last {
            // The prefix may be a key itself; the host only answers what comes after one.
            None => match itself() {
                Some(value) => Some((prefix.clone(), value)),
                None => next(&prefix),
            },
            Some(last) => next(last),
        };
        let (key, value) = found.filter(|(key, _)| key.starts_with(&prefix))?;
        last = Some(key.clone());
        Some((key, value))
    })
}

/// The least key after `key`, and its value.
fn next(key: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; KEY_BYTES];
    let mut length = usize::try_from(sys::kv_next(key, &mut buffer)).ok()?;
    if length > buffer.len() {
        buffer.resize(length, 0);
        length = usize::try_from(sys::kv_next(key, &mut buffer)).ok()?;
    }
    buffer.truncate(length);
    let value = bytes_of(&buffer)?;
    Some((buffer, value))
}

fn bytes_of(key: &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(sys::kv_get(key, 0, &mut [])).ok()?;
    let mut bytes = vec![0; length];
    let read = usize::try_from(sys::kv_get(key, 0, &mut bytes)).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

impl Encode for [u8] {
    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }
}
impl Encode for Vec<u8> {
    fn encode(&self) -> Vec<u8> {
        self.clone()
    }
}
impl Decode for Vec<u8> {
    fn decode(bytes: Vec<u8>) -> Option<Self> {
        Some(bytes)
    }
}
impl Encode for str {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}
impl Encode for String {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}
impl Decode for String {
    fn decode(bytes: Vec<u8>) -> Option<Self> {
        Self::from_utf8(bytes).ok()
    }
}
impl Encode for bool {
    fn encode(&self) -> Vec<u8> {
        vec![u8::from(*self)]
    }
}
impl Decode for bool {
    fn decode(bytes: Vec<u8>) -> Option<Self> {
        match bytes[..] {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

/// Little-endian, at their width: the same on every machine.
macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Encode for $number {
            fn encode(&self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        }
        impl Decode for $number {
            fn decode(bytes: Vec<u8>) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Service, testing::Host};

    struct None_;
    impl Service for None_ {}

    #[test]
    fn ranges_begin_with_the_prefix_itself_and_end_with_it() {
        let _host = Host::<None_>::new();
        for key in ["a", "b", "b/1", "b/2", "b0", "c"] {
            assert_eq!(set(key, key), Ok(()));
        }
        let keys = |prefix: &str| {
            let keys = range(prefix).map(|(key, value)| {
                assert_eq!(key, value);
                String::from_utf8_lossy(&key).into_owned()
            });
            keys.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keys("b"), "b b/1 b/2 b0");
        assert_eq!(keys("b/"), "b/1 b/2");
        assert_eq!(keys(""), "a b b/1 b/2 b0 c");
        assert_eq!(keys("d"), "");
    }

    #[test]
    fn values_are_read_as_what_they_are() {
        let _host = Host::<None_>::new();
        assert_eq!(set("n", &-5_i64), Ok(()));
        assert!(get::<i64>("n").is_ok_and(|n| n == Some(-5)));
        assert!(get::<i64>("none").is_ok_and(|n| n.is_none()));
        let wrong = get::<u8>("n").map_err(|error| error.to_string());
        assert!(wrong.is_err_and(|text| text.contains("`n`") && text.contains("8 bytes")));
        assert_eq!(set("", "x"), Err(HostError::Invalid));
    }
}
