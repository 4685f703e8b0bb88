//! The tensor itself.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{BYTES_MAX, DType, ELEMENTS_MAX, Error, RANK_MAX, shape_text};

/// A dense, row-major tensor. Its parts always agree: only [`Tensor::new`] (or a decoder that
/// goes through it) makes one. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Tensor {
    dtype: DType,
    shape: Vec<u64>,
    data: Bytes,
}

#[derive(Deserialize)]
struct Raw {
    dtype: DType,
    shape: Vec<u64>,
    data: Bytes,
}

impl TryFrom<Raw> for Tensor {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self, Error> {
        Tensor::new(raw.dtype, raw.shape, raw.data)
    }
}

impl Tensor {
    /// A tensor of raw little-endian elements in row-major order.
    ///
    /// # Errors
    /// If rank or size are out of bounds, or the data does not fit dtype and shape.
    pub fn new(dtype: DType, shape: Vec<u64>, data: Bytes) -> Result<Self, Error> {
        let expected = bytes_needed(dtype, &shape)?;
        let got = data.len() as u64;
        if got != expected {
            return Err(Error::Length {
                dtype,
                shape: shape_text(&shape),
                expected,
                got,
            });
        }
        if dtype == DType::Bool
            && let Some((index, &byte)) = data.iter().enumerate().find(|(_, byte)| **byte > 1)
        {
            return Err(Error::BoolByte { index, byte });
        }
        Ok(Self { dtype, shape, data })
    }

    /// A tensor of single-precision numbers.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(shape: Vec<u64>, values: &[f32]) -> Result<Self, Error> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::F32, shape, data.into())
    }

    /// A tensor of 64-bit integers.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_i64(shape: Vec<u64>, values: &[i64]) -> Result<Self, Error> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::I64, shape, data.into())
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Length of each dimension; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Raw little-endian elements, row-major.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.data.len() as u64 / self.dtype.bytes()
    }

    /// The elements, if they are `f32`.
    #[must_use]
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32).then(|| {
            let (words, _) = self.data.as_chunks::<4>();
            words.iter().map(|word| f32::from_le_bytes(*word)).collect()
        })
    }

    /// The elements, if they are `i64`.
    #[must_use]
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        (self.dtype == DType::I64).then(|| {
            let (words, _) = self.data.as_chunks::<8>();
            words.iter().map(|word| i64::from_le_bytes(*word)).collect()
        })
    }
}

/// Shows what it is, not its data: tensors can be large and private.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({}{})", self.dtype, shape_text(&self.shape))
    }
}

/// Bytes that a tensor of this dtype and shape takes.
pub(super) fn bytes_needed(dtype: DType, shape: &[u64]) -> Result<u64, Error> {
    if shape.len() > RANK_MAX {
        return Err(Error::Rank { rank: shape.len() });
    }
    // A zero anywhere makes the product zero; the other dimensions must still be sane.
    shape
        .iter()
        .try_fold((1u64, 1u64), |(product, nonzero), &dim| {
            let nonzero = nonzero
                .checked_mul(dim.max(1))
                .filter(|n| *n <= ELEMENTS_MAX)?;
            Some((product * dim, nonzero))
        })
        .and_then(|(product, _)| product.checked_mul(dtype.bytes()))
        .filter(|bytes| *bytes <= BYTES_MAX)
        .ok_or_else(|| Error::TooLarge {
            dtype,
            shape: shape_text(shape),
        })
}
