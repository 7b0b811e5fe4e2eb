//! The engine's figures: the lanes' counters added up, and the kernel's.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Inner, lock};
use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::port::PortHandle;
use crate::types::{Nanos, PortId};

/// One lane's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStats {
    /// CPU it is pinned to.
    pub core: usize,
    /// Whether its thread runs; one that ended unasked does not come back.
    pub is_running: bool,
    /// Share of the last second that it had packets in hand.
    pub busy_ratio: f64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets transmitted.
    pub tx_packets: u64,
    /// Entries in the flow tables.
    pub flow_entries: u64,
    /// Packets that hit the flow table.
    pub flow_hits: u64,
    /// Packets that missed it.
    pub flow_misses: u64,
    /// Entries pushed out for others.
    pub flow_evictions: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Times that it napped under a flood.
    pub naps: u64,
    /// Events that control was too slow for.
    pub events_lost: u64,
    /// Seconds since its last round.
    pub last_round_age_s: f64,
}

/// The frame accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameStats {
    /// Chunks of the frame memory.
    pub total: u64,
    /// On free lists or posted for filling.
    pub free: u64,
    /// Received, or sent and not yet completed.
    pub in_use: u64,
}

/// The engine's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStats {
    /// Lane by lane.
    pub lanes: Vec<LaneStats>,
    /// The frame accounts.
    pub frames: FrameStats,
    /// Sockets of a port that were made anew because the kernel refused to
    /// serve the old ones.
    pub rebuilds: u64,
    /// Drops by [`DropReason`], all lanes and the kernel's together.
    pub drops: [u64; DropReason::COUNT],
}

/// One port's figures, all lanes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets received from it.
    pub rx_packets: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Packets sent to it.
    pub tx_packets: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Packets dropped that came from it.
    pub drops: u64,
}

/// What ports and lanes have done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Port by port, without what the kernel dropped.
    pub ports: Vec<(PortId, PortStats)>,
    /// Nanoseconds that each lane had packets in hand.
    pub busy_nanos: Vec<u64>,
}

impl Inner {
    pub(super) fn port_stats(&self, id: PortId) -> Option<PortStats> {
        let ports = lock(&self.ports);
        let handle = ports.get(&id)?;
        let mut stats = carried(handle);
        let kernel = handle.kernel_drops();
        stats.drops += kernel.fill_empty + kernel.ring_full;
        Some(stats)
    }

    pub(super) fn traffic(&self) -> Traffic {
        let ports = lock(&self.ports);
        Traffic {
            ports: ports
                .iter()
                .map(|(&id, port)| (id, carried(port)))
                .collect(),
            busy_nanos: self
                .lanes
                .iter()
                .map(|lane| lane.counters.busy_nanos.get())
                .collect(),
        }
    }

    pub(super) fn stats(&self) -> EngineStats {
        let mut drops = [0; DropReason::COUNT];
        let mut free = self.depot.free();
        let mut lanes = Vec::with_capacity(self.lanes.len());
        for (id, (lane, &core)) in self.lanes.iter().zip(&self.config.cores).enumerate() {
            let counters = &lane.counters;
            for (sum, counter) in drops.iter_mut().zip(&counters.drops) {
                *sum += counter.get();
            }
            free += counters.frames_free.get() + counters.frames_filling.get();
            let is_running = !self.is_dead(id);
            lanes.push(lane_stats(core, is_running, counters, lane.epoch));
        }
        let gone = lock(&self.kernel_drops);
        let (mut fill_empty, mut ring_full) = (gone.fill_empty, gone.ring_full);
        drop(gone);
        for handle in lock(&self.ports).values() {
            let kernel = handle.kernel_drops();
            fill_empty += kernel.fill_empty;
            ring_full += kernel.ring_full;
        }
        drops[DropReason::RxNoFrame.index()] += fill_empty;
        drops[DropReason::RxRingFull.index()] += ring_full;
        let total = self.umem.chunks() as u64;
        let free = free.min(total);
        EngineStats {
            lanes,
            frames: FrameStats {
                total,
                free,
                in_use: total - free,
            },
            // Relaxed: a statistic.
            rebuilds: self.rebuilds.load(Ordering::Relaxed),
            drops,
        }
    }
}

/// What the lanes counted at a port.
fn carried(handle: &PortHandle) -> PortStats {
    let mut sum = PortStats::default();
    for counters in &handle.counters {
        sum.rx_packets += counters.rx_packets.get();
        sum.rx_bytes += counters.rx_bytes.get();
        sum.tx_packets += counters.tx_packets.get();
        sum.tx_bytes += counters.tx_bytes.get();
        sum.drops += counters.drops.get();
    }
    sum
}

fn lane_stats(core: usize, is_running: bool, counters: &LaneCounters, epoch: Instant) -> LaneStats {
    let now = Nanos(epoch.elapsed().as_nanos() as u64);
    LaneStats {
        core,
        is_running,
        busy_ratio: counters.busy_ppm.get() as f64 / 1e6,
        rx_packets: counters.rx_packets.get(),
        tx_packets: counters.tx_packets.get(),
        flow_entries: counters.flow_entries.get(),
        flow_hits: counters.flow_hits.get(),
        flow_misses: counters.flow_misses.get(),
        flow_evictions: counters.flow_evictions.get(),
        sleeps: counters.sleeps.get(),
        naps: counters.naps.get(),
        events_lost: counters.events_lost.get(),
        last_round_age_s: now.since(Nanos(counters.last_round.get())) as f64 / 1e9,
    }
}
