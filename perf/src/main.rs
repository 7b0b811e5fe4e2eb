//! `spinlane-perf`: the command line.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod comparing;

use std::process::ExitCode;

use clap::Parser;

use spinlane_perf::measure::MeasureError;
use spinlane_perf::micro::allocations::Counting;
use spinlane_perf::terminal::warn;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            warn(&format!("spinlane-perf: {}", one_line(&error.to_string())));
            return ExitCode::from(2);
        }
    };
    let caught = spinlane_perf::stop::catch_signals();
    let result = caught
        .map_err(spinlane_perf::measure::io_error("catching signals"))
        .and_then(|()| commands::run(arguments));
    match result {
        Ok(code) => code,
        Err(MeasureError::Unread) => ExitCode::SUCCESS,
        Err(MeasureError::Interrupted) => {
            warn("interrupted; everything is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            warn(&format!("spinlane-perf: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The part of a message before its usage and hints, in one line.
fn one_line(message: &str) -> String {
    let parts: Vec<&str> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let text = parts.join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}
