//! Says how often something may be logged per node, so that a hostile node cannot fill the log.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hop3_common::id::NodeId;

/// Least time between two lines about one node (or about all strangers together).
const QUIET: Duration = Duration::from_secs(60);
/// Most nodes remembered; beyond it, old ones are forgotten and then nothing is logged.
const NODES_MAX: usize = 4096;

/// Remembers when each node was last logged. `None` stands for all strangers.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    last: HashMap<Option<NodeId>, Instant>,
}

impl Quiet {
    /// Whether a line about `node` may be logged at `now`.
    pub(super) fn admit(&mut self, node: Option<&NodeId>, now: Instant) -> bool {
        let node = node.cloned();
        let spoken = |at: &Instant| now.saturating_duration_since(*at) < QUIET;
        if self.last.get(&node).is_some_and(spoken) {
            return false;
        }
        if self.last.len() >= NODES_MAX {
            self.last.retain(|_, at| spoken(at));
        }
        if self.last.len() >= NODES_MAX {
            return false;
        }
        self.last.insert(node, now);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_line_per_node_and_minute() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(quiet.admit(Some(&a), start));
        assert!(!quiet.admit(Some(&a), start + QUIET / 2));
        assert!(quiet.admit(Some(&b), start));
        assert!(quiet.admit(None, start));
        assert!(quiet.admit(Some(&a), start + QUIET));
    }

    #[test]
    fn its_memory_is_bounded_and_recovers() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        for i in 0..NODES_MAX {
            assert!(quiet.admit(Some(&format!("n{i}").parse().unwrap()), start));
        }
        let late = "late".parse().unwrap();
        assert!(!quiet.admit(Some(&late), start));
        assert_eq!(quiet.last.len(), NODES_MAX);
        assert!(quiet.admit(Some(&late), start + QUIET));
        assert_eq!(quiet.last.len(), 1);
    }
}
