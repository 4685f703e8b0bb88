//! Finds what can be computed in integers, in the ONNX graph before tract sees it.

use tract_onnx::{
    Onnx,
    pb::{ModelProto, NodeProto},
    tract_core::tract_data::internal::{DatumType, Tensor},
    tract_hir::infer::InferenceOp,
};

use super::{
    linear::{Linear, Patches, Rows},
    quantize::{Quantisation, Quantize},
    softmax::Softmax,
};
use crate::onnx::{
    graph::{Fused, Index, attribute, dense_axis, floats, int, is, is_standard},
    unary::inference_op,
};

/// Operators that only move 8-bit numbers, or choose among them.
const MOVES: &[&str] = &[
    "MaxPool",
    "Flatten",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
];
/// Since this opset, softmax goes along one axis.
const SOFTMAX_OPSET: i64 = 13;
/// Largest kernel, stride, padding or dilation that is taken: sums of them cannot overflow.
const GEOMETRY_MAX: i64 = 1 << 16;
/// How far a bias' scale may be from the product of the others, in parts: it is assumed to be it.
const BIAS_SCALE_ERROR_MAX: f32 = 1e-5;

/// Rewrites the main graph.
pub(in crate::onnx) fn fuse(onnx: &Onnx, model: &mut ModelProto, fused: &mut Fused) {
    let opset = model.opset_import.iter().find(|o| is_standard(&o.domain));
    let opset = opset.map_or(0, |opset| opset.version);
    let Some(graph) = &mut model.graph else {
        return;
    };
    let index = Index::of(onnx, graph);
    let finder = Finder { index, opset };
    let found: Vec<(usize, Found)> = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, node)| is(node, "QuantizeLinear") && node.output.len() == 1)
        .filter_map(|(at, node)| Some((at, finder.find(node)?)))
        .collect();
    for (at, found) in found {
        let node = &mut graph.node[at];
        match found {
            Found::Move(replacement) => *node = replacement,
            Found::Op(input, op) => fused.replace(node, input, op),
        }
    }
}

/// What takes a `QuantizeLinear`'s place.
enum Found {
    Move(NodeProto),
    /// The name of the input, and the operator.
    Op(String, Box<dyn InferenceOp>),
}

struct Finder<'a> {
    index: Index<'a>,
    opset: i64,
}

impl<'a> Finder<'a> {
    fn find(&self, node: &NodeProto) -> Option<Found> {
        let y = self.quantisation(node)?;
        let fused = self.index.only_for(node.input.first()?).and_then(|inner| {
            if is(inner, "Relu") && y.zero == y.min() {
                // Saturating at zero is what it does.
                let inner = self.index.only_for(inner.input.first()?)?;
                return self.linear(inner, y);
            }
            match &*inner.op_type {
                "Gemm" | "MatMul" | "Conv" => self.linear(inner, y),
                "Softmax" => self.softmax(inner, y),
                name if MOVES.contains(&name) => self.moved(inner, node, y),
                _ => None,
            }
        });
        fused.or_else(|| {
            let input = node.input.first()?;
            // Elsewhere it may be of another type; that is tract's.
            let is_float = self.index.is_float_input(input);
            is_float.then(|| Found::Op(input.clone(), inference_op(Quantize(y))))
        })
    }

    /// Of a `QuantizeLinear` or `DequantizeLinear` of 8-bit numbers with one scale.
    fn quantisation(&self, node: &NodeProto) -> Option<Quantisation> {
        if int(node, "block_size", 0)? != 0 || attribute(node, "output_dtype").is_some() {
            return None;
        }
        let scale = *floats(&self.index.constant(node.input.get(1)?)?)?.first()?;
        let is_one = self.index.constant(&node.input[1])?.len() == 1;
        let (zero, is_signed) = match node.input.get(2).filter(|name| !name.is_empty()) {
            None => (0, false),
            Some(name) => {
                let zero = self.index.constant(name)?;
                let is_signed = zero.datum_type() == DatumType::I8;
                let is_byte = is_signed || zero.datum_type() == DatumType::U8;
                let [byte] = *bytes(&zero)? else { return None };
                if !is_byte {
                    return None;
                }
                let signed = i32::from(byte.cast_signed());
                (if is_signed { signed } else { byte.into() }, is_signed)
            }
        };
        let is_usable = is_one && scale.is_normal() && scale > 0.0;
        is_usable.then_some(Quantisation {
            scale,
            zero,
            is_signed,
        })
    }

