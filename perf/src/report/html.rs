//! A comparison as one page with nothing outside of it: bars, plots, tables,
//! the machine and the method. It follows the reader's light or dark scheme
//! and fits a phone.

use std::fmt::Write as _;

use crate::compare::document::{Comparison, Outcome, SubjectResult, Verdict};
use crate::micro::Micro;
use crate::report::plot::{self, Axis, Point, Scale, Series};
use crate::report::text::details;
use crate::report::{
    Word, bar_text, facts, failures, interval, outcomes, present, quantity, scaled, settings,
    topologies, topology_of, verdict_value,
};
use crate::scenario::{PER_CPU_SECOND, Scenario, VALUE};
use crate::subject::Topology;

const STYLE: &str = include_str!("page.css");
/// Colours that the page has.
pub(crate) const COLOURS: usize = 12;

const SIZES: [(f64, Scenario); 3] = [
    (64.0, Scenario::Frames64),
    (512.0, Scenario::Frames512),
    (1400.0, Scenario::Frames1400),
];
const FLOWS: [(f64, Scenario); 4] = [
    (1.0, Scenario::Frames64),
    (1000.0, Scenario::Frames64Flows),
    (10_000.0, Scenario::Frames64TenThousandFlows),
    (50_000.0, Scenario::Frames64FiftyThousandFlows),
];
const ROUND_TRIPS: [Scenario; 4] = [
    Scenario::UdpRr,
    Scenario::TcpRr,
    Scenario::UdpRrLoad,
    Scenario::TcpRrLoad,
];

/// Text that HTML takes as text.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A page of `body` under a heading and the facts of a run.
pub(crate) fn document(
    [title, heading]: [&str; 2],
    facts: &[String],
    body: impl IntoIterator<Item = String>,
) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>{}</h1>\n<ul class=\"facts\">{}</ul>\n",
        escaped(title),
        escaped(heading),
        items(facts),
    );
    html.extend(body);
    html + "</body>\n</html>\n"
}

/// Items of a list.
pub(crate) fn items(texts: &[String]) -> String {
    let item = |text: &String| format!("<li>{}</li>", escaped(text));
    texts.iter().map(item).collect()
}

/// The whole page.
#[must_use]
pub fn page(comparison: &Comparison) -> String {
    let heading = "Spinlane beside its peers";
    let title = format!("{heading}, {}", comparison.commit);
    let mut body = vec![bars(comparison)];
    for topology in topologies(comparison) {
        body.push(format!("<h2>{}</h2>\n", topology.title()));
        body.push(plots(comparison, topology));
        body.push(medians(comparison, topology));
    }
    body.push(ratios(comparison));
    body.extend(comparison.micro.as_ref().map(packet_logic));
    body.push(method(comparison));
    document([&title, heading], &facts(comparison), body)
}

/// A card for each bar, under the heading of its topology.
fn bars(comparison: &Comparison) -> String {
    let mut html = String::new();
    for topology in topologies(comparison) {
        let cards: String = comparison
            .verdicts()
            .filter(|(_, verdict)| verdict.bar.is_some())
            .filter(|(_, verdict)| topology_of(&verdict.subject) == topology)
            .map(|(_, verdict)| card(verdict))
            .collect();
        if !cards.is_empty() {
            let title = topology.title();
            let _ = write!(
                html,
                "<h3>{title}</h3>\n<div class=\"grid3\">{cards}</div>\n"
            );
        }
    }
    if html.is_empty() {
        return html;
    }
    format!("<h2>Bars</h2>\n{html}")
}

fn card(verdict: &Verdict) -> String {
    let show = |value| verdict_value(verdict, value);
    let word = Word::of(verdict).text();
    let to = verdict
        .peer
        .as_ref()
        .map_or_else(String::new, |peer| format!(" / {}", escaped(peer)));
    format!(
        "<div class=\"bar {word}\"><small>{}{to}</small><b>{}</b><small>{} · bar {}</small> \
         <em>{word}</em></div>",
        escaped(&verdict.title),
        escaped(&show(verdict.median.value)),
        escaped(&interval(&verdict.median, show)),
        escaped(&bar_text(verdict)),
    )
}

/// What has a plot of bars, a bar a subject.
const BY_SUBJECT: [(Scenario, &str, &str); 9] = [
    (Scenario::Frames64, VALUE, "64-byte frames, one flow"),
    (
        Scenario::Frames64,
        PER_CPU_SECOND,
        "64-byte frames per CPU-second, all cores counted",
    ),
    (Scenario::VxlanEncap, VALUE, "Encapsulation, 64-byte frames"),
    (Scenario::VxlanDecap, VALUE, "Decapsulation, 64-byte frames"),
    (Scenario::NewUdp, VALUE, "New connections a second, UDP"),
    (Scenario::NewTcp, VALUE, "New connections a second, TCP SYN"),
    (Scenario::Tcp, VALUE, "TCP, one stream"),
    (
        Scenario::UdpRr,
        VALUE,
        "UDP round trip, p50: shorter is better",
    ),
    (Scenario::Crr, VALUE, "TCP connections a second"),
];

