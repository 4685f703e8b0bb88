//! u8 × i8 matrix products as x86 with AVX2 computes them: the two products of each pair of
//! neighbours along `k` are added in 16 bits, saturating; the pairs are added in 32 bits.
//!
//! Every processor gets the same numbers: those with AVX2 from the instruction, all others from
//! the same arithmetic in plain code. JUSTIFICATION of `unsafe`: calling code for an instruction
//! set that was just asked for, and moving 32 bytes between memory and its registers.

/// Columns that are computed together.
pub(super) const COLUMNS: usize = 16;
/// Rows that are computed together.
const ROWS: usize = 4;
/// Numbers along `k` that an instruction takes per column.
pub(super) const DEPTH: usize = 4;

/// `DEPTH` weights of each of `COLUMNS` columns.
type Group = [[i8; DEPTH]; COLUMNS];
/// Sums of one row, `COLUMNS` columns.
pub(super) type Sums = [i32; COLUMNS];

/// A `k` × `n` matrix of weights in the order in which they are needed.
#[derive(Debug)]
pub(super) struct Weights {
    /// By blocks of columns, then along `k`. What is missing at the ends is zero.
    blocks: Vec<Vec<Group>>,
    groups: usize,
    columns: usize,
}

impl Weights {
    /// Packs the matrix that `weight(k, n)` reads.
    pub(super) fn pack(k: usize, n: usize, weight: impl Fn(usize, usize) -> i8) -> Self {
        let groups = k.div_ceil(DEPTH);
        let block = |block: usize| {
            let group = |group: usize| {
                let mut packed = Group::default();
                for (column, weights) in packed.iter_mut().enumerate() {
                    for (i, w) in weights.iter_mut().enumerate() {
                        let (k_at, n_at) = (group * DEPTH + i, block * COLUMNS + column);
                        if k_at < k && n_at < n {
                            *w = weight(k_at, n_at);
                        }
                    }
                }
                packed
            };
            (0..groups).map(group).collect()
        };
        Self {
            blocks: (0..n.div_ceil(COLUMNS)).map(block).collect(),
            groups,
            columns: n,
        }
    }

    /// Bytes of a row of the left matrix: `k`, rounded up to whole groups. What is past `k` does
    /// not matter, its weights are zero.
    pub(super) fn row_bytes(&self) -> usize {
        self.groups * DEPTH
    }

    /// Columns of the result.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Multiplies rows of [`Weights::row_bytes`] bytes; gives `sink(row, first column, sums)`.
    pub(super) fn multiply(&self, rows: &[u8], mut sink: impl FnMut(usize, usize, &Sums)) {
        let (rows, _) = rows.as_chunks::<DEPTH>();
        if self.groups == 0 {
            return;
        }
        let rows: Vec<&[[u8; DEPTH]]> = rows.chunks_exact(self.groups).collect();
        let tile = Tile::of_this_machine();
        for (at, four) in rows.chunks(ROWS).enumerate() {
            for (block, weights) in self.blocks.iter().enumerate() {
                let mut sums = [[0; COLUMNS]; ROWS];
                match four.try_into() {
                    Ok(four) => tile.compute::<ROWS>(four, weights, &mut sums),
                    Err(_) => four.iter().zip(&mut sums).for_each(|(row, sums)| {
                        tile.compute::<1>(&[row], weights, std::array::from_mut(sums));
                    }),
                }
                for (i, sums) in sums.iter().take(four.len()).enumerate() {
                    sink(at * ROWS + i, block * COLUMNS, sums);
                }
            }
        }
    }
}

/// How a block of sums is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Tile {
    fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Portable
    }

    #[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
    fn compute<const R: usize>(
        self,
        rows: &[&[[u8; DEPTH]]; R],
        weights: &[Group],
        sums: &mut [Sums; R],
    ) {
        match self {
            Self::Portable => portable(rows, weights, sums),
            // SAFETY: `Avx2` is only made where the processor has it.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::avx2(rows, weights, sums) },
        }
    }
}

