//! The tests of RFC 2544 on one subject: throughput, latency and frame loss
//! rate, by frame size and number of flows.
//!
//! [`mod@search`] finds the throughput, `trial` makes the trials, [`report`] and
//! [`page`] show them. The method and where it departs from the RFC are in README.md.

pub mod page;
pub mod report;
pub mod search;
mod trial;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::compare::machine::{Machine, commit};
use crate::generator::live::LiveFrames;
use crate::measure::MeasureError;
use crate::packet::Sizes;
use crate::progress::Progress;
use crate::report::quantity;
use crate::rfc2544::search::{Goal, Search, Throughput, Trial};
use crate::rfc2544::trial::Bench;
use crate::sink::latency::Latency;
use crate::stats::Median;
use crate::stop::Stop;
use crate::subject::{SENDER_CORE, Subject};

pub use trial::Outcome;

/// Version of the document.
pub const SCHEMA_VERSION: u32 = 1;
/// Loads of the latency trials, in percent of the throughput.
const LATENCY_PERCENT: [u32; 3] = [10, 50, 90];
/// Lowest load that is tried, as a share of the most.
const LEAST_SHARE: f64 = 0.001;
/// Paced frames go one by one, which costs a little of the full speed.
const PACED_SHARE: f64 = 0.98;
/// Trials at full speed at most, and the share of one that other work may
/// have of the generator's core before there is another.
const FULL_SPEED_TRIALS: usize = 3;
const MAX_PREEMPTED_SHARE: f64 = 0.1;
/// What a search takes, about, for the time that is left: trials, and their
/// mean length as a share of the full one.
const SEARCH_TRIALS: u64 = 24;
const SEARCH_SHARE: f64 = 0.6;
/// Trials of a frame loss rate curve, about.
const CURVE_TRIALS: f64 = 6.0;
/// What a trial takes beside its length, about.
const AROUND_S: f64 = 0.15;

/// What is measured, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Frame sizes.
    pub sizes: Vec<Sizes>,
    /// Numbers of flows.
    pub flows: Vec<u32>,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Seconds of a full trial.
    pub trial_seconds: f64,
    /// Full trials that decide about a load.
    pub trials: u32,
    /// Width of the throughput's interval, relative.
    pub width: f64,
    /// Loss ratio of the partial-drop rate.
    pub partial_loss: f64,
    /// Trials of each latency.
    pub latency_trials: u32,
    /// Whether to make the frame loss rate curve.
    pub loss_curve: bool,
}

impl Plan {
    /// Steps of the progress bar.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.cases() * self.case_steps()
    }

    fn cases(&self) -> u64 {
        self.sizes.len() as u64 * self.flows.len() as u64
    }

    fn latency_steps(&self) -> u64 {
        LATENCY_PERCENT.len() as u64 * u64::from(self.latency_trials)
    }

    /// Steps of one size and number of flows: trials at most, but for the
    /// search, which may take more.
    fn case_steps(&self) -> u64 {
        let curve = if self.loss_curve { 10 } else { 0 };
        1 + SEARCH_TRIALS + self.latency_steps() + curve
    }

    /// How long it takes, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let curve = if self.loss_curve { CURVE_TRIALS } else { 0.0 };
        let whole = 1.0 + self.latency_steps() as f64 + curve;
        let search = SEARCH_TRIALS as f64;
        let sending = (whole + search * SEARCH_SHARE) * self.trial_seconds;
        let case = sending + (whole + search) * AROUND_S;
        Duration::try_from_secs_f64(case * self.cases() as f64).unwrap_or(Duration::MAX)
    }

    fn goals(&self) -> [Goal; 2] {
        let ndr = Goal {
            name: "NDR",
            loss_ratio: 0.0,
            exceed_ratio: 0.5,
            trial_seconds: self.trial_seconds,
            sum_seconds: self.trial_seconds * f64::from(self.trials),
            width: self.width,
        };
        let pdr = Goal {
            name: "PDR",
            loss_ratio: self.partial_loss,
            ..ndr
        };
        [pdr, ndr]
    }
}

/// Delays at one load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyPoint {
    /// Of the throughput.
    pub percent: u32,
    /// Packets a second.
    pub load: f64,
    /// One a trial.
    pub trials: Vec<Latency>,
}

impl LatencyPoint {
    /// The median over trials of one of their figures.
    fn median(&self, figure: impl Fn(&Latency) -> f64) -> Option<f64> {
        let figures: Vec<f64> = self.trials.iter().map(figure).collect();
        Median::of(&figures).map(|median| median.value)
    }
}

