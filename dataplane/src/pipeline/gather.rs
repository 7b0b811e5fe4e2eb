//! Makes datagrams of the overlay of a TCP super-frame without moving its
//! payload: only the headers of each segment are written, and the whole is
//! described as a list of what lies where, for a packet socket to gather.
//!
//! ```text
//! | outer headers | VXLAN, inner headers | payload | VXLAN, inner headers | payload | …
//!       written            written        as it lies       written
//! ```
//!
//! What leaves are the datagrams that [`super::segment`] and
//! [`super::overlay`] would have made one by one, but for the outer checksum
//! over IPv4 (see [`super::datagrams`]).

use super::chain::{MAX_HEADERS, RunningSum, Source};
use super::datagrams::{self, MAX_DATAGRAMS};
use super::overlay;
use super::segment::{self, Cut, Layout, Offload, Piece, Segments};
use crate::frame::{Batch, TxChecksum};
use crate::snapshot::OuterHeader;
use crate::umem::Umem;
use crate::wire::checksum::Sum;
use crate::wire::{ethernet, udp, vxlan};

/// Longest IP packet.
const MAX_PACKET: usize = u16::MAX as usize;

/// Stretches of payload in one run: a segment of the usual length lies in two
/// frames at most.
const MAX_STRETCHES: usize = 3 * MAX_DATAGRAMS;

/// Pieces of memory that one run is gathered from at most.
pub(crate) const MAX_PARTS: usize = MAX_DATAGRAMS + MAX_STRETCHES;

/// A super-frame on its way into the overlay: what of it is still to be sent.
pub(crate) struct SuperFrame<'a> {
    inner: &'a [u8],
    layout: Layout,
    source: Source<'a>,
    outer: &'a OuterHeader,
    source_port: u16,
    /// Bytes of payload in each segment but the last.
    most: usize,
    offset: usize,
    total: usize,
}

impl<'a> SuperFrame<'a> {
    /// Of packet `index`, to be cut to `mtu` bytes of inner IP packet; `None`
    /// for what is no plain super-frame.
    pub(crate) fn of(
        umem: &'a Umem,
        batch: &'a Batch,
        index: usize,
        mtu: u32,
        (outer, source_port): (&'a OuterHeader, u16),
    ) -> Option<SuperFrame<'a>> {
        let (layout, most) = segment::plain(umem, batch, index, mtu)?;
        let inner = umem.bytes(batch.head(index)).get(..layout.payload)?;
        let total = layout.end - layout.payload;
        (inner.len() <= MAX_HEADERS && total > most).then(|| SuperFrame {
            inner,
            source: Source::new(umem, batch, index, layout.payload),
            layout,
            outer,
            source_port,
            most,
            offset: 0,
            total,
        })
    }

    /// The next datagrams that leave together, their headers written to
    /// `headers`; `None` after the last.
    pub(crate) fn next<'h>(&mut self, headers: &'h mut Vec<u8>) -> Option<Together<'h, 'a>> {
        if self.offset == self.total {
            return None;
        }
        let (outer, inner) = (self.outer.bytes(), self.inner.len());
        let outer_udp = outer.len() - vxlan::HEADER_LEN;
        let block = vxlan::HEADER_LEN + inner;
        let room = MAX_PACKET + ethernet::HEADER_LEN - outer_udp;
        let mut together = Together {
            headers: &[],
            first: outer_udp,
            block,
            stretches: [&[]; MAX_STRETCHES],
            ends: [0; MAX_DATAGRAMS],
            packets: 0,
            bytes: 0,
            offload: self.offload(outer_udp, block),
        };
        headers.clear();
        headers.extend_from_slice(&outer[..outer_udp]);
        let (mut used, mut stretches) = (0, 0);
        while self.offset < self.total && together.packets < MAX_DATAGRAMS {
            let len = self.most.min(self.total - self.offset);
            if used + block + len > room || stretches + self.source.most_parts(len) > MAX_STRETCHES
            {
                break;
            }
            let mut sum = RunningSum::ZERO;
            self.source.each(len, |bytes| {
                sum.add(bytes);
                together.stretches[stretches] = bytes;
                stretches += 1;
            });
            let at = headers.len();
            headers.extend_from_slice(&outer[outer_udp..]);
            headers.extend_from_slice(self.inner);
            self.finish(&mut headers[at + vxlan::HEADER_LEN..], len, sum.total());
            together.ends[together.packets] = stretches as u16;
            together.packets += 1;
            self.offset += len;
            used += block + len;
        }
        together.bytes = (together.packets * outer_udp + used) as u64;
        let front = headers.get_mut(..outer.len() + inner)?;
        overlay::finish(front, self.outer, inner, Sum::ZERO, self.source_port);
        datagrams::stand_for_all(&mut front[..outer_udp], self.outer.is_v6(), used);
        together.headers = headers;
        (together.packets > 0).then_some(together)
    }

    /// Makes the copied inner headers those of the segment at `offset`.
    fn finish(&self, headers: &mut [u8], len: usize, payload: Sum) {
        let piece = Piece {
            number: (self.offset / self.most) as u16,
            offset: self.offset as u32,
            is_last: self.offset + len == self.total,
        };
        segment::finish(headers, &self.layout, &piece, len, payload);
    }

    fn offload(&self, outer_udp: usize, block: usize) -> Offload {
        Offload {
            checksum: TxChecksum {
                start: (outer_udp - udp::HEADER_LEN) as u16,
                offset: udp::CHECKSUM_OFFSET as u16,
            },
            cut: Some(Cut {
                segments: Segments::Udp,
                header_len: outer_udp as u16,
                segment_len: (block + self.most) as u16,
            }),
        }
    }
}

/// Datagrams that leave together.
pub(crate) struct Together<'h, 'a> {
    headers: &'h [u8],
    /// Bytes of headers before the first VXLAN header.
    first: usize,
    /// Bytes of VXLAN and inner headers of each datagram.
    block: usize,
    stretches: [&'a [u8]; MAX_STRETCHES],
    /// Where each datagram's stretches end.
    ends: [u16; MAX_DATAGRAMS],
    /// How many there are.
    pub(crate) packets: usize,
    /// Bytes of them as they leave, each with its headers.
    pub(crate) bytes: u64,
    /// How the kernel is to cut them.
    pub(crate) offload: Offload,
}

impl Together<'_, '_> {
    /// All of their bytes, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.packets).flat_map(move |number| {
            let at = self.first + number * self.block;
            let from = if number == 0 { 0 } else { at };
            let begin = number
                .checked_sub(1)
                .map_or(0, |before| usize::from(self.ends[before]));
            let end = usize::from(self.ends[number]);
            std::iter::once(&self.headers[from..at + self.block])
                .chain(self.stretches[begin..end].iter().copied())
        })
    }
}
