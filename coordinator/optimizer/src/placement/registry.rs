//! Strategies by name.

use std::collections::BTreeMap;

use super::{Engine, PlacementStrategy, Score, standard_scores};

/// What is used where nobody chose. Spreading loses the least when a node is lost and leaves
/// room on every node for bursts, which matters more at the edge than a few watts; packing is
/// one word away for whoever pays for the nodes by the hour.
pub const DEFAULT_STRATEGY: &str = "spread";

/// Largest weight of a score; a thousand steps are finer than anyone can reason about.
pub const WEIGHT_MAX: u32 = 1000;

/// A name that nothing is registered under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {what} is named `{name}`{}; known: {}", hint(.nearest), .known.join(", "))]
pub struct UnknownName {
    /// What was looked for: `strategy` or `score`.
    pub what: &'static str,
    /// The name that was given.
    pub name: String,
    /// The known name that it most resembles, if any does.
    pub nearest: Option<String>,
    /// All known names.
    pub known: Vec<String>,
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

/// The strategies that can be chosen.
pub struct Registry {
    strategies: BTreeMap<String, Box<dyn PlacementStrategy>>,
}

struct BuiltIn {
    name: &'static str,
    about: &'static str,
    weights: &'static [(&'static str, u32)],
}

const BUILT_IN: [BuiltIn; 3] = [
    BuiltIn {
        name: "first-fit",
        about: "the lowest node id that fits",
        weights: &[],
    },
    BuiltIn {
        name: "best-fit",
        about: "fill nodes before using more of them",
        weights: &[
            ("pack", 500),
            ("data", 300),
            ("tier", 200),
            ("latency", 200),
        ],
    },
    BuiltIn {
        name: "spread",
        about: "away from its own kind, where there is most room",
        weights: &[
            ("spread", 400),
            ("room", 300),
            ("data", 300),
            ("tier", 200),
            ("latency", 200),
        ],
    },
];

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self {
            strategies: BTreeMap::new(),
        };
        for built_in in BUILT_IN {
            let weight = |name: &str| {
                built_in
                    .weights
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map_or(0, |(_, w)| *w)
            };
            let engine = Engine::new(built_in.name, built_in.about, weigh(weight));
            registry.register(Box::new(engine));
        }
        registry
    }
}

impl Registry {
    /// Adds a strategy, or replaces the one of the same name.
    pub fn register(&mut self, strategy: Box<dyn PlacementStrategy>) {
        self.strategies.insert(strategy.name().to_owned(), strategy);
    }

    /// The strategy of this name; the default one for `None`.
    ///
    /// # Errors
    /// [`UnknownName`], with the nearest known one.
    pub fn get(&self, name: Option<&str>) -> Result<&dyn PlacementStrategy, UnknownName> {
        let name = name.unwrap_or(DEFAULT_STRATEGY);
        match self.strategies.get(name) {
            Some(strategy) => Ok(strategy.as_ref()),
            None => Err(unknown("strategy", name, self.names())),
        }
    }

    /// The known names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.strategies.keys().map(String::as_str)
    }

    /// A strategy of the user's own: `weights` by score name, capped at [`WEIGHT_MAX`]; scores
    /// that are not named have none.
    ///
    /// # Errors
    /// [`UnknownName`] for a score that does not exist.
    pub fn weighted(
        name: impl Into<String>,
        weights: &BTreeMap<String, u32>,
    ) -> Result<Engine, UnknownName> {
        let scores = standard_scores();
        let known = || scores.iter().map(|score| score.name());
        if let Some(stranger) = weights
            .keys()
            .find(|name| !known().any(|k| k == name.as_str()))
        {
            return Err(unknown("score", stranger, known()));
        }
        let weight = |name: &str| weights.get(name).map_or(0, |w| *w.min(&WEIGHT_MAX));
        Ok(Engine::new(name, "weighted by the user", weigh(weight)))
    }
}

fn weigh(weight: impl Fn(&str) -> u32) -> Vec<(Box<dyn Score>, u32)> {
    let scores = standard_scores().into_iter();
    scores
        .map(|score| (weight(score.name()), score))
        .map(|(w, s)| (s, w))
        .collect()
}

fn unknown<'a>(
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> UnknownName {
    // Long input is not compared: the distance costs its square.
    const NAME_COMPARED_MAX: usize = 64;
    let known: Vec<String> = known.map(str::to_owned).collect();
    let comparable = name.len() <= NAME_COMPARED_MAX;
    let nearest = known
        .iter()
        .filter(|_| comparable)
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 2)
        .min()
        .map(|(_, candidate)| candidate.clone());
    UnknownName {
        what,
        name: name.chars().take(NAME_COMPARED_MAX).collect(),
        nearest,
        known,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn built_in_weights_name_real_scores() {
        let known = standard_scores();
        for (name, _) in BUILT_IN.iter().flat_map(|built_in| built_in.weights) {
            assert!(known.iter().any(|score| score.name() == *name), "{name}");
        }
    }

    #[test]
    fn the_default_is_registered() {
        let registry = Registry::default();
        assert_eq!(registry.get(None).unwrap().name(), DEFAULT_STRATEGY);
        assert_eq!(
            registry.names().collect::<Vec<_>>(),
            ["best-fit", "first-fit", "spread"]
        );
    }

    #[test]
    fn an_unknown_strategy_names_the_nearest_and_all() {
        let registry = Registry::default();
        let error = registry.get(Some("bestfit")).err().unwrap();
        assert_eq!(
            error.to_string(),
            "no strategy is named `bestfit` (did you mean `best-fit`?); \
             known: best-fit, first-fit, spread"
        );
        let far = registry.get(Some(&"x".repeat(100_000))).err().unwrap();
        assert_eq!(far.nearest, None);
        assert_eq!(far.name.len(), 64);
    }

    #[test]
    fn an_unknown_score_is_refused() {
        let weights = BTreeMap::from([("enrgy".to_owned(), 1)]);
        let error = Registry::weighted("mine", &weights).err().unwrap();
        assert_eq!(error.nearest.as_deref(), Some("energy"));
    }
}
