//! What a group reports: metrics as JSON lines on standard output.

use serde::{Deserialize, Serialize};

use crate::{catalogue, figures};

/// Marks a metric's line among whatever else a group may print.
pub(crate) const MARK: &str = "@metric ";

/// A figure, as `scripts/bench --json` writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metric {
    /// `group.what[_unit][.case]`.
    pub(crate) name: String,
    /// The median of the runs.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: String,
    /// What it compares with: measured in the same run, or the bar; see the catalogue.
    pub(crate) baseline: Option<f64>,
}

/// A metric with the runs that it is the median of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The figure.
    #[serde(flatten)]
    pub(crate) metric: Metric,
    /// Every run.
    pub(crate) runs: Vec<f64>,
}

/// How to measure, and where results go.
pub(crate) struct Bench {
    quick: bool,
    names: Vec<String>,
}

impl Bench {
    /// `names`: beginnings of the metrics wanted; none means all.
    pub(crate) fn new(quick: bool, names: Vec<String>) -> Self {
        Self { quick, names }
    }

    /// The first for a quick run, the second for a full one.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether any metric that begins with `name` is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        wanted(&self.names, name)
    }

    /// Reports the median of `runs`, compared with `measured` or else with the metric's bar.
    pub(crate) fn report(&self, name: &str, runs: &[f64], measured: Option<f64>) {
        let value = figures::median(runs);
        if !self.wants(name) || !value.is_finite() {
            return;
        }
        let entry = catalogue::find(name);
        let metric = Metric {
            name: name.to_owned(),
            value,
            unit: entry.map_or("", |entry| entry.unit).to_owned(),
            baseline: measured.or_else(|| entry.and_then(|entry| entry.bar)),
        };
        let line = Line {
            metric,
            runs: runs.to_vec(),
        };
        match serde_json::to_string(&line) {
            Ok(text) => println!("{MARK}{text}"),
            Err(error) => eprintln!("{name}: {error}"),
        }
    }
}

/// Whether `name` is asked for: either is a beginning of the other.
pub(crate) fn wanted(names: &[String], name: &str) -> bool {
    names.is_empty()
        || names
            .iter()
            .any(|n| name.starts_with(n.as_str()) || n.starts_with(name))
}

/// Says what goes on.
pub(crate) fn say(what: impl std::fmt::Display) {
    eprintln!("    {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_by_their_beginning_both_ways() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(wanted(&[], "agent.pss_mib"));
        assert!(wanted(&names(&["agent"]), "agent.pss_mib"));
        assert!(wanted(&names(&["agent.pss_mib"]), "agent"));
        assert!(!wanted(&names(&["invoke"]), "agent.pss_mib"));
    }
}
