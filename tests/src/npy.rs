//! Just enough of `.npy` for tests: f32 in C order, through the product's own tensors.

use std::path::Path;

use bytes::Bytes;
use hop3_common::tensor::{Tensor, from_npy, to_npy};

/// The shape and values of an f32 file.
#[must_use]
pub fn read_f32(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensor =
        from_npy(&Bytes::from(bytes)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let values = tensor
        .to_f32()
        .unwrap_or_else(|| panic!("{} is not f32", path.display()));
    (tensor.shape().to_vec(), values)
}

/// Rows `from..to` of an f32 matrix as a new `.npy` file's bytes.
#[must_use]
pub fn slice_rows(path: &Path, from: usize, to: usize) -> Vec<u8> {
    let (shape, values) = read_f32(path);
    let width = shape.iter().skip(1).product::<u64>() as usize;
    let mut shape = shape;
    shape[0] = (to - from) as u64;
    let rows = Tensor::from_f32(shape, &values[from * width..to * width]);
    to_npy(&rows.unwrap_or_else(|error| panic!("{error}")))
}
