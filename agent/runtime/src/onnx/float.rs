//! Small dense layers in floats: MatMul or Gemm with constant weights, bias and Relu as one
//! operator, on x86 with AVX2 and FMA. Everything else is tract's.
//!
//! tract lays its inputs out anew for every product, which in a small layer takes as long as the
//! product; here a row is read as it comes. The weights are packed once per model, not per plan.
//! JUSTIFICATION of `unsafe`: calling code for an instruction set that was just asked for, and
//! moving eight numbers between memory and its registers.

use std::collections::BTreeSet;

use tract_onnx::{
    Onnx,
    pb::{ModelProto, NodeProto},
    tract_core::{
        internal::{bail, ensure},
        tract_data::{
            TractResult,
            internal::{DatumType, TDim, Tensor},
            prelude::TVec,
        },
    },
};

use super::{
    graph::{Fused, Index, dense_axis, floats, is},
    unary::{Compute, inference_op},
};

/// Most weights of a layer: 1 MiB of them. Larger ones are worth tract's care for caches.
const WEIGHTS_MAX: usize = 1 << 18;
/// Columns that are computed together.
const COLUMNS: usize = 16;
/// Rows that are computed together: twelve sums, two weights and one number are 15 registers.
const ROWS: usize = 6;

type Columns = [f32; COLUMNS];

/// Rewrites the main graph.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(super) fn fuse(onnx: &Onnx, model: &mut ModelProto, fused: &mut Fused) {
    #[cfg(target_arch = "x86_64")]
    if let Some(graph) = &mut model.graph
        && x86::is_here()
    {
        let index = Index::of(onnx, graph);
        let mut absorbed = BTreeSet::new();
        let mut found = Vec::new();
        // From the end: a layer's Relu comes before its product.
        for (at, node) in graph.node.iter().enumerate().rev() {
            let is_free = node.output.len() == 1 && !absorbed.contains(&*node.output[0]);
            if let Some(layer) = is_free.then(|| find(&index, node, &mut absorbed)).flatten() {
                found.push((at, layer));
            }
        }
        for (at, (input, dense)) in found {
            fused.replace(&mut graph.node[at], input, inference_op(dense));
        }
    }
}

/// The layer that ends in `node`, and its input. Adds what else it consists of to `absorbed`.
fn find<'a>(
    index: &Index<'a>,
    node: &'a NodeProto,
    absorbed: &mut BTreeSet<&'a str>,
) -> Option<(String, Dense)> {
    let mut inner = Vec::new();
    let mut at = node;
    let has_relu = is(node, "Relu");
    if has_relu {
        at = index.only_for(node.input.first()?)?;
        inner.push(at);
    }
    let mut added = None;
    if is(at, "Add") {
        let [a, b] = &at.input[..] else { return None };
        let (product, bias) = match index.constant(b) {
            Some(bias) => (a, bias),
            None => (b, index.constant(a)?),
        };
        at = index.only_for(product)?;
        inner.push(at);
        added = Some(bias);
        if !is(at, "MatMul") {
            return None;
        }
    }
    let axis = dense_axis(at)?;
    let weights = index.constant(at.input.get(1)?)?;
    let &[rows, columns] = weights.shape() else {
        return None;
    };
    let (k, n) = if axis == 1 {
        (rows, columns)
    } else {
        (columns, rows)
    };
    if k * n == 0 || k * n > WEIGHTS_MAX {
        return None;
    }
    if let Some(name) = at.input.get(2).filter(|name| !name.is_empty()) {
        added = Some(index.constant(name)?);
    }
    let rank_min = added.as_ref().map_or(0, Tensor::rank);
    let bias = match added {
        None => vec![0.0; n],
        // A row, whatever axes of length one come before it: only it keeps the product's shape.
        Some(bias) if bias.len() == n && bias.rank() <= 2 && bias.shape().last() == Some(&n) => {
            floats(&bias)?
        }
        Some(_) => return None,
    };
    let values = floats(&weights)?;
    let weight = |k_at: usize, n_at: usize| {
        values[if axis == 1 {
            k_at * n + n_at
        } else {
            n_at * k + k_at
        }]
    };
    let least = if has_relu { 0.0 } else { f32::NEG_INFINITY };
    absorbed.extend(inner.iter().map(|node| &*node.output[0]));
    Some((
        at.input[0].clone(),
        Dense::new((k, n), weight, bias, least, rank_min),
    ))
}

/// `max(x · weights + bias, least)` along the last axis.
#[derive(Debug)]
struct Dense {
    k: usize,
    n: usize,
    /// By blocks of columns, then along `k`; missing columns are zero.
    blocks: Vec<Vec<Columns>>,
    bias: Vec<Columns>,
    least: f32,
    /// Of the bias; the output has no fewer axes.
    rank_min: usize,
}

impl Dense {
    fn new(
        (k, n): (usize, usize),
        weight: impl Fn(usize, usize) -> f32,
        bias: Vec<f32>,
        least: f32,
        rank_min: usize,
    ) -> Self {
        let pack = |block: usize, value: &dyn Fn(usize) -> f32| -> Columns {
            std::array::from_fn(|i| {
                Some(block * COLUMNS + i)
                    .filter(|at| *at < n)
                    .map_or(0.0, value)
            })
        };
        let blocks = 0..n.div_ceil(COLUMNS);
        Self {
            k,
            n,
            bias: blocks
                .clone()
                .map(|block| pack(block, &|n| bias[n]))
                .collect(),
            blocks: blocks
                .map(|block| (0..k).map(|k| pack(block, &|n| weight(k, n))).collect())
                .collect(),
            least,
            rank_min,
        }
    }

