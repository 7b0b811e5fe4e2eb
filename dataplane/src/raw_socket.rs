//! A packet socket (packet(7)) bound to one device: the system calls beneath
//! `group_socket`, `packet_socket` and `stream_socket`, which say what each is
//! for.
//!
//! It has no protocol until it is bound, so nothing arrives before its options
//! and its filter are in place; and it never blocks.
#![allow(unsafe_code)] // system calls

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of a classic program.
pub(crate) const fn instruction(
    code: u32,
    jump_true: u8,
    jump_false: u8,
    k: u32,
) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: jump_false,
        k,
    }
}

/// What a bound socket receives (`sll_protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receive {
    /// Nothing: it only sends.
    Nothing,
    /// Packets of every protocol.
    Everything,
}

/// A packet socket.
#[derive(Debug)]
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens a socket, not yet bound.
    pub(crate) fn open() -> io::Result<RawSocket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: plain system call.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made the descriptor; nobody else has it.
        Ok(RawSocket(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Binds it to device `ifindex`.
    pub(crate) fn bind(&self, ifindex: u32, receive: Receive) -> io::Result<()> {
        let protocol = match receive {
            Receive::Nothing => 0,
            Receive::Everything => (libc::ETH_P_ALL as u16).to_be(),
        };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a live sockaddr_ll of the given length.
        done(unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })
    }

    /// Sets an option that is a number.
    pub(crate) fn set(&self, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
        self.set_value(level, option, &value)
    }

    /// Sets an option that is a classic program.
    pub(crate) fn set_program(
        &self,
        level: i32,
        option: i32,
        instructions: &[libc::sock_filter],
    ) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
            filter: instructions.as_ptr().cast_mut(),
        };
        self.set_value(level, option, &program)
    }

    /// Has device `ifindex` take frames to every address while the socket is
    /// open.
    pub(crate) fn take_every_address(&self, ifindex: u32) -> io::Result<()> {
        let promiscuous = libc::packet_mreq {
            mr_ifindex: ifindex as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set_value(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)
    }

    fn set_value<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the value is live and of the given length, and so is what it
        // points to; the kernel copies it.
        done(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        })
    }

    /// Reads an option of `N` numbers.
    pub(crate) fn get<const N: usize>(&self, level: i32, option: i32) -> io::Result<[u32; N]> {
        let mut values = [0; N];
        let mut len = size_of_val(&values) as libc::socklen_t;
        // SAFETY: values and length are live; the kernel writes no more than
        // the length says.
        done(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        })?;
        Ok(values)
    }

    /// Sends one packet of so many pieces; the kernel has its own copy when
    /// this returns.
    pub(crate) fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        // SAFETY: all-zero is a valid msghdr: no address, no parts, no control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut().cast();
        message.msg_iovlen = pieces.len();
        // SAFETY: an IoSlice is an iovec, of bytes borrowed for this call; the
        // kernel only reads them.
        let sent =
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        match sent {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Fills the pieces with the next packet, and gives the packet's length,
    /// which is more than theirs when it was cut.
    pub(crate) fn receive(&self, pieces: &mut [IoSliceMut<'_>]) -> Option<usize> {
        // SAFETY: all-zero is a valid msghdr: no address, no parts, no control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr().cast();
        message.msg_iovlen = pieces.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: an IoSliceMut is an iovec, of bytes borrowed for this call
        // and for nobody else.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags) };
        usize::try_from(len).ok()
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a system call that gives 0 or -1 says.
fn done(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