    /// The 8-bit tensor that `name` is the numbers of.
    fn dequantised(&self, name: &str) -> Option<(&'a str, Quantisation)> {
        let node = self.index.producers.get(name)?;
        let x = is(node, "DequantizeLinear").then(|| self.quantisation(node))??;
        Some((node.input.first()?, x))
    }

    fn moved(&self, inner: &NodeProto, node: &NodeProto, y: Quantisation) -> Option<Found> {
        let (input, x) = self.dequantised(inner.input.first()?)?;
        let mut replacement = inner.clone();
        replacement.input[0] = input.into();
        replacement.output.clone_from(&node.output);
        replacement.name.clone_from(&node.name);
        (x == y).then_some(Found::Move(replacement))
    }

    fn softmax(&self, inner: &NodeProto, y: Quantisation) -> Option<Found> {
        let (input, x) = self.dequantised(inner.input.first()?)?;
        let axis = int(inner, "axis", -1)?;
        let softmax = Softmax { x, y, axis };
        (self.opset >= SOFTMAX_OPSET).then(|| Found::Op(input.into(), inference_op(softmax)))
    }

    fn linear(&self, inner: &NodeProto, y: Quantisation) -> Option<Found> {
        let (input, x) = self.dequantised(inner.input.first()?)?;
        let weights = self.weights(inner.input.get(1)?)?;
        let dims: Vec<usize> = weights.values.shape().into();
        let values = bytes(&weights.values)?;
        let read = |at: usize| values[at].cast_signed();
        // `axis`: of the weights, that of the output's columns.
        let (rows, k, axis) = match &*inner.op_type {
            "Conv" => {
                let patches = patches(inner, &dims)?;
                let k = dims[1..].iter().product();
                (Rows::Patches(patches), k, 0)
            }
            "Gemm" | "MatMul" => {
                let axis = dense_axis(inner)?;
                let k = (dims.len() == 2).then(|| dims[1 - axis])?;
                (Rows::Plain { k }, k, axis)
            }
            _ => return None,
        };
        let n = dims[axis];
        let scales = weights.scales(axis, n)?;
        let bias = match inner.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => self.bias(name, n, |n| x.scale * scales[n])?,
            None => vec![0; n],
        };
        let weight = |k_at: usize, n_at: usize| match (&rows, axis) {
            // Ours: kernel row, kernel column, channel; the model's: channel first.
            (Rows::Patches(p), _) => {
                let area = p.kernel[0] * p.kernel[1];
                read(n_at * k + k_at % p.channels * area + k_at / p.channels)
            }
            (Rows::Plain { .. }, 0) => read(n_at * k + k_at),
            (Rows::Plain { .. }, _) => read(k_at * n + n_at),
        };
        if k == 0 || n == 0 || values.len() != k * n {
            return None;
        }
        let linear = Linear::new(
            rows.clone(),
            (k, n),
            weight,
            |n| scales[n],
            |n| bias[n],
            (x, y),
        );
        Some(Found::Op(input.into(), inference_op(linear)))
    }

    /// Constant signed 8-bit weights whose zero is zero.
    fn weights(&self, name: &str) -> Option<Scaled> {
        let scaled = self.scaled(name)?;
        (scaled.values.datum_type() == DatumType::I8).then_some(scaled)
    }

    /// The 32-bit bias of `n` columns; its scale must be `scale` of the column.
    fn bias(&self, name: &str, n: usize, scale: impl Fn(usize) -> f32) -> Option<Vec<i32>> {
        let bias = self.scaled(name)?;
        let is_row = bias.values.len() == n && bias.values.shape().last() == Some(&n);
        let axis = bias.values.rank().checked_sub(1)?;
        let scales = bias.scales(axis, n)?;
        let is_near = |n: usize| {
            let expected = scale(n);
            (scales[n] - expected).abs() <= expected * BIAS_SCALE_ERROR_MAX
        };
        if !is_row || !(0..n).all(is_near) {
            return None;
        }
        let plain = bias.values.try_as_plain_ram().ok()?;
        Some(plain.as_slice::<i32>().ok()?.to_vec())
    }

    /// A constant behind a `DequantizeLinear` whose zero is zero.
    fn scaled(&self, name: &str) -> Option<Scaled> {
        let node = self.index.producers.get(name)?;
        if !is(node, "DequantizeLinear") || int(node, "block_size", 0)? != 0 {
            return None;
        }
        if let Some(zero) = node.input.get(2).filter(|name| !name.is_empty()) {
            let zero = self.index.constant(zero)?;
            if bytes(&zero)?.iter().any(|byte| *byte != 0) {
                return None;
            }
        }
        Some(Scaled {
            values: self.index.constant(node.input.first()?)?,
            scales: floats(&self.index.constant(node.input.get(1)?)?)?,
            axis: int(node, "axis", 1)?,
        })
    }
}

