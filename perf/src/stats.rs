//! Statistics of paired measurements.
//!
//! Two subjects are measured one right after the other, again and again; each
//! pair gives one ratio, so what disturbs the machine for longer than a pair
//! hits both alike. The verdict is the ratios' median; its interval comes
//! from order statistics, which assume nothing about the distribution: with n
//! ratios the median lies between the k-th smallest and the k-th largest with
//! probability 1 − 2·P(B < k), B binomial(n, ½).
//!
//! Who runs a comparison twice expects the second median within the first
//! interval. That median has an error of its own, so an interval that holds
//! the true one with 95 % holds it less often (87 % for the second of nine). So the interval
//! is also one of prediction: the median of another n ratios lies in it with
//! 95 % (Fligner and Wolfe, "Methods for Obtaining a Distribution-Free
//! Prediction Interval for the Median of a Future Sample", Journal of Quality
//! Technology 11, 1979), where n is large enough for that: from nine on.

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
    /// Probability, at least, that it holds the median of as many other
    /// values of the same kind; 0 in documents that do not say.
    #[serde(default)]
    pub repeats: f64,
    /// How many values it is made of.
    pub count: usize,
}

/// What both probabilities reach, where there are enough values.
const CERTAIN: f64 = 0.95;

impl Median {
    /// Of `values`, with the narrowest interval that holds the true median and
    /// that of another run with 95 % each, or the whole range where that is
    /// not to be had. `None` of nothing or when a value is not a number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Median> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let value = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        // Largest k (1-based) whose interval still holds both.
        let holds = |rank| coverage(count, rank) >= CERTAIN && repeats(count, rank) >= CERTAIN;
        let mut rank = 1;
        while rank < count.div_ceil(2) && holds(rank + 1) {
            rank += 1;
        }
        Some(Median {
            value,
            interval: (sorted[rank - 1], sorted[count - rank]),
            confidence: coverage(count, rank),
            repeats: repeats(count, rank),
            count,
        })
    }

    /// Whether the interval holds the median with 95 %.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.confidence >= CERTAIN
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

/// Probability, at least, that the median of `count` other values lies between
/// the `rank`-th smallest and the `rank`-th largest of `count`.
fn repeats(count: usize, rank: usize) -> f64 {
    // It lies below when its lower middle value does. Exactly j of the first
    // values are below that with C(m − 1 + j, j)·C(2n − m − j, n − j) / C(2n, n):
    // every order of all 2n values is as likely as any other.
    let middle = count.div_ceil(2);
    let mut log_term: f64 = (0..middle)
        .map(|i| ((count - i) as f64 / (2 * count - i) as f64).ln())
        .sum();
    let mut below = 0.0;
    for j in 0..rank {
        below += log_term.exp();
        log_term += ((middle + j) as f64 / (j + 1) as f64).ln();
        log_term += ((count - j) as f64 / (2 * count - middle - j) as f64).ln();
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
    fn coverages_are_those_of_the_sign_test() {
        // From tables of the sign test.
        for (count, rank, confidence) in [
            (5, 1, 0.9375),
            (6, 1, 0.96875),
            (7, 1, 0.984_375),
            (9, 2, 0.960_937_5),
            (12, 3, 0.961_425_8),
            (20, 6, 0.958_610_5),
        ] {
            let found = coverage(count, rank);
            assert!((found - confidence).abs() < 1e-6, "{count}: {found}");
        }
    }

    /// Counts, among all orders of twice `count` values, those in which the
    /// second half's lower middle value is below the first's `rank`-th or its
    /// mirror image above.
    fn repeats_by_counting(count: usize, rank: usize) -> f64 {
        let orders = (0u32..1 << (2 * count)).filter(|o| o.count_ones() as usize == count);
        let (mut all, mut below) = (0.0, 0.0);
        for order in orders {
            let (mut ours, mut others) = (0, 0);
            for place in 0..2 * count {
                match order >> place & 1 {
                    1 => ours += 1,
                    _ => others += 1,
                }
                if others == count.div_ceil(2) {
                    break;
                }
            }
            all += 1.0;
            below += if ours < rank { 1.0 } else { 0.0 };
        }
        1.0 - 2.0 * below / all
    }

    #[test]
    fn another_runs_median_is_as_likely_as_orders_say() {
        for (count, rank) in [(5, 1), (6, 1), (7, 1), (8, 2), (9, 1), (9, 2), (10, 3)] {
            let (found, counted) = (repeats(count, rank), repeats_by_counting(count, rank));
            assert!((found - counted).abs() < 1e-9, "{count}: {found} {counted}");
        }
    }

    #[test]
    fn intervals_hold_both_medians() {
        for (count, rank) in [(5, 1), (7, 1), (9, 1), (12, 1), (13, 2), (20, 4), (31, 8)] {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            let median = Median::of(&values).unwrap();
            assert_eq!(median.interval.0, f64::from(rank), "{count}");
            assert_eq!(median.interval.1, f64::from(count + 1 - rank), "{count}");
            assert_eq!(median.is_certain(), count > 5, "{count}");
            assert_eq!(median.repeats >= CERTAIN, count > 8, "{count}");
        }
    }

    #[test]
    fn long_runs_do_not_overflow() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        let median = Median::of(&values).unwrap();
        assert!(median.repeats >= 0.95 && median.repeats < 0.96);
        assert!(median.interval.0 > 2400.0 && median.interval.1 < 2600.0);
    }

    #[test]
    fn ratios_go_pair_by_pair() {
        assert_eq!(ratios(&[2.0, 9.0, 5.0], &[1.0, 3.0, 0.0]), vec![2.0, 3.0]);
    }
}
