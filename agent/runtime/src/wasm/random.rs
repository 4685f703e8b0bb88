//! The randomness a guest sees: the host's, or a seeded stream that is plain data.

use serde::{Deserialize, Serialize};

/// Where a guest's random bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GuestRandom {
    /// The operating system.
    #[default]
    Host,
    /// A reproducible stream.
    Seeded(SeededRandom),
}

/// The BLAKE3 keyed output stream of `seed`, read from `position` on: the same bytes on every
/// machine, and a position is all there is to capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeededRandom {
    /// The key of the stream.
    pub seed: [u8; 32],
    /// Bytes given out so far.
    pub position: u64,
}

impl GuestRandom {
    /// Fills `buf`.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub(crate) fn fill(&mut self, buf: &mut [u8]) -> Result<(), getrandom::Error> {
        match self {
            Self::Host => getrandom::fill(buf),
            Self::Seeded(stream) => {
                let mut reader = blake3::Hasher::new_keyed(&stream.seed).finalize_xof();
                reader.set_position(stream.position);
                reader.fill(buf);
                stream.position = stream.position.wrapping_add(buf.len() as u64);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_seeded_stream_resumes_at_its_position() {
        let start = SeededRandom {
            seed: [7; 32],
            position: 0,
        };
        let mut whole = [0; 40];
        GuestRandom::Seeded(start.clone()).fill(&mut whole).unwrap();
        let mut split = GuestRandom::Seeded(start);
        let (mut a, mut b) = ([0; 13], [0; 27]);
        split.fill(&mut a).unwrap();
        split.fill(&mut b).unwrap();
        assert_eq!([&a[..], &b[..]].concat(), whole);
        assert_ne!(whole, [0; 40]);
    }
}
