//! What becomes of a decided batch: every frame ends on a transmit ring or a
//! free list.

use std::iter;

use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::frame::{Awaited, Batch, Frame, LONGEST_SUPER_FRAME, Packet, TxChecksum, Verdict};
use crate::lane::capture::Copies;
use crate::lane::ports::LanePorts;
use crate::lane::together::Portioned;
use crate::lane::waiting::Waiting;
use crate::pipeline::segment::{Offload, is_super_frame, offload, segment, segment_from};
use crate::pipeline::{complete, source_port_of, wrap};
use crate::snapshot::{PortEntry, Role, Snapshot};
use crate::types::{Nanos, PortId, SegmentId, VtepId};
use crate::umem::{FramePool, OwnerTable, Umem};
use crate::wire::ethernet;
use crate::xsk::queue::Flush;

/// Longest packet that goes without a description: what IPv4's length field
/// can say. The rings take no longer one either.
pub(super) const MAX_WHOLE: u32 = u16::MAX as u32 + ethernet::HEADER_LEN as u32;

/// The last stage of a round.
pub(super) struct Emitter<'a> {
    pub(super) umem: &'a Umem,
    pub(super) snapshot: &'a Snapshot,
    pub(super) owners: &'a OwnerTable,
    pub(super) pool: &'a mut FramePool,
    pub(super) ports: &'a mut LanePorts,
    pub(super) counters: &'a LaneCounters,
    pub(super) scratch: &'a mut Batch,
    /// What leaves together in the making: headers, or all of it.
    pub(super) together: &'a mut Vec<u8>,
    /// Frames of a copy in the making; empty between packets.
    pub(super) copies: &'a mut Vec<Frame>,
    pub(super) now: Nanos,
    /// What waits for a neighbour.
    pub(super) waiting: &'a mut Waiting,
    /// Who captures learns here what did not leave.
    pub(super) captured: Option<&'a mut Copies>,
}

