//! A comparison as Markdown: the whole of it, and the table of the README.

use std::fmt::Write as _;

use crate::compare::document::{Comparison, Verdict};
use crate::report::text::details;
use crate::report::{
    Word, bar_text, facts, failures, interval, present, quantity, settings, verdict_value,
};
use crate::subject::Kind;

/// The whole comparison.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut text = String::from("# Comparison\n\n");
    for fact in facts(comparison) {
        let _ = writeln!(text, "- {fact}");
    }
    if comparison.verdicts().any(|(_, v)| v.bar.is_some()) {
        let _ = write!(text, "\n## Bars\n\n{}", bars(comparison));
    }
    let _ = write!(text, "\n## Medians\n\n{}", medians(comparison));
    if comparison.verdicts().next().is_some() {
        let _ = write!(text, "\n## Ratios\n\n{}", ratios(comparison));
    }
    text.push_str("\n## Method\n\n");
    for sentence in &comparison.method {
        let _ = writeln!(text, "- {sentence}");
    }
    text.push_str("\n## Subjects\n\n");
    for subject in &comparison.subjects {
        let _ = writeln!(text, "- `{}`: {}", subject.name, cell(&settings(subject)));
    }
    let failures = failures(comparison);
    if !failures.is_empty() {
        text.push_str("\n## Failures\n\n");
        for failure in failures {
            let _ = writeln!(text, "- {}", cell(&failure));
        }
    }
    text
}

/// Text that cannot end a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn bars(comparison: &Comparison) -> String {
    let mut text = String::from("| figure | to | bar | measured | |\n|---|---|---|---|---|\n");
    for (_, verdict) in comparison.verdicts() {
        if verdict.bar.is_some() {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                verdict.title,
                verdict.peer.as_deref().unwrap_or_default(),
                bar_text(verdict),
                measured(verdict),
                Word::of(verdict).text()
            );
        }
    }
    text
}

/// `1.02 (0.94–1.17)`.
fn measured(verdict: &Verdict) -> String {
    let show = |value| verdict_value(verdict, value);
    format!(
        "{} ({})",
        show(verdict.median.value),
        interval(&verdict.median, show)
    )
}

fn medians(comparison: &Comparison) -> String {
    let present = present(comparison);
    let mut text = format!("| | {} |\n|---|", present.join(" | "));
    text.push_str(&"---:|".repeat(present.len()));
    text.push('\n');
    for outcome in &comparison.scenarios {
        let _ = write!(text, "| {} |", outcome.scenario.title());
        for subject in &present {
            let shown = outcome.results.get(*subject).map(|result| {
                let Some(median) = result.median else {
                    return "failed".to_owned();
                };
                let more = details(outcome, result);
                let figure = quantity(median.value, &outcome.unit);
                if more.is_empty() {
                    figure
                } else {
                    format!("{figure}<br>{}", more.join("<br>"))
                }
            });
            let _ = write!(text, " {} |", shown.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

fn ratios(comparison: &Comparison) -> String {
    let mut text = String::from("| figure | of | to | median (95 %) | |\n|---|---|---|---:|---|\n");
    for (_, verdict) in comparison.verdicts() {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            verdict.title,
            verdict.subject,
            verdict.peer.as_deref().unwrap_or_default(),
            measured(verdict),
            Word::of(verdict).text()
        );
    }
    text
}

/// What the README shows: Spinlane as shipped, a row a figure, beside the
/// Linux bridge and Open vSwitch, with the bars.
#[must_use]
pub fn readme(comparison: &Comparison) -> String {
    const PEERS: [(Kind, &str); 2] = [
        (Kind::LinuxBridge, "the Linux bridge"),
        (Kind::OvsAfxdp, "Open vSwitch, `afxdp`"),
    ];
    let mut text = String::from("| pod to pod on a node |");
    for (_, name) in PEERS {
        let _ = write!(text, " to {name} | aim |");
    }
    text.push_str("\n|---|---|---|---|---|\n");
    let ours = Kind::Spinlane.name();
    let mut seen = Vec::new();
    for (_, verdict) in comparison.verdicts() {
        if verdict.subject != ours || seen.contains(&verdict.title) {
            continue;
        }
        seen.push(verdict.title.clone());
        if verdict.peer.is_none() {
            let _ = writeln!(
                text,
                "| {} | {} | {} | | |",
                verdict.title,
                measured(verdict),
                aim(verdict)
            );
            continue;
        }
        let against = PEERS.map(|(peer, _)| {
            comparison.verdicts().map(|(_, v)| v).find(|v| {
                v.subject == ours
                    && v.title == verdict.title
                    && v.peer.as_deref() == Some(peer.name())
            })
        });
        if against.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(text, "| {} |", verdict.title);
        for verdict in against {
            let _ = match verdict {
                Some(verdict) => write!(text, " {} | {} |", measured(verdict), aim(verdict)),
                None => write!(text, " – | |"),
            };
        }
        text.push('\n');
    }
    text
}

/// `≥ 1.6, missed`.
fn aim(verdict: &Verdict) -> String {
    match (bar_text(verdict), Word::of(verdict)) {
        (bar, Word::Missed) => format!("{bar}, missed"),
        (bar, _) => bar,
    }
}
