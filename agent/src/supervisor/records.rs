//! What the supervisor stores: a ledger record per instance, its assignment in parts, and the
//! outbox. One transaction per step, so that a record and its report appear together. The facts of
//! ownership are in the [`super::ledger`] too.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use hop3_common::{
    id::{InstanceId, UnixMs},
    ownership::LedgerEntry,
    store::{Error, MetaStore, Op, RECORD_BYTES_MAX, Record, RecordError, Table, Txn, decode_body},
    wire::{Assignment, Phase, Report},
};
use serde::{Deserialize, Serialize};

use super::{
    core::{Outcome, Stored},
    past,
};
use crate::session::outbox::{Outbox, OutboxId};

/// Largest encoded assignment, bytes: arguments and environment (64 KiB) with room.
pub(super) const ASSIGNMENT_BYTES_MAX: usize = 256 << 10;
/// Bytes of an assignment in one record.
const PART_BYTES: usize = RECORD_BYTES_MAX - 64;

/// The ownership of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LedgerRecord {
    entry: LedgerEntry,
    held: Option<HeldRecord>,
    /// Order among forgotten instances.
    order: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct HeldRecord {
    phase: Phase,
    outcome: Option<Outcome>,
    /// Parts of its assignment.
    parts: u16,
}

impl Record for LedgerRecord {
    const KIND: &'static str = "instance";
    const VERSION: u16 = 1;
}

/// A piece of an encoded assignment, under `<instance>/<part>`. Its version is the assignment's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AssignmentPart {
    bytes: Bytes,
    #[serde(skip)]
    old: bool,
}

impl Record for AssignmentPart {
    const KIND: &'static str = "assignment";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        match from {
            1 => decode_body(Self::KIND, body).map(|bytes| Self { bytes, old: true }),
            _ => Err(unknown::<Self>(from)),
        }
    }
}

/// An unacknowledged report, under its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReportRecord(Report);

impl Record for ReportRecord {
    const KIND: &'static str = "report";
    const VERSION: u16 = 2;

    fn upgrade(from: u16, body: &[u8]) -> Result<Self, RecordError> {
        match from {
            1 => past::report(Self::KIND, body).map(Self),
            _ => Err(unknown::<Self>(from)),
        }
    }
}

fn unknown<R: Record>(found: u16) -> RecordError {
    RecordError::Version {
        kind: R::KIND,
        found,
        known: R::VERSION,
    }
}

/// The outbox's name and its last acknowledged number, under [`OUTBOX`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OutboxRecord {
    id: OutboxId,
    acked: u64,
}

impl Record for OutboxRecord {
    const KIND: &'static str = "outbox";
    const VERSION: u16 = 1;
}

const OUTBOX: &str = "outbox";
const LEDGER: Table<LedgerRecord> = Table::new();
const PARTS: Table<AssignmentPart> = Table::new();
const REPORTS: Table<ReportRecord> = Table::new();
const META: Table<OutboxRecord> = Table::new();

fn part_id(instance: &InstanceId, part: usize) -> String {
    format!("{instance}/{part:04}")
}

fn report_id(seq: u64) -> String {
    format!("{seq:020}")
}

/// Changes that become durable together; a later change of a key replaces an earlier one.
#[derive(Debug, Default)]
pub(super) struct Changes {
    ops: BTreeMap<Vec<u8>, Op>,
    bytes: usize,
}

impl Changes {
    fn add(&mut self, op: Op) {
        if let Op::Put(_, value) = &op {
            self.bytes += value.len();
        }
        self.ops.insert(op.key().as_bytes().to_vec(), op);
    }

    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Bytes of values, replaced ones included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn into_txn(self) -> Txn {
        self.ops.into_values().fold(Txn::new(), Txn::op)
    }

    /// Stores what is known of an instance; with its assignment if `assignment_too`. `before` is
    /// the number of parts stored until now.
    pub(super) fn instance(
        &mut self,
        id: &InstanceId,
        stored: Option<&Stored>,
        before: u16,
        assignment_too: bool,
    ) -> Result<u16, Error> {
        let mut parts = 0;
        match stored {
            Some(Stored::Held {
                assignment,
                ledger,
                phase,
                outcome,
            }) => {
                parts = if assignment_too {
                    self.assignment(id, assignment)?
                } else {
                    before
                };
                let (phase, outcome) = (*phase, outcome.clone());
                let held = Some(HeldRecord {
                    phase,
                    outcome,
                    parts,
                });
                let record = LedgerRecord {
                    entry: *ledger,
                    held,
                    order: 0,
                };
                self.add(LEDGER.put_op(id.as_str(), &record)?);
            }
            Some(Stored::Tombstone { ledger, order }) => {
                let record = LedgerRecord {
                    entry: *ledger,
                    held: None,
                    order: *order,
                };
                self.add(LEDGER.put_op(id.as_str(), &record)?);
            }
            None => self.add(LEDGER.delete_op(id.as_str())?),
        }
        for part in parts..before {
            self.add(PARTS.delete_op(&part_id(id, part.into()))?);
        }
        Ok(parts)
    }

