//! What the node counts for Prometheus.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec};

/// The node's collectors; clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// `spinlane_cni_request_duration_seconds{command,result}`.
    pub cni_durations: HistogramVec,
}

impl Metrics {
    /// Fresh collectors, registered nowhere.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let options = HistogramOpts::new(
            "spinlane_cni_request_duration_seconds",
            "Time to answer the CNI plugin, by command and result.",
        )
        .buckets(vec![
            0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
        ]);
        Ok(Metrics {
            cni_durations: HistogramVec::new(options, &["command", "result"])?,
        })
    }

    /// One answered request.
    pub fn answered(&self, command: &str, succeeded: bool, took: Duration) {
        let result = if succeeded { "ok" } else { "error" };
        self.cni_durations
            .with_label_values(&[command, result])
            .observe(took.as_secs_f64());
    }
}
