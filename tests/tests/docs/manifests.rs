//! The tables of `docs/reference/manifests.md`, from the types: names, defaults and first sentences
//! of the API's schemas.

use std::fmt::Write as _;

use serde_json::Value;

/// Sections of the page, by kind: marker, schema, and a spec with every default in it.
pub(crate) fn kinds() -> [(&'static str, &'static str, Value); 3] {
    use hop3_common::spec::{ModelSpec, ServiceSpec, TaskSpec};
    [
        ("task", "TaskSpec", json(&TaskSpec::new(""))),
        ("model", "ModelSpec", json(&ModelSpec::default())),
        ("service", "ServiceSpec", json(&ServiceSpec::new(""))),
    ]
}

fn json(spec: &impl serde::Serialize) -> Value {
    serde_json::to_value(spec).unwrap_or_else(|error| panic!("{error}"))
}

/// The table of one kind.
pub(crate) fn table(document: &Value, schema: &str, defaults: &Value) -> String {
    let mut text = String::from("| field of `spec` | default | meaning |\n| --- | --- | --- |\n");
    let root = &document["components"]["schemas"][schema];
    assert!(root.is_object(), "the API has no schema {schema}");
    rows(document, root, "", defaults, &mut text);
    text
}

fn rows(document: &Value, schema: &Value, path: &str, defaults: &Value, text: &mut String) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{name}");
        let kind = kind_of(field);
        let inner = kind.map(|kind| &document["components"]["schemas"][kind]);
        let default = &defaults[name];
        if let Some(inner) = inner.filter(|inner| inner["properties"].is_object()) {
            rows(document, inner, &path, default, text);
            continue;
        }
        let default = if required.iter().any(|required| required == name) {
            "required".to_owned()
        } else {
            shown(kind, default)
        };
        let either = field["oneOf"].as_array().into_iter().flatten();
        let mut said = std::iter::once(field)
            .chain(either)
            .filter_map(|schema| schema["description"].as_str());
        let said = said.next().unwrap_or_default();
        assert!(!said.is_empty(), "{path} has no description");
        let mut said = said.replace('\n', " ").replace('|', "\\|");
        if let Some(choices) = inner.and_then(choices) {
            let _ = write!(said, " One of {choices}.");
        }
        let _ = writeln!(text, "| `{path}` | {default} | {said} |");
    }
}

/// The named schema of a field, also where it may be left out.
fn kind_of(field: &Value) -> Option<&str> {
    let either = field["oneOf"].as_array().into_iter().flatten();
    let mut refs = std::iter::once(field)
        .chain(either)
        .filter_map(|schema| schema["$ref"].as_str());
    refs.next()?.rsplit('/').next()
}

/// The words of an enumeration.
fn choices(schema: &Value) -> Option<String> {
    let variants = schema["oneOf"].as_array().cloned();
    let words = schema["enum"].as_array().cloned().or_else(|| {
        let all = variants?
            .into_iter()
            .map(|variant| variant["enum"][0].clone());
        Some(all.filter(|word| !word.is_null()).collect())
    })?;
    let words: Vec<String> = words
        .iter()
        .filter_map(|word| Some(format!("`{}`", word.as_str()?)))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn shown(kind: Option<&str>, value: &Value) -> String {
    let number = value.as_u64();
    match (kind, value) {
        (Some("ByteSize"), _) => number.map(|n| format!("`{}`", written(n, &SIZES))),
        (Some("Millis"), _) => number.map(|n| format!("`{}`", written(n, &TIMES))),
        (_, Value::Null) => Some("none".to_owned()),
        (_, Value::Array(items)) if items.is_empty() => Some("none".to_owned()),
        (_, Value::Object(items)) if items.is_empty() => Some("none".to_owned()),
        (_, Value::String(word)) => Some(format!("`{word}`")),
        (_, other) => Some(format!("`{other}`")),
    }
    .unwrap_or_default()
}

const SIZES: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const TIMES: [(&str, u64); 3] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// As people write it in a manifest: in the largest unit that divides it.
fn written(number: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, size): &&(&str, u64)| number > 0 && number.is_multiple_of(*size);
    match units.iter().find(fits) {
        Some((unit, size)) => format!("{}{unit}", number / size),
        None => number.to_string(),
    }
}