    fn assignment(&mut self, id: &InstanceId, assignment: &Assignment) -> Result<u16, Error> {
        let bytes = Bytes::from(encode(assignment));
        let mut parts = 0;
        for (part, piece) in bytes.chunks(PART_BYTES).enumerate() {
            let record = AssignmentPart {
                bytes: bytes.slice_ref(piece),
                old: false,
            };
            self.add(PARTS.put_op(&part_id(id, part), &record)?);
            parts += 1;
        }
        Ok(parts)
    }

    pub(super) fn report(&mut self, seq: u64, report: &Report) -> Result<(), Error> {
        self.add(REPORTS.put_op(&report_id(seq), &ReportRecord(report.clone()))?);
        Ok(())
    }

    /// Everything up to `acked` is durable at the coordinator.
    pub(super) fn acked(&mut self, id: OutboxId, acked: u64) -> Result<(), Error> {
        self.add(META.put_op(OUTBOX, &OutboxRecord { id, acked })?);
        Ok(())
    }

    pub(super) fn drop_report(&mut self, seq: u64) -> Result<(), Error> {
        self.add(REPORTS.delete_op(&report_id(seq))?);
        Ok(())
    }
}

fn encode(assignment: &Assignment) -> Vec<u8> {
    postcard::to_allocvec(assignment).expect("a decoded message can be encoded again")
}

/// Whether an assignment is small enough to keep.
pub(super) fn fits(assignment: &Assignment) -> bool {
    encode(assignment).len() <= ASSIGNMENT_BYTES_MAX
}

/// Whether a report can be stored.
pub(super) fn report_fits(report: &Report) -> bool {
    postcard::to_allocvec(report).is_ok_and(|bytes| bytes.len() < RECORD_BYTES_MAX)
}

/// Everything stored, as the core takes it, with the number of parts of each assignment.
pub(super) async fn load(store: &dyn MetaStore) -> Result<Vec<(InstanceId, Stored, u16)>, Error> {
    let mut all = Vec::new();
    for item in LEDGER.all(store).await? {
        let Ok(id) = item.id.parse::<InstanceId>() else {
            tracing::warn!(
                id = item.id,
                "a stored instance has no valid name: left out"
            );
            continue;
        };
        let LedgerRecord {
            entry: ledger,
            held,
            order,
        } = item.record;
        let Some(held) = held else {
            all.push((id, Stored::Tombstone { ledger, order }, 0));
            continue;
        };
        match assignment(store, &id, held.parts).await? {
            Some(assignment) => {
                let HeldRecord {
                    phase,
                    outcome,
                    parts,
                } = held;
                let assignment = Arc::new(assignment);
                all.push((
                    id,
                    Stored::Held {
                        assignment,
                        ledger,
                        phase,
                        outcome,
                    },
                    parts,
                ));
            }
            None => tracing::error!(instance = %id, "its stored assignment is damaged: left out"),
        }
    }
    Ok(all)
}

async fn assignment(
    store: &dyn MetaStore,
    id: &InstanceId,
    parts: u16,
) -> Result<Option<Assignment>, Error> {
    let (mut bytes, mut old) = (Vec::new(), false);
    for part in 0..parts {
        let Some(item) = PARTS.get(store, &part_id(id, part.into())).await? else {
            return Ok(None);
        };
        bytes.extend_from_slice(&item.record.bytes);
        old |= item.record.old;
    }
    Ok(if old {
        past::assignment(&bytes)
    } else {
        postcard::from_bytes(&bytes).ok()
    })
}

/// The outbox as stored, or a new one under `new_id`.
pub(super) async fn load_outbox(store: &dyn MetaStore, new_id: OutboxId) -> Result<Outbox, Error> {
    let meta = match META.get(store, OUTBOX).await? {
        Some(item) => item.record,
        None => {
            let meta = OutboxRecord {
                id: new_id,
                acked: 0,
            };
            let _durable = META.put(store, OUTBOX, &meta).await?;
            meta
        }
    };
    let mut reports = Vec::new();
    for item in REPORTS.all(store).await? {
        // What was acknowledged may be left over from a crash before its removal.
        if item.id.parse::<u64>().is_ok_and(|seq| seq > meta.acked) {
            reports.push(item.record.0);
        }
    }
    Ok(Outbox::new(meta.id, meta.acked, reports))
}

/// The report of an assignment that is too large to keep.
pub(super) fn too_large(at: UnixMs, assignment: &Assignment) -> Report {
    use hop3_common::{
        codes::{Code, Problem},
        ownership::{Incarnation, Token},
        wire::Event,
    };
    let message = format!(
        "the assignment exceeds {ASSIGNMENT_BYTES_MAX} bytes: pass arguments as input instead"
    );
    Report {
        instance: assignment.instance.clone(),
        token: Token {
            epoch: assignment.epoch,
            incarnation: Incarnation(0),
        },
        at,
        event: Event::Failed(Problem::new(Code::TooLarge, message)),
    }
}
