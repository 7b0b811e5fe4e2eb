//! One AF_XDP socket: open, register or share the frame memory, size the
//! rings, bind to a queue of a device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::frame::{FRAME_SIZE, TX_METADATA_BYTES};
use crate::umem::Umem;
use crate::xsk::ring::{Consumer, Producer};

/// Entries of the receive, transmit and fill rings.
pub(crate) const RING_SIZE: u32 = 2048;

/// Entries of the completion ring: a frame is sent (its transmit entry free
/// again) before it is completed, so more can be out than the transmit ring
/// holds.
pub(crate) const COMPLETION_RING_SIZE: u32 = 4096;

/// Descriptors that one `sendto` handles (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.18;
/// the default is 32). libc lacks the option's number.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const TX_BUDGET: libc::c_int = 512;

/// The default send buffer holds three super-frames.
const SEND_BUFFER_BYTES: libc::c_int = 32 << 20;

/// A socket before it is bound: its rings are made and mapped.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) rx: Consumer<libc::xdp_desc>,
    pub(crate) tx: Producer<libc::xdp_desc>,
    pub(crate) fill: Producer<u64>,
    pub(crate) completion: Consumer<u64>,
}

/// Where the frame memory comes from.
pub(crate) enum Memory<'a> {
    /// Registered by this socket.
    Register(&'a Umem),
    /// Shared from a bound socket.
    Share(BorrowedFd<'a>),
}

impl Socket {
    /// Opens a socket and binds it to queue `queue` of device `ifindex`, in
    /// copy mode with chains of descriptors.
    pub(crate) fn bind(ifindex: u32, queue: u32, memory: Memory<'_>) -> io::Result<Socket> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made the descriptor; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if let Memory::Register(umem) = &memory {
            register(fd.as_fd(), umem)?;
        }
        set(
            fd.as_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_FILL_RING,
            &RING_SIZE,
        )?;
        set(
            fd.as_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_COMPLETION_RING,
            &COMPLETION_RING_SIZE,
        )?;
        set(fd.as_fd(), libc::SOL_XDP, libc::XDP_RX_RING, &RING_SIZE)?;
        set(fd.as_fd(), libc::SOL_XDP, libc::XDP_TX_RING, &RING_SIZE)?;
        set(
            fd.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            &SEND_BUFFER_BYTES,
        )?;
        // Kernels before 6.18 lack it and send 32 at a time: slower, not wrong.
        let _ = set(fd.as_fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let offsets = offsets(fd.as_fd())?;
        let at = fd.as_fd();
        let rx = Consumer::map(at, libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, RING_SIZE)?;
        let tx = Producer::map(at, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, RING_SIZE)?;
        let fill = Producer::map(at, libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, RING_SIZE)?;
        let completion = Consumer::map(
            at,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING,
            &offsets.cr,
            COMPLETION_RING_SIZE,
        )?;
        let (flags, shared) = match memory {
            // Sharers inherit mode and chains from the first socket.
            Memory::Share(fd) => (libc::XDP_SHARED_UMEM, fd.as_raw_fd() as u32),
            Memory::Register(_) => (
                libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG,
                0,
            ),
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shared,
        };
        // SAFETY: the address is a live sockaddr_xdp of the given length.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Socket {
            fd: Arc::new(fd),
            rx,
            tx,
            fill,
            completion,
        })
    }
}

/// Registers the frame memory (`XDP_UMEM_REG`).
fn register(fd: BorrowedFd<'_>, umem: &Umem) -> io::Result<()> {
    let (addr, len) = umem.region();
    let registration = libc::xdp_umem_reg {
        addr,
        len,
        chunk_size: FRAME_SIZE as u32,
        headroom: 0,
        flags: libc::XDP_UMEM_TX_METADATA_LEN,
        tx_metadata_len: TX_METADATA_BYTES as u32,
    };
    set(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

/// Sets a socket option to a plain value.
fn set<T>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is live and of the given length; the kernel copies it.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads a socket option of a fixed size.
fn get<T>(fd: BorrowedFd<'_>, option: i32, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length are live; the kernel writes at most `len` bytes.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Where cursors and entries lie in the ring mappings.
fn offsets(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let mut offsets = libc::xdp_mmap_offsets {
        rx: none(),
        tx: none(),
        fr: none(),
        cr: none(),
    };
    get(fd, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    Ok(offsets)
}

/// What the kernel dropped before a lane could see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KernelDrops {
    /// The fill ring was empty.
    pub(crate) fill_empty: u64,
    /// The receive ring was full.
    pub(crate) ring_full: u64,
}

/// Reads the kernel's drop counters of a socket (`XDP_STATISTICS`).
pub(crate) fn kernel_drops(fd: BorrowedFd<'_>) -> io::Result<KernelDrops> {
    let mut statistics = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get(fd, libc::XDP_STATISTICS, &mut statistics)?;
    Ok(KernelDrops {
        fill_empty: statistics.rx_dropped,
        ring_full: statistics.rx_ring_full,
    })
}
