//! The report of a run as one page with nothing outside of it: the graphs that
//! RFC 2544 asks for in 26.1 and 26.3, delays, and the tables.

use std::fmt::Write as _;

use crate::report::html::{COLOURS, document, escaped, figure, items};
use crate::report::plot::{self, Axis, Point, Scale, Series};
use crate::report::scaled;
use crate::rfc2544::report::{Sheet, facts, failures, settings, sheets};
use crate::rfc2544::{Case, Report};
use crate::sink::latency::Latency;

/// The whole page.
#[must_use]
pub fn page(report: &Report) -> String {
    let heading = format!("RFC 2544, {}", report.subject);
    let title = format!("{heading}, {}", report.commit);
    let mut flows: Vec<u32> = report.cases.iter().map(|case| case.flows).collect();
    flows.sort_unstable();
    flows.dedup();
    let mut body = Vec::new();
    for (name, plot) in [
        ("Throughput by frame size", throughput as Plot),
        ("Latency in µs by frame size", delays),
        (
            "Share of the smallest frames by their latency",
            distribution,
        ),
        ("Frame loss rate by load", loss),
    ] {
        let plots: String = flows
            .iter()
            .filter_map(|flows| {
                let cases: Vec<&Case> = report.cases.iter().filter(|c| c.flows == *flows).collect();
                let of = if *flows == 1 { "flow" } else { "flows" };
                let title = format!("{name}, {flows} {of}");
                plot(&title, &cases).map(|svg| figure(&title, &svg))
            })
            .collect();
        if !plots.is_empty() {
            body.push(format!(
                "<h2>{name}</h2>\n<div class=\"grid2\">{plots}</div>\n"
            ));
        }
    }
    body.extend(sheets(report).iter().map(table));
    let failures = failures(report);
    if !failures.is_empty() {
        body.push(format!(
            "<h2>Failures</h2>\n<ul class=\"warn\">{}</ul>\n",
            items(&failures)
        ));
    }
    body.push(format!(
        "<h2>Method</h2>\n<ul>{}</ul>\n<h2>Settings</h2>\n<p>{}</p>\n",
        items(&report.method),
        escaped(&settings(report))
    ));
    document([&title, &heading], &facts(report), body)
}

/// A plot of the cases with one number of flows, if they have something to
/// show.
type Plot = fn(&str, &[&Case]) -> Option<String>;

fn table(sheet: &Sheet) -> String {
    let row = |tag: &str, cells: &[String]| -> String {
        let cell = |cell: &String| format!("<{tag} class=\"n\">{}</{tag}>", escaped(cell));
        format!("<tr>{}</tr>", cells.iter().map(cell).collect::<String>())
    };
    let mut html = format!(
        "<h2>{}</h2>\n<div class=\"scroll\"><table><thead>{}</thead><tbody>\n",
        escaped(sheet.title),
        row("th", &sheet.header)
    );
    for cells in &sheet.rows {
        let _ = writeln!(html, "{}", row("td", cells));
    }
    html + "</tbody></table></div>\n"
}

/// Lines that have something to join, in colours of their own.
fn series(lines: Vec<(String, Vec<Point>)>) -> Vec<Series> {
    let lines = lines.into_iter().enumerate();
    lines
        .map(|(number, (name, points))| Series {
            name,
            colour: number % COLOURS,
            points,
        })
        .filter(|series| series.points.len() > 1)
        .collect()
}

fn point(x: f64, y: f64) -> Point {
    Point {
        x,
        y,
        interval: None,
    }
}

/// Cases of one size, by it; a mix has no place on the axis.
fn by_size<'a>(cases: &[&'a Case]) -> Vec<(f64, &'a Case)> {
    let sized = |case: &&'a Case| Some((case.size.parse().ok()?, *case));
    let mut sizes: Vec<(f64, &Case)> = cases.iter().filter_map(sized).collect();
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
    sizes
}

/// An axis of frame sizes; `None` for fewer than two.
fn size_axis(sizes: &[(f64, &Case)]) -> Option<Axis> {
    let [(first, _), .., (last, _)] = sizes else {
        return None;
    };
    Some(Axis {
        title: "bytes of a frame".to_owned(),
        scale: Scale::Logarithmic,
        range: (*first, *last),
        // Labels of the largest two would lie on each other.
        ticks: sizes
            .iter()
            .filter(|(size, _)| *size == *last || size * 1.2 <= *last)
            .map(|(size, _)| (*size, size.to_string()))
            .collect(),
    })
}

/// Frame rates by size, the generator's beside them (RFC 2544, 26.1).
fn throughput(title: &str, cases: &[&Case]) -> Option<String> {
    let sizes = by_size(cases);
    let line = |name: &str, rate: &dyn Fn(&Case) -> Option<f64>| {
        let points = sizes
            .iter()
            .filter_map(|(x, case)| Some(point(*x, rate(case)?)));
        (name.to_owned(), points.collect())
    };
    let lines = series(vec![
        line("NDR", &|case| case.conditional("NDR")),
        line("PDR", &|case| case.conditional("PDR")),
        line("forwarded at full speed", &|case| {
            case.full_speed.map(|full| full.forwarded_per_second())
        }),
        line("full speed", &|case| {
            case.full_speed.map(|full| full.offered_per_second())
        }),
    ]);
    let y = Axis::from_zero("packets/s", most(&lines), |value| match value {
        0.0 => "0".to_owned(),
        value => scaled(value).trim_end().to_owned(),
    });
    draw(title, &size_axis(&sizes)?, &y, &lines)
}

