//! Judges transactions, pure: which preconditions hold, which changes are real.

use super::{Error, Key, Op, Precondition, Result, Revision, Txn};

/// Checks `txn` against the revisions that `lookup` knows and gives the changes to make.
///
/// Deletions of absent keys are left out, so that they wake no watcher and cost no revision.
pub(super) fn resolve(
    txn: Txn,
    mut lookup: impl FnMut(&Key) -> Result<Option<Revision>>,
) -> Result<Vec<Op>> {
    for (key, expected) in txn.preconditions {
        let actual = lookup(&key)?;
        let holds = match expected {
            Precondition::Absent => actual.is_none(),
            Precondition::Exists => actual.is_some(),
            Precondition::RevisionIs(revision) => actual == Some(revision),
        };
        if !holds {
            return Err(Error::Conflict {
                key,
                expected,
                actual,
            });
        }
    }
    let mut real = Vec::with_capacity(txn.ops.len());
    for op in txn.ops {
        if matches!(op, Op::Put(..)) || lookup(op.key())?.is_some() {
            real.push(op);
        }
    }
    Ok(real)
}