/// Plots of what was measured; those without data are left out.
fn plots(comparison: &Comparison, topology: Topology) -> String {
    let mut figures: Vec<Option<String>> = BY_SUBJECT
        .iter()
        .map(|(scenario, name, title)| by_subject(comparison, topology, (*scenario, name), title))
        .collect();
    figures.push(over(
        (comparison, topology),
        &SIZES,
        "Throughput by size",
        "bytes of a frame",
    ));
    figures.push(over(
        (comparison, topology),
        &FLOWS,
        "Scaling by flows, 64-byte frames",
        "flows",
    ));
    figures.extend(ROUND_TRIPS.map(|scenario| latencies(comparison, topology, scenario)));
    let figures: String = figures.into_iter().flatten().collect();
    if figures.is_empty() {
        return figures;
    }
    format!("<div class=\"grid2\">{figures}</div>\n")
}

/// A plot under its title.
pub(crate) fn figure(title: &str, body: &str) -> String {
    format!("<figure><h3>{}</h3>{body}</figure>\n", escaped(title))
}

/// What each subject of a topology has, in its one colour.
fn series(
    comparison: &Comparison,
    topology: Topology,
    points: impl Fn(&str) -> Vec<Point>,
) -> Vec<Series> {
    present(comparison, topology)
        .into_iter()
        .enumerate()
        .map(|(number, subject)| Series {
            name: subject.to_owned(),
            colour: number % COLOURS,
            points: points(subject),
        })
        .filter(|series| !series.points.is_empty())
        .collect()
}

fn by_subject(
    comparison: &Comparison,
    topology: Topology,
    (scenario, name): (Scenario, &str),
    title: &str,
) -> Option<String> {
    let outcome = comparison.outcome(scenario)?;
    let unit = scenario
        .figures()
        .into_iter()
        .find(|figure| figure.name == name)?
        .unit;
    let series = series(comparison, topology, |subject| {
        point(outcome.results.get(subject), name, 0.0)
            .into_iter()
            .collect()
    });
    let show = |value| {
        quantity(value, unit)
            .replace("packets/CPU-s", "")
            .replace("connections/s", "")
    };
    (!series.is_empty()).then(|| figure(title, &plot::bars(title, &series, show)))
}

fn point(result: Option<&SubjectResult>, name: &str, x: f64) -> Option<Point> {
    let median = result?.figure(name)?;
    Some(Point {
        x,
        y: median.value,
        interval: Some(median.interval),
    })
}

/// Packets a second over what scenarios differ in.
fn over(
    (comparison, topology): (&Comparison, Topology),
    scenarios: &[(f64, Scenario)],
    title: &str,
    what: &str,
) -> Option<String> {
    let measured: Vec<(f64, &Outcome)> = scenarios
        .iter()
        .filter_map(|(x, scenario)| Some((*x, comparison.outcome(*scenario)?)))
        .collect();
    let [(first, _), .., (last, _)] = measured[..] else {
        return None;
    };
    let lines = series(comparison, topology, |subject| {
        let points: Vec<Point> = measured
            .iter()
            .filter_map(|(x, outcome)| point(outcome.results.get(subject), VALUE, *x))
            .collect();
        // One point is no line; the bars show it.
        if points.len() < 2 { Vec::new() } else { points }
    });
    let most = lines
        .iter()
        .flat_map(|series| &series.points)
        .map(|point| point.interval.map_or(point.y, |(_, high)| high))
        .fold(0.0, f64::max);
    let x = Axis {
        title: what.to_owned(),
        scale: Scale::Logarithmic,
        range: (first, last),
        ticks: measured
            .iter()
            .map(|(value, _)| {
                (
                    *value,
                    scaled(*value)
                        .trim_end()
                        .replace(".00", "")
                        .replace(".0", ""),
                )
            })
            .map(|(value, label)| (value, label.replace("1.40 k", "1400")))
            .collect(),
    };
    let y = Axis::from_zero("packets/s", most, |value| match value {
        0.0 => "0".to_owned(),
        value => scaled(value).trim_end().to_owned(),
    });
    (!lines.is_empty()).then(|| {
        let title = format!("{title}, packets a second");
        figure(&title, &plot::lines(&title, &x, &y, &lines))
    })
}

