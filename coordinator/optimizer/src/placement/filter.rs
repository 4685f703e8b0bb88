//! The conditions that a node must meet, one small type each.

use super::{Candidate, Request, Selector};

/// A condition that a node meets or not.
pub trait Filter: Send + Sync {
    /// Short name for people, and for the count of what it removed.
    fn name(&self) -> &'static str;
    /// Whether the node may take the request. Hot: no allocation.
    fn accepts(&self, request: &Request, node: &Candidate) -> bool;
    /// Why the node was refused; asked only about refused nodes that are shown.
    fn reason(&self, request: &Request, node: &Candidate) -> String;
    /// What the request wants here, for the summary.
    fn wanted(&self, _request: &Request) -> Option<String> {
        None
    }
    /// `accepts`, with the reason of a refusal.
    fn check(&self, request: &Request, node: &Candidate) -> Result<(), String> {
        if self.accepts(request, node) {
            Ok(())
        } else {
            Err(self.reason(request, node))
        }
    }
}

/// All filters, in the order in which they are asked: first what concerns the node alone, then
/// what the user said, then what is merely full.
pub fn standard_filters() -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(Ready),
        Box::new(Cordon),
        Box::new(Drain),
        Box::new(NamedNode),
        Box::new(Avoid),
        Box::new(Capability),
        Box::new(Arch),
        Box::new(TierIs),
        Box::new(Labels),
        Box::new(Data),
        Box::new(Gpu),
        Box::new(Cpu),
        Box::new(Memory),
        Box::new(Storage),
        Box::new(Slots),
    ]
}

/// Defines a filter type: its name, what it accepts, its reason and what the request wants.
macro_rules! filter {
    ($type:ident, $name:literal, accepts: $accepts:expr, reason: $reason:expr
     $(, wanted: $wanted:expr)? $(,)?) => {
        struct $type;

        impl Filter for $type {
            fn name(&self) -> &'static str {
                $name
            }
            fn accepts(&self, request: &Request, node: &Candidate) -> bool {
                let accepts: fn(&Request, &Candidate) -> bool = $accepts;
                accepts(request, node)
            }
            fn reason(&self, request: &Request, node: &Candidate) -> String {
                let reason: fn(&Request, &Candidate) -> String = $reason;
                reason(request, node)
            }
            $(fn wanted(&self, request: &Request) -> Option<String> {
                let wanted: fn(&Request) -> Option<String> = $wanted;
                wanted(request)
            })?
        }
    };
}

filter!(
    Ready, "ready",
    accepts: |_, node| node.ready,
    reason: |_, _| "it has no live session".to_owned(),
);

filter!(
    Cordon, "cordon",
    accepts: |_, node| !node.cordoned,
    reason: |_, _| "it is cordoned".to_owned(),
);

filter!(
    Drain, "drain",
    accepts: |_, node| !node.draining,
    reason: |_, _| "it is being drained".to_owned(),
);

filter!(
    NamedNode, "node",
    accepts: |request, node| request.node.as_ref().is_none_or(|wanted| *wanted == node.node),
    reason: |_, _| "another node was named".to_owned(),
    wanted: |request| request.node.clone(),
);

filter!(
    Avoid, "avoid",
    accepts: |request, node| !request.avoid.contains(&node.node),
    reason: |_, _| "it is to be avoided".to_owned(),
);

filter!(
    Capability, "capability",
    accepts: |request, node| request.capabilities.is_subset(&node.capabilities),
    reason: |request, node| {
        let missing = request.capabilities.difference(&node.capabilities);
        format!("its agent lacks {}", join(missing))
    },
    wanted: |request| Some(join(&request.capabilities)),
);

filter!(
    Arch, "arch",
    accepts: |request, node| request.arch.as_ref().is_none_or(|wanted| *wanted == node.arch),
    reason: |_, node| format!("it is {}", node.arch),
    wanted: |request| request.arch.clone(),
);

filter!(
    TierIs, "tier",
    accepts: |request, node| request.tier.is_none_or(|wanted| wanted == node.tier),
    reason: |_, node| format!("it is {}", node.tier),
    wanted: |request| request.tier.map(|tier| tier.to_string()),
);

filter!(
    Labels, "labels",
    accepts: |request, node| request.labels.iter().all(|wanted| wanted.matches(&node.labels)),
    reason: |request, node| {
        let unmet = |selector: &&Selector| !selector.matches(&node.labels);
        format!("unmet: {}", join(request.labels.iter().filter(unmet)))
    },
    wanted: |request| Some(join(&request.labels)),
);

filter!(
    Data, "data",
    accepts: |request, node| request.data.required.is_subset(&node.data_tags),
    reason: |request, node| {
        format!("it lacks {}", join(request.data.required.difference(&node.data_tags)))
    },
    wanted: |request| Some(join(&request.data.required)),
);

filter!(
    Gpu, "gpu",
    accepts: |request, node| !request.resources.gpu || node.capacity.gpu,
    reason: |_, _| "it has no GPU".to_owned(),
);

filter!(
    Cpu, "cpu",
    accepts: |request, node| request.resources.cpu_milli <= node.cpu_milli_free(),
    reason: |_, node| {
        format!("{} of {} milli free", node.cpu_milli_free(), node.capacity.cpu_milli)
    },
    wanted: |request| Some(format!("{} milli", request.resources.cpu_milli)),
);

filter!(
    Memory, "memory",
    accepts: |request, node| request.resources.memory_bytes <= node.memory_bytes_free(),
    reason: |_, node| free(node.memory_bytes_free(), node.capacity.memory_bytes),
    wanted: |request| Some(bytes(request.resources.memory_bytes)),
);

filter!(
    Storage, "storage",
    accepts: |request, node| request.resources.storage_bytes <= node.storage_bytes_free(),
    reason: |_, node| free(node.storage_bytes_free(), node.capacity.storage_bytes),
    wanted: |request| Some(bytes(request.resources.storage_bytes)),
);

filter!(
    Slots, "slots",
    accepts: |_, node| node.slots_free() > 0,
    reason: |_, node| format!("all {} slots are taken", node.capacity.slots),
);

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn free(free_bytes: u64, capacity_bytes: u64) -> String {
    format!("{} of {} free", bytes(free_bytes), bytes(capacity_bytes))
}

/// A size for people: the largest binary unit that leaves at least one.
fn bytes(size_bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match UNITS.into_iter().find(|(unit, _)| size_bytes >= *unit) {
        None => format!("{size_bytes} B"),
        Some((unit, name)) if size_bytes.is_multiple_of(unit) => {
            format!("{} {name}", size_bytes / unit)
        }
        Some((unit, name)) => {
            // Tenths, rounded down: never shows more than there is.
            let tenths = u128::from(size_bytes) * 10 / u128::from(unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_for_people() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (64 << 20, "64 MiB"),
            ((1 << 20) + (1 << 19), "1.5 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
    }
}
