//! Where the kernel's receive work of a veth pair lands.
//!
//! In generic mode a frame enters the host on whichever CPU its sender ran
//! on; when the sender moves, frames of one connection would overtake each
//! other. So each receive queue of the host's end is steered to one CPU for
//! good. That CPU is no lane's where there is a choice: a lane whose CPU also
//! takes frames in spends its time on those that it then has no time to
//! forward (one run each: 64-byte frames 0.37 against 0.69 million a second,
//! one TCP stream 12 against 14 Gbit/s). What the switch transmits to a pod goes
//! through the pod's protocol stack on the lane's CPU.

use std::io;

use super::netns::Sysfs;

/// The CPUs that take frames in: those that this process may use and no lane
/// is pinned to, else the lanes'.
pub fn receive_cpus(allowed: &[usize], lanes: &[usize]) -> Vec<usize> {
    let others: Vec<usize> = allowed
        .iter()
        .copied()
        .filter(|cpu| !lanes.contains(cpu))
        .collect();
    if others.is_empty() {
        lanes.to_vec()
    } else {
        others
    }
}

/// Why steering was not set.
#[derive(Debug, thiserror::Error)]
#[error("cannot steer receive queue {queue} of {interface}: {source}")]
pub struct SteeringError {
    interface: String,
    queue: u32,
    source: io::Error,
}

/// Steers each receive queue of an interface to one of `cpus`; interfaces
/// begin at different places of the list, so that they share it.
pub fn apply(
    sysfs: &Sysfs,
    interface: &str,
    ifindex: u32,
    queues: u32,
    cpus: &[usize],
) -> Result<(), SteeringError> {
    for queue in 0..queues {
        let Some(&cpu) = cpus.get((ifindex + queue) as usize % cpus.len().max(1)) else {
            return Ok(());
        };
        let path = format!("class/net/{interface}/queues/rx-{queue}/rps_cpus");
        sysfs
            .write(&path, &cpu_mask(cpu))
            .map_err(|source| SteeringError {
                interface: interface.to_owned(),
                queue,
                source,
            })?;
    }
    Ok(())
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

/// One CPU as the kernel's hexadecimal mask: groups of 32 bits, highest
/// first, with commas.
fn cpu_mask(core: usize) -> String {
    let mut text = format!("{:x}", 1u32 << (core % 32));
    for _ in 0..core / 32 {
        text.push_str(",00000000");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{cpu_mask, cpu_mask_up_to, receive_cpus};

    #[test]
    fn whole_masks_have_no_bit_too_many() {
        for (highest, mask) in [(0, "1"), (1, "3"), (31, "ffffffff"), (33, "3,ffffffff")] {
            assert_eq!(cpu_mask_up_to(highest), mask, "CPU {highest}");
        }
    }

    #[test]
    fn lanes_take_frames_in_only_where_nobody_else_can() {
        assert_eq!(receive_cpus(&[0, 1, 2, 3], &[3]), [0, 1, 2]);
        assert_eq!(receive_cpus(&[0, 1, 2, 3], &[1, 2]), [0, 3]);
        assert_eq!(receive_cpus(&[2], &[2]), [2]);
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
            assert_eq!(cpu_mask(core), mask, "core {core}");
        }
    }
}
