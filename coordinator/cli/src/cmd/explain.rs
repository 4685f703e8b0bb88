//! `hop3 explain`.

use anyhow::Result;
use hop3_common::api::{DecisionView, Explanation};

use crate::{
    args::{ExplainKind, Format},
    client::{Client, segment},
    output::{self, ago, table},
};

/// Most candidates printed of one decision.
const CANDIDATES_SHOWN: usize = 20;

/// Says why.
pub async fn run(client: &Client, format: Format, kind: ExplainKind, name: &str) -> Result<()> {
    let kind = format!("{kind:?}").to_lowercase();
    let path = format!("/v1/explain/{kind}/{}", segment(name));
    let explanation: Explanation = client.get(&path).await?;
    output::print(format, &explanation, text)
}

fn text(e: &Explanation) -> String {
    let mut text = format!("{}: {}\n", e.subject, e.summary);
    for fact in &e.facts {
        text.push_str(&format!("  · {fact}\n"));
    }
    let now = hop3_common::id::UnixMs::now();
    for decision in &e.decisions {
        text.push_str(&format!(
            "\n{} ({}): {}\n",
            decision.action,
            ago(now, decision.at),
            decision.reason
        ));
        if let Some(candidates) = candidates(decision) {
            text.push_str(&candidates);
            text.push('\n');
        }
    }
    text
}

/// The candidates of a placement: node, score or the filter that removed it.
fn candidates(decision: &DecisionView) -> Option<String> {
    let list = decision.placement.as_ref()?.get("candidates")?.as_array()?;
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = list.iter().take(CANDIDATES_SHOWN).map(|candidate| {
        let node = candidate.get("node").map(text).unwrap_or_default();
        let total = candidate.get("total").filter(|v| !v.is_null()).map(text);
        let verdict = match (candidate.get("filtered").filter(|v| !v.is_null()), total) {
            (Some(filtered), _) => {
                let part = |key: &str| filtered.get(key).map(text).unwrap_or_default();
                format!("{}: {}", part("filter"), part("reason"))
            }
            (None, Some(total)) => format!("score {total}"),
            (None, None) => "-".to_owned(),
        };
        let scores = candidate
            .get("scores")
            .and_then(|s| s.as_array())
            .map(|scores| {
                let score = |s: &serde_json::Value| {
                    format!(
                        "{} {}",
                        s.get("name").map(text).unwrap_or_default(),
                        s.get("weighted")
                            .or(s.get("score"))
                            .map(text)
                            .unwrap_or_default()
                    )
                };
                scores.iter().map(score).collect::<Vec<_>>().join(", ")
            });
        [format!("  {node}"), verdict, scores.unwrap_or_default()]
    });
    Some(table(["  NODE", "VERDICT", "SCORES"], rows))
}
