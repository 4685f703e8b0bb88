//! What can be said of an ONNX file before tract builds anything: is it one, are its operators
//! known, which dimensions are free, and does the manifest's description agree with it?
//!
//! Runs in the child only. The decoder (prost) bounds nesting to 100 levels.

use std::collections::BTreeSet;

use hop3_common::tensor::{DType, Dim, TensorSpec};
use tract_onnx::{
    Onnx,
    pb::{
        GraphProto, ModelProto, ValueInfoProto, tensor_proto::DataType,
        tensor_shape_proto::dimension, type_proto,
    },
    prelude::Framework,
};

use super::{ModelError, backend::TENSORS_MAX, error::reason};

/// Most operator names in an error.
const NAMES_MAX: usize = 20;
/// Newest ONNX file format ("IR version") that exists, with room: 2026 has 13.
const IR_VERSION_MAX: i64 = 32;

/// Everything here, on one file: what a model takes, if it passes. For trying the checks: it parses
/// what may be hostile, so the agent's own process must not call it.
///
/// # Errors
/// What is wrong with the model, or with its description.
pub fn inspect(model: &[u8], specs: &[TensorSpec]) -> Result<Vec<TensorSpec>, ModelError> {
    let onnx = tract_onnx::onnx();
    let proto = decode(&onnx, model)?;
    let graph = proto.graph.as_ref().ok_or_else(|| ModelError::Malformed {
        reason: "it has no graph".into(),
    })?;
    check_operators(&onnx, graph)?;
    resolve_inputs(graph, specs)
}

/// Decodes the file. What does not even begin like an ONNX model is `NotOnnx`; what does and then
/// breaks is `Malformed`.
pub(super) fn decode(onnx: &Onnx, bytes: &[u8]) -> Result<ModelProto, ModelError> {
    // Field 1 (`ir_version`) as varint: every exporter writes it first.
    let begins_like_onnx =
        matches!(bytes, [8, version, ..] if (1..=IR_VERSION_MAX as u8).contains(version));
    let not_onnx = |reason: &str| {
        Err(ModelError::NotOnnx {
            reason: reason.into(),
        })
    };
    if bytes.is_empty() {
        return not_onnx("it is empty");
    }
    let proto = match onnx.proto_model_for_read(&mut &*bytes) {
        Ok(proto) => proto,
        Err(e) if begins_like_onnx => {
            return Err(ModelError::Malformed {
                reason: reason(&format!("{e:#}")),
            });
        }
        Err(_) => return not_onnx("it is not a protobuf message that begins with an IR version"),
    };
    match &proto.graph {
        Some(_) if !(1..=IR_VERSION_MAX).contains(&proto.ir_version) => {
            not_onnx("it has no valid IR version")
        }
        Some(graph) if graph.node.is_empty() || graph.output.is_empty() => {
            Err(ModelError::Malformed {
                reason: "its graph has no nodes or no outputs".into(),
            })
        }
        Some(_) => Ok(proto),
        None if begins_like_onnx => Err(ModelError::Malformed {
            reason: "it has no graph".into(),
        }),
        None => not_onnx("it has no graph"),
    }
}

/// Refuses models with operators that the engine does not have, all of them named at once.
pub(super) fn check_operators(onnx: &Onnx, graph: &GraphProto) -> Result<(), ModelError> {
    let mut unknown = BTreeSet::new();
    collect_unknown(onnx, graph, &mut unknown);
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ModelError::UnsupportedOperator {
        names: unknown.into_iter().take(NAMES_MAX).collect(),
    })
}

fn collect_unknown(onnx: &Onnx, graph: &GraphProto, unknown: &mut BTreeSet<String>) {
    for node in &graph.node {
        if !onnx.op_register.0.contains_key(&node.op_type) {
            let name = match node.domain.as_str() {
                "" | "ai.onnx" => node.op_type.clone(),
                domain => format!("{domain}.{}", node.op_type),
            };
            unknown.insert(reason(&name));
        }
        for attribute in &node.attribute {
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                collect_unknown(onnx, inner, unknown);
            }
        }
    }
}

/// The inputs with every dimension settled: by the model, or by the manifest.
pub(super) fn resolve_inputs(
    graph: &GraphProto,
    specs: &[TensorSpec],
) -> Result<Vec<TensorSpec>, ModelError> {
    let initialised: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let declared = graph
        .input
        .iter()
        .filter(|input| !initialised.contains(input.name.as_str()))
        .map(Declared::read)
        .collect::<Result<Vec<_>, _>>()?;
    if declared.len() > TENSORS_MAX || graph.output.len() > TENSORS_MAX {
        let reason = format!("it has more than {TENSORS_MAX} inputs or outputs");
        return Err(ModelError::Unusable { reason });
    }
    for (i, spec) in specs.iter().enumerate() {
        if !declared.iter().any(|input| input.name == spec.name()) {
            let known = declared.iter().map(|input| input.name.clone()).collect();
            return Err(ModelError::UnknownInput {
                name: spec.name().into(),
                known,
            });
        }
        if let Some(first) = specs[..i].iter().find(|other| other.name() == spec.name()) {
            let (manifest, model) = (spec.to_string(), first.to_string());
            return Err(ModelError::Contradiction { manifest, model });
        }
    }
    declared
        .iter()
        .map(
            |input| match specs.iter().find(|spec| spec.name() == input.name) {
                Some(spec) => input.agree(spec),
                None => input.settled(),
            },
        )
        .collect()
}