/// A constant with a scale, or one for each index of an axis.
struct Scaled {
    values: Tensor,
    scales: Vec<f32>,
    axis: i64,
}

impl Scaled {
    /// A scale for each of the `n` indices of `axis`.
    fn scales(&self, axis: usize, n: usize) -> Option<Vec<f32>> {
        let rank = i64::try_from(self.values.rank()).ok()?;
        let own = if self.axis < 0 {
            self.axis + rank
        } else {
            self.axis
        };
        let scales = match self.scales[..] {
            [scale] => vec![scale; n],
            _ if self.scales.len() == n && own == i64::try_from(axis).ok()? => self.scales.clone(),
            _ => return None,
        };
        let are_usable = scales.iter().all(|scale| scale.is_normal() && *scale > 0.0);
        are_usable.then_some(scales)
    }
}

fn patches(node: &NodeProto, weights: &[usize]) -> Option<Patches> {
    let &[_, channels, rows, columns] = weights else {
        return None;
    };
    let pads_itself = attribute(node, "auto_pad").is_some_and(|a| a.s != b"NOTSET");
    if pads_itself || int(node, "group", 1)? != 1 || channels * rows * columns == 0 {
        return None;
    }
    let kernel = [rows, columns];
    if ints(node, "kernel_shape", kernel, 1)? != kernel {
        return None;
    }
    let pads = ints(node, "pads", [0; 4], 0)?;
    Some(Patches {
        channels,
        kernel,
        strides: ints(node, "strides", [1; 2], 1)?,
        dilations: ints(node, "dilations", [1; 2], 1)?,
        before: [pads[0], pads[1]],
        after: [pads[2], pads[3]],
    })
}

/// `N` integers from `least` to [`GEOMETRY_MAX`].
fn ints<const N: usize>(
    node: &NodeProto,
    name: &str,
    default: [usize; N],
    least: i64,
) -> Option<[usize; N]> {
    let Some(values) = node.get_attr_opt_slice::<i64>(name).ok()? else {
        return Some(default);
    };
    let is_good = |value: &i64| (least..=GEOMETRY_MAX).contains(value);
    let values: Vec<usize> = values
        .iter()
        .map(|value| is_good(value).then(|| usize::try_from(*value).ok())?)
        .collect::<Option<_>>()?;
    values.try_into().ok()
}

fn bytes(tensor: &Tensor) -> Option<&[u8]> {
    (tensor.len() > 0 && tensor.is_plain_ram()).then(|| tensor.as_bytes())
}
