//! How far a run has come: a bar with the time left on a terminal, plain
//! lines else. Both go to standard error, so that standard output is the
//! result alone.

use std::fmt;
use std::io::IsTerminal;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::stop::Stop;
use crate::terminal::warn;

/// What takes longer than this has a bar.
const UNSHOWN: Duration = Duration::from_secs(5);
/// What was expected counts as much as this share of the steps does.
const EXPECTED_WEIGHT: f64 = 0.05;

/// A run of a known number of steps.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    steps: u64,
    began: Instant,
    /// How long it takes, about; what steps took tells better and better.
    expected: Option<Duration>,
}

impl Progress {
    /// Starts at step 0 of `steps`.
    #[must_use]
    pub fn start(steps: u64) -> Progress {
        Progress::with_time_left(steps, None)
    }

    /// The same for what is expected to take so long.
    #[must_use]
    pub fn expecting(steps: u64, expected: Duration) -> Progress {
        Progress::with_time_left(steps, Some(expected))
    }

    fn with_time_left(steps: u64, expected: Option<Duration>) -> Progress {
        const TEMPLATE: &str = "{elapsed:>4} {wide_bar:.cyan/dim} {pos}/{len}  {msg}{left}";
        let left = move |state: &ProgressState, text: &mut dyn fmt::Write| {
            let _ = text.write_str(&left_text(state.pos(), steps, (state.elapsed(), expected)));
        };
        let style = ProgressStyle::with_template(TEMPLATE);
        let style = style.map(|style| style.with_key("left", left));
        let mut progress = Progress::of(steps, style.ok());
        progress.expected = expected;
        progress
    }

    fn of(steps: u64, style: Option<ProgressStyle>) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Some(style) = style {
            bar.set_style(style.progress_chars("━━─"));
        }
        if plain {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Progress {
            bar,
            plain,
            steps,
            began: Instant::now(),
            expected: None,
        }
    }

    /// Says what is done now.
    pub fn says(&self, what: &str) {
        if self.plain {
            let (done, times) = (self.bar.position(), (self.began.elapsed(), self.expected));
            let left = left_text(done, self.steps, times);
            warn(&format!("[{done}/{}] {what}{left}", self.steps));
        }
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// One step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// So many steps are done, whatever they were.
    pub fn reach(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// A line that stays, above the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| warn(line));
    }
}

/// The time that is left, as text behind others; nothing while nobody knows.
///
/// Steps that are left take the mean of those that were done: a step that
/// stood still for a minute is one slow step, and not the pace of the rest.
fn left_text(done: u64, steps: u64, times: (Duration, Option<Duration>)) -> String {
    let (elapsed, expected) = times;
    let (done, steps) = (done as f64, steps as f64);
    let weight = expected.map_or(0.0, |_| EXPECTED_WEIGHT);
    let known = done + weight * steps;
    let spent = elapsed.as_secs_f64() + weight * expected.unwrap_or_default().as_secs_f64();
    if known == 0.0 {
        return String::new();
    }
    match Duration::try_from_secs_f64(spent / known * (steps - done).max(0.0)) {
        Ok(left) => format!("  {:#} left", HumanDuration(left)),
        Err(_) => String::new(),
    }
}

/// A bar over one thing that takes a known time; none when that is short.
#[derive(Debug)]
pub struct Timed {
    over: Stop,
    shown: Option<JoinHandle<()>>,
}

impl Timed {
    /// Shows `what`, which takes `duration`, until this is dropped.
    #[must_use]
    pub fn start(what: &str, duration: Duration) -> Timed {
        let over = Stop::new();
        let shown = (duration > UNSHOWN).then(|| {
            let (what, over) = (what.to_owned(), over.clone());
            thread::spawn(move || {
                let mut left = duration.as_secs();
                let style = ProgressStyle::with_template("{elapsed:>4} {wide_bar:.cyan/dim} {msg}");
                let progress = Progress::of(left, style.ok());
                progress.says(&format!("{what}  {left}s left"));
                while over.sleep(Duration::from_secs(1)) {
                    progress.step();
                    left = left.saturating_sub(1);
                    progress.bar.set_message(format!("{what}  {left}s left"));
                }
            })
        });
        Timed { over, shown }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.over.set();
        if let Some(shown) = self.shown.take() {
            let _ = shown.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_the_mean_of_the_steps() {
        let seconds = Duration::from_secs;
        // What is done of how many, after how long, expected to take how long.
        for (done, steps, elapsed, expected, left) in [
            (0, 100, 0, None, ""),
            (1, 100, 1, None, "  2m left"),
            (50, 100, 10, None, "  10s left"),
            (100, 100, 10, None, "  0s left"),
            (0, 100, 0, Some(600), "  10m left"),
            // Nothing was done for a minute, or after an hour.
            (10, 100, 70, Some(100), "  8m left"),
            (95, 100, 3600, Some(600), "  3m left"),
        ] {
            let times = (seconds(elapsed), expected.map(seconds));
            assert_eq!(left_text(done, steps, times), left, "{done} of {steps}");
        }
    }
}
