//! A comparison as Markdown: the whole of it, and the table of the README.

use std::fmt::Write as _;

use crate::compare::document::{Comparison, Verdict};
use crate::micro::Micro;
use crate::report::text::details;
use crate::report::{
    Word, bar_text, facts, failures, interval, outcomes, present, quantity, settings, topologies,
    verdict_value,
};
use crate::subject::{Kind, Topology};

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
    for topology in topologies(comparison) {
        let title = topology.title();
        let _ = write!(text, "\n## {title}\n\n{}", medians(comparison, topology));
    }
    if comparison.verdicts().next().is_some() {
        let _ = write!(text, "\n## Ratios\n\n{}", ratios(comparison));
    }
    if let Some(micro) = &comparison.micro {
        text.push_str(&packet_logic(micro));
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
pub(crate) fn cell(text: &str) -> String {
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

fn medians(comparison: &Comparison, topology: Topology) -> String {
    let present = present(comparison, topology);
    let mut text = format!("| | {} |\n|---|", present.join(" | "));
    text.push_str(&"---:|".repeat(present.len()));
    text.push('\n');
    for outcome in outcomes(comparison, &present) {
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

/// The packet logic by itself: bars, then cycles of every case.
fn packet_logic(micro: &Micro) -> String {
    let mut text = format!(
        "\n## The packet logic by itself\n\n{}\n\n",
        cell(&micro.peer_text())
    );
    text.push_str("| cycles of | to | bar | measured | |\n|---|---|---|---|---|\n");
    for (of, to, median, at_most, word) in micro.bars() {
        let measured = interval(median, |value| format!("{value:.2}"));
        let (value, word) = (median.value, word.text());
        let _ = writeln!(
            text,
            "| {of} | {to} | ≤ {at_most} | {value:.2} ({measured}) | {word} |"
        );
    }
    text.push_str("\n| case | per | cycles (95 %) | ns |\n|---|---|---:|---:|\n");
    for (name, unit, cycles, ns) in micro.figures() {
        let measured = interval(cycles, |value| format!("{value:.1}"));
        let value = cycles.value;
        let _ = writeln!(
            text,
            "| {name} | {unit} | {value:.1} ({measured}) | {ns:.1} |"
        );
    }
    text
}

/// Whose ratios the README shows, and to whom.
const SHOWN: [(Kind, &[(Kind, &str)]); 4] = [
    (
        Kind::Spinlane,
        &[
            (Kind::LinuxBridge, "the Linux bridge"),
            (Kind::OvsAfxdp, "Open vSwitch, `afxdp`"),
        ],
    ),
    (
        Kind::SpinlaneForwarding,
        &[(Kind::LinuxBridgeForwarding, "the Linux bridge")],
    ),
    (
        Kind::SpinlaneVxlan,
        &[
            (Kind::LinuxVxlan, "Linux bridge and vxlan"),
            (Kind::OvsAfxdpVxlan, "Open vSwitch, `afxdp`"),
        ],
    ),
    (
        Kind::SpinlaneMasquerade,
        &[(Kind::NftMasquerade, "nftables")],
    ),
];

/// What the README shows: Spinlane as shipped, a table a topology, a row a
/// figure, beside its peers, with the bars.
#[must_use]
pub fn readme(comparison: &Comparison) -> String {
    let tables: Vec<String> = SHOWN
        .iter()
        .filter_map(|(ours, peers)| readme_table(comparison, *ours, peers))
        .collect();
    tables.join("\n")
}

fn readme_table(comparison: &Comparison, kind: Kind, peers: &[(Kind, &str)]) -> Option<String> {
    let ours = kind.name();
    let mut text = format!("| {} |", kind.topology().title().replacen('P', "p", 1));
    for (_, name) in peers {
        let _ = write!(text, " to {name} | aim |");
    }
    let _ = write!(text, "\n|---|{}\n", "---|---|".repeat(peers.len()));
    let rows = text.lines().count();
    let mut seen = Vec::new();
    for (_, verdict) in comparison.verdicts() {
        if verdict.subject != ours || seen.contains(&verdict.title) {
            continue;
        }
        seen.push(verdict.title.clone());
        if verdict.peer.is_none() {
            let (measured, aim) = (measured(verdict), aim(verdict));
            let rest = " | |".repeat(peers.len() - 1);
            let _ = writeln!(text, "| {} | {measured} | {aim} |{rest}", verdict.title);
            continue;
        }
        let against: Vec<Option<&Verdict>> = peers
            .iter()
            .map(|(peer, _)| {
                comparison.verdicts().map(|(_, v)| v).find(|v| {
                    v.subject == ours
                        && v.title == verdict.title
                        && v.peer.as_deref() == Some(peer.name())
                })
            })
            .collect();
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
    (text.lines().count() > rows).then_some(text)
}

/// `≥ 1.6, missed`.
fn aim(verdict: &Verdict) -> String {
    match (bar_text(verdict), Word::of(verdict)) {
        (bar, Word::Missed) => format!("{bar}, missed"),
        (bar, _) => bar,
    }
}
