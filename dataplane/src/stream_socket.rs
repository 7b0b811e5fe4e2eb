//! A packet socket that brings a pod's bulk TCP.
//!
//! Generic XDP would copy it twice, into pages of its own and from there into
//! the frame memory, on the CPU that sends, and takes no more than 64 KiB at
//! once. A program at the pod's end leads it past that (`bpf/pod.bpf.c`); this
//! socket on the host's end gets it then, and the lane itself copies it, once,
//! into as many frames as it needs.
//!
//! A connection comes this way from its first long packet on. The lane empties
//! the port's ring first, so what was sent before stays before ([`Behind`]).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use crate::frame::{FRAME_SIZE, Frame, LONGEST_SUPER_FRAME, MAX_FRAMES};
use crate::raw_socket::{RawSocket, Receive, instruction};
use crate::umem::{FramePool, Umem};

/// What may wait for the lane: some of the largest windows that TCP takes.
const RECEIVE_BUFFER_BYTES: libc::c_int = 64 << 20;

/// Where a program reads the queue that a packet was sent by
/// (`SKF_AD_OFF + SKF_AD_QUEUE`, include/uapi/linux/filter.h).
const QUEUE: u32 = 0xffff_f000 + 24;

/// Chooses the socket of a group as generic XDP chooses the receive queue
/// (`netif_get_rxqueue`, net/core/dev.c): the pod's transmit queue less one. So
/// the lane that has a connection keeps it when it changes its way.
static QUEUE_OF_XDP: [libc::sock_filter; 4] = [
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, QUEUE),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0),
    instruction(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, 0, 0, 1),
    instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
];

/// A socket that receives on one device.
#[derive(Debug)]
pub(crate) struct StreamSocket(RawSocket);

impl StreamSocket {
    /// Opens a socket on device `ifindex`.
    pub(crate) fn open(ifindex: u32) -> io::Result<StreamSocket> {
        let socket = RawSocket::open()?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        socket.bind(ifindex, Receive::Everything)?;
        Ok(StreamSocket(socket))
    }

    /// Has each packet go to one of the sockets of a group alone, in the order
    /// in which they join: those of XDP's first queue to the first. The group
    /// is `first`'s, which makes it.
    pub(crate) fn share(&self, first: Option<&StreamSocket>) -> io::Result<()> {
        const UNIQUE_ID: libc::c_int = 0x2000;
        // include/uapi/linux/if_packet.h
        const PACKET_FANOUT_DATA: libc::c_int = 22;
        let kind = libc::PACKET_FANOUT_CBPF as libc::c_int;
        let (kind, number) = match first {
            None => (kind | UNIQUE_ID, 0),
            Some(first) => (kind, first.group()?),
        };
        let group = kind << 16 | libc::c_int::from(number);
        self.0.set(libc::SOL_PACKET, libc::PACKET_FANOUT, group)?;
        match first {
            None => self
                .0
                .set_program(libc::SOL_PACKET, PACKET_FANOUT_DATA, &QUEUE_OF_XDP),
            Some(_) => Ok(()),
        }
    }

    /// Number of the group that the socket made.
    fn group(&self) -> io::Result<u16> {
        let [group] = self.0.get(libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        Ok(group as u16)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Packets that found the buffer full, since the last time of asking.
    pub(crate) fn take_lost(&self) -> u32 {
        // `struct tpacket_stats`: what came, and what was lost of it.
        let stats = self.0.get(libc::SOL_PACKET, libc::PACKET_STATISTICS);
        stats.map_or(0, |[_, lost]| lost)
    }

    /// Fills `spares` with the next packet, from the last one on, and gives its
    /// length, which is more than they hold when it was cut.
    fn receive(&self, umem: &Umem, spares: &mut [Frame]) -> Option<usize> {
        let mut parts: [IoSliceMut<'_>; MAX_FRAMES] =
            std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut count = 0;
        for (part, frame) in parts.iter_mut().zip(spares.iter_mut().rev()) {
            *part = IoSliceMut::new(umem.bytes_mut(frame));
            count += 1;
        }
        self.0.receive(&mut parts[..count])
    }
}

/// Frames that a lane has ready for the longest packet. The last one is used
/// first, and it is the one that was used last: the warmest.
#[derive(Debug, Default)]
pub(crate) struct Spares(Vec<Frame>);

/// What came of looking for a packet.
pub(crate) enum Came {
    /// Its frames were handed over.
    Packet,
    /// It was lost: too long, or there are not enough free frames.
    Lost,
    /// There is none.
    Nothing,
}

impl Spares {
    /// Takes the next packet of a socket, and hands its frames over.
    pub(crate) fn receive(
        &mut self,
        socket: &StreamSocket,
        umem: &Umem,
        pool: &mut FramePool,
        take: impl FnOnce(std::iter::Rev<std::vec::Drain<'_, Frame>>),
    ) -> Came {
        while self.0.len() < MAX_FRAMES
            && let Some(mut frame) = pool.alloc()
        {
            match frame.resize(FRAME_SIZE - frame.headroom()) {
                true => self.0.push(frame),
                false => pool.free(frame),
            }
        }
        let Some(len) = socket.receive(umem, &mut self.0) else {
            return Came::Nothing;
        };
        let (mut left, mut used) = (len, 0);
        for frame in self.0.iter_mut().rev() {
            let part = left.min(frame.len());
            if part == 0 || !frame.resize(part) {
                break;
            }
            left -= part;
            used += 1;
        }
        let kept = self.0.len() - used;
        if left > 0 || len == 0 || len > LONGEST_SUPER_FRAME {
            self.0.drain(kept..).for_each(|frame| pool.free(frame));
            return Came::Lost;
        }
        take(self.0.drain(kept..).rev());
        Came::Packet
    }

    /// Gives the frames back.
    pub(crate) fn release(&mut self, pool: &mut FramePool) {
        self.0.drain(..).for_each(|frame| pool.free(frame));
    }
}

/// A packet that has to wait: the port's ring had others when it came, more
/// than the batch had room for, and some may be its connection's.
#[derive(Debug)]
pub(crate) struct Behind {
    frames: Vec<Frame>,
    /// Descriptors of the ring that go first.
    ahead: u32,
}

impl Behind {
    /// With room for the longest packet.
    pub(crate) fn new() -> Behind {
        Behind {
            frames: Vec::with_capacity(MAX_FRAMES),
            ahead: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Keeps a packet until so many descriptors were taken.
    pub(crate) fn keep(&mut self, ahead: u32, frames: impl Iterator<Item = Frame>) {
        self.frames.extend(frames);
        self.ahead = ahead;
    }

    /// Notes that so many were taken. Gives the packet when it is its turn.
    pub(crate) fn follow(
        &mut self,
        taken: u32,
    ) -> Option<impl ExactSizeIterator<Item = Frame> + '_> {
        self.ahead = self.ahead.saturating_sub(taken);
        (self.ahead == 0 && !self.is_empty()).then(|| self.frames.drain(..))
    }

    /// Gives its frames back, and says whether there was a packet.
    pub(crate) fn release(&mut self, pool: &mut FramePool) -> bool {
        let was_kept = !self.is_empty();
        self.frames.drain(..).for_each(|frame| pool.free(frame));
        was_kept
    }
}
