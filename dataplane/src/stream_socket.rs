//! A packet socket that brings a pod's bulk TCP.
//!
//! Generic XDP would copy it twice, into pages of its own and from there into
//! the frame memory, on the CPU that sends, and takes no more than 64 KiB at
//! once. A program at the pod's end leads it past that (`bpf/pod.bpf.c`); this
//! socket on the host's end gets it then, and the lane itself copies it, once,
//! into as many frames as it needs.
//!
//! A connection comes this way from its first long packet on. The lane empties
//! the port's ring first, so what was sent before stays before.
#![allow(unsafe_code)] // system calls, and the addresses of frames in them

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::frame::{FRAME_SIZE, Frame, LONGEST_SUPER_FRAME, MAX_FRAMES};
use crate::umem::{FramePool, Umem};

/// What may wait for the lane: some of the largest windows that TCP takes.
const RECEIVE_BUFFER_BYTES: libc::c_int = 64 << 20;

/// Every protocol, in network order.
const ETH_P_ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Distributes packets among the sockets of a group by their flow.
const FANOUT_HASH: libc::c_int = 0;

/// A socket that receives on one device.
#[derive(Debug)]
pub(crate) struct StreamSocket(OwnedFd);

impl StreamSocket {
    /// Opens a socket on device `ifindex`.
    pub(crate) fn open(ifindex: u32) -> io::Result<StreamSocket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // No protocol yet: nothing may arrive before the socket is bound.
        // SAFETY: plain system call.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made the descriptor; nobody else has it.
        let socket = StreamSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETH_P_ALL,
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a live sockaddr_ll of the given length.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match bound {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has each packet go to one of the sockets of a group alone, those of one
    /// flow always to the same. The group is `first`'s, which makes it.
    pub(crate) fn share(&self, first: Option<&StreamSocket>) -> io::Result<()> {
        const UNIQUE_ID: libc::c_int = 0x2000;
        let group = match first {
            None => (FANOUT_HASH | UNIQUE_ID) << 16,
            Some(first) => first.group()? | FANOUT_HASH << 16,
        };
        self.set(libc::SOL_PACKET, libc::PACKET_FANOUT, group)
    }

    /// Number of the group that the socket made.
    fn group(&self) -> io::Result<libc::c_int> {
        let mut group: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: value and length are live and of the kernel's sizes.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut group).cast(),
                &raw mut len,
            )
        };
        match done {
            0 => Ok(group & 0xffff),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set(&self, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the value is live and of the given length.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Packets that found the buffer full, since the last time of asking.
    pub(crate) fn take_lost(&self) -> u32 {
        let mut stats = [0u32; 2];
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: value and length are live and of the kernel's sizes
        // (`struct tpacket_stats`).
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if done == 0 { stats[1] } else { 0 }
    }

    /// Fills `spares` with the next packet, from the last one on, and gives its
    /// length, which is more than they hold when it was cut.
    fn receive(&self, umem: &Umem, spares: &mut [Frame]) -> Option<usize> {
        let mut parts = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MAX_FRAMES];
        let mut count = 0;
        for (part, frame) in parts.iter_mut().zip(spares.iter_mut().rev()) {
            let bytes = umem.bytes_mut(frame);
            part.iov_base = bytes.as_mut_ptr().cast();
            part.iov_len = bytes.len();
            count += 1;
        }
        // SAFETY: all-zero is a valid msghdr: no address, no parts, no control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = count;
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the parts point to the bytes of frames that the caller owns,
        // each within its chunk.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags) };
        usize::try_from(len).ok()
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
