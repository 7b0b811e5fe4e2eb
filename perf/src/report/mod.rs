//! Results for people: tables in a terminal ([`text`]), Markdown
//! ([`markdown`]) and a page with plots ([`html`]).

pub mod html;
pub mod markdown;
pub(crate) mod plot;
pub mod text;

use std::time::Duration;

use crate::compare::document::{Comparison, Outcome, Participant, Verdict};
use crate::compare::field::CORE_SPEEDS;
use crate::compare::machine::Machine;
use crate::scenario::Better;
use crate::stats::Median;
use crate::subject::{Kind, Topology};

pub use text::{figure, table};

/// A figure in its unit, short: `1.25 M pps`, `12.3 Gbit/s`.
#[must_use]
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "packets/s" => format!("{} pps", scaled(value)),
        "bit/s" => format!("{}bit/s", scaled(value)),
        "us" => format!("{value:.1} µs"),
        "% of a core" => format!("{value:.2} %"),
        "segments" => format!("{value:.0}"),
        "pods/s" => format!("{value:.1} {unit}"),
        "bit/CPU-s" => format!("{}{unit}", scaled(value)),
        other => format!("{} {other}", scaled(value).trim_end()),
    }
}

/// Three digits and a decimal prefix.
pub(crate) fn scaled(value: f64) -> String {
    let (value, prefix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0} {prefix}"),
        v if v >= 10.0 => format!("{value:.1} {prefix}"),
        _ => format!("{value:.2} {prefix}"),
    }
}

/// A ratio, or a figure that stands alone, with its unit where it has one.
fn verdict_value(verdict: &Verdict, value: f64) -> String {
    match verdict.peer {
        Some(_) => format!("{value:.2}"),
        None => quantity(value, &verdict.unit),
    }
}

/// `0.94–1.17`, with the confidence where that is not 95 %.
fn interval(median: &Median, show: impl Fn(f64) -> String) -> String {
    let (low, high) = median.interval;
    let range = format!("{}–{}", show(low), show(high));
    match median.is_certain() {
        true => range,
        false => format!("{range} ({:.0} %)", median.confidence * 100.0),
    }
}

/// `≥ 1.6`.
fn bar_text(verdict: &Verdict) -> String {
    verdict.bar.map_or_else(String::new, |bar| {
        let sign = match bar.better {
            Better::Higher => '≥',
            Better::Lower => '≤',
        };
        format!("{sign} {}", bar.limit)
    })
}

/// What a verdict comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Met,
    Missed,
    Ahead,
    Behind,
    Level,
    /// Too few rounds to say.
    Open,
}

impl Word {
    /// Met or missed where there is a bar; without one, who is ahead.
    fn of(verdict: &Verdict) -> Word {
        let (low, high) = verdict.median.interval;
        match (verdict.pass, verdict.better) {
            (Some(true), _) => Word::Met,
            (Some(false), _) => Word::Missed,
            _ if !verdict.median.is_certain() || verdict.peer.is_none() => Word::Open,
            (None, Better::Higher) if low > 1.0 => Word::Ahead,
            (None, Better::Lower) if high < 1.0 => Word::Ahead,
            (None, Better::Higher) if high < 1.0 => Word::Behind,
            (None, Better::Lower) if low > 1.0 => Word::Behind,
            (None, _) => Word::Level,
        }
    }

    /// What is said of a bar alone.
    pub(crate) fn judged(pass: Option<bool>) -> Word {
        match pass {
            Some(true) => Word::Met,
            Some(false) => Word::Missed,
            None => Word::Open,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Word::Met => "met",
            Word::Missed => "missed",
            Word::Ahead => "ahead",
            Word::Behind => "behind",
            Word::Level => "level",
            Word::Open => "open",
        }
    }
}

/// A warning when the machine had other work, which weighs more on switches
/// that need a core of their own than on those that run in the sender's.
#[must_use]
pub fn other_work(comparison: &Comparison) -> Option<String> {
    busy_elsewhere(
        &comparison.machine,
        "polling switches look worse than they are",
    )
}

