//! Looks at what ports carry, and steers their receive work accordingly
//! ([`balance`](super::steering::balance)).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spinlane_dataplane::types::PortId;

use super::Core;
use super::error::AttachError;
use super::netns::{self, Sysfs};
use super::steering::balance::{Asked, Balance, Change};
use super::steering::{self, Ends};

/// How often it looks: a few times before a flood has lasted as long as a
/// probe's time-out.
const PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Runs until the node stops.
pub(super) fn run(core: &Arc<Core>) {
    let mut balance = Balance::default();
    let mut last = Instant::now();
    let mut clocks = Clocks::read(&core.setup().spare_cpus);
    while !is_stopped(core) {
        let span = last.elapsed();
        last = Instant::now();
        let now = Clocks::read(&core.setup().spare_cpus);
        let asked = Asked {
            idle: || Some(now?.idle_since(clocks?)),
            lost: |port| core.switch.drops(port),
        };
        for change in balance.look(core.switch.traffic(), span, &asked) {
            turn(core, change);
        }
        clocks = now;
    }
}

/// Waits for one period; `true` when the node stops meanwhile.
fn is_stopped(core: &Core) -> bool {
    let mut stop = [PollFd::from_borrowed_fd(core.stop.as_fd(), PollFlags::IN)];
    // An interrupted wait is a short one.
    poll(&mut stop, Some(&PERIOD)).is_ok_and(|ready| ready > 0)
}

fn turn(core: &Core, change: Change) {
    let ports = core.steered();
    let Some(ends) = ports.get(&change.port) else {
        return;
    };
    let Change { port, way, is_on } = change;
    match ends.turn(way, is_on) {
        Ok(()) => tracing::debug!(port = port.0, ?way, is_on, "turned a port's steering"),
        // Its interface is going; what comes after it is steered afresh.
        Err(error) => tracing::debug!(port = port.0, ?way, %error, "cannot turn a port's steering"),
    }
}

impl Core {
    /// Where the receive work of ports lands.
    pub(super) fn steered(&self) -> MutexGuard<'_, HashMap<PortId, Ends>> {
        self.steered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a pod's protocol stack work beside the lanes.
    pub(crate) fn steer_out(
        &self,
        id: PortId,
        pod: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let setup = self.setup();
        let queues = self.switch.veth_queues();
        let way_out = netns::run(netns, || -> Result<_, AttachError> {
            Ok(steering::steer_out(
                &Sysfs::open()?,
                pod,
                queues,
                &setup.spare_cpus,
            )?)
        })?;
        if let Some(ends) = self.steered().get_mut(&id) {
            ends.lead_out(way_out);
        }
        Ok(())
    }
}

/// What some CPUs have spent their time on since the machine started.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    idle: u64,
    all: u64,
}

impl Clocks {
    /// Those of `cpus`, from `/proc/stat` (proc_stat(5)).
    fn read(cpus: &[usize]) -> Option<Clocks> {
        Clocks::parse(&std::fs::read_to_string("/proc/stat").ok()?, cpus)
    }

    fn parse(text: &str, cpus: &[usize]) -> Option<Clocks> {
        let mut sum = Clocks { idle: 0, all: 0 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let cpu = words.next()?.strip_prefix("cpu");
            let Some(cpu) = cpu.and_then(|number| number.parse().ok()) else {
                continue;
            };
            if !cpus.contains(&cpu) {
                continue;
            }
            // user, nice, system, idle, iowait, irq, softirq, steal; what
            // guests took is in user already.
            let times: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
            sum.idle += times.get(3)? + times.get(4)?;
            sum.all += times.iter().sum::<u64>();
        }
        (sum.all > 0).then_some(sum)
    }

    /// Share of the time since `then` that they were idle.
    fn idle_since(self, then: Clocks) -> f64 {
        let all = self.all.saturating_sub(then.all).max(1);
        self.idle.saturating_sub(then.idle) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "cpu  30 0 30 340 0 0 0 0 0 0\n\
                        cpu0 10 0 10 180 0 0 0 0 0 0\n\
                        cpu1 20 0 20 160 0 0 0 0 0 0\n\
                        intr 7 0\n";
    const NOW: &str = "cpu  60 0 60 380 0 0 100 0 0 0\n\
                       cpu0 20 0 20 200 20 0 40 0 9 0\n\
                       cpu1 40 0 40 180 0 0 60 0 0 0\n\
                       intr 9 0\n";

    fn idle(cpus: &[usize]) -> Option<f64> {
        Some(Clocks::parse(NOW, cpus)?.idle_since(Clocks::parse(THEN, cpus)?))
    }

    #[test]
    fn idleness_is_that_of_the_cpus_asked_for() {
        // 40 of 100 ticks, waiting for the disk included.
        assert_eq!(idle(&[0]), Some(0.4));
        assert_eq!(idle(&[1]), Some(20.0 / 120.0));
        assert_eq!(idle(&[0, 1]), Some(60.0 / 220.0));
        assert_eq!(idle(&[]), None, "nobody to ask");
        assert_eq!(idle(&[7]), None, "no such CPU");
    }
}