/// The least and the most that lines reach one way.
fn range(lines: &[Series], way: fn(&Point) -> f64) -> (f64, f64) {
    let values = || lines.iter().flat_map(|series| &series.points).map(way);
    (
        values().fold(f64::MAX, f64::min),
        values().fold(0.0, f64::max),
    )
}

fn most(lines: &[Series]) -> f64 {
    range(lines, |point| point.y).1
}

fn draw(title: &str, x: &Axis, y: &Axis, lines: &[Series]) -> Option<String> {
    (!lines.is_empty()).then(|| plot::lines(title, x, y, lines))
}

/// The smallest size that has latencies; a case that failed has none.
fn with_latency<'a>(sizes: &[(f64, &'a Case)]) -> Option<(f64, &'a Case)> {
    let mut sizes = sizes.iter().copied();
    sizes.find(|(_, case)| !case.latency.is_empty())
}

/// Median and 99th percentile at each load, by size.
fn delays(title: &str, cases: &[&Case]) -> Option<String> {
    let sizes = by_size(cases);
    let (_, case) = with_latency(&sizes)?;
    let percents: Vec<u32> = case.latency.iter().map(|p| p.percent).collect();
    let mut lines = Vec::new();
    let figures: [(&str, Delay); 2] = [("p50", |l| l.p50_us), ("p99", |l| l.p99_us)];
    for (name, figure) in figures {
        for percent in &percents {
            let points = sizes.iter().filter_map(|(x, case)| {
                let found = case.latency.iter().find(|p| p.percent == *percent)?;
                Some(point(*x, found.median(figure)?))
            });
            lines.push((format!("{name} at {percent} %"), points.collect()));
        }
    }
    let lines = series(lines);
    let y = Axis::logarithmic("µs", range(&lines, |point| point.y));
    draw(title, &size_axis(&sizes)?, &y, &lines)
}

/// Shares of frames over their delay, at each load.
fn distribution(title: &str, cases: &[&Case]) -> Option<String> {
    let sizes = by_size(cases);
    let (_, case) = with_latency(&sizes)?;
    let lines = series(
        case.latency
            .iter()
            .map(|load| {
                let points = QUANTILES
                    .iter()
                    .filter_map(|(share, figure)| Some(point(load.median(*figure)?, *share)));
                (format!("at {} %", load.percent), points.collect())
            })
            .collect(),
    );
    let range = range(&lines, |point| point.x);
    let y = Axis::shares();
    let x = Axis::logarithmic("µs", range);
    draw(title, &x, &y, &lines).filter(|_| range.1 > range.0)
}

/// One figure of a trial's delays.
type Delay = fn(&Latency) -> f64;

/// What is known of them all.
const QUANTILES: [(f64, Delay); 6] = [
    (0.0, |latency| latency.min_us),
    (0.5, |latency| latency.p50_us),
    (0.9, |latency| latency.p90_us),
    (0.99, |latency| latency.p99_us),
    (0.999, |latency| latency.p999_us),
    (1.0, |latency| latency.max_us),
];

/// Loss over load, a line a size (RFC 2544, 26.3).
fn loss(title: &str, cases: &[&Case]) -> Option<String> {
    let lines = series(
        cases
            .iter()
            .map(|case| {
                // From full speed down, a tenth each.
                let tenths = (1..=10u32).rev().zip(&case.loss_curve);
                let points = tenths.map(|(tenth, outcome)| {
                    point(f64::from(tenth) * 10.0, outcome.loss_ratio * 100.0)
                });
                (case.size.clone(), points.collect())
            })
            .collect(),
    );
    let x = Axis {
        title: "load in % of full speed".to_owned(),
        scale: Scale::Linear,
        range: (0.0, 100.0),
        ticks: (0..=5)
            .map(|fifth| (f64::from(fifth) * 20.0, (fifth * 20).to_string()))
            .collect(),
    };
    let y = Axis::from_zero("%", most(&lines).max(1.0), |loss| format!("{loss} %"));
    draw(title, &x, &y, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc2544::LatencyPoint;

    #[test]
    fn a_case_that_failed_takes_no_plot_from_the_others() {
        let case = |size: &str, latency: Vec<LatencyPoint>| Case {
            size: size.to_owned(),
            mean_frame_bytes: 64.0,
            flows: 1,
            full_speed: None,
            throughput: Vec::new(),
            irregular: false,
            trials: Vec::new(),
            latency,
            loss_curve: Vec::new(),
            failure: None,
        };
        let point = LatencyPoint {
            percent: 10,
            load: 1.0,
            trials: vec![Latency {
                count: 5,
                min_us: 1.0,
                mean_us: 2.0,
                p50_us: 2.0,
                p90_us: 3.0,
                p99_us: 4.0,
                p999_us: 5.0,
                max_us: 6.0,
            }],
        };
        let cases = [
            case("64", Vec::new()),
            case("128", vec![point.clone()]),
            case("256", vec![point]),
        ];
        let cases: Vec<&Case> = cases.iter().collect();
        for plot in [delays as Plot, distribution] {
            assert!(plot("", &cases).is_some_and(|svg| svg.contains("class=\"line\"")));
            assert_eq!(plot("", &cases[..1]), None);
        }
    }
}
