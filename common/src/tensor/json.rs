//! Tensors in JSON, for the API.
//!
//! Written as `{"dtype": "f32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}`. Read in three forms:
//! that one; the same with `data` flat and `shape` given; or just the nested arrays, for which the
//! caller says the dtype (a model knows the dtype of its input). With nested data the shape is
//! seen from the nesting and `shape` may be left out; ragged nesting is refused.
//!
//! JSON has no NaN and no infinities: they are the strings `"NaN"`, `"Infinity"`, `"-Infinity"`,
//! both ways. Integers are exact over the whole range of `i64` and `u64` (a JavaScript client must
//! mind 2^53) and refused when they do not fit the dtype; a fraction is refused for an integer
//! dtype. Numbers too large for a float dtype are refused, not rounded to infinity.

use half::f16;
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeSeq, SerializeStruct},
};
use serde_json::Value;

use super::{DType, Error, RANK_MAX, Tensor, data::bytes_needed, short};

/// A tensor to be written as JSON: `serde_json::to_vec(&Json(&tensor))`.
#[derive(Debug, Clone, Copy)]
pub struct Json<'a>(pub &'a Tensor);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tensor = self.0;
        let level = Level {
            dtype: tensor.dtype(),
            shape: tensor.shape(),
            data: tensor.data(),
        };
        let mut object = serializer.serialize_struct("Tensor", 3)?;
        object.serialize_field("dtype", &tensor.dtype())?;
        object.serialize_field("shape", tensor.shape())?;
        object.serialize_field("data", &level)?;
        object.end()
    }
}

/// One level of nesting: the elements below a prefix of indices.
struct Level<'a> {
    dtype: DType,
    shape: &'a [u64],
    data: &'a [u8],
}

impl Serialize for Level<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((&dim, shape)) = self.shape.split_first() else {
            return write_element(self.dtype, self.data, serializer);
        };
        let dim = usize::try_from(dim).map_err(S::Error::custom)?;
        let stride = self.data.len() / dim.max(1);
        let mut seq = serializer.serialize_seq(Some(dim))?;
        for i in 0..dim {
            let data = &self.data[i * stride..(i + 1) * stride];
            seq.serialize_element(&Level {
                dtype: self.dtype,
                shape,
                data,
            })?;
        }
        seq.end()
    }
}

