//! Gemm, MatMul and Conv on 8-bit numbers: one matrix product, plus a bias, quantised anew.
//!
//! An input of signed numbers is read as unsigned ones that are 128 higher, their zero likewise.
//! A convolution's matrix has a row per output pixel, in the order kernel row, kernel column,
//! channel.

use tract_onnx::tract_core::{
    internal::ensure,
    tract_data::{
        TractResult,
        internal::{DatumType, TDim, Tensor},
        prelude::TVec,
    },
};

use super::{
    kernel::{COLUMNS, Sums, Weights},
    quantize::Quantisation,
};
use crate::onnx::unary::Compute;

/// Output pixels whose rows are laid out at once: enough to use each weight often, few enough to
/// stay in the nearest cache.
const PIXELS: usize = 64;

/// What the product's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rows {
    /// The input's own, along its last axis.
    Plain { k: usize },
    /// What lies under a kernel.
    Patches(Patches),
}

/// A two-dimensional convolution's geometry; pairs are of rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patches {
    pub(super) channels: usize,
    pub(super) kernel: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    pub(super) before: [usize; 2],
    pub(super) after: [usize; 2],
}

#[derive(Debug)]
pub(super) struct Linear {
    rows: Rows,
    weights: Weights,
    /// By blocks of columns: the bias, less what the input's zero adds.
    offsets: Vec<Sums>,
    /// By blocks of columns: from sums to multiples of the output's scale.
    factors: Vec<[f32; COLUMNS]>,
    x: Quantisation,
    y: Quantisation,
}

impl Linear {
    /// `weights` reads the matrix of `k` × `n` weights, whose columns have these scales.
    pub(super) fn new(
        rows: Rows,
        (k, n): (usize, usize),
        weights: impl Fn(usize, usize) -> i8,
        scales: impl Fn(usize) -> f32,
        bias: impl Fn(usize) -> i32,
        (x, y): (Quantisation, Quantisation),
    ) -> Self {
        let zero = x.zero - x.min();
        let offset = |n: usize| {
            let sum: i32 = (0..k).map(|k| i32::from(weights(k, n))).sum();
            bias(n).wrapping_sub(zero.wrapping_mul(sum))
        };
        Self {
            rows,
            offsets: blocks(n, offset),
            factors: blocks(n, |n| x.scale * scales(n) / y.scale),
            weights: Weights::pack(k, n, weights),
            x,
            y,
        }
    }

    /// The output bytes of a row's sums from `column` on, and how many there are.
    fn finish(&self, column: usize, sums: &Sums) -> ([u8; COLUMNS], usize) {
        let (offsets, factors) = (
            &self.offsets[column / COLUMNS],
            &self.factors[column / COLUMNS],
        );
        let byte = |i: usize| {
            let sum = sums[i].wrapping_add(offsets[i]);
            self.y.byte(sum as f32 * factors[i])
        };
        let width = COLUMNS.min(self.weights.columns() - column);
        (std::array::from_fn(byte), width)
    }

    fn run_plain(&self, k: usize, input: &[u8], output: &mut [u8]) {
        let (n, row_bytes, flip) = (
            self.weights.columns(),
            self.weights.row_bytes(),
            self.x.flip(),
        );
        let mut rows = vec![0; input.len() / k * row_bytes];
        for (to, from) in rows.chunks_exact_mut(row_bytes).zip(input.chunks_exact(k)) {
            to.iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to = from ^ flip);
        }
        self.weights.multiply(&rows, |row, column, sums| {
            let (bytes, width) = self.finish(column, sums);
            output[row * n + column..][..width].copy_from_slice(&bytes[..width]);
        });
    }

    /// One image, channels first, as is the output.
    fn run_patches(&self, patches: &Patches, size: [usize; 2], input: &[u8], output: &mut [u8]) {
        let image = Image::new(patches, size, self.x, input);
        let row_bytes = self.weights.row_bytes();
        let pixels = output.len() / self.weights.columns();
        let mut rows = vec![0; PIXELS.min(pixels) * row_bytes];
        for begin in (0..pixels).step_by(PIXELS) {
            let count = PIXELS.min(pixels - begin);
            let rows = &mut rows[..count * row_bytes];
            for (i, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
                image.patch(patches, begin + i, row);
            }
            self.weights.multiply(rows, |row, column, sums| {
                let (bytes, width) = self.finish(column, sums);
                for (i, byte) in bytes[..width].iter().enumerate() {
                    output[(column + i) * pixels + begin + row] = *byte;
                }
            });
        }
    }
}

/// A number for each of `n` columns, by blocks; zeros fill the last one.
fn blocks<T: Copy + Default>(n: usize, value: impl Fn(usize) -> T) -> Vec<[T; COLUMNS]> {
    let at = |at: usize| if at < n { value(at) } else { T::default() };
    (0..n.div_ceil(COLUMNS))
        .map(|block| std::array::from_fn(|i| at(block * COLUMNS + i)))
        .collect()
}

