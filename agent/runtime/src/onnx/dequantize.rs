//! Keeps tract 0.23.9 from computing nonsense in QDQ int8 models.
//!
//! tract's `DequantizeLinear` looks, when it is simplified, for a later `QuantizeLinear` and turns
//! everything between them into a table of 256 entries. It does so across every operator that
//! keeps its axes, also across those that look at whole rows: a softmax between the two becomes a
//! table of ones (`tests/onnx.rs` has such a model). We give it an operator that computes the same
//! and is never simplified.

use tract_onnx::{
    Onnx,
    model::ParsingContext,
    pb::NodeProto,
    tract_core::{
        self,
        internal::{AxesMapping, AxisOp, EvalContext, EvalOp, InOut, Op, StaticName, TypedNode},
        model::{OutletId, TypedFact, TypedModel},
        ops::{TypedOp, change_axes::AxisChangeConsequence, quant::DequantizeLinearF32},
        tract_data::{TractResult, prelude::TVec},
        value::TValue,
    },
    tract_hir::{
        infer::{InferenceOp, InferenceResult, Solver, TensorProxy},
        ops::expandable::{Expansion, expand},
    },
};

const OPERATOR: &str = "DequantizeLinear";
/// Where tract's own builder goes in the register. Models cannot name it: ONNX names have no `/`
/// in them, and one that did would get tract's usual operator.
const ORIGINAL: &str = "hop3/DequantizeLinear";

/// `onnx` with our operator in place of tract's.
pub(super) fn install(mut onnx: Onnx) -> Onnx {
    if let Some(original) = onnx.op_register.0.get(OPERATOR).copied() {
        onnx.op_register.insert(ORIGINAL, original);
        onnx.op_register.insert(OPERATOR, build);
    }
    onnx
}

fn build(
    context: &ParsingContext<'_>,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let Some(original) = context.framework.op_register.0.get(ORIGINAL) else {
        tract_core::internal::bail!("{OPERATOR} is not registered");
    };
    let (op, closures) = original(context, node)?;
    match op.as_op().downcast_ref::<Box<dyn Expansion>>() {
        Some(inner) => Ok((expand(Wrapped(inner.clone())), closures)),
        None => Ok((op, closures)),
    }
}

/// tract's operator before types are known.
#[derive(Debug, Clone)]
struct Wrapped(Box<dyn Expansion>);

impl Expansion for Wrapped {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.0.rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let outlets = self.0.wire(prefix, model, inputs)?;
        for outlet in &outlets {
            let node = model.node_mut(outlet.node);
            if let Some(op) = node.op_as::<DequantizeLinearF32>().cloned() {
                node.op = Box::new(Dequantize(op));
            }
        }
        Ok(outlets)
    }
}

/// tract's operator, less its simplification.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dequantize(DequantizeLinearF32);

impl Op for Dequantize {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    tract_core::op_as_typed_op!();
}

impl EvalOp for Dequantize {
    fn eval(&self, context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.0.eval(context, inputs)
    }

    tract_core::op_out_of_plan!();
}

impl TypedOp for Dequantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    fn axes_mapping(
        &self,
        inputs: &[&TypedFact],
        outputs: &[&TypedFact],
    ) -> TractResult<AxesMapping> {
        self.0.axes_mapping(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        Ok(Some(AxisChangeConsequence::new(model, node, None, change)))
    }

    tract_core::as_op!();
}
