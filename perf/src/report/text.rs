//! Tables in a terminal.

use std::fmt::Write;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

use crate::compare::baseline::{Baseline, Change};
use crate::compare::{Comparison, Outcome, Plan, SubjectResult};
use crate::report::{
    Word, bar_text, facts, failures, interval, minutes, outcomes, present, quantity, settings,
    topologies, verdict_value,
};
use crate::stats::Median;
use crate::subject::Topology;

/// Width of a table when standard output is no terminal.
const PLAIN_WIDTH: u16 = 120;

/// An empty table in the style of all of them.
#[must_use]
pub fn table<T: Into<Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(
            header
                .into_iter()
                .map(|name| name.into().add_attribute(Attribute::Bold)),
        );
    if !table.is_tty() {
        table.set_width(PLAIN_WIDTH);
    }
    table
}

/// A cell of figures.
#[must_use]
pub fn figure(text: impl Into<String>) -> Cell {
    Cell::new(text.into()).set_alignment(CellAlignment::Right)
}

/// The whole comparison.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut text = facts(comparison).join("\n");
    text.push_str("\n\n");
    for topology in topologies(comparison) {
        let _ = writeln!(text, "{}", figures(comparison, topology));
    }
    if comparison.verdicts().next().is_some() {
        let _ = writeln!(text, "\n{}", verdicts(comparison));
    }
    text.push('\n');
    for sentence in &comparison.method {
        let _ = writeln!(text, "{sentence}");
    }
    text.push('\n');
    for subject in &comparison.subjects {
        let _ = writeln!(text, "{}: {}", subject.name, settings(subject));
    }
    for failure in failures(comparison) {
        let _ = writeln!(text, "{failure}");
    }
    if let Some(micro) = &comparison.micro {
        let _ = write!(text, "\n{}", micro.text());
    }
    text.trim_end().to_owned()
}

/// What a plan is going to do, and what it takes, with `more` after it.
#[must_use]
pub fn plan(plan: &Plan, more: Option<Duration>) -> String {
    let mut table = table(["scenario", "subjects"].map(Cell::new));
    for entry in &plan.entries {
        let names: Vec<&str> = entry.subjects.iter().map(|kind| kind.name()).collect();
        table.add_row(vec![entry.scenario.name(), &names.join(", ")]);
    }
    let mut text = format!("{table}\n");
    if more.is_some() {
        let _ = writeln!(
            text,
            "and the packet logic by itself, as `micro` measures it"
        );
    }
    let _ = write!(
        text,
        "{} rounds, {} measurements of {} subjects: about {}",
        plan.pairs,
        plan.measurements(),
        plan.subjects().len(),
        minutes((plan.estimate() + more.unwrap_or_default()).as_secs_f64())
    );
    text
}

/// Two runs held against each other.
#[must_use]
pub fn baseline(baseline: &Baseline) -> String {
    let mut table = table(["figure", "of", "to", "before", "after", "change", ""].map(Cell::new));
    let median = |median: Option<Median>| {
        figure(median.map_or_else(String::new, |median| {
            let range = interval(&median, |value| format!("{value:.2}"));
            format!("{:.2} ({range})", median.value)
        }))
    };
    for line in &baseline.lines {
        let (word, colour) = match line.change {
            Change::None if line.agrees => ("same", None),
            Change::None => ("within noise, medians apart", None),
            Change::Better => ("better", Some(Color::Green)),
            Change::Worse => ("worse", Some(Color::Red)),
            Change::Gone => ("gone", None),
            Change::New => ("new", None),
        };
        let by = match (line.before, line.after) {
            (Some(before), Some(after)) if before.value != 0.0 => {
                format!("{:+.1} %", (after.value / before.value - 1.0) * 100.0)
            }
            _ => String::new(),
        };
        let mut verdict = Cell::new(word);
        if let Some(colour) = colour {
            verdict = verdict.fg(colour);
        }
        table.add_row(vec![
            Cell::new(&line.title),
            Cell::new(&line.subject),
            Cell::new(line.peer.as_deref().unwrap_or_default()),
            median(line.before),
            median(line.after),
            figure(by),
            verdict,
        ]);
    }
    let mut text = format!("{} before, {} after\n", baseline.before, baseline.after);
    for remark in &baseline.remarks {
        let _ = writeln!(text, "{remark}");
    }
    let _ = writeln!(text, "{table}");
    let _ = write!(text, "{}", agreement(baseline));
    text
}

/// Whether two runs of the same thing say the same.
fn agreement(baseline: &Baseline) -> String {
    let (agreeing, compared) = baseline.agreement();
    format!(
        "Of {compared} ratios that both runs have, {agreeing} agree: each run's interval holds the \
         other's median."
    )
}

/// Medians, one column a subject.
fn figures(comparison: &Comparison, topology: Topology) -> Table {
    let present = present(comparison, topology);
    let mut table = table(
        [topology.title()]
            .into_iter()
            .chain(present.iter().copied())
            .map(Cell::new),
    );
    for outcome in outcomes(comparison, &present) {
        let mut row = vec![Cell::new(outcome.scenario.title())];
        for subject in &present {
            let result = outcome.results.get(*subject);
            row.push(figure(
                result.map_or_else(String::new, |result| result_cell(outcome, result)),
            ));
        }
        table.add_row(row);
    }
    table
}

fn result_cell(outcome: &Outcome, result: &SubjectResult) -> String {
    let Some(median) = result.median else {
        return if result.failure.is_some() {
            "failed"
        } else {
            "–"
        }
        .to_owned();
    };
    let mut text = quantity(median.value, &outcome.unit);
    for detail in details(outcome, result) {
        let _ = write!(text, "\n{detail}");
    }
    let busy: Vec<String> = result
        .cores_busy()
        .iter()
        .map(|share| format!("{:.0}", share * 100.0))
        .collect();
    if busy.len() <= 4 {
        let _ = write!(text, "\ncores {} %", busy.join("+"));
    }
    text
}

/// What else is worth a line beside a median.
pub(super) fn details(outcome: &Outcome, result: &SubjectResult) -> Vec<String> {
    let detail = |name| result.figure(name).map(|median| median.value);
    let mut lines = Vec::new();
    if outcome.unit == "us" {
        lines.extend(detail("p99_us").map(|p99| format!("p99 {}", quantity(p99, "us"))));
    }
    if let Some(again) = detail("retransmits") {
        let reordered = detail("reordering").unwrap_or_default();
        lines.push(format!("{again:.0} sent again, {reordered:.0} reordered"));
    }
    lines
}

/// Ratios with their intervals and bars.
fn verdicts(comparison: &Comparison) -> Table {
    let mut table =
        table(["ratio", "of", "to", "median", "95 % interval", "bar", ""].map(Cell::new));
    for (_, verdict) in comparison.verdicts() {
        let show = |value| verdict_value(verdict, value);
        let word = Word::of(verdict);
        let cell = Cell::new(word.text());
        table.add_row(vec![
            Cell::new(&verdict.title),
            Cell::new(&verdict.subject),
            Cell::new(verdict.peer.as_deref().unwrap_or_default()),
            figure(show(verdict.median.value)).add_attribute(Attribute::Bold),
            figure(interval(&verdict.median, show)),
            figure(bar_text(verdict)),
            match word {
                Word::Met => cell.fg(Color::Green),
                Word::Missed => cell.fg(Color::Red),
                _ => cell,
            },
        ]);
    }
    table
}
