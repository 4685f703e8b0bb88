//! Tensors as all parts of Hop3 pass them around: dtype, shape, raw little-endian bytes.
//!
//! Pure and bounded: a [`Tensor`] that exists is valid (rank, element count and byte length were
//! checked, `bool` bytes are 0 or 1), wherever it came from: the wire, an `.npy` file or JSON.
//! [`TensorSpec`] says what a model expects of one (`X:f32[batch,64]`).
//!
//! Not here: arithmetic, strides, strings, complex numbers, quantisation parameters, `.npz`.

mod data;
mod dtype;
mod json;
mod npy;
mod spec;

#[cfg(test)]
mod tests;

pub use data::Tensor;
pub use dtype::DType;
pub use json::{Json, from_json};
pub use npy::{NPY_HEADER_BYTES_MAX, from_npy, to_npy};
pub use spec::{Bindings, Dim, ShapeMismatch, TensorSpec};

/// Most dimensions of a tensor; deeper ones do not occur in the models that we serve.
pub const RANK_MAX: usize = 8;
/// Most elements of a tensor: bounds the work of parsing JSON (16 Mi numbers).
pub const ELEMENTS_MAX: u64 = 16 << 20;
/// Most bytes of a tensor: bounds one frame between agent and model process (64 MiB).
pub const BYTES_MAX: u64 = 64 << 20;
/// Longest name of a tensor, in bytes: exporters make long ones, but not longer.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest name of a free dimension, in bytes.
pub const DIM_NAME_BYTES_MAX: usize = 64;

/// Why something is not a tensor, or not a description of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many dimensions.
    #[error("a tensor has at most {RANK_MAX} dimensions, this one has {rank}")]
    Rank {
        /// Dimensions given.
        rank: usize,
    },
    /// The shape has more elements or bytes than we carry.
    #[error(
        "a tensor has at most {ELEMENTS_MAX} elements and {BYTES_MAX} bytes, \
         shape {shape} of {dtype} has more"
    )]
    TooLarge {
        /// Element type.
        dtype: DType,
        /// The shape, as text.
        shape: String,
    },
    /// The data is not as long as dtype and shape say.
    #[error("{dtype}{shape} needs {expected} bytes of data, got {got}")]
    Length {
        /// Element type.
        dtype: DType,
        /// The shape, as text.
        shape: String,
        /// Bytes that dtype and shape ask for.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// A `bool` that is neither 0 nor 1.
    #[error("element {index} of a bool tensor has the byte {byte}: use 0 or 1")]
    BoolByte {
        /// Position in row-major order.
        index: usize,
        /// What was there.
        byte: u8,
    },
    /// Not a dtype that we carry.
    #[error("`{text}` is not a tensor dtype: use one of {}", DType::NAMES)]
    DType {
        /// What was given, shortened.
        text: String,
    },
    /// Not a valid `.npy` file.
    #[error("not a usable .npy file: {reason}")]
    Npy {
        /// What is wrong and what to do.
        reason: String,
    },
    /// Not a tensor in JSON.
    #[error("not a tensor in JSON, at {at}: {reason}")]
    Json {
        /// Place within the document, like `data[3][0]`.
        at: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Not a tensor description.
    #[error("`{text}` is not a tensor description: {reason} (it looks like X:f32[batch,64])")]
    Spec {
        /// What was given, shortened.
        text: String,
        /// Which part is wrong and how to write it.
        reason: String,
    },
    /// An unusable tensor name.
    #[error("a tensor name has 1 to {NAME_BYTES_MAX} bytes and no control characters")]
    Name,
}

/// The first characters of a hostile text, fit for a message.
pub(crate) fn short(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(60)
        .flat_map(char::escape_default)
        .collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

/// A shape as text: `[2,64]`.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    let mut text = String::from("[");
    for (i, dim) in shape.iter().take(RANK_MAX + 1).enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&dim.to_string());
    }
    if shape.len() > RANK_MAX + 1 {
        text.push_str(",…");
    }
    text.push(']');
    text
}
