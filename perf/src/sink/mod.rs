//! Sinks: what counts. A rate is what a sink saw, nothing else.

pub mod distinct;
pub mod flow;
pub mod latency;
mod program;
pub mod socket;
pub mod tc;
pub mod tracking;

use std::time::Instant;

use serde::Serialize;

pub use program::Hook;

use crate::bpf::{BpfError, Counters};
use crate::packet::{PortRange, Protocol};
use crate::sink::flow::Order;
use crate::sink::latency::Latency;
use crate::sink::program::{BYTES, PACKETS};

/// What a sink in the kernel takes; others pass it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// What the packets carry.
    pub protocol: Protocol,
    /// Destination ports; all without.
    pub ports: Option<PortRange>,
    /// The packets are inside VXLAN to this port.
    pub tunnel_port: Option<u16>,
}

/// What a sink has counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets; a segmented packet counts as its segments.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    fn read<const N: usize>(counters: &Counters<N>) -> Result<Count, BpfError> {
        let counters = counters.read()?;
        Ok(Count {
            packets: counters[PACKETS],
            bytes: counters[BYTES],
        })
    }
}

/// Packets and bytes a second between two looks at a sink.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Packets in the time.
    pub packets: u64,
    /// Packets a second.
    pub packets_per_second: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Seconds between the looks.
    pub seconds: f64,
}

impl Rate {
    /// The rate between two looks.
    #[must_use]
    pub fn between(first: (Instant, Count), second: (Instant, Count)) -> Rate {
        let seconds = second.0.duration_since(first.0).as_secs_f64().max(1e-9);
        let packets = second.1.packets.saturating_sub(first.1.packets);
        let bytes = second.1.bytes.saturating_sub(first.1.bytes);
        Rate {
            packets,
            packets_per_second: packets as f64 / seconds,
            bytes_per_second: bytes as f64 / seconds,
            seconds,
        }
    }
}

/// What the stamps said.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Stamps {
    /// Loss, duplicates and order.
    pub order: Order,
    /// One-way delays; none when no packet had a stamp.
    pub latency: Option<Latency>,
    /// Packets without a stamp.
    pub unstamped: u64,
    /// Packets that came in super-frames, among all others.
    pub in_super_frames: u64,
    /// Packets of more flows than are tracked.
    pub untracked: u64,
}
