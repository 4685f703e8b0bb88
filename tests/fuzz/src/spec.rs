//! Manifests, and everything that people write as one word or line.

use std::{
    fmt::{Debug, Display},
    str::FromStr,
};

use hop3_common::{
    codes::Code,
    id::{Digest, InstanceId, MeshId, ModelName, NodeId, ServiceName, TaskId},
    identity::{CoordinatorAddr, JoinToken, TokenId},
    spec::{
        ByteSize, CpuMilli, KeyFrom, Millis, ModelSpec, Resource, Selector, ServiceSpec, TaskSpec,
        Tier, Topic, parse_documents, parse_json,
        placement::{check_label_key, parse_label},
    },
    tensor::{DType, TensorSpec},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::input::Input;

type Seeds = Vec<(String, Vec<u8>)>;

/// A file of manifests. What is admitted is admitted again after a round through JSON (the API)
/// and through postcard (records and messages), and is the same.
pub fn manifests(data: &[u8]) -> bool {
    // What the API takes is the spec alone, in JSON.
    let task = parse_json::<TaskSpec>(data, "spec");
    let task = task.is_ok_and(|spec| spec.check().is_ok_and(|()| !round(&spec).is_null()));
    let model = parse_json::<ModelSpec>(data, "spec");
    let model = model.is_ok_and(|spec| spec.check().is_ok_and(|()| !round(&spec).is_null()));
    let service = parse_json::<ServiceSpec>(data, "spec");
    let service = service.is_ok_and(|spec| spec.check().is_ok_and(|()| !round(&spec).is_null()));
    let text = String::from_utf8_lossy(data);
    documents(&text) || task || model || service
}

/// Aliases multiply what they name, up to a hundred times the document: that is the command line's
/// own memory (only it reads YAML), and not for this target to measure.
const ALIASED_BYTES_MAX: usize = 16 << 10;

fn documents(text: &str) -> bool {
    if text.len() > ALIASED_BYTES_MAX && text.contains('&') {
        return false;
    }
    let Ok(resources) = parse_documents(text) else {
        return false;
    };
    for resource in &resources {
        let (kind, name, json) = match resource {
            Resource::Task { name, spec } => ("Task", name.clone(), round(&**spec)),
            Resource::Model { name, spec } => ("Model", Some(name.to_string()), round(&**spec)),
            Resource::Service { name, spec } => ("Service", Some(name.to_string()), round(&**spec)),
        };
        let document = serde_json::json!({"kind": kind, "name": name, "spec": json});
        let again = parse_documents(&document.to_string());
        assert_eq!(again.as_ref(), Ok(&vec![resource.clone()]), "{document}");
    }
    true
}

/// A spec in both forms in which it is kept and sent.
fn round<T: Serialize + DeserializeOwned + PartialEq + Debug>(spec: &T) -> serde_json::Value {
    let stored = postcard::to_allocvec(spec).unwrap();
    let back = postcard::from_bytes::<T>(&stored);
    assert_eq!(back.as_ref(), Ok(spec), "as a record");
    let sent = serde_json::to_vec(spec).unwrap();
    let back = parse_json::<T>(&sent, "spec");
    assert_eq!(back.as_ref(), Ok(spec), "as JSON");
    serde_json::from_slice(&sent).unwrap()
}

/// What parses is written so that it parses to the same.
fn text<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else {
        return false;
    };
    let written = value.to_string();
    let again = written.parse::<T>();
    assert_eq!(
        again.ok(),
        Some(value),
        "{text:?} is written as {written:?}"
    );
    true
}

/// An amount is shown rounded, for people; what is kept and sent is exact.
fn amount<T: FromStr + Display + Serialize + DeserializeOwned + PartialEq + Debug>(
    text: &str,
) -> bool {
    let Ok(value) = text.parse::<T>() else {
        return false;
    };
    assert!(!value.to_string().is_empty());
    round(&value);
    true
}

fn label(text: &str) -> bool {
    let Ok((key, value)) = parse_label(text) else {
        return false;
    };
    check_label_key(&key).unwrap();
    assert_eq!(parse_label(&format!("{key}={value}")), Ok((key, value)));
    true
}

