//! Memory of the connection table: 64-bit atomics and nothing else, so that
//! it holds no pointers and may lie anywhere.

use std::ops::Range;

use crate::sync::{AtomicU64, Ordering, relax};
use crate::tables::prefetch::prefetch;

/// Where words lie.
#[cfg(not(loom))]
pub(super) type Memory = crate::mapped_words::MappedWords;
#[cfg(loom)]
pub(super) type Memory = Vec<AtomicU64>;

/// Zeroed words from a page's beginning on, so that eight of them are a cache
/// line; the operating system backs them as they are first touched.
#[derive(Debug)]
pub(super) struct Words(Memory);

impl Words {
    #[cfg(not(loom))]
    pub(super) fn new(count: usize) -> Words {
        let room = "the address space has room for the connection table";
        // No mapping is empty.
        Words(Memory::anonymous(count.max(1)).expect(room))
    }

    #[cfg(loom)]
    pub(super) fn new(count: usize) -> Words {
        Words((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// As [`Words::new`], for words that are used here and there: with large
    /// pages, where the system has them.
    pub(super) fn scattered(count: usize) -> Words {
        let words = Words::new(count);
        #[cfg(not(loom))]
        words.0.prefer_large_pages();
        words
    }

    /// Words in a row; their numbers are checked once for all.
    ///
    /// # Panics
    /// When there are not as many.
    #[inline]
    pub(super) fn run<const COUNT: usize>(&self, first: usize) -> &[AtomicU64; COUNT] {
        let words = self.0[first..].first_chunk();
        words.expect("the words of an entry, a bucket or a shard are all there")
    }

    /// As [`Words::run`], of any number.
    #[inline]
    pub(super) fn slice(&self, range: Range<usize>) -> &[AtomicU64] {
        &self.0[range]
    }

    /// Asks the processor for the cache line of a word.
    #[inline]
    pub(super) fn prefetch(&self, index: usize) {
        prefetch(&self.0, index);
    }

    pub(super) fn over(memory: Memory) -> Words {
        Words(memory)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.0
    }

    #[inline]
    pub(super) fn at(&self, index: usize) -> &AtomicU64 {
        &self.0[index]
    }

    /// A value that only holders of its lock change, read by one of them, or
    /// one that carries nothing else with it.
    #[inline]
    pub(super) fn get(&self, index: usize) -> u64 {
        // Relaxed: ordered by the lock, or needs no order.
        self.0[index].load(Ordering::Relaxed)
    }

    /// See [`Words::get`].
    #[inline]
    pub(super) fn set(&self, index: usize, value: u64) {
        self.0[index].store(value, Ordering::Relaxed);
    }

    /// Takes the lock in a word; it is free again when the guard is dropped.
    pub(super) fn lock(&self, index: usize) -> Guard<'_> {
        let mut turn = 0;
        loop {
            if let Some(guard) = self.try_lock(index) {
                return guard;
            }
            relax(turn);
            turn += 1;
        }
    }

    /// As [`Words::lock`]; `None` when somebody else has it.
    pub(super) fn try_lock(&self, index: usize) -> Option<Guard<'_>> {
        let word = &self.0[index];
        // Acquire: what the last holder wrote is seen.
        word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Guard(word))
    }
}

/// A lock that is held.
#[must_use]
pub(super) struct Guard<'a>(&'a AtomicU64);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Release: what was written under the lock goes before.
        self.0.store(0, Ordering::Release);
    }
}
