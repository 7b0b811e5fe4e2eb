//! Reads across the frames of one packet, and copies into new ones.

use crate::drops::DropReason;
use crate::frame::{
    Batch, FRAME_SIZE, HEADROOM, MAX_CHAIN, MAX_FRAMES, Packet, TxChecksum, Verdict,
};
use crate::umem::{FramePool, Umem};
use crate::wire::checksum::Sum;
use crate::wire::udp;

/// Bytes that a fresh frame takes behind its headroom.
const FRAME_ROOM: usize = FRAME_SIZE - HEADROOM;

/// Longest chain of headers, options and extensions included, that is copied
/// to each piece of a packet.
pub(super) const MAX_HEADERS: usize = 512;

/// The sum of packet `index` from byte `from` to its end. `from` lies in the
/// head frame.
pub(super) fn sum(umem: &Umem, batch: &Batch, index: usize, from: usize) -> Sum {
    let mut sum = RunningSum::ZERO;
    for (position, frame) in batch.chain(index).enumerate() {
        let bytes = umem.bytes(frame);
        sum.add(match position {
            0 => bytes.get(from..).unwrap_or_default(),
            _ => bytes,
        });
    }
    sum.total()
}

/// Finishes a partial checksum. The field takes part in the sum as the
/// pseudo-header's share.
pub(crate) fn complete(umem: &Umem, batch: &mut Batch, index: usize, field: TxChecksum) {
    let sum = sum(umem, batch, index, usize::from(field.start));
    let at = usize::from(field.start + field.offset);
    let bytes = umem.bytes_mut(batch.head_mut(index));
    let sum = finished(sum, field);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The checksum that goes into `field`. 0 means "none" in UDP alone; the others
/// have no second zero (RFC 1624, section 3).
pub(super) fn finished(sum: Sum, field: TxChecksum) -> u16 {
    match usize::from(field.offset) {
        udp::CHECKSUM_OFFSET => sum.udp_checksum(),
        _ => sum.checksum(),
    }
}

/// Cuts a packet into pieces, front to back.
pub(super) struct Cutter<'a> {
    umem: &'a Umem,
    pool: &'a mut FramePool,
    source: Source<'a>,
    packet: Packet,
    out: &'a mut Batch,
}

impl<'a> Cutter<'a> {
    /// Of packet `index`, whose payload begins at `payload` in its head frame.
    pub(super) fn new(
        umem: &'a Umem,
        pool: &'a mut FramePool,
        (batch, index): (&'a Batch, usize),
        payload: usize,
        out: &'a mut Batch,
    ) -> Cutter<'a> {
        Cutter {
            umem,
            pool,
            source: Source::new(umem, batch, index, payload),
            packet: batch.packets()[index],
            out,
        }
    }

    /// Leaves out the next `len` bytes of payload.
    pub(super) fn skip(&mut self, len: usize) {
        self.source.each(len, |_| {});
    }

    /// Adds a piece: these headers and the next `len` bytes of payload. Gives
    /// the bytes of its head frame, for the headers to be made its own, and the
    /// sum of its payload.
    pub(super) fn piece(
        &mut self,
        headers: &[u8],
        len: usize,
    ) -> Result<(&mut [u8], Sum), DropReason> {
        let first = self.out.frames.len();
        let sum = self.copy(headers, len)?;
        self.out.packets.push(Packet {
            first: first as u32,
            frames: (self.out.frames.len() - first) as u8,
            len: (headers.len() + len) as u32,
            verdict: Verdict::Drop(DropReason::Oversize),
            ..self.packet
        });
        let head = self.out.frames[first].as_mut();
        let head = head.ok_or(DropReason::NoFrames)?;
        Ok((self.umem.bytes_mut(head), sum))
    }

    /// Takes frames from the pool, copies headers and `len` bytes of payload,
    /// and gives the sum of the payload, which begins at an even distance.
    fn copy(&mut self, headers: &[u8], len: usize) -> Result<Sum, DropReason> {
        let mut sum = Sum::ZERO;
        let (mut copied, mut used) = (0, headers.len());
        for number in 0..MAX_CHAIN {
            let mut frame = self.pool.alloc().ok_or(DropReason::NoFrames)?;
            let take = (FRAME_ROOM - used).min(len - copied);
            if !frame.resize(used + take) {
                self.pool.free(frame);
                return Err(DropReason::Oversize);
            }
            let bytes = self.umem.bytes_mut(&mut frame);
            if number == 0 {
                bytes[..used].copy_from_slice(headers);
            }
            let payload = &mut bytes[used..];
            self.source.read(payload);
            sum = match copied % 2 {
                0 => sum.bytes(payload),
                _ => sum.odd_bytes(payload),
            };
            copied += take;
            used = 0;
            self.out.frames.push(Some(frame));
            if copied == len {
                return Ok(sum);
            }
        }
        Err(DropReason::Oversize)
    }
}

/// Reads the payload of a packet from frame to frame.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pieces: [&'a [u8]; MAX_FRAMES],
    at: usize,
}

impl<'a> Source<'a> {
    /// The bytes of packet `index` from `skip`, which lies in its head frame.
    pub(super) fn new(umem: &'a Umem, batch: &'a Batch, index: usize, skip: usize) -> Source<'a> {
        let mut pieces: [&[u8]; MAX_FRAMES] = [&[]; MAX_FRAMES];
        for (piece, frame) in pieces.iter_mut().zip(batch.chain(index)) {
            *piece = umem.bytes(frame);
        }
        pieces[0] = &pieces[0][skip..];
        Source { pieces, at: 0 }
    }

    /// Fills `into`; the layout made sure that there are enough bytes.
    pub(super) fn read(&mut self, mut into: &mut [u8]) {
        self.each(into.len(), |piece| {
            let (front, rest) = std::mem::take(&mut into).split_at_mut(piece.len());
            front.copy_from_slice(piece);
            into = rest;
        });
    }

    /// Frames that the next `len` bytes lie in at most.
    pub(super) fn most_parts(&self, len: usize) -> usize {
        let mut left = len;
        let rest = self.pieces.iter().skip(self.at);
        let before = rest.take_while(|piece| {
            let is_before = left > 0;
            left = left.saturating_sub(piece.len());
            is_before
        });
        before.count()
    }

    /// Gives the next `len` bytes away, as they lie in the frames.
    pub(super) fn each(&mut self, mut len: usize, mut take: impl FnMut(&'a [u8])) {
        while len > 0 && self.at < MAX_FRAMES {
            let piece = &mut self.pieces[self.at];
            let (front, rest) = piece.split_at(piece.len().min(len));
            *piece = rest;
            len -= front.len();
            if rest.is_empty() {
                self.at += 1;
            }
            if !front.is_empty() {
                take(front);
            }
        }
    }
}

/// A sum of bytes that come in parts.
#[derive(Clone, Copy)]
pub(super) struct RunningSum {
    sum: Sum,
    is_odd: bool,
}

impl RunningSum {
    pub(super) const ZERO: RunningSum = RunningSum {
        sum: Sum::ZERO,
        is_odd: false,
    };

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.sum = match self.is_odd {
            false => self.sum.bytes(bytes),
            true => self.sum.odd_bytes(bytes),
        };
        self.is_odd ^= bytes.len() % 2 == 1;
    }

    pub(super) fn total(self) -> Sum {
        self.sum
    }
}
