//! Frames: u32 little-endian length, then postcard. The length is checked against the message
//! kind's bound before anything is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than its kind allows.
    #[error("a frame of {len} bytes exceeds the limit of {max} bytes for its kind")]
    TooLarge {
        /// Announced or encoded length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// Not the expected message.
    #[error("a frame of {len} bytes is malformed: {source}")]
    Malformed {
        /// Its length.
        len: usize,
        /// What postcard says.
        source: postcard::Error,
    },
    /// Bytes follow the message within its frame.
    #[error("a frame has {0} bytes after its message")]
    Trailing(usize),
}

/// Appends `message` as a frame to `out`; nothing is appended on error.
pub fn encode<T: Serialize>(message: &T, max: usize, out: &mut BytesMut) -> Result<(), Error> {
    let start = out.len();
    out.put_u32_le(0);
    let body = PostcardSink(out.split_off(start + PREFIX_BYTES));
    let body = postcard::serialize_with_flavor(message, body)
        .map_err(|source| Error::Malformed { len: 0, source });
    let body = match body {
        Ok(body) if body.len() <= max => body,
        failed => {
            out.truncate(start);
            return Err(match failed {
                Ok(body) => Error::TooLarge {
                    len: body.len(),
                    max,
                },
                Err(error) => error,
            });
        }
    };
    // `max` fits in 32 bits for every kind, and the body is no longer than it.
    let len = u32::try_from(body.len()).map_err(|_| Error::TooLarge {
        len: body.len(),
        max,
    })?;
    out[start..].copy_from_slice(&len.to_le_bytes());
    out.unsplit(body);
    Ok(())
}

/// `message` as one frame.
pub fn to_bytes<T: Serialize>(message: &T, max: usize) -> Result<Bytes, Error> {
    let mut out = BytesMut::new();
    encode(message, max, &mut out)?;
    Ok(out.freeze())
}

/// Decodes the body of a frame.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(Error::Trailing(rest.len())),
        Err(source) => Err(Error::Malformed {
            len: body.len(),
            source,
        }),
    }
}

/// Takes the first whole frame's body off `buffer`; `None` when more bytes are needed.
pub fn split(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Error> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let len = check_len(*prefix, max)?;
    if buffer.len() < PREFIX_BYTES + len {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// The body's length from its prefix, if within `max`.
pub fn check_len(prefix: [u8; PREFIX_BYTES], max: usize) -> Result<usize, Error> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len > max {
        Err(Error::TooLarge { len, max })
    } else {
        Ok(len)
    }
}

/// Lets postcard write straight into a `BytesMut`.
struct PostcardSink(BytesMut);

impl postcard::ser_flavors::Flavor for PostcardSink {
    type Output = BytesMut;
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn finalize(self) -> postcard::Result<BytesMut> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn oversize_frames_are_refused_before_their_body() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f][..]);
        assert!(matches!(
            split(&mut buffer, 64),
            Err(Error::TooLarge { max: 64, .. })
        ));
        let mut out = BytesMut::from(&b"kept"[..]);
        assert!(encode(&vec![0u8; 100], 64, &mut out).is_err());
        assert_eq!(&out[..], b"kept");
    }

    proptest! {
        /// Frames survive any cut of the byte stream, in order.
        #[test]
        fn frames_survive_any_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            cut in 1usize..40,
        ) {
            let mut wire = BytesMut::new();
            for message in &messages {
                encode(message, 1024, &mut wire).unwrap();
            }
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(body) = split(&mut buffer, 1024).unwrap() {
                    got.push(decode::<Vec<u8>>(&body).unwrap());
                }
            }
            prop_assert_eq!(got, messages);
        }

        /// No bytes make decoding panic.
        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<super::super::Up>(&bytes);
            let _ = decode::<super::super::Down>(&bytes);
            let _ = decode::<super::super::StreamHeader>(&bytes);
            let _ = decode::<super::super::Call>(&bytes);
            let _ = decode::<super::super::attach::Frame>(&bytes);
        }
    }
}
