//! Where the kernel's receive work of a veth pair lands.
//!
//! In generic mode a frame enters the host on whichever CPU its sender ran
//! on; when the sender moves, frames of one connection would overtake each
//! other. So each receive queue of the host's end is steered to one CPU for
//! good. That CPU is no lane's where there is a choice: a lane whose CPU also
//! takes frames in spends its time on those that it then has no time to
//! forward. What the switch transmits to a pod goes through the pod's protocol
//! stack on a CPU that is no lane's either, where there is one. Floods of short
//! packets are an exception ([`balance`]).

pub mod balance;

use std::io;
use std::os::fd::OwnedFd;

use super::netns::Sysfs;
use balance::Way;

/// The CPUs of `allowed` that no lane is pinned to.
pub fn spare_cpus(allowed: &[usize], lanes: &[usize]) -> Vec<usize> {
    let spare = allowed.iter().filter(|cpu| !lanes.contains(cpu));
    spare.copied().collect()
}

/// Why steering was not set.
#[derive(Debug, thiserror::Error)]
#[error("cannot steer receive queue {queue} of {interface}: {source}")]
pub struct SteeringError {
    interface: String,
    queue: u32,
    source: io::Error,
}

/// The receive queues of an interface, each with the CPUs that its work is
/// steered to.
#[derive(Debug, Default)]
pub struct Steered(Vec<(OwnedFd, String)>);

/// No CPU: work stays where it comes up.
const NOWHERE: &str = "0";

impl Steered {
    /// Steers queue by queue of an interface, as `cpus` says.
    fn new(
        sysfs: &Sysfs,
        interface: &str,
        cpus: impl Iterator<Item = String>,
    ) -> Result<Steered, SteeringError> {
        let mut steered = Steered::default();
        for (queue, cpus) in (0..).zip(cpus) {
            let failed = |source| SteeringError {
                interface: interface.to_owned(),
                queue,
                source,
            };
            let path = format!("class/net/{interface}/queues/rx-{queue}/rps_cpus");
            let file = sysfs.open_file(&path).map_err(failed)?;
            rustix::io::pwrite(&file, cpus.as_bytes(), 0).map_err(|e| failed(e.into()))?;
            steered.0.push((file, cpus));
        }
        Ok(steered)
    }

    /// Takes steering off, or puts it back. The interface may be gone.
    fn turn(&self, is_on: bool) -> io::Result<()> {
        for (file, cpus) in &self.0 {
            let cpus = if is_on { cpus } else { NOWHERE };
            rustix::io::pwrite(file, cpus.as_bytes(), 0)?;
        }
        Ok(())
    }
}

/// Both ends of a port.
#[derive(Debug, Default)]
pub struct Ends {
    way_in: Steered,
    way_out: Steered,
}

impl Ends {
    /// A port whose way in is steered.
    pub fn new(way_in: Steered) -> Ends {
        Ends {
            way_in,
            way_out: Steered::default(),
        }
    }

    /// Its way out, too.
    pub fn lead_out(&mut self, way_out: Steered) {
        self.way_out = way_out;
    }

    /// Takes the steering of one way off, or puts it back.
    pub fn turn(&self, way: Way, is_on: bool) -> io::Result<()> {
        match way {
            Way::In => self.way_in.turn(is_on),
            Way::Out => self.way_out.turn(is_on),
        }
    }
}

/// Steers each receive queue of a host's end to one of `cpus`; interfaces
/// begin at different places of the list, so that they share it.
pub fn steer_in(
    sysfs: &Sysfs,
    interface: &str,
    ifindex: u32,
    queues: u32,
    cpus: &[usize],
) -> Result<Steered, SteeringError> {
    let one = |queue| cpus.get((ifindex + queue) as usize % cpus.len().max(1));
    let masks = (0..queues).map_while(|queue| one(queue).map(|&cpu| cpu_mask(&[cpu])));
    Steered::new(sysfs, interface, masks)
}

/// Spreads the flows of each receive queue of a pod's end over `cpus`.
pub fn steer_out(
    sysfs: &Sysfs,
    interface: &str,
    queues: u32,
    cpus: &[usize],
) -> Result<Steered, SteeringError> {
    let queues = if cpus.is_empty() { 0 } else { queues };
    Steered::new(sysfs, interface, (0..queues).map(|_| cpu_mask(cpus)))
}

