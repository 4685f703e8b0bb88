//! What a service's instances need next, as a pure function of what is recorded and known.

/// What is known of an instance's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// It has none.
    Nowhere,
    /// Connected.
    Here,
    /// Not connected, for less than the time after which a node is lost.
    Away,
    /// Not connected for longer.
    Lost,
    /// Thrown out of the mesh: it never comes back with what it had.
    Removed,
}

/// A move on its way, as [`needs`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moving {
    /// State goes ahead; `copied`: enough of it has.
    Copying {
        /// Enough of it is there.
        copied: bool,
        /// It cannot go on: the target is gone, or the source was away for too long.
        vain: bool,
    },
    /// The source was told to stop.
    Sealing {
        /// As above.
        vain: bool,
    },
    /// The target owns it.
    Starting,
}

/// An instance as [`needs`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance {
    /// Its node.
    pub(super) at: Where,
    /// Its node may have state that the coordinator lacks.
    pub(super) tied: bool,
    /// It has state at all.
    pub(super) stateful: bool,
    /// It runs only with a lease.
    pub(super) fenced: bool,
    /// Nobody can hold that lease any more.
    pub(super) lapsed: bool,
    /// It follows the newest revision.
    pub(super) current: bool,
    /// Its node is being emptied, and nothing ties it there.
    pub(super) leaves: bool,
    /// It serves.
    pub(super) ready: bool,
    /// It failed, whether or not it is time to try again.
    pub(super) failed: bool,
    /// It failed, and it is time.
    pub(super) retry: bool,
    /// A move on its way.
    pub(super) moving: Option<Moving>,
}

/// What to do about one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Place it: it is nowhere.
    Place,
    /// Place it anew: its node is lost, or was removed.
    Replace,
    /// Go on elsewhere: the lease of its owner is over.
    FailOver,
    /// Try it again: it failed.
    Retry,
    /// Renew it for a newer revision, where it is.
    Renew,
    /// One too many: end it.
    End,
    /// Move it off a node that is being emptied; it stays if no other fits.
    Move,
    /// Enough was copied: seal the source.
    Seal,
    /// The move cannot go on: the source keeps it.
    Abort,
}

/// Everything to be done now, most urgent first. Whoever carries one out asks again.
/// `wanted`: how many instances there shall be.
pub(super) fn needs(wanted: usize, instances: &[Instance]) -> Vec<(usize, Need)> {
    let placed = |instance: &Instance| instance.at != Where::Nowhere;
    let surplus = instances.iter().enumerate().skip(wanted);
    let mut needs: Vec<_> = surplus
        .filter(|(_, instance)| placed(instance))
        .map(|(index, _)| (index, Need::End))
        .collect();
    let kept = &instances[..wanted.min(instances.len())];
    let urgent = kept.iter().enumerate();
    needs.extend(urgent.filter_map(|(index, instance)| Some((index, urgent_need(instance)?))));
    needs.extend((instances.len()..wanted).map(|index| (index, Need::Place)));
    // The rest is done to one instance at a time, and to none while one has yet to come up. One
    // that failed at the newest revision stops a roll; it does not hold up a drain.
    // What waits for a node holds up nobody else.
    let busy = |i: &Instance| {
        let coming = !i.ready && !i.failed && i.current;
        i.at == Where::Here && (i.moving.is_some() || coming)
    };
    if kept.iter().any(busy) || kept.len() < wanted {
        return needs;
    }
    let steady = |i: &Instance| i.at == Where::Here && i.moving.is_none();
    let leaving = kept.iter().enumerate();
    needs.extend(
        leaving
            .filter(|(_, i)| i.leaves && steady(i) && i.ready)
            .map(|(index, _)| (index, Need::Move)),
    );
    // What failed on a node that is away is not tried before it is back: it holds up nothing.
    let broken = kept
        .iter()
        .any(|i| i.failed && i.current && i.at == Where::Here);
    let old = kept.iter().position(|i| !i.current && steady(i));
    needs.extend(old.filter(|_| !broken).map(|index| (index, Need::Renew)));
    needs
}

/// What cannot wait for the others.
fn urgent_need(instance: &Instance) -> Option<Need> {
    match (instance.at, instance.moving) {
        (Where::Nowhere, _) => Some(Need::Place),
        // What failed on a node that answers is tried again there.
        (at, _) if instance.lapsed && !instance.tied && !(at == Where::Here && instance.failed) => {
            Some(Need::FailOver)
        }
        // Nobody knows yet that it has stopped.
        (Where::Removed, _) if instance.fenced && !instance.lapsed => None,
        (Where::Removed, _) => Some(Need::Replace),
        (Where::Lost, _) if !instance.stateful => Some(Need::Replace),
        (_, Some(Moving::Copying { vain: true, .. } | Moving::Sealing { vain: true })) => {
            Some(Need::Abort)
        }
        (Where::Here, Some(Moving::Copying { copied: true, .. })) => Some(Need::Seal),
        (_, Some(Moving::Copying { .. } | Moving::Sealing { .. })) => None,
        // Failed where its state is: only there can it be tried again.
        (Where::Here, _) if instance.retry => Some(Need::Retry),
        (Where::Away | Where::Lost, _) if instance.retry && !instance.tied && !instance.fenced => {
            Some(Need::Retry)
        }
        _ => None,
    }
}

/// Time until an instance that failed `failures` times in a row is tried again, in milliseconds.
pub(super) fn backoff_ms(failures: u32) -> u64 {
    const FIRST_MS: u64 = 500;
    const LAST_MS: u64 = 60_000;
    (FIRST_MS << failures.saturating_sub(1).min(10)).min(LAST_MS)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