    fn multiply(&self, input: &[f32], output: &mut [f32]) {
        let rows: Vec<&[f32]> = input.chunks_exact(self.k).collect();
        for (block, (weights, bias)) in self.blocks.iter().zip(&self.bias).enumerate() {
            let width = COLUMNS.min(self.n - block * COLUMNS);
            for (at, rows) in rows.chunks(ROWS).enumerate() {
                let mut sums = [*bias; ROWS];
                tile(rows, weights, &mut sums);
                for (i, sums) in sums[..rows.len()].iter().enumerate() {
                    let first = (at * ROWS + i) * self.n + block * COLUMNS;
                    for (to, sum) in output[first..][..width].iter_mut().zip(sums) {
                        // As Relu: not a number stays so.
                        *to = if *sum < self.least { self.least } else { *sum };
                    }
                }
            }
        }
    }
}

impl Compute for Dense {
    fn name(&self) -> &'static str {
        "Dense"
    }

    fn input_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        let [outer @ .., last] = input else {
            bail!("a dense layer of a single number");
        };
        ensure!(
            *last == TDim::from(self.k),
            "{last} columns for {} weights",
            self.k
        );
        let missing = self.rank_min.saturating_sub(input.len());
        let ones = std::iter::repeat_n(TDim::from(1), missing);
        Ok(ones
            .chain(outer.iter().cloned())
            .chain([self.n.into()])
            .collect())
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        let plain = input.try_as_plain_ram()?;
        let mut output = output.try_as_plain_ram_mut()?;
        self.multiply(plain.as_slice::<f32>()?, output.as_slice_mut::<f32>()?);
        Ok(())
    }
}

/// Adds the products of up to [`ROWS`] rows and a block of columns to `sums`.
fn tile(rows: &[&[f32]], weights: &[Columns], sums: &mut [Columns; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    match *rows {
        [a, b, c, d, e, f] => x86::tile([a, b, c, d, e, f], weights, sums),
        [a, b, c, d, e] => x86::tile([a, b, c, d, e], weights, sums),
        [a, b, c, d] => x86::tile([a, b, c, d], weights, sums),
        [a, b, c] => x86::tile([a, b, c], weights, sums),
        [a, b] => x86::tile([a, b], weights, sums),
        _ => rows.iter().for_each(|row| x86::tile([*row], weights, sums)),
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, weights, sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    use super::{COLUMNS, Columns, ROWS};

    const HALF: usize = COLUMNS / 2;

    pub(super) fn is_here() -> bool {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }

    #[allow(unsafe_code)]
    pub(super) fn tile<const R: usize>(
        rows: [&[f32]; R],
        weights: &[Columns],
        sums: &mut [Columns; ROWS],
    ) {
        assert!(R <= ROWS && rows.iter().all(|row| row.len() == weights.len()));
        // SAFETY: layers are only made ours where the processor has both.
        unsafe { fma(rows, weights, sums) }
    }

    #[target_feature(enable = "avx2,fma")]
    #[allow(unsafe_code)]
    fn fma<const R: usize>(rows: [&[f32]; R], weights: &[Columns], sums: &mut [Columns; ROWS]) {
        let rows = rows.map(|row| &row[..weights.len()]);
        let mut left = [_mm256_setzero_ps(); R];
        let mut right = [_mm256_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: both halves of the sums are eight numbers.
            unsafe {
                left[r] = _mm256_loadu_ps(sums[r][..HALF].as_ptr());
                right[r] = _mm256_loadu_ps(sums[r][HALF..].as_ptr());
            }
        }
        for (i, columns) in weights.iter().enumerate() {
            // SAFETY: both halves of the columns are eight numbers.
            let (first, second) = unsafe {
                let (first, second) = columns.split_at(HALF);
                (
                    _mm256_loadu_ps(first.as_ptr()),
                    _mm256_loadu_ps(second.as_ptr()),
                )
            };
            for r in 0..R {
                let x = _mm256_set1_ps(rows[r][i]);
                left[r] = _mm256_fmadd_ps(x, first, left[r]);
                right[r] = _mm256_fmadd_ps(x, second, right[r]);
            }
        }
        for r in 0..R {
            let (low, high) = sums[r].split_at_mut(HALF);
            // SAFETY: both halves of the sums are eight numbers.
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), left[r]);
                _mm256_storeu_ps(high.as_mut_ptr(), right[r]);
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn layers_are_what_they_should_be(
            k in 1usize..40,
            n in 1usize..40,
            m in 0usize..15,
            numbers in prop::collection::vec(-2.0f32..2.0, 2 * 40 * 40),
        ) {
            if !x86::is_here() {
                return Ok(());
            }
            let (weights, input) = numbers.split_at(1600);
            let bias: Vec<f32> = (0..n).map(|n| n as f32).collect();
            let dense = Dense::new((k, n), |k, at| weights[k * n + at], bias, 0.0, 1);
            let mut output = vec![f32::NAN; m * n];
            dense.multiply(&input[..m * k], &mut output);
            for (at, got) in output.iter().enumerate() {
                let (m, n_at) = (at / n, at % n);
                let products = (0..k).map(|k_at| input[m * k + k_at] * weights[k_at * n + n_at]);
                let expected = (products.sum::<f32>() + n_at as f32).max(0.0);
                prop_assert!((got - expected).abs() < 1e-3, "{got} for {expected}");
            }
        }
    }
}
