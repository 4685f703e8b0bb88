//! QDQ int8 models in integers: what stands between a `DequantizeLinear` and a `QuantizeLinear`
//! is computed on the quantised numbers themselves, as onnxruntime does on x86 with AVX2.
//!
//! That differs from what ONNX defines (dequantise, compute, quantise) in two ways, both of which
//! onnxruntime has too: large pairs of products saturate ([`kernel`]), and softmax gives one step
//! less where its scale is 1/255 ([`softmax`]). In return a model gives the numbers that its maker
//! saw, on every node the same ones, several times faster than in floats. See
//! `docs/decisions/0014-int8-fixtures.md`.
//!
//! Only what is recognised is replaced; everything else stays as the model says.

mod fuse;
mod kernel;
mod linear;
mod quantize;
mod softmax;

pub(super) use fuse::fuse;
