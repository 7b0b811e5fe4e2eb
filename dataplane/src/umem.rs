//! The frame memory: one region for the whole process, cut into chunks.
//!
//! The region is a `memfd` mapping, so that a later process can map the same
//! frames. [`Umem::bytes`] turns the right to a chunk ([`Frame`]) into the
//! bytes of its data; since a frame has one owner, nobody else reads or writes
//! them meanwhile (the kernel only touches chunks that stand on a ring, and
//! those have no `Frame`).
//!
//! Free chunks are kept in two levels. Each lane has a [`FramePool`], last in
//! first out, so that the chunk used next is the one most likely still in the
//! cache. Pools trade with the shared [`Depot`] in batches of
//! [`TRADE_BATCH`]. Every chunk that a lane does not hold itself carries in
//! [`OwnerTable`] the queue that has it: when a queue is torn down, its chunks
//! are found there, whatever state its rings were in.
#![allow(unsafe_code)] // maps the frame memory, hands out its bytes, hints to the caches

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::frame::{FRAME_SIZE, Frame, HEADROOM};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Bytes that caches move at a time.
const CACHE_LINE: usize = 64;

/// Chunks that a pool gives to or takes from the depot at a time.
pub const TRADE_BATCH: usize = 64;

/// The frame memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// Fewer chunks than one port needs, or more than descriptors can name.
    #[error(
        "{0} frames are too few or too many for the frame memory: set lanes.frames to a number from 512 to 1048576"
    )]
    Size(usize),
    /// The kernel refused the memory.
    #[error(
        "cannot map {bytes} bytes of frame memory: {source}; lower lanes.frames or free memory"
    )]
    Map {
        /// Bytes that were asked for.
        bytes: usize,
        /// Its answer.
        source: io::Error,
    },
}

/// The region.
#[derive(Debug)]
pub struct Umem {
    base: NonNull<u8>,
    chunks: usize,
    memfd: OwnedFd,
    huge: bool,
}