/// One frame size and number of flows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// Bytes of a frame with its check sequence, or a mix.
    pub size: String,
    /// Mean of the mix.
    pub mean_frame_bytes: f64,
    /// How many.
    pub flows: u32,
    /// What the generator offers at most, and what then arrives.
    pub full_speed: Option<Outcome>,
    /// What was found, the partial-drop rate first.
    pub throughput: Vec<Throughput>,
    /// Whether the search gave up.
    pub irregular: bool,
    /// The trials of the search.
    pub trials: Vec<Trial>,
    /// Delays at parts of the throughput.
    pub latency: Vec<LatencyPoint>,
    /// Frame loss rate from full speed down.
    pub loss_curve: Vec<Outcome>,
    /// Why it is not complete.
    pub failure: Option<String>,
}

impl Case {
    /// Short enough for a progress bar.
    fn name(&self) -> String {
        let flows = if self.flows == 1 { "flow" } else { "flows" };
        let bytes = if self.size.parse::<u32>().is_ok() {
            " B"
        } else {
            ""
        };
        format!("{}{bytes}, {} {flows}", self.size, self.flows)
    }

    /// What was found for a goal.
    fn conditional(&self, goal: &str) -> Option<f64> {
        let found = self.throughput.iter().find(|found| found.goal.name == goal);
        found.and_then(|found| found.conditional)
    }
}

/// A run, complete or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Seconds since 1970.
    pub started_at_s: u64,
    /// Seconds that it took.
    pub took_s: f64,
    /// Commit of the tree in the current directory.
    pub commit: String,
    /// Where.
    pub machine: Machine,
    /// How it was measured, a sentence each.
    pub method: Vec<String>,
    /// The subject's name.
    pub subject: &'static str,
    /// How the subject was run.
    pub settings: Vec<(String, String)>,
    /// Whether IPv6 carried the frames.
    pub ipv6: bool,
    /// Seconds of a full trial.
    pub trial_seconds: f64,
    /// Full trials that decide about a load.
    pub trials: u32,
    /// Whether everything of the plan was measured.
    pub complete: bool,
    /// The cases in the plan's order, as far as it came.
    pub cases: Vec<Case>,
}

/// Makes the tests. What was measured before an interruption is in the
/// report, which then is not complete.
///
/// # Errors
/// When the subject does not carry anything at all.
pub fn run(
    subject: &dyn Subject,
    plan: &Plan,
    progress: &Progress,
    stop: &Stop,
) -> Result<Report, MeasureError> {
    let _live = LiveFrames::allow(subject.entrance())?;
    let began = Instant::now();
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        started_at_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        took_s: 0.0,
        commit: commit(),
        machine: Machine::look()?,
        method: method(plan),
        subject: subject.kind().name(),
        settings: subject.settings().to_vec(),
        ipv6: plan.v6,
        trial_seconds: plan.trial_seconds,
        trials: plan.trials,
        complete: false,
        cases: Vec::new(),
    };
    for sizes in &plan.sizes {
        for flows in &plan.flows {
            let mut case = Case {
                size: sizes.to_string(),
                mean_frame_bytes: sizes.mean_frame_bytes(),
                flows: *flows,
                full_speed: None,
                throughput: Vec::new(),
                irregular: false,
                trials: Vec::new(),
                latency: Vec::new(),
                loss_curve: Vec::new(),
                failure: None,
            };
            let measured = Bench::new(subject, plan.v6, (sizes, *flows), stop)
                .and_then(|bench| measure(&bench, plan, &mut case, progress));
            let interrupted = matches!(measured, Err(MeasureError::Interrupted));
            case.failure = measured.err().map(|error| error.to_string());
            report.cases.push(case);
            // A case that failed, or that was found early, is over as well.
            progress.reach(report.cases.len() as u64 * plan.case_steps());
            report.took_s = began.elapsed().as_secs_f64();
            if interrupted {
                return Ok(report);
            }
        }
    }
    report.complete = report.cases.iter().all(|case| case.failure.is_none());
    Ok(report)
}

/// What it is, and where it departs from the RFC, in words.
fn method(plan: &Plan) -> Vec<String> {
    let trial = plan.trial_seconds;
    vec![
        format!(
            "Throughput (RFC 2544, 26.1): NDR without loss, PDR with at most {} %; a load is \
             decided by {} trials of {trial} s of which less than half may be bad, the interval \
             is {} % wide (draft-ietf-bmwg-mlrsearch). What is shown is forwarded: the load, less \
             the loss of the worst trial of the good half.",
            plan.partial_loss * 100.0,
            plan.trials,
            plan.width * 100.0,
        ),
        format!(
            "Latency (26.2): of every frame, {} trials of {trial} s; percentiles are the trials' \
             medians.",
            plan.latency_trials
        ),
        "Frame loss rate (26.3): from full speed down in tenths, until two trials in a row lose \
         nothing. A generator that cannot offer a load on its core counts the rest as lost."
            .to_owned(),
        "Full speed is what the generator reaches: a veth has no line rate. Frames count their \
         check sequence, which no virtual device carries."
            .to_owned(),
        format!(
            "From pod to pod on one node (RFC 8204); the generator sends from core {SENDER_CORE}, \
             the sink is at tc ingress of the receiving pod."
        ),
    ]
}

