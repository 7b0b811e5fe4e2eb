//! The report of a run, as text.

use crate::report::quantity;
use crate::report::text::{figure, table};
use crate::rfc2544::{Case, Report};

/// Tables of throughput, latency and frame loss rate.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut parts = vec![format!(
        "{} over IPv{}: trials of {} s, {} a load{}",
        report.subject,
        if report.ipv6 { 6 } else { 4 },
        report.trial_seconds,
        report.trials,
        if report.complete {
            ""
        } else {
            "; NOT COMPLETE"
        },
    )];
    parts.push(throughput(report));
    parts.extend(latency(report));
    parts.extend(loss(report));
    for case in &report.cases {
        if let Some(failure) = &case.failure {
            parts.push(format!(
                "{} bytes, {} flows: {failure}",
                case.size, case.flows
            ));
        }
        if case.irregular {
            parts.push(format!(
                "{} bytes, {} flows: the search gave up, loss does not follow the load",
                case.size, case.flows
            ));
        }
    }
    let settings: Vec<String> = report
        .settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    parts.push(settings.join(", "));
    parts.join("\n")
}

fn rate(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| quantity(value, "pps"))
}

fn throughput(report: &Report) -> String {
    let mut shown = table([
        "frame",
        "flows",
        "NDR",
        "PDR",
        "NDR, bit/s",
        "forwarded at full speed",
    ]);
    for case in &report.cases {
        let of = |name| {
            let found = case.throughput.iter().find(|found| found.goal.name == name);
            found.and_then(|found| found.conditional)
        };
        let bits = of("NDR").map_or("–".to_owned(), |pps| {
            quantity(pps * case.mean_frame_bytes * 8.0, "bit/s")
        });
        let full = case
            .full_speed
            .map(|full| full.received as f64 / full.seconds.max(1e-9));
        shown.add_row(vec![
            figure(case.size.clone()),
            figure(case.flows.to_string()),
            figure(rate(of("NDR"))),
            figure(rate(of("PDR"))),
            figure(bits),
            figure(rate(full)),
        ]);
    }
    shown.to_string()
}

fn latency(report: &Report) -> Option<String> {
    let mut shown = table([
        "frame", "flows", "load", "p50 µs", "p90", "p99", "p99.9", "most",
    ]);
    let mut any = false;
    for case in &report.cases {
        for point in &case.latency {
            let us = |value: Option<f64>| {
                figure(value.map_or("–".to_owned(), |value| format!("{value:.1}")))
            };
            any = true;
            shown.add_row(vec![
                figure(case.size.clone()),
                figure(case.flows.to_string()),
                figure(format!("{} %", point.percent)),
                us(point.median(|latency| latency.p50_us)),
                us(point.median(|latency| latency.p90_us)),
                us(point.median(|latency| latency.p99_us)),
                us(point.median(|latency| latency.p999_us)),
                us(point.median(|latency| latency.max_us)),
            ]);
        }
    }
    any.then(|| shown.to_string())
}

/// Loss by load: a column a tenth of full speed.
fn loss(report: &Report) -> Option<String> {
    let cases: Vec<&Case> = report
        .cases
        .iter()
        .filter(|case| !case.loss_curve.is_empty())
        .collect();
    if cases.is_empty() {
        return None;
    }
    let mut header = vec!["frame".to_owned(), "flows".to_owned()];
    header.extend((1..=10).rev().map(|tenth| format!("{tenth}0 %")));
    let mut shown = table(header);
    for case in cases {
        let mut row = vec![figure(case.size.clone()), figure(case.flows.to_string())];
        for place in 0..10 {
            let loss = case.loss_curve.get(place);
            row.push(figure(loss.map_or(String::new(), |outcome| {
                format!("{:.1}", outcome.loss_ratio * 100.0)
            })));
        }
        shown.add_row(row);
    }
    Some(format!(
        "frame loss rate in % by share of full speed\n{shown}"
    ))
}
