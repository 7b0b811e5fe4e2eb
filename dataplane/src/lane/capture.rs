//! Copies of packets for `spinlane capture`.
//!
//! Costs one look at an empty list per batch while nobody captures. While
//! somebody does, packets are copied before the pipeline rewrites them; a
//! reader that does not keep up loses copies, never packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crossbeam::queue::ArrayQueue;

use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::lane::Alarm;
use crate::snapshot::Snapshot;
use crate::types::PortId;
use crate::umem::Umem;

/// Copies that wait for their reader at most.
const QUEUE_PACKETS: usize = 4096;

/// What to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureSpec {
    /// Only packets that enter or leave by this port.
    pub port: Option<PortId>,
    /// Bytes to copy of each packet at most.
    pub snaplen: usize,
}

/// Which way a packet went through the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the port into the switch.
    In,
    /// From the switch to the port.
    Out,
}

/// A copy of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedPacket {
    /// When its batch was taken.
    pub at: SystemTime,
    /// The port.
    pub port: PortId,
    /// Which way it went.
    pub direction: Direction,
    /// Bytes of the packet, which may be more than were copied.
    pub len: u32,
    /// Why it went no further.
    pub drop: Option<DropReason>,
    /// Its first bytes.
    pub data: Vec<u8>,
}

/// Between the lanes and one reader.
#[derive(Debug)]
pub(crate) struct CaptureQueue {
    pub(crate) spec: CaptureSpec,
    pub(crate) packets: ArrayQueue<CapturedPacket>,
    pub(crate) lost: AtomicU64,
    pub(crate) alarm: Alarm,
}

impl CaptureQueue {
    pub(crate) fn new(spec: CaptureSpec, alarm: Alarm) -> CaptureQueue {
        CaptureQueue {
            spec,
            packets: ArrayQueue::new(QUEUE_PACKETS),
            lost: AtomicU64::new(0),
            alarm,
        }
    }

    fn wants(&self, port: PortId) -> bool {
        self.spec.port.is_none_or(|wanted| wanted == port)
    }

    fn push(&self, mut packet: CapturedPacket) {
        packet.data.truncate(self.spec.snaplen);
        if self.packets.push(packet).is_err() {
            // Relaxed: a statistic.
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The packets of a batch as they came, when somebody captures.
pub(super) fn copy_in(
    captures: &[Arc<CaptureQueue>],
    umem: &Umem,
    batch: &Batch,
) -> Option<Vec<Vec<u8>>> {
    if captures.is_empty() {
        return None;
    }
    Some(
        (0..batch.len())
            .map(|index| bytes(umem, batch, index))
            .collect(),
    )
}

fn bytes(umem: &Umem, batch: &Batch, index: usize) -> Vec<u8> {
    batch
        .chain(index)
        .flat_map(|frame| umem.bytes(frame))
        .copied()
        .collect()
}

/// Hands out the copies of a decided batch: as it came, and as it leaves.
pub(super) fn deliver(
    captures: &[Arc<CaptureQueue>],
    copies: Option<Vec<Vec<u8>>>,
    umem: &Umem,
    batch: &Batch,
    snapshot: &Snapshot,
) {
    let Some(copies) = copies else { return };
    let at = SystemTime::now();
    for (index, data) in copies.into_iter().enumerate() {
        let packet = &batch.packets()[index];
        let drop = match packet.verdict {
            Verdict::Drop(reason) => Some(reason),
            Verdict::Reply { dropped } => dropped,
            Verdict::Forward { .. } | Verdict::Segment { .. } | Verdict::Flood { .. } => None,
        };
        let outs: Vec<PortId> = match packet.verdict {
            Verdict::Forward { out, .. } | Verdict::Segment { out, .. } => vec![out],
            Verdict::Reply { .. } => vec![packet.in_port],
            Verdict::Flood { segment, .. } => {
                let members = snapshot.segment(segment).map(|s| Arc::clone(&s.members));
                members
                    .iter()
                    .flat_map(|m| m.iter().copied())
                    .filter(|&p| p != packet.in_port)
                    .collect()
            }
            Verdict::Drop(_) => Vec::new(),
        };
        for capture in captures {
            if capture.wants(packet.in_port) {
                capture.push(CapturedPacket {
                    at,
                    port: packet.in_port,
                    direction: Direction::In,
                    len: packet.len,
                    drop,
                    data: data.clone(),
                });
            }
            for &port in outs.iter().filter(|&&port| capture.wants(port)) {
                let data = bytes(umem, batch, index);
                let len = data.len() as u32;
                capture.push(CapturedPacket {
                    at,
                    port,
                    direction: Direction::Out,
                    len,
                    drop: None,
                    data,
                });
            }
        }
    }
    captures.iter().for_each(|capture| capture.alarm.ring());
}