impl Compute for Linear {
    fn name(&self) -> &'static str {
        match self.rows {
            Rows::Plain { .. } => "Int8MatMul",
            Rows::Patches(_) => "Int8Conv",
        }
    }

    fn input_type(&self) -> DatumType {
        self.x.datum_type()
    }

    fn output_type(&self) -> DatumType {
        self.y.datum_type()
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        let n = TDim::from(self.weights.columns());
        match (&self.rows, input) {
            (Rows::Plain { k }, [outer @ .., last]) => {
                ensure!(*last == TDim::from(*k), "{last} columns for {k} weights");
                Ok(outer.iter().cloned().chain([n]).collect())
            }
            (Rows::Patches(patches), [batch, channels, height, width]) => {
                let expected = patches.channels;
                ensure!(
                    *channels == TDim::from(expected),
                    "{channels} channels for {expected}"
                );
                let [height, width] = [(height, 0), (width, 1)].map(|(dim, i)| {
                    (patches.padded(dim.clone(), i) - patches.extent(i)) / patches.strides[i] + 1
                });
                Ok([batch.clone(), n, height, width].into_iter().collect())
            }
            _ => tract_onnx::tract_core::internal::bail!("{} does not fit", self.name()),
        }
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        match (&self.rows, input.shape()) {
            (Rows::Plain { k }, [.., last]) if last == k && *k > 0 => {
                self.run_plain(*k, input.as_bytes(), output.as_bytes_mut());
            }
            (Rows::Patches(patches), &[batch, channels, height, width])
                if channels == patches.channels && input.len() > 0 =>
            {
                let fits = [(height, 0), (width, 1)]
                    .map(|(dim, i)| patches.padded(dim, i) >= patches.extent(i));
                ensure!(
                    fits == [true, true],
                    "the kernel is larger than the padded image"
                );
                let (bytes_in, bytes_out) = (input.len() / batch, output.len() / batch);
                let images = input.as_bytes().chunks_exact(bytes_in);
                for (image, out) in images.zip(output.as_bytes_mut().chunks_exact_mut(bytes_out)) {
                    self.run_patches(patches, [height, width], image, out);
                }
            }
            _ => tract_onnx::tract_core::internal::bail!("{} does not fit", self.name()),
        }
        Ok(())
    }
}

impl Patches {
    /// Length of a padded axis.
    fn padded<D: std::ops::Add<usize, Output = D>>(&self, dim: D, axis: usize) -> D {
        dim + (self.before[axis] + self.after[axis])
    }

    /// How far the kernel reaches.
    fn extent(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }
}

/// A padded image of unsigned bytes, channels last.
struct Image {
    bytes: Vec<u8>,
    /// Of a padded row, in pixels.
    width: usize,
    /// Positions of the kernel per row.
    columns: usize,
}

impl Image {
    fn new(patches: &Patches, [height, width]: [usize; 2], x: Quantisation, input: &[u8]) -> Self {
        let channels = patches.channels;
        let padded = [patches.padded(height, 0), patches.padded(width, 1)];
        let zero = (x.zero - x.min()).cast_unsigned() as u8;
        let mut bytes = vec![zero; padded[0] * padded[1] * channels];
        for (row_at, row) in input.chunks_exact(width).enumerate() {
            let (channel, row_at) = (row_at / height, row_at % height + patches.before[0]);
            let first = (row_at * padded[1] + patches.before[1]) * channels + channel;
            let to = bytes[first..].iter_mut().step_by(channels);
            to.zip(row).for_each(|(to, from)| *to = from ^ x.flip());
        }
        Self {
            bytes,
            width: padded[1],
            columns: (padded[1] - patches.extent(1)) / patches.strides[1] + 1,
        }
    }

    /// What lies under the kernel at the `at`-th of its positions.
    fn patch(&self, patches: &Patches, at: usize, to: &mut [u8]) {
        let [rows, columns] = patches.kernel;
        let top = at / self.columns * patches.strides[0];
        let left = at % self.columns * patches.strides[1];
        // Neighbouring columns lie together.
        let (runs, pixels) = match patches.dilations[1] {
            1 => (1, columns),
            _ => (columns, 1),
        };
        let bytes = pixels * patches.channels;
        for (i, to) in to.chunks_exact_mut(bytes).take(rows * runs).enumerate() {
            let row = top + i / runs * patches.dilations[0];
            let column = left + i % runs * patches.dilations[1];
            let first = (row * self.width + column) * patches.channels;
            to.copy_from_slice(&self.bytes[first..][..bytes]);
        }
    }
}