/// An input as the model declares it.
struct Declared {
    name: String,
    dtype: DType,
    /// Absent if the model does not even say the rank.
    dims: Option<Vec<DeclaredDim>>,
}

enum DeclaredDim {
    Fixed(u64),
    Free(Option<String>),
}

impl Declared {
    fn read(input: &ValueInfoProto) -> Result<Self, ModelError> {
        let unsupported = |why: &str| ModelError::UnsupportedType {
            name: reason(&input.name),
            reason: why.into(),
        };
        let value = input.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(tensor)) = value else {
            return Err(unsupported("it is not a tensor"));
        };
        let dtype = DataType::try_from(tensor.elem_type)
            .ok()
            .and_then(dtype_of)
            .ok_or_else(|| unsupported(&format!("ONNX element type {}", tensor.elem_type)))?;
        let dims = tensor.shape.as_ref().map(|shape| {
            let read = |dim: &tract_onnx::pb::tensor_shape_proto::Dimension| match &dim.value {
                Some(dimension::Value::DimValue(n)) if *n >= 0 => {
                    DeclaredDim::Fixed(n.unsigned_abs())
                }
                Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                    DeclaredDim::Free(Some(reason(name)))
                }
                _ => DeclaredDim::Free(None),
            };
            shape.dim.iter().map(read).collect()
        });
        Ok(Self {
            name: input.name.clone(),
            dtype,
            dims,
        })
    }

    /// Without a description: every dimension must be fixed by the model.
    fn settled(&self) -> Result<TensorSpec, ModelError> {
        let free = |axis: usize, dim: Option<String>| ModelError::FreeDimension {
            input: self.name.clone(),
            axis: u32::try_from(axis).unwrap_or(u32::MAX),
            dim,
        };
        let dims = self.dims.as_ref().ok_or_else(|| free(0, None))?;
        let settle = |(axis, dim): (usize, &DeclaredDim)| match dim {
            DeclaredDim::Fixed(n) => Ok(Dim::Fixed(*n)),
            DeclaredDim::Free(name) => Err(free(axis, name.clone())),
        };
        let shape = dims
            .iter()
            .enumerate()
            .map(settle)
            .collect::<Result<_, _>>()?;
        TensorSpec::new(&self.name, self.dtype, shape).map_err(|e| ModelError::Unusable {
            reason: reason(&e.to_string()),
        })
    }

    /// With a description: it must not contradict the model.
    fn agree(&self, spec: &TensorSpec) -> Result<TensorSpec, ModelError> {
        let shape_agrees = self.dims.as_ref().is_none_or(|dims| {
            dims.len() == spec.shape().len()
                && dims.iter().zip(spec.shape()).all(|(dim, given)| match dim {
                    DeclaredDim::Fixed(n) => *given == Dim::Fixed(*n),
                    DeclaredDim::Free(_) => *given != Dim::Fixed(0),
                })
        });
        if shape_agrees && spec.dtype() == self.dtype {
            return Ok(spec.clone());
        }
        let dims = self.dims.as_ref().map_or_else(
            || "?".into(),
            |dims| {
                let text: Vec<String> = dims
                    .iter()
                    .map(|dim| match dim {
                        DeclaredDim::Fixed(n) => n.to_string(),
                        DeclaredDim::Free(Some(name)) => name.clone(),
                        DeclaredDim::Free(None) => "?".into(),
                    })
                    .collect();
                text.join(",")
            },
        );
        let model = reason(&format!("{}:{}[{dims}]", self.name, self.dtype));
        Err(ModelError::Contradiction {
            manifest: spec.to_string(),
            model,
        })
    }
}

fn dtype_of(ty: DataType) -> Option<DType> {
    Some(match ty {
        DataType::Bool => DType::Bool,
        DataType::Uint8 => DType::U8,
        DataType::Uint16 => DType::U16,
        DataType::Uint32 => DType::U32,
        DataType::Uint64 => DType::U64,
        DataType::Int8 => DType::I8,
        DataType::Int16 => DType::I16,
        DataType::Int32 => DType::I32,
        DataType::Int64 => DType::I64,
        DataType::Float16 => DType::F16,
        DataType::Float => DType::F32,
        DataType::Double => DType::F64,
        _ => return None,
    })
}
