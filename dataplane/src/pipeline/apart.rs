//! Takes datagrams of the overlay apart that came by the uplink as one packet:
//! their sender left it to its device to cut them, and no device on the way
//! had to (veths between nodes on one machine; the kernel itself merges
//! nothing before an XDP program, `netif_elide_gro`). The outer lengths are
//! then those of all together:
//!
//! ```text
//! | outer headers | VXLAN, inner frame | VXLAN, inner frame | … |
//! ```
//!
//! All parts are of one length but the last, which may be shorter; nothing
//! says how long they are but the first inner packet.
//!
//! It stands between the receive ring and `process`. Each datagram leaves it
//! as a packet of its own, outer headers and all; segments of one TCP
//! connection in sequence leave it as one super-frame with a partial checksum,
//! by the rules of [`super::coalesce`], their own checksums verified.

use crate::drops::DropReason;
use crate::frame::{Batch, Packet, Verdict};
use crate::pipeline::chain::{RunningSum, Source};
use crate::pipeline::coalesce::{self, Headers, Line};
use crate::pipeline::overlay;
use crate::snapshot::{Role, Snapshot, Underlay};
use crate::umem::{FramePool, Umem};
use crate::wire::checksum::{self, Sum};
use crate::wire::tcp::flags;
use crate::wire::{arp, ethernet, ipv6, udp, vxlan};

const L3: usize = ethernet::HEADER_LEN;

/// Longest outer IP packet.
const MAX_LEN: usize = 65535;

/// A shorter Ethernet frame may be padded up to this.
const SHORTEST_FRAME: usize = 60;

/// Bytes of a datagram that are looked at: VXLAN header, inner Ethernet
/// header, IPv6 header and the longest TCP header.
const LOOK: usize = vxlan::HEADER_LEN + L3 + ipv6::HEADER_LEN + 60;

/// The stage's memory, kept from batch to batch.
#[derive(Debug)]
pub(crate) struct Parting {
    /// A batch that is being taken apart, and the packet that is next.
    waiting: Batch,
    next: usize,
}

/// What came of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parted {
    /// There is more to take.
    pub(crate) more: bool,
    /// Datagrams that found no frames.
    pub(crate) lost: u64,
}

impl Parting {
    pub(crate) fn new() -> Parting {
        Parting {
            waiting: Batch::new(),
            next: 0,
        }
    }

    /// Takes packets of the batch apart, and leaves in it as many as a batch
    /// has; while there are more, it is to be called again with the empty
    /// batch. Merges segments only if it `may_merge`.
    #[inline]
    pub(crate) fn take(
        &mut self,
        umem: &Umem,
        pool: &mut FramePool,
        batch: &mut Batch,
        snapshot: &Snapshot,
        may_merge: bool,
    ) -> Parted {
        let is_begun = !self.waiting.is_empty();
        if is_begun || have_company(umem, batch, snapshot) {
            return self.take_more(umem, pool, batch, snapshot, may_merge);
        }
        Parted {
            more: false,
            lost: 0,
        }
    }

    #[inline(never)]
    fn take_more(
        &mut self,
        umem: &Umem,
        pool: &mut FramePool,
        batch: &mut Batch,
        snapshot: &Snapshot,
        may_merge: bool,
    ) -> Parted {
        let mut lost = 0;
        if self.waiting.is_empty() {
            std::mem::swap(batch, &mut self.waiting);
            self.next = 0;
        }
        while self.next < self.waiting.len() {
            let company = Company::of(umem, &self.waiting, self.next, &snapshot.underlay);
            let count = company.map_or(1, |company| company.count());
            if !batch.is_empty() && batch.len() + count > Batch::MAX_PACKETS {
                return Parted { more: true, lost };
            }
            match company {
                None => {
                    let packet = self.waiting.packets()[self.next];
                    batch.push(packet.in_port, self.waiting.take(self.next));
                }
                Some(company) => {
                    let mut writer = Writer {
                        umem,
                        pool,
                        out: batch,
                        may_merge,
                        open: None,
                    };
                    lost += writer.part(&self.waiting, self.next, &company);
                    let frames = self.waiting.take(self.next);
                    frames.for_each(|frame| pool.free(frame));
                }
            }
            self.next += 1;
        }
        self.waiting.clear();
        Parted { more: false, lost }
    }
}

