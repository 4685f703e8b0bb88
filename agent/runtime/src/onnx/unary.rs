//! An operator with one input and one output, in tract's terms.

use std::{fmt::Debug, sync::Arc};

use tract_onnx::{
    tract_core::{
        self,
        internal::{DimLike, EvalContext, EvalOp, Op, SpecialOps, StaticName},
        model::{OutletId, TypedFact, TypedModel},
        ops::TypedOp,
        tract_data::{
            TractResult,
            internal::{DatumType, TDim, Tensor},
            prelude::TVec,
        },
        value::{IntoTValue, TValue},
    },
    tract_hir::{
        infer::{InferenceOp, InferenceResult, Solver, TensorProxy},
        ops::expandable::{Expansion, expand},
    },
};

/// What such an operator computes.
pub(super) trait Compute: Debug + Send + Sync {
    fn name(&self) -> &'static str;

    fn input_type(&self) -> DatumType;

    fn output_type(&self) -> DatumType;

    /// # Errors
    /// If the input's shape does not fit.
    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>>;

    /// Fills `output`, of the type and shape that were promised, from an `input` of that type.
    ///
    /// # Errors
    /// If the input does not fit.
    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()>;
}

/// For the model before its types are known.
pub(super) fn inference_op(compute: impl Compute + 'static) -> Box<dyn InferenceOp> {
    expand(Unary(Arc::new(compute)))
}

/// For the model with known types.
pub(super) fn typed_op(compute: impl Compute + 'static) -> Box<dyn TypedOp> {
    Box::new(Unary(Arc::new(compute)))
}

#[derive(Debug, Clone)]
struct Unary(Arc<dyn Compute>);

impl PartialEq for Unary {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Unary {}

impl Expansion for Unary {
    fn name(&self) -> StaticName {
        self.0.name().into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let ([input], [output]) = (inputs, outputs) else {
            tract_core::internal::bail!("{} has one input and one output", self.0.name());
        };
        solver.equals(&input.datum_type, self.0.input_type())?;
        solver.equals(&output.datum_type, self.0.output_type())?;
        solver.given(&input.shape, move |solver, shape| {
            solver.equals(&output.shape, self.0.output_shape(&shape)?)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Unary {
    fn name(&self) -> StaticName {
        self.0.name().into()
    }

    tract_core::op_as_typed_op!();
}

impl EvalOp for Unary {
    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [input] = &inputs[..] else {
            tract_core::internal::bail!("{} takes one input", self.0.name());
        };
        if input.datum_type() != self.0.input_type() {
            tract_core::internal::bail!("{} got {:?}", self.0.name(), input.datum_type());
        }
        let shape: TVec<TDim> = input.shape().iter().map(|&dim| dim.into()).collect();
        let shape = self.0.output_shape(&shape)?;
        let shape = shape
            .iter()
            .map(DimLike::to_usize)
            .collect::<Result<TVec<usize>, _>>()?;
        let mut output = Tensor::zero_dt(self.0.output_type(), &shape)?;
        // tract's slices of empty tensors would begin at null.
        if output.len() > 0 {
            self.0.run(input, &mut output)?;
        }
        Ok(std::iter::once(output.into_tvalue()).collect())
    }

    tract_core::op_out_of_plan!();
}

impl TypedOp for Unary {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [input] = inputs else {
            tract_core::internal::bail!("{} takes one input", self.0.name());
        };
        let shape = self.0.output_shape(&input.shape.to_tvec())?;
        let fact = TypedFact::dt_shape(self.0.output_type(), &shape[..]);
        Ok(std::iter::once(fact).collect())
    }

    tract_core::as_op!();
}