// SAFETY: the region is only reached through frames, each of which has one
// owner; the mapping itself is never moved or resized while the value lives.
unsafe impl Send for Umem {}
// SAFETY: see Send; shared references hand out bytes only against a frame.
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps `chunks` chunks, in huge pages when the machine has enough free.
    pub(crate) fn new(chunks: usize) -> Result<Umem, UmemError> {
        if !(512..=1 << 20).contains(&chunks) {
            return Err(UmemError::Size(chunks));
        }
        Self::map(chunks, true).or_else(|_| Self::map(chunks, false))
    }

    fn map(chunks: usize, huge: bool) -> Result<Umem, UmemError> {
        let bytes = chunks * FRAME_SIZE;
        let failed = |source| UmemError::Map { bytes, source };
        let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: the name is a NUL-terminated string; no safe form in libc.
        let fd = unsafe { libc::memfd_create(c"spinlane-umem".as_ptr(), flags) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: memfd_create just made the descriptor; nobody else has it.
        let memfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system call on an owned descriptor.
        if unsafe { libc::ftruncate(memfd.as_raw_fd(), bytes as libc::off_t) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: a fresh shared mapping of an owned file; the kernel chooses
        // the address, nothing is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                memfd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Umem {
                base,
                chunks,
                memfd,
                huge,
            }),
            _ => Err(failed(io::Error::last_os_error())),
        }
    }

    /// Chunks in the region.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Whether it lies in huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// Address and length, to register with the kernel.
    pub(crate) fn region(&self) -> (u64, u64) {
        (self.base.as_ptr() as u64, (self.chunks * FRAME_SIZE) as u64)
    }

    /// The file behind the region.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The data of a frame, for as long as the frame is not given away:
    ///
    /// ```compile_fail,E0505
    /// # use spinlane_dataplane::{frame::Frame, umem::{FramePool, Umem}};
    /// fn stale(umem: &Umem, pool: &mut FramePool, frame: Frame) -> u8 {
    ///     let bytes = umem.bytes(&frame);
    ///     pool.free(frame);
    ///     bytes[0]
    /// }
    /// ```
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.check(frame.offset(), frame.len());
        // SAFETY: check() keeps offset and length inside the mapping.
        let start = unsafe { self.base.as_ptr().add(frame.offset() as usize) };
        // SAFETY: inside the mapping; the frame's one owner is borrowed, so
        // nobody writes these bytes meanwhile.
        unsafe { std::slice::from_raw_parts(start, frame.len()) }
    }

    /// The data of a frame, to write.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the frame, not the region, is the right to write
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.check(frame.offset(), frame.len());
        // SAFETY: check() keeps offset and length inside the mapping.
        let start = unsafe { self.base.as_ptr().add(frame.offset() as usize) };
        // SAFETY: inside the mapping; the frame's one owner is borrowed
        // exclusively, so these bytes have no other reader or writer.
        unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
    }

    /// Writes the transmit metadata, which lies right before the data.
    pub(crate) fn write_metadata(
        &self,
        frame: &mut Frame,
        metadata: &[u8; crate::frame::TX_METADATA_BYTES],
    ) {
        assert!(
            frame.headroom() >= metadata.len(),
            "pipeline keeps room for metadata"
        );
        self.check(frame.offset(), frame.len());
        // SAFETY: the headroom was checked, so the start lies in the chunk.
        let start = unsafe {
            self.base
                .as_ptr()
                .add(frame.offset() as usize - metadata.len())
        };
        // SAFETY: the bytes before the data belong to the frame's chunk, which
        // is borrowed exclusively.
        unsafe { std::ptr::copy_nonoverlapping(metadata.as_ptr(), start, metadata.len()) };
    }

    /// Tells the processor that the frame's first bytes are wanted soon.
    #[inline]
    pub fn prefetch(&self, frame: &Frame) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = self.base.as_ptr().wrapping_add(frame.offset() as usize);
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = frame;
    }

    /// As [`Umem::prefetch`], the whole frame: a system call that copies it
    /// line by line waits for each line that another CPU wrote.
    #[inline]
    pub fn prefetch_whole(&self, frame: &Frame) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            let start = self.base.as_ptr().wrapping_add(frame.offset() as usize);
            for at in (0..frame.len()).step_by(CACHE_LINE) {
                // SAFETY: a prefetch never faults, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = frame;
    }

    /// Tells the processor that another CPU will write the first bytes of the
    /// next packet in the frame's chunk: the line then need not be fetched from
    /// this CPU's own cache.
    #[inline]
    pub fn demote(&self, frame: &Frame) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let first = frame.chunk() * FRAME_SIZE + HEADROOM;
            let start = self.base.as_ptr().wrapping_add(first);
            // SAFETY: CLDEMOTE is a hint that changes neither memory nor
            // registers; processors without it take it for no operation.
            unsafe {
                std::arch::asm!(
                    "cldemote [{start}]",
                    start = in(reg) start,
                    options(nostack, preserves_flags)
                );
            }
        }
        #[cfg(any(not(target_arch = "x86_64"), miri))]
        let _ = frame;
    }

    #[inline]
    fn check(&self, offset: u64, len: usize) {
        assert!(
            offset as usize + len <= self.chunks * FRAME_SIZE,
            "frame outside the frame memory"
        );
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by map() with this length, and frames
        // cannot be turned into bytes without the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.chunks * FRAME_SIZE) };
    }
}

/// Which queue holds each chunk that no lane holds: 0 for none. Written by
/// the lane that gives or takes the chunk, read when a queue is torn down.
#[derive(Debug)]
pub struct OwnerTable(Vec<AtomicU32>);

/// A queue as [`OwnerTable`] knows it; never 0, never reused while chunks
/// carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerTag(pub(crate) std::num::NonZeroU32);

impl OwnerTable {
    /// A table of `chunks` chunks that nobody holds.
    pub fn new(chunks: usize) -> OwnerTable {
        OwnerTable((0..chunks).map(|_| AtomicU32::new(0)).collect())
    }

    /// The chunk goes to a queue.
    #[inline]
    pub(crate) fn give(&self, chunk: usize, tag: OwnerTag) {
        // Relaxed: the same lane reads it back, or a lane that was told over a
        // channel after the queue closed.
        self.0[chunk].store(tag.0.get(), Ordering::Relaxed);
    }

