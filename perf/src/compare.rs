//! Subjects × scenarios, interleaved: A B C, A B C, … so that whatever
//! disturbs the machine disturbs all alike.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cpu::Busy;
use crate::measure::{MeasureError, io_error};
use crate::progress::Progress;
use crate::scenario::{Bar, Better, Run, Sample, Scenario};
use crate::stats::{Median, ratios};
use crate::stop::Stop;
use crate::subject::{Kind, SENDER_CORE, Subject};

/// Version of the JSON document. Fields may be added under the same version.
pub const SCHEMA_VERSION: u32 = 1;
/// What a lane or a polling thread needs to find its pace after a pause.
const SETTLE: Duration = Duration::from_millis(100);

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Who.
    pub subjects: Vec<Kind>,
    /// What.
    pub scenarios: Vec<Scenario>,
    /// How often each.
    pub pairs: usize,
    /// How.
    pub run: Run,
}

/// The whole result; this is the JSON document.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Seconds since 1970.
    pub started_at_s: u64,
    /// Where.
    pub machine: Machine,
    /// Rounds of every scenario.
    pub pairs: usize,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Whether IPv6 was used.
    pub v6: bool,
    /// Core of the generator and of pinned senders.
    pub sender_core: usize,
    /// Whether TCP senders and asking sides were bound to it as well.
    pub sockets_pinned: bool,
    /// Who took part, and how it was set.
    pub subjects: Vec<Participant>,
    /// What came out.
    pub scenarios: Vec<Outcome>,
}

/// The machine of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Cores' worth of other work while every subject stood still.
    pub other_work: f64,
}

/// A subject of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Participant {
    /// Which.
    pub name: &'static str,
    /// Why it could not take part, when it could not.
    pub missing: Option<String>,
    /// What a reader has to know of the way it was run.
    pub settings: Vec<(String, String)>,
}

/// What came out of one scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Which.
    pub scenario: Scenario,
    /// Unit of the figures.
    pub unit: &'static str,
    /// Which way they are good.
    pub better: Better,
    /// By subject.
    pub results: BTreeMap<&'static str, SubjectResult>,
    /// Pair by pair.
    pub ratios: Vec<Ratio>,
}

/// What came out of one scenario for one subject.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SubjectResult {
    /// One a round, in their order.
    pub samples: Vec<Sample>,
    /// Of the figures.
    pub median: Option<Median>,
    /// Why there are fewer samples than rounds.
    pub failure: Option<String>,
}

impl SubjectResult {
    fn values(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.value).collect()
    }

    /// Median of one of the details, when every sample has it.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<f64> {
        let values: Option<Vec<f64>> = self
            .samples
            .iter()
            .map(|sample| sample.details.get(name).copied())
            .collect();
        Median::of(&values?).map(|median| median.value)
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
}

/// A subject against a peer.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ratio {
    /// Whose figure is divided.
    pub subject: &'static str,
    /// By whose.
    pub peer: &'static str,
    /// Over the pairs.
    pub median: Median,
    /// What it has to reach.
    pub bar: Option<Bar>,
    /// Whether the median does.
    pub pass: Option<bool>,
}

/// Who is compared with whom: Spinlane with every peer; without Spinlane the
/// first subject with the others.
fn couples(subjects: &[Kind]) -> Vec<(Kind, Kind)> {
    let is_ours = |kind: &Kind| matches!(kind, Kind::Spinlane | Kind::SpinlaneBusy);
    let ours: Vec<Kind> = subjects.iter().copied().filter(is_ours).collect();
    let firsts = match ours[..] {
        [] => subjects.iter().take(1).copied().collect(),
        _ => ours,
    };
    firsts
        .iter()
        .flat_map(|first| {
            subjects
                .iter()
                .filter(move |peer| !is_ours(peer) && *peer != first)
                .map(|peer| (*first, *peer))
        })
        .collect()
}

