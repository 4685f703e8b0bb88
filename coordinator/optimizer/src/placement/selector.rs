//! Conditions on labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Selector {
    /// The label's key.
    pub key: String,
    /// What must hold for it.
    pub test: Test,
}

/// What must hold for a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// It is there and has this value.
    Equals(String),
    /// It is absent or has another value.
    NotEquals(String),
    /// It is there and has one of these values.
    In(BTreeSet<String>),
    /// It is absent or has none of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    Absent,
}

impl Selector {
    /// The condition `test` on the label `key`.
    pub fn new(key: impl Into<String>, test: Test) -> Self {
        Self {
            key: key.into(),
            test,
        }
    }

    /// Whether `labels` meet the condition.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.test {
            Test::Equals(wanted) => value == Some(wanted),
            Test::NotEquals(refused) => value != Some(refused),
            Test::In(wanted) => value.is_some_and(|v| wanted.contains(v)),
            Test::NotIn(refused) => value.is_none_or(|v| !refused.contains(v)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| {
            values
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let key = &self.key;
        match &self.test {
            Test::Equals(value) => write!(f, "{key}={value}"),
            Test::NotEquals(value) => write!(f, "{key}!={value}"),
            Test::In(values) => write!(f, "{key} in ({})", list(values)),
            Test::NotIn(values) => write!(f, "{key} not in ({})", list(values)),
            Test::Exists => write!(f, "{key}"),
            Test::Absent => write!(f, "!{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_on_a_present_another_and_an_absent_label() {
        let set = |v: &str| BTreeSet::from([v.to_owned()]);
        let labelled = |v: &str| BTreeMap::from([("zone".to_owned(), v.to_owned())]);
        let cases = [
            (Test::Equals("a".into()), [true, false, false], "zone=a"),
            (Test::NotEquals("a".into()), [false, true, true], "zone!=a"),
            (Test::In(set("a")), [true, false, false], "zone in (a)"),
            (
                Test::NotIn(set("a")),
                [false, true, true],
                "zone not in (a)",
            ),
            (Test::Exists, [true, true, false], "zone"),
            (Test::Absent, [false, false, true], "!zone"),
        ];
        for (test, expected, text) in cases {
            let selector = Selector::new("zone", test);
            let found = [labelled("a"), labelled("b"), BTreeMap::new()]
                .map(|labels| selector.matches(&labels));
            assert_eq!(found, expected, "{selector}");
            assert_eq!(selector.to_string(), text);
        }
    }
}
