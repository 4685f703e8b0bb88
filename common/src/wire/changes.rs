//! Several changes of an instance as one blob: a part of a checkpoint that a replica's end is made
//! into.
//!
//! ```text
//! magic 8 · (length 4, little-endian · delta)*
//! ```

/// How such a blob begins.
const MAGIC: &[u8; 8] = b"HOP3CHGS";

/// The blob of `deltas`, in order.
#[must_use]
pub fn encode<'a>(deltas: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for delta in deltas {
        let len = u32::try_from(delta.len()).expect("a change is far below 4 GiB");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(delta);
    }
    out
}

/// The deltas of such a blob; `None` if `bytes` are something else, `Err` where they are cut.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Result<Vec<&[u8]>, Cut>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut deltas = Vec::new();
    while !rest.is_empty() {
        let next = rest.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            rest.split_at_checked(len)
        });
        let Some((delta, after)) = next else {
            let at = bytes.len() - rest.len();
            return Some(Err(Cut { at }));
        };
        deltas.push(delta);
        rest = after;
    }
    Some(Ok(deltas))
}

/// The blob ends within a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the changes are cut at byte {at}")]
pub struct Cut {
    /// Where the change that is not whole begins.
    pub at: usize,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn changes_come_back_and_a_cut_is_seen(
            deltas in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            cut in 1usize..4,
        ) {
            let bytes = encode(deltas.iter().map(Vec::as_slice));
            prop_assert_eq!(decode(&bytes).unwrap().unwrap(), deltas);
            let short = &bytes[..bytes.len() - cut];
            prop_assert!(decode(short).is_none_or(|found| found.is_err()));
        }
    }

    #[test]
    fn other_blobs_are_not_taken_for_changes() {
        assert_eq!(decode(b"HOP3DELT..."), None);
        assert_eq!(encode([]), MAGIC);
    }
}