fn portable<const R: usize>(rows: &[&[[u8; DEPTH]]; R], weights: &[Group], sums: &mut [Sums; R]) {
    // A product is at least -255 · 128 and at most 255 · 127: it fits.
    let product = |a: u8, w: i8| i16::from(a) * i16::from(w);
    for (row, sums) in rows.iter().zip(sums) {
        for (a, group) in row.iter().zip(weights) {
            for (w, sum) in group.iter().zip(&mut *sums) {
                for i in [0, 2] {
                    let pair = product(a[i], w[i]).saturating_add(product(a[i + 1], w[i + 1]));
                    *sum = sum.wrapping_add(i32::from(pair));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
    };

    use super::{COLUMNS, DEPTH, Group, Sums};

    const HALF: usize = COLUMNS / 2;

    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) fn avx2<const R: usize>(
        rows: &[&[[u8; DEPTH]]; R],
        weights: &[Group],
        sums: &mut [Sums; R],
    ) {
        let rows = rows.map(|row| &row[..weights.len()]);
        let ones = _mm256_set1_epi16(1);
        let mut left = [_mm256_setzero_si256(); R];
        let mut right = [_mm256_setzero_si256(); R];
        for (i, group) in weights.iter().enumerate() {
            let half = |at: usize| {
                let half: *const __m256i = group[at..at + HALF].as_ptr().cast();
                // SAFETY: a half of a group is 32 bytes; the load asks for no alignment.
                unsafe { _mm256_loadu_si256(half) }
            };
            let (first, second) = (half(0), half(HALF));
            for r in 0..R {
                let a = _mm256_set1_epi32(i32::from_le_bytes(rows[r][i]));
                let pairs = _mm256_maddubs_epi16(a, first);
                left[r] = _mm256_add_epi32(left[r], _mm256_madd_epi16(pairs, ones));
                let pairs = _mm256_maddubs_epi16(a, second);
                right[r] = _mm256_add_epi32(right[r], _mm256_madd_epi16(pairs, ones));
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let (low, high) = sums.split_at_mut(HALF);
            // SAFETY: both halves are 32 bytes; the store asks for no alignment.
            unsafe {
                _mm256_storeu_si256(low.as_mut_ptr().cast(), left[r]);
                _mm256_storeu_si256(high.as_mut_ptr().cast(), right[r]);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn product(weights: &Weights, rows: &[u8]) -> Vec<i32> {
        let n = weights.columns();
        let mut out = vec![0; rows.len() / weights.row_bytes() * n];
        weights.multiply(rows, |row, column, sums| {
            let width = COLUMNS.min(n - column);
            out[row * n + column..][..width].copy_from_slice(&sums[..width]);
        });
        out
    }

    #[test]
    fn small_products_are_exact_and_large_pairs_saturate() {
        let weights = Weights::pack(3, 2, |k, n| [[1, -2], [3, 4], [-5, 6]][k][n]);
        assert_eq!(product(&weights, &[1, 2, 3, 9]), [1 + 6 - 15, -2 + 8 + 18]);
        let weights = Weights::pack(4, 1, |_, _| 127);
        assert_eq!(product(&weights, &[255; 4]), [2 * 32_767]);
        let weights = Weights::pack(4, 1, |_, _| -128);
        assert_eq!(product(&weights, &[255, 255, 255, 0]), [-32_768 - 32_640]);
    }

    proptest! {
        #[test]
        fn this_machine_and_plain_code_agree(
            groups in 1usize..9,
            rows in prop::collection::vec(any::<u8>(), 5 * 9 * DEPTH),
            weights in prop::collection::vec(any::<i8>(), 9 * DEPTH * COLUMNS),
        ) {
            let packed = Weights::pack(groups * DEPTH, COLUMNS, |k, n| weights[k * COLUMNS + n]);
            let rows = &rows[..5 * groups * DEPTH];
            let mut expected = Vec::new();
            for row in rows.as_chunks::<DEPTH>().0.chunks(groups) {
                let mut sums = [[0; COLUMNS]];
                portable(&[row], &packed.blocks[0], &mut sums);
                expected.extend(sums[0]);
            }
            prop_assert_eq!(product(&packed, rows), expected);
        }
    }
}
