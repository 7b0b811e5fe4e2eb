//! Copies of packets for `spinlane capture`.
//!
//! Costs one look at an empty list per batch while nobody captures. While
//! somebody does, packets are copied before the pipeline rewrites them; a
//! reader that does not keep up loses copies, never packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
const QUEUE_BYTES: usize = 64 << 20;

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
    /// Bytes of those.
    bytes: AtomicUsize,
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
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            alarm,
        }
    }

    fn wants(&self, port: PortId) -> bool {
        self.spec.port.is_none_or(|wanted| wanted == port)
    }

    fn push(&self, packet: CapturedPacket) {
        let len = packet.data.len();
        // Relaxed: a bound that lanes may pass by a packet each, and a statistic.
        let is_full = self.bytes.fetch_add(len, Ordering::Relaxed) > QUEUE_BYTES;
        if is_full || self.packets.push(packet).is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next packet that waits.
    pub(crate) fn pop(&self) -> Option<CapturedPacket> {
        let packet = self.packets.pop()?;
        self.bytes.fetch_sub(packet.data.len(), Ordering::Relaxed);
        Some(packet)
    }

    /// What is kept of a packet.
    fn cut(&self, data: &[u8]) -> Vec<u8> {
        data[..data.len().min(self.spec.snaplen)].to_vec()
    }
}

/// Copies of a batch on its way through a round.
///
/// A packet is copied as it comes, and again as it leaves, before its frames
/// go to the rings; it is told which way out failed before the readers get
/// anything.
#[derive(Debug)]
pub(super) struct Copies {
    copies: Vec<Copied>,
    /// Bytes that any reader wants of a packet.
    snaplen: usize,
}

#[derive(Debug)]
struct Copied {
    port: PortId,
    len: u32,
    came: Vec<u8>,
    left: Vec<u8>,
    /// Bytes that left.
    left_len: u32,
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
        let snaplen = captures.iter().map(|capture| capture.spec.snaplen).max()?;
        let copy = |(index, packet): (usize, &Packet)| Copied {
            port: packet.in_port,
            len: packet.len,
            came: bytes(umem, batch.chain(index), snaplen),
            left: Vec::new(),
            left_len: 0,
            outs: Vec::new(),
            drop: None,
        };
        let packets = batch.packets().iter().enumerate();
        let copies = packets.map(copy).collect();
        Some(Copies { copies, snaplen })
    }

    /// Adds what was decided, and the packets as they leave.
    pub(super) fn after(&mut self, umem: &Umem, batch: &Batch, snapshot: &Snapshot) {
        for (index, copied) in self.copies.iter_mut().enumerate() {
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
            let (frames, len) = match packet.verdict {
                Verdict::Drop(_) => (0, 0),
                // Only the head frame is sent.
                Verdict::Reply { .. } => (1, umem.bytes(batch.head(index)).len() as u32),
                _ => (usize::MAX, packet.len),
            };
            copied.left = bytes(umem, batch.chain(index).take(frames), self.snaplen);
            copied.left_len = len;
        }
    }

    /// Packet `index` did not leave by `out`.
    pub(super) fn lost(&mut self, index: usize, out: PortId, reason: DropReason) {
        if let Some(copied) = self.copies.get_mut(index) {
            copied.outs.retain(|&port| port != out);
            copied.drop = copied.drop.or(Some(reason));
        }
    }

    /// Hands the copies out.
    pub(super) fn deliver(self, captures: &[Arc<CaptureQueue>]) {
        let at = SystemTime::now();
        for copied in self.copies {
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
                data: capture.cut(&self.came),
            });
        }
        for &port in self.outs.iter().filter(|&&port| capture.wants(port)) {
            capture.push(CapturedPacket {
                at,
                port,
                direction: Direction::Out,
                len: self.left_len,
                drop: None,
                data: capture.cut(&self.left),
            });
        }
    }
}

/// The first bytes of a packet.
fn bytes<'a>(umem: &Umem, frames: impl Iterator<Item = &'a Frame>, most: usize) -> Vec<u8> {
    let mut copy = Vec::new();
    for frame in frames {
        let bytes = umem.bytes(frame);
        copy.extend_from_slice(&bytes[..bytes.len().min(most - copy.len())]);
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_does_not_read_costs_so_much_memory_and_no_more() {
        let spec = CaptureSpec {
            port: None,
            snaplen: 1 << 20,
        };
        let queue = CaptureQueue::new(spec, Alarm::new().unwrap());
        let long = vec![7; 2 << 20];
        let push = || {
            queue.push(CapturedPacket {
                at: SystemTime::UNIX_EPOCH,
                port: PortId(1),
                direction: Direction::In,
                len: long.len() as u32,
                drop: None,
                data: queue.cut(&long),
            });
        };
        for _ in 0..100 {
            push();
        }
        let kept = queue.packets.len();
        assert!((64..=66).contains(&kept), "{kept}");
        assert_eq!(queue.lost.load(Ordering::Relaxed), 100 - kept as u64);
        while let Some(packet) = queue.pop() {
            assert_eq!(packet.data.len(), spec.snaplen);
        }
        push();
        assert_eq!(queue.packets.len(), 1, "there is room again");
    }
}
