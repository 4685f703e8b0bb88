//! What is unusual: a value far from the ones before it, in units of their usual distance from
//! their median (a robust z-score). Median and distance are not moved by the outliers themselves,
//! nor by a series that slowly changes. Memory is bounded by the window.

use std::collections::VecDeque;

/// Distance of the median from the quartile of a normal distribution, in standard deviations.
const MAD_TO_STDDEV: f64 = 1.4826;

/// Judges each value of a series by the ones before it.
pub(crate) struct Detector {
    recent: VecDeque<f64>,
    /// The same values, in order.
    sorted: Vec<f64>,
    window: usize,
    threshold: f64,
}

impl Detector {
    /// Unusual is what lies more than `threshold` standard deviations, estimated by the median
    /// distance, from the median of the last `window` values (at least two).
    pub(crate) fn new(window: usize, threshold: f64) -> Self {
        let window = window.max(2);
        Self {
            recent: VecDeque::with_capacity(window),
            sorted: Vec::with_capacity(window),
            window,
            threshold,
        }
    }

    /// Takes the next value; its score if it is unusual. Nothing is before the window is full. A
    /// value that leaves a constant series is infinitely far.
    pub(crate) fn next(&mut self, value: f64) -> Option<f64> {
        let score = (self.recent.len() == self.window).then(|| self.score(value));
        self.push(value);
        score.filter(|score| score.abs() > self.threshold)
    }

    fn score(&self, value: f64) -> f64 {
        let median = self.sorted[self.sorted.len() / 2];
        let distance = value - median;
        if distance == 0.0 {
            0.0
        } else {
            distance / (MAD_TO_STDDEV * self.median_distance(median))
        }
    }

    /// The median of the distances to `median`: two runs of sorted distances, merged half way.
    fn median_distance(&self, median: f64) -> f64 {
        let middle = self.sorted.partition_point(|value| *value < median);
        let (mut low, mut high) = (middle, middle);
        let mut distance = 0.0;
        for _ in 0..=self.sorted.len() / 2 {
            let below = low.checked_sub(1).map(|at| median - self.sorted[at]);
            let above = self.sorted.get(high).map(|value| value - median);
            distance = match (below, above) {
                (Some(below), Some(above)) if below < above => below,
                (Some(below), None) => below,
                (_, Some(above)) => {
                    high += 1;
                    distance = above;
                    continue;
                }
                (None, None) => break,
            };
            low -= 1;
        }
        distance
    }

    fn push(&mut self, value: f64) {
        if self.recent.len() == self.window
            && let Some(oldest) = self.recent.pop_front()
        {
            let at = self.sorted.partition_point(|other| *other < oldest);
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|other| *other < value);
        self.sorted.insert(at, value);
        self.recent.push_back(value);
    }
}

/// Count, mean and spread of all values so far (Welford's way, which does not cancel).
#[derive(Default)]
pub(crate) struct Summary {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Summary {
    /// Takes a value.
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1;
        let distance = value - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (value - self.mean);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Their mean.
    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Their standard deviation; 0 for one value, or none.
    pub(crate) fn stddev(&self) -> f64 {
        match self.count {
            0 => 0.0,
            count => (self.squares / count as f64).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_spike_and_nothing_else() {
        let mut detector = Detector::new(20, 6.0);
        let series = (0..200).map(|i| if i == 150 { 60.0 } else { f64::from(i % 7) });
        let found = series
            .enumerate()
            .filter_map(|(i, v)| detector.next(v).map(|_| i));
        assert_eq!(found.collect::<Vec<_>>(), [150]);
    }

    #[test]
    fn agrees_with_the_definition() {
        let mut detector = Detector::new(11, 0.0);
        let series: Vec<f64> = (0..500_u32)
            .map(|i| f64::from(i.wrapping_mul(2_654_435_761) >> 24))
            .collect();
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        for i in 0..series.len() {
            let found = detector.next(series[i]);
            if i < 11 {
                assert_eq!(found, None);
                continue;
            }
            let before = series[i - 11..i].to_vec();
            let middle = median(before.clone());
            let spread = median(before.iter().map(|v| (v - middle).abs()).collect());
            let expected = (series[i] - middle) / (MAD_TO_STDDEV * spread);
            let found = found.unwrap_or(0.0);
            assert!(
                (found - expected).abs() < 1e-9,
                "{i}: {found} for {expected}"
            );
        }
    }

    #[test]
    fn leaving_a_constant_series_is_unusual_and_staying_is_not() {
        let mut detector = Detector::new(4, 3.0);
        assert!((0..10).all(|_| detector.next(5.0).is_none()));
        assert_eq!(detector.next(5.1), Some(f64::INFINITY));
    }

    #[test]
    fn summaries_are_exact_far_from_zero() {
        let mut summary = Summary::default();
        assert_eq!((summary.mean(), summary.stddev()), (0.0, 0.0));
        for value in [1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0] {
            summary.add(value);
        }
        assert!((summary.mean() - (1e9 + 10.0)).abs() < 1e-3);
        assert!((summary.stddev() - 22.5_f64.sqrt()).abs() < 1e-6);
    }
}
