//! What becomes of a decided batch: every frame ends on a transmit ring or a
//! free list.

use std::iter;

use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::frame::{Batch, Frame, Packet, TxChecksum, Verdict};
use crate::lane::ports::LanePorts;
use crate::pipeline::segment::{Offload, offload, segment};
use crate::snapshot::Snapshot;
use crate::types::{PortId, SegmentId};
use crate::umem::{FramePool, OwnerTable, Umem};
use crate::xsk::queue::Flush;

/// The last stage of a round.
pub(super) struct Emitter<'a> {
    pub(super) umem: &'a Umem,
    pub(super) owners: &'a OwnerTable,
    pub(super) pool: &'a mut FramePool,
    pub(super) ports: &'a mut LanePorts,
    pub(super) counters: &'a LaneCounters,
    pub(super) scratch: &'a mut Batch,
    /// Frames of a copy in the making; empty between packets.
    pub(super) copies: &'a mut Vec<Frame>,
}

impl Emitter<'_> {
    /// Carries every verdict out and leaves the batch empty.
    pub(super) fn emit(mut self, batch: &mut Batch, snapshot: &Snapshot) {
        self.counters.rx_packets.add(batch.len() as u64);
        for index in 0..batch.len() {
            let packet = batch.packets()[index];
            match packet.verdict {
                Verdict::Forward { out, checksum } => self.forward(batch, index, out, checksum),
                Verdict::Segment { out, mtu } => self.segment(batch, index, out, mtu),
                Verdict::Flood { segment, checksum } => {
                    self.flood(batch, index, snapshot, segment, checksum);
                }
                Verdict::Reply { dropped } => self.reply(batch, index, dropped),
                Verdict::Drop(reason) => self.drop(batch, index, reason),
            }
        }
        batch.clear();
    }

    fn forward(
        &mut self,
        batch: &mut Batch,
        index: usize,
        out: PortId,
        checksum: Option<TxChecksum>,
    ) {
        if batch.packets()[index].frames > 1
            && let Some(checksum) = checksum
            && self.send_bulk(
                batch,
                index,
                out,
                &Offload {
                    checksum,
                    cut: None,
                },
            )
        {
            return self.free(batch, index);
        }
        match self.admit(batch, index, out, checksum) {
            Ok(()) => self.send(batch.packets()[index].len, out, checksum, batch.take(index)),
            Err(reason) => self.drop(batch, index, reason),
        }
    }

    /// Whether `out` takes the packet; a full ring is flushed once first.
    fn admit(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        checksum: Option<TxChecksum>,
    ) -> Result<(), DropReason> {
        let port = self.ports.get(out).ok_or(DropReason::PortGone)?;
        match port.queue.admits(batch.chain(index), checksum) {
            Err(DropReason::TxRingFull) => {
                port.queue.flush();
                port.queue.complete(self.pool, self.owners);
                port.queue.admits(batch.chain(index), checksum)
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

    /// Sends a packet in pieces of at most `mtu` bytes: by the kernel where
    /// that can, which then cuts it as late as possible, else cut here.
    fn segment(&mut self, batch: &mut Batch, index: usize, out: PortId, mtu: u32) {
        if let Some(offload) = offload(self.umem, batch, index, mtu)
            && self.send_bulk(batch, index, out, &offload)
        {
            return self.free(batch, index);
        }
        let mut scratch = std::mem::take(self.scratch);
        match segment(self.umem, self.pool, batch, index, mtu, &mut scratch) {
            Ok(()) => {
                for at in 0..scratch.len() {
                    self.forward(&mut scratch, at, out, None);
                }
                self.free(batch, index);
            }
            Err(reason) => self.drop(batch, index, reason),
        }
        scratch.clear();
        *self.scratch = scratch;
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
        if bulk.send(self.umem, batch.chain(index), offload).is_err() {
            return false;
        }
        port.counters.tx_packets.add(1);
        port.counters
            .tx_bytes
            .add(u64::from(batch.packets()[index].len));
        self.counters.tx_packets.add(1);
        true
    }

    fn flood(
        &mut self,
        batch: &mut Batch,
        index: usize,
        snapshot: &Snapshot,
        segment: SegmentId,
        checksum: Option<TxChecksum>,
    ) {
        let Some(segment) = snapshot.segment(segment) else {
            return self.drop(batch, index, DropReason::NoSegment);
        };
        let from = batch.packets()[index].in_port;
        let mut targets = segment
            .members
            .iter()
            .copied()
            .filter(|&port| port != from)
            .peekable();
        if targets.peek().is_none() {
            return self.free(batch, index);
        }
        while let Some(out) = targets.next() {
            // The last one gets the packet itself.
            if targets.peek().is_none() {
                return self.forward(batch, index, out, checksum);
            }
            let copied = self
                .admit(batch, index, out, checksum)
                .and_then(|()| self.copy(batch, index));
            match copied {
                Ok(()) => {
                    let mut frames = std::mem::take(self.copies);
                    self.send(batch.packets()[index].len, out, checksum, frames.drain(..));
                    *self.copies = frames;
                }
                Err(reason) => self.count_drop(&batch.packets()[index], reason),
            }
        }
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
        let Some(port) = self.ports.get(packet.in_port) else {
            return self.free(batch, index);
        };
        let sent = port.queue.admits(iter::once(batch.head(index)), None);
        let mut frames = batch.take(index);
        let head = frames.next();
        frames.for_each(|frame| self.pool.free(frame));
        match (head, sent) {
            (Some(head), Ok(())) => {
                self.send(head.len() as u32, packet.in_port, None, iter::once(head));
            }
            (Some(head), Err(reason)) => {
                self.pool.free(head);
                self.count_drop(&packet, reason);
            }
            (None, _) => {}
        }
    }

    fn drop(&mut self, batch: &mut Batch, index: usize, reason: DropReason) {
        self.count_drop(&batch.packets()[index], reason);
        self.free(batch, index);
    }

    fn count_drop(&mut self, packet: &Packet, reason: DropReason) {
        self.counters.drops[reason.index()].add(1);
        if let Some(port) = self.ports.get(packet.in_port) {
            port.counters.drops.add(1);
        }
    }

    fn free(&mut self, batch: &mut Batch, index: usize) {
        batch.take(index).for_each(|frame| self.pool.free(frame));
    }
}