impl Emitter<'_> {
    /// Carries every verdict out and leaves the batch empty.
    pub(super) fn emit(mut self, batch: &mut Batch) {
        self.send_all(batch);
        batch.clear();
    }

    fn send_all(&mut self, batch: &mut Batch) {
        let mut next = 0;
        while next < batch.len() {
            let index = next;
            next += 1;
            let packet = batch.packets()[index];
            match packet.verdict {
                Verdict::Forward { out, checksum } => match self.send_run(batch, index, out) {
                    Some(packets) => next = index + packets,
                    None => self.forward(batch, index, out, checksum),
                },
                Verdict::Segment { out, mtu } => self.segment(batch, index, out, mtu),
                Verdict::Flood {
                    segment,
                    checksum,
                    mtu,
                } => self.flood(batch, index, segment, (checksum, mtu)),
                Verdict::Tunnel {
                    vtep,
                    mtu,
                    source_port,
                } => self.tunnel(
                    batch,
                    index,
                    Tunnel {
                        vtep,
                        mtu,
                        source_port,
                    },
                ),
                Verdict::Wait(awaited) => self.wait(batch, index, awaited),
                Verdict::Reply { dropped } => self.reply(batch, index, dropped),
                Verdict::Drop(reason) => self.drop(batch, index, reason),
            }
        }
    }

    fn forward(
        &mut self,
        batch: &mut Batch,
        index: usize,
        out: PortId,
        checksum: Option<TxChecksum>,
    ) {
        let packet = batch.packets()[index];
        if packet.frames > 1
            && let Some(checksum) = checksum
            && let Some(offload) = self.description(batch, index, out, checksum)
            && self.send_bulk(batch, index, out, &offload)
        {
            return self.free(batch, index);
        }
        if checksum.is_none()
            && let Some(done) = self.send_kept(batch, index, out)
        {
            return match done {
                Ok(()) => self.free(batch, index),
                Err(reason) => {
                    self.lost(index, out, reason);
                    self.drop(batch, index, reason);
                }
            };
        }
        if packet.len > MAX_WHOLE {
            let mtu = self.snapshot.port(out).map_or(0, |port| port.segment_mtu);
            // Tags take of the room, and pieces that had none would come here
            // again.
            let before = ethernet::payload(self.umem.bytes(batch.head(index)));
            let before = before.map_or(ethernet::HEADER_LEN, |(_, at)| at) as u32;
            return self.segment(batch, index, out, mtu.min(MAX_WHOLE - before));
        }
        match self.admit(batch.chain(index), out, checksum) {
            Ok(()) => self.send(batch.packets()[index].len, out, checksum, batch.take(index)),
            Err(reason) => {
                self.lost(index, out, reason);
                self.drop(batch, index, reason);
            }
        }
    }

    /// How a packet of many chunks goes to the kernel. Up to 64 KiB it goes
    /// whole, so that a pod that cannot forward it is noticed. What is longer
    /// has to be described, and goes nowhere that takes no super-frames.
    fn description(
        &self,
        batch: &Batch,
        index: usize,
        out: PortId,
        checksum: TxChecksum,
    ) -> Option<Offload> {
        if batch.packets()[index].len <= MAX_WHOLE {
            return Some(Offload {
                checksum,
                cut: None,
            });
        }
        let port = self.snapshot.port(out)?;
        let takes = port.super_frames && self.device_takes(out, batch.packets()[index].len);
        takes
            .then(|| offload(self.umem, batch, index, port.segment_mtu))
            .flatten()
    }

    fn lost(&mut self, index: usize, out: PortId, reason: DropReason) {
        if let Some(captured) = &mut self.captured {
            captured.lost(index, out, reason);
        }
    }

    /// Whether `out` takes the packet; a full ring is flushed once first.
    fn admit<'f>(
        &mut self,
        frames: impl Iterator<Item = &'f Frame> + Clone,
        out: PortId,
        checksum: Option<TxChecksum>,
    ) -> Result<(), DropReason> {
        let port = self.ports.get(out).ok_or(DropReason::PortGone)?;
        match port.queue.admits(frames.clone(), checksum) {
            Err(DropReason::TxRingFull) => {
                port.queue.flush();
                port.queue.complete(self.pool, self.owners);
                port.queue.admits(frames, checksum)
            }
            answer => answer,
        }
    }

    /// Sends frames that [`Emitter::admit`] let pass.
    fn send(
        &mut self,
        len: u32,
        out: PortId,
        checksum: Option<TxChecksum>,
        frames: impl Iterator<Item = Frame>,
    ) {
        let Some(port) = self.ports.get(out) else {
            frames.for_each(|frame| self.pool.free(frame));
            return;
        };
        port.queue.send(self.umem, self.owners, frames, checksum);
        port.counters.tx_packets.add(1);
        port.counters.tx_bytes.add(u64::from(len));
        self.counters.tx_packets.add(1);
        self.ports.mark_dirty(out);
    }

    fn segment(&mut self, batch: &mut Batch, index: usize, out: PortId, mtu: u32) {
        match self.send_pieces(batch, index, out, mtu) {
            Ok(()) => self.free(batch, index),
            Err(reason) => {
                self.lost(index, out, reason);
                self.drop(batch, index, reason);
            }
        }
    }

    /// Sends a packet in pieces of at most `mtu` bytes: by the kernel where
    /// that can, which then cuts it as late as possible, else cut here. The
    /// packet stays in the batch.
    fn send_pieces(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        mtu: u32,
    ) -> Result<(), DropReason> {
        let from = match self.send_portions(batch, index, out, mtu) {
            Portioned::Gone(done) => return done,
            Portioned::Rest(from) => from,
        };
        let mut scratch = std::mem::take(self.scratch);
        // Pieces count drops of their own; the packet itself was captured.
        let captured = self.captured.take();
        let part = (batch, index, from);
        let cut = segment_from(self.umem, self.pool, part, mtu, &mut scratch);
        for at in 0..scratch.len() {
            self.forward(&mut scratch, at, out, None);
        }
        scratch.clear();
        *self.scratch = scratch;
        self.captured = captured;
        cut
    }

    fn tunnel(&mut self, batch: &mut Batch, index: usize, way: Tunnel) {
        match self.send_through(batch, index, way) {
            Ok(()) => self.free(batch, index),
            Err(reason) => {
                if let Some(out) = self.snapshot.underlay.uplink {
                    self.lost(index, out, reason);
                }
                self.drop(batch, index, reason);
            }
        }
    }

    /// Sends a packet through the overlay in pieces, each behind outer headers
    /// of its own. The packet stays in the batch.
    fn send_through(&mut self, batch: &Batch, index: usize, way: Tunnel) -> Result<(), DropReason> {
        if let Some(done) = self.send_gathered(batch, index, way) {
            return done;
        }
        let mut scratch = std::mem::take(self.scratch);
        let captured = self.captured.take();
        let cut = segment(self.umem, self.pool, batch, index, way.mtu, &mut scratch);
        for at in 0..scratch.len() {
            let verdict = self.wrap(&mut scratch, at, way);
            scratch.decide(at, verdict);
        }
        self.send_all(&mut scratch);
        scratch.clear();
        *self.scratch = scratch;
        self.captured = captured;
        cut
    }

    /// Puts the outer headers before a packet that fits.
    fn wrap(&self, batch: &mut Batch, index: usize, way: Tunnel) -> Verdict {
        let snapshot = self.snapshot;
        let (vtep, out) = (snapshot.vtep(way.vtep), snapshot.underlay.uplink);
        let (Some(vtep), Some(out)) = (vtep, out) else {
            return Verdict::Drop(DropReason::PortGone);
        };
        if !snapshot.is_resolved(vtep) {
            return Verdict::Drop(DropReason::NeighborUnresolved);
        }
        let checksum = None;
        match wrap(self.umem, batch, index, vtep, way.source_port) {
            Ok(()) => Verdict::Forward { out, checksum },
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Sends a copy of a flooded packet to a remote end of its segment.
    fn replicate(
        &mut self,
        batch: &Batch,
        index: usize,
        vtep: VtepId,
        (length, checksum): (Length, Option<TxChecksum>),
    ) -> Result<(), DropReason> {
        let packet = batch.packets()[index];
        let from = self.snapshot.port(packet.in_port);
        let to = self.snapshot.vtep(vtep).ok_or(DropReason::PortGone)?;
        let mut way = Tunnel {
            vtep,
            mtu: from.map_or(to.mtu, |from| from.mtu.min(to.mtu)),
            source_port: source_port_of(self.umem.bytes(batch.head(index))),
        };
        if length.network > way.mtu.min(length.longest) {
            way.mtu = match length.is_super_frame {
                true => way.mtu.min(length.longest),
                false => return Err(DropReason::Oversize),
            };
            return self.send_through(batch, index, way);
        }
        self.copy(batch, index)?;
        let mut scratch = std::mem::take(self.scratch);
        scratch.push(packet.in_port, self.copies.drain(..));
        if let Some(field) = checksum {
            complete(self.umem, &mut scratch, 0, field);
        }
        let verdict = self.wrap(&mut scratch, 0, way);
        scratch.decide(0, verdict);
        self.send_all(&mut scratch);
        scratch.clear();
        *self.scratch = scratch;
        Ok(())
    }

    /// Keeps a packet until its neighbour is resolved.
    fn wait(&mut self, batch: &mut Batch, index: usize, awaited: Awaited) {
        let packet = batch.packets()[index];
        match self.waiting.admit(awaited) {
            Ok(()) => {
                let generation = self.snapshot.generation;
                self.waiting.keep(&packet, batch.take(index), generation);
            }
            Err(reason) => self.drop(batch, index, reason),
        }
    }

    /// Whether a packet of `len` bytes of frame fits the far end's device.
    pub(super) fn device_takes(&self, out: PortId, len: u32) -> bool {
        let Some(port) = self.snapshot.port(out) else {
            return false;
        };
        let is_pod = matches!(port.role, Role::Pod | Role::SegmentPod(_));
        let longest = match port.device_mtu + ethernet::HEADER_LEN as u32 {
            // Made for whatever a pod's TCP sends at once.
            MAX_WHOLE if is_pod => LONGEST_SUPER_FRAME as u32,
            longest => longest,
        };
        len <= longest
    }

    /// Sends a packet of many chunks by the port's packet socket; `false` when
    /// that does not take it.
    fn send_bulk(&mut self, batch: &Batch, index: usize, out: PortId, offload: &Offload) -> bool {
        let Some(port) = self.ports.get(out) else {
            return false;
        };
        let Some(bulk) = &port.bulk else {
            return false;
        };
        // What was written to the ring before must not be overtaken.
        if port.dirty && port.queue.flush() != Flush::Sent {
            return false;
        }
        let umem = self.umem;
        // Longer ones the lane has just copied itself.
        if batch.packets()[index].len <= MAX_WHOLE {
            batch
                .chain(index)
                .for_each(|frame| umem.prefetch_whole(frame));
        }
        let pieces = batch.chain(index).map(|frame| umem.bytes(frame));
        if bulk.send(pieces, offload).is_err() {
            return false;
        }
        self.count_sent(out, 1, u64::from(batch.packets()[index].len));
        true
    }

    fn flood(
        &mut self,
        batch: &mut Batch,
        index: usize,
        segment: SegmentId,
        (checksum, mtu): (Option<TxChecksum>, u16),
    ) {
        let snapshot = self.snapshot;
        let Some(segment) = snapshot.segment(segment) else {
            return self.drop(batch, index, DropReason::NoSegment);
        };
        let packet = batch.packets()[index];
        let length = Length::of(self.umem, batch, index, (checksum, mtu));
        let from = snapshot.port(packet.in_port);
        let is_from_overlay = packet.vtep.is_some();
        for &vtep in segment.vteps.iter().filter(|_| !is_from_overlay) {
            if let Err(reason) = self.replicate(batch, index, vtep, (length, checksum)) {
                self.count_drop(&packet, reason);
            }
        }
        let mut targets = segment
            .members
            .iter()
            .copied()
            .filter(|&port| port != packet.in_port && snapshot.may_bridge(packet.in_port, port))
            .peekable();
        while let Some(out) = targets.next() {
            let is_last = targets.peek().is_none();
            let is_uplink = snapshot.underlay.uplink == Some(out);
            let sent = match (length.delivery(from, snapshot.port(out)), checksum) {
                (Delivery::Whole, Some(field)) if is_uplink => {
                    self.send_complete(batch, index, out, field)
                }
                // The last one gets the packet itself.
                (Delivery::Whole, _) if is_last => {
                    return self.forward(batch, index, out, checksum);
                }
                (Delivery::Whole, _) => self.send_copy(batch, index, out, checksum),
                (Delivery::Pieces(mtu), _) => self.send_pieces(batch, index, out, mtu),
                (Delivery::TooLong, _) => Err(DropReason::Oversize),
            };
            if let Err(reason) = sent {
                self.lost(index, out, reason);
                self.count_drop(&packet, reason);
            }
        }
        self.free(batch, index);
    }

    fn send_copy(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        checksum: Option<TxChecksum>,
    ) -> Result<(), DropReason> {
        self.admit(batch.chain(index), out, checksum)?;
        self.copy(batch, index)?;
        let mut frames = std::mem::take(self.copies);
        self.send(batch.packets()[index].len, out, checksum, frames.drain(..));
        *self.copies = frames;
        Ok(())
    }

    /// Sends a copy whose checksum no device beyond the node is to finish.
    fn send_complete(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        field: TxChecksum,
    ) -> Result<(), DropReason> {
        self.copy(batch, index)?;
        let mut scratch = std::mem::take(self.scratch);
        scratch.push(batch.packets()[index].in_port, self.copies.drain(..));
        complete(self.umem, &mut scratch, 0, field);
        self.forward(&mut scratch, 0, out, None);
        scratch.clear();
        *self.scratch = scratch;
        Ok(())
    }

    /// Copies a packet into fresh frames in `copies`, whole or not at all.
    fn copy(&mut self, batch: &Batch, index: usize) -> Result<(), DropReason> {
        for frame in batch.chain(index) {
            let copy = self.pool.alloc().and_then(|mut copy| {
                if copy.resize(frame.len()) {
                    return Some(copy);
                }
                self.pool.free(copy);
                None
            });
            let Some(mut copy) = copy else {
                self.copies
                    .drain(..)
                    .for_each(|frame| self.pool.free(frame));
                return Err(DropReason::NoFrames);
            };
            self.umem
                .bytes_mut(&mut copy)
                .copy_from_slice(self.umem.bytes(frame));
            self.copies.push(copy);
        }
        Ok(())
    }

    fn reply(&mut self, batch: &mut Batch, index: usize, dropped: Option<DropReason>) {
        let packet = batch.packets()[index];
        if let Some(reason) = dropped {
            self.count_drop(&packet, reason);
        }
        let admitted = self.admit(iter::once(batch.head(index)), packet.in_port, None);
        let mut frames = batch.take(index);
        let head = frames.next();
        frames.for_each(|frame| self.pool.free(frame));
        let Some(head) = head else { return };
        match admitted {
            Ok(()) => self.send(head.len() as u32, packet.in_port, None, iter::once(head)),
            Err(reason) => {
                self.pool.free(head);
                self.lost(index, packet.in_port, reason);
                // One packet came, so one drop at most.
                if dropped.is_none() {
                    self.count_drop(&packet, reason);
                }
            }
        }
    }

    fn drop(&mut self, batch: &mut Batch, index: usize, reason: DropReason) {
        self.count_drop(&batch.packets()[index], reason);
        self.free(batch, index);
    }

    pub(super) fn count_drop(&mut self, packet: &Packet, reason: DropReason) {
        self.counters.drops[reason.index()].add(1);
        if let Some(port) = self.ports.get(packet.in_port) {
            port.counters.drops.add(1);
        }
    }

    pub(super) fn free(&mut self, batch: &mut Batch, index: usize) {
        batch.take(index).for_each(|frame| self.pool.free(frame));
    }
}

/// A way through the overlay.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tunnel {
    pub(super) vtep: VtepId,
    /// Longest inner IP packet.
    pub(super) mtu: u32,
    pub(super) source_port: u16,
}