fn measure(
    bench: &Bench<'_>,
    plan: &Plan,
    case: &mut Case,
    progress: &Progress,
) -> Result<(), MeasureError> {
    let name = case.name();
    progress.says(&format!("{name}: full speed"));
    // The subject learns every flow in this trial, which does not count.
    let full = full_speed(|| bench.run(0.0, plan.trial_seconds))?;
    progress.step();
    if full.received == 0 {
        return Err(MeasureError::Unreachable {
            what: "a frame at the sink",
            seconds: plan.trial_seconds.ceil() as u64,
        });
    }
    case.full_speed = Some(full);
    let most = (full.offered_per_second() * PACED_SHARE).max(1.0);
    search(bench, plan, case, (most, progress))?;
    let throughput = case.throughput.iter().rev().find_map(|found| found.lower);
    for percent in LATENCY_PERCENT {
        let Some(throughput) = throughput else {
            break;
        };
        let load = throughput * f64::from(percent) / 100.0;
        let mut point = LatencyPoint {
            percent,
            load,
            trials: Vec::new(),
        };
        for _ in 0..plan.latency_trials {
            progress.says(&format!("{name}: latency at {percent} %"));
            let (_, latency) = bench.run_with_latency(load, plan.trial_seconds)?;
            point.trials.extend(latency);
            progress.step();
        }
        case.latency.push(point);
    }
    if plan.loss_curve {
        loss_curve(bench, plan, case, (most, progress, &name))?;
    }
    Ok(())
}

/// What the generator offers at most, which is where the search begins. While
/// other work has its core it offers less, and then the best of a few counts.
fn full_speed(
    mut trial: impl FnMut() -> Result<Outcome, MeasureError>,
) -> Result<Outcome, MeasureError> {
    let mut best = trial()?;
    let mut last = best;
    for _ in 1..FULL_SPEED_TRIALS {
        if last.preempted_seconds <= MAX_PREEMPTED_SHARE * last.seconds {
            break;
        }
        last = trial()?;
        if last.offered_per_second() > best.offered_per_second() {
            best = last;
        }
    }
    Ok(best)
}

fn search(
    bench: &Bench<'_>,
    plan: &Plan,
    case: &mut Case,
    (most, progress): (f64, &Progress),
) -> Result<(), MeasureError> {
    let mut search = Search::new(&plan.goals(), most * LEAST_SHARE, most);
    let mut steps = SEARCH_TRIALS;
    while let Some((load, seconds)) = search.next() {
        let rate = quantity(load, "pps");
        progress.says(&format!("{}: {rate}", case.name()));
        let outcome = bench.run(load.floor(), seconds);
        let found = outcome.as_ref().ok().map(|outcome| Trial {
            load,
            seconds,
            loss_ratio: outcome.loss_ratio,
        });
        if let Some(trial) = found {
            search.add(trial);
        }
        case.trials = search.trials().to_vec();
        case.throughput = search.found();
        outcome?;
        if steps > 0 {
            progress.step();
            steps -= 1;
        }
    }
    for _ in 0..steps {
        progress.step();
    }
    case.irregular = search.is_irregular();
    Ok(())
}

/// From full speed down in tenths, until two trials in a row lose nothing
/// (RFC 2544, 26.3).
fn loss_curve(
    bench: &Bench<'_>,
    plan: &Plan,
    case: &mut Case,
    (most, progress, name): (f64, &Progress, &str),
) -> Result<(), MeasureError> {
    let mut without_loss = 0;
    for tenth in (1..=10).rev() {
        if without_loss < 2 {
            progress.says(&format!("{name}: loss at {tenth}0 %"));
            let load = (most * f64::from(tenth) / 10.0).floor().max(1.0);
            let outcome = bench.run(load, plan.trial_seconds)?;
            without_loss = if outcome.loss_ratio == 0.0 {
                without_loss + 1
            } else {
                0
            };
            case.loss_curve.push(outcome);
        }
        progress.step();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_generator_is_no_measure_of_full_speed() {
        let outcome = |seconds: f64, preempted_seconds: f64| Outcome {
            load: 0.0,
            sent: 1000,
            received: 1000,
            seconds,
            preempted_seconds,
            loss_ratio: 0.0,
        };
        let [free, held, longer] = [outcome(1.0, 0.05), outcome(20.0, 19.0), outcome(30.0, 29.0)];
        for (trials, made, found) in [
            (vec![free], 1, free),
            (vec![held, free], 2, free),
            (vec![held, longer, free], 3, free),
            (vec![longer, held, longer, free], 3, held),
        ] {
            let mut left = trials.iter();
            let best = full_speed(|| Ok(*left.next().expect("a trial"))).expect("a speed");
            assert_eq!((best, trials.len() - left.len()), (found, made));
        }
    }
}
