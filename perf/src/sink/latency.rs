//! Latencies: buckets that a program in the kernel can fill, and percentiles.
//!
//! The buckets are those of an HDR histogram with 64 to a power of two, so a
//! value is known to 1.6 % of itself.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Buckets to a power of two, as bits.
pub(crate) const SUB_BUCKET_BITS: u32 = 6;
/// Buckets in all: up to 2^37 ns.
pub(crate) const BUCKETS: usize = 2048;
const MAX_NS: u64 = 1 << 37;

/// Middle of a bucket, in nanoseconds.
fn middle_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let sub_buckets = 1 << SUB_BUCKET_BITS;
    if bucket < 2 * sub_buckets {
        return bucket;
    }
    let shift = bucket / sub_buckets - 1;
    let value = bucket - shift * sub_buckets;
    (value << shift) + (1 << shift) / 2
}

/// Percentiles of one-way delays, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Packets that had a time.
    pub count: u64,
    /// The least.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// 90 % are at most this.
    pub p90_us: f64,
    /// 99 % are at most this.
    pub p99_us: f64,
    /// 99.9 % are at most this.
    pub p999_us: f64,
    /// The most.
    pub max_us: f64,
}

/// Latencies that are being collected.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
    /// Exact, unlike the histogram's.
    max_ns: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            histogram: Histogram::new_with_bounds(1, MAX_NS, 3)
                .expect("three digits between 1 ns and two minutes are allowed"),
            max_ns: 0,
        }
    }
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
        self.max_ns = self.max_ns.max(ns);
    }

    /// Of the buckets that a program filled.
    #[must_use]
    pub(crate) fn of_buckets(buckets: &[u64], max_ns: u64) -> Latencies {
        let mut latencies = Latencies::default();
        for (bucket, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let ns = middle_ns(bucket).clamp(1, max_ns.max(1));
            latencies.histogram.saturating_record_n(ns, *count);
        }
        latencies.max_ns = max_ns;
        latencies
    }

    /// Adds another's.
    pub fn merge(&mut self, other: &Latencies) {
        // Both have the same bounds, so the sum has room for every value.
        let _ = self.histogram.add(&other.histogram);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// The percentiles; `None` of nothing.
    #[must_use]
    pub fn summary(&self) -> Option<Latency> {
        if self.histogram.is_empty() {
            return None;
        }
        let us = |ns: u64| ns as f64 / 1e3;
        let max = us(self.max_ns);
        let at = |quantile| us(self.histogram.value_at_quantile(quantile)).min(max);
        Some(Latency {
            count: self.histogram.len(),
            min_us: us(self.histogram.min()),
            mean_us: self.histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another() {
        let middles: Vec<u64> = (0..BUCKETS).map(middle_ns).collect();
        assert!(middles.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(middles[127], 127);
        assert_eq!(middles[128], 129, "128 and 129 share a bucket");
        assert!(middles[BUCKETS - 1] < MAX_NS);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        for us in 1..=1000 {
            latencies.add(us * 1000);
        }
        let summary = latencies.summary().unwrap();
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert_eq!(summary.count, 1000);
        assert!(near(summary.p50_us, 500.0) && near(summary.p90_us, 900.0));
        assert!(near(summary.p99_us, 990.0) && near(summary.p999_us, 999.0));
        assert_eq!(summary.max_us, 1000.0);
    }
}
