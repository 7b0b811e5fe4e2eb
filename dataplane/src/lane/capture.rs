//! Copies of packets for `spinlane capture`.
//!
//! Costs one look at an empty list per batch while nobody captures. While
//! somebody does, packets are copied before the pipeline rewrites them; a
//! reader that does not keep up loses copies, never packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use crossbeam::queue::ArrayQueue;

use crate::drops::DropReason;
use crate::frame::{Batch, Frame, Packet, Verdict};
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
    /// The one port that it is of was detached; no lane adds anything more, but
    /// for one that was too late to answer. Control writes it once, after the
    /// lanes' last copies (Release), and the reader asks for it (Acquire) before
    /// it looks at the queue for the last time.
    pub(crate) is_over: AtomicBool,
    pub(crate) alarm: Alarm,
}

impl CaptureQueue {
    pub(crate) fn new(spec: CaptureSpec, alarm: Alarm) -> CaptureQueue {
        CaptureQueue {
            spec,
            packets: ArrayQueue::new(QUEUE_PACKETS),
            lost: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
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

/// Copies of a batch on its way through a round.
///
/// A packet is copied as it comes, and again as it leaves, before its frames
/// go to the rings; it is told which way out failed before the readers get
/// anything.
#[derive(Debug)]
pub(super) struct Copies(Vec<Copied>);

#[derive(Debug)]
struct Copied {
    port: PortId,
    len: u32,
    came: Vec<u8>,
    left: Vec<u8>,
    outs: Vec<PortId>,
    drop: Option<DropReason>,
}

impl Copies {
    /// The packets of a batch as they came; none while nobody captures.
    pub(super) fn before(
        captures: &[Arc<CaptureQueue>],
        umem: &Umem,
        batch: &Batch,
    ) -> Option<Copies> {
        if captures.is_empty() {
            return None;
        }
        let copy = |(index, packet): (usize, &Packet)| Copied {
            port: packet.in_port,
            len: packet.len,
            came: bytes(umem, batch.chain(index)),
            left: Vec::new(),
            outs: Vec::new(),
            drop: None,
        };
        let packets = batch.packets().iter().enumerate();
        Some(Copies(packets.map(copy).collect()))
    }

    /// Adds what was decided, and the packets as they leave.
    pub(super) fn after(&mut self, umem: &Umem, batch: &Batch, snapshot: &Snapshot) {
        for (index, copied) in self.0.iter_mut().enumerate() {
            let packet = &batch.packets()[index];
            match packet.verdict {
                Verdict::Forward { out, .. } | Verdict::Segment { out, .. } => {
                    copied.outs.push(out);
                }
                Verdict::Tunnel { .. } => copied.outs.extend(snapshot.underlay.uplink),
                Verdict::Wait(_) => {}
                Verdict::Reply { dropped } => {
                    copied.drop = dropped;
                    copied.outs.push(packet.in_port);
                }
                Verdict::Flood { segment, .. } => {
                    let members = snapshot.segment(segment).map(|s| s.members.iter());
                    let members = members.into_iter().flatten().copied();
                    let is_target =
                        |&p: &PortId| p != packet.in_port && snapshot.may_bridge(packet.in_port, p);
                    copied.outs.extend(members.filter(is_target));
                }
                Verdict::Drop(reason) => copied.drop = Some(reason),
            }
            copied.left = match packet.verdict {
                Verdict::Drop(_) => Vec::new(),
                // Only the head frame is sent.
                Verdict::Reply { .. } => bytes(umem, batch.chain(index).take(1)),
                _ => bytes(umem, batch.chain(index)),
            };
        }
    }

    /// Packet `index` did not leave by `out`.
    pub(super) fn lost(&mut self, index: usize, out: PortId, reason: DropReason) {
        if let Some(copied) = self.0.get_mut(index) {
            copied.outs.retain(|&port| port != out);
            copied.drop = copied.drop.or(Some(reason));
        }
    }

    /// Hands the copies out.
    pub(super) fn deliver(self, captures: &[Arc<CaptureQueue>]) {
        let at = SystemTime::now();
        for copied in self.0 {
            for capture in captures {
                copied.hand_to(capture, at);
            }
        }
        captures.iter().for_each(|capture| capture.alarm.ring());
    }
}

impl Copied {
    fn hand_to(&self, capture: &CaptureQueue, at: SystemTime) {
        if capture.wants(self.port) {
            capture.push(CapturedPacket {
                at,
                port: self.port,
                direction: Direction::In,
                len: self.len,
                drop: self.drop,
                data: self.came.clone(),
            });
        }
        for &port in self.outs.iter().filter(|&&port| capture.wants(port)) {
            capture.push(CapturedPacket {
                at,
                port,
                direction: Direction::Out,
                len: self.left.len() as u32,
                drop: None,
                data: self.left.clone(),
            });
        }
    }
}

fn bytes<'a>(umem: &Umem, frames: impl Iterator<Item = &'a Frame>) -> Vec<u8> {
    let bytes = frames.flat_map(|frame| umem.bytes(frame));
    bytes.copied().collect()
}
