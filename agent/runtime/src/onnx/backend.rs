//! What an inference engine must offer. tract is the one that is always there.

use std::time::Duration;

use hop3_common::tensor::{Tensor, TensorSpec};
use serde::{Deserialize, Serialize};

use super::ModelError;

/// Most inputs, and most outputs, of a model.
pub(super) const TENSORS_MAX: usize = 64;

/// What a loaded model takes and gives, in the model's own order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Inputs; free dimensions are those that the manifest left free.
    pub inputs: Vec<TensorSpec>,
    /// Outputs; `_` where the length is not known before a run.
    pub outputs: Vec<TensorSpec>,
}

/// What an inference gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Outputs in the model's order.
    pub outputs: Vec<Tensor>,
    /// Time to optimise the model for these input shapes; zero if that was done before.
    pub plan: Duration,
}

/// An inference engine. It may panic, exhaust memory or never return: run it in a child process.
pub trait Backend {
    /// Decodes, checks and prepares a model. `specs` describe inputs whose shape the model leaves
    /// open, by name and in any order.
    ///
    /// # Errors
    /// If the model is not usable; says why and, where the manifest can help, what to write.
    fn load(&self, model: Vec<u8>, specs: &[TensorSpec]) -> Result<Box<dyn Session>, ModelError>;
}

/// A prepared model.
pub trait Session {
    /// What it takes and gives.
    fn facts(&self) -> &Facts;

    /// Runs it once, on inputs in the model's order.
    ///
    /// # Errors
    /// If the inputs do not fit the facts, or the run fails.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Outcome, ModelError>;
}
