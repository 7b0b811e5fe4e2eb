//! Plots as inline SVG: lines over a scale, and bars. Colours are classes
//! `c0`, `c1`, … of the page, so that they follow its light or dark scheme.

use std::fmt::Write as _;

use crate::report::html::escaped;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// How an axis maps values to places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

/// One axis: its range, its ticks with their labels, and its title.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) title: String,
    pub(crate) scale: Scale,
    pub(crate) range: (f64, f64),
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to above `most`, ticks at round numbers, labelled by `label`.
    pub(crate) fn from_zero(title: &str, most: f64, label: impl Fn(f64) -> String) -> Axis {
        let step = round_step(most);
        let top = (most / step).ceil().max(1.0) * step;
        let count = (top / step).round() as usize;
        Axis {
            title: title.to_owned(),
            scale: Scale::Linear,
            range: (0.0, top),
            ticks: (0..=count)
                .map(|number| number as f64 * step)
                .map(|value| (value, label(value)))
                .collect(),
        }
    }

    /// Shares from nothing to all, in per cent.
    pub(crate) fn shares() -> Axis {
        let ticks = [0.0, 0.25, 0.5, 0.75, 1.0];
        Axis {
            title: "share".to_owned(),
            scale: Scale::Linear,
            range: (0.0, 1.0),
            ticks: ticks
                .map(|share| (share, format!("{:.0} %", share * 100.0)))
                .into(),
        }
    }

    /// Powers of ten within the range; over less than two decades their
    /// doubles and fives too.
    pub(crate) fn logarithmic(title: &str, range: (f64, f64)) -> Axis {
        let digits: &[f64] = match range.1 / range.0 {
            span if span <= 100.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let mut ticks = Vec::new();
        for power in -3..9 {
            for digit in digits {
                let value = digit * 10f64.powi(power);
                if (range.0..=range.1).contains(&value) {
                    ticks.push((value, format!("{value}")));
                }
            }
        }
        Axis {
            title: title.to_owned(),
            scale: Scale::Logarithmic,
            range,
            ticks,
        }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        let share = match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value / low).ln() / (high / low).ln(),
        };
        share.clamp(0.0, 1.0)
    }
}

/// A quarter of `most`, rounded up to 1, 2 or 5 times a power of ten.
fn round_step(most: f64) -> f64 {
    let rough = most.max(f64::MIN_POSITIVE) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = rough / power;
    let digits = [1.0, 2.0, 5.0];
    power * digits.into_iter().find(|d| digit <= *d).unwrap_or(10.0)
}

/// A value and the interval that holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Drawn as a whisker where it is given.
    pub(crate) interval: Option<(f64, f64)>,
}

/// One line, or one bar.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Number of its colour.
    pub(crate) colour: usize,
    pub(crate) points: Vec<Point>,
}

/// Lines over both axes, a mark at each point that has an interval.
pub(crate) fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> String {
    let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
    let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - TOP);
    let mut svg = opening(title, HEIGHT);
    for (value, label) in &y.ticks {
        let place = at_y(*value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {place:.1}H{:.1}\"/>\
             <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            place + 4.0,
            escaped(label)
        );
    }
    for (value, label) in &x.ticks {
        let place = at_x(*value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{place:.1} {TOP}V{:.1}\"/>\
             <text class=\"mid\" x=\"{place:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 16.0,
            escaped(label)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"mid title\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 8.0,
        escaped(&x.title)
    );
    for series in series {
        svg.push_str(&line(series, at_x, at_y));
    }
    svg + "</svg>" + &legend(series)
}

fn line(series: &Series, at_x: impl Fn(f64) -> f64, at_y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut marks = String::new();
    for (number, point) in series.points.iter().enumerate() {
        let (x, y) = (at_x(point.x), at_y(point.y));
        let _ = write!(path, "{}{x:.1} {y:.1}", if number == 0 { 'M' } else { 'L' });
        if let Some((low, high)) = point.interval {
            let _ = write!(
                marks,
                "<path d=\"M{x:.1} {:.1}V{:.1}\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>",
                at_y(low),
                at_y(high)
            );
        }
    }
    format!(
        "<g class=\"c{}\"><title>{}</title><path class=\"line\" d=\"{path}\"/>{marks}</g>",
        series.colour,
        escaped(&series.name)
    )
}

fn legend(series: &[Series]) -> String {
    let items: String = series
        .iter()
        .map(|series| {
            format!(
                "<li class=\"c{}\"><span></span>{}</li>",
                series.colour,
                escaped(&series.name)
            )
        })
        .collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// Horizontal bars, one a series, by its first point's `y`, the value beside
/// it as `label` writes it.
pub(crate) fn bars(title: &str, series: &[Series], label: impl Fn(f64) -> String) -> String {
    const ROW: f64 = 30.0;
    /// Of a character of a name, on a phone too.
    const CHARACTER: f64 = 8.2;
    const VALUES: f64 = 92.0;
    let longest = series
        .iter()
        .map(|series| series.name.chars().count())
        .max();
    let names = longest.unwrap_or_default() as f64 * CHARACTER + 12.0;
    let most = series
        .iter()
        .flat_map(|series| &series.points)
        .map(|point| {
            point
                .interval
                .map_or(point.y, |(_, high)| high.max(point.y))
        })
        .fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value / most * (WIDTH - names - VALUES);
    let mut svg = opening(title, ROW * series.len() as f64 + 8.0);
    for (row, series) in series.iter().enumerate() {
        let Some(point) = series.points.first() else {
            continue;
        };
        let top = 4.0 + ROW * row as f64;
        let middle = top + ROW / 2.0;
        let _ = write!(
            svg,
            "<g class=\"c{}\"><text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <rect x=\"{names:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>",
            series.colour,
            names - 8.0,
            middle + 4.0,
            escaped(&series.name),
            top + 5.0,
            length(point.y).max(1.0),
            ROW - 10.0,
        );
        let mut end = point.y;
        if let Some((low, high)) = point.interval {
            end = end.max(high);
            let _ = write!(
                svg,
                "<path class=\"whisker\" d=\"M{:.1} {middle:.1}H{:.1}\"/>",
                names + length(low),
                names + length(high)
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            names + length(end) + 7.0,
            middle + 4.0,
            escaped(&label(point.y))
        );
    }
    svg + "</svg>"
}

fn opening(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escaped(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (most, top, ticks) in [(870_000.0, 1_000_000.0, 3), (4.0, 4.0, 5), (1.02, 1.5, 4)] {
            let axis = Axis::from_zero("y", most, |value| value.to_string());
            assert_eq!(axis.range, (0.0, top), "{most}");
            assert_eq!(axis.ticks.len(), ticks, "{most}: {:?}", axis.ticks);
        }
    }

    #[test]
    fn logarithmic_axes_place_by_decades() {
        let axis = Axis::logarithmic("x", (10.0, 1000.0));
        assert!((axis.place(100.0) - 0.5).abs() < 1e-9);
        assert_eq!(axis.place(1.0), 0.0);
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["10", "20", "50", "100", "200", "500", "1000"]);
        let wide = Axis::logarithmic("x", (5.0, 2000.0));
        assert_eq!(wide.ticks.len(), 3, "{:?}", wide.ticks);
    }
}
