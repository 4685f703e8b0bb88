//! What a journal frame says: a group of commits with consecutive revisions.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Op, Result, Revision,
    scan::{Scan, stored_key},
};

/// What a journal frame holds. Variants are only ever appended.
#[derive(Debug, Serialize, Deserialize)]
enum JournalRecord {
    /// Commits with consecutive revisions, from the frame's sequence on.
    Group(Group),
}

/// Commits, each a list of changes.
pub(super) type Group = Vec<Vec<StoredOp>>;

/// A change as stored: values are sealed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StoredOp {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

/// The bytes of a group.
pub(super) fn encode_group(group: &[Vec<Op>]) -> Vec<u8> {
    let stored = |op: &Op| match op {
        Op::Put(key, sealed) => StoredOp::Put(key.bytes().clone(), sealed.clone()),
        Op::Delete(key) => StoredOp::Delete(key.bytes().clone()),
    };
    let group = group
        .iter()
        .map(|ops| ops.iter().map(stored).collect())
        .collect();
    postcard::to_allocvec(&JournalRecord::Group(group)).expect("a record in memory can be encoded")
}

/// Reads the group of a frame that must follow commit `last`.
pub(super) fn decode_group(
    scan: &Scan<'_>,
    offset: u64,
    sequence: u64,
    last: Revision,
    plain: &[u8],
) -> Result<Group> {
    if sequence != last.next().0 {
        let affected = format!("commit {} is missing, {sequence} follows", last.next());
        return Err(scan.corrupt(offset, affected));
    }
    match postcard::from_bytes(plain) {
        Ok(JournalRecord::Group(group)) if !group.is_empty() => Ok(group),
        _ => {
            let affected = format!(
                "the group of commits from {sequence} on is of an unknown form; was it written \
                 by a newer version?"
            );
            Err(scan.corrupt(offset, affected))
        }
    }
}

/// The changes of one commit.
pub(super) fn decode_ops(scan: &Scan<'_>, offset: u64, ops: Vec<StoredOp>) -> Result<Vec<Op>> {
    ops.into_iter()
        .map(|op| {
            Ok(match op {
                StoredOp::Put(key, sealed) => Op::Put(stored_key(scan, offset, key)?, sealed),
                StoredOp::Delete(key) => Op::Delete(stored_key(scan, offset, key)?),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Key;

    #[test]
    fn group_has_golden_bytes() {
        let key = |k: &'static str| Key::new(k).unwrap();
        let group = [
            vec![
                Op::Put(key("a"), Bytes::from_static(b"xy")),
                Op::Delete(key("b")),
            ],
            vec![Op::Delete(key("c"))],
        ];
        let bytes = encode_group(&group);
        assert_eq!(
            bytes,
            [
                0, 2, 2, 0, 1, b'a', 2, b'x', b'y', 1, 1, b'b', 1, 1, 1, b'c'
            ]
        );
    }
}
