//! From text to checked resources.

use serde::{Deserialize, de::DeserializeOwned};

use super::{Invalid, ModelSpec, ServiceSpec, TaskSpec};
use crate::id::{ModelName, ServiceName};

/// Largest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of brackets, roughly counted. The YAML parser's time grows with its square, and
/// faster; what we read needs six.
const NESTING_MAX: usize = 128;
/// Most documents in one text.
const DOCUMENTS_MAX: usize = 256;
const KINDS: [&str; 3] = ["Task", "Model", "Service"];

/// A declared resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// `kind: Task`. The name is for people.
    Task {
        /// Optional name.
        name: Option<String>,
        /// Its spec.
        spec: Box<TaskSpec>,
    },
    /// `kind: Model`.
    Model {
        /// The model's name.
        name: ModelName,
        /// Its spec.
        spec: Box<ModelSpec>,
    },
    /// `kind: Service`.
    Service {
        /// The service's name.
        name: ServiceName,
        /// Its spec.
        spec: Box<ServiceSpec>,
    },
}

/// The known word nearest to `word`, if it is near enough to be a slip of the hand.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let chars = word.chars().count();
    let allowed = |candidate: &str| candidate.len().max(3) / 3 + 1;
    known
        .into_iter()
        // The distance takes memory by the product of the lengths: a word of a megabyte would take
        // hundreds of them. It is never below the difference of the lengths.
        .filter(|near| near.chars().count().abs_diff(chars) <= allowed(near))
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed(candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Parses the YAML (or JSON) documents in `text`, separated by `---`.
pub fn parse_documents(text: &str) -> Result<Vec<Resource>, Invalid> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(Invalid::new(
            "document",
            format!("is larger than {DOCUMENT_BYTES_MAX} bytes"),
        ));
    }
    if nesting(text) > NESTING_MAX {
        return Err(Invalid::new("document", "is nested too deeply"));
    }
    let mut resources = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        if resources.len() == DOCUMENTS_MAX {
            return Err(Invalid::new(
                "document",
                format!("more than {DOCUMENTS_MAX} in one file"),
            ));
        }
        let value = serde_norway::Value::deserialize(document)
            .map_err(|error| Invalid::new("document", format!("is not YAML: {error}")))?;
        if !value.is_null() {
            resources.push(resource(value)?);
        }
    }
    if resources.is_empty() {
        return Err(Invalid::new(
            "document",
            "is empty: it needs `kind`, `name` and `spec`",
        ));
    }
    Ok(resources)
}

/// How deep brackets are nested at most, those in texts and comments included.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Parses one JSON body strictly, with the same errors as documents. `root` begins the field's
/// path (`spec`).
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8], root: &str) -> Result<T, Invalid> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = path_of(root, &error.path().to_string());
        explain(path, &error.inner().to_string())
    })?;
    json.end()
        .map_err(|error| Invalid::new(root, format!("has trailing text: {error}")))?;
    Ok(value)
}

fn resource(value: serde_norway::Value) -> Result<Resource, Invalid> {
    let serde_norway::Value::Mapping(map) = value else {
        return Err(Invalid::new(
            "document",
            "must be a mapping with `kind`, `name` and `spec`",
        ));
    };
    let (mut kind, mut name, mut spec) = (None, None, None);
    for (key, value) in map {
        match key.as_str() {
            Some("kind") => kind = value.as_str().map(str::to_owned),
            Some("name") => name = value.as_str().map(str::to_owned),
            Some("spec") => spec = Some(value),
            other => {
                let other = other.unwrap_or("?");
                return Err(unknown_field(
                    other.to_owned(),
                    other,
                    &["kind", "name", "spec"],
                ));
            }
        }
    }
    let kind = kind
        .ok_or_else(|| Invalid::new("kind", format!("is missing: one of {}", KINDS.join(", "))))?;
    let spec = spec.unwrap_or(serde_norway::Value::Mapping(serde_norway::Mapping::new()));
    match kind.as_str() {
        "Task" => {
            let spec: Box<TaskSpec> = Box::new(from_value(spec)?);
            spec.check()?;
            Ok(Resource::Task { name, spec })
        }
        "Model" => {
            let name = name.ok_or_else(|| Invalid::new("name", "is missing: a model needs one"))?;
            let name = name
                .parse()
                .map_err(|e: crate::id::Error| Invalid::new("name", e.to_string()))?;
            let spec: Box<ModelSpec> = Box::new(from_value(spec)?);
            spec.check()?;
            Ok(Resource::Model { name, spec })
        }
        "Service" => {
            let name =
                name.ok_or_else(|| Invalid::new("name", "is missing: a service needs one"))?;
            let name = name
                .parse()
                .map_err(|e: crate::id::Error| Invalid::new("name", e.to_string()))?;
            let spec: Box<ServiceSpec> = Box::new(from_value(spec)?);
            spec.check()?;
            Ok(Resource::Service { name, spec })
        }
        other => {
            let hint = nearest(other, KINDS).map(|near| format!("; did you mean `{near}`?"));
            Err(Invalid::new(
                "kind",
                format!(
                    "`{other}` is unknown: one of {}{}",
                    KINDS.join(", "),
                    hint.unwrap_or_default()
                ),
            ))
        }
    }
}

