//! The report of a run: text for a terminal, and Markdown; the page is in
//! [`page`](super::page).

use std::fmt::Write as _;

use crate::report::markdown::cell;
use crate::report::text::{figure, table};
use crate::report::{busy_elsewhere, machine_text, minutes, quantity};
use crate::rfc2544::{Case, Plan, Report};

/// One table of the report.
pub(super) struct Sheet {
    pub(super) title: &'static str,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// Tables of throughput, latency and frame loss rate; those without a row are
/// left out.
pub(super) fn sheets(report: &Report) -> Vec<Sheet> {
    let mut sheets = vec![throughput(report), latency(report), loss(report)];
    sheets.retain(|sheet| !sheet.rows.is_empty());
    sheets
}

/// What was measured, where and how, a line each.
pub(super) fn facts(report: &Report) -> Vec<String> {
    let mut facts = vec![
        machine_text(&report.machine),
        format!(
            "commit {}, {} UTC; IPv{}, trials of {} s, {} a load, {} in all",
            report.commit,
            crate::compare::machine::date(report.started_at_s),
            if report.ipv6 { 6 } else { 4 },
            report.trial_seconds,
            report.trials,
            minutes(report.took_s),
        ),
    ];
    if !report.complete {
        facts.push("NOT COMPLETE: it was interrupted, or a case failed.".to_owned());
    }
    let meaning = "frames are lost, and wait, that otherwise would not";
    facts.extend(busy_elsewhere(&report.machine, meaning));
    facts
}

/// What went wrong, a line each.
pub(super) fn failures(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for case in &report.cases {
        let name = case.name();
        if let Some(failure) = &case.failure {
            lines.push(format!("{name}: {failure}"));
        }
        if case.irregular {
            lines.push(format!(
                "{name}: the search gave up, loss does not follow the load"
            ));
        }
    }
    lines
}

/// How the subject was run, in one line.
pub(super) fn settings(report: &Report) -> String {
    let settings = report.settings.iter();
    let texts: Vec<String> = settings
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    texts.join(", ")
}

/// What would be measured, and how long that takes.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let sizes: Vec<String> = plan.sizes.iter().map(ToString::to_string).collect();
    let flows: Vec<String> = plan.flows.iter().map(ToString::to_string).collect();
    format!(
        "frames of {}; {} flows; trials of {} s: about {}",
        sizes.join(", "),
        flows.join(", "),
        plan.trial_seconds,
        minutes(plan.estimate().as_secs_f64())
    )
}

/// For a terminal.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut parts = vec![format!("RFC 2544, {}", report.subject)];
    parts.extend(facts(report));
    for sheet in sheets(report) {
        let mut shown = table(sheet.header);
        for row in sheet.rows {
            shown.add_row(row.into_iter().map(figure));
        }
        parts.push(format!("\n{}\n{shown}", sheet.title));
    }
    parts.extend(failures(report));
    parts.push(settings(report));
    parts.join("\n")
}

/// As Markdown.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# RFC 2544, {}\n\n", report.subject);
    for fact in facts(report) {
        let _ = writeln!(text, "- {fact}");
    }
    for sheet in sheets(report) {
        let _ = write!(
            text,
            "\n## {}\n\n| {} |\n|{}\n",
            sheet.title,
            sheet.header.join(" | "),
            "---:|".repeat(sheet.header.len())
        );
        for row in sheet.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    for (title, lines) in [
        ("Failures", failures(report)),
        ("Method", report.method.clone()),
        ("Settings", vec![settings(report)]),
    ] {
        if !lines.is_empty() {
            let _ = write!(text, "\n## {title}\n\n");
            for line in lines {
                let _ = writeln!(text, "- {}", cell(&line));
            }
        }
    }
    text
}

fn rate(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| quantity(value, "pps"))
}

fn words(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// What begins every row.
fn of(case: &Case) -> Vec<String> {
    vec![case.size.clone(), case.flows.to_string()]
}

fn throughput(report: &Report) -> Sheet {
    let row = |case: &Case| {
        let bits = case.conditional("NDR").map_or("–".to_owned(), |pps| {
            quantity(pps * case.mean_frame_bytes * 8.0, "bit/s")
        });
        let mut row = of(case);
        row.extend([
            rate(case.conditional("NDR")),
            rate(case.conditional("PDR")),
            bits,
            rate(case.full_speed.map(|full| full.forwarded_per_second())),
            rate(case.full_speed.map(|full| full.offered_per_second())),
        ]);
        row
    };
    Sheet {
        title: "Throughput",
        header: words(&[
            "frame",
            "flows",
            "NDR",
            "PDR",
            "NDR, bit/s",
            "forwarded at full speed",
            "full speed",
        ]),
        rows: report.cases.iter().map(row).collect(),
    }
}

fn latency(report: &Report) -> Sheet {
    let mut rows = Vec::new();
    for case in &report.cases {
        for point in &case.latency {
            let us = |value: Option<f64>| value.map_or("–".to_owned(), |us| format!("{us:.1}"));
            let mut row = of(case);
            row.extend([
                format!("{} %", point.percent),
                us(point.median(|latency| latency.p50_us)),
                us(point.median(|latency| latency.p90_us)),
                us(point.median(|latency| latency.p99_us)),
                us(point.median(|latency| latency.p999_us)),
                us(point.median(|latency| latency.max_us)),
            ]);
            rows.push(row);
        }
    }
    Sheet {
        title: "Latency in µs, by share of the NDR",
        header: words(&[
            "frame", "flows", "load", "p50", "p90", "p99", "p99.9", "most",
        ]),
        rows,
    }
}

/// Loss by load: a column a tenth of full speed.
fn loss(report: &Report) -> Sheet {
    let curves = report
        .cases
        .iter()
        .filter(|case| !case.loss_curve.is_empty());
    let row = |case: &Case| {
        let mut row = of(case);
        row.extend((0..10).map(|place| {
            let outcome = case.loss_curve.get(place);
            outcome.map_or(String::new(), |outcome| {
                format!("{:.1}", outcome.loss_ratio * 100.0)
            })
        }));
        row
    };
    let mut header = words(&["frame", "flows"]);
    header.extend((1..=10).rev().map(|tenth| format!("{tenth}0 %")));
    Sheet {
        title: "Frame loss rate in %, by share of full speed",
        header,
        rows: curves.map(row).collect(),
    }
}
