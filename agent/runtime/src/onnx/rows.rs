//! Softmax and arg-max along short rows, in place of tract's: those need 0.2 µs per row for
//! preparations, which is most of their time at the end of a small classifier.

use tract_onnx::tract_core::{
    internal::ensure,
    model::TypedModel,
    ops::{
        TypedOp,
        nn::{Reduce, Reducer, Softmax, SoftmaxKind},
    },
    tract_data::{
        TractResult,
        internal::{DatumType, TDim, Tensor},
        prelude::TVec,
    },
};

use super::unary::{Compute, typed_op};

/// Longest row that is ours; tract's vectors win where there is something to compute.
const LENGTH_MAX: usize = 32;

/// Replaces what can be replaced in an optimised model of concrete shapes.
pub(super) fn speed_up(mut model: TypedModel) -> TypedModel {
    let faster: Vec<(usize, Box<dyn TypedOp>)> = model
        .nodes()
        .iter()
        .filter_map(|node| {
            let input = model.node_input_facts(node.id).ok()?;
            let [input] = input[..] else { return None };
            let [.., length] = *input.shape.as_concrete()? else {
                return None;
            };
            let last = [input.rank() - 1];
            let is_short = input.datum_type == DatumType::F32 && (1..=LENGTH_MAX).contains(&length);
            let softmax = node.op_as::<Softmax>().is_some_and(|softmax| {
                softmax.axes[..] == last
                    && softmax.kind == SoftmaxKind::Softmax
                    && softmax.quant_output_dt.is_none()
            });
            let arg_max = node.op_as::<Reduce>().is_some_and(|reduce| {
                reduce.axes[..] == last && reduce.reducer == Reducer::ArgMax(false)
            });
            match (is_short, softmax, arg_max) {
                (true, true, _) => Some((node.id, typed_op(ShortSoftmax { length }))),
                (true, _, true) => Some((node.id, typed_op(ShortArgMax { length }))),
                _ => None,
            }
        })
        .collect();
    for (id, op) in faster {
        model.node_mut(id).op = op;
    }
    model
}

/// Along the last axis, whose length is known.
#[derive(Debug)]
struct ShortSoftmax {
    length: usize,
}

impl Compute for ShortSoftmax {
    fn name(&self) -> &'static str {
        "ShortSoftmax"
    }

    fn input_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        Ok(input.into())
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        ensure!(input.shape().last() == Some(&self.length), "another length");
        let plain = input.try_as_plain_ram()?;
        let rows = plain.as_slice::<f32>()?.chunks_exact(self.length);
        let mut output = output.try_as_plain_ram_mut()?;
        for (from, to) in rows.zip(output.as_slice_mut::<f32>()?.chunks_exact_mut(self.length)) {
            let most = from.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (to, from) in to.iter_mut().zip(from) {
                *to = (from - most).exp();
                sum += *to;
            }
            to.iter_mut().for_each(|to| *to /= sum);
        }
        Ok(())
    }
}

/// The first index of the largest number along the last axis; that axis stays, of length one.
#[derive(Debug)]
struct ShortArgMax {
    length: usize,
}

impl Compute for ShortArgMax {
    fn name(&self) -> &'static str {
        "ShortArgMax"
    }

    fn input_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_type(&self) -> DatumType {
        DatumType::I64
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        let mut shape: TVec<TDim> = input.into();
        if let Some(last) = shape.last_mut() {
            *last = 1.into();
        }
        Ok(shape)
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        ensure!(input.shape().last() == Some(&self.length), "another length");
        let plain = input.try_as_plain_ram()?;
        let rows = plain.as_slice::<f32>()?.chunks_exact(self.length);
        let mut output = output.try_as_plain_ram_mut()?;
        for (row, to) in rows.zip(output.as_slice_mut::<i64>()?) {
            let mut best = (0, f32::MIN);
            for (i, x) in (0..).zip(row) {
                if *x > best.1 {
                    best = (i, *x);
                }
            }
            *to = best.0;
        }
        Ok(())
    }
}