fn from_value<T: DeserializeOwned>(value: serde_norway::Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        explain(
            path_of("spec", &error.path().to_string()),
            &error.inner().to_string(),
        )
    })
}

fn path_of(root: &str, path: &str) -> String {
    match path {
        "." | "?" | "" => root.to_owned(),
        path if root.is_empty() => path.to_owned(),
        path => format!("{root}.{path}"),
    }
}

/// Turns serde's message into ours: unknown fields get the nearest known one.
fn explain(path: String, message: &str) -> Invalid {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field")
        && let Some(unknown) = quoted.next()
    {
        let known: Vec<&str> = quoted.collect();
        return unknown_field(path, unknown, &known);
    }
    Invalid::new(path, message.to_owned())
}

fn unknown_field(path: String, unknown: &str, known: &[&str]) -> Invalid {
    let field = match path.rsplit_once('.') {
        _ if path == unknown => path,
        Some((_, last)) if last == unknown => path,
        _ => format!("{path}.{unknown}"),
    };
    let hint = match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("is unknown: did you mean `{near}`?"),
        None => format!("is unknown: the fields here are {}", known.join(", ")),
    };
    Invalid::new(field, hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::{ByteSize, Tier};

    fn problem(text: &str) -> String {
        parse_documents(text).unwrap_err().to_string()
    }

    #[test]
    fn a_full_task_parses() {
        let text = "kind: Task\nname: count\nspec:\n  module: wordcount\n  args: [a]\n  \
                    placement: {tier: edge, labels: [zone=a]}\n  limits: {memory: 64MiB, timeout: 30s}\n  \
                    stdin: attached\n";
        let Resource::Task { spec, .. } = &parse_documents(text).unwrap()[0] else {
            panic!()
        };
        assert_eq!(spec.placement.tier, Some(Tier::Edge));
        assert_eq!(spec.limits.memory, ByteSize::mib(64));
        let json = serde_json::to_vec(spec).unwrap();
        assert_eq!(
            &parse_json::<TaskSpec>(&json, "spec").unwrap(),
            spec.as_ref()
        );
        let bytes = postcard::to_allocvec(spec).unwrap();
        assert_eq!(
            &postcard::from_bytes::<TaskSpec>(&bytes).unwrap(),
            spec.as_ref()
        );
    }

    #[test]
    fn errors_name_the_field_and_the_fix() {
        let cases = [
            ("kind: Tsk\nspec: {}", "did you mean `Task`?"),
            (
                "kind: Task\nspec: {modul: x}",
                "`spec.modul` is unknown: did you mean `module`?",
            ),
            ("kind: Task\nspec: {args: []}", "missing field `module`"),
            (
                "kind: Task\nspec: {module: m, limits: {memory: lots}}",
                "`spec.limits.memory`",
            ),
            (
                "kind: Task\nspec: {module: m, limits: {memory: 1KiB}}",
                "must be from 64KiB to 4GiB",
            ),
            (
                "kind: Task\nspec: {module: m, placement: {tier: fog}}",
                "`spec.placement.tier`",
            ),
            (
                "kind: Task\nnam: x\nspec: {module: m}",
                "did you mean `name`?",
            ),
            ("kind: Model\nspec: {}", "`name` is missing"),
            (
                "kind: Task\nspec: {module: m, volumes: [{name: v, path: ../x}]}",
                "absolute path",
            ),
            ("kind: Servce\nspec: {}", "did you mean `Service`?"),
            (
                "kind: Service\nname: s\nspec: {module: m, stat: single}",
                "`spec.stat` is unknown: did you mean `state`?",
            ),
            (
                "kind: Service\nname: s\nspec: {module: m, state: shared}",
                "`spec.state`",
            ),
            (
                "kind: Service\nname: s\nspec: {module: m, subscribe: [a//b]}",
                "is not a topic",
            ),
            ("- 1", "must be a mapping"),
            ("", "is empty"),
            ("a: [", "is not YAML"),
        ];
        for (text, expected) in cases {
            let problem = problem(text);
            assert!(problem.contains(expected), "{text:?}: {problem}");
        }
    }

    #[test]
    fn what_is_large_or_deep_is_refused_at_once() {
        let deep = problem(&format!("kind: {}", "[".repeat(DOCUMENT_BYTES_MAX / 2)));
        assert!(deep.contains("nested too deeply"), "{deep}");
        let word = "x".repeat(DOCUMENT_BYTES_MAX / 2);
        let long = problem(&format!("kind: {word}"));
        assert!(long.contains("is unknown: one of"), "{long:.200}");
        let body = format!(r#"{{"module":"m","{word}":1}}"#);
        let long = parse_json::<TaskSpec>(body.as_bytes(), "spec").unwrap_err();
        assert!(
            long.problem.contains("the fields here are"),
            "{:.200}",
            long.problem
        );
    }

    #[test]
    fn nearest_is_silent_when_nothing_is_near() {
        assert_eq!(nearest("memroy", ["memory", "cpu"]), Some("memory"));
        assert_eq!(nearest("zebra", ["memory", "cpu"]), None);
    }
}
