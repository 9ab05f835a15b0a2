//! Percentiles, and how far a comparison of two medians can be trusted.

use std::fmt;

use cleanup_tests::random::Random;

/// Resamples for an interval.
const RESAMPLES: usize = 2_000;
/// The same samples give the same interval.
const SEED: u64 = 0x0c0f_fee0;

/// What a distribution is reported as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// `None` without a sample.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            count: sorted.len(),
            p50: percentile(&sorted, 50)?,
            p99: percentile(&sorted, 99)?,
            max: *sorted.last()?,
        })
    }
}

/// A figure with the interval in which it lies with 95 % confidence (bootstrap, percentiles).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// `12.3 (11.9 to 12.8)`, with the precision that was asked for.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, low, high } = self;
        let digits = f.precision().unwrap_or(2);
        write!(f, "{value:.digits$} ({low:.digits$} to {high:.digits$})")
    }
}

/// How many times as large as `b`'s median `a`'s is; `None` without samples, or when that of
/// `b` is 0.
pub(crate) fn ratio_of_medians(a: &[f64], b: &[f64]) -> Option<Estimate> {
    compare_medians(a, b, |a, b| a / b).filter(|ratio| ratio.value.is_finite())
}

/// `a`'s median minus `b`'s; `None` without samples.
pub(crate) fn difference_of_medians(a: &[f64], b: &[f64]) -> Option<Estimate> {
    compare_medians(a, b, |a, b| a - b)
}

fn compare_medians(a: &[f64], b: &[f64], compare: fn(f64, f64) -> f64) -> Option<Estimate> {
    let value = compare(median(&mut a.to_vec())?, median(&mut b.to_vec())?);
    let mut random = Random::new(SEED);
    let mut resampled = |samples: &[f64]| {
        let mut again: Vec<f64> = (0..samples.len())
            .filter_map(|_| random.pick(samples).copied())
            .collect();
        median(&mut again)
    };
    let mut values = (0..RESAMPLES)
        .map(|_| Some(compare(resampled(a)?, resampled(b)?)))
        .collect::<Option<Vec<f64>>>()?;
    values.sort_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: values[RESAMPLES * 25 / 1_000],
        high: values[RESAMPLES * 975 / 1_000 - 1],
    })
}

fn median(samples: &mut [f64]) -> Option<f64> {
    let at = samples.len().checked_sub(1)? / 2;
    Some(*samples.select_nth_unstable_by(at, f64::total_cmp).1)
}

/// By nearest rank: the smallest sample that at least `percent` of all samples
/// do not exceed. Always a value that was measured.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_to(n: u32) -> Vec<f64> {
        (1..=n).map(f64::from).collect()
    }

    #[test]
    fn a_percentile_is_a_sample_and_the_nearest_rank() {
        for (n, percent, expected) in [
            (1, 50, 1.0),
            (1, 99, 1.0),
            (2, 50, 1.0),
            (3, 50, 2.0),
            (100, 50, 50.0),
            (100, 99, 99.0),
            (100, 100, 100.0),
            (101, 99, 100.0),
            (200, 99, 198.0),
            (5, 0, 1.0),
        ] {
            let found = percentile(&count_to(n), percent);
            assert_eq!(found, Some(expected), "p{percent} of 1..={n}");
        }
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order() {
        let mut samples = count_to(200);
        samples.reverse();
        samples.swap(3, 77);
        let summary = Summary::of(samples);
        let expected = Summary {
            count: 200,
            p50: 100.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(summary, Some(expected));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_median_is_the_percentile() {
        for n in 1..=9 {
            let mut samples = count_to(n);
            assert_eq!(median(&mut samples.clone()), percentile(&samples, 50));
            samples.reverse();
            assert_eq!(median(&mut samples), percentile(&count_to(n), 50));
        }
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn the_interval_holds_the_figure_and_narrows_with_samples() {
        let twice = |n: u32| -> Vec<f64> { count_to(n).iter().map(|x| 2.0 * x).collect() };
        let few = ratio_of_medians(&twice(10), &count_to(10)).unwrap();
        let many = ratio_of_medians(&twice(1_000), &count_to(1_000)).unwrap();
        for estimate in [few, many] {
            assert_eq!(estimate.value, 2.0);
            assert!(estimate.low < 2.0 && estimate.high > 2.0, "{estimate}");
        }
        assert!(many.high - many.low < (few.high - few.low) / 2.0);
        let same = difference_of_medians(&[3.0; 20], &[1.0; 20]).unwrap();
        assert_eq!((same.value, same.low, same.high), (2.0, 2.0, 2.0));
        assert_eq!(format!("{same:.1}"), "2.0 (2.0 to 2.0)");
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        assert_eq!(ratio_of_medians(&[], &[1.0]), None);
        assert_eq!(difference_of_medians(&[1.0], &[]), None);
        assert_eq!(ratio_of_medians(&[1.0], &[0.0]), None);
    }
}
