//! The processor's time-stamp counter, in order with the work around it.
#![allow(unsafe_code)] // the instructions that read it have no safe form

use std::time::{Duration, Instant};

/// How long the counter is watched to learn its rate.
const CALIBRATION: Duration = Duration::from_millis(50);
/// Pairs of readings from which the cost of a reading is taken.
const READINGS: usize = 1001;

/// What a reading is worth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Ticks in a second.
    pub(super) hz: f64,
    /// Ticks that lie between two readings with nothing between them.
    pub(super) overhead: u64,
}

impl Clock {
    /// Learns rate and overhead; takes 50 ms.
    pub(super) fn calibrate() -> Clock {
        let (began, first) = (Instant::now(), now());
        while began.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let hz = (now() - first) as f64 / began.elapsed().as_secs_f64();
        let mut gaps: Vec<u64> = (0..READINGS)
            .map(|_| {
                let before = now();
                now() - before
            })
            .collect();
        gaps.sort_unstable();
        Clock {
            hz,
            overhead: gaps[READINGS / 2],
        }
    }

    /// Nanoseconds of so many ticks.
    pub(super) fn nanos(&self, ticks: f64) -> f64 {
        ticks * 1e9 / self.hz
    }
}

/// The counter now. What comes before is done, what comes after has not begun.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn now() -> u64 {
    use std::arch::x86_64::{_mm_lfence, _rdtsc};
    // SAFETY: a fence of loads is part of every x86-64 processor.
    unsafe { _mm_lfence() };
    // SAFETY: reads a counter that Linux lets every process read.
    let ticks = unsafe { _rdtsc() };
    // SAFETY: as the first fence.
    unsafe { _mm_lfence() };
    ticks
}

/// Nanoseconds, where there is no counter that a process may read alike.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn now() -> u64 {
    use std::sync::OnceLock;
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_agree_with_the_system_clock() {
        let clock = Clock::calibrate();
        let (began, first) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(20));
        let (elapsed, ticks) = (began.elapsed(), now() - first);
        let ratio = clock.nanos(ticks as f64) / elapsed.as_nanos() as f64;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        assert!(clock.overhead < 10_000, "{}", clock.overhead);
    }
}
