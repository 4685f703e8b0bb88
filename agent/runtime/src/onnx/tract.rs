//! The tract backend: one optimised plan per combination of input shapes, a few kept.
//!
//! tract panics on some malformed graphs and asserts on failed allocations; the child's panic
//! hook ([`super::host`]) turns those into errors, so nothing is caught here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hop3_common::tensor::{BYTES_MAX, Bindings, DType, Dim, Tensor, TensorSpec};
use tract_onnx::{
    pb,
    tract_hir::internal::{
        self as tract, DatumType, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable,
        IntoTValue, TDim, TVec, ToDim, TypedModel,
    },
};

use super::{
    Backend, Facts, ModelError, Outcome, Session, admit, dequantize, error::reason, float,
    graph::Fused, int8, rows,
};

type Plan = Arc<tract::TypedRunnableModel>;

/// tract, with room for this many optimised plans per model.
#[derive(Debug, Clone, Copy)]
pub struct Tract {
    plans_max: usize,
}

impl Tract {
    /// Keeps up to `plans_max` optimised plans: requests with few different batch sizes then pay
    /// for optimisation once each.
    #[must_use]
    pub fn new(plans_max: usize) -> Self {
        Self {
            plans_max: plans_max.max(1),
        }
    }

    /// Makes tract find out about the processor (it reads files for that) before the jail closes,
    /// by running a small model of our own.
    ///
    /// # Errors
    /// If tract cannot run even that.
    pub(super) fn warm_up() -> Result<(), ModelError> {
        let model = warm_up_model();
        let parsed = tract_onnx::onnx().parse(&model, None).map_err(unusable)?;
        let plan = parsed
            .model
            .into_optimized()
            .and_then(|model| model.into_runnable())
            .map_err(unusable)?;
        let input = tract::Tensor::zero::<f32>(&[8, 8]).map_err(unusable)?;
        plan.run(std::iter::once(input.into_tvalue()).collect())
            .map_err(unusable)?;
        let _ = tract::tract_linalg::cache::cache_info();
        let _ = tract::tract_linalg::cache::last_level_cache();
        let _ = tract::tract_linalg::has_fp16();
        Ok(())
    }
}

impl Backend for Tract {
    fn load(&self, model: Vec<u8>, specs: &[TensorSpec]) -> Result<Box<dyn Session>, ModelError> {
        let onnx = dequantize::install(tract_onnx::onnx()).with_ignore_value_info(true);
        let mut proto = admit::decode(&onnx, &model)?;
        drop(model);
        let graph = proto
            .graph
            .as_ref()
            .ok_or_else(|| unusable("it has no graph"))?;
        admit::check_operators(&onnx, graph)?;
        let inputs = admit::resolve_inputs(graph, specs)?;
        let names: Vec<String> = graph
            .output
            .iter()
            .map(|output| output.name.clone())
            .collect();
        let mut fused = Fused::default();
        int8::fuse(&onnx, &mut proto, &mut fused);
        float::fuse(&onnx, &mut proto, &mut fused);
        let mut parsed = onnx.parse(&proto, None).map_err(unusable)?;
        if let Some(name) = parsed.unresolved_inputs.first() {
            return Err(unusable(format!("`{name}` is used but never defined")));
        }
        fused.install(&mut parsed);
        drop(proto);
        let mut session = TractSession {
            model: parsed.model,
            facts: Facts {
                inputs,
                outputs: Vec::new(),
            },
            plans: Vec::new(),
            plans_max: self.plans_max,
        };
        session.learn_outputs(&names)?;
        Ok(Box::new(session))
    }
}

struct TractSession {
    model: InferenceModel,
    facts: Facts,
    /// Most recently used last.
    plans: Vec<(Vec<Vec<u64>>, Plan)>,
    plans_max: usize,
}