impl Outcome {
    fn judge(&mut self, subjects: &[Kind]) {
        for result in self.results.values_mut() {
            result.median = Median::of(&result.values());
        }
        for (subject, peer) in couples(subjects) {
            let values = |kind: Kind| {
                self.results
                    .get(kind.name())
                    .map(SubjectResult::values)
                    .unwrap_or_default()
            };
            let ratios = ratios(&values(subject), &values(peer));
            let Some(median) = Median::of(&ratios) else {
                continue;
            };
            let bar = match subject {
                Kind::Spinlane => self.scenario.bar(peer),
                _ => None,
            };
            self.ratios.push(Ratio {
                subject: subject.name(),
                peer: peer.name(),
                median,
                bar,
                pass: bar.map(|bar| bar.passes(median.value)),
            });
        }
    }
}

impl Comparison {
    /// Whether a bar was missed.
    #[must_use]
    pub fn misses_a_bar(&self) -> bool {
        self.scenarios
            .iter()
            .flat_map(|outcome| &outcome.ratios)
            .any(|ratio| ratio.pass == Some(false))
    }
}

/// Subjects that are set up, each paused unless it is measured.
pub struct Field {
    subjects: Vec<Box<dyn Subject>>,
    participants: Vec<Participant>,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.kinds()).finish()
    }
}

impl Field {
    /// Sets up every subject that is there; what is not is named missing.
    ///
    /// # Errors
    /// When one that is there cannot be set up, or on Ctrl-C.
    pub fn set_up(kinds: &[Kind], progress: &Progress) -> Result<Field, MeasureError> {
        let mut field = Field::of(Vec::new());
        for kind in kinds {
            if crate::stop::interrupted() {
                return Err(MeasureError::Interrupted);
            }
            progress.says(&format!("setting up {}", kind.name()));
            match kind.set_up(crate::subject::SERVICES) {
                Ok(subject) => field.add(subject),
                Err(MeasureError::Missing { reason, .. }) => {
                    progress.note(&format!("{} is missing: {reason}", kind.name()));
                    field.participants.push(Participant {
                        name: kind.name(),
                        missing: Some(reason),
                        settings: Vec::new(),
                    });
                }
                Err(error) => return Err(error),
            }
            progress.step();
        }
        Ok(field)
    }

    /// Subjects that are set up already.
    #[must_use]
    pub fn of(subjects: Vec<Box<dyn Subject>>) -> Field {
        let mut field = Field {
            subjects: Vec::new(),
            participants: Vec::new(),
        };
        for subject in subjects {
            field.add(subject);
        }
        field
    }

    /// Lets a subject go on outside of measurements.
    pub fn resume(&mut self, kind: Kind) -> Option<&dyn Subject> {
        let at = self.subjects.iter().position(|s| s.kind() == kind)?;
        self.subjects[at].resume();
        Some(self.subjects[at].as_ref())
    }

    /// Adds a subject that is set up, and pauses it.
    fn add(&mut self, mut subject: Box<dyn Subject>) {
        subject.pause();
        self.participants.push(Participant {
            name: subject.kind().name(),
            missing: None,
            settings: subject.settings().to_vec(),
        });
        self.subjects.push(subject);
    }

    fn kinds(&self) -> Vec<Kind> {
        self.subjects.iter().map(|subject| subject.kind()).collect()
    }

