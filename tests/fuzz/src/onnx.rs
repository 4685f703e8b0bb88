//! ONNX files before anything is built of them, and the frames between an agent and its models'
//! processes. What the optimiser does with a model happens in a process of its own, behind limits
//! (`agent/runtime/tests/onnx.rs`), not here.

use std::fmt::Debug;

use bytes::Bytes;
use hop3_common::tensor::{Tensor, TensorSpec};
use hop3_runtime::onnx::{
    Facts, ModelError, inspect,
    wire::{FrameError, Reply, Request, decode, encode, read},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::input::{Input, put_part};

type Seeds = Vec<(String, Vec<u8>)>;

/// A description of the inputs, then the file: the child's checks, and the coordinator's look at
/// it as it passes, which must not depend on how it is cut.
pub fn model(data: &[u8]) -> bool {
    let mut input = Input(data);
    let text = String::from_utf8_lossy(input.part()).into_owned();
    let specs: Vec<TensorSpec> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let cut = usize::from(input.u8()) + 1;
    #[cfg(feature = "coordinator")]
    probe(input.0, cut);
    #[cfg(not(feature = "coordinator"))]
    let _ = cut;
    let Ok(inputs) = inspect(input.0, &specs) else {
        return false;
    };
    for spec in &specs {
        assert!(inputs.iter().any(|input| input.name() == spec.name()));
    }
    true
}

#[cfg(feature = "coordinator")]
fn probe(file: &[u8], cut: usize) {
    use hop3_coordinator::artifacts::onnx::Probe;
    let look = |cut: usize| {
        let mut probe = Probe::default();
        file.chunks(cut).try_for_each(|piece| probe.feed(piece))?;
        probe.finish()
    };
    assert_eq!(look(cut), look(file.len().max(1)), "cut every {cut} bytes");
}

/// A frame's body of either direction, by the first byte.
pub fn frames(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => round::<Request>(input.0),
        1 => round::<Reply>(input.0),
        2 => stream::<Request>(input.0),
        _ => stream::<Reply>(input.0),
    }
}

fn round<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> bool {
    let message = match decode::<T>(body) {
        Ok(message) => message,
        Err(FrameError::Malformed(_)) => return false,
        Err(error) => panic!("a body is not too large here: {error}"),
    };
    let frame = encode(&message).unwrap();
    assert!(frame.len() - 4 <= body.len());
    assert_eq!(decode::<T>(&frame[4..]).as_ref(), Ok(&message));
    assert!(
        decode::<T>(&[body, &[0]].concat()).is_err(),
        "with more behind"
    );
    true
}

/// Frames one after the other until the end or the first that is none.
fn stream<T: Serialize + DeserializeOwned + PartialEq + Debug>(mut bytes: &[u8]) -> bool {
    let mut count = 0;
    loop {
        match read::<T>(&mut bytes) {
            Ok(Some(_)) => count += 1,
            Ok(None) => return count > 0,
            Err(_) => return false,
        }
    }
}

/// Seeds of [`model`].
#[must_use]
pub fn model_seeds() -> Seeds {
    let of = |specs: &str, file: &[u8]| {
        let mut out = Vec::new();
        put_part(&mut out, specs.as_bytes());
        out.push(16);
        out.extend_from_slice(file);
        out
    };
    let file = tiny();
    vec![
        ("ok-model".into(), of("X:f32[batch,4]", &file)),
        ("bad-free-dimension".into(), of("", &file)),
        ("bad-other-input".into(), of("Z:f32[1]", &file)),
        ("bad-contradiction".into(), of("X:i64[batch,4]", &file)),
        (
            "bad-cut".into(),
            of("X:f32[batch,4]", &file[..file.len() - 9]),
        ),
        ("bad-deep".into(), of("", &nested(300))),
        (
            "bad-long-varint".into(),
            of(
                "",
                &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            ),
        ),
    ]
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

/// `Y = Relu(X)` with a free first dimension.
fn tiny() -> Vec<u8> {
    let dim = |inner: Vec<u8>| field(1, &inner);
    let shape = [dim(field(2, b"batch")), dim(vec![8, 4])].concat();
    // Elements of type 1 (`float`).
    let tensor = [vec![8, 1], field(2, &shape)].concat();
    let value = |name: &[u8]| [field(1, name), field(2, &field(1, &tensor))].concat();
    let node = [field(1, b"X"), field(2, b"Y"), field(4, b"Relu")].concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(11, &value(b"X")),
        field(12, &value(b"Y")),
    ]
    .concat();
    let opset = field(8, &[16, 13]);
    [vec![8, 8], field(7, &graph), opset].concat()
}

/// Graphs in attributes of nodes of graphs.
fn nested(levels: usize) -> Vec<u8> {
    let mut graph = Vec::new();
    for _ in 0..levels {
        let attribute = field(6, &graph);
        let node = [field(4, b"If"), field(5, &attribute)].concat();
        graph = field(1, &node);
    }
    [vec![8, 8], field(7, &graph)].concat()
}

/// Seeds of [`frames`].
#[must_use]
pub fn frame_seeds() -> Seeds {
    let tensor = Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap();
    let spec: TensorSpec = "X:f32[batch,64]".parse().unwrap();
    let facts = Facts {
        inputs: vec![spec.clone()],
        outputs: Vec::new(),
    };
    let requests = [
        Request::Load {
            bytes: 7,
            specs: vec![spec],
        },
        Request::Chunk(Bytes::from_static(b"abc")),
        Request::Infer {
            inputs: vec![tensor.clone()],
        },
    ];
    let replies = [
        Reply::Ready,
        Reply::Loaded { facts, load_us: 3 },
        Reply::Outputs {
            outputs: vec![tensor],
            infer_us: 1,
            plan_us: 2,
        },
        Reply::Failed(ModelError::OutOfMemory),
    ];
    let mut seeds = Vec::new();
    let (mut up, mut down) = (vec![2], vec![3]);
    for (n, request) in requests.iter().enumerate() {
        let frame = encode(request).unwrap();
        up.extend_from_slice(&frame);
        seeds.push((format!("ok-request-{n}"), [&[0], &frame[4..]].concat()));
    }
    for (n, reply) in replies.iter().enumerate() {
        let frame = encode(reply).unwrap();
        down.extend_from_slice(&frame);
        seeds.push((format!("ok-reply-{n}"), [&[1], &frame[4..]].concat()));
    }
    seeds.push(("ok-requests".into(), up));
    seeds.push(("ok-replies".into(), down));
    seeds.push(("bad-endless".into(), b"\x03\xff\xff\xff\xff\0".to_vec()));
    seeds
}