/// Lets every CPU transmit on any queue but the first: generic mode delivers
/// transmit queues 0 and 1 on the same receive queue, so with the first in use
/// one lane would get twice its share of the flows.
pub fn spare_first_queue(sysfs: &Sysfs, interface: &str, queues: u32) -> Result<(), SteeringError> {
    let all = cpu_mask_up_to(highest_cpu());
    for queue in 0..queues {
        let path = format!("class/net/{interface}/queues/tx-{queue}/xps_cpus");
        let mask = if queue == 0 { "0" } else { all.as_str() };
        sysfs.write(&path, mask).map_err(|source| SteeringError {
            interface: interface.to_owned(),
            queue,
            source,
        })?;
    }
    Ok(())
}

/// The highest number that a CPU of this machine may have.
pub fn highest_cpu() -> usize {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    let possible = possible.unwrap_or_default();
    let highest = possible.trim().rsplit(['-', ',']).next();
    highest.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// CPUs 0 to `highest` as the kernel's hexadecimal mask.
fn cpu_mask_up_to(highest: usize) -> String {
    let top = ((1u64 << (highest % 32 + 1)) - 1) as u32;
    let mut text = format!("{top:x}");
    for _ in 0..highest / 32 {
        text.push_str(",ffffffff");
    }
    text
}

/// CPUs as the kernel's hexadecimal mask: groups of 32 bits, highest first,
/// with commas.
fn cpu_mask(cpus: &[usize]) -> String {
    let highest = cpus.iter().copied().max().unwrap_or(0);
    let mut groups = vec![0u32; highest / 32 + 1];
    for cpu in cpus {
        groups[cpu / 32] |= 1 << (cpu % 32);
    }
    let mut text = String::new();
    for group in groups.iter().rev() {
        match text.is_empty() {
            true => text = format!("{group:x}"),
            false => text.push_str(&format!(",{group:08x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.unwrap().success(), "ip {arguments}");
    }

    #[test]
    fn the_kernel_is_told_of_each_turn() {
        if !spinlane_tests::root_or_skip("the_kernel_is_told_of_each_turn") {
            return;
        }
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add host type veth peer name pod");
            let sysfs = Sysfs::open().unwrap();
            let mask = |interface| {
                let path = format!("class/net/{interface}/queues/rx-0/rps_cpus");
                let mut text = [0; 4096];
                let file = sysfs.open_file(&path).unwrap();
                let len = rustix::io::read(&file, &mut text).unwrap();
                let text = std::str::from_utf8(&text[..len]).unwrap();
                text.trim_end().trim_start_matches(['0', ',']).to_owned()
            };
            let mut ends = Ends::new(steer_in(&sysfs, "host", 0, 1, &[0]).unwrap());
            ends.lead_out(steer_out(&sysfs, "pod", 1, &[0]).unwrap());
            assert_eq!([mask("host"), mask("pod")], ["1", "1"]);
            ends.turn(Way::In, false).unwrap();
            assert_eq!([mask("host"), mask("pod")], ["", "1"]);
            ends.turn(Way::Out, false).unwrap();
            ends.turn(Way::In, true).unwrap();
            assert_eq!([mask("host"), mask("pod")], ["1", ""]);
            ip("link delete host");
            ends.turn(Way::Out, true).unwrap_err();
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn whole_masks_have_no_bit_too_many() {
        for (highest, mask) in [(0, "1"), (1, "3"), (31, "ffffffff"), (33, "3,ffffffff")] {
            assert_eq!(cpu_mask_up_to(highest), mask, "CPU {highest}");
        }
    }

    #[test]
    fn lanes_cpus_are_not_spare() {
        assert_eq!(spare_cpus(&[0, 1, 2, 3], &[3]), [0, 1, 2]);
        assert_eq!(spare_cpus(&[0, 1, 2, 3], &[1, 2]), [0, 3]);
        assert_eq!(spare_cpus(&[2], &[2]), [0usize; 0]);
    }

    #[test]
    fn masks_follow_the_kernels_grouping() {
        for (core, mask) in [
            (0, "1"),
            (3, "8"),
            (31, "80000000"),
            (32, "1,00000000"),
            (69, "20,00000000,00000000"),
        ] {
            assert_eq!(cpu_mask(&[core]), mask, "core {core}");
        }
        assert_eq!(cpu_mask(&[0, 2, 35]), "8,00000005");
        assert_eq!(cpu_mask(&[]), "0");
    }
}
