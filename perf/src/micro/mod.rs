//! What the packet logic costs by itself: cycles and nanoseconds per packet
//! of the batch function, on ports in memory, beside Open vSwitch's DPDK
//! datapath on ports without a wire.
//!
//! Cases take turns, a sample each, and the peer a sample in each round; a
//! figure is the samples' median with its interval. All run on one core, one
//! after the other.

pub mod allocations;
mod clock;
mod counters;
mod instructions;
mod ovs_dpdk;
mod packets;
mod table;
mod work;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::compare::machine::Machine;
use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::progress::Progress;
use crate::report::Word;
use crate::stats::{Median, ratios};
use crate::stop::Stop;
use crate::subject::LANE_CORE;

use clock::Clock;
use instructions::Counter;
use ovs_dpdk::OvsDpdk;
use work::{Bench, Work};
pub use work::{Case, cases};

/// Version of the JSON document. Fields may be added under the same version.
/// In version 1 a ratio's `pass` was never null.
pub const SCHEMA_VERSION: u32 = 2;

/// Time that one sample of a case takes, and of the peer.
const SAMPLE: Duration = Duration::from_millis(3);
const PEER_SAMPLE: Duration = Duration::from_millis(150);

/// A hit of one flow to the peer's; a hit among a million flows, and one that
/// goes into VXLAN, to one of one flow.
const PEER_BAR: f64 = 1.0;
const MILLION_BAR: f64 = 4.0;
const ENCAPSULATED_BAR: f64 = 1.4;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Cases whose name contains it; all when empty.
    pub only: String,
    /// Samples of each.
    pub rounds: usize,
    /// Whether the peer takes part.
    pub with_peer: bool,
    /// Whether instructions are counted.
    pub with_instructions: bool,
}

/// The whole result; this is the JSON document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Micro {
    schema_version: u32,
    started_at_s: u64,
    machine: Machine,
    core: usize,
    /// Samples of each case.
    rounds: usize,
    /// Whether these are all; `false` after Ctrl-C.
    #[serde(default = "yes")]
    complete: bool,
    /// Rate of the time-stamp counter, whose ticks are the cycles here.
    tsc_hz: f64,
    /// How instructions were counted, or why not.
    instructions: String,
    /// Allocations while packets were handled: a run that makes any fails
    /// instead. `None` when this program's allocator does not count.
    allocations: Option<u64>,
    cases: Vec<Row>,
    peer: Peer,
    ratios: Vec<Ratio>,
}

/// Documents of before there was a word for it are complete.
fn yes() -> bool {
    true
}

/// One case's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    case: Case,
    /// What the figures are counted by.
    unit: String,
    cycles: Median,
    ns: f64,
    instructions: Option<f64>,
    /// Share of packets whose flow was in the table.
    hit_share: Option<f64>,
    #[serde(skip)]
    samples: Vec<f64>,
}

/// The other datapath.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Peer {
    name: String,
    missing: Option<String>,
    cycles: Option<Median>,
    settings: Vec<(String, String)>,
    #[serde(skip)]
    samples: Vec<f64>,
}

/// A ratio of cycles, with its bar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ratio {
    of: String,
    to: String,
    median: Median,
    at_most: f64,
    /// Whether the interval is below; too few rounds say nothing.
    pass: Option<bool>,
}

impl Micro {
    /// Its bars: what of, to what, measured, at most, and what that comes to.
    pub(crate) fn bars(&self) -> impl Iterator<Item = (&str, &str, &Median, f64, Word)> {
        self.ratios.iter().map(|ratio| {
            let (of, to) = (ratio.of.as_str(), ratio.to.as_str());
            (
                of,
                to,
                &ratio.median,
                ratio.at_most,
                Word::judged(ratio.pass),
            )
        })
    }

    /// Every case: its name, what it is counted by, and cycles and time of one.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (&str, &str, &Median, f64)> {
        self.cases
            .iter()
            .map(|row| (row.name.as_str(), row.unit.as_str(), &row.cycles, row.ns))
    }

    /// The other datapath: its cycles or why it is missing, and its settings.
    pub(crate) fn peer_text(&self) -> String {
        table::peer(self)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        table::text(self)
    }

    /// Whether every sample was taken; `false` after Ctrl-C.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether a ratio is beyond its bar.
    #[must_use]
    pub fn misses_a_bar(&self) -> bool {
        self.ratios.iter().any(|ratio| ratio.pass == Some(false))
    }
}

