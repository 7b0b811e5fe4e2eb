//! What the node counts for Prometheus.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec};

/// The commands that the plugin brings to the agent.
const COMMANDS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];
const OK: &str = "ok";
const ERROR: &str = "error";

/// The node's collectors; clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// `spinlane_cni_request_duration_seconds{command,result}`.
    pub cni_durations: HistogramVec,
}

impl Metrics {
    /// Fresh collectors, registered nowhere. Every command and result has its
    /// series from the start, at 0.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let options = HistogramOpts::new(
            "spinlane_cni_request_duration_seconds",
            "Time to answer the CNI plugin, by command and result.",
        )
        .buckets(vec![
            0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
        ]);
        let cni_durations = HistogramVec::new(options, &["command", "result"])?;
        for command in COMMANDS {
            for result in [OK, ERROR] {
                cni_durations.get_metric_with_label_values(&[command, result])?;
            }
        }
        Ok(Metrics { cni_durations })
    }

    /// One answered request.
    pub fn answered(&self, command: &str, succeeded: bool, took: Duration) {
        let result = if succeeded { OK } else { ERROR };
        self.cni_durations
            .with_label_values(&[command, result])
            .observe(took.as_secs_f64());
    }
}
