//! A packet socket that brings copies of group frames from a bridged uplink.
//!
//! Broadcast and multicast (ARP, neighbour discovery, DHCP, mDNS) belong to
//! the node and to its pods alike. What the XDP program takes the kernel does
//! not get, so it leaves group frames to the kernel, and this socket copies
//! them for the pods. Nothing that the node sends itself comes back by it, and
//! nothing that the switch handed to the node (`HOST_MARK`).
//!
//! The socket also asks for frames to other MAC addresses than the
//! interface's own (the pods'); the kernel undoes that when the socket is
//! closed, however the process ends.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use crate::frame::Frame;
use crate::raw_socket::{RawSocket, Receive, instruction};
use crate::umem::Umem;

/// Where a filter reads whether the card took a VLAN tag off
/// (`SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`, include/uapi/linux/filter.h).
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

/// Where a filter reads the packet's mark (`SKF_AD_OFF + SKF_AD_MARK`).
const MARK: u32 = 0xffff_f000 + 20;

/// On frames that the uplink receives from the host port; `bpf/uplink.bpf.c`
/// sets it and takes it off again.
const HOST_MARK: u32 = 0x5350_4c32;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IS_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;

/// Lets group frames of the wire pass that carried no VLAN tag.
static GROUP_FRAMES: [libc::sock_filter; 8] = [
    instruction(LOAD_BYTE, 0, 0, 0),
    instruction(IS_SET, 0, 5, 1),
    instruction(LOAD_BYTE, 0, 0, VLAN_TAG_PRESENT),
    instruction(EQUALS, 0, 3, 0),
    instruction(LOAD_WORD, 0, 0, MARK),
    instruction(EQUALS, 1, 0, HOST_MARK),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];

/// A socket that receives on one device.
#[derive(Debug)]
pub(crate) struct GroupSocket(RawSocket);

impl GroupSocket {
    /// Opens a socket on device `ifindex` and makes that take every frame.
    pub(crate) fn open(ifindex: u32) -> io::Result<GroupSocket> {
        let socket = RawSocket::open()?;
        socket.set_program(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &GROUP_FRAMES)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.take_every_address(ifindex)?;
        socket.bind(ifindex, Receive::Everything)?;
        Ok(GroupSocket(socket))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Fills `frame`, which is as long as a packet may be, with the next
    /// packet; gives the packet's length, which is more than the frame's when
    /// it was cut.
    pub(crate) fn receive(&self, umem: &Umem, frame: &mut Frame) -> Option<usize> {
        self.0
            .receive(&mut [IoSliceMut::new(umem.bytes_mut(frame))])
    }
}
