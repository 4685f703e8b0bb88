//! Seeded mutations of a corpus: what the ordinary tests do where libFuzzer would.

/// Longest mutated input, in bytes.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Longest by repetition alone, but for one round in [`LARGE_EVERY`].
const REPEATED_BYTES_MAX: usize = 4 << 10;
/// One repetition of so many makes a large input.
const LARGE_EVERY: u64 = 16;
/// Most mutations of one input.
const STEPS_MAX: u64 = 6;
/// Numbers at which code breaks.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// A small generator of numbers (SplitMix64): the same for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of round `round` under `seed`.
    #[must_use]
    pub fn new(seed: u64, round: u64) -> Self {
        Self(seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // Below a `usize`, so it fits one.
        (self.draw() % bound as u64) as usize
    }
}

/// One of `corpus`, changed in a few places.
#[must_use]
pub fn mutated(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[rng.below(corpus.len())].clone();
    for _ in 0..=rng.draw() % STEPS_MAX {
        step(rng, &mut bytes, corpus);
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}

fn step(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.below(bytes.len() + 1);
    match rng.draw() % 10 {
        0..=2 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        3 if at < bytes.len() => bytes[at] = rng.draw() as u8,
        4 => bytes.truncate(at),
        5 => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
            let width = 1 << rng.below(4);
            for (byte, new) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                *byte = *new;
            }
        }
        6 => {
            let new: Vec<u8> = (0..=rng.below(8)).map(|_| rng.draw() as u8).collect();
            bytes.splice(at..at, new);
        }
        7 => {
            let end = bytes.len().min(at + 1 + rng.below(32));
            bytes.drain(at..end);
        }
        8 => repeat(rng, bytes, at),
        _ => {
            let other = &corpus[rng.below(corpus.len())];
            let from = rng.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// Repeats a piece of the bytes in its place.
fn repeat(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let end = bytes.len().min(at + 1 + rng.below(16));
    let piece = bytes[at..end].to_vec();
    if piece.is_empty() {
        return;
    }
    let large = rng.draw().is_multiple_of(LARGE_EVERY);
    let len = match large {
        true => rng.below(INPUT_BYTES_MAX),
        false => rng.below(REPEATED_BYTES_MAX),
    };
    let new = piece.iter().copied().cycle().take(len);
    bytes.splice(at..at, new.collect::<Vec<_>>());
}