impl TractSession {
    /// Analyses the model with its free dimensions as symbols; where tract cannot, with every free
    /// dimension 1. Either way, a model without free dimensions is optimised right now.
    fn learn_outputs(&mut self, names: &[String]) -> Result<(), ModelError> {
        let ones: Vec<Vec<u64>> = self.facts.inputs.iter().map(shape_of_ones).collect();
        let typed = match self.typed_by(|model, _, dim| symbolic(model, dim)) {
            Ok(typed) => {
                // The common case is prepared; a model that dislikes length 1 shows at a run.
                let prepared = self.plan(&ones);
                if self.facts.inputs.iter().all(fixed) {
                    prepared?;
                }
                typed
            }
            Err(_) => self.typed_by(|_, at, _| ones[at.0][at.1].to_dim())?,
        };
        for (i, name) in names.iter().enumerate() {
            let fact = typed.output_fact(i).map_err(unusable)?;
            let dtype = dtype_of(fact.datum_type).ok_or_else(|| ModelError::UnsupportedType {
                name: reason(name),
                reason: format!("{:?}", fact.datum_type),
            })?;
            let shape = fact.shape.iter().map(|dim| self.output_dim(dim)).collect();
            self.facts
                .outputs
                .push(TensorSpec::new(name, dtype, shape).map_err(unusable)?);
        }
        Ok(())
    }

    fn output_dim(&self, dim: &TDim) -> Dim {
        if let Ok(n) = dim.to_i64() {
            return u64::try_from(n).map_or_else(|_| Dim::any(), Dim::Fixed);
        }
        let text = dim.to_string();
        let known = self
            .facts
            .inputs
            .iter()
            .any(|spec| spec.free().any(|name| name == text));
        if known { Dim::Free(text) } else { Dim::any() }
    }

    /// The model with its input shapes filled in by `dim(model, (input, axis), spec's dimension)`.
    fn typed_by(
        &self,
        dim: impl Fn(&InferenceModel, (usize, usize), &Dim) -> TDim,
    ) -> Result<TypedModel, ModelError> {
        let mut model = self.model.clone();
        for (i, spec) in self.facts.inputs.iter().enumerate() {
            let shape: TVec<TDim> = spec
                .shape()
                .iter()
                .enumerate()
                .map(|(axis, d)| dim(&model, (i, axis), d))
                .collect();
            let fact = InferenceFact::dt_shape(datum_type(spec.dtype()), shape);
            model.set_input_fact(i, fact).map_err(unusable)?;
        }
        model.into_typed().map_err(unusable)
    }

    /// The plan for these shapes, and whether it had to be made.
    fn plan(&mut self, shapes: &[Vec<u64>]) -> Result<(Plan, bool), ModelError> {
        if let Some(at) = self.plans.iter().position(|(key, _)| key == shapes) {
            self.plans[at..].rotate_left(1);
            let (_, plan) = &self.plans[self.plans.len() - 1];
            return Ok((plan.clone(), false));
        }
        if self.plans.len() == self.plans_max {
            self.plans.remove(0);
        }
        let plan = self
            .typed_by(|_, (input, axis), _| shapes[input][axis].to_dim())?
            .into_optimized()
            .and_then(|model| rows::speed_up(model).into_runnable())
            .map_err(unusable)?;
        self.plans.push((shapes.to_vec(), plan.clone()));
        Ok((plan, true))
    }
}

