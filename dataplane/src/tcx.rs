//! Puts a program on an interface for as long as the interface exists.
//!
//! A link would go with the process, and a pod's TCP would fall back to another
//! way while the agent is away. Attached by itself (`BPF_PROG_ATTACH`), a
//! program stays until its interface goes (kernel/bpf/tcx.c).
#![allow(unsafe_code)] // the bpf system call

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `enum bpf_cmd` and `enum bpf_attach_type`, include/uapi/linux/bpf.h.
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_TCX_EGRESS: u32 = 47;

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
#[derive(Default)]
struct Attachment {
    target_ifindex: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

/// Attaches a classifier at the egress hook of interface `ifindex` of the
/// calling thread's network namespace, behind what is there. Fine when it is
/// there already.
pub(crate) fn attach_egress(ifindex: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let attachment = Attachment {
        target_ifindex: ifindex,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_TCX_EGRESS,
        ..Attachment::default()
    };
    // SAFETY: the structure is live and of the given length; the kernel only
    // reads it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attachment,
            size_of::<Attachment>(),
        )
    };
    let error = io::Error::last_os_error();
    match done {
        0 => Ok(()),
        _ if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        _ => Err(error),
    }
}