/// A warning when the machine had other work, and what that means.
#[must_use]
pub fn busy_elsewhere(machine: &Machine, meaning: &str) -> Option<String> {
    let work = machine.other_work;
    (work > 0.1).then(|| format!("This machine is at work elsewhere ({work:.1} cores): {meaning}."))
}

/// How much the cores' speed varied between measurements.
fn core_speeds(comparison: &Comparison) -> Option<String> {
    let all = || {
        let results = comparison.scenarios.iter().flat_map(|o| o.results.values());
        results.flat_map(|result| &result.samples)
    };
    let texts: Vec<String> = CORE_SPEEDS
        .iter()
        .filter_map(|(name, core)| {
            let mut steps: Vec<f64> = all().filter_map(|s| s.figure(name)).collect();
            steps.sort_by(f64::total_cmp);
            let (least, most) = (*steps.first()?, *steps.last()?);
            let middle = steps[steps.len() / 2];
            Some(format!(
                "{:.2} times (at most {:.1}) on core {core}",
                middle / least,
                most / least
            ))
        })
        .collect();
    (!texts.is_empty()).then(|| {
        format!(
            "Before the measurements, arithmetic took its shortest time {}, in the median: what \
             the machine's neighbours left.",
            texts.join(", ")
        )
    })
}

/// The machine in a line.
pub(crate) fn machine_text(machine: &Machine) -> String {
    format!(
        "{} cores of {}, {:.0} GiB of memory, Linux {}",
        machine.cores,
        machine.cpu,
        machine.memory_bytes as f64 / (1u64 << 30) as f64,
        machine.kernel,
    )
}

/// The machine and the run, a line each.
fn facts(comparison: &Comparison) -> Vec<String> {
    let mut facts = vec![
        machine_text(&comparison.machine),
        format!(
            "commit {}, {} UTC; {} rounds of {} s (and {} s before that do not count), IPv{}, {} in all",
            comparison.commit,
            crate::compare::machine::date(comparison.started_at_s),
            comparison.pairs,
            comparison.seconds,
            comparison.warm_up_seconds,
            if comparison.v6 { 6 } else { 4 },
            minutes(comparison.took_s),
        ),
    ];
    facts.extend(core_speeds(comparison));
    if !comparison.complete {
        facts.push("Interrupted: rounds are missing.".to_owned());
    }
    facts.extend(other_work(comparison));
    facts
}

pub(crate) fn minutes(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match whole / 60 {
        0 => format!("{whole} s"),
        minutes => format!("{minutes} min {} s", whole % 60),
    }
}

/// A participant's settings, or why it is missing.
fn settings(subject: &Participant) -> String {
    match &subject.missing {
        Some(reason) => format!("missing: {reason}"),
        None => subject
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(" · "),
    }
}

/// Names of those who took part in a topology, in their order.
fn present(comparison: &Comparison, topology: Topology) -> Vec<&str> {
    comparison
        .subjects
        .iter()
        .filter(|subject| subject.missing.is_none())
        .map(|subject| subject.name.as_str())
        .filter(|name| topology_of(name) == topology)
        .collect()
}

/// Topologies that somebody took part in, in the order of reports.
fn topologies(comparison: &Comparison) -> Vec<Topology> {
    let has_some = |topology: &Topology| !present(comparison, *topology).is_empty();
    Topology::ALL.into_iter().filter(has_some).collect()
}

/// That of a subject; of one that this program does not know, the simplest.
fn topology_of(name: &str) -> Topology {
    Kind::named(name).map_or(Topology::OneNode, Kind::topology)
}

/// What was measured in a topology.
fn outcomes<'a>(
    comparison: &'a Comparison,
    present: &'a [&str],
) -> impl Iterator<Item = &'a Outcome> {
    comparison.scenarios.iter().filter(|outcome| {
        let mut names = outcome.results.keys();
        names.any(|name| present.contains(&name.as_str()))
    })
}

/// Failures, a line each.
fn failures(comparison: &Comparison) -> Vec<String> {
    comparison
        .scenarios
        .iter()
        .flat_map(|outcome| {
            outcome.results.iter().filter_map(|(subject, result)| {
                let failure = result.failure.as_ref()?;
                Some(format!("{} {subject}: {failure}", outcome.scenario.name()))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
