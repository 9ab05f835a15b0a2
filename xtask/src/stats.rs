//! Percentiles.

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
}
