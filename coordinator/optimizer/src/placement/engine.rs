//! Filter, rank, explain: the engine behind the built-in strategies.
//!
//! Two passes: the first looks at every node and keeps eight bytes of each; the second writes
//! the details of the few that are shown. So a large mesh costs little more than a small one.

use std::cmp::Reverse;

use super::outcome::{
    Considered, DETAIL_MAX, Outcome, Placement, RANKED_MIN, Removed, ScorePart, Verdict,
};
use super::{Candidate, Context, Filter, Request, SCORE_MAX, Score, standard_filters};

/// An algorithm that chooses a node.
pub trait PlacementStrategy: Send + Sync {
    /// The name by which users choose it.
    fn name(&self) -> &str;
    /// One line for people.
    fn about(&self) -> &str;
    /// Chooses among `candidates` (ids unique, any order). The same arguments give the same
    /// answer. `seed` is for strategies that explore; the built-in ones break ties by node id.
    fn place(&self, request: &Request, candidates: &[Candidate], seed: u64) -> Placement;
}

/// A strategy made of filters and weighted scores; without scores, the lowest id that fits.
pub struct Engine {
    name: String,
    about: String,
    filters: Vec<Box<dyn Filter>>,
    scores: Vec<(Box<dyn Score>, u32)>,
}

/// A node that passed every filter.
struct Fit {
    total: u32,
    index: u32,
}

/// A node that a filter refused.
struct Refusal {
    filter: u32,
    index: u32,
}

impl Engine {
    /// A strategy over the standard filters with these scores and weights; scores of no weight
    /// are dropped.
    pub fn new(
        name: impl Into<String>,
        about: impl Into<String>,
        scores: Vec<(Box<dyn Score>, u32)>,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            filters: standard_filters(),
            scores: scores
                .into_iter()
                .filter(|(_, weight)| *weight > 0)
                .collect(),
        }
    }

    /// Adds a condition of the caller's own, asked after the standard ones.
    #[must_use]
    pub fn with_filter(mut self, filter: Box<dyn Filter>) -> Self {
        self.filters.push(filter);
        self
    }

    fn removed(&self, request: &Request, refusals: &[Refusal]) -> Vec<Removed> {
        let mut counts = vec![0_u32; self.filters.len()];
        for refusal in refusals {
            counts[refusal.filter as usize] += 1;
        }
        let removed = self
            .filters
            .iter()
            .zip(counts)
            .filter(|(_, nodes)| *nodes > 0);
        removed
            .map(|(filter, nodes)| Removed {
                filter: filter.name().to_owned(),
                nodes,
                wanted: filter.wanted(request),
            })
            .collect()
    }

    fn refused(&self, request: &Request, node: &Candidate, filter: u32) -> Considered {
        let filter = &self.filters[filter as usize];
        Considered {
            node: node.node.clone(),
            verdict: Verdict::Removed {
                filter: filter.name().to_owned(),
                reason: filter.reason(request, node),
            },
        }
    }
}

impl PlacementStrategy for Engine {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn place(&self, request: &Request, candidates: &[Candidate], _seed: u64) -> Placement {
        let ranking = Ranking::new(self, Context::new(request, candidates));
        let mut fits = Vec::with_capacity(candidates.len());
        let mut refusals = Vec::new();
        for (index, node) in (0..).zip(candidates) {
            match self
                .filters
                .iter()
                .position(|filter| !filter.accepts(request, node))
            {
                Some(filter) => refusals.push(Refusal {
                    filter: filter as u32,
                    index,
                }),
                None => fits.push(Fit {
                    total: ranking.total(node),
                    index,
                }),
            }
        }

        let node = |index: u32| &candidates[index as usize];
        let id = |index: u32| node(index).node.as_str();
        let fits_shown = fits
            .len()
            .min(DETAIL_MAX.saturating_sub(refusals.len()).max(RANKED_MIN));
        let best = first_sorted(&mut fits, fits_shown, |fit| {
            (Reverse(fit.total), id(fit.index))
        });
        let outcome = best
            .first()
            .map_or(Outcome::Unplaceable, |best| Outcome::Placed {
                node: id(best.index).to_owned(),
            });
        let mut details: Vec<Considered> = best
            .iter()
            .map(|fit| ranking.considered(node(fit.index), fit.total))
            .collect();

        let removed = self.removed(request, &refusals);
        let refusals_shown = first_sorted(&mut refusals, DETAIL_MAX - fits_shown, |refusal| {
            (refusal.filter, id(refusal.index))
        });
        let refused =
            |refusal: &Refusal| self.refused(request, node(refusal.index), refusal.filter);
        details.extend(refusals_shown.iter().map(refused));

        Placement {
            strategy: self.name.clone(),
            outcome,
            nodes: candidates.len() as u32,
            feasible: fits.len() as u32,
            removed,
            candidates: details,
        }
    }
}

/// The scores that have a say in one request.
struct Ranking<'a> {
    context: Context<'a>,
    scores: Vec<(&'a dyn Score, u64)>,
    weight_total: u64,
}

impl<'a> Ranking<'a> {
    fn new(engine: &'a Engine, context: Context<'a>) -> Self {
        let scores: Vec<_> = engine
            .scores
            .iter()
            .filter(|(score, _)| score.applies(context.request))
            .map(|(score, weight)| (score.as_ref(), u64::from(*weight)))
            .collect();
        let weight_total = scores.iter().map(|(_, weight)| weight).sum();
        Self {
            context,
            scores,
            weight_total,
        }
    }

    /// Each score's value and its weighted part; the parts add up to at most [`SCORE_MAX`].
    fn values(&self, node: &Candidate) -> impl Iterator<Item = (&'a dyn Score, u32, u32)> {
        self.scores.iter().map(|(score, weight)| {
            let value = score.score(&self.context, node).min(SCORE_MAX);
            // The weight is not zero and part of the total: the quotient is at most `value`.
            let part = (u64::from(value) * weight / self.weight_total) as u32;
            (*score, value, part)
        })
    }

    fn total(&self, node: &Candidate) -> u32 {
        self.values(node).map(|(_, _, part)| part).sum()
    }

    fn considered(&self, node: &Candidate, total: u32) -> Considered {
        let part = |(score, value, part): (&dyn Score, u32, u32)| ScorePart {
            name: score.name().to_owned(),
            score: value,
            part,
        };
        let scores = self.values(node).map(part).collect();
        Considered {
            node: node.node.clone(),
            verdict: Verdict::Fits { total, scores },
        }
    }
}

/// The `count` smallest items by `key`, sorted; linear in the number of items, unlike a sort.
fn first_sorted<T, K: Ord>(items: &mut [T], count: usize, key: impl Fn(&T) -> K) -> &[T] {
    let compare = |a: &T, b: &T| key(a).cmp(&key(b));
    if 0 < count && count < items.len() {
        items.select_nth_unstable_by(count - 1, compare);
    }
    let count = count.min(items.len());
    let first = &mut items[..count];
    first.sort_unstable_by(compare);
    first
}

#[cfg(test)]
mod tests {
    use super::first_sorted;

    #[test]
    fn the_smallest_come_first_whatever_the_count() {
        for count in 0..=7 {
            let mut items = [5, 3, 9, 1, 7];
            let expected = &[1, 3, 5, 7, 9][..count.min(5)];
            assert_eq!(first_sorted(&mut items, count, |i| *i), expected);
        }
    }
}
