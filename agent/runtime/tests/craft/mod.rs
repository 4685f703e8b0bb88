//! Small ONNX models made by hand: what no exporter would write.

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension::Value as DimValue},
    type_proto,
};

/// A dimension: a number, or a name for a free one.
pub(crate) fn dim(text: &str) -> Dimension {
    let value = match text.parse() {
        Ok(n) => DimValue::DimValue(n),
        Err(_) => DimValue::DimParam(text.into()),
    };
    Dimension {
        value: Some(value),
        ..Dimension::default()
    }
}

pub(crate) fn value(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let shape = TensorShapeProto {
        dim: dims.iter().map(|d| dim(d)).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: dtype as i32,
        shape: Some(shape),
    };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value,
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

pub(crate) fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: inputs.iter().map(|s| (*s).into()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

pub(crate) fn encode(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto {
        domain: String::new(),
        version: 17,
    };
    let (ir_version, opset_import, graph) = (8, vec![opset], Some(graph));
    ModelProto {
        ir_version,
        opset_import,
        graph,
        ..ModelProto::default()
    }
    .encode_to_vec()
}

pub(crate) fn graph(nodes: Vec<NodeProto>, input: ValueInfoProto, output: &str) -> GraphProto {
    GraphProto {
        node: nodes,
        name: "crafted".into(),
        input: vec![input],
        output: vec![ValueInfoProto {
            name: output.into(),
            ..ValueInfoProto::default()
        }],
        ..GraphProto::default()
    }
}

/// `x · x · x · …` on n × n numbers: as slow as one likes.
pub(crate) fn slow(products: usize) -> Vec<u8> {
    let names: Vec<String> = (0..=products).map(|i| format!("p{i}")).collect();
    let mut nodes = vec![node("Identity", &["x"], "p0")];
    for i in 0..products {
        nodes.push(node("MatMul", &[&names[i], "x"], &names[i + 1]));
    }
    encode(graph(
        nodes,
        value("x", DataType::Float, &["n", "n"]),
        &names[products],
    ))
}

/// `x (n × 1) · xᵀ (1 × n)`: a few bytes of input make n² numbers.
pub(crate) fn outer_product() -> Vec<u8> {
    let nodes = vec![
        node("Transpose", &["x"], "t"),
        node("MatMul", &["x", "t"], "y"),
    ];
    encode(graph(nodes, value("x", DataType::Float, &["n", "1"]), "y"))
}

/// All numbers from 0 to `elements`, in a file of a few bytes.
pub(crate) fn giant_constant(elements: i64) -> Vec<u8> {
    let nodes = vec![
        node("Range", &["begin", "end", "step"], "r"),
        node("Add", &["r", "x"], "y"),
    ];
    let mut graph = graph(nodes, value("x", DataType::Int64, &["1"]), "y");
    for (name, value) in [("begin", 0), ("end", elements), ("step", 1)] {
        graph.initializer.push(TensorProto {
            name: name.into(),
            data_type: DataType::Int64 as i32,
            int64_data: vec![value],
            ..TensorProto::default()
        });
    }
    encode(graph)
}

/// Operators that nobody has, one of them inside a branch.
pub(crate) fn unknown_operators() -> Vec<u8> {
    let mut fancy = node("Fancy", &["x"], "f");
    fancy.domain = "com.example".into();
    let inner = graph(
        vec![node("Hidden", &["x"], "h")],
        value("x", DataType::Float, &["1"]),
        "h",
    );
    let mut branch = node("If", &["f"], "y");
    branch.attribute.push(AttributeProto {
        name: "then_branch".into(),
        r#type: AttributeType::Graph as i32,
        g: Some(inner),
        ..AttributeProto::default()
    });
    encode(graph(
        vec![fancy, branch],
        value("x", DataType::Float, &["1"]),
        "y",
    ))
}

/// `y = a + b`, both n × 2.
pub(crate) fn sum() -> Vec<u8> {
    let add = node("Add", &["a", "b"], "y");
    let mut graph = graph(vec![add], value("a", DataType::Float, &["n", "2"]), "y");
    graph.input.push(value("b", DataType::Float, &["n", "2"]));
    encode(graph)
}

/// The identity on strings, which tensors do not carry.
pub(crate) fn strings() -> Vec<u8> {
    encode(graph(
        vec![node("Identity", &["s"], "y")],
        value("s", DataType::String, &["1"]),
        "y",
    ))
}
