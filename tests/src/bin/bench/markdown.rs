//! Results as a Markdown table, into the page between its markers.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    catalogue::{self, Better, Entry},
    figures::show,
    orchestra::{Raw, raw_path},
    report::Metric,
};

const BEGIN: &str = "<!-- results: made by `scripts/bench --docs`; do not edit -->";
const END: &str = "<!-- end of results -->";

/// Prints the table of the results in `path`, or puts it into the page `into`.
pub(crate) fn print(path: &Path, into: Option<&Path>) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let metrics: Vec<Metric> = serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not a list of results", path.display()))?;
    let raw = fs::read(raw_path(path)).ok();
    let raw: Option<Raw> = raw.and_then(|raw| serde_json::from_slice(&raw).ok());
    let machine = raw.map(|raw| raw.machine.describe());
    let text = table(&metrics, machine.as_deref());
    let Some(page) = into else {
        print!("{text}");
        return Ok(());
    };
    let old = String::from_utf8(read(page)?).context("the page is not UTF-8")?;
    let new = between(&old, &text).with_context(|| format!("{} has no markers", page.display()))?;
    fs::write(page, new).with_context(|| page.display().to_string())
}

/// The page with `text` between its markers.
fn between(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
}

fn table(metrics: &[Metric], machine: Option<&str>) -> String {
    let mut out = String::new();
    let machine = machine.unwrap_or("The machine was not recorded.");
    let _ = writeln!(out, "Machine: {machine}\n");
    out.push_str("| metric | value | unit | compared with | verdict |\n");
    out.push_str("| --- | ---: | --- | --- | --- |\n");
    let mut sorted: Vec<&Metric> = metrics.iter().collect();
    let place = |metric: &&Metric| {
        let entry = catalogue::find(&metric.name);
        entry.and_then(|entry| {
            catalogue::ALL
                .iter()
                .position(|other| std::ptr::eq(entry, other))
        })
    };
    sorted.sort_by_key(|metric| place(metric).unwrap_or(usize::MAX));
    for metric in sorted {
        let Metric {
            name,
            value,
            unit,
            baseline,
        } = metric;
        let entry = catalogue::find(name);
        let against = baseline.map(|baseline| {
            let what = entry.map_or("", |entry| entry.against);
            format!("{what} {}", show(baseline)).trim().to_owned()
        });
        let verdict = entry
            .zip(*baseline)
            .map(|(entry, b)| verdict(entry, *value, b));
        let (against, verdict) = (against.unwrap_or_default(), verdict.unwrap_or_default());
        let _ = writeln!(
            out,
            "| `{name}` | {} | {unit} | {against} | {verdict} |",
            show(*value)
        );
    }
    out
}

/// How a value stands to its baseline.
fn verdict(entry: &Entry, value: f64, baseline: f64) -> String {
    let factor = match entry.better {
        Better::Less => value / baseline,
        Better::More => baseline / value,
        Better::Neither => return String::new(),
    };
    match entry.against {
        "bar" if factor <= 1.0 => "met".to_owned(),
        "bar" => format!("missed by {}×", show(factor)),
        _ if factor <= 1.0 => format!("{}× better", show(1.0 / factor)),
        _ => format!("{}× worse", show(factor)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_or_missed_by_a_factor() {
        let metric = |name: &str, value, baseline| Metric {
            name: name.to_owned(),
            value,
            unit: "u".to_owned(),
            baseline,
        };
        let text = table(
            &[
                metric("invoke.per_s.64", 10_000.0, Some(20_000.0)),
                metric("agent.pss_mib", 12.0, Some(15.0)),
                metric("onnx.us.m", 20.0, Some(10.0)),
                metric("cli.binary_mb", 4.0, None),
            ],
            Some("a machine"),
        );
        assert!(text.contains("a machine"));
        assert!(
            text.contains("| `agent.pss_mib` | 12.0 | u | bar 15.0 | met |"),
            "{text}"
        );
        assert!(text.contains("| bar 20,000 | missed by 2.00× |"), "{text}");
        assert!(
            text.contains("| onnxruntime 10.0 | 2.00× worse |"),
            "{text}"
        );
        let order = |name: &str| text.find(name);
        assert!(
            order("agent.pss_mib") < order("invoke.per_s.64"),
            "as in the catalogue"
        );
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&page, "new\n").unwrap_or_default();
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(between(&new, "new\n"), Some(new.clone()));
        assert_eq!(between("no markers", "new"), None);
    }
}
