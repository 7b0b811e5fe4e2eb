//! Attaches an XDP program to a device by rtnetlink, so that it stays when the
//! process ends; one attached by a link of BPF's would go.
//!
//! A message holds `struct ifinfomsg` and the nested attribute `IFLA_XDP`
//! (include/uapi/linux/if_link.h).
#![allow(unsafe_code)] // opens the socket

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const HEADER_BYTES: usize = 16;
const INFO_BYTES: usize = 16;
/// Longer than what the kernel says of any one device.
const ANSWER_BYTES: usize = 64 * 1024;

const IFLA_XDP: u16 = 43;
const NESTED: u16 = 0x8000;
const XDP_FD: u16 = 1;
const XDP_ATTACHED: u16 = 2;
const XDP_FLAGS: u16 = 3;
const XDP_PROG_ID: u16 = 4;
const XDP_EXPECTED_FD: u16 = 8;

const ATTACHED_NATIVE: u8 = 1;
const ATTACHED_GENERIC: u8 = 2;

const FLAG_IF_NONE: u32 = 1;
const FLAG_GENERIC: u32 = 2;
const FLAG_NATIVE: u32 = 4;
const FLAG_REPLACE: u32 = 16;

/// How XDP is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the skb is made.
    Generic,
}

/// What is attached to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// The program's number in the kernel.
    pub(crate) program: u32,
    /// How.
    pub(crate) mode: XdpMode,
}

/// What is attached to a device; `None` for nothing, or for what is attached
/// in several ways or in hardware.
pub(crate) fn held(ifindex: u32) -> io::Result<Option<Held>> {
    let answer = exchange(libc::RTM_GETLINK, ifindex, &[])?;
    let attributes = answer.get(INFO_BYTES..).unwrap_or_default();
    let Some(xdp) = find(attributes, IFLA_XDP) else {
        return Ok(None);
    };
    let mode = match find(xdp, XDP_ATTACHED) {
        Some([ATTACHED_NATIVE, ..]) => XdpMode::Native,
        Some([ATTACHED_GENERIC, ..]) => XdpMode::Generic,
        Some(_) | None => return Ok(None),
    };
    let id = find(xdp, XDP_PROG_ID).and_then(|bytes| bytes.first_chunk());
    Ok(id.map(|id| Held {
        program: u32::from_ne_bytes(*id),
        mode,
    }))
}

/// What a device must have for it to be changed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Old<'a> {
    /// No program.
    None,
    /// This one.
    Program(BorrowedFd<'a>),
    /// Whatever it has, or nothing.
    Any,
}

/// Attaches `program` in the place of what is there.
pub(crate) fn attach(
    ifindex: u32,
    program: BorrowedFd<'_>,
    mode: XdpMode,
    old: Old<'_>,
) -> io::Result<()> {
    set(ifindex, program.as_raw_fd(), mode, old)
}

/// Detaches what is there.
pub(crate) fn detach(ifindex: u32, mode: XdpMode, old: Old<'_>) -> io::Result<()> {
    set(ifindex, -1, mode, old)
}

fn set(ifindex: u32, fd: i32, mode: XdpMode, old: Old<'_>) -> io::Result<()> {
    let flags = match mode {
        XdpMode::Native => FLAG_NATIVE,
        XdpMode::Generic => FLAG_GENERIC,
    };
    let mut xdp = Vec::new();
    append(&mut xdp, XDP_FD, fd.to_ne_bytes());
    match old {
        Old::Program(old) => {
            append(&mut xdp, XDP_FLAGS, (flags | FLAG_REPLACE).to_ne_bytes());
            append(&mut xdp, XDP_EXPECTED_FD, old.as_raw_fd().to_ne_bytes());
        }
        Old::None => append(&mut xdp, XDP_FLAGS, (flags | FLAG_IF_NONE).to_ne_bytes()),
        Old::Any => append(&mut xdp, XDP_FLAGS, flags.to_ne_bytes()),
    }
    let mut attributes = Vec::new();
    let len = (4 + xdp.len()) as u16;
    attributes.extend(len.to_ne_bytes());
    attributes.extend((IFLA_XDP | NESTED).to_ne_bytes());
    attributes.extend(xdp);
    exchange(libc::RTM_SETLINK, ifindex, &attributes).map(drop)
}

/// Appends an attribute of four bytes.
fn append(attributes: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    attributes.extend(8u16.to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
}

/// The value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (&[a, b, c, d], _) = attributes.split_first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & !NESTED;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

/// Asks the kernel one thing of a device in the calling thread's network
/// namespace. Gives the answer's body, empty for an acknowledgement.
fn exchange(kind: u16, ifindex: u32, attributes: &[u8]) -> io::Result<Vec<u8>> {
    // SAFETY: plain system call.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() just made the descriptor; nobody else has it.
    let mut socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let flags = match kind {
        libc::RTM_GETLINK => libc::NLM_F_REQUEST,
        _ => libc::NLM_F_REQUEST | libc::NLM_F_ACK,
    };
    let mut message = Vec::new();
    let len = (HEADER_BYTES + INFO_BYTES + attributes.len()) as u32;
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    // Family, padding and type; the index; flags and their mask.
    message.extend([0; 4]);
    message.extend(ifindex.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(attributes);
    // Unconnected, it is the kernel's; one write is one message.
    if socket.write(&message)? != message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut answer = vec![0; ANSWER_BYTES];
    let len = socket.read(&mut answer)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let answer = answer.get(..len).ok_or_else(invalid)?;
    let body = answer.get(HEADER_BYTES..).ok_or_else(invalid)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if i32::from(kind) != libc::NLMSG_ERROR {
        return Ok(body.to_vec());
    }
    let code = body.first_chunk().ok_or_else(invalid)?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(Vec::new()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
