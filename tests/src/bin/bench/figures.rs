//! Medians and percentiles.

/// The median; the mean of the two in the middle of an even number. NaN for none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The smallest sample that `permille` of all are not above (nearest rank). 0 for none.
pub(crate) fn percentile(samples: &mut [u32], permille: usize) -> u32 {
    if samples.is_empty() {
        return 0;
    }
    samples.sort_unstable();
    let rank = (samples.len() * permille)
        .div_ceil(1000)
        .clamp(1, samples.len());
    samples[rank - 1]
}

/// A figure as people read it: three significant digits, more if they are whole.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        a if a >= 1000.0 => {
            let digits = format!("{a:.0}");
            let mut out = String::new();
            for (i, digit) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) {
                    out.push(',');
                }
                out.push(digit);
            }
            if value < 0.0 { format!("-{out}") } else { out }
        }
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        a if a >= 0.001 || a == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_do_not_depend_on_order() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let mut samples: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 500), 50);
        assert_eq!(percentile(&mut samples, 990), 99);
        assert_eq!(percentile(&mut samples, 1000), 100);
        assert_eq!(percentile(&mut [7], 10), 7);
        assert_eq!(percentile(&mut [], 500), 0);
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (0.0, "0.000"),
            (0.1234, "0.123"),
            (1.005, "1.00"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1,234"),
            (20_000.0, "20,000"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(show(value), text);
        }
    }
}
