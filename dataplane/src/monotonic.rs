//! The clock that goes on from process to process, until the machine is
//! started again.
#![allow(unsafe_code)] // asks the system

use std::time::{Duration, Instant};

/// Time since some moment that all processes share (`CLOCK_MONOTONIC`, which
/// [`Instant`] hides).
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills a live timespec; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The instant at which the clock said `then`; `None` when that is not past.
pub(crate) fn instant(then: Duration) -> Option<Instant> {
    let elapsed = now().checked_sub(then)?;
    Instant::now().checked_sub(elapsed)
}
