//! What a model expects and gives: name, dtype, and a shape some of whose dimensions are free.
//!
//! Text form: `name:dtype[dim,…]`, with `[]` for a scalar. A dimension is a number or a name; all
//! dimensions of one name must have the same length within a request. `_` is free without being
//! tied to any other.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{PartialSchema, ToSchema};

use super::{
    DIM_NAME_BYTES_MAX, DType, Error, NAME_BYTES_MAX, RANK_MAX, Tensor, shape_text, short,
};

/// Lengths of the free dimensions of one request, by name.
pub type Bindings = BTreeMap<String, u64>;

/// One dimension of a described shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// Always this long.
    Fixed(u64),
    /// As long as the request says; the same name means the same length, `_` ties nothing.
    Free(String),
}

impl Dim {
    /// The name of a free dimension that is tied to no other.
    pub const ANY: &'static str = "_";

    /// The free dimension that is tied to no other.
    #[must_use]
    pub fn any() -> Self {
        Dim::Free(Dim::ANY.into())
    }

    /// A free dimension, if the text is a name: a letter or `_`, then letters, digits, `_`.
    #[must_use]
    pub fn free(name: &str) -> Option<Self> {
        let first = name.chars().next()?;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let ok =
            !first.is_ascii_digit() && name.chars().all(word) && name.len() <= DIM_NAME_BYTES_MAX;
        ok.then(|| Dim::Free(name.into()))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Free(name) => f.write_str(name),
        }
    }
}

/// Description of one input or output of a model. Serialised as its text form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorSpec {
    name: String,
    dtype: DType,
    shape: Vec<Dim>,
}

/// A tensor that does not fit its description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("input `{input}` must be {expected}, got {got}")]
pub struct ShapeMismatch {
    /// Name of the input.
    pub input: String,
    /// What the model takes, as text.
    pub expected: String,
    /// What came, as text.
    pub got: String,
}

impl TensorSpec {
    /// A description.
    ///
    /// # Errors
    /// If the name or a dimension's name is unusable, or the rank too high.
    pub fn new(name: impl Into<String>, dtype: DType, shape: Vec<Dim>) -> Result<Self, Error> {
        let name = name.into();
        if !is_tensor_name(&name) {
            return Err(Error::Name);
        }
        if shape.len() > RANK_MAX {
            return Err(Error::Rank { rank: shape.len() });
        }
        for dim in &shape {
            if let Dim::Free(text) = dim
                && Dim::free(text).is_none()
            {
                return Err(bad(text, DIM_RULE));
            }
        }
        Ok(Self { name, dtype, shape })
    }

    /// Name of the input or output.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    #[must_use]
    pub fn shape(&self) -> &[Dim] {
        &self.shape
    }

    /// Names of the tied free dimensions, in order of appearance (with repeats).
    pub fn free(&self) -> impl Iterator<Item = &str> {
        self.shape.iter().filter_map(|dim| match dim {
            Dim::Free(name) if name != Dim::ANY => Some(name.as_str()),
            _ => None,
        })
    }

    /// Checks a tensor and adds the lengths of its free dimensions to `bindings` (unchanged on
    /// error). A free dimension is at least 1 long.
    ///
    /// # Errors
    /// If dtype, rank or a dimension differ, or a free dimension is already bound otherwise.
    pub fn check(&self, tensor: &Tensor, bindings: &mut Bindings) -> Result<(), ShapeMismatch> {
        let shape_fits = tensor.shape().len() == self.shape.len();
        let mut bound = bindings.clone();
        let fits = shape_fits
            && tensor.dtype() == self.dtype
            && self
                .shape
                .iter()
                .zip(tensor.shape())
                .all(|(dim, &got)| match dim {
                    Dim::Fixed(expected) => got == *expected,
                    Dim::Free(name) if name == Dim::ANY => got > 0,
                    Dim::Free(name) => got > 0 && *bound.entry(name.clone()).or_insert(got) == got,
                });
        if fits {
            *bindings = bound;
            return Ok(());
        }
        let tied: Vec<String> = self
            .free()
            .filter_map(|name| bindings.get(name).map(|n| format!("{name} = {n}")))
            .collect();
        let mut expected = format!("{}{}", self.dtype, self.shape_display());
        if !tied.is_empty() {
            expected = format!("{expected} with {}", tied.join(", "));
        }
        let got = format!("{}{}", tensor.dtype(), shape_text(tensor.shape()));
        Err(ShapeMismatch {
            input: self.name.clone(),
            expected,
            got,
        })
    }

    fn shape_display(&self) -> String {
        let dims: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        format!("[{}]", dims.join(","))
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.name, self.dtype, self.shape_display())
    }
}

fn is_tensor_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

const DIM_RULE: &str = "a dimension is a number, or a name of letters, digits and `_`";

fn bad(text: &str, reason: impl Into<String>) -> Error {
    Error::Spec {
        text: short(text),
        reason: reason.into(),
    }
}

impl FromStr for TensorSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let inner = text
            .strip_suffix(']')
            .ok_or_else(|| bad(text, "end it with the shape in brackets, [] for a scalar"))?;
        // ONNX names may hold `:` and `[`, dtypes and dimensions cannot: cut from the right.
        let (head, dims) = inner
            .rsplit_once('[')
            .ok_or_else(|| bad(text, "the shape has no opening bracket"))?;
        let (name, dtype) = head
            .rsplit_once(':')
            .ok_or_else(|| bad(text, "write a colon between name and dtype"))?;
        let dtype: DType = dtype
            .trim()
            .parse()
            .map_err(|e: Error| bad(text, e.to_string()))?;
        if !is_tensor_name(name) {
            return Err(bad(text, Error::Name.to_string()));
        }
        if dims.trim().is_empty() {
            return TensorSpec::new(name, dtype, Vec::new());
        }
        if dims.split(',').count() > RANK_MAX {
            return Err(bad(text, format!("at most {RANK_MAX} dimensions")));
        }
        let shape = dims
            .split(',')
            .map(|dim| parse_dim(dim.trim()).ok_or_else(|| bad(text, DIM_RULE)))
            .collect::<Result<Vec<Dim>, Error>>()?;
        TensorSpec::new(name, dtype, shape)
    }
}

fn parse_dim(text: &str) -> Option<Dim> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Dim::Fixed);
    }
    Dim::free(text)
}

impl Serialize for TensorSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for TensorSpec {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl ToSchema for TensorSpec {}

impl<'de> Deserialize<'de> for TensorSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