impl Session for TractSession {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Outcome, ModelError> {
        check_inputs(&self.facts.inputs, inputs)?;
        let shapes: Vec<Vec<u64>> = inputs.iter().map(|t| t.shape().to_vec()).collect();
        let begin = Instant::now();
        let (plan, is_new) = self.plan(&shapes)?;
        let plan_time = if is_new {
            begin.elapsed()
        } else {
            Duration::ZERO
        };
        let values = inputs
            .iter()
            .map(|input| to_tract(input).map(IntoTValue::into_tvalue))
            .collect::<Result<TVec<_>, _>>()?;
        let results = plan.run(values).map_err(failed)?;
        let mut bytes = 0;
        let outputs = results
            .iter()
            .zip(&self.facts.outputs)
            .map(|(value, spec)| {
                let tensor = from_tract(value, spec.name())?;
                bytes += tensor.data().len() as u64;
                Ok(tensor)
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        if bytes > BYTES_MAX {
            return Err(ModelError::TooLarge {
                what: "the output".into(),
                bytes_max: BYTES_MAX,
            });
        }
        Ok(Outcome {
            outputs,
            plan: plan_time,
        })
    }
}

/// Count, dtypes, shapes, and agreement of the free dimensions among the inputs.
fn check_inputs(specs: &[TensorSpec], inputs: &[Tensor]) -> Result<(), ModelError> {
    if inputs.len() != specs.len() {
        let (expected, got) = (specs.len() as u64, inputs.len() as u64);
        return Err(ModelError::InputCount { expected, got });
    }
    let mut bindings = Bindings::new();
    for (spec, input) in specs.iter().zip(inputs) {
        spec.check(input, &mut bindings)
            .map_err(ModelError::Shape)?;
    }
    Ok(())
}

fn fixed(spec: &TensorSpec) -> bool {
    spec.shape().iter().all(|dim| matches!(dim, Dim::Fixed(_)))
}

fn shape_of_ones(spec: &TensorSpec) -> Vec<u64> {
    let length = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Free(_) => 1,
    };
    spec.shape().iter().map(length).collect()
}

fn symbolic(model: &InferenceModel, dim: &Dim) -> TDim {
    match dim {
        Dim::Fixed(n) => n.to_dim(),
        Dim::Free(name) if name == Dim::ANY => model.symbols.new_with_prefix("any").into(),
        Dim::Free(name) => model.symbols.sym(name).into(),
    }
}

fn unusable(e: impl std::fmt::Display) -> ModelError {
    ModelError::Unusable {
        reason: reason(&format!("{e:#}")),
    }
}

fn failed(e: impl std::fmt::Display) -> ModelError {
    ModelError::Failed {
        reason: reason(&format!("{e:#}")),
    }
}

fn to_tract(tensor: &Tensor) -> Result<tract::Tensor, ModelError> {
    let shape = tensor
        .shape()
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let mut out = tract::Tensor::zero_dt(datum_type(tensor.dtype()), &shape).map_err(failed)?;
    if !tensor.data().is_empty() {
        // Both sides are row-major and, on every machine that we build for, little-endian.
        out.as_bytes_mut().copy_from_slice(tensor.data());
    }
    Ok(out)
}

fn from_tract(value: &tract::Tensor, name: &str) -> Result<Tensor, ModelError> {
    let unsupported = || ModelError::UnsupportedType {
        name: name.into(),
        reason: format!("{:?}", value.datum_type()),
    };
    // Dimensions computed by the model are symbols inside tract; outside they are integers.
    let value = match value.datum_type() {
        DatumType::TDim => value.cast_to::<i64>().map_err(failed)?,
        _ => std::borrow::Cow::Borrowed(value),
    };
    let dtype = dtype_of(value.datum_type()).ok_or_else(unsupported)?;
    let shape: Vec<u64> = value.shape().iter().map(|&dim| dim as u64).collect();
    let bytes = if value.len() == 0 {
        &[][..]
    } else {
        value.as_bytes()
    };
    Tensor::new(dtype, shape, bytes::Bytes::copy_from_slice(bytes)).map_err(failed)
}

fn datum_type(dtype: DType) -> DatumType {
    match dtype {
        DType::Bool => DatumType::Bool,
        DType::U8 => DatumType::U8,
        DType::U16 => DatumType::U16,
        DType::U32 => DatumType::U32,
        DType::U64 => DatumType::U64,
        DType::I8 => DatumType::I8,
        DType::I16 => DatumType::I16,
        DType::I32 => DatumType::I32,
        DType::I64 => DatumType::I64,
        DType::F16 => DatumType::F16,
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
    }
}

fn dtype_of(dt: DatumType) -> Option<DType> {
    if dt == DatumType::TDim {
        return Some(DType::I64);
    }
    DType::ALL
        .into_iter()
        .find(|dtype| datum_type(*dtype) == dt.unquantized())
}

/// `y = x · x` on 8 × 8 numbers.
fn warm_up_model() -> pb::ModelProto {
    use pb::{
        tensor_shape_proto::{Dimension, dimension::Value},
        type_proto,
    };
    let dim = || Dimension {
        value: Some(Value::DimValue(8)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: pb::tensor_proto::DataType::Float as i32,
        shape: Some(pb::TensorShapeProto {
            dim: vec![dim(), dim()],
        }),
    };
    let value = |name: &str| pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto {
            value: Some(type_proto::Value::TensorType(tensor.clone())),
            ..pb::TypeProto::default()
        }),
        ..pb::ValueInfoProto::default()
    };
    let node = pb::NodeProto {
        op_type: "MatMul".into(),
        input: vec!["x".into(), "x".into()],
        output: vec!["y".into()],
        ..pb::NodeProto::default()
    };
    let graph = pb::GraphProto {
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto {
        domain: String::new(),
        version: 17,
    };
    pb::ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..pb::ModelProto::default()
    }
}
