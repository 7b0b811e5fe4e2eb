//! Results as tables for people.

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

use crate::compare::{Comparison, Outcome, Ratio, SubjectResult};
use crate::scenario::{Better, Scenario};

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

/// A figure in the unit of a scenario, short: `1.25 M/s`, `12.3 Gbit/s`.
#[must_use]
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "packets/s" => format!("{} pps", scaled(value)),
        "bit/s" => format!("{}bit/s", scaled(value)),
        "us" => format!("{value:.1} µs"),
        "% of a core" => format!("{value:.2} %"),
        other => format!("{value:.2} {other}"),
    }
}

/// Three digits and a decimal prefix.
fn scaled(value: f64) -> String {
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

/// The whole comparison.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut text = String::new();
    let machine = &comparison.machine;
    let _ = writeln!(
        text,
        "{} cores of {}, Linux {}; {} rounds of {} s each, interleaved; IPv{}",
        machine.cores,
        machine.cpu,
        machine.kernel,
        comparison.pairs,
        comparison.seconds,
        if comparison.v6 { 6 } else { 4 },
    );
    let _ = writeln!(
        text,
        "generator on core {}; lane and polling threads on core 1; TCP and round trip ends {}",
        comparison.sender_core,
        if comparison.sockets_pinned {
            "send from the generator's core"
        } else {
            "wherever the scheduler puts them"
        },
    );
    if let Some(warning) = other_work(comparison) {
        let _ = writeln!(text, "{warning}");
    }
    let _ = writeln!(text, "\n{}", figures(comparison));
    if comparison.scenarios.iter().any(|o| !o.ratios.is_empty()) {
        let _ = writeln!(text, "\n{}", ratios(comparison));
    }
    let _ = writeln!(text);
    for subject in &comparison.subjects {
        let words = match &subject.missing {
            Some(reason) => format!("missing: {reason}"),
            None => subject
                .settings
                .iter()
                .map(|(name, value)| format!("{name} {value}"))
                .collect::<Vec<_>>()
                .join(" · "),
        };
        let _ = writeln!(text, "{}: {words}", subject.name);
    }
    for outcome in &comparison.scenarios {
        for (subject, result) in &outcome.results {
            if let Some(failure) = &result.failure {
                let _ = writeln!(text, "{} {subject}: {failure}", outcome.scenario.name());
            }
        }
    }
    text.trim_end().to_owned()
}

/// A warning when the machine had other work, which weighs more on switches
/// that need a core of their own than on those that run in the sender's.
#[must_use]
pub fn other_work(comparison: &Comparison) -> Option<String> {
    let work = comparison.machine.other_work;
    (work > 0.1).then(|| {
        format!(
            "This machine is at work elsewhere ({work:.1} cores): polling switches look worse \
             than they are."
        )
    })
}

/// Medians, one column a subject.
fn figures(comparison: &Comparison) -> Table {
    let present: Vec<&str> = comparison
        .subjects
        .iter()
        .filter(|subject| subject.missing.is_none())
        .map(|subject| subject.name)
        .collect();
    let mut table = table(
        ["medians"]
            .into_iter()
            .chain(present.iter().copied())
            .map(Cell::new),
    );
    for outcome in &comparison.scenarios {
        let mut row = vec![Cell::new(outcome.scenario.title())];
        for subject in &present {
            let result = outcome.results.get(subject);
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
    let mut text = quantity(median.value, outcome.unit);
    let detail = |name| result.detail(name);
    let more = match outcome.scenario {
        Scenario::Tcp | Scenario::TcpStreams => {
            detail("retransmits").map(|retransmits| format!("{retransmits:.0} sent again"))
        }
        Scenario::UdpRr | Scenario::TcpRr => {
            detail("p99_us").map(|p99| format!("p99 {}", quantity(p99, "us")))
        }
        _ => None,
    };
    if let Some(more) = more {
        let _ = write!(text, "\n{more}");
    }
    let busy: Vec<String> = result
        .cores_busy()
        .iter()
        .map(|share| format!("{:.0}", share * 100.0))
        .collect();
    if busy.len() <= 4 {
        let _ = write!(text, "\ncores {} %", busy.join(" + "));
    }
    text
}

/// Ratios with their intervals and bars.
fn ratios(comparison: &Comparison) -> Table {
    let mut table =
        table(["ratio", "of", "to", "median", "95 % interval", "bar", ""].map(Cell::new));
    for outcome in &comparison.scenarios {
        for ratio in &outcome.ratios {
            let (low, high) = ratio.median.interval;
            let mut interval = format!("{low:.2} – {high:.2}");
            if !ratio.median.is_certain() {
                let _ = write!(interval, " ({:.0} %)", ratio.median.confidence * 100.0);
            }
            table.add_row(vec![
                Cell::new(outcome.scenario.title()),
                Cell::new(ratio.subject),
                Cell::new(ratio.peer),
                figure(format!("{:.2}", ratio.median.value)).add_attribute(Attribute::Bold),
                figure(interval),
                figure(bar_text(ratio)),
                verdict(ratio, outcome.better),
            ]);
        }
    }
    table
}

fn bar_text(ratio: &Ratio) -> String {
    ratio.bar.map_or_else(String::new, |bar| {
        let sign = match bar.better {
            Better::Higher => '≥',
            Better::Lower => '≤',
        };
        format!("{sign} {}", bar.ratio)
    })
}

/// `pass` or `miss` with a bar; without one, who is ahead.
fn verdict(ratio: &Ratio, better: Better) -> Cell {
    match ratio.pass {
        Some(true) => Cell::new("pass").fg(Color::Green),
        Some(false) => Cell::new("miss").fg(Color::Red),
        None if !ratio.median.is_certain() => Cell::new(""),
        None => {
            let (low, high) = ratio.median.interval;
            let (ahead, behind) = match better {
                Better::Higher => (low > 1.0, high < 1.0),
                Better::Lower => (high < 1.0, low > 1.0),
            };
            Cell::new(match (ahead, behind) {
                (true, _) => "ahead",
                (_, true) => "behind",
                _ => "level",
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        for (value, unit, expect) in [
            (512_345.0, "packets/s", "512 k pps"),
            (1_260_000.0, "packets/s", "1.26 M pps"),
            (12_345_678_901.0, "bit/s", "12.3 Gbit/s"),
            (950.0, "bit/s", "950 bit/s"),
            (28.04, "us", "28.0 µs"),
            (1.5, "% of a core", "1.50 %"),
        ] {
            let text = quantity(value, unit);
            assert_eq!(
                text.replace(" G", "G"),
                expect.replace(" G", "G"),
                "{value}"
            );
        }
    }
}
