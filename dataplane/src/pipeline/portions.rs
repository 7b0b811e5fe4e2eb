//! Divides a TCP super-frame into portions that a device, or the kernel for
//! it, cuts into segments: at most 64 KiB each, whole segments but for the
//! last one's. The payload stays where it lies; only the headers of each
//! portion are written.
//!
//! What leaves are the segments that [`super::segment`] would have made.

use super::chain::{MAX_HEADERS, Source};
use super::segment::{self, Layout, Offload, Piece};
use crate::frame::{Batch, MAX_FRAMES};
use crate::umem::Umem;

/// Longest frame that devices cut (`GSO_LEGACY_MAX_SIZE`,
/// include/linux/netdevice.h; `gso_features_check`, net/core/dev.c).
pub(crate) const LONGEST: usize = u16::MAX as usize;

/// Bytes of payload at most, as TCP sends them: whoever forwards a portion has
/// room for headers of its own (`MAX_TCP_HEADER`, include/net/tcp.h).
const MOST_PAYLOAD: usize = LONGEST - 320;

/// A super-frame on its way out: what of it is still to be sent.
pub(crate) struct Portions<'a> {
    headers: &'a [u8],
    layout: Layout,
    source: Source<'a>,
    offload: Offload,
    /// Bytes of payload in each segment but the last.
    most: usize,
    offset: usize,
    total: usize,
}

/// What leaves at once.
pub(crate) struct Portion<'h, 'a> {
    headers: &'h [u8],
    stretches: [&'a [u8]; MAX_FRAMES],
    used: usize,
    /// Segments that come of it.
    pub(crate) packets: usize,
    /// Bytes of these segments, each with its headers.
    pub(crate) bytes: u64,
}

impl<'a> Portions<'a> {
    /// Of packet `index`, to be cut to `mtu` bytes of IP packet; `None` for
    /// what is no plain super-frame.
    pub(crate) fn of(
        umem: &'a Umem,
        batch: &'a Batch,
        index: usize,
        mtu: u32,
    ) -> Option<Portions<'a>> {
        let offload = segment::offload(umem, batch, index, mtu)?;
        let (layout, most) = segment::plain(umem, batch, index, mtu)?;
        let headers = umem.bytes(batch.head(index)).get(..layout.payload)?;
        let total = layout.end - layout.payload;
        let is_divisible = headers.len() <= MAX_HEADERS && headers.len() + most <= LONGEST;
        (is_divisible && total > 0).then(|| Portions {
            headers,
            source: Source::new(umem, batch, index, layout.payload),
            layout,
            offload,
            most,
            offset: 0,
            total,
        })
    }

    /// How each portion is to be cut.
    pub(crate) fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Bytes of payload that were given away so far.
    pub(crate) fn sent(&self) -> usize {
        self.offset
    }

    /// The next portion, its headers written to `headers`; `None` after the
    /// last.
    pub(crate) fn next<'h>(&mut self, headers: &'h mut Vec<u8>) -> Option<Portion<'h, 'a>> {
        let room = MOST_PAYLOAD.min(LONGEST - self.headers.len());
        let room = (room / self.most).max(1) * self.most;
        let len = room.min(self.total - self.offset);
        if len == 0 {
            return None;
        }
        headers.clear();
        headers.extend_from_slice(self.headers);
        let piece = Piece {
            number: (self.offset / self.most) as u16,
            offset: self.offset as u32,
            is_last: self.offset + len == self.total,
        };
        segment::finish_partly(headers, &self.layout, &piece, len);
        let packets = len.div_ceil(self.most);
        let mut portion = Portion {
            bytes: (packets * headers.len() + len) as u64,
            headers,
            stretches: [&[]; MAX_FRAMES],
            used: 0,
            packets,
        };
        self.source.each(len, |bytes| {
            portion.stretches[portion.used] = bytes;
            portion.used += 1;
        });
        self.offset += len;
        Some(portion)
    }
}

impl Portion<'_, '_> {
    /// Bytes of it all.
    pub(crate) fn len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// All of its bytes, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.headers).chain(self.stretches[..self.used].iter().copied())
    }
}
