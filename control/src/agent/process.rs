//! What the process sets for itself: its log, its limits, its CPUs.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use crate::config::allowed_cores;
use crate::node::steering::spare_cpus;

/// Variable that chooses what is logged, as in `info,spinlane_control=debug`.
const LOG_VARIABLE: &str = "SPINLANE_LOG";

/// Logs to standard error from `info` on, or as `SPINLANE_LOG` says.
pub(super) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    // A second log in one process (tests) keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

/// Every port needs descriptors: as many as root may have.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files; many ports may not fit");
    }
}

/// How many of the CPUs `lanes` leave to work that can be spread: one, whose
/// time they share, where they leave none.
pub(super) fn cpus_left(allowed: &[usize], lanes: &[usize]) -> usize {
    // A quota may allow less.
    let quota = available_parallelism().map_or(1, NonZeroUsize::get);
    spare_cpus(allowed, lanes).len().clamp(1, quota)
}

/// Keeps this thread, and those that it starts, off the lanes' CPUs, where
/// the machine has others. Lanes pin themselves.
pub(super) fn keep_off_lanes(lanes: &[usize]) {
    let others = spare_cpus(&allowed_cores(), lanes);
    if others.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let filled = others.iter().try_for_each(|core| set.set(*core));
    let kept = filled.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = kept {
        tracing::warn!(%error, "cannot keep the control threads off the lanes' CPUs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_on_all_cpus_leave_the_time_of_one() {
        assert_eq!(cpus_left(&[0, 1, 2, 3], &[0, 1, 2, 3]), 1);
        assert_eq!(cpus_left(&[0, 1, 2, 3], &[1, 2, 3]), 1);
        let all = allowed_cores();
        let quota = available_parallelism().unwrap().get();
        assert_eq!(cpus_left(&all, &[]), quota.min(all.len()));
    }
}
