//! What leaves together: runs of datagrams, and super-frames by the uplink,
//! through the overlay or without.

use std::io;
use std::iter;
use std::ops::Range;

use crate::drops::DropReason;
use crate::frame::Batch;
use crate::lane::emit::{Emitter, MAX_WHOLE, Tunnel};
use crate::pipeline::datagrams::{self, Taken};
use crate::pipeline::gather::SuperFrame;
use crate::pipeline::portions::{self, Portions};
use crate::types::PortId;
use crate::umem::Umem;
use crate::uplink_way::{UplinkWay, tcp_mark};
use crate::wire::{ethernet, ipv4, ipv6, protocol};
use crate::xsk::queue::Flush;

/// Bytes of datagrams up to which the kernel keeps them in one piece, whose
/// parts it copies when it cuts them. Longer ones it had better refer to; and
/// pieces of up to 16 KiB it always finds.
const IN_ONE_PIECE: usize = 15 << 10;

/// Bytes of a run, up to which one copy more is cheaper than the kernel's
/// fetching it piece by piece.
const TOGETHER: usize = 4 << 10;

impl Emitter<'_> {
    /// Sends packet `index` together with what continues it, where the port
    /// takes that, and says how many packets went.
    pub(super) fn send_run(
        &mut self,
        batch: &mut Batch,
        index: usize,
        out: PortId,
    ) -> Option<usize> {
        let (umem, now) = (self.umem, self.now);
        let port = self.ports.get(out)?;
        let vxlan_port = self.snapshot.underlay.vxlan_port;
        let (taken, socket) = match (self.snapshot.port(out)?.super_frames, &port.overlay) {
            (true, _) => (Taken::Any, port.bulk.as_ref()?),
            (false, Some(way)) => (Taken::Overlay(vxlan_port), &way.socket),
            (false, None) => return None,
        };
        let run = datagrams::run(umem, batch, index, (out, taken))?;
        let source_port = match taken {
            Taken::Overlay(_) => source_port(run.headers(), vxlan_port),
            Taken::Any => None,
        };
        let keeps = |source_port| {
            let way = port.overlay.as_ref();
            way.is_some_and(|way| way.keeps(source_port, now))
        };
        let is_kept = source_port.is_some_and(keeps);
        let way = port.overlay.as_ref().filter(|_| source_port.is_some());
        let len = batch.packets()[index].len;
        if way.is_some_and(|way| !is_kept && !way.is_for(run.packets, len)) {
            return None;
        }
        let may_have_begun = |error: &_| way.is_some_and(|way| way.may_have_begun(error));
        // What was written to the ring before must not be overtaken.
        if !is_kept && port.dirty && port.queue.flush() != Flush::Sent {
            return None;
        }
        let members = index..index + run.packets;
        let payloads = members.clone().map(|at| run.payload(umem, batch, at));
        let pieces = iter::once(run.headers()).chain(payloads);
        let sent = match way {
            Some(_) if run.packets * len as usize <= IN_ONE_PIECE => {
                self.together.clear();
                pieces.for_each(|piece| self.together.extend_from_slice(piece));
                socket.send_in_one_piece(self.together, &run.offload)
            }
            None if run.packets * len as usize <= TOGETHER => {
                self.together.clear();
                pieces.for_each(|piece| self.together.extend_from_slice(piece));
                socket.send(iter::once(self.together.as_slice()), &run.offload)
            }
            _ => socket.send(pieces, &run.offload),
        };
        let is_lost = match sent {
            Ok(()) => false,
            Err(error) if is_kept || may_have_begun(&error) => true,
            Err(_) => return None,
        };
        if let (Some(way), Some(source_port)) = (&mut port.overlay, source_port) {
            way.went(source_port, now);
        }
        self.count_run(batch, members.clone(), out, is_lost);
        for at in members {
            umem.demote(batch.head(at));
            self.free(batch, at);
        }
        Some(run.packets)
    }

    fn count_run(&mut self, batch: &Batch, members: Range<usize>, out: PortId, is_lost: bool) {
        let packets = &batch.packets()[members];
        match is_lost {
            true => packets
                .iter()
                .for_each(|packet| self.count_drop(packet, DropReason::TxRingFull)),
            false => {
                let bytes = packets.iter().map(|packet| u64::from(packet.len)).sum();
                self.count_sent(out, packets.len(), bytes);
            }
        }
    }

    pub(super) fn count_sent(&mut self, out: PortId, packets: usize, bytes: u64) {
        if let Some(port) = self.ports.get(out) {
            port.counters.tx_packets.add(packets as u64);
            port.counters.tx_bytes.add(bytes);
        }
        self.counters.tx_packets.add(packets as u64);
    }

    /// Sends a super-frame through the overlay as it lies, cut by the kernel
    /// or the device; `None` when it has to be cut here.
    pub(super) fn send_gathered(
        &mut self,
        batch: &Batch,
        index: usize,
        way: Tunnel,
    ) -> Option<Result<(), DropReason>> {
        let (umem, snapshot) = (self.umem, self.snapshot);
        let (vtep, out) = (snapshot.vtep(way.vtep)?, snapshot.underlay.uplink?);
        if !snapshot.is_resolved(vtep) {
            return None;
        }
        let over = (&vtep.outer, way.source_port);
        let mut super_frame = SuperFrame::of(umem, batch, index, way.mtu, over)?;
        let port = self.ports.get(out)?;
        let overlay = port.overlay.as_mut()?;
        let is_kept = overlay.keeps(way.source_port, self.now);
        // What was written to the ring before must not be overtaken.
        if !is_kept && port.dirty && port.queue.flush() != Flush::Sent {
            return None;
        }
        prefetch(umem, batch, index);
        let sent = in_parts(overlay, is_kept, || {
            let together = super_frame.next(self.together)?;
            let done = overlay.socket.send_gathered(&together);
            Some((done, together.packets, together.bytes))
        })?;
        overlay.went(way.source_port, self.now);
        Some(self.count_parts(out, &sent))
    }

    /// Sends a super-frame by the uplink as it lies, cut by the device or the
    /// kernel, as far as they take it.
    pub(super) fn send_portions(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        mtu: u32,
    ) -> Portioned {
        self.try_portions(batch, index, out, mtu)
            .unwrap_or(Portioned::Rest(0))
    }

    fn try_portions(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        mtu: u32,
    ) -> Option<Portioned> {
        let umem = self.umem;
        let port = self.ports.get(out)?;
        let Some(way) = port.segments.as_mut() else {
            return self.portions_to_pod(batch, index, out, mtu);
        };
        let mark = tcp_mark(umem.bytes(batch.head(index)))?;
        let mut portions = Portions::of(umem, batch, index, mtu)?;
        // What has to be behind what waits there.
        let is_kept = way.may_wait() && way.keeps(mark, self.now);
        // What was written to the ring before must not be overtaken.
        if !is_kept && port.dirty && port.queue.flush() != Flush::Sent {
            way.forget(mark);
            return None;
        }
        prefetch(umem, batch, index);
        let offload = *portions.offload();
        let mut rest = None;
        let sent = in_parts(way, is_kept, || {
            let from = portions.sent();
            let portion = portions.next(self.together)?;
            match way.socket.send(portion.pieces(), &offload) {
                // The device is full; nothing of this portion has left.
                Err(_) if !way.may_wait() => {
                    rest = Some(from);
                    None
                }
                done => Some((done, portion.packets, portion.bytes)),
            }
        })?;
        match rest {
            // From here on the ring takes it, so that nothing is overtaken.
            Some(_) => way.forget(mark),
            None => way.went(mark, self.now),
        }
        let done = self.count_parts(out, &sent);
        Some(rest.map_or(Portioned::Gone(done), Portioned::Rest))
    }

    /// As [`Emitter::send_portions`], to a pod that forwards. The device that
    /// its kernel passes a packet on by takes a portion whole; what is longer
    /// the kernel would cut before. The node's kernel gets portions of what its
    /// port takes nothing of whole, too.
    fn portions_to_pod(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
        mtu: u32,
    ) -> Option<Portioned> {
        let (umem, len) = (self.umem, batch.packets()[index].len);
        if !self.device_takes(out, len.min(portions::LONGEST as u32)) {
            return None;
        }
        let port = self.ports.get(out)?;
        let bulk = port.bulk.as_ref()?;
        let mut portions = Portions::of(umem, batch, index, mtu)?;
        // What was written to the ring before must not be overtaken.
        if port.dirty && port.queue.flush() != Flush::Sent {
            return None;
        }
        prefetch(umem, batch, index);
        let offload = *portions.offload();
        let (mut packets, mut bytes) = (0, 0);
        let done = loop {
            let from = portions.sent();
            let Some(portion) = portions.next(self.together) else {
                break Portioned::Gone(Ok(()));
            };
            if bulk.send(portion.pieces(), &offload).is_err() {
                break Portioned::Rest(from);
            }
            packets += 1;
            bytes += portion.len() as u64;
        };
        self.count_sent(out, packets, bytes);
        Some(done)
    }

    fn count_parts(&mut self, out: PortId, sent: &Sent) -> Result<(), DropReason> {
        self.count_sent(out, sent.packets, sent.bytes);
        match sent.is_lost {
            false => Ok(()),
            true => Err(DropReason::TxRingFull),
        }
    }

    /// Sends a packet after others of its flow that left together; `None` when
    /// there are none.
    pub(super) fn send_kept(
        &mut self,
        batch: &Batch,
        index: usize,
        out: PortId,
    ) -> Option<Result<(), DropReason>> {
        let underlay = &self.snapshot.underlay;
        if underlay.uplink != Some(out) {
            return None;
        }
        let port = self.ports.get(out)?;
        let (umem, now) = (self.umem, self.now);
        let head = umem.bytes(batch.head(index));
        let (way, mark) = match tcp_mark(head) {
            Some(mark) => (port.segments.as_mut()?, mark),
            None => (
                port.overlay.as_mut()?,
                source_port(head, underlay.vxlan_port)?,
            ),
        };
        if !way.keeps(mark, now) {
            return None;
        }
        let pieces = batch.chain(index).map(|frame| umem.bytes(frame));
        match way.socket.send_complete(pieces) {
            Ok(()) => {
                self.count_sent(out, 1, u64::from(batch.packets()[index].len));
                Some(Ok(()))
            }
            Err(_) if way.may_wait() => Some(Err(DropReason::TxRingFull)),
            // Nothing waits, so the ring may take it, and what follows.
            Err(_) => {
                way.forget(mark);
                None
            }
        }
    }
}

