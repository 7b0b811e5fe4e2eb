//! The clock that stamps are made of: the kernel's `CLOCK_MONOTONIC`, the
//! same in every namespace and in BPF programs.

use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What a sleep may overrun; the rest of a wait is spent looking.
const WAKE_UP: Duration = Duration::from_micros(150);

/// Nanoseconds now.
#[must_use]
pub fn now_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds that the calling thread has had a core.
#[must_use]
pub fn thread_ns() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: ClockId) -> u64 {
    // These clocks cannot fail: they exist on every Linux.
    clock_gettime(clock).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}

/// Waits until `due_ns`, but no longer than `most`: asleep while there is
/// time, then looking at the clock. Returns the time.
pub fn wait_until(due_ns: u64, most: Duration) -> u64 {
    let began = now_ns();
    let end = due_ns.min(began + most.as_nanos() as u64);
    let left = Duration::from_nanos(end.saturating_sub(began));
    if left > WAKE_UP {
        thread::sleep(left - WAKE_UP);
    }
    loop {
        let now = now_ns();
        if now >= end {
            return now;
        }
        std::hint::spin_loop();
    }
}