/// Whether a packet of the batch may be several datagrams of the overlay.
#[inline]
fn have_company(umem: &Umem, batch: &Batch, snapshot: &Snapshot) -> bool {
    let Some(first) = batch.packets().first() else {
        return false;
    };
    let underlay = &snapshot.underlay;
    underlay.vxlan_port != 0
        && underlay.uplink == Some(first.in_port)
        && snapshot
            .port(first.in_port)
            .is_some_and(|port| port.role == Role::Uplink)
        && (0..batch.len()).any(|index| {
            let len = batch.packets()[index].len as usize;
            !is_alone(umem.bytes(batch.head(index)), len)
                && Company::of(umem, batch, index, underlay).is_some()
        })
}

/// Whether the inner IPv4 or IPv6 packet ends with the frame: most do.
#[inline]
fn is_alone(bytes: &[u8], len: usize) -> bool {
    let inner = match bytes.get(12..14) {
        Some([0x08, 0x00]) => L3 + 20 + udp::HEADER_LEN + vxlan::HEADER_LEN,
        Some([0x86, 0xdd]) => L3 + ipv6::HEADER_LEN + udp::HEADER_LEN + vxlan::HEADER_LEN,
        _ => return true,
    };
    let Some(frame) = bytes.get(inner..) else {
        return true;
    };
    frame_len(frame).is_some_and(|frame_len| inner + frame_len == len)
}

/// Whether a frame tells how long it is, so that datagrams which begin with
/// one like it can be taken apart.
pub(super) fn tells_length(frame: &[u8]) -> bool {
    let len = frame_len(frame);
    len.is_some_and(|len| len == frame.len() || len.max(SHORTEST_FRAME) == frame.len())
}

/// Bytes of a frame without padding, as its IP or ARP packet has it.
pub(super) fn frame_len(frame: &[u8]) -> Option<usize> {
    let word = |at: usize| {
        let bytes = frame.get(at..at + 2)?;
        Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    match word(12)? {
        0x0800 => Some(L3 + word(L3 + 2)?),
        0x86dd => Some(L3 + ipv6::HEADER_LEN + word(L3 + 4)?),
        0x0806 => Some(L3 + arp::PACKET_LEN),
        _ => None,
    }
}

/// Several datagrams in one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Company {
    /// Where the outer UDP header is.
    tunnel: usize,
    /// Bytes of each datagram's UDP payload but the last's.
    size: usize,
    /// Bytes of all of them.
    total: usize,
}

impl Company {
    /// Of packet `index`; `None` when it is one datagram, or none of the
    /// overlay's.
    fn of(umem: &Umem, batch: &Batch, index: usize, underlay: &Underlay) -> Option<Company> {
        let bytes = umem.bytes(batch.head(index));
        let outer = overlay::outer(bytes, underlay).ok()??;
        let len = batch.packets()[index].len as usize;
        if outer.end > len || outer.tunnel + outer.udp_len != outer.end {
            return None;
        }
        let tunnel = outer.tunnel;
        let total = outer.udp_len.checked_sub(udp::HEADER_LEN)?;
        let payload = bytes.get(tunnel + udp::HEADER_LEN..)?;
        // A stranger's is dropped as the one packet that it is.
        overlay::peer(payload, outer.source, underlay)?;
        let frame = frame_len(payload.get(vxlan::HEADER_LEN..)?)?;
        [frame, frame.max(SHORTEST_FRAME)]
            .map(|frame| Company {
                tunnel,
                size: vxlan::HEADER_LEN + frame,
                total,
            })
            .into_iter()
            .find(|company| company.is_sound(umem, batch, index))
    }

    fn payload(&self) -> usize {
        self.tunnel + udp::HEADER_LEN
    }

    fn count(&self) -> usize {
        self.total.div_ceil(self.size)
    }

    /// Bytes of datagram `number`.
    fn len_of(&self, number: usize) -> usize {
        self.size.min(self.total - number * self.size)
    }

    /// Whether every datagram has a frame behind the VXLAN header of the first
    /// one.
    fn is_sound(&self, umem: &Umem, batch: &Batch, index: usize) -> bool {
        let count = self.count();
        let least = vxlan::HEADER_LEN + L3;
        if count < 2 || self.size < least || self.len_of(count - 1) < least {
            return false;
        }
        let mut source = Source::new(umem, batch, index, self.payload());
        let mut first = [0; vxlan::HEADER_LEN];
        source.read(&mut first);
        (1..count).all(|_| {
            source.each(self.size - vxlan::HEADER_LEN, |_| {});
            let mut header = [0; vxlan::HEADER_LEN];
            source.read(&mut header);
            header == first
        })
    }
}

/// A datagram as it lies in the packet.
struct Datagram<'a> {
    /// From its VXLAN header on.
    source: Source<'a>,
    len: usize,
    /// Its inner frame's first bytes.
    frame: &'a [u8],
}

