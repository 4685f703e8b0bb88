//! What a placement decided, with the numbers, in a form to be recorded, sent and read.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Candidates of which a placement keeps the details: enough to explain, small enough to store
/// with every decision (about 100 bytes each).
pub const DETAIL_MAX: usize = 64;

/// Of those, how many are kept for the best ones when there are more candidates than
/// [`DETAIL_MAX`]; the rest shows what was removed.
pub const RANKED_MIN: usize = 32;

/// A choice and why it was made. Its `Display` is one line for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// The strategy that chose.
    pub strategy: String,
    /// What was chosen.
    pub outcome: Outcome,
    /// Nodes that were looked at.
    pub nodes: u32,
    /// Nodes that passed every filter.
    pub feasible: u32,
    /// What each filter removed, in the order in which they were asked; only those that did.
    pub removed: Vec<Removed>,
    /// Details: those that fit, best first, then those that were removed. At most
    /// [`DETAIL_MAX`]; if `nodes` is larger, the others were left out.
    pub candidates: Vec<Considered>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// A node.
    Placed {
        /// Its id.
        node: String,
    },
    /// No node fits.
    Unplaceable,
}

/// What one filter removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// The filter.
    pub filter: String,
    /// How many nodes it was the first to refuse.
    pub nodes: u32,
    /// What the request wants that they do not offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
}

/// One node and what was found about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Considered {
    /// Its id.
    pub node: String,
    /// What was found.
    pub verdict: Verdict,
}

/// What was found about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    /// It passed every filter.
    Fits {
        /// The sum of the parts.
        total: u32,
        /// What each score contributed, by weight.
        scores: Vec<ScorePart>,
    },
    /// A filter refused it.
    Removed {
        /// The first filter that did.
        filter: String,
        /// Why.
        reason: String,
    },
}

/// What one score contributed to a node's total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScorePart {
    /// The score.
    pub name: String,
    /// Its value, 0 to 1000.
    pub score: u32,
    /// Its weighted part of the total.
    pub part: u32,
}

impl Placement {
    /// The chosen node.
    pub fn node(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Placed { node } => Some(node),
            Outcome::Unplaceable => None,
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Placed { node } => self.fmt_placed(f, node),
            Outcome::Unplaceable => self.fmt_unplaceable(f),
        }
    }
}

impl Placement {
    fn fmt_placed(&self, f: &mut fmt::Formatter<'_>, node: &str) -> fmt::Result {
        write!(f, "placed on {node}: ")?;
        let mut fitting = self.candidates.iter().filter_map(|c| match &c.verdict {
            Verdict::Fits { total, scores } => Some((&c.node, total, scores)),
            Verdict::Removed { .. } => None,
        });
        match fitting.next() {
            Some((_, total, scores)) if !scores.is_empty() => {
                write!(f, "score {total} (")?;
                for (i, part) in scores.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{} {}", part.name, part.part)?;
                }
                write!(f, ")")?;
                match fitting.next() {
                    Some((next, total, _)) => write!(f, "; next {next} ({total})"),
                    None => write!(f, "; the only one of {} that fits", count(self.nodes)),
                }
            }
            _ => write!(f, "the first of {} that fit", self.feasible),
        }
    }

    fn fmt_unplaceable(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return write!(f, "no node fits: there are no nodes");
        }
        write!(f, "no node fits: {}: ", count(self.nodes))?;
        for (i, removed) in self.removed.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} removed by {}", removed.nodes, removed.filter)?;
            if let Some(wanted) = &removed.wanted {
                write!(f, " (want {wanted})")?;
            }
        }
        Ok(())
    }
}

fn count(nodes: u32) -> String {
    format!("{nodes} node{}", if nodes == 1 { "" } else { "s" })
}
