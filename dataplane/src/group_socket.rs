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
#![allow(unsafe_code)] // system calls

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::frame::Frame;
use crate::umem::Umem;

/// Every protocol, in network order.
const ETH_P_ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Where a filter reads whether the card took a VLAN tag off
/// (`SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`, include/uapi/linux/filter.h).
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

/// Where a filter reads the packet's mark (`SKF_AD_OFF + SKF_AD_MARK`).
const MARK: u32 = 0xffff_f000 + 20;

/// On frames that the uplink receives from the host port; `bpf/uplink.bpf.c`
/// sets it and takes it off again.
const HOST_MARK: u32 = 0x5350_4c32;

/// One instruction of a socket filter.
const fn filter(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: jump_false,
        k,
    }
}

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IS_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;

/// Lets group frames of the wire pass that carried no VLAN tag.
static GROUP_FRAMES: [libc::sock_filter; 8] = [
    filter(LOAD_BYTE, 0, 0, 0),
    filter(IS_SET, 0, 5, 1),
    filter(LOAD_BYTE, 0, 0, VLAN_TAG_PRESENT),
    filter(EQUALS, 0, 3, 0),
    filter(LOAD_WORD, 0, 0, MARK),
    filter(EQUALS, 1, 0, HOST_MARK),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];

/// A socket that receives on one device.
#[derive(Debug)]
pub(crate) struct GroupSocket(OwnedFd);

impl GroupSocket {
    /// Opens a socket on device `ifindex` and makes that take every frame.
    pub(crate) fn open(ifindex: u32) -> io::Result<GroupSocket> {
        // No protocol yet: nothing may arrive before the filter is there.
        // SAFETY: plain system call.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made the descriptor; nobody else has it.
        let socket = GroupSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        let program = libc::sock_fprog {
            len: GROUP_FRAMES.len() as u16,
            filter: GROUP_FRAMES.as_ptr().cast_mut(),
        };
        socket.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let on: libc::c_int = 1;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: ifindex as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        socket.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
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

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the value is live and of the given length; the kernel copies it.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
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

    /// Fills `frame`, which is as long as a packet may be, with the next
    /// packet; gives the packet's length, which is more than the frame's when
    /// it was cut.
    pub(crate) fn receive(&self, umem: &Umem, frame: &mut Frame) -> Option<usize> {
        let bytes = umem.bytes_mut(frame);
        // SAFETY: the buffer is live and of the given length, and ours alone.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        usize::try_from(len).ok()
    }
}
