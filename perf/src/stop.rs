//! The end of a measurement: asked for by its owner, or by Ctrl-C.
//!
//! The first SIGINT or SIGTERM only raises a flag that every loop of this
//! crate looks at, so that values are dropped and namespaces, devices and
//! processes go with them. The second one ends the process at once; the lab's
//! watcher then cleans up.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// How often one looks whether something came, and for how many times.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: u32 = 1000;

/// Written by the signal handler only. Relaxed: it guards no other data.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Catches SIGINT and SIGTERM, each once.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn catch_signals() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(interrupt),
        SaFlags::SA_RESETHAND,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is safe in a
        // signal handler. There is no safe way to install one, and without
        // it Ctrl-C would not run destructors.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether a signal asked for the end.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A flag that ends what looks at it; also set when the process was
/// [interrupted].
#[derive(Debug, Clone, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
}

impl Stop {
    /// Not set.
    #[must_use]
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Asks for the end.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed) || interrupted()
    }

    /// Sets the flag when the guard goes, also on an early return.
    #[must_use]
    pub fn on_drop(&self) -> StopGuard {
        StopGuard(self.clone())
    }

    /// Sleeps for as long as is measured, and on as long as nothing came: a
    /// machine that stood still meanwhile is no verdict. Not past the end, and
    /// a few seconds longer at most; whether the time passed in full.
    #[must_use]
    pub fn watch(&self, duration: Duration, is_idle: impl Fn() -> bool) -> bool {
        // By looks, not by the clock, which goes on for a process that is
        // stopped.
        let mut looks = 0..LOOKS;
        let mut whole = self.sleep(duration);
        while whole && is_idle() && looks.next().is_some() {
            whole = self.sleep(LOOK);
        }
        whole
    }

    /// Sleeps, but not past the end; whether the time passed in full.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        while !self.is_set() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        false
    }
}

/// Sets a [`Stop`] when dropped.
#[derive(Debug)]
pub struct StopGuard(Stop);

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_came_to_nothing_is_watched_for_longer() {
        for (idle_looks, looked) in [(0, 1), (3, 4)] {
            let looks = Cell::new(0);
            let is_idle = || looks.replace(looks.get() + 1) < idle_looks;
            assert!(Stop::new().watch(Duration::ZERO, is_idle));
            assert_eq!(looks.get(), looked);
        }
        let stop = Stop::new();
        stop.set();
        assert!(!stop.watch(Duration::from_secs(60), || true));
    }
}