fn write_float<S: Serializer>(value: f64, single: bool, out: S) -> Result<S::Ok, S::Error> {
    if value.is_nan() {
        out.serialize_str("NaN")
    } else if value.is_infinite() {
        out.serialize_str(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else if single {
        // Exact: it came from an f32; written in its shortest form.
        #[allow(clippy::cast_possible_truncation)]
        out.serialize_f32(value as f32)
    } else {
        out.serialize_f64(value)
    }
}

fn write_element<S: Serializer>(dtype: DType, data: &[u8], out: S) -> Result<S::Ok, S::Error> {
    macro_rules! number {
        ($type:ty) => {
            <$type>::from_le_bytes(data.try_into().map_err(S::Error::custom)?)
        };
    }
    match dtype {
        DType::Bool => out.serialize_bool(data == [1]),
        DType::U8 => out.serialize_u8(number!(u8)),
        DType::U16 => out.serialize_u16(number!(u16)),
        DType::U32 => out.serialize_u32(number!(u32)),
        DType::U64 => out.serialize_u64(number!(u64)),
        DType::I8 => out.serialize_i8(number!(i8)),
        DType::I16 => out.serialize_i16(number!(i16)),
        DType::I32 => out.serialize_i32(number!(i32)),
        DType::I64 => out.serialize_i64(number!(i64)),
        DType::F16 => write_float(number!(f16).to_f64(), true, out),
        DType::F32 => write_float(f64::from(number!(f32)), true, out),
        DType::F64 => write_float(number!(f64), false, out),
    }
}

/// Reads a tensor from JSON. `dtype` is what the caller expects: used when the document does not
/// say (without both, `f32`), and never converted to from a document that says otherwise.
///
/// # Errors
/// [`Error::Json`] with the place, or as [`Tensor::new`].
pub fn from_json(value: &Value, dtype: Option<DType>) -> Result<Tensor, Error> {
    let Value::Object(object) = value else {
        return read_nested(value, dtype.unwrap_or(DType::F32), "");
    };
    if let Some(key) = object
        .keys()
        .find(|k| !["dtype", "shape", "data"].contains(&k.as_str()))
    {
        return Err(bad(&short(key), "unknown field: use dtype, shape and data"));
    }
    let dtype = match object.get("dtype") {
        None => dtype.unwrap_or(DType::F32),
        Some(Value::String(text)) => text.parse()?,
        Some(_) => return Err(bad("dtype", "must be a string")),
    };
    let data = object
        .get("data")
        .ok_or_else(|| bad("data", "is missing"))?;
    let Some(shape) = object.get("shape") else {
        return read_nested(data, dtype, "data");
    };
    let shape = read_shape(shape)?;
    let is_flat = data
        .as_array()
        .is_some_and(|a| a.iter().all(|v| !v.is_array()));
    if is_flat && shape.len() != 1 {
        return read_flat(data, dtype, shape);
    }
    let tensor = read_nested(data, dtype, "data")?;
    // The nesting of an empty array does not show the dimensions behind the empty one.
    if tensor.shape() != shape && (tensor.elements() > 0 || bytes_needed(dtype, &shape)? > 0) {
        return Err(bad(
            "shape",
            format!("says {shape:?}, but data has {:?}", tensor.shape()),
        ));
    }
    Tensor::new(dtype, shape, tensor.data().clone())
}

fn bad(at: &str, reason: impl Into<String>) -> Error {
    let at = if at.is_empty() { "the top" } else { at };
    Error::Json {
        at: at.into(),
        reason: reason.into(),
    }
}

fn read_shape(value: &Value) -> Result<Vec<u64>, Error> {
    let dims = value
        .as_array()
        .ok_or_else(|| bad("shape", "must be an array of lengths"))?;
    if dims.len() > RANK_MAX {
        return Err(Error::Rank { rank: dims.len() });
    }
    let dim = |v: &Value| {
        v.as_u64()
            .ok_or_else(|| bad("shape", "must be an array of lengths"))
    };
    dims.iter().map(dim).collect()
}

fn read_flat(data: &Value, dtype: DType, shape: Vec<u64>) -> Result<Tensor, Error> {
    let expected = bytes_needed(dtype, &shape)? / dtype.bytes();
    let items = data.as_array().map_or(&[][..], Vec::as_slice);
    if items.len() as u64 != expected {
        let reason = format!(
            "has {} elements, shape {shape:?} needs {expected}",
            items.len()
        );
        return Err(bad("data", reason));
    }
    let mut out = Vec::new();
    for (i, item) in items.iter().enumerate() {
        read_element(item, dtype, &mut out).map_err(|reason| bad(&format!("data[{i}]"), reason))?;
    }
    Tensor::new(dtype, shape, out.into())
}

fn read_nested(value: &Value, dtype: DType, root: &str) -> Result<Tensor, Error> {
    let mut shape = Vec::new();
    let mut inner = value;
    while let Value::Array(items) = inner {
        if shape.len() == RANK_MAX {
            return Err(Error::Rank { rank: RANK_MAX + 1 });
        }
        shape.push(items.len() as u64);
        let Some(first) = items.first() else { break };
        inner = first;
    }
    let bytes = bytes_needed(dtype, &shape)?;
    let mut reader = Nested {
        dtype,
        path: Vec::new(),
        out: Vec::new(),
    };
    reader.out.reserve(usize::try_from(bytes).unwrap_or(0));
    reader.read(value, &shape).map_err(|reason| {
        let path: String = reader.path.iter().map(|i| format!("[{i}]")).collect();
        bad(&format!("{root}{path}"), reason)
    })?;
    Tensor::new(dtype, shape, reader.out.into())
}

struct Nested {
    dtype: DType,
    /// Where we are; on error, where it happened.
    path: Vec<usize>,
    out: Vec<u8>,
}

impl Nested {
    fn read(&mut self, value: &Value, shape: &[u64]) -> Result<(), String> {
        let Some((&dim, inner)) = shape.split_first() else {
            return read_element(value, self.dtype, &mut self.out);
        };
        let items = value.as_array().ok_or_else(|| {
            format!("expected an array of {dim}, as its neighbours are: all rows are alike")
        })?;
        if items.len() as u64 != dim {
            return Err(format!(
                "has {} elements, its neighbours have {dim}",
                items.len()
            ));
        }
        for (i, item) in items.iter().enumerate() {
            self.path.push(i);
            self.read(item, inner)?;
            self.path.pop();
        }
        Ok(())
    }
}

fn read_float(value: &Value) -> Result<f64, String> {
    match value {
        Value::Number(n) => n.as_f64().ok_or_else(|| "is out of range".into()),
        Value::String(text) => match text.as_str() {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err("must be a number, \"NaN\", \"Infinity\" or \"-Infinity\"".into()),
        },
        Value::Array(_) => Err("is an array where its neighbours are numbers".into()),
        _ => Err("must be a number".into()),
    }
}

fn read_element(value: &Value, dtype: DType, out: &mut Vec<u8>) -> Result<(), String> {
    let unfit = || format!("must be an integer that fits {dtype}");
    macro_rules! integer {
        ($type:ty, $get:ident) => {{
            let n = value
                .$get()
                .and_then(|n| <$type>::try_from(n).ok())
                .ok_or_else(unfit)?;
            out.extend_from_slice(&n.to_le_bytes());
        }};
    }
    macro_rules! float {
        ($narrow:expr) => {{
            let wide = read_float(value)?;
            let narrow = $narrow(wide);
            if wide.is_finite() && !narrow.is_finite() {
                return Err(format!("is too large for {dtype}"));
            }
            out.extend_from_slice(&narrow.to_le_bytes());
        }};
    }
    match dtype {
        DType::Bool => {
            let b = value
                .as_bool()
                .ok_or_else(|| String::from("must be true or false"))?;
            out.push(u8::from(b));
        }
        DType::U8 => integer!(u8, as_u64),
        DType::U16 => integer!(u16, as_u64),
        DType::U32 => integer!(u32, as_u64),
        DType::U64 => integer!(u64, as_u64),
        DType::I8 => integer!(i8, as_i64),
        DType::I16 => integer!(i16, as_i64),
        DType::I32 => integer!(i32, as_i64),
        DType::I64 => integer!(i64, as_i64),
        DType::F16 => float!(f16::from_f64),
        #[allow(clippy::cast_possible_truncation)]
        DType::F32 => float!(|wide: f64| wide as f32),
        DType::F64 => float!(|wide: f64| wide),
    }
    Ok(())
}
