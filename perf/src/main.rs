//! `spinlane-perf`: the command line.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod comparing;

use std::process::ExitCode;

use spinlane_perf::measure::MeasureError;
use spinlane_perf::micro::allocations::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let arguments = match args::Arguments::checked(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let caught = spinlane_perf::stop::catch_signals();
    let result = caught
        .map_err(spinlane_perf::measure::io_error("catching signals"))
        .and_then(|()| commands::run(arguments));
    match result {
        Ok(code) => code,
        Err(MeasureError::Interrupted) => {
            eprintln!("interrupted; everything is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("spinlane-perf: {error}");
            ExitCode::FAILURE
        }
    }
}
