//! Frames between agent and child: u32 length (little-endian) + postcard, both ways, over the
//! child's standard input and output.
//!
//! The child speaks first ([`Reply::Ready`], jail closed). Then strictly one reply per request;
//! a model travels as [`Request::Load`] and as many [`Request::Chunk`]s as its size needs, and
//! gets one reply. Both ends are the same binary, so there is no version; each end still bounds
//! and checks what it reads, since the child may have been taken over.

use std::io::{self, Read};

use bytes::Bytes;
use hop3_common::tensor::{BYTES_MAX, Tensor, TensorSpec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Facts, ModelError};

/// Longest frame, in bytes: tensors of [`BYTES_MAX`] in all, and room for what surrounds them.
pub const FRAME_BYTES_MAX: usize = (BYTES_MAX + (1 << 20)) as usize;
/// Bytes of model per [`Request::Chunk`].
pub const CHUNK_BYTES: usize = 1 << 20;
/// Largest model, in bytes: protobuf itself goes no further than 2 GiB.
pub const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Length of the prefix, in bytes.
pub(super) const PREFIX_BYTES: usize = 4;

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// A model follows in chunks.
    Load {
        /// Its size.
        bytes: u64,
        /// The manifest's description of its inputs.
        specs: Vec<TensorSpec>,
    },
    /// The next part of the model.
    Chunk(Bytes),
    /// Inputs in the model's order.
    Infer {
        /// The inputs.
        inputs: Vec<Tensor>,
    },
}

/// From the child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The jail is closed; untrusted bytes may come.
    Ready,
    /// The model is loaded.
    Loaded {
        /// What it takes and gives.
        facts: Facts,
        /// Time to decode and optimise it.
        load_us: u64,
    },
    /// An inference's outputs, in the model's order.
    Outputs {
        /// The outputs.
        outputs: Vec<Tensor>,
        /// Time of the inference alone.
        infer_us: u64,
        /// Time to optimise for these shapes before it; 0 if that had been done.
        plan_us: u64,
    },
    /// It did not work. After [`ModelError::Panicked`] and [`ModelError::OutOfMemory`] the child
    /// ends.
    Failed(ModelError),
}

/// A frame that cannot be sent or understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("a frame of {bytes} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// Not what was to be expected.
    #[error("a frame cannot be decoded: {0}")]
    Malformed(String),
}

/// A whole frame, prefix included.
///
/// # Errors
/// It would be too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; PREFIX_BYTES])
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    let body_bytes = frame.len() - PREFIX_BYTES;
    let too_large = FrameError::TooLarge {
        bytes: body_bytes as u64,
    };
    if body_bytes > FRAME_BYTES_MAX {
        return Err(too_large);
    }
    let prefix = u32::try_from(body_bytes).map_err(|_| too_large)?;
    frame[..PREFIX_BYTES].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// The length that a prefix announces, if it is allowed.
pub(super) fn body_bytes(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(prefix);
    usize::try_from(bytes)
        .ok()
        .filter(|n| *n <= FRAME_BYTES_MAX)
        .ok_or(FrameError::TooLarge {
            bytes: u64::from(bytes),
        })
}

/// The message in a frame's body, which must hold nothing else.
///
/// # Errors
/// It is not one.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Malformed(format!(
            "{} bytes too many",
            rest.len()
        ))),
        Err(e) => Err(FrameError::Malformed(e.to_string())),
    }
}

/// Reads a message; none at the end of the stream.
///
/// # Errors
/// The stream's, or what comes is no message.
pub fn read<T: DeserializeOwned>(input: &mut impl Read) -> io::Result<Option<T>> {
    let mut prefix = [0; PREFIX_BYTES];
    match input.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let bytes = body_bytes(prefix).map_err(io::Error::other)?;
    let mut body = vec![0; bytes];
    input.read_exact(&mut body)?;
    decode(&body).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_round_trip() {
        let tensor = Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap();
        let spec: TensorSpec = "X:f32[batch,64]".parse().unwrap();
        let requests = [
            Request::Load {
                bytes: 7,
                specs: vec![spec.clone()],
            },
            Request::Chunk(Bytes::from_static(b"abc")),
            Request::Infer {
                inputs: vec![tensor.clone()],
            },
        ];
        for request in requests {
            let frame = encode(&request).unwrap();
            assert_eq!(read::<Request>(&mut &*frame).unwrap(), Some(request));
        }
        let facts = Facts {
            inputs: vec![spec],
            outputs: Vec::new(),
        };
        let reply = Reply::Loaded { facts, load_us: 3 };
        let frame = encode(&reply).unwrap();
        assert_eq!(read::<Reply>(&mut &*frame).unwrap(), Some(reply));
        assert_eq!(read::<Reply>(&mut &b""[..]).unwrap(), None);
        read::<Reply>(&mut &frame[..frame.len() - 1]).unwrap_err();
    }

    #[test]
    fn a_prefix_is_bounded_before_anything_is_allocated() {
        assert!(body_bytes(u32::MAX.to_le_bytes()).is_err());
        let error = read::<Reply>(&mut &[0xff, 0xff, 0xff, 0xff, 1][..]).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }

    proptest! {
        #[test]
        fn no_body_makes_the_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Reply>(&body);
            let _ = decode::<Request>(&body);
        }
    }
}
