//! The four rings of one bound socket, moving frames for one lane.
//!
//! Frames leave the lane in two ways, posted for filling and sent, and come
//! back in two, received and completed. [`OwnerTable`] notes which queue has
//! each of them meanwhile, so a queue that is torn down in any state gives
//! back exactly what it held.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::drops::DropReason;
use crate::frame::{Batch, FRAME_SIZE, Frame, MAX_CHAIN, TX_METADATA_BYTES, TxChecksum};
use crate::types::PortId;
use crate::umem::{FramePool, OwnerTable, OwnerTag, Umem};
use crate::xsk::socket::Socket;

/// Chunks that an idle port keeps posted: three super-frames' worth, or the
/// 47 fragments of the longest datagram on a path of 1450 bytes, and some.
pub(crate) const FILL_MIN: u32 = 3 * MAX_CHAIN as u32 + 10;

/// Chunks that a port keeps posted from its first super-frame on: a sender
/// doubles its window from round trip to round trip, faster than a level that
/// only follows use, and what finds no chunk is lost.
pub(crate) const FILL_STREAM: u32 = 16 * MAX_CHAIN as u32;

/// Chunks that may be missing before a port is topped up: an idle one still
/// holds the fragments of a longest datagram then.
const REFILL_LOT: u32 = 16;

/// Never reused, so that a late look at [`OwnerTable`] cannot confuse queues.
static NEXT_TAG: AtomicU32 = AtomicU32::new(1);

fn next_tag() -> OwnerTag {
    // Relaxed: only uniqueness matters.
    let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed);
    OwnerTag(NonZeroU32::new(tag).unwrap_or(NonZeroU32::MAX))
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// The kernel took every descriptor.
    Sent,
    /// It will take the rest later.
    Stalled,
    /// The device is gone or down; nothing more leaves by this queue.
    Gone,
    /// It refuses the next descriptor for ever; the socket must be rebuilt.
    Wedged,
}

/// One socket, used by one lane.
#[derive(Debug)]
pub(crate) struct Queue {
    socket: Socket,
    tag: OwnerTag,
    /// Chunks posted for filling and not yet received.
    posted: u32,
    /// Level that the fill ring is kept at; follows use. 0 before the first
    /// fill, which empties nothing.
    fill_target: u32,
    /// Level that it does not sink below.
    fill_floor: u32,
    /// Level that it has at least while streams come.
    fill_stream: u32,
    /// A packet of several chunks came since the last refill, or segments that
    /// were merged.
    streaming: bool,
    /// Level that it has at least from the next refill on.
    expected: u32,
    /// Chunks sent and not yet completed.
    outstanding: u32,
    /// Descriptors written since the last publish.
    unpublished: bool,
    /// Packets that named a chunk which the queue did not hold.
    broken: u32,
    /// Chunks, of those posted, that were filled and are not taken yet.
    waiting: u32,
}

