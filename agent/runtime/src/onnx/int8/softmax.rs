//! Softmax from 8-bit numbers to 8-bit numbers, by a table of 256 exponentials, as onnxruntime's
//! `QLinearSoftmax`: the output's scale is taken as one over the whole number below its inverse.

use tract_onnx::tract_core::{
    internal::ensure,
    tract_data::{
        TractResult,
        internal::{DatumType, TDim, Tensor},
        prelude::TVec,
    },
};

use super::quantize::Quantisation;
use crate::onnx::unary::Compute;

/// Room that is left above the sum of exponentials, as a power of e.
const RESERVE: f64 = 5.0;

#[derive(Debug)]
pub(super) struct Softmax {
    pub(super) x: Quantisation,
    pub(super) y: Quantisation,
    /// Counts from the end if negative.
    pub(super) axis: i64,
}

impl Softmax {
    fn axis(&self, rank: usize) -> TractResult<usize> {
        let rank = i64::try_from(rank)?;
        let axis = if self.axis < 0 {
            self.axis + rank
        } else {
            self.axis
        };
        ensure!((0..rank).contains(&axis), "axis {} of {rank}", self.axis);
        Ok(usize::try_from(axis)?)
    }

    /// Exponentials of numbers that are 255, 254, … steps below the row's largest.
    fn table(&self, length: usize) -> [f32; 256] {
        let scale = f64::from(self.x.scale);
        let top = (f64::from(f32::MAX / length as f32).ln() - RESERVE).max(0.0);
        std::array::from_fn(|i| ((i as f64 - 255.0) * scale + top).exp() as f32)
    }
}

impl Compute for Softmax {
    fn name(&self) -> &'static str {
        "Int8Softmax"
    }

    fn input_type(&self) -> DatumType {
        self.x.datum_type()
    }

    fn output_type(&self) -> DatumType {
        self.y.datum_type()
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        self.axis(input.len())?;
        Ok(input.into())
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        let axis = self.axis(input.rank())?;
        let length = input.shape()[axis];
        let step: usize = input.shape()[axis + 1..].iter().product();
        let table = self.table(length);
        let inverse = (1.0 / self.y.scale).floor();
        let (input, output) = (input.as_bytes(), output.as_bytes_mut());
        for first in (0..input.len()).filter(|at| (at / step).is_multiple_of(length)) {
            let row = || (0..length).map(|i| first + i * step);
            let steps = |at: usize| usize::from(input[at] ^ self.x.flip());
            let most = row().map(steps).max().unwrap_or_default();
            let exponential = |at: usize| table[255 - most + steps(at)];
            let sum: f32 = row().map(exponential).sum();
            for at in row() {
                output[at] = self.y.byte(exponential(at) * inverse / sum);
            }
        }
        Ok(())
    }
}
