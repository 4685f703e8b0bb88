//! Tensors from `.npy` files and JSON.

use bytes::Bytes;
use hop3_common::tensor::{
    BYTES_MAX, Bindings, DType, Json, Tensor, TensorSpec, from_json, from_npy, to_npy,
};

use crate::input::Input;

/// A tensor in a file or in JSON: what is read is written and read again alike, in both forms.
pub fn tensors(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = input.u8();
    let tensor = match kind & 1 {
        0 => from_npy(&Bytes::copy_from_slice(input.0)).ok(),
        _ => {
            let dtype = DType::ALL[usize::from(kind >> 1) % DType::ALL.len()];
            let value = serde_json::from_slice(input.0).ok();
            value.and_then(|value| from_json(&value, Some(dtype)).ok())
        }
    };
    let Some(tensor) = tensor else { return false };
    assert!(tensor.data().len() as u64 <= BYTES_MAX);
    assert_eq!(
        tensor.data().len() as u64,
        tensor.elements() * tensor.dtype().bytes()
    );
    assert_eq!(from_npy(&to_npy(&tensor).into()).as_ref(), Ok(&tensor));
    let written = serde_json::to_vec(&Json(&tensor)).unwrap();
    let again = from_json(&serde_json::from_slice(&written).unwrap(), None).unwrap();
    assert_eq!(
        (again.dtype(), again.shape()),
        (tensor.dtype(), tensor.shape())
    );
    // The many forms of NaN become one; everything else stays as it is.
    if !has_nan(&tensor) {
        assert_eq!(again, tensor);
    }
    let spec = TensorSpec::new("X", tensor.dtype(), dims(&tensor)).unwrap();
    spec.check(&tensor, &mut Bindings::default()).unwrap();
    true
}

fn dims(tensor: &Tensor) -> Vec<hop3_common::tensor::Dim> {
    let dims = tensor.shape().iter();
    dims.map(|dim| hop3_common::tensor::Dim::Fixed(*dim))
        .collect()
}

fn has_nan(tensor: &Tensor) -> bool {
    let width = tensor.dtype().bytes() as usize;
    // The exponent's bits, all set.
    let high = |bytes: &[u8]| u16::from_be_bytes([bytes[width - 1], bytes[width - 2]]);
    let mask = match tensor.dtype() {
        DType::F16 => 0x7c00,
        DType::F32 => 0x7f80,
        DType::F64 => 0x7ff0,
        _ => return false,
    };
    tensor
        .data()
        .chunks_exact(width)
        .any(|element| high(element) & mask == mask)
}

/// Seeds of [`tensors`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let floats = Tensor::from_f32(vec![2, 2], &[1.0, -0.0, 1e-40, f32::INFINITY]).unwrap();
    let numbers = Tensor::from_i64(vec![3], &[i64::MIN, 0, i64::MAX]).unwrap();
    let npy = |tensor: &Tensor| [vec![0], to_npy(tensor)].concat();
    let mut swapped = npy(&numbers);
    let at = swapped.windows(3).position(|of| of == b"<i8");
    swapped[at.unwrap()] = b'>';
    let json = |kind: u8, text: &str| [&[kind][..], text.as_bytes()].concat();
    let f32_kind = kind_of(DType::F32);
    vec![
        ("ok-npy-f32".into(), npy(&floats)),
        ("ok-npy-i64".into(), npy(&numbers)),
        ("ok-npy-big-endian".into(), swapped),
        (
            "ok-nested".into(),
            json(f32_kind, r#"[[1, 2.5], ["NaN", "-Infinity"]]"#),
        ),
        (
            "ok-flat".into(),
            json(
                f32_kind,
                r#"{"dtype":"u8","shape":[2,2],"data":[1,2,3,255]}"#,
            ),
        ),
        (
            "ok-empty".into(),
            json(f32_kind, r#"{"dtype":"bool","shape":[0,4],"data":[]}"#),
        ),
        (
            "ok-i64".into(),
            json(kind_of(DType::I64), "[9223372036854775807]"),
        ),
        (
            "ok-f16".into(),
            json(kind_of(DType::F16), "[65504, 6e-8, 0.1]"),
        ),
        (
            "bad-huge-shape".into(),
            json(f32_kind, r#"{"shape":[18446744073709551615,0],"data":[]}"#),
        ),
        ("bad-ragged".into(), json(f32_kind, "[[1],[2,3]]")),
        ("bad-cut".into(), npy(&floats)[..90].to_vec()),
    ]
}

fn kind_of(dtype: DType) -> u8 {
    let at = DType::ALL.iter().position(|of| *of == dtype);
    (at.unwrap_or(0) as u8) << 1 | 1
}
