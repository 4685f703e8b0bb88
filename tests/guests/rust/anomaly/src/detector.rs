//! A value is unusual if it lies far from the ones before it, measured in their standard
//! deviations: a rolling z-score.
//!
//! Memory is bounded by the window. Sums are kept over the window's values less their first
//! one, which keeps them small next to what they measure, and made anew once per window, so
//! that rounding errors cannot pile up.

use std::collections::VecDeque;

/// Judges each value of a series by the `window` values before it.
pub struct Detector {
    recent: VecDeque<f64>,
    window: usize,
    threshold: f64,
    origin: f64,
    sum: f64,
    squares: f64,
    until_renewal: usize,
}

impl Detector {
    /// Unusual is what lies more than `threshold` standard deviations from the mean of the last
    /// `window` values (at least two).
    pub fn new(window: usize, threshold: f64) -> Self {
        let window = window.max(2);
        Self {
            recent: VecDeque::with_capacity(window),
            window,
            threshold,
            origin: 0.0,
            sum: 0.0,
            squares: 0.0,
            until_renewal: window,
        }
    }

    /// Takes the next value; its z-score if it is unusual. Nothing is unusual before the window
    /// is full. A value that leaves a constant series is infinitely far.
    pub fn next(&mut self, value: f64) -> Option<f64> {
        let score = (self.recent.len() == self.window).then(|| self.score(value));
        self.push(value);
        score.filter(|score| score.abs() > self.threshold)
    }

    fn score(&self, value: f64) -> f64 {
        let count = self.recent.len() as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        let distance = value - self.origin - mean;
        if distance == 0.0 {
            0.0
        } else {
            distance / variance.sqrt()
        }
    }

    fn push(&mut self, value: f64) {
        if self.recent.len() == self.window
            && let Some(oldest) = self.recent.pop_front()
        {
            let oldest = oldest - self.origin;
            self.sum -= oldest;
            self.squares -= oldest * oldest;
        }
        self.recent.push_back(value);
        let shifted = value - self.origin;
        self.sum += shifted;
        self.squares += shifted * shifted;
        self.until_renewal -= 1;
        if self.until_renewal == 0 {
            self.renew();
        }
    }

    fn renew(&mut self) {
        self.until_renewal = self.window;
        self.origin = self.recent.front().copied().unwrap_or(0.0);
        let shifted = || self.recent.iter().map(|value| value - self.origin);
        let (sum, squares) = (shifted().sum(), shifted().map(|v| v * v).sum());
        (self.sum, self.squares) = (sum, squares);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_spike_and_nothing_else() {
        let mut detector = Detector::new(20, 4.0);
        let series = (0..200).map(|i| if i == 150 { 60.0 } else { f64::from(i % 7) });
        let found: Vec<_> = series
            .enumerate()
            .filter_map(|(i, v)| detector.next(v).map(|_| i))
            .collect();
        assert_eq!(found, [150]);
    }

    #[test]
    fn agrees_with_the_definition_far_from_zero_over_many_windows() {
        let mut detector = Detector::new(10, 0.0);
        let series: Vec<f64> = (0..1000_u32)
            .map(|i| 1e9 + f64::from(i.wrapping_mul(2_654_435_761) >> 24))
            .collect();
        for i in 0..series.len() {
            let found = detector.next(series[i]);
            if i < 10 {
                assert_eq!(found, None);
                continue;
            }
            let before = &series[i - 10..i];
            let mean = before.iter().sum::<f64>() / 10.0;
            let variance = before.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 10.0;
            let expected = (series[i] - mean) / variance.sqrt();
            let found = found.unwrap_or(0.0);
            assert!(
                (found - expected).abs() < 1e-6,
                "{i}: {found} for {expected}"
            );
        }
    }

    #[test]
    fn leaving_a_constant_series_is_unusual_and_staying_is_not() {
        let mut detector = Detector::new(4, 3.0);
        for _ in 0..10 {
            assert_eq!(detector.next(5.0), None);
        }
        assert_eq!(detector.next(5.1), Some(f64::INFINITY));
    }
}
