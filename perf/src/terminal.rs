//! Standard output and standard error for results and remarks. A reader that
//! goes away early, as `head` does, is no failure, but ends the program the
//! orderly way: what was set up is removed.

use std::io::{self, Write};

use crate::measure::{MeasureError, io_error};

/// Writes a line of the result to standard output.
///
/// # Errors
/// [`MeasureError::Unread`] when nobody reads any more; others when it cannot
/// be written.
pub fn say(line: &str) -> Result<(), MeasureError> {
    writeln!(io::stdout().lock(), "{line}").map_err(unwritten)
}

/// Writes a remark to standard error; there is nobody to tell when it cannot
/// be written.
pub fn warn(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn unwritten(error: io::Error) -> MeasureError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => MeasureError::Unread,
        _ => io_error("writing to standard output")(error),
    }
}