/// How a member of a segment gets a flooded packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Whole,
    /// In segments of at most so many bytes of IP packet.
    Pieces(u32),
    /// Not at all: a bridge does not cut what its sender did not leave to it.
    TooLong,
}

/// What of a flooded packet decides how each member gets it.
#[derive(Debug, Clone, Copy)]
struct Length {
    /// Bytes behind the Ethernet header.
    network: u32,
    is_super_frame: bool,
    /// Bytes of IP packet that its receiver and path are known to take, for
    /// a super-frame that is cut.
    longest: u32,
}

impl Length {
    fn of(
        umem: &Umem,
        batch: &Batch,
        index: usize,
        (checksum, mtu): (Option<TxChecksum>, u16),
    ) -> Length {
        let head = umem.bytes(batch.head(index));
        let header = ethernet::payload(head).map_or(0, |(_, at)| at as u32);
        Length {
            network: batch.packets()[index].len.saturating_sub(header),
            is_super_frame: checksum.is_some()
                && is_super_frame(head, batch.packets()[index].len as usize),
            longest: u32::from(mtu),
        }
    }

    /// As the bridge decides for a known destination. A port that the
    /// snapshot lacks is left to the look-up of its queue.
    fn delivery(self, from: Option<&PortEntry>, out: Option<&PortEntry>) -> Delivery {
        let (Some(from), Some(out)) = (from, out) else {
            return Delivery::Whole;
        };
        let mtu = from.mtu.min(out.mtu).min(self.longest);
        if self.network <= mtu || (self.is_super_frame && out.super_frames) {
            Delivery::Whole
        } else if self.is_super_frame {
            Delivery::Pieces(out.segment_mtu.min(mtu))
        } else {
            Delivery::TooLong
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MacAddr;

    fn member(mtu: u32, segment_mtu: u32, super_frames: bool) -> PortEntry {
        PortEntry {
            id: PortId(1),
            role: Role::SegmentPod(SegmentId(0)),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: Vec::new(),
            mtu,
            super_frames,
            device_mtu: mtu,
            segment_mtu,
            partial_checksums: true,
        }
    }

    #[test]
    fn each_member_gets_a_flooded_packet_as_it_takes_it() {
        let from = member(1500, 1500, true);
        let delivered = |network, (is_super_frame, longest), out: &PortEntry| {
            let length = Length {
                network,
                is_super_frame,
                longest,
            };
            length.delivery(Some(&from), Some(out))
        };
        let delivery = |network, is_super_frame, out| {
            delivered(network, (is_super_frame, u32::from(u16::MAX)), out)
        };
        let (takes, plain, small) = (
            member(1500, 1500, true),
            member(1500, 1400, false),
            member(1300, 1300, false),
        );
        assert_eq!(delivery(64_000, true, &takes), Delivery::Whole);
        assert_eq!(delivery(64_000, true, &plain), Delivery::Pieces(1400));
        assert_eq!(delivery(64_000, true, &small), Delivery::Pieces(1300));
        assert_eq!(delivery(1500, true, &plain), Delivery::Whole);
        assert_eq!(delivery(1501, true, &plain), Delivery::Pieces(1400));
        assert_eq!(delivery(1300, false, &small), Delivery::Whole);
        assert_eq!(delivery(1301, false, &small), Delivery::TooLong);
        // Longer than the sender's own path, cut to what that takes.
        let jumbo = member(9000, 9000, false);
        assert_eq!(delivery(64_000, true, &jumbo), Delivery::Pieces(1500));
        // To somebody who is known to take less.
        let known = |out| delivered(64_000, (true, 1350), out);
        assert_eq!(known(&plain), Delivery::Pieces(1350));
        assert_eq!(known(&small), Delivery::Pieces(1300));
        assert_eq!(known(&takes), Delivery::Whole);
    }
}
