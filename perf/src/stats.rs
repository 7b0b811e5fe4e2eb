//! Statistics of paired measurements.
//!
//! Two subjects are measured one right after the other, again and again; each
//! pair gives one ratio, so what disturbs the machine for longer than a pair
//! hits both alike. The verdict is the ratios' median; its interval comes
//! from order statistics, which assume nothing about the distribution: with n
//! ratios the median lies between the k-th smallest and the k-th largest with
//! probability 1 − 2·P(B < k), B binomial(n, ½).

use serde::{Deserialize, Serialize};

/// A median with the interval that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Median {
    /// The median.
    pub value: f64,
    /// Lower and upper bound at `confidence`.
    pub interval: (f64, f64),
    /// Probability that the interval holds the true median; with five or
    /// fewer values even the whole range does not reach 0.95.
    pub confidence: f64,
    /// How many values it is made of.
    pub count: usize,
}

impl Median {
    /// Of `values`, with the narrowest interval of at least 95 %, or the
    /// whole range where that is not to be had. `None` of nothing or when a
    /// value is not a number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Median> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let value = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        // Largest k (1-based) whose interval still holds 95 %.
        let mut rank = 1;
        while rank < count.div_ceil(2) && coverage(count, rank + 1) >= 0.95 {
            rank += 1;
        }
        Some(Median {
            value,
            interval: (sorted[rank - 1], sorted[count - rank]),
            confidence: coverage(count, rank),
            count,
        })
    }

    /// Whether the interval holds the median with 95 %.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.confidence >= 0.95
    }
}

/// Probability that the median lies between the `rank`-th smallest and the
/// `rank`-th largest of `count` values.
fn coverage(count: usize, rank: usize) -> f64 {
    // P(B < rank) = Σ C(count, i) / 2^count, term by term in logarithms so
    // that long runs do not overflow.
    let mut log_term = -(count as f64) * std::f64::consts::LN_2;
    let mut below = 0.0;
    for i in 0..rank {
        below += log_term.exp();
        log_term += ((count - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (1.0 - 2.0 * below).max(0.0)
}

/// Ratio of each pair, `subject / peer`. Pairs whose peer gave nothing are
/// left out, since no ratio exists.
#[must_use]
pub fn ratios(subject: &[f64], peer: &[f64]) -> Vec<f64> {
    subject
        .iter()
        .zip(peer)
        .filter(|(_, peer)| **peer > 0.0)
        .map(|(subject, peer)| subject / peer)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(Median::of(&[3.0, 1.0, 2.0]).unwrap().value, 2.0);
        assert_eq!(Median::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().value, 2.5);
        assert_eq!(Median::of(&[]), None);
        assert_eq!(Median::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        // Ranks and coverages from tables of the sign test.
        for (count, rank, confidence) in [
            (5, 1, 0.9375),
            (6, 1, 0.96875),
            (7, 1, 0.984_375),
            (9, 2, 0.960_937_5),
            (12, 3, 0.961_425_8),
            (20, 6, 0.958_610_5),
        ] {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            let median = Median::of(&values).unwrap();
            assert_eq!(median.interval.0, f64::from(rank), "{count}");
            assert_eq!(median.interval.1, f64::from(count + 1 - rank), "{count}");
            assert!(
                (median.confidence - confidence).abs() < 1e-6,
                "{count}: {}",
                median.confidence
            );
        }
    }

    #[test]
    fn long_runs_do_not_overflow() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        let median = Median::of(&values).unwrap();
        assert!(median.confidence >= 0.95 && median.confidence < 0.96);
        assert!(median.interval.0 > 2400.0 && median.interval.1 < 2600.0);
    }

    #[test]
    fn ratios_go_pair_by_pair() {
        assert_eq!(ratios(&[2.0, 9.0, 5.0], &[1.0, 3.0, 0.0]), vec![2.0, 3.0]);
    }
}
