//! Bytes of a BPF map that threads and a program of the kernel share.
#![allow(unsafe_code)] // maps memory of the kernel and hands out its bytes

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// A mapping of an array map that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(crate) struct MappedBytes {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping stays where it is while the value lives, and its bytes
// are only reached as atomics.
unsafe impl Send for MappedBytes {}
// SAFETY: see Send.
unsafe impl Sync for MappedBytes {}

impl MappedBytes {
    /// Maps the first `len` bytes of a map's values.
    pub(crate) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<MappedBytes> {
        // SAFETY: asks for a new mapping anywhere; no safe form in libc.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(MappedBytes { base, len })
    }

    /// Sets one byte; beyond the end nothing happens.
    pub(crate) fn set(&self, index: usize, value: u8) {
        if index >= self.len {
            return;
        }
        // SAFETY: within the mapping, by the check above.
        let byte = unsafe { self.base.add(index) };
        // SAFETY: the byte lives as long as the mapping, and everybody in this
        // process reaches it by atomics; the kernel's program only reads it.
        let byte = unsafe { AtomicU8::from_ptr(byte.as_ptr()) };
        // Relaxed: one byte that publishes nothing else.
        byte.store(value, Ordering::Relaxed);
    }
}

impl Drop for MappedBytes {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has it now.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