    /// Runs the scenarios in turns.
    ///
    /// # Errors
    /// On Ctrl-C; a subject that fails a scenario is left out of its other
    /// rounds, and the result says why.
    pub fn run(
        &mut self,
        plan: &Plan,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Comparison, MeasureError> {
        let mut comparison = Comparison {
            schema_version: SCHEMA_VERSION,
            started_at_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            machine: machine()?,
            pairs: plan.pairs,
            seconds: plan.run.duration.as_secs_f64(),
            v6: plan.run.v6,
            sender_core: SENDER_CORE,
            sockets_pinned: plan.run.pin_sockets,
            subjects: self.participants.clone(),
            scenarios: Vec::new(),
        };
        for scenario in &plan.scenarios {
            let outcome = self.run_scenario(*scenario, plan, progress, stop)?;
            comparison.scenarios.push(outcome);
        }
        Ok(comparison)
    }

    fn run_scenario(
        &mut self,
        scenario: Scenario,
        plan: &Plan,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Outcome, MeasureError> {
        let kinds = self.kinds();
        let mut outcome = Outcome {
            scenario,
            unit: scenario.unit(),
            better: scenario.better(),
            results: kinds
                .iter()
                .map(|kind| (kind.name(), SubjectResult::default()))
                .collect(),
            ratios: Vec::new(),
        };
        for round in 1..=plan.pairs {
            for subject in &mut self.subjects {
                let name = subject.kind().name();
                progress.says(&format!(
                    "{} {name} {round}/{}",
                    scenario.name(),
                    plan.pairs
                ));
                let result = outcome.results.entry(name).or_default();
                if result.failure.is_none() {
                    match measure(scenario, subject.as_mut(), &plan.run, stop) {
                        Ok(sample) => result.samples.push(sample),
                        Err(MeasureError::Interrupted) => return Err(MeasureError::Interrupted),
                        Err(error) => {
                            progress.note(&format!("{} {name}: {error}", scenario.name()));
                            result.failure = Some(error.to_string());
                        }
                    }
                }
                progress.step();
            }
        }
        outcome.judge(&kinds);
        Ok(outcome)
    }
}

/// Steps that a plan will count on its [`Progress`].
#[must_use]
pub fn steps(plan: &Plan) -> u64 {
    let runs = plan.subjects.len() * plan.scenarios.len() * plan.pairs;
    (runs + plan.subjects.len()) as u64
}

/// One measurement of one subject, which runs for as long as that takes.
fn measure(
    scenario: Scenario,
    subject: &mut dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    subject.resume();
    let measured = || {
        if !subject.pids().is_empty() {
            thread::sleep(SETTLE);
            subject.reach()?;
        }
        scenario.measure(subject, run, stop)
    };
    let result = measured();
    subject.pause();
    if stop.is_set() {
        return Err(MeasureError::Interrupted);
    }
    result
}

/// Looks at the machine while nothing of ours runs.
pub(crate) fn machine() -> Result<Machine, MeasureError> {
    let stat = "reading /proc/stat";
    let busy = Busy::start().map_err(io_error(stat))?;
    thread::sleep(Duration::from_millis(500));
    let other_work = busy.finish().map_err(io_error(stat))?.iter().sum();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    Ok(Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: model.to_owned(),
        cores: thread::available_parallelism().map_or(1, usize::from),
        other_work,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinlane_is_compared_with_every_peer() {
        use Kind::{LinuxBridge, OvsAfxdp, Spinlane, SpinlaneBusy};
        assert_eq!(
            couples(&[LinuxBridge, SpinlaneBusy, Spinlane, OvsAfxdp]),
            [
                (SpinlaneBusy, LinuxBridge),
                (SpinlaneBusy, OvsAfxdp),
                (Spinlane, LinuxBridge),
                (Spinlane, OvsAfxdp)
            ]
        );
        assert_eq!(couples(&[LinuxBridge, OvsAfxdp]), [(LinuxBridge, OvsAfxdp)]);
        assert_eq!(couples(&[Spinlane, SpinlaneBusy]), []);
    }

    fn result(values: &[f64]) -> SubjectResult {
        SubjectResult {
            samples: values
                .iter()
                .map(|value| Sample {
                    value: *value,
                    details: BTreeMap::from([("lost", value / 10.0)]),
                    cores_busy: vec![0.5, *value],
                })
                .collect(),
            ..SubjectResult::default()
        }
    }

    #[test]
    fn a_bar_is_judged_by_the_median_of_the_ratios() {
        let mut outcome = Outcome {
            scenario: Scenario::Frames64,
            unit: "packets/s",
            better: Better::Higher,
            results: BTreeMap::from([
                ("spinlane", result(&[3.0, 1.0, 6.0])),
                ("linux-bridge", result(&[2.0, 1.0, 2.0])),
            ]),
            ratios: Vec::new(),
        };
        outcome.judge(&[Kind::Spinlane, Kind::LinuxBridge]);
        let [ratio] = outcome.ratios[..] else {
            panic!("{:?}", outcome.ratios)
        };
        assert_eq!(ratio.median.value, 1.5);
        assert_eq!(ratio.median.interval, (1.0, 3.0));
        assert_eq!(ratio.pass, Some(true));
        let spinlane = &outcome.results["spinlane"];
        assert_eq!(spinlane.median.unwrap().value, 3.0);
        assert_eq!(spinlane.detail("lost"), Some(0.3));
        assert_eq!(spinlane.detail("absent"), None);
        assert_eq!(spinlane.cores_busy(), [0.5, 3.0]);
    }
}
