//! `hop3 explain`.

use anyhow::Result;
use hop3_common::api::{DecisionView, Explanation};
use serde::Deserialize;

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

/// One node of a placement, as the decision records it.
#[derive(Deserialize)]
struct Considered {
    node: String,
    verdict: Verdict,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Verdict {
    Fits { total: u32, scores: Vec<Part> },
    Removed { filter: String, reason: String },
}

#[derive(Deserialize)]
struct Part {
    name: String,
    part: u32,
}

/// The candidates of a placement: node, score or the filter that removed it.
fn candidates(decision: &DecisionView) -> Option<String> {
    let list = decision.placement.as_ref()?.get("candidates")?;
    let list: Vec<Considered> = serde_json::from_value(list.clone()).ok()?;
    let rows = list.into_iter().take(CANDIDATES_SHOWN).map(|candidate| {
        let (verdict, scores) = match candidate.verdict {
            Verdict::Removed { filter, reason } => (format!("removed by {filter}"), reason),
            Verdict::Fits { total, scores } => {
                let part = |part: &Part| format!("{} {}", part.name, part.part);
                let parts = scores.iter().map(part).collect::<Vec<_>>().join(", ");
                (format!("score {total}"), parts)
            }
        };
        [format!("  {}", candidate.node), verdict, scores]
    });
    Some(table(["  NODE", "VERDICT", "WHY"], rows))
}
