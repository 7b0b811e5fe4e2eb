//! `spinlane-perf`: the command line.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod comparing;
mod output;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use spinlane_perf::measure::MeasureError;
use spinlane_perf::micro::allocations::Counting;
use spinlane_perf::stop;
use spinlane_perf::terminal::warn;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Exit status after Ctrl-C.
const INTERRUPTED: u8 = 130;
/// Exit status for arguments that cannot be.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let what = match error.kind() {
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    "give a command; `spinlane-perf --help` lists them".to_owned()
                }
                _ => one_line(&error.to_string()),
            };
            warn(&format!("spinlane-perf: {what}"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let result = stop::catch_signals()
        .map_err(spinlane_perf::measure::io_error("catching signals"))
        .and_then(|()| commands::run(arguments));
    // Every value is gone by now; this waits for what goes after them.
    spinlane_tests::finish();
    match result {
        Ok(code) => code,
        Err(MeasureError::Unread) => ExitCode::SUCCESS,
        Err(MeasureError::Partial) => {
            warn("interrupted; this is what was measured until then, everything is removed");
            ExitCode::from(INTERRUPTED)
        }
        // A terminal's Ctrl-C also ends the programs that something waits for.
        Err(error) if stop::interrupted() || matches!(error, MeasureError::Interrupted) => {
            warn("interrupted; everything is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error @ (MeasureError::Usage { .. } | MeasureError::Packet(_))) => {
            warn(&format!("spinlane-perf: {error}"));
            ExitCode::from(WRONG_USAGE)
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

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use spinlane_perf::micro::allocations::count;
    use spinlane_perf::stop::Stop;

    #[test]
    fn each_thread_counts_its_own_allocations() {
        let over = Stop::new();
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let before = count();
                while !over.is_set() {
                    drop(black_box(vec![1u8; 100]));
                }
                count() - before
            });
            let before = count();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let by_others = count() - before;
            drop(black_box(vec![1u8; 100]));
            let with_mine = count() - before;
            over.set();
            assert_eq!((by_others, with_mine), (0, 1));
            assert!(busy.join().is_ok_and(|many| many > 0));
        });
    }
}
