//! Frames, packets in a batch, and what becomes of them.
//!
//! A [`Frame`] is the right to one chunk of the UMEM. It cannot be copied: it
//! ends on a ring (fill or transmit) or on a free list. A packet is a run of
//! frames in a [`Batch`]; the pipeline gives each packet one [`Verdict`].

use crate::drops::DropReason;
use crate::types::{NextHopId, PortId, SegmentId, VtepId};

/// Bytes of one chunk.
pub const FRAME_SIZE: usize = 4096;

/// Bytes that stay free before received data: the kernel's
/// `XDP_PACKET_HEADROOM`. Replies and outer headers are written there.
pub const HEADROOM: usize = 256;

/// Bytes right before a frame's data that belong to the transmit metadata
/// (`struct xsk_tx_metadata`, include/uapi/linux/if_xdp.h).
pub const TX_METADATA_BYTES: usize = 24;

/// Most descriptors of one packet on a ring: `MAX_SKB_FRAGS` + 1
/// (net/xdp/xsk.c).
pub const MAX_CHAIN: usize = 18;

/// Most frames of one packet: what pods' TCP sends at once comes and leaves by
/// packet sockets, which have no such bound.
pub const MAX_FRAMES: usize = 64;

/// Longest TCP super-frame that fits them, Ethernet header included.
pub const LONGEST_SUPER_FRAME: usize = MAX_FRAMES * (FRAME_SIZE - HEADROOM);

/// The right to one chunk of the UMEM, and where the data lies in it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame ends by transmit or free; dropping it loses the chunk"]
pub struct Frame {
    offset: u64,
    len: u32,
}

impl Frame {
    /// Takes the chunk that holds `offset`, with `len` bytes of data there.
    /// Only the UMEM and the rings make frames: each chunk has one owner.
    pub(crate) const fn new(offset: u64, len: u32) -> Frame {
        Frame { offset, len }
    }

    /// Where the data begins, in bytes from the start of the UMEM.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of data.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it holds no data.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Index of the chunk.
    pub const fn chunk(&self) -> usize {
        (self.offset as usize) / FRAME_SIZE
    }

    /// Free bytes before the data, inside the chunk.
    pub const fn headroom(&self) -> usize {
        (self.offset as usize) % FRAME_SIZE
    }

    /// Free bytes behind the data, inside the chunk.
    pub const fn tailroom(&self) -> usize {
        FRAME_SIZE - self.headroom() - self.len as usize
    }

    /// Grows the data to the front by `bytes`; `false` and unchanged when the
    /// headroom, less what transmit metadata needs, is smaller.
    #[must_use]
    pub fn push_front(&mut self, bytes: usize) -> bool {
        let fits = self.headroom() >= bytes + TX_METADATA_BYTES;
        if fits {
            self.offset -= bytes as u64;
            self.len += bytes as u32;
        }
        fits
    }

    /// Cuts `bytes` off the front; `false` and unchanged when there are fewer.
    #[must_use]
    pub fn pull_front(&mut self, bytes: usize) -> bool {
        let fits = self.len() >= bytes;
        if fits {
            self.offset += bytes as u64;
            self.len -= bytes as u32;
        }
        fits
    }

    /// Sets the data's length; `false` and unchanged when the chunk is too
    /// small for it.
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        let fits = self.headroom() + len <= FRAME_SIZE;
        if fits {
            self.len = len as u32;
        }
        fits
    }
}

/// Where the kernel or the device is to put a checksum: the field holds the
/// pseudo-header's sum, and the sum runs from `start` to the packet's end
/// (`XDP_TXMD_FLAGS_CHECKSUM`). Both offsets lie within the head frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxChecksum {
    /// First byte that is summed, from the start of the Ethernet frame.
    pub start: u16,
    /// Where the field is, from `start`.
    pub offset: u16,
}

/// A neighbour that packets wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// A next hop of the snapshot.
    NextHop(NextHopId),
    /// A station of the uplink's own network that the snapshot does not have
    /// yet, by a digest of its address.
    Station(u32),
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves by one port, as it lies in its frames.
    Forward {
        /// The port.
        out: PortId,
        /// Checksum left to the receiver or its device.
        checksum: Option<TxChecksum>,
    },
    /// Leaves by one port in pieces of at most `mtu` bytes of IP packet: a
    /// TCP super-frame in segments, another IPv4 packet in fragments
    /// ([`crate::pipeline::segment::segment`] does both).
    Segment {
        /// The port.
        out: PortId,
        /// Longest IP packet.
        mtu: u32,
    },
    /// Leaves through the overlay in pieces of at most `mtu` bytes of inner
    /// IP packet, each behind outer headers of its own.
    Tunnel {
        /// The remote end.
        vtep: VtepId,
        /// Longest inner IP packet.
        mtu: u32,
        /// UDP source port of the outer packets.
        source_port: u16,
    },
    /// Waits, as it came, until the neighbour that it goes to is resolved.
    Wait(Awaited),
    /// Leaves by every port of the segment but the one it came by, and
    /// through the overlay to every remote end of it unless it came from one.
    Flood {
        /// The segment.
        segment: SegmentId,
        /// Checksum left to the receivers or their devices.
        checksum: Option<TxChecksum>,
        /// Longest IP packets of a super-frame that is cut on the way out, in
        /// bytes, where ports would take longer ones.
        mtu: u16,
    },
    /// The switch's own answer, written over the request (ARP, neighbour
    /// advertisement, echo reply): goes back by the port it came by. When
    /// `dropped` is set the request counts as dropped for that reason (time
    /// exceeded, fragmentation needed, unreachable). Only the head frame is
    /// sent, the others are freed.
    Reply {
        /// Why the packet that is answered got no further.
        dropped: Option<DropReason>,
    },
    /// Goes nowhere.
    Drop(DropReason),
}

