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

/// The CPUs that the process may use, and those of them that lanes take.
#[derive(Debug)]
pub(super) struct Cpus {
    allowed: Vec<usize>,
    /// Those of no lane.
    spare: Vec<usize>,
}

impl Cpus {
    /// With lanes on `lanes`; none runs yet.
    pub(super) fn with_lanes(lanes: &[usize]) -> Cpus {
        Cpus::of(allowed_cores(), lanes)
    }

    fn of(allowed: Vec<usize>, lanes: &[usize]) -> Cpus {
        let spare = spare_cpus(&allowed, lanes);
        Cpus { allowed, spare }
    }

    /// How many of them lanes leave to work that can be spread: one, whose time
    /// they share, where they leave none.
    pub(super) fn left(&self) -> usize {
        within_quota(self.spare.len())
    }

    /// Does what can be spread before lanes run: over all CPUs, whose number
    /// `work` gets.
    pub(super) fn before_lanes<T>(&self, work: impl FnOnce(usize) -> T) -> T {
        bind(&self.allowed);
        let done = work(within_quota(self.allowed.len()));
        self.keep_off_lanes();
        done
    }

    /// Keeps this thread, and those that it starts, off the lanes' CPUs, where
    /// the machine has others. Lanes pin themselves.
    pub(super) fn keep_off_lanes(&self) {
        bind(&self.spare);
    }
}

/// A quota may allow less than there are.
fn within_quota(cpus: usize) -> usize {
    let quota = available_parallelism().map_or(1, NonZeroUsize::get);
    cpus.clamp(1, quota)
}

/// Has this thread, and those that it starts, run on these CPUs, if any.
fn bind(cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let filled = cpus.iter().try_for_each(|cpu| set.set(*cpu));
    let bound = filled.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = bound {
        tracing::warn!(%error, "cannot choose the CPUs of the control threads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_on_all_cpus_leave_the_time_of_one() {
        let left = |lanes: &[usize]| Cpus::of(vec![0, 1, 2, 3], lanes).left();
        assert_eq!(left(&[0, 1, 2, 3]), 1);
        assert_eq!(left(&[1, 2, 3]), 1);
        let all = Cpus::with_lanes(&[]);
        let quota = available_parallelism().unwrap().get();
        assert_eq!(all.left(), quota.min(all.allowed.len()));
    }

    #[test]
    fn before_lanes_run_their_cpus_are_used_too() {
        let allowed = allowed_cores();
        // Of all CPUs, which this thread may use.
        let quota = available_parallelism().unwrap().get();
        let (lane, spare) = allowed.split_first().unwrap();
        let cpus = Cpus::with_lanes(&[*lane]);
        std::thread::spawn({
            let (allowed, spare) = (allowed.clone(), spare.to_vec());
            move || {
                cpus.keep_off_lanes();
                let (number, of_work) = cpus.before_lanes(|number| {
                    let worker = std::thread::spawn(allowed_cores);
                    (number, worker.join().unwrap())
                });
                assert_eq!(of_work, allowed);
                assert_eq!(number, quota.min(allowed.len()));
                if !spare.is_empty() {
                    assert_eq!(allowed_cores(), spare);
                }
            }
        })
        .join()
        .unwrap();
    }
}
