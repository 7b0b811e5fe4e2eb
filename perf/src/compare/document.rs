//! The result of a comparison: the JSON document, written and read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::compare::machine::Machine;
use crate::compare::plan::Entry;
use crate::measure::{MeasureError, io_error};
use crate::micro::Micro;
use crate::scenario::{Bar, Better, Sample, Scenario};
use crate::stats::Median;

/// Version of the JSON document. Fields may be added under the same version.
pub const SCHEMA_VERSION: u32 = 2;
/// Quantiles that a document keeps of round trip times.
const QUANTILES: [f64; 25] = [
    0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7,
    0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999,
];

/// The whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Seconds since 1970.
    pub started_at_s: u64,
    /// Seconds that it took.
    pub took_s: f64,
    /// Whether every round was run; `false` after Ctrl-C.
    pub complete: bool,
    /// Commit of the measured tree, `-dirty` when it was changed.
    pub commit: String,
    /// Where.
    pub machine: Machine,
    /// Rounds of every scenario.
    pub pairs: usize,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Seconds before it that do not count.
    pub warm_up_seconds: f64,
    /// Whether IPv6 was used.
    pub v6: bool,
    /// Core of the generator and of pinned senders.
    pub sender_core: usize,
    /// Core of polling threads.
    pub lane_core: usize,
    /// Whether TCP senders and asking sides were bound to it as well.
    pub sockets_pinned: bool,
    /// How it was measured, a sentence each.
    pub method: Vec<String>,
    /// Who took part, and how it was set.
    pub subjects: Vec<Participant>,
    /// What came out.
    pub scenarios: Vec<Outcome>,
    /// The packet logic by itself, where it was measured too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro: Option<Micro>,
}

/// A subject of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Participant {
    /// Which.
    pub name: String,
    /// Why it could not take part, when it could not.
    pub missing: Option<String>,
    /// What a reader has to know of the way it was run.
    pub settings: Vec<(String, String)>,
}

/// What came out of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which.
    pub scenario: Scenario,
    /// Unit of the main figure.
    pub unit: String,
    /// Which way it is good.
    pub better: Better,
    /// By subject.
    pub results: BTreeMap<String, SubjectResult>,
    /// Figure by figure and pair by pair.
    pub verdicts: Vec<Verdict>,
}

/// What came out of one scenario for one subject.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubjectResult {
    /// One a round, in their order.
    pub samples: Vec<Sample>,
    /// Of the main figures.
    pub median: Option<Median>,
    /// Quantiles of all rounds' round trips and their times in µs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_us: Vec<(f64, f64)>,
    /// Why there are fewer samples than rounds.
    pub failure: Option<String>,
}

/// A subject's figure against a peer's, or against a bar of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Name of the figure: `value` is the scenario's main one.
    pub figure: String,
    /// What it is, for a reader.
    pub title: String,
    /// Unit of the figure.
    pub unit: String,
    /// Which way it is good.
    pub better: Better,
    /// Whose figure it is.
    pub subject: String,
    /// Whose divides it; the figure itself stands alone without.
    pub peer: Option<String>,
    /// Of the rounds' ratios, or of the figures.
    pub median: Median,
    /// What it has to reach.
    pub bar: Option<Bar>,
    /// Whether the interval does.
    pub pass: Option<bool>,
}

impl SubjectResult {
    /// One figure of each round that has it.
    #[must_use]
    pub fn figures(&self, name: &str) -> Vec<f64> {
        self.samples
            .iter()
            .filter_map(|sample| sample.figure(name))
            .collect()
    }

    /// Median of a figure, when every sample has it.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<Median> {
        let values = self.figures(name);
        (values.len() == self.samples.len()).then(|| Median::of(&values))?
    }

    /// Median share of the time that each core was busy.
    #[must_use]
    pub fn cores_busy(&self) -> Vec<f64> {
        let cores = self
            .samples
            .first()
            .map_or(0, |first| first.cores_busy.len());
        (0..cores)
            .filter_map(|core| {
                let shares: Vec<f64> = self
                    .samples
                    .iter()
                    .filter_map(|sample| sample.cores_busy.get(core).copied())
                    .collect();
                Median::of(&shares).map(|median| median.value)
            })
            .collect()
    }

    /// Sums up the samples.
    pub(super) fn sum_up(&mut self) {
        self.median = Median::of(&self.figures(crate::scenario::VALUE));
        let mut all: Option<Histogram<u64>> = None;
        for latency in self.samples.iter().filter_map(|s| s.latency.as_ref()) {
            match &mut all {
                None => all = Some(latency.clone()),
                // The same bounds by construction.
                Some(all) => drop(all.add(latency)),
            }
        }
        if let Some(all) = all {
            self.latency_us = QUANTILES
                .map(|quantile| (quantile, all.value_at_quantile(quantile) as f64 / 1000.0))
                .to_vec();
        }
    }
}

impl Outcome {
    /// Of a scenario that nobody was measured by.
    pub(super) fn nothing_yet(entry: &Entry) -> Outcome {
        let scenario = entry.scenario;
        Outcome {
            scenario,
            unit: scenario.unit().to_owned(),
            better: scenario.better(),
            results: BTreeMap::new(),
            verdicts: Vec::new(),
        }
    }
}

impl Comparison {
    /// Whether anybody was measured at all.
    #[must_use]
    pub fn has_samples(&self) -> bool {
        let results = self.scenarios.iter().flat_map(|o| o.results.values());
        results.into_iter().any(|result| !result.samples.is_empty())
    }

    /// Whether a bar was missed.
    #[must_use]
    pub fn misses_a_bar(&self) -> bool {
        let misses = |micro: &Micro| micro.misses_a_bar();
        self.verdicts()
            .any(|(_, verdict)| verdict.pass == Some(false))
            || self.micro.as_ref().is_some_and(misses)
    }

    /// Every verdict, with the scenario that it is of.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Outcome, &Verdict)> {
        self.scenarios.iter().flat_map(|outcome| {
            outcome
                .verdicts
                .iter()
                .map(move |verdict| (outcome, verdict))
        })
    }

    /// What came out of a scenario.
    #[must_use]
    pub fn outcome(&self, scenario: Scenario) -> Option<&Outcome> {
        self.scenarios
            .iter()
            .find(|outcome| outcome.scenario == scenario)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// When the file is not there or is no document of this version.
    pub fn read(path: &Path) -> Result<Comparison, MeasureError> {
        let text =
            fs::read_to_string(path).map_err(io_error(format!("reading {}", path.display())))?;
        let bad = |detail: String| MeasureError::Unexpected {
            what: path.display().to_string(),
            detail,
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| bad(format!("no JSON: {error}")))?;
        match value["schema_version"].as_u64() {
            Some(version) if version == u64::from(SCHEMA_VERSION) => {}
            Some(version) => {
                return Err(bad(format!(
                    "schema version {version}, this program reads {SCHEMA_VERSION}; measure again"
                )));
            }
            None => return Err(bad("no result of `compare`: no schema_version".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| bad(error.to_string()))
    }
}
