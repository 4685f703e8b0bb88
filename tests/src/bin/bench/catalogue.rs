//! Every metric: its unit, what it compares with, how it is measured. The reference page of
//! figures is made from this and from results, never typed.

mod metrics;

use std::fmt::Write as _;

pub(crate) use metrics::ALL;

/// What is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Less.
    Less,
    /// More.
    More,
    /// Neither: it explains another metric.
    Neither,
}

/// A metric, or a family of them (`NAME.CASE`).
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its name, or what comes before the case.
    pub(crate) name: &'static str,
    /// Unit of its figures.
    pub(crate) unit: &'static str,
    /// What is good.
    pub(crate) better: Better,
    /// The bar of ANCHORS, where there is one.
    pub(crate) bar: Option<f64>,
    /// What the baseline is.
    pub(crate) against: &'static str,
    /// How it is measured, in a sentence.
    pub(crate) how: &'static str,
}

impl Entry {
    const fn new(
        better: Better,
        name: &'static str,
        unit: &'static str,
        how: &'static str,
    ) -> Self {
        Self {
            name,
            unit,
            better,
            bar: None,
            against: "",
            how,
        }
    }

    const fn bar(self, bar: f64) -> Self {
        Self {
            bar: Some(bar),
            against: "bar",
            ..self
        }
    }

    const fn against(self, against: &'static str) -> Self {
        Self { against, ..self }
    }
}

const fn less(name: &'static str, unit: &'static str, how: &'static str) -> Entry {
    Entry::new(Better::Less, name, unit, how)
}

const fn more(name: &'static str, unit: &'static str, how: &'static str) -> Entry {
    Entry::new(Better::More, name, unit, how)
}

const fn plain(name: &'static str, unit: &'static str, how: &'static str) -> Entry {
    Entry::new(Better::Neither, name, unit, how)
}

/// The entry for a metric: its own, else its family's.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    let family = |entry: &&Entry| {
        name.strip_prefix(entry.name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    ALL.iter()
        .filter(family)
        .max_by_key(|entry| entry.name.len())
}

/// Every metric with its method, for `hop3-bench list`.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for entry in ALL {
        let bar = entry
            .bar
            .map(|bar| format!(" (bar {bar})"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "{} [{}]{bar}\n    {}",
            entry.name, entry.unit, entry.how
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_its_own_entry_or_its_family_s() {
        assert_eq!(find("invoke.per_s.64").and_then(|e| e.bar), Some(20_000.0));
        assert_eq!(find("invoke.per_s.1").and_then(|e| e.bar), None);
        assert_eq!(
            find("onnx.ratio.skl_mlp").map(|e| e.name),
            Some("onnx.ratio")
        );
        assert!(find("agent.pss_mibs").is_none());
    }

    #[test]
    fn names_are_unique_and_explained() {
        for (i, entry) in ALL.iter().enumerate() {
            assert!(
                !entry.how.is_empty() && !entry.unit.is_empty(),
                "{}",
                entry.name
            );
            assert!(
                ALL[..i].iter().all(|other| other.name != entry.name),
                "{}",
                entry.name
            );
            assert_eq!(
                entry.bar.is_some(),
                entry.against == "bar",
                "{}",
                entry.name
            );
        }
    }
}
