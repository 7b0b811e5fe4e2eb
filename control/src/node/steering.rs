//! Where the kernel's receive work of a veth pair lands.
//!
//! In generic mode a frame enters the host on whichever CPU its sender ran
//! on; steered to the lane's CPU, frames of one connection keep their order
//! when the sender moves. The pod's end decides where the pod's own protocol
//! stack runs for what the switch transmits.

use std::io;

use super::netns::Sysfs;

/// Where receive work of the pod's end goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEnd {
    /// Where the lane transmits.
    Unsteered,
    /// To the lanes' CPUs.
    LaneCores,
}

/// The default for pods.
pub const POD_END: PodEnd = PodEnd::Unsteered;

/// Why steering was not set.
#[derive(Debug, thiserror::Error)]
#[error("cannot steer receive queue {queue} of {interface}: {source}")]
pub struct SteeringError {
    interface: String,
    queue: u32,
    source: io::Error,
}

/// Steers receive queue `i` of an interface to `cores[i % cores.len()]`.
pub fn apply(
    sysfs: &Sysfs,
    interface: &str,
    queues: u32,
    cores: &[usize],
) -> Result<(), SteeringError> {
    for queue in 0..queues {
        let Some(core) = cores.get(queue as usize % cores.len().max(1)) else {
            return Ok(());
        };
        let path = format!("class/net/{interface}/queues/rx-{queue}/rps_cpus");
        sysfs
            .write(&path, &cpu_mask(*core))
            .map_err(|source| SteeringError {
                interface: interface.to_owned(),
                queue,
                source,
            })?;
    }
    Ok(())
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
    use super::cpu_mask;

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