    /// The chunk came back. `false` when `tag` did not hold it: the kernel
    /// named a chunk that is not its own, and it must not be used.
    #[inline]
    #[must_use]
    pub(crate) fn take(&self, chunk: usize, tag: OwnerTag) -> bool {
        let Some(owner) = self.0.get(chunk) else {
            return false;
        };
        // Relaxed: one lane owns the queue, nobody else writes this entry.
        let held = owner.load(Ordering::Relaxed) == tag.0.get();
        if held {
            owner.store(0, Ordering::Relaxed);
        }
        held
    }

    /// Takes every chunk that a closed queue still held.
    pub(crate) fn reclaim(&self, tag: OwnerTag) -> impl Iterator<Item = Frame> + '_ {
        (0..self.0.len())
            .filter(move |&chunk| self.take(chunk, tag))
            .map(|chunk| Frame::new((chunk * FRAME_SIZE) as u64, 0))
    }
}

/// Free chunks that no lane holds, in batches.
#[derive(Debug)]
pub struct Depot {
    batches: ArrayQueue<Vec<Frame>>,
    free: AtomicU64,
}

impl Depot {
    /// A depot that holds every chunk of a region. Called once per region:
    /// this is where frames come from.
    pub(crate) fn new(chunks: usize) -> Arc<Depot> {
        let depot = Depot {
            batches: ArrayQueue::new(chunks),
            free: AtomicU64::new(0),
        };
        let mut chunk = 0;
        while chunk < chunks {
            let end = (chunk + TRADE_BATCH).min(chunks);
            let mut batch = Vec::with_capacity(TRADE_BATCH);
            batch.extend((chunk..end).map(|c| Frame::new((c * FRAME_SIZE) as u64, 0)));
            depot.put(batch);
            chunk = end;
        }
        Arc::new(depot)
    }

    fn put(&self, batch: Vec<Frame>) {
        // Relaxed: a statistic; the queue itself orders the frames.
        self.free.fetch_add(batch.len() as u64, Ordering::Relaxed);
        // No batch is empty, so there are at most as many as chunks.
        assert!(
            self.batches.push(batch).is_ok(),
            "the depot has room for every chunk"
        );
    }

    fn get(&self) -> Option<Vec<Frame>> {
        let batch = self.batches.pop()?;
        // Relaxed: see put().
        self.free.fetch_sub(batch.len() as u64, Ordering::Relaxed);
        Some(batch)
    }

    /// Chunks in the depot now.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}

/// A lane's own free chunks, last in first out.
#[derive(Debug)]
pub struct FramePool {
    free: Vec<Frame>,
    spare: Vec<Vec<Frame>>,
    depot: Arc<Depot>,
}

impl FramePool {
    /// Chunks that a lane keeps before it gives some back.
    const HIGH_WATER: usize = 8 * TRADE_BATCH;

    pub(crate) fn new(depot: Arc<Depot>) -> FramePool {
        FramePool {
            free: Vec::with_capacity(Self::HIGH_WATER + TRADE_BATCH),
            spare: Vec::new(),
            depot,
        }
    }

    /// A free chunk, with its data after the headroom and of length 0.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            let mut batch = self.depot.get()?;
            self.free.append(&mut batch);
            self.spare.push(batch);
        }
        let chunk = self.free.pop()?.chunk();
        Some(Frame::new((chunk * FRAME_SIZE + HEADROOM) as u64, 0))
    }

    /// Takes a chunk back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.free.push(frame);
        if self.free.len() >= Self::HIGH_WATER {
            self.give_back(TRADE_BATCH);
        }
    }

    fn give_back(&mut self, count: usize) {
        // The oldest chunks are the coldest; they leave first.
        let mut batch = self
            .spare
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(TRADE_BATCH));
        let count = count.min(self.free.len());
        debug_assert!(count > 0, "the depot has no room for empty batches");
        batch.extend(self.free.drain(..count));
        self.depot.put(batch);
    }

    /// Chunks in the depot that it draws from.
    pub(crate) fn depot_free(&self) -> u64 {
        self.depot.free()
    }

    /// Chunks in the pool now.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Chunks in the pool and in the depot that it trades with.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn total_free(&self) -> usize {
        self.free.len() + self.depot.free() as usize
    }

    /// Whether the pool, not the depot, is empty.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        while !self.free.is_empty() {
            self.give_back(TRADE_BATCH);
        }
    }
}