/// Steps that a run takes, for the progress bar.
fn steps(plan: &Plan, cases: usize) -> u64 {
    (cases + plan.rounds + if plan.with_instructions { cases } else { 0 }) as u64
}

/// Measures, until `stop` at the longest: the rounds that were whole by then
/// are the result.
///
/// # Errors
/// When a case does not do what it is about, memory is allocated for a
/// packet, or the machine refuses something; when `stop` came before the first
/// round was over. A missing peer is no error.
pub fn run(plan: &Plan, stop: &Stop) -> Result<Micro, MeasureError> {
    let chosen: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.name().contains(&plan.only))
        .collect();
    if chosen.is_empty() {
        return Err(MeasureError::Usage {
            what: format!("micro --only {}", plan.only),
            detail: format!("no case is named so; {} is one", cases()[0].name()),
        });
    }
    let started = SystemTime::now().duration_since(UNIX_EPOCH);
    let machine = Machine::look()?;
    let core = LANE_CORE.min(machine.cores.saturating_sub(1));
    let progress = Progress::start(steps(plan, chosen.len()));
    let (mut ovs, mut peer) = set_up_peer(plan, core)?;
    check(stop)?;
    cpu::pin(core).map_err(io_error("micro"))?;
    let clock = Clock::calibrate();
    let mut benches = Vec::new();
    for case in &chosen {
        progress.says(&format!("making the flows of {}", case.name()));
        benches.push((Bench::set_up(*case)?, Vec::new()));
        progress.step();
        check(stop)?;
    }
    let mut rounds = 0;
    'rounds: for round in 0..plan.rounds {
        progress.says(&format!("round {} of {}", round + 1, plan.rounds));
        for (bench, samples) in &mut benches {
            let ticks = (SAMPLE.as_secs_f64() * clock.hz) as u64;
            let sample = bench.sample(ticks, clock.overhead)?;
            samples.push(sample.ticks as f64 / sample.units.max(1) as f64);
            if stop.is_set() {
                break 'rounds;
            }
        }
        match ovs.as_mut().map(|ovs| ovs.sample(PEER_SAMPLE, stop)) {
            None => {}
            Some(Ok(sample)) => peer.samples.push(sample),
            Some(Err(_)) if stop.is_set() => break 'rounds,
            Some(Err(error)) => {
                peer.missing = Some(error.to_string());
                peer.samples.clear();
                ovs = None;
            }
        }
        progress.step();
        rounds += 1;
    }
    if rounds == 0 {
        return Err(MeasureError::Interrupted);
    }
    drop(ovs);
    peer.cycles = Median::of(&peer.samples);
    let counter = match plan.with_instructions {
        true => Counter::find(),
        false => Counter::Nobody("not asked for".to_owned()),
    };
    let mut rows = Vec::new();
    for (case, (bench, mut samples)) in chosen.iter().zip(benches) {
        samples.truncate(rounds); // of whole rounds
        let mut row = row(case, &bench, samples, &clock)?;
        if plan.with_instructions && !stop.is_set() {
            progress.says(&format!("counting instructions of {}", row.name));
            row.instructions = match counted(case, &counter) {
                Err(_) if stop.is_set() => None,
                counted => counted?,
            };
            progress.step();
        }
        rows.push(row);
    }
    let ratios = bars(&rows, &peer);
    Ok(Micro {
        schema_version: SCHEMA_VERSION,
        started_at_s: started.map_or(0, |time| time.as_secs()),
        machine,
        core,
        rounds,
        complete: !stop.is_set(),
        tsc_hz: clock.hz,
        instructions: counter.method(),
        allocations: (allocations::count() > 0).then_some(0),
        cases: rows,
        peer,
        ratios,
    })
}

/// Runs one case for a while and says how many packets that was: what
/// callgrind looks at.
///
/// # Errors
/// When there is no such case, or it does not do what it is about.
pub fn single(name: &str) -> Result<u64, MeasureError> {
    let found = cases().into_iter().find(|case| case.name() == name);
    let case = found.ok_or_else(|| MeasureError::Unexpected {
        what: format!("micro --single {name}"),
        detail: "there is no such case".to_owned(),
    })?;
    instructions::single(case)
}

fn check(stop: &Stop) -> Result<(), MeasureError> {
    match stop.is_set() {
        true => Err(MeasureError::Interrupted),
        false => Ok(()),
    }
}

