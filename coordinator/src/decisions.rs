//! The decisions on record: a ring in the store, its index in memory.
//!
//! A decision is committed together with its effect. The ring keeps the newest
//! [`DECISIONS_MAX`]; each new one takes the place of the oldest in the same commit.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use hop3_common::{
    api::DecisionView,
    codes::Problem,
    id::{NodeId, UnixMs},
};
use hop3_optimizer::Placement;

use crate::records::{Batch, DecisionRecord, Records};

/// Decisions kept: some weeks of a small mesh, at most about 100 MiB on disk.
pub(crate) const DECISIONS_MAX: u64 = 10_000;
/// Most bytes of a recorded placement; candidates beyond are left out, counts stay.
const PLACEMENT_BYTES_MAX: usize = 10 << 10;
/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 4 << 10;
/// Most decisions in one answer.
const LIST_MAX: usize = 200;

pub(crate) struct Decisions(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    next: u64,
    /// Numbers and subjects of what is kept, oldest first.
    kept: VecDeque<(u64, String)>,
}

/// A decision to be recorded.
pub(crate) struct Decision {
    pub(crate) subject: String,
    pub(crate) action: &'static str,
    pub(crate) reason: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) placement: Option<Placement>,
}

impl Decision {
    pub(crate) fn new(subject: String, action: &'static str, reason: String) -> Self {
        Self {
            subject,
            action,
            reason,
            node: None,
            placement: None,
        }
    }

    pub(crate) fn on(mut self, node: Option<&NodeId>) -> Self {
        self.node = node.cloned();
        self
    }

    pub(crate) fn by(mut self, placement: Option<Placement>) -> Self {
        self.placement = placement;
        self
    }
}

fn id_of(number: u64) -> String {
    format!("{number:020}")
}

impl Decisions {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let all = records.all::<DecisionRecord>().await?;
        let number = |id: &str| id.parse::<u64>().ok();
        let kept: VecDeque<_> = all
            .into_iter()
            .filter_map(|(id, record)| Some((number(&id)?, record.subject)))
            .collect();
        let next = kept.back().map_or(1, |(last, _)| last + 1);
        Ok(Self(Mutex::new(Ring { next, kept })))
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `decision` to the batch that carries its effect.
    pub(crate) fn record(
        &self,
        batch: Batch,
        decision: Decision,
        now: UnixMs,
    ) -> Result<Batch, Problem> {
        let Decision {
            subject,
            action,
            mut reason,
            node,
            placement,
        } = decision;
        cut(&mut reason, REASON_BYTES_MAX);
        let placement = placement.map(bounded_json);
        let mut ring = self.ring();
        let number = ring.next;
        ring.next += 1;
        ring.kept.push_back((number, subject.clone()));
        let action = action.to_owned();
        let record = DecisionRecord {
            at: now,
            subject,
            action,
            reason,
            node,
            placement,
        };
        let mut batch = batch.put(&id_of(number), &record)?;
        if ring.kept.len() as u64 > DECISIONS_MAX
            && let Some((oldest, _)) = ring.kept.pop_front()
        {
            batch = batch.delete::<DecisionRecord>(&id_of(oldest))?;
        }
        Ok(batch)
    }

    /// Newest first; `subject` also matches what is below it.
    pub(crate) async fn list(
        &self,
        records: &Records,
        subject: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DecisionView>, Problem> {
        let matches = |of: &str| {
            subject.is_none_or(|subject| {
                of.strip_prefix(subject)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let numbers: Vec<u64> = {
            let ring = self.ring();
            let newest = ring.kept.iter().rev().filter(|(_, of)| matches(of));
            newest
                .take(limit.clamp(1, LIST_MAX))
                .map(|(number, _)| *number)
                .collect()
        };
        let mut views = Vec::with_capacity(numbers.len());
        for number in numbers {
            // Absent when its commit failed, or has not happened yet.
            if let Some(record) = records.get::<DecisionRecord>(&id_of(number)).await? {
                views.push(view(number, record));
            }
        }
        Ok(views)
    }
}

fn view(id: u64, record: DecisionRecord) -> DecisionView {
    DecisionView {
        id,
        at: record.at,
        subject: record.subject,
        action: record.action,
        reason: record.reason,
        node: record.node.map(|node| node.to_string()),
        placement: record
            .placement
            .and_then(|json| serde_json::from_str(&json).ok()),
    }
}

fn bounded_json(mut placement: Placement) -> String {
    loop {
        let json = serde_json::to_string(&placement).unwrap_or_default();
        if json.len() <= PLACEMENT_BYTES_MAX || placement.candidates.is_empty() {
            return if json.len() <= 2 * PLACEMENT_BYTES_MAX {
                json
            } else {
                "null".into()
            };
        }
        placement
            .candidates
            .truncate(placement.candidates.len() / 2);
    }
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max)
            .rev()
            .find(|&i| text.is_char_boundary(i))
            .unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use hop3_common::store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn the_ring_keeps_the_newest_and_survives_a_restart() {
        let records = Records::new(Arc::new(MemoryStore::new()));
        let decisions = Decisions::load(&records).await.unwrap();
        for n in 0..DECISIONS_MAX + 5 {
            let subject = format!("task/t{}", n % 2);
            let decision = Decision::new(subject, "place", format!("number {n}"));
            let batch = decisions.record(Batch::new(), decision, UnixMs(n)).unwrap();
            records.commit(batch).await.unwrap();
        }
        let again = Decisions::load(&records).await.unwrap();
        for decisions in [&decisions, &again] {
            assert_eq!(decisions.ring().kept.len() as u64, DECISIONS_MAX);
            let newest = decisions.list(&records, Some("task/t0"), 2).await.unwrap();
            assert_eq!(newest[0].reason, format!("number {}", DECISIONS_MAX + 4));
            assert_eq!(newest[1].reason, format!("number {}", DECISIONS_MAX + 2));
            assert_eq!(
                decisions.list(&records, Some("task/t"), 9).await.unwrap(),
                []
            );
            assert_eq!(
                decisions
                    .list(&records, Some("task"), 9)
                    .await
                    .unwrap()
                    .len(),
                9
            );
        }
        assert_eq!(again.ring().next, decisions.ring().next);
    }

    #[test]
    fn reasons_are_cut_at_a_character() {
        let mut text = "é".repeat(10);
        cut(&mut text, 5);
        assert_eq!(text, "éé");
    }
}
