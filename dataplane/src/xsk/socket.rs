//! One AF_XDP socket: open, register or share the frame memory, size the
//! rings, bind to a queue of a device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::frame::{FRAME_SIZE, TX_METADATA_BYTES};
use crate::umem::Umem;
use crate::xsk::ring::{Consumer, Producer};

/// Entries of the receive, transmit and fill rings, where a device has no
/// longer ones. The completion ring is twice as long: a frame is sent (its
/// transmit entry free again) before it is completed, so more can be out than
/// the transmit ring holds.
pub(crate) const RING_SIZE: u32 = 2048;

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
    /// Entries of the receive, transmit and fill rings.
    pub(crate) ring_size: u32,
    pub(crate) rx: Consumer<libc::xdp_desc>,
    pub(crate) tx: Producer<libc::xdp_desc>,
    pub(crate) fill: Producer<u64>,
    pub(crate) completion: Consumer<u64>,
}

/// Where the frame memory comes from.
pub(crate) enum Memory<'a> {
    /// Registered by this socket. Sharers follow it in how frames move.
    Register(&'a Umem, Transfer),
    /// Shared from a bound socket.
    Share(BorrowedFd<'a>),
}

/// How frames move between a device and the frame memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Copied by the kernel, in chains of descriptors.
    Copy,
    /// The device reads and writes the frame memory itself.
    ZeroCopy {
        /// Whether packets may take several frames.
        chains: bool,
    },
}

impl Transfer {
    fn flags(self) -> u16 {
        let how = match self {
            Transfer::Copy => libc::XDP_COPY | libc::XDP_USE_SG,
            Transfer::ZeroCopy { chains: true } => libc::XDP_ZEROCOPY | libc::XDP_USE_SG,
            Transfer::ZeroCopy { chains: false } => libc::XDP_ZEROCOPY,
        };
        how | libc::XDP_USE_NEED_WAKEUP
    }
}

impl Socket {
    /// Opens a socket with rings of `ring_size` entries and binds it to queue
    /// `queue` of device `ifindex`.
    pub(crate) fn bind(
        ifindex: u32,
        queue: u32,
        memory: Memory<'_>,
        ring_size: u32,
    ) -> io::Result<Socket> {
        let completions = ring_size * 2;
        // SAFETY: plain system call.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket() just made the descriptor; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if let Memory::Register(umem, _) = &memory {
            register(fd.as_fd(), umem)?;
        }
        set(
            fd.as_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_FILL_RING,
            &ring_size,
        )?;
        set(
            fd.as_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_COMPLETION_RING,
            &completions,
        )?;
        set(fd.as_fd(), libc::SOL_XDP, libc::XDP_RX_RING, &ring_size)?;
        set(fd.as_fd(), libc::SOL_XDP, libc::XDP_TX_RING, &ring_size)?;
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
        let rx = Consumer::map(at, libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, ring_size)?;
        let tx = Producer::map(at, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, ring_size)?;
        let fill = Producer::map(at, libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, ring_size)?;
        let completion = Consumer::map(
            at,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING,
            &offsets.cr,
            completions,
        )?;
        let (flags, shared) = match memory {
            // Sharers inherit mode and chains from the first socket.
            Memory::Share(fd) => (libc::XDP_SHARED_UMEM, fd.as_raw_fd() as u32),
            Memory::Register(_, transfer) => (transfer.flags(), 0),
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
            ring_size,
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
