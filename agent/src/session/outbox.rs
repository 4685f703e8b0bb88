//! The outbox: reports that the coordinator has not acknowledged, in order. Pure; the supervisor
//! stores every change, the session sends.
//!
//! Invariants: numbers grow by one without gaps; a report is dropped only when acknowledged; the
//! acknowledged number never goes back. Limits: [`REPORTS_MAX`] plus one terminal report per
//! instance.

use std::collections::VecDeque;

use hop3_common::wire::{Event, Report};

/// Reports kept before those that only say how things stand now are left out (the inventory of
/// the next session says it too). Reports of an end are always kept.
pub const REPORTS_MAX: usize = 4096;

/// Names an outbox: a new one means that numbering began anew.
pub type OutboxId = [u8; 16];

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Outbox {
    id: OutboxId,
    /// Every report up to here is durable at the coordinator.
    acked: u64,
    /// Numbered from `acked + 1`.
    reports: VecDeque<Report>,
    /// Last number sent on this connection.
    sent: u64,
}

/// The coordinator acknowledges what this outbox never sent, or has lost what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator knows report {theirs} of this outbox, which has {acked} to {last}")]
pub struct Diverged {
    theirs: u64,
    acked: u64,
    last: u64,
}

/// Whether an event ends its instance.
#[must_use]
pub fn is_terminal(event: &Event) -> bool {
    matches!(
        event,
        Event::TaskEnded(_) | Event::Failed(_) | Event::Stopped | Event::Sealed(_)
    )
}

impl Outbox {
    /// An outbox as it was stored: reports follow `acked` without a gap.
    #[must_use]
    pub fn new(id: OutboxId, acked: u64, reports: impl IntoIterator<Item = Report>) -> Self {
        Self {
            id,
            acked,
            reports: reports.into_iter().collect(),
            sent: acked,
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> OutboxId {
        self.id
    }

    /// Every report up to this number is durable at the coordinator.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Number of the newest report.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.acked + self.reports.len() as u64
    }

    /// The unacknowledged reports, oldest first.
    pub fn reports(&self) -> impl Iterator<Item = (u64, &Report)> {
        (self.acked + 1..).zip(&self.reports)
    }

    /// Whether there is room for `report`.
    #[must_use]
    pub fn admits(&self, event: &Event) -> bool {
        is_terminal(event) || self.reports.len() < REPORTS_MAX
    }

    /// Takes a report in, already durable under the returned number ([`last`](Self::last) + 1).
    pub fn push(&mut self, report: Report) -> u64 {
        self.reports.push_back(report);
        self.last()
    }

    /// A session stands; the coordinator has everything up to `theirs`. What follows is sent
    /// (again).
    ///
    /// # Errors
    /// [`Diverged`]: renumber under a new name and connect again.
    pub fn connected(&mut self, theirs: u64) -> Result<(), Diverged> {
        if theirs < self.acked || theirs > self.last() {
            return Err(Diverged {
                theirs,
                acked: self.acked,
                last: self.last(),
            });
        }
        self.ack(theirs);
        self.sent = theirs;
        Ok(())
    }

    /// The next report to send on this connection.
    pub fn next_unsent(&mut self) -> Option<(u64, &Report)> {
        let at = usize::try_from(self.sent - self.acked).ok()?;
        let report = self.reports.get(at)?;
        self.sent += 1;
        Some((self.sent, report))
    }

    /// Drops the reports up to `seq`; repeats and numbers never sent change nothing.
    pub fn ack(&mut self, seq: u64) {
        let done = seq.min(self.last()).saturating_sub(self.acked);
        self.reports.drain(..done as usize);
        self.acked += done;
        self.sent = self.sent.max(self.acked);
    }

    /// The same reports, numbered from 1 under a new name.
    #[must_use]
    pub fn renumbered(self, id: OutboxId) -> Self {
        Self {
            id,
            acked: 0,
            reports: self.reports,
            sent: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::{id::UnixMs, ownership::Token};
    use proptest::prelude::*;

    use super::*;

    fn report(n: u64) -> Report {
        Report {
            instance: "task/a".parse().unwrap(),
            token: Token::default(),
            at: UnixMs(n),
            event: Event::Stopped,
        }
    }

    /// The coordinator's side: durable reports, in order, duplicates known by number.
    #[derive(Default)]
    struct Coordinator {
        acked: u64,
        seen: Vec<u64>,
    }

    impl Coordinator {
        fn take(&mut self, seq: u64, report: &Report) -> u64 {
            if seq == self.acked + 1 {
                self.acked = seq;
                self.seen.push(report.at.0);
            }
            assert!(
                seq <= self.acked,
                "report {seq} came before {}",
                self.acked + 1
            );
            self.acked
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push,
        /// Send up to this many; the connection delivers that many of them and of the acks.
        Exchange {
            send: usize,
            deliver: usize,
            acks: usize,
        },
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Push),
            3 => (0usize..6, 0usize..6, 0usize..6)
                .prop_map(|(send, deliver, acks)| Op::Exchange { send, deliver, acks }),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        /// Whatever is lost and whenever the agent or the connection restarts: the coordinator
        /// sees every report, in order, and `acked` never goes back.
        #[test]
        fn every_report_arrives_in_order(ops in prop::collection::vec(op(), 0..80)) {
            let mut outbox = Outbox::new([1; 16], 0, []);
            let mut coordinator = Coordinator::default();
            let (mut pushed, mut acked) = (0, 0);
            for op in ops {
                match op {
                    Op::Push => {
                        pushed += 1;
                        prop_assert_eq!(outbox.push(report(pushed)), pushed);
                    }
                    Op::Exchange { send, deliver, acks } => {
                        outbox.connected(coordinator.acked).unwrap();
                        let mut answers = Vec::new();
                        for n in 0..send {
                            let Some((seq, report)) = outbox.next_unsent() else { break };
                            if n < deliver {
                                answers.push(coordinator.take(seq, report));
                            }
                        }
                        for ack in answers.into_iter().take(acks) {
                            outbox.ack(ack);
                            outbox.ack(ack);
                        }
                    }
                    Op::Restart => {
                        let kept: Vec<_> = outbox.reports().map(|(_, r)| r.clone()).collect();
                        outbox = Outbox::new(outbox.id(), outbox.acked(), kept);
                    }
                }
                prop_assert!(outbox.acked() >= acked);
                acked = outbox.acked();
            }
            outbox.connected(coordinator.acked).unwrap();
            while let Some((seq, report)) = outbox.next_unsent() {
                coordinator.take(seq, report);
            }
            prop_assert_eq!(coordinator.seen, (1..=pushed).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_outbox_of_another_past_is_noticed_and_renumbered() {
        let mut outbox = Outbox::new([1; 16], 5, [report(6), report(7)]);
        assert!(outbox.connected(4).is_err());
        assert!(outbox.connected(8).is_err());
        let mut outbox = outbox.renumbered([2; 16]);
        outbox.connected(0).unwrap();
        assert_eq!(outbox.next_unsent().unwrap(), (1, &report(6)));
    }

    #[test]
    fn a_full_outbox_still_takes_ends() {
        let reports = (1..=REPORTS_MAX as u64).map(report);
        let outbox = Outbox::new([1; 16], 0, reports);
        assert!(!outbox.admits(&Event::Started {
            fetch_us: 0,
            load_us: 0
        }));
        assert!(outbox.admits(&Event::Stopped));
    }
}