/// Frame memory with a pool and no kernel behind it: for tests, fuzzers and
/// microbenchmarks of the pipeline. Not for others: a frame does not say which
/// memory it is of, so whoever could have two might take one's frame for the
/// other's bytes. [`Rig`](crate::bench::Rig) hands out neither.
pub(crate) fn in_memory(chunks: usize) -> Result<(Arc<Umem>, FramePool), UmemError> {
    let umem = Arc::new(Umem::new(chunks)?);
    let depot = Depot::new(chunks);
    Ok((umem, FramePool::new(depot)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_handed_out_once_and_comes_home() {
        let (umem, mut pool) = in_memory(512).unwrap();
        let mut seen = vec![false; 512];
        let mut held = Vec::new();
        while let Some(mut frame) = pool.alloc() {
            assert!(frame.resize(8));
            let chunk = frame.chunk() as u64;
            umem.bytes_mut(&mut frame)
                .copy_from_slice(&chunk.to_be_bytes());
            assert!(!std::mem::replace(&mut seen[frame.chunk()], true));
            held.push(frame);
        }
        assert_eq!(held.len(), 512);
        for frame in held {
            assert_eq!(umem.bytes(&frame), (frame.chunk() as u64).to_be_bytes());
            pool.free(frame);
        }
        assert_eq!(pool.len() as u64 + pool.depot.free(), 512);
        let depot = Arc::clone(&pool.depot);
        drop(pool);
        assert_eq!(depot.free(), 512);
    }

    #[test]
    fn owner_table_refuses_a_chunk_that_the_queue_does_not_hold() {
        let owners = OwnerTable::new(8);
        let tag = |n| OwnerTag(std::num::NonZeroU32::new(n).unwrap());
        owners.give(3, tag(7));
        owners.give(5, tag(7));
        owners.give(6, tag(9));
        assert!(!owners.take(3, tag(9)));
        assert!(!owners.take(4, tag(7)));
        assert!(!owners.take(99, tag(7)));
        assert!(owners.take(3, tag(7)));
        assert!(!owners.take(3, tag(7)), "a second completion of one chunk");
        assert_eq!(
            owners
                .reclaim(tag(7))
                .map(|f| f.chunk())
                .collect::<Vec<_>>(),
            [5]
        );
    }

    #[test]
    fn sizes_outside_the_range_are_refused() {
        assert!(matches!(Umem::new(511), Err(UmemError::Size(511))));
        assert!(matches!(Umem::new((1 << 20) + 1), Err(UmemError::Size(_))));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::num::NonZeroU32;

    use loom::sync::mpsc::channel;
    use loom::thread;

    use super::*;

    fn tag(n: u32) -> OwnerTag {
        OwnerTag(NonZeroU32::new(n).unwrap())
    }

    fn chunks(owners: &OwnerTable, tag: OwnerTag) -> Vec<usize> {
        owners.reclaim(tag).map(|frame| frame.chunk()).collect()
    }

    /// One lane closes its queue while a chunk that it had before is already
    /// on another lane's: the engine finds what the closed queue still held,
    /// all of it and nothing else.
    #[test]
    fn a_closed_queue_gives_back_what_it_held() {
        loom::model(|| {
            let owners = loom::sync::Arc::new(OwnerTable::new(2));
            let (closed, told) = channel();
            let (trade, traded) = channel();
            let table = loom::sync::Arc::clone(&owners);
            let first = thread::spawn(move || {
                table.give(0, tag(1));
                table.give(1, tag(1));
                assert!(table.take(0, tag(1)));
                trade.send(0).unwrap();
                closed.send(()).unwrap();
            });
            let table = loom::sync::Arc::clone(&owners);
            let second = thread::spawn(move || {
                table.give(traded.recv().unwrap(), tag(2));
            });
            told.recv().unwrap();
            assert_eq!(chunks(&owners, tag(1)), [1]);
            first.join().unwrap();
            second.join().unwrap();
            assert_eq!(chunks(&owners, tag(2)), [0]);
            assert_eq!(chunks(&owners, tag(1)), []);
        });
    }
}