/// Kinds of texts, by the first byte, each with an example. Appended to only.
type Kind = (fn(&str) -> bool, &'static str);
const KINDS: &[Kind] = &[
    (text::<NodeId>, "edge-1"),
    (text::<MeshId>, "home"),
    (text::<ServiceName>, "shop"),
    (text::<ModelName>, "digits"),
    (text::<TaskId>, "tabcdefghijk"),
    (text::<InstanceId>, "service/shop/1"),
    (
        text::<Digest>,
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    (text::<Code>, "HOP3-0101"),
    (text::<Tier>, "edge"),
    (text::<Selector>, "zone in (hall, yard)"),
    (text::<KeyFrom>, "header/X-Device"),
    (text::<Topic>, "plant/line-1/*"),
    (amount::<ByteSize>, "1.5GiB"),
    (amount::<Millis>, "500ms"),
    (amount::<CpuMilli>, "0.5"),
    (text::<DType>, "f32"),
    (text::<TensorSpec>, "X:f32[batch,64]"),
    (text::<CoordinatorAddr>, "[::1]:7443"),
    (text::<TokenId>, "aaaaaaaaaaaaaaaa"),
    (text::<JoinToken>, ""),
    (label, "zone=hall"),
];

/// A word or line of any kind.
pub fn texts(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (check, _) = KINDS[usize::from(input.u8()) % KINDS.len()];
    check(&String::from_utf8_lossy(input.0))
}

/// Seeds of [`texts`].
#[must_use]
pub fn text_seeds() -> Seeds {
    let of = |n: usize, text: &str| [&[n as u8][..], text.as_bytes()].concat();
    let mut seeds = Vec::new();
    for (n, (check, example)) in KINDS.iter().enumerate() {
        let valid = if check(example) { "ok-" } else { "" };
        seeds.push((format!("{valid}kind-{n:02}"), of(n, example)));
    }
    let others = [
        (9, "zone!=yard"),
        (9, "!gpu"),
        (9, "gpu"),
        (9, "zone=hall"),
        (12, "64KiB"),
        (13, "7d"),
        (14, "500m"),
        (17, "mesh.example.com:7443"),
    ];
    for (n, (kind, text)) in others.into_iter().enumerate() {
        seeds.push((format!("ok-also-{n:02}"), of(kind, text)));
    }
    let token = crate::identity::join_token().to_string();
    seeds.push(("ok-token".into(), of(19, &token)));
    // One value of a list is written like `key=value`, and must be fit for that.
    let long = format!("zone in ({})", "x".repeat(200));
    seeds.push(("bad-selector-long-value".into(), of(9, &long)));
    seeds.push(("bad-selector-control".into(), of(9, "zone in (a\nb)")));
    seeds
}

/// Seeds of [`manifests`].
#[must_use]
pub fn manifest_seeds() -> Seeds {
    let word = "x".repeat(3_000);
    let bomb = "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n\
                c: [*b, *b, *b, *b, *b, *b, *b, *b]\n";
    let seeds = [
        ("ok-task", TASK.to_owned()),
        ("ok-model", MODEL.to_owned()),
        ("ok-service", SERVICE.to_owned()),
        ("ok-several", [TASK, MODEL, SERVICE].join("---\n")),
        (
            "ok-json",
            r#"{"kind":"Task","name":"t","spec":{"module":"m","args":["a"]}}"#.to_owned(),
        ),
        (
            "ok-spec",
            r#"{"module":"m","state":"keyed","shards":3,"key":"path/2"}"#.to_owned(),
        ),
        (
            "bad-unknown-field",
            "kind: Task\nspec: {module: m, modul: x}\n".to_owned(),
        ),
        (
            "bad-long-unknown-field",
            format!(r#"{{"module":"m","{word}":1}}"#),
        ),
        ("bad-long-kind", format!("kind: {word}\nspec: {{}}\n")),
        ("bomb", bomb.to_owned()),
        ("bad-deep", format!("kind: {}1", "[".repeat(200))),
        ("bad-not-text", "kind: \u{fffd}\u{0}".to_owned()),
        (
            "bad-selector-long-value",
            format!(
                "kind: Task\nspec: {{module: m, placement: {{labels: ['zone in ({})']}}}}\n",
                "x".repeat(200)
            ),
        ),
    ];
    let bytes = |(name, text): (&str, String)| (name.to_owned(), text.into_bytes());
    seeds.into_iter().map(bytes).collect()
}

const TASK: &str = r#"kind: Task
name: sums
spec:
  module: wordcount
  args: ["-l", "/data/in"]
  env: {LANG: C}
  placement:
    tier: edge
    labels: ["zone in (hall, yard)", "!old", "arch=x86_64", "disk!=slow"]
    data: [camera/1]
    prefer_data: [camera/2]
    strategy: spread
  resources: {cpu: 500m, memory: 64MiB, storage: 1GB, gpu: false}
  limits: {memory: 128MiB, cpu_time: 10s, timeout: 1h, output: 1MiB, host_calls_per_s: 1000}
  volumes: [{name: data, path: /data, writable: false}]
  retry: on-node-loss
"#;

const MODEL: &str = r#"kind: Model
name: digits
spec:
  version: 2
  replicas: 3
  inputs: ["X:f32[batch,64]"]
  memory: 256MiB
  deadline: 2s
  placement: {node: edge-1}
"#;

const SERVICE: &str = r#"kind: Service
name: shop
spec:
  module: counters
  state: keyed
  shards: 8
  key: header/X-Device
  durability: node
  checkpoint: {every: 30s, keep: 2}
  subscribe: ["plant/*"]
  publish: [alarms]
  calls: [stock]
  public: true
  limits: {memory: 32MiB, kv: 1MiB, deadline: 5s}
"#;
