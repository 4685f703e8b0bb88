//! One node: its record, and what is known of it while it lives.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64},
    },
};

use arc_swap::ArcSwap;
use hop3_common::{
    api::Allocation,
    id::{InstanceId, NodeId, UnixMs},
    identity::KeyHash,
    ownership::Token,
    wire::{NodeFacts, Phase, telemetry::Sample},
};

use super::Link;
use crate::records::{CursorRecord, NodeRecord};

/// Samples kept of each node: ten minutes at one a second, 88 bytes each.
pub(crate) const SAMPLES_MAX: usize = 600;
/// Most entries of a list in a node's facts, and most bytes of a text there: they are stored.
const FACTS_LIST_MAX: usize = 64;
const FACTS_TEXT_BYTES_MAX: usize = 128;

/// A node. Shared; the record is replaced whole.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) record: ArcSwap<NodeRecord>,
    /// Calls in flight.
    pub(crate) calls: Arc<AtomicU32>,
    /// Bytes of blobs stored by it that no report has named yet.
    pub(crate) unclaimed_bytes: AtomicU64,
    live: Mutex<Live>,
}

/// What is known of a node's life. Not stored: a restart learns it anew from inventories.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) session: Option<Session>,
    /// When the last session ended, or the coordinator began without one.
    pub(crate) away_since: Option<UnixMs>,
    pub(crate) last_seen: Option<UnixMs>,
    /// What it is believed to hold: its inventory, and what was sent and reported since.
    pub(crate) held: BTreeMap<InstanceId, Holds>,
    pub(crate) samples: VecDeque<Sample>,
    pub(crate) watched_until: UnixMs,
    pub(crate) cursor: CursorRecord,
    /// Whether its loss was acted upon.
    pub(crate) lost: bool,
}

/// What a node holds of an instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holds {
    pub(crate) token: Token,
    pub(crate) phase: Phase,
    /// It was told to stop.
    pub(crate) stopping: bool,
    /// It was told to seal, and has not answered.
    pub(crate) sealing: bool,
}

pub(crate) struct Session {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) since: UnixMs,
    /// The key that its certificate has.
    pub(crate) key: KeyHash,
    /// Its inventory came: only then it is told anything.
    pub(crate) known: bool,
    /// What it was last told about telemetry: samples every so many milliseconds.
    pub(crate) sample_ms: u32,
}

impl Node {
    pub(crate) fn new(record: NodeRecord, cursor: CursorRecord, now: UnixMs) -> Self {
        let live = Live {
            cursor,
            away_since: Some(now),
            ..Live::default()
        };
        Self {
            id: record.id.clone(),
            record: ArcSwap::from_pointee(record),
            calls: Arc::default(),
            unclaimed_bytes: AtomicU64::new(0),
            live: Mutex::new(live),
        }
    }

    /// Its life. Never held across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its session, if it stands and is the one asked for.
    pub(crate) fn link(&self) -> Option<Arc<dyn Link>> {
        self.live()
            .session
            .as_ref()
            .map(|s| s.link.clone())
            .filter(|link| link.is_open())
    }

    /// It could not seal the instance: it may be told to again.
    pub(crate) fn unseal(&self, instance: &InstanceId) {
        if let Some(holds) = self.live().held.get_mut(instance) {
            holds.sealing = false;
        }
    }

    /// What it has in all.
    pub(crate) fn capacity(&self) -> Allocation {
        capacity_of(&self.record.load().facts)
    }
}

impl Live {
    /// Whether `session` is the one that stands.
    pub(crate) fn is_session(&self, session: u64) -> bool {
        self.session
            .as_ref()
            .is_some_and(|s| s.link.session() == session)
    }

    pub(crate) fn push_samples(&mut self, samples: &[Sample]) {
        let keep = samples.len().min(SAMPLES_MAX);
        let samples = &samples[samples.len() - keep..];
        let excess = (self.samples.len() + keep).saturating_sub(SAMPLES_MAX);
        self.samples.drain(..excess);
        self.samples.extend(samples);
    }
}

pub(crate) fn capacity_of(facts: &NodeFacts) -> Allocation {
    Allocation {
        cpu_milli: u64::from(facts.cpus) * 1000,
        memory_bytes: facts.memory_kib.saturating_mul(1024),
        storage_bytes: facts.disk_kib.saturating_mul(1024),
        tasks: facts.tasks_max,
    }
}

/// Cuts what an agent says of itself to what a record takes.
pub(crate) fn bounded(mut facts: NodeFacts) -> NodeFacts {
    let cut = |text: &mut String| {
        text.retain(|c| !c.is_control());
        if text.len() > FACTS_TEXT_BYTES_MAX {
            let end = (0..=FACTS_TEXT_BYTES_MAX)
                .rev()
                .find(|&i| text.is_char_boundary(i));
            text.truncate(end.unwrap_or(0));
        }
    };
    let texts = [
        &mut facts.hostname,
        &mut facts.os,
        &mut facts.kernel,
        &mut facts.arch,
        &mut facts.engine,
    ];
    texts.into_iter().for_each(cut);
    for list in [&mut facts.capabilities, &mut facts.volumes, &mut facts.data] {
        list.truncate(FACTS_LIST_MAX);
        list.iter_mut().for_each(cut);
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_samples() {
        let mut live = Live::default();
        let samples: Vec<Sample> = (0..2000)
            .map(|n| Sample {
                at: UnixMs(n),
                ..Sample::default()
            })
            .collect();
        for batch in samples.chunks(700) {
            live.push_samples(batch);
        }
        assert_eq!(live.samples.len(), SAMPLES_MAX);
        assert_eq!(live.samples.back().map(|s| s.at), Some(UnixMs(1999)));
        assert_eq!(live.samples.front().map(|s| s.at), Some(UnixMs(1400)));
    }

    #[test]
    fn hostile_facts_are_cut() {
        let facts = NodeFacts {
            hostname: "é\n".repeat(1000),
            volumes: vec!["x".repeat(1000); 1000],
            ..NodeFacts::default()
        };
        let facts = bounded(facts);
        assert_eq!(facts.hostname, "é".repeat(64));
        assert_eq!((facts.volumes.len(), facts.volumes[0].len()), (64, 128));
    }
}