/// Cumulative shares of round trips over their time.
fn latencies(comparison: &Comparison, topology: Topology, scenario: Scenario) -> Option<String> {
    let outcome = comparison.outcome(scenario)?;
    let lines = series(comparison, topology, |subject| {
        let result = outcome.results.get(subject);
        result.map_or_else(Vec::new, |result| {
            result
                .latency_us
                .iter()
                .map(|(quantile, time)| Point {
                    x: *time,
                    y: *quantile,
                    interval: None,
                })
                .collect()
        })
    });
    let times = || lines.iter().flat_map(|s| &s.points).map(|point| point.x);
    let (least, most) = (
        times().fold(f64::MAX, f64::min),
        times().fold(0.0, f64::max),
    );
    if most <= least {
        return None;
    }
    let y = Axis::shares();
    let x = Axis::logarithmic("µs, up to the 99.9th percentile", (least, most));
    let title = format!(
        "{}: share answered within a time",
        scenario.title().replace(", p50", "")
    );
    Some(figure(&title, &plot::lines(&title, &x, &y, &lines)))
}

fn medians(comparison: &Comparison, topology: Topology) -> String {
    let present = present(comparison, topology);
    let mut html = String::from("<div class=\"scroll\"><table><thead><tr><th>median</th>");
    for subject in &present {
        let _ = write!(html, "<th class=\"n\">{}</th>", escaped(subject));
    }
    html.push_str("</tr></thead><tbody>\n");
    for outcome in outcomes(comparison, &present) {
        let _ = write!(html, "<tr><th>{}</th>", escaped(outcome.scenario.title()));
        for subject in &present {
            let shown = outcome.results.get(*subject).map(|result| {
                let Some(median) = result.median else {
                    return "failed".to_owned();
                };
                let mut text = escaped(&quantity(median.value, &outcome.unit));
                for detail in details(outcome, result) {
                    let _ = write!(text, "<br><small>{}</small>", escaped(&detail));
                }
                text
            });
            let _ = write!(html, "<td class=\"n\">{}</td>", shown.unwrap_or_default());
        }
        html.push_str("</tr>\n");
    }
    html + "</tbody></table></div>\n"
}

fn ratios(comparison: &Comparison) -> String {
    if comparison.verdicts().next().is_none() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>Ratios</h2>\n<div class=\"scroll\"><table><thead><tr><th>figure</th><th>of</th>\
         <th>to</th><th class=\"n\">median</th><th class=\"n\">95 % interval</th><th>bar</th><th></th></tr></thead><tbody>\n",
    );
    for (_, verdict) in comparison.verdicts() {
        let show = |value| verdict_value(verdict, value);
        let word = Word::of(verdict).text();
        let _ = writeln!(
            html,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td>{}</td><td class=\"{word}\">{word}</td></tr>",
            escaped(&verdict.title),
            escaped(&verdict.subject),
            escaped(verdict.peer.as_deref().unwrap_or_default()),
            escaped(&show(verdict.median.value)),
            escaped(&interval(&verdict.median, show)),
            escaped(&bar_text(verdict)),
        );
    }
    html + "</tbody></table></div>\n"
}

/// The packet logic by itself: a card for each bar, then cycles of every case.
fn packet_logic(micro: &Micro) -> String {
    let mut html = String::from("<h2>The packet logic by itself</h2>\n<div class=\"grid3\">");
    for (of, to, median, at_most, word) in micro.bars() {
        let word = word.text();
        let _ = write!(
            html,
            "<div class=\"bar {word}\"><small>cycles of {} / {}</small><b>{:.2}</b>\
             <small>{} · bar ≤ {at_most}</small> <em>{word}</em></div>",
            escaped(of),
            escaped(to),
            median.value,
            interval(median, |value| format!("{value:.2}")),
        );
    }
    let _ = write!(
        html,
        "</div>\n<p>{}</p>\n<div class=\"scroll\"><table><thead><tr><th>case</th><th>per</th>\
         <th class=\"n\">cycles</th><th class=\"n\">95 % interval</th><th class=\"n\">ns</th></tr></thead><tbody>\n",
        escaped(&micro.peer_text())
    );
    for (name, unit, cycles, ns) in micro.figures() {
        let _ = writeln!(
            html,
            "<tr><th>{}</th><td>{}</td><td class=\"n\">{:.1}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{ns:.1}</td></tr>",
            escaped(name),
            escaped(unit),
            cycles.value,
            interval(cycles, |value| format!("{value:.1}")),
        );
    }
    html + "</tbody></table></div>\n"
}

fn method(comparison: &Comparison) -> String {
    let mut html = format!("<h2>Method</h2>\n<ul>{}</ul>\n", items(&comparison.method));
    html.push_str("<h2>Subjects</h2>\n<dl>");
    for subject in &comparison.subjects {
        let _ = write!(
            html,
            "<dt>{}</dt><dd{}>{}</dd>",
            escaped(&subject.name),
            if subject.missing.is_some() {
                " class=\"warn\""
            } else {
                ""
            },
            escaped(&settings(subject))
        );
    }
    html.push_str("</dl>\n");
    let failures = failures(comparison);
    if !failures.is_empty() {
        let _ = writeln!(
            html,
            "<h2>Failures</h2>\n<ul class=\"warn\">{}</ul>",
            items(&failures)
        );
    }
    html
}