fn set_up_peer(plan: &Plan, core: usize) -> Result<(Option<OvsDpdk>, Peer), MeasureError> {
    let mut peer = Peer {
        name: ovs_dpdk::NAME.to_owned(),
        missing: None,
        cycles: None,
        settings: Vec::new(),
        samples: Vec::new(),
    };
    if !plan.with_peer {
        peer.missing = Some("not asked for".to_owned());
        return Ok((None, peer));
    }
    match OvsDpdk::set_up(core) {
        Ok(ovs) => {
            peer.settings.clone_from(&ovs.settings);
            Ok((Some(ovs), peer))
        }
        Err(MeasureError::Missing { reason, .. }) => {
            peer.missing = Some(reason);
            Ok((None, peer))
        }
        Err(MeasureError::Interrupted) => Err(MeasureError::Interrupted),
        Err(error) => {
            peer.missing = Some(format!("it could not be set up: {error}"));
            Ok((None, peer))
        }
    }
}

fn row(case: &Case, bench: &Bench, samples: Vec<f64>, clock: &Clock) -> Result<Row, MeasureError> {
    let cycles = Median::of(&samples).ok_or_else(|| MeasureError::Unexpected {
        what: format!("micro {}", case.name()),
        detail: "no samples".to_owned(),
    })?;
    Ok(Row {
        name: case.name(),
        case: *case,
        unit: case.work.unit().to_owned(),
        cycles,
        ns: clock.nanos(cycles.value),
        instructions: None,
        hit_share: bench.hit_share(),
        samples,
    })
}

/// Instructions do not depend on how many flows there are, and callgrind
/// would take minutes to make a million.
fn counted(case: &Case, counter: &Counter) -> Result<Option<f64>, MeasureError> {
    let is_small = case.flows <= 1024 || case.work.is_new();
    match is_small {
        true => counter.count(*case),
        false => Ok(None),
    }
}

fn bars(rows: &[Row], peer: &Peer) -> Vec<Ratio> {
    let found = |work, v6, flows| {
        rows.iter().find(|row| {
            let case = row.case;
            (case.work, case.v6, case.flows, case.batch) == (work, v6, flows, 32)
        })
    };
    let mut bars = Vec::new();
    for v6 in [false, true] {
        let Some(one) = found(Work::L3Hit, v6, 1) else {
            continue;
        };
        let mut add = |of: &Row, to: &str, samples: &[f64], at_most| {
            if let Some(median) = Median::of(&ratios(&of.samples, samples)) {
                bars.push(Ratio {
                    of: of.name.clone(),
                    to: to.to_owned(),
                    median,
                    at_most,
                    pass: median.is_certain().then_some(median.interval.1 <= at_most),
                });
            }
        };
        add(one, &peer.name, &peer.samples, PEER_BAR);
        if let Some(million) = found(Work::L3Hit, v6, 1_000_000) {
            add(million, &one.name, &one.samples, MILLION_BAR);
        }
        if let Some(wrapped) = found(Work::VxlanOut, v6, 1) {
            add(wrapped, &one.name, &one.samples, ENCAPSULATED_BAR);
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(work: Work, samples: Vec<f64>) -> Row {
        let case = Case {
            work,
            v6: false,
            flows: 1,
            batch: 32,
        };
        Row {
            name: case.name(),
            case,
            unit: work.unit().to_owned(),
            cycles: Median::of(&samples).unwrap(),
            ns: 0.0,
            instructions: None,
            hit_share: None,
            samples,
        }
    }

    #[test]
    fn a_bar_is_judged_by_enough_rounds_and_its_worse_end() {
        let peer = Peer {
            name: ovs_dpdk::NAME.to_owned(),
            missing: Some("not asked for".to_owned()),
            cycles: None,
            settings: Vec::new(),
            samples: Vec::new(),
        };
        for (wrapped, pass) in [
            (vec![9.0; 5], None),
            (vec![10.0, 10.0, 10.0, 13.0, 10.0, 10.0], Some(true)),
            (vec![10.0, 10.0, 10.0, 15.0, 10.0, 10.0], Some(false)),
        ] {
            let one = row(Work::L3Hit, vec![10.0; wrapped.len()]);
            let bars = bars(&[one, row(Work::VxlanOut, wrapped)], &peer);
            let [bar] = &bars[..] else { panic!("{bars:?}") };
            assert_eq!((bar.at_most, bar.pass), (ENCAPSULATED_BAR, pass));
        }
    }
}