/// A packet of a batch: a run of `Batch::frames`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Index of its head frame in the batch.
    pub first: u32,
    /// Frames it has, head included.
    pub frames: u8,
    /// Bytes in all its frames.
    pub len: u32,
    /// Port that it came by.
    pub in_port: PortId,
    /// Remote end of the overlay that it came from; its outer headers are off.
    pub vtep: Option<VtepId>,
    /// Merged here from TCP segments: its checksum is partial.
    pub is_merged: bool,
    /// What becomes of it; set by the pipeline.
    pub verdict: Verdict,
}

/// Why a packet of the pipeline has its head frame.
const HEADS_STAY: &str = "frames leave a batch only after the pipeline";

/// Packets taken from one port's ring in one go. Empty between rounds; its
/// memory is kept.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) frames: Vec<Option<Frame>>,
    pub(crate) packets: Vec<Packet>,
}

impl Batch {
    /// Packets that one batch takes at most.
    pub const MAX_PACKETS: usize = 64;

    /// A batch with room for a full round, so that no round allocates.
    pub fn new() -> Batch {
        Batch {
            frames: Vec::with_capacity(Self::MAX_PACKETS * MAX_CHAIN),
            packets: Vec::with_capacity(Self::MAX_PACKETS),
        }
    }

    /// Packets in the batch.
    #[inline]
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds a packet of one or more frames; nothing when there is none.
    pub fn push(&mut self, in_port: PortId, frames: impl IntoIterator<Item = Frame>) {
        let first = self.frames.len();
        self.frames.extend(frames.into_iter().map(Some));
        let chain = &self.frames[first..];
        if chain.is_empty() {
            return;
        }
        self.packets.push(Packet {
            first: first as u32,
            frames: chain.len() as u8,
            len: chain.iter().flatten().map(|frame| frame.len() as u32).sum(),
            in_port,
            vtep: None,
            is_merged: false,
            verdict: Verdict::Drop(DropReason::BrokenChain),
        });
    }

    /// The head frame of packet `index`.
    #[inline]
    pub fn head(&self, index: usize) -> &Frame {
        let first = self.packets[index].first as usize;
        self.frames[first].as_ref().expect(HEADS_STAY)
    }

    /// The head frame of packet `index`, to rewrite it.
    #[inline]
    pub fn head_mut(&mut self, index: usize) -> &mut Frame {
        let first = self.packets[index].first as usize;
        self.frames[first].as_mut().expect(HEADS_STAY)
    }

    /// All frames of packet `index`, head first.
    pub fn chain(&self, index: usize) -> impl Iterator<Item = &Frame> + Clone {
        let packet = &self.packets[index];
        let first = packet.first as usize;
        self.frames[first..first + usize::from(packet.frames)]
            .iter()
            .flatten()
    }

    /// Sets what becomes of packet `index`.
    #[inline]
    pub fn decide(&mut self, index: usize, verdict: Verdict) {
        self.packets[index].verdict = verdict;
    }

    /// Grows packet `index` to the front by `bytes`, and gives its head frame;
    /// `None` and unchanged when that has no room.
    #[inline]
    pub(crate) fn push_front(&mut self, index: usize, bytes: usize) -> Option<&mut Frame> {
        let packet = &mut self.packets[index];
        let head = self.frames[packet.first as usize].as_mut();
        let head = head.expect(HEADS_STAY);
        if !head.push_front(bytes) {
            return None;
        }
        packet.len += bytes as u32;
        Some(head)
    }

    /// Cuts `bytes` off the front of packet `index`; `false` and unchanged
    /// when its head frame has fewer.
    #[inline]
    #[must_use]
    pub(crate) fn pull_front(&mut self, index: usize, bytes: usize) -> bool {
        let fits = self.head_mut(index).pull_front(bytes);
        if fits {
            self.packets[index].len -= bytes as u32;
        }
        fits
    }

    /// Notes that packet `index` came out of the overlay.
    pub(crate) fn came_from(&mut self, index: usize, vtep: VtepId) {
        self.packets[index].vtep = Some(vtep);
    }

    /// Cuts what follows the first `len` bytes of packet `index`: padding of
    /// short Ethernet frames. `false` and unchanged when more than its last
    /// frame would go, or when there are fewer bytes.
    #[must_use]
    pub fn trim(&mut self, index: usize, len: usize) -> bool {
        let packet = &mut self.packets[index];
        let last = packet.first as usize + usize::from(packet.frames) - 1;
        let Some(frame) = self.frames[last].as_mut() else {
            return false;
        };
        let Some(kept) = (len + frame.len()).checked_sub(packet.len as usize) else {
            return false;
        };
        let fits = kept > 0 && kept <= frame.len() && frame.resize(kept);
        if fits {
            packet.len = len as u32;
        }
        fits
    }

    /// Takes the frames of packet `index` out; what follows is the caller's
    /// to transmit or free.
    pub(crate) fn take(&mut self, index: usize) -> impl Iterator<Item = Frame> + '_ {
        let packet = self.packets[index];
        let first = packet.first as usize;
        self.frames[first..first + usize::from(packet.frames)]
            .iter_mut()
            .filter_map(Option::take)
    }

    /// Forgets the round. Every frame must have been taken.
    pub(crate) fn clear(&mut self) {
        debug_assert!(
            self.frames.iter().all(Option::is_none),
            "frames left in a batch are lost"
        );
        self.frames.clear();
        self.packets.clear();
    }
}
