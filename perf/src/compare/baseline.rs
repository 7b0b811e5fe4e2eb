//! Two comparisons held against each other: what changed beyond noise.
//!
//! Ratios to a peer are compared, since they hold between machines and days;
//! a figure changed when the two intervals have nothing in common. Beside it
//! stands whether each interval holds the other run's median, which is what
//! two runs of the same thing are expected to do.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::compare::document::{Comparison, Verdict};
use crate::micro::Micro;
use crate::scenario::{Better, Scenario};
use crate::stats::Median;

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The intervals meet.
    None,
    /// Better beyond noise.
    Better,
    /// Worse beyond noise.
    Worse,
    /// Only the first run has it.
    Gone,
    /// Only the second run has it.
    New,
}

/// One figure in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Of which scenario, or `micro`: the packet logic by itself.
    pub scenario: &'static str,
    /// What it is, for a reader.
    pub title: String,
    /// Whose figure it is.
    pub subject: String,
    /// Whose divides it.
    pub peer: Option<String>,
    /// In the first run.
    pub before: Option<Median>,
    /// In the second.
    pub after: Option<Median>,
    /// What became of it.
    pub change: Change,
    /// Whether each interval holds the other run's median.
    pub agrees: bool,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    /// Commit of the first run.
    pub before: String,
    /// Commit of the second.
    pub after: String,
    /// Remarks on why the runs may not be comparable.
    pub remarks: Vec<String>,
    /// In the order of the first run, then what is new.
    pub lines: Vec<Line>,
}

/// What tells a verdict from the others.
type Key = (Scenario, String, String, Option<String>);

fn verdicts(comparison: &Comparison) -> Vec<(Key, &Verdict)> {
    comparison
        .verdicts()
        .map(|(outcome, verdict)| {
            let key = (
                outcome.scenario,
                verdict.figure.clone(),
                verdict.subject.clone(),
                verdict.peer.clone(),
            );
            (key, verdict)
        })
        .collect()
}

impl Baseline {
    /// Holds the second run against the first.
    #[must_use]
    pub fn of(before: &Comparison, after: &Comparison) -> Baseline {
        let mut left: BTreeMap<Key, &Verdict> = verdicts(after).into_iter().collect();
        let mut lines: Vec<Line> = verdicts(before)
            .into_iter()
            .map(|(key, first)| {
                let second = left.remove(&key);
                line(key.0, Some(first), second)
            })
            .collect();
        lines.extend(
            verdicts(after)
                .into_iter()
                .filter(|(key, _)| left.contains_key(key))
                .map(|(key, second)| line(key.0, None, Some(second))),
        );
        lines.extend(packet_logic([before, after]));
        Baseline {
            before: before.commit.clone(),
            after: after.commit.clone(),
            remarks: remarks(before, after),
            lines,
        }
    }

    /// How many ratios to a peer agree, and how many both runs have.
    #[must_use]
    pub fn agreement(&self) -> (usize, usize) {
        let both = |line: &&Line| {
            line.peer.is_some() && !matches!(line.change, Change::Gone | Change::New)
        };
        let compared = || self.lines.iter().filter(both);
        (
            compared().filter(|line| line.agrees).count(),
            compared().count(),
        )
    }

    /// Whether something became worse beyond noise.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        self.lines.iter().any(|line| line.change == Change::Worse)
    }
}

/// The bars of the packet logic by itself, whose figures are cycles.
fn packet_logic(runs: [&Comparison; 2]) -> Vec<Line> {
    let [before, after] = runs.map(|run| -> BTreeMap<(&str, &str), Median> {
        let bars = run.micro.iter().flat_map(Micro::bars);
        bars.map(|(of, to, median, ..)| ((of, to), *median))
            .collect()
    });
    let names: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
    names
        .into_iter()
        .map(|(of, to)| {
            let medians = [&before, &after].map(|bars| bars.get(&(of, to)).copied());
            let (change, agrees) = compared(medians, Better::Lower);
            Line {
                scenario: "micro",
                title: "cycles of a packet".to_owned(),
                subject: of.to_owned(),
                peer: Some(to.to_owned()),
                before: medians[0],
                after: medians[1],
                change,
                agrees,
            }
        })
        .collect()
}

