//! How far a run has come: a bar with the time left on a terminal, plain
//! lines else. Both go to standard error, so that standard output is the
//! result alone.

use std::io::IsTerminal;

use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stop::Stop;
use crate::terminal::warn;

/// What takes longer than this has a bar.
const UNSHOWN: Duration = Duration::from_secs(5);

/// A run of a known number of steps.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    steps: u64,
}

impl Progress {
    /// Starts at step 0 of `steps`.
    #[must_use]
    pub fn start(steps: u64) -> Progress {
        // How long steps take shows in those that were done.
        Progress::of(
            steps,
            "{elapsed:>4} {wide_bar:.cyan/dim} {pos}/{len}  {msg}  {eta} left",
        )
    }

    fn of(steps: u64, template: &str) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━─"));
        }
        if plain {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Progress { bar, plain, steps }
    }

    /// Says what is done now.
    pub fn says(&self, what: &str) {
        if self.plain {
            warn(&format!("[{}/{}] {what}", self.bar.position(), self.steps));
        }
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// One step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// A line that stays, above the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| warn(line));
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
                let progress = Progress::of(left, "{elapsed:>4} {wide_bar:.cyan/dim} {msg}");
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
