//! An AF_XDP socket that only sends: the crate's kernel boundary for it.
//!
//! Packets are copied into chunks of a memory that is shared with the kernel
//! (UMEM), their descriptors put into the transmit ring, and their chunks
//! taken back from the completion ring. One thread owns all of it. The rings
//! are not the data path's: a sender that shared a fault with what it measures
//! would hide it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a chunk, the kernel's most; a longer packet takes several.
const CHUNK_BYTES: usize = 4096;
const CHUNKS: u32 = 2048;
const RING_SIZE: u32 = 2048;
/// The kernel's most for one packet.
const MAX_CHUNKS_PER_PACKET: usize = 17;
/// Largest packet, on the device.
pub(crate) const MAX_PACKET_BYTES: usize = CHUNK_BYTES * MAX_CHUNKS_PER_PACKET;

/// Memory shared with the kernel; unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Anonymous memory without a descriptor, else a ring of the socket.
    fn new(bytes: usize, ring: Option<(&OwnedFd, i64)>) -> io::Result<Mapping> {
        let (fd, offset, flags) = match ring {
            Some((fd, offset)) => (
                fd.as_raw_fd(),
                offset,
                libc::MAP_SHARED | libc::MAP_POPULATE,
            ),
            None => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches
        // no memory of ours. There is no safe form: mmap(2) is raw.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, bytes })
    }

    /// The value at an offset that the kernel gave.
    fn at<T>(&self, offset: u64) -> NonNull<T> {
        let offset = offset as usize;
        assert!(offset + size_of::<T>() <= self.bytes, "inside the mapping");
        // SAFETY: the offset lies inside the mapping, as just checked. Rings
        // are reached by offset; there is no safe form.
        unsafe { self.start.add(offset) }.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing derived from it outlives
        // the socket that owns it. There is no safe form of munmap(2).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// One of the socket's rings, of elements `T`.
#[derive(Debug)]
struct Ring<T> {
    _mapping: Mapping,
    /// Written by whoever puts elements in.
    producer: NonNull<AtomicU32>,
    /// Written by whoever takes them out.
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    first: NonNull<T>,
    /// Our own position: the next to put in, or to take out.
    position: u32,
}

impl<T: Copy> Ring<T> {
    fn new(socket: &OwnedFd, offset: i64, places: &libc::xdp_ring_offset) -> io::Result<Ring<T>> {
        let bytes = places.desc as usize + RING_SIZE as usize * size_of::<T>();
        let mapping = Mapping::new(bytes, Some((socket, offset)))?;
        Ok(Ring {
            producer: mapping.at(places.producer),
            consumer: mapping.at(places.consumer),
            flags: mapping.at(places.flags),
            first: mapping.at(places.desc),
            _mapping: mapping,
            position: 0,
        })
    }

    fn word(&self, which: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: it points into the mapping, which lives as long as `self`;
        // the kernel and we only touch it atomically. No safe form exists for
        // memory that another party writes.
        unsafe { which.as_ref() }
    }

    fn element(&self, position: u32) -> NonNull<T> {
        // SAFETY: masked, it lies inside the ring, whose size was mapped.
        unsafe { self.first.add((position & (RING_SIZE - 1)) as usize) }
    }

    /// Elements that can be put in. Acquire: the kernel is done with them.
    fn room(&self) -> u32 {
        let taken = self.word(self.consumer).load(Ordering::Acquire);
        RING_SIZE - self.position.wrapping_sub(taken)
    }

    /// Puts one in; there must be room.
    fn put(&mut self, value: T) {
        // SAFETY: the element is ours until `publish` gives it to the kernel.
        unsafe { self.element(self.position).write(value) };
        self.position = self.position.wrapping_add(1);
    }

    /// Gives the kernel what was put in. Release: elements before position.
    fn publish(&self) {
        self.word(self.producer)
            .store(self.position, Ordering::Release);
    }

    /// Takes one out, if there is one.
    fn take(&mut self) -> Option<T> {
        // Acquire: the kernel wrote the element before it moved on.
        let put = self.word(self.producer).load(Ordering::Acquire);
        if put == self.position {
            return None;
        }
        // SAFETY: the kernel has finished this element and leaves it to us
        // until the consumer moves past it.
        let value = unsafe { self.element(self.position).read() };
        self.position = self.position.wrapping_add(1);
        self.word(self.consumer)
            .store(self.position, Ordering::Release);
        Some(value)
    }
}

/// A sending socket on one queue of a device.
#[derive(Debug)]
pub(crate) struct SendingSocket {
    transmit: Ring<libc::xdp_desc>,
    completion: Ring<u64>,
    free: Vec<u64>,
    memory: Mapping,
    socket: OwnedFd,
}

impl SendingSocket {
    /// On `queue` of the device `ifindex` of the calling thread's namespace,
    /// in copy mode, which every driver has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn open(ifindex: u32, queue: u32) -> io::Result<SendingSocket> {
        // SAFETY: takes no pointers. AF_XDP has no safe constructor.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned this descriptor; nobody owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = Mapping::new(CHUNK_BYTES * CHUNKS as usize, None)?;
        let umem = libc::xdp_umem_reg {
            addr: memory.start.addr().get() as u64,
            len: memory.bytes as u64,
            chunk_size: CHUNK_BYTES as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(&socket, libc::XDP_UMEM_REG, &umem)?;
        // Without a fill ring the kernel does not bind, sender or not.
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_TX_RING,
        ] {
            set_option(&socket, ring, &RING_SIZE)?;
        }
        let places = ring_places(&socket)?;
        let transmit = Ring::new(&socket, libc::XDP_PGOFF_TX_RING, &places.tx)?;
        let completion_at = libc::XDP_UMEM_PGOFF_COMPLETION_RING.cast_signed();
        let completion = Ring::new(&socket, completion_at, &places.cr)?;
        bind(&socket, ifindex, queue)?;
        Ok(SendingSocket {
            transmit,
            completion,
            free: (0..u64::from(CHUNKS))
                .map(|chunk| chunk * CHUNK_BYTES as u64)
                .collect(),
            memory,
            socket,
        })
    }

    /// Copies a packet in line; `false` when there is no room yet.
    ///
    /// # Panics
    /// When it is longer than [`MAX_PACKET_BYTES`].
    pub(crate) fn push(&mut self, packet: &[u8]) -> bool {
        assert!(packet.len() <= MAX_PACKET_BYTES, "{} bytes", packet.len());
        let chunks = packet.len().div_ceil(CHUNK_BYTES);
        if self.free.len() < chunks || (self.transmit.room() as usize) < chunks {
            self.reclaim();
            if self.free.len() < chunks || (self.transmit.room() as usize) < chunks {
                return false;
            }
        }
        let mut left = packet.chunks(CHUNK_BYTES).peekable();
        while let Some(part) = left.next() {
            let chunk = self.free.pop().expect("as many chunks as were counted");
            let memory: NonNull<[u8; CHUNK_BYTES]> = self.memory.at(chunk);
            // SAFETY: the chunk is free: the kernel has completed it and no
            // other reference to it exists.
            let bytes = unsafe { memory.cast::<[u8; CHUNK_BYTES]>().as_mut() };
            bytes[..part.len()].copy_from_slice(part);
            self.transmit.put(libc::xdp_desc {
                addr: chunk,
                len: part.len() as u32,
                options: if left.peek().is_some() {
                    libc::XDP_PKT_CONTD
                } else {
                    0
                },
            });
        }
        true
    }

    /// Gives the kernel what was pushed, and its time to send.
    ///
    /// # Errors
    /// When the device is gone or down.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.transmit.publish();
        let flags = self.transmit.word(self.transmit.flags);
        if flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP == 0 {
            return Ok(());
        }
        let fd = self.socket.as_raw_fd();
        // SAFETY: sends nothing from our memory (no buffer, no address). The
        // wake-up of an AF_XDP socket has no safe form in the standard library.
        let result = unsafe {
            libc::sendto(
                fd,
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The kernel's own budget, or full queues: it goes on next time.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(()),
            _ => Err(error),
        }
    }

    /// Packets' chunks that the kernel still has.
    pub(crate) fn outstanding(&mut self) -> usize {
        self.reclaim();
        CHUNKS as usize - self.free.len()
    }

    fn reclaim(&mut self) {
        while let Some(chunk) = self.completion.take() {
            self.free.push(chunk);
        }
    }
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let value: *const T = value;
    let fd = socket.as_raw_fd();
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is live and of the size that is passed along; the
    // kernel only reads it. AF_XDP's options have no safe form.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, value.cast(), bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn ring_places(socket: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let mut places = libc::xdp_mmap_offsets {
        rx: none(),
        tx: none(),
        fr: none(),
        cr: none(),
    };
    let mut bytes = size_of_val(&places) as libc::socklen_t;
    let fd = socket.as_raw_fd();
    let to: *mut libc::xdp_mmap_offsets = &mut places;
    // SAFETY: `to` and `bytes` are live and exclusive, and `bytes` is the
    // size of what `to` points at. There is no safe form.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            to.cast(),
            &mut bytes,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(places)
}

fn bind(socket: &OwnedFd, ifindex: u32, queue: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let bytes = size_of_val(&address) as libc::socklen_t;
    let from: *const libc::sockaddr_xdp = &address;
    // SAFETY: `from` is live and of the size that is passed along. AF_XDP
    // addresses have no safe form.
    let result = unsafe { libc::bind(socket.as_raw_fd(), from.cast(), bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