/// What became of a super-frame.
pub(super) enum Portioned {
    /// It left, or was lost.
    Gone(Result<(), DropReason>),
    /// From this byte of its payload on it has to be cut here.
    Rest(usize),
}

/// What left of a packet that went in parts.
#[derive(Default)]
struct Sent {
    packets: usize,
    bytes: u64,
    /// Not all of it.
    is_lost: bool,
}

/// Sends the parts of a packet. `send` sends the next one and says how that
/// went, and how many packets and bytes it is. `None` when nothing has left and
/// nothing waits, so that the ring may take it.
fn in_parts(
    way: &UplinkWay,
    is_kept: bool,
    mut send: impl FnMut() -> Option<(io::Result<()>, usize, u64)>,
) -> Option<Sent> {
    let mut sent = Sent::default();
    while let Some((done, packets, bytes)) = send() {
        match done {
            Ok(()) => {
                sent.packets += packets;
                sent.bytes += bytes;
            }
            Err(error) => {
                let has_begun = sent.packets > 0 || sent.is_lost || way.may_have_begun(&error);
                if !is_kept && !has_begun {
                    return None;
                }
                sent.is_lost = true;
            }
        }
    }
    Some(sent)
}

/// Asks for a packet's bytes ahead of the kernel's copy.
fn prefetch(umem: &Umem, batch: &Batch, index: usize) {
    // Longer ones the lane has just copied itself.
    if batch.packets()[index].len <= MAX_WHOLE {
        batch
            .chain(index)
            .for_each(|frame| umem.prefetch_whole(frame));
    }
}

/// The UDP source port of a packet of the overlay.
fn source_port(frame: &[u8], vxlan_port: u16) -> Option<u16> {
    const V4: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
    const V6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
    let udp = match (frame.get(12..15)?, frame.get(20)?, frame.get(23)?) {
        ([0x08, 0x00, 0x45], _, &protocol::UDP) => V4,
        ([0x86, 0xdd, _], &protocol::UDP, _) => V6,
        _ => return None,
    };
    let &[a, b, c, d] = frame.get(udp..udp + 4)? else {
        return None;
    };
    (u16::from_be_bytes([c, d]) == vxlan_port).then(|| u16::from_be_bytes([a, b]))
}
