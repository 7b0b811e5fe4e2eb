//! The `spinlane` binary: the agent and the operator's command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    spinlane_control::cli::main()
}
