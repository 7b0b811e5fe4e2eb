//! Zeroed words in memory of their own, or in a file that outlives the
//! process.
#![allow(unsafe_code)] // maps memory and hands out its words

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// What advice is given for whole ones of; a page that is larger is not
/// advised, which does no harm.
const PAGE: usize = 4096;

/// The mapping.
#[derive(Debug)]
pub(crate) struct MappedWords {
    base: NonNull<AtomicU64>,
    count: usize,
    /// The file, and its word that is the first one here.
    file: Option<(File, usize)>,
}

// SAFETY: the mapping stays where it is while the value lives, and its words
// are only reached as atomics.
unsafe impl Send for MappedWords {}
// SAFETY: see Send.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Words that go with the value. The system backs them as they are touched.
    pub(crate) fn anonymous(count: usize) -> io::Result<MappedWords> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        MappedWords::map(count, flags, (-1, 0), None)
    }

    /// Words of a file from number `first` on, where a page begins; the file
    /// must be as long. Before words are touched that the file may have no
    /// memory for, [`MappedWords::back`] has to say that it does.
    pub(crate) fn of_file(file: File, first: usize, count: usize) -> io::Result<MappedWords> {
        if file.metadata()?.len() < ((first + count) * 8) as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = (file.as_raw_fd(), (first * 8) as libc::off_t);
        MappedWords::map(count, libc::MAP_SHARED, from, Some((file, first)))
    }

    fn map(
        count: usize,
        flags: i32,
        (fd, offset): (RawFd, libc::off_t),
        file: Option<(File, usize)>,
    ) -> io::Result<MappedWords> {
        // SAFETY: asks for a new mapping anywhere; no safe form in libc.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(MappedWords { base, count, file })
    }

    /// Makes sure that there is memory for words `first..first + count`: a
    /// touch that a full file system cannot serve would kill the process.
    pub(crate) fn back(&self, first: usize, count: usize) -> io::Result<()> {
        let Some((file, start)) = &self.file else {
            return Ok(());
        };
        let (offset, len) = ((start + first) * 8, count * 8);
        let (offset, len) = (offset as libc::off_t, len as libc::off_t);
        loop {
            // SAFETY: plain system call on a live descriptor.
            let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, len) };
            if done == 0 {
                self.populate(first * 8, count * 8);
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Asks for large pages, of memory that is touched here and there.
    pub(crate) fn prefer_large_pages(&self) {
        self.advise(0, self.count * 8, libc::MADV_HUGEPAGE);
    }

    /// Maps pages that there is memory for, which is cheaper than a fault for
    /// each. Without it (before Linux 5.14) they are mapped as they are touched.
    fn populate(&self, from: usize, len: usize) {
        self.advise(from, len, libc::MADV_POPULATE_WRITE);
    }

    /// Tells the system something about the pages of so many bytes; it may not
    /// care.
    fn advise(&self, from: usize, len: usize, advice: libc::c_int) {
        let end = (from + len).min(self.count * 8);
        let start = from / PAGE * PAGE;
        let base = self.base.as_ptr().wrapping_byte_add(start);
        // SAFETY: the range is within the mapping, and neither advice that is
        // given here changes what its words hold.
        unsafe { libc::madvise(base.cast(), end - start, advice) };
    }
}

impl Deref for MappedWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is aligned to pages, holds that many words, lives
        // as long as the value, and is reached by atomics alone.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has it now.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * 8) };
    }
}
