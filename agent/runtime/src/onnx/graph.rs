//! An ONNX graph to look things up in, and replacements for parts of it.
//!
//! A replacement goes where a pattern ends, and its output keeps the name; what the pattern needed
//! before is left to tract, which drops what nobody uses. It is an `Identity` until the graph is
//! parsed ([`Fused::install`]).

use std::collections::HashMap;

use tract_onnx::{
    Onnx,
    model::ParseResult,
    pb::{
        AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType,
        type_proto,
    },
    tensor::load_tensor,
    tract_core::tract_data::internal::Tensor,
    tract_hir::infer::InferenceOp,
};

/// Operators to put into the parsed graph, by the name of their output.
#[derive(Default)]
pub(super) struct Fused(Vec<(String, Box<dyn InferenceOp>)>);

impl Fused {
    /// Takes `node`'s place: `op` on `input`.
    pub(super) fn replace(
        &mut self,
        node: &mut NodeProto,
        input: String,
        op: Box<dyn InferenceOp>,
    ) {
        self.0.push((node.output[0].clone(), op));
        node.op_type = "Identity".into();
        node.domain.clear();
        node.input = vec![input];
        node.attribute.clear();
    }

    /// Puts them where their `Identity` is.
    pub(super) fn install(self, parsed: &mut ParseResult) {
        for (output, op) in self.0 {
            if let Some(outlet) = parsed.outlets_by_name.get(&output) {
                parsed.model.node_mut(outlet.node).op = op;
            }
        }
    }
}

/// Who makes what, and who uses it.
pub(super) struct Index<'a> {
    onnx: &'a Onnx,
    pub(super) producers: HashMap<&'a str, &'a NodeProto>,
    /// How often something is used, in the main graph or as its output.
    uses: HashMap<&'a str, usize>,
    constants: HashMap<&'a str, &'a TensorProto>,
    inputs: HashMap<&'a str, &'a ValueInfoProto>,
}

impl<'a> Index<'a> {
    pub(super) fn of(onnx: &'a Onnx, graph: &'a GraphProto) -> Self {
        let outputs = |node: &'a NodeProto| node.output.iter().map(move |name| (&**name, node));
        let mut uses = HashMap::new();
        let inputs = graph.node.iter().flat_map(|node| &node.input);
        for name in inputs.chain(graph.output.iter().map(|output| &output.name)) {
            *uses.entry(&**name).or_default() += 1;
        }
        Self {
            onnx,
            producers: graph.node.iter().flat_map(outputs).collect(),
            uses,
            inputs: graph.input.iter().map(|i| (&*i.name, i)).collect(),
            constants: graph.initializer.iter().map(|t| (&*t.name, t)).collect(),
        }
    }

    /// Whether `name` is an input of the model, of 32-bit floats.
    pub(super) fn is_float_input(&self, name: &str) -> bool {
        let ty = self
            .inputs
            .get(name)
            .and_then(|input| input.r#type.as_ref());
        match ty.and_then(|ty| ty.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => {
                tensor.elem_type == DataType::Float as i32
            }
            _ => false,
        }
    }

    /// What makes `name`, if that is used once.
    pub(super) fn only_for(&self, name: &str) -> Option<&'a NodeProto> {
        let node = self.producers.get(name)?;
        let is_alone = self.uses.get(name) == Some(&1) && node.output.len() == 1;
        (is_alone && is_standard(&node.domain)).then_some(node)
    }

    /// The value of an initialiser.
    pub(super) fn constant(&self, name: &str) -> Option<Tensor> {
        load_tensor(&*self.onnx.provider, self.constants.get(name)?, None).ok()
    }
}

/// The axis of a MatMul's or plain Gemm's weights that goes along the output's columns.
pub(super) fn dense_axis(node: &NodeProto) -> Option<usize> {
    if is(node, "MatMul") {
        return (node.input.len() == 2).then_some(1);
    }
    let is_plain = is(node, "Gemm")
        && float(node, "alpha") == Some(1.0)
        && float(node, "beta") == Some(1.0)
        && int(node, "transA", 0)? == 0;
    let is_transposed = int(node, "transB", 0)? != 0;
    is_plain.then_some(usize::from(!is_transposed))
}

pub(super) fn is(node: &NodeProto, op_type: &str) -> bool {
    node.op_type == op_type && is_standard(&node.domain)
}

pub(super) fn is_standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> Option<i64> {
    node.get_attr_opt(name)
        .ok()
        .map(|value| value.unwrap_or(default))
}

/// Defaults to one.
pub(super) fn float(node: &NodeProto, name: &str) -> Option<f32> {
    node.get_attr_opt(name)
        .ok()
        .map(|value| value.unwrap_or(1.0))
}

pub(super) fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    let plain = tensor.try_as_plain_ram().ok()?;
    let floats = plain.as_slice::<f32>().ok()?.to_vec();
    (!floats.is_empty()).then_some(floats)
}