impl Queue {
    /// A queue that keeps `fill_floor` chunks posted at least, and
    /// `fill_stream` while streams come.
    pub(crate) fn new(socket: Socket, fill_floor: u32, fill_stream: u32) -> Queue {
        Queue {
            fill_floor: fill_floor.clamp(FILL_MIN, socket.ring_size),
            fill_stream: fill_stream.clamp(FILL_MIN, socket.ring_size),
            socket,
            tag: next_tag(),
            posted: 0,
            fill_target: 0,
            streaming: false,
            expected: 0,
            outstanding: 0,
            unpublished: false,
            broken: 0,
            waiting: 0,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }

    pub(crate) fn shared_fd(&self) -> &Arc<OwnedFd> {
        &self.socket.fd
    }

    pub(crate) fn tag(&self) -> OwnerTag {
        self.tag
    }

    /// Chunks posted for filling.
    pub(crate) fn posted(&self) -> u32 {
        self.posted
    }

    /// Chunks that are on their way out.
    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Descriptors that the last look at the receive ring left there.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Packets that stand in the rings unhandled: received and not taken, or
    /// written and not sent.
    pub(crate) fn abandoned(&mut self) -> u32 {
        let is_last = |desc: &libc::xdp_desc| desc.options & libc::XDP_PKT_CONTD == 0;
        let received = self.socket.rx.available();
        let received = (0..received).map(|at| self.socket.rx.peek(at));
        let received = received.filter(is_last).count();
        received as u32 + self.socket.tx.pending_entries().filter(is_last).count() as u32
    }

    /// Packets with a chunk that this queue did not post, since the last time
    /// of asking.
    pub(crate) fn take_broken(&mut self) -> u32 {
        std::mem::take(&mut self.broken)
    }

    /// A stream comes, a segment a chunk.
    pub(crate) fn expect_stream(&mut self) {
        self.streaming = true;
    }

    /// So many chunks are to be posted while frames are not short.
    pub(crate) fn expect(&mut self, chunks: u32) {
        self.expected = chunks.min(self.socket.ring_size);
    }

    /// Tops the fill ring up when a lot is missing. A level that one round
    /// brought below a half doubles, unless frames are short: the next burst
    /// of a TCP sender that begins is twice as long.
    pub(crate) fn refill(&mut self, pool: &mut FramePool, owners: &OwnerTable, frames_short: bool) {
        let is_first = self.fill_target == 0;
        self.fill_target = self.fill_target.max(self.fill_floor);
        if std::mem::take(&mut self.streaming) && !frames_short {
            self.fill_target = self.fill_target.max(self.fill_stream);
        }
        if !frames_short {
            self.fill_target = self.fill_target.max(std::mem::take(&mut self.expected));
        }
        if self.posted + REFILL_LOT > self.fill_target {
            return;
        }
        let left = self.posted - self.waiting.min(self.posted);
        if left * 2 < self.fill_target && !is_first && !frames_short {
            self.fill_target = (self.fill_target * 2).min(self.socket.ring_size);
        }
        let before = self.posted;
        while self.posted < self.fill_target && self.socket.fill.room(1) > 0 {
            let Some(frame) = pool.alloc() else { break };
            let chunk = frame.chunk();
            owners.give(chunk, self.tag);
            self.socket.fill.push((chunk * FRAME_SIZE) as u64);
            self.posted += 1;
        }
        if self.posted != before {
            self.socket.fill.publish();
            self.wake_receiver();
        }
    }

    /// Tells a device that ran out of chunks that there are some again. Only
    /// one that shares the frame memory asks for it.
    pub(crate) fn wake_receiver(&self) {
        if self.socket.fill.needs_wakeup() {
            // SAFETY: plain system call on a live descriptor, without a
            // buffer. What it answers says nothing that the rings do not.
            unsafe {
                libc::recvfrom(
                    self.socket.fd.as_raw_fd(),
                    std::ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
        }
    }

    /// Lets an idle port's level sink by half; the chunks come back as they
    /// are received.
    pub(crate) fn relax(&mut self) {
        self.fill_target = (self.fill_target / 2).max(self.fill_floor);
    }

    /// Moves whole packets from the receive ring into `batch`, until that has
    /// `max`. Returns how many frames came.
    pub(crate) fn receive(
        &mut self,
        batch: &mut Batch,
        in_port: PortId,
        umem: &Umem,
        owners: &OwnerTable,
        max: usize,
    ) -> u32 {
        let available = self.socket.rx.available();
        self.waiting = 0;
        if available == 0 {
            return 0;
        }
        let mut taken = 0;
        while taken < available && batch.len() < max {
            let Some(count) = self.chain_length(taken, available) else {
                break;
            };
            if self.take_chain(taken, count, owners) {
                let rx = &self.socket.rx;
                batch.push(
                    in_port,
                    (taken..taken + count).map(|at| {
                        let desc = rx.peek(at);
                        let frame = Frame::new(desc.addr, desc.len);
                        if at == taken {
                            umem.prefetch(&frame);
                        }
                        frame
                    }),
                );
            } else {
                self.broken += 1;
            }
            taken += count;
            self.streaming |= count > 1;
        }
        self.socket.rx.release(taken);
        self.waiting = available - taken;
        self.posted = self.posted.saturating_sub(taken);
        taken
    }

    /// Takes the chunks of a chain from the queue. `false` when it did not hold
    /// them all: that is the kernel's error, and using such a chunk would give
    /// it two owners. The others of the chain stay with the queue then, and
    /// come home when it closes.
    fn take_chain(&self, first: u32, count: u32, owners: &OwnerTable) -> bool {
        let chunk = |at| {
            let desc = self.socket.rx.peek(at);
            Frame::new(desc.addr, 0).chunk()
        };
        for at in first..first + count {
            if !owners.take(chunk(at), self.tag) {
                (first..at).for_each(|at| owners.give(chunk(at), self.tag));
                return false;
            }
        }
        true
    }

    /// Descriptors of the packet that begins `first` places ahead; `None`
    /// when its end is not there yet.
    fn chain_length(&self, first: u32, available: u32) -> Option<u32> {
        (first..available)
            .find(|&at| self.socket.rx.peek(at).options & libc::XDP_PKT_CONTD == 0)
            .map(|last| last - first + 1)
    }

    /// Whether a packet of these frames can be sent now: the kernel answers a
    /// bad descriptor with EINVAL for ever, so each is checked first.
    pub(crate) fn admits<'a>(
        &mut self,
        frames: impl Iterator<Item = &'a Frame>,
        checksum: Option<TxChecksum>,
    ) -> Result<(), DropReason> {
        let mut count = 0;
        for frame in frames {
            let valid = !frame.is_empty()
                && frame.headroom() >= TX_METADATA_BYTES
                && frame.headroom() + frame.len() <= FRAME_SIZE;
            let summed = checksum.filter(|_| count == 0).is_none_or(|checksum| {
                usize::from(checksum.start) + usize::from(checksum.offset) + 2 <= frame.len()
            });
            if !valid || !summed {
                return Err(DropReason::BrokenChain);
            }
            count += 1;
        }
        if count == 0 || count > MAX_CHAIN as u32 {
            return Err(DropReason::BrokenChain);
        }
        if self.socket.tx.room(count) < count {
            return Err(DropReason::TxRingFull);
        }
        Ok(())
    }

    /// Writes a packet that [`Queue::admits`] let pass to the transmit ring;
    /// the kernel sees it at the next [`Queue::flush`].
    pub(crate) fn send(
        &mut self,
        umem: &Umem,
        owners: &OwnerTable,
        frames: impl Iterator<Item = Frame>,
        checksum: Option<TxChecksum>,
    ) {
        let mut frames = frames.peekable();
        let mut metadata = checksum;
        while let Some(mut frame) = frames.next() {
            let mut options = if frames.peek().is_some() {
                libc::XDP_PKT_CONTD
            } else {
                0
            };
            if let Some(checksum) = metadata.take() {
                umem.write_metadata(&mut frame, &tx_metadata(checksum));
                options |= libc::XDP_TX_METADATA;
            }
            owners.give(frame.chunk(), self.tag);
            self.socket.tx.push(libc::xdp_desc {
                addr: frame.offset(),
                len: frame.len() as u32,
                options,
            });
            self.outstanding += 1;
        }
        self.unpublished = true;
    }

    /// Hands what was written to the kernel, and repeats while it makes
    /// progress: it sends a budget's worth a call and answers EAGAIN after
    /// each, so the consumer cursor tells, not the error.
    pub(crate) fn flush(&mut self) -> Flush {
        if self.unpublished {
            self.socket.tx.publish();
            self.unpublished = false;
        }
        let mut before = self.socket.tx.pending();
        while before > 0 {
            let error = self.kick();
            let after = self.socket.tx.pending();
            if after == before {
                return match error.map(|e| e.raw_os_error().unwrap_or(0)) {
                    Some(libc::EINVAL) => Flush::Wedged,
                    Some(libc::ENXIO | libc::ENETDOWN | libc::EBADF | libc::ENODEV) => Flush::Gone,
                    _ => Flush::Stalled,
                };
            }
            before = after;
        }
        Flush::Sent
    }

    fn kick(&self) -> Option<io::Error> {
        // SAFETY: plain system call on a live descriptor, without a buffer.
        let sent = unsafe {
            libc::sendto(
                self.socket.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        (sent < 0).then(io::Error::last_os_error)
    }

    /// Takes completed chunks back. Returns how many.
    pub(crate) fn complete(&mut self, pool: &mut FramePool, owners: &OwnerTable) -> u32 {
        let count = self.socket.completion.available();
        for at in 0..count {
            let frame = Frame::new(self.socket.completion.peek(at), 0);
            if owners.take(frame.chunk(), self.tag) {
                pool.free(frame);
            }
        }
        if count > 0 {
            self.socket.completion.release(count);
            self.outstanding = self.outstanding.saturating_sub(count);
        }
        count
    }
}

/// `struct xsk_tx_metadata` (include/uapi/linux/if_xdp.h) that asks for a
/// checksum: flags `u64`, then `csum_start` and `csum_offset`, both `u16` of
/// the host's order, then 12 bytes unused.
fn tx_metadata(checksum: TxChecksum) -> [u8; TX_METADATA_BYTES] {
    let mut bytes = [0; TX_METADATA_BYTES];
    bytes[..8].copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes());
    bytes[8..10].copy_from_slice(&checksum.start.to_ne_bytes());
    bytes[10..12].copy_from_slice(&checksum.offset.to_ne_bytes());
    bytes
}
