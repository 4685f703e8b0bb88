//! What of each node is promised to which instance. Derived from the records; a placement and its
//! reservation happen under one lock, so that two placements never take the same room.

use std::collections::BTreeMap;

use hop3_common::{
    api::Allocation,
    id::{InstanceId, NodeId},
};

/// Promises of all nodes.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<NodeId, Promises>);

/// Promises of one node.
#[derive(Default)]
struct Promises {
    total: Allocation,
    by_instance: BTreeMap<InstanceId, Allocation>,
}

impl Ledger {
    /// Promises `amount` of `node` to `instance`, in place of what it had there.
    pub(crate) fn reserve(&mut self, node: &NodeId, instance: &InstanceId, amount: Allocation) {
        let promises = self.0.entry(node.clone()).or_default();
        if let Some(before) = promises.by_instance.insert(instance.clone(), amount) {
            promises.total = minus(promises.total, before);
        }
        promises.total = plus(promises.total, amount);
    }

    /// Takes back what `instance` has of `node`. A repeat changes nothing.
    pub(crate) fn release(&mut self, node: &NodeId, instance: &InstanceId) -> Option<Allocation> {
        let promises = self.0.get_mut(node)?;
        let before = promises.by_instance.remove(instance)?;
        promises.total = minus(promises.total, before);
        if promises.by_instance.is_empty() {
            self.0.remove(node);
        }
        Some(before)
    }

    pub(crate) fn total(&self, node: &NodeId) -> Allocation {
        self.0
            .get(node)
            .map(|promises| promises.total)
            .unwrap_or_default()
    }

    /// Instances that are promised room on `node`.
    pub(crate) fn instances(&self, node: &NodeId) -> Vec<InstanceId> {
        let promises = self.0.get(node);
        promises
            .map(|p| p.by_instance.keys().cloned().collect())
            .unwrap_or_default()
    }
}

// Saturating: what a user asks for may be any number.
fn plus(a: Allocation, b: Allocation) -> Allocation {
    Allocation {
        cpu_milli: a.cpu_milli.saturating_add(b.cpu_milli),
        memory_bytes: a.memory_bytes.saturating_add(b.memory_bytes),
        storage_bytes: a.storage_bytes.saturating_add(b.storage_bytes),
        tasks: a.tasks.saturating_add(b.tasks),
    }
}

fn minus(a: Allocation, b: Allocation) -> Allocation {
    Allocation {
        cpu_milli: a.cpu_milli.saturating_sub(b.cpu_milli),
        memory_bytes: a.memory_bytes.saturating_sub(b.memory_bytes),
        storage_bytes: a.storage_bytes.saturating_sub(b.storage_bytes),
        tasks: a.tasks.saturating_sub(b.tasks),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The total is always the sum of what is promised, whatever is repeated.
        #[test]
        fn totals_are_sums(ops in prop::collection::vec((any::<bool>(), 0u8..3, 0u8..4, 0u64..99), 0..60)) {
            let mut ledger = Ledger::default();
            let mut model: BTreeMap<(NodeId, InstanceId), u64> = BTreeMap::new();
            for (reserve, node, task, cpu_milli) in ops {
                let node: NodeId = format!("n{node}").parse().unwrap();
                let instance: InstanceId = format!("task/t{task}").parse().unwrap();
                if reserve {
                    let amount = Allocation { cpu_milli, tasks: 1, ..Allocation::default() };
                    ledger.reserve(&node, &instance, amount);
                    model.insert((node.clone(), instance), cpu_milli);
                } else {
                    ledger.release(&node, &instance);
                    model.remove(&(node.clone(), instance));
                }
                let mine: Vec<u64> =
                    model.iter().filter(|((n, _), _)| *n == node).map(|(_, v)| *v).collect();
                let total = ledger.total(&node);
                prop_assert_eq!(total.cpu_milli, mine.iter().sum::<u64>());
                prop_assert_eq!(total.tasks as usize, mine.len());
                prop_assert_eq!(ledger.instances(&node).len(), mine.len());
            }
        }
    }
}