/// What became of a figure, and whether the runs agree about it.
fn compared([before, after]: [Option<Median>; 2], better: Better) -> (Change, bool) {
    match (before, after) {
        (Some(first), Some(second)) => (change(&first, &second, better), agree(&first, &second)),
        (None, _) => (Change::New, false),
        (_, None) => (Change::Gone, false),
    }
}

fn line(scenario: Scenario, before: Option<&Verdict>, after: Option<&Verdict>) -> Line {
    let named = before.or(after);
    let text = |field: fn(&Verdict) -> String| named.map(field).unwrap_or_default();
    let medians = [before, after].map(|verdict| verdict.map(|verdict| verdict.median));
    let better = named.map_or(Better::Higher, |verdict| verdict.better);
    let (change, agrees) = compared(medians, better);
    Line {
        scenario: scenario.name(),
        title: text(|verdict| verdict.title.clone()),
        subject: text(|verdict| verdict.subject.clone()),
        peer: named.and_then(|verdict| verdict.peer.clone()),
        before: medians[0],
        after: medians[1],
        change,
        agrees,
    }
}

fn change(before: &Median, after: &Median, better: Better) -> Change {
    let (lower, higher) = match better {
        Better::Higher => (Change::Worse, Change::Better),
        Better::Lower => (Change::Better, Change::Worse),
    };
    if after.interval.1 < before.interval.0 {
        lower
    } else if after.interval.0 > before.interval.1 {
        higher
    } else {
        Change::None
    }
}

fn agree(before: &Median, after: &Median) -> bool {
    let holds =
        |median: &Median, value: f64| (median.interval.0..=median.interval.1).contains(&value);
    holds(before, after.value) && holds(after, before.value)
}

fn remarks(before: &Comparison, after: &Comparison) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut differ = |what: &str, first: String, second: String| {
        if first != second {
            remarks.push(format!("{what}: {first} before, {second} after"));
        }
    };
    let family = |v6: bool| if v6 { "IPv6" } else { "IPv4" }.to_owned();
    differ(
        "processor",
        before.machine.cpu.clone(),
        after.machine.cpu.clone(),
    );
    differ(
        "kernel",
        before.machine.kernel.clone(),
        after.machine.kernel.clone(),
    );
    differ(
        "cores",
        before.machine.cores.to_string(),
        after.machine.cores.to_string(),
    );
    differ("family", family(before.v6), family(after.v6));
    differ("rounds", before.pairs.to_string(), after.pairs.to_string());
    differ(
        "seconds of a measurement",
        before.seconds.to_string(),
        after.seconds.to_string(),
    );
    for (name, run) in [("first", before), ("second", after)] {
        if !run.complete {
            remarks.push(format!("the {name} run was interrupted"));
        }
        if run.pairs < 6 {
            remarks.push(format!(
                "the {name} run has {} rounds, too few for an interval of 95 %",
                run.pairs
            ));
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(value: f64, low: f64, high: f64) -> Median {
        Median {
            value,
            interval: (low, high),
            confidence: 0.98,
            repeats: 0.93,
            count: 7,
        }
    }

    #[test]
    fn only_intervals_apart_are_a_change() {
        let base = median(1.0, 0.9, 1.1);
        for (after, rate, time) in [
            (median(1.3, 1.2, 1.4), Change::Better, Change::Worse),
            (median(0.7, 0.6, 0.8), Change::Worse, Change::Better),
            (median(1.2, 1.1, 1.4), Change::None, Change::None),
            (median(0.8, 0.7, 0.9), Change::None, Change::None),
        ] {
            assert_eq!(change(&base, &after, Better::Higher), rate, "{after:?}");
            assert_eq!(change(&base, &after, Better::Lower), time, "{after:?}");
        }
    }

    #[test]
    fn runs_agree_when_each_interval_holds_the_others_median() {
        let base = median(1.0, 0.9, 1.1);
        assert!(agree(&base, &median(1.05, 0.95, 1.2)));
        assert!(!agree(&base, &median(1.2, 0.95, 1.3)));
        assert!(!agree(&base, &median(1.05, 1.02, 1.2)));
    }
}