/// A TCP segment that may be merged.
struct Segment {
    headers: Headers,
    /// Bytes of payload.
    len: usize,
    /// PSH and FIN, if set.
    ends: u8,
}

/// The packet that the next segment may be added to: the last one written.
struct Open {
    line: Line,
    ends: u8,
}

struct Writer<'a> {
    umem: &'a Umem,
    pool: &'a mut FramePool,
    out: &'a mut Batch,
    may_merge: bool,
    open: Option<Open>,
}

impl Writer<'_> {
    /// Writes the datagrams of packet `index`; gives how many were lost.
    fn part(&mut self, batch: &Batch, index: usize, company: &Company) -> u64 {
        let umem = self.umem;
        // Another CPU wrote them.
        batch
            .chain(index)
            .for_each(|frame| umem.prefetch_whole(frame));
        let head = umem.bytes(batch.head(index));
        let outer = &head[..company.payload()];
        let packet = batch.packets()[index];
        let mut source = Source::new(umem, batch, index, company.payload());
        let mut lost = 0;
        for number in 0..company.count() {
            let len = company.len_of(number);
            let mut look = [0; LOOK];
            let seen = LOOK.min(len);
            let mut ahead = source;
            ahead.read(&mut look[..seen]);
            let datagram = Datagram {
                source,
                len,
                frame: &look[vxlan::HEADER_LEN..seen],
            };
            if let Err(datagrams) = self.add(&packet, outer, datagram) {
                lost += datagrams;
            }
            source.each(len, |_| {});
        }
        self.close(company.tunnel);
        lost
    }

    /// Merges a datagram into the packet before, or makes it one of its own.
    /// Without frames for it, gives how many datagrams go: all of a packet.
    fn add(&mut self, packet: &Packet, outer: &[u8], datagram: Datagram<'_>) -> Result<(), u64> {
        let tunnel = outer.len() - udp::HEADER_LEN;
        let segment = match self.may_merge {
            true => mergeable(&datagram),
            false => None,
        };
        if let Some(segment) = &segment
            && self.join(outer.len(), segment, &datagram)?
        {
            return Ok(());
        }
        self.close(tunnel);
        self.begin(packet, outer, &datagram).map_err(|_| 1u64)?;
        self.open = segment
            .filter(|segment| segment.ends == 0)
            .map(|segment| Open {
                line: Line::begin(segment.headers, segment.len),
                ends: 0,
            });
        if self.open.is_none() {
            self.set_lengths(tunnel);
        }
        Ok(())
    }

    /// Adds a segment to the open packet, when it continues that. `outer` is
    /// the length of the headers before VXLAN's.
    fn join(
        &mut self,
        outer: usize,
        segment: &Segment,
        datagram: &Datagram<'_>,
    ) -> Result<bool, u64> {
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        let Some(head) = head_of(self.out) else {
            return Ok(false);
        };
        let head = &self.umem.bytes(head)[outer + vxlan::HEADER_LEN..];
        let line = &mut open.line;
        let longest = outer + vxlan::HEADER_LEN + line.len + segment.len - L3;
        let next = match longest <= MAX_LEN
            && coalesce::is_same_connection(head, datagram.frame, line.headers(), &segment.headers)
        {
            true => line.next(head, datagram.frame, &segment.headers, segment.len),
            false => None,
        };
        let Some(next) = next else {
            return Ok(false);
        };
        line.extend(segment.len, next);
        open.ends |= segment.ends;
        let is_last = segment.ends != 0 || segment.len < line.first_len;
        let mut source = datagram.source;
        source.each(vxlan::HEADER_LEN + segment.headers.payload, |_| {});
        let count = line.count();
        if self.append(&mut source, segment.len).is_err() {
            self.open = None;
            self.forget();
            return Err(count);
        }
        if is_last {
            self.close(outer - udp::HEADER_LEN);
        }
        Ok(true)
    }

    /// Begins a packet: outer headers and one datagram.
    fn begin(
        &mut self,
        packet: &Packet,
        outer: &[u8],
        datagram: &Datagram<'_>,
    ) -> Result<(), DropReason> {
        let mut frame = self.pool.alloc().ok_or(DropReason::NoFrames)?;
        if !frame.resize(outer.len()) {
            self.pool.free(frame);
            return Err(DropReason::NoFrames);
        }
        self.umem.bytes_mut(&mut frame).copy_from_slice(outer);
        self.out.packets.push(Packet {
            first: self.out.frames.len() as u32,
            frames: 1,
            len: outer.len() as u32,
            verdict: Verdict::Drop(DropReason::BrokenChain),
            ..*packet
        });
        self.out.frames.push(Some(frame));
        let mut source = datagram.source;
        let done = self.append(&mut source, datagram.len);
        if done.is_err() {
            self.forget();
        }
        done
    }

    /// Adds the next `len` bytes to the last packet.
    fn append(&mut self, source: &mut Source<'_>, mut len: usize) -> Result<(), DropReason> {
        while len > 0 {
            let last = self.out.frames.last_mut().and_then(Option::as_mut);
            let room = last.as_ref().map_or(0, |frame| frame.tailroom());
            let Some(frame) = last.filter(|_| room > 0) else {
                let mut frame = self.pool.alloc().ok_or(DropReason::NoFrames)?;
                // Always fits: it is empty.
                let _ = frame.resize(0);
                self.out.frames.push(Some(frame));
                if let Some(packet) = self.out.packets.last_mut() {
                    packet.frames += 1;
                }
                continue;
            };
            let (take, used) = (room.min(len), frame.len());
            if !frame.resize(used + take) {
                return Err(DropReason::BrokenChain);
            }
            source.read(&mut self.umem.bytes_mut(frame)[used..]);
            if let Some(packet) = self.out.packets.last_mut() {
                packet.len += take as u32;
            }
            len -= take;
        }
        Ok(())
    }

    /// Takes the last packet back.
    fn forget(&mut self) {
        if let Some(packet) = self.out.packets.pop() {
            let frames = self.out.frames.drain(packet.first as usize..);
            frames.flatten().for_each(|frame| self.pool.free(frame));
        }
    }

    /// Nothing more is added to the last packet: its headers become those of
    /// the whole.
    fn close(&mut self, tunnel: usize) {
        let Some(open) = self.open.take() else {
            return;
        };
        if open.line.count() > 1
            && let Some(packet) = self.out.packets.last_mut()
            && let Some(Some(head)) = self.out.frames.get_mut(packet.first as usize)
        {
            packet.is_merged = true;
            let inner = tunnel + udp::HEADER_LEN + vxlan::HEADER_LEN;
            let len = packet.len as usize - inner;
            let bytes = &mut self.umem.bytes_mut(head)[inner..];
            open.line.headers().rewrite(bytes, len, open.ends);
        }
        self.set_lengths(tunnel);
    }

    /// Makes the outer lengths those of the last packet. The UDP checksum was
    /// that of other bytes.
    fn set_lengths(&mut self, tunnel: usize) {
        let Some(packet) = self.out.packets.last() else {
            return;
        };
        let len = packet.len as usize;
        let Some(Some(head)) = self.out.frames.get_mut(packet.first as usize) else {
            return;
        };
        let bytes = self.umem.bytes_mut(head);
        let (udp_len, ip_len) = ((len - tunnel) as u16, (len - L3) as u16);
        bytes[tunnel + 4..tunnel + 6].copy_from_slice(&udp_len.to_be_bytes());
        bytes[tunnel + 6..tunnel + 8].fill(0);
        match bytes[L3] >> 4 {
            4 => {
                bytes[L3 + 2..L3 + 4].copy_from_slice(&ip_len.to_be_bytes());
                bytes[L3 + 10..L3 + 12].fill(0);
                let sum = checksum::checksum(&bytes[L3..tunnel]);
                bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
            }
            _ => {
                let payload_len = ip_len - ipv6::HEADER_LEN as u16;
                bytes[L3 + 4..L3 + 6].copy_from_slice(&payload_len.to_be_bytes());
            }
        }
    }
}

/// The head frame of the last packet.
fn head_of(batch: &Batch) -> Option<&crate::frame::Frame> {
    let packet = batch.packets.last()?;
    batch.frames.get(packet.first as usize)?.as_ref()
}

/// The TCP segment in a datagram, if it may be merged: plain headers, right
/// checksums.
fn mergeable(datagram: &Datagram<'_>) -> Option<Segment> {
    let frame = datagram.frame;
    let frame_len = datagram.len - vxlan::HEADER_LEN;
    let (headers, is_bare) = coalesce::locate(frame)?;
    let is_plain = is_bare && headers.payload < frame.len();
    if !is_plain || !coalesce::is_plain(frame, &headers, frame_len) {
        return None;
    }
    let len = frame_len - headers.payload;
    let tcp_sum = || -> Sum {
        let mut source = datagram.source;
        source.each(vxlan::HEADER_LEN + headers.transport, |_| {});
        let mut sum = RunningSum::ZERO;
        source.each(frame_len - headers.transport, |bytes| sum.add(bytes));
        sum.total()
    };
    let ends = frame[headers.transport + 13] & (flags::PSH | flags::FIN);
    coalesce::are_right(frame, &headers, len, tcp_sum).then_some(Segment { headers, len, ends })
}
