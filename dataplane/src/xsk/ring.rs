//! One ring shared with the kernel: a power-of-two array of entries between
//! two free-running 32-bit cursors.
//!
//! One side produces, the other consumes (include/linux/circ_buf.h, and
//! net/xdp/xsk_queue.h on the kernel's side):
//!
//! | ring | producer | consumer | entry |
//! |---|---|---|---|
//! | fill | lane | kernel | `u64` chunk address |
//! | receive | kernel | lane | `xdp_desc` |
//! | transmit | lane | kernel | `xdp_desc` |
//! | completion | kernel | lane | `u64` chunk address |
//!
//! Exactly one lane uses a ring. Cursors wrap at 2³²; differences are taken
//! with wrapping arithmetic. Entries become visible by a release store of the
//! writer's cursor and are read after an acquire load of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::sync::{AtomicU32, Ordering, UnsafeCell};

/// A mapping of a socket's ring; unmapped with the value.
#[derive(Debug)]
struct RingMap {
    base: NonNull<libc::c_void>,
    len: usize,
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in map() with this length; the ring
        // that points into it is dropped together with it.
        unsafe { libc::munmap(self.base.as_ptr(), self.len) };
    }
}

/// A place in the array: whose turn it is stands in the cursors.
#[repr(transparent)]
struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// The place is this side's to write, and it is aligned and mapped.
    #[inline]
    unsafe fn write(&self, entry: T) {
        // SAFETY: nobody else reads or writes the place, says the caller.
        self.0.with_mut(|place| unsafe { place.write(entry) });
    }

    /// # Safety
    /// The place holds an entry that the other side does not write meanwhile.
    #[inline]
    unsafe fn read(&self) -> T {
        // SAFETY: nobody writes the place, says the caller.
        self.0.with(|place| unsafe { place.read() })
    }
}

/// Cursors and entries, wherever they lie.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    /// Written by the kernel.
    flags: NonNull<AtomicU32>,
    entries: NonNull<Slot<T>>,
    mask: u32,
    _map: Option<RingMap>,
}

// SAFETY: a ring belongs to one lane at a time; moving it to another thread
// moves the only user on this side.
unsafe impl<T> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// Maps the ring of `socket` at page offset `page_offset`.
    fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Shared<T>> {
        assert!(size.is_power_of_two(), "ring sizes are powers of two");
        let len = offsets.desc as usize + size as usize * size_of::<T>();
        // SAFETY: a new shared mapping of a ring that the kernel made; nothing
        // is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                page_offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base).ok_or_else(|| io::Error::other("ring mapped at address 0"))?;
        let at = |offset: u64| {
            // SAFETY: the kernel gave the offset for this mapping, whose length
            // covers every field and entry.
            unsafe { base.byte_add(offset as usize) }
        };
        Ok(Shared {
            producer: at(offsets.producer).cast(),
            consumer: at(offsets.consumer).cast(),
            flags: at(offsets.flags).cast(),
            entries: at(offsets.desc).cast(),
            mask: size - 1,
            _map: Some(RingMap { base, len }),
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the live mapping, aligned by the kernel; the
        // kernel accesses it atomically too.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: see producer().
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: see producer().
        unsafe { self.flags.as_ref() }
    }

    #[inline]
    fn slot(&self, cursor: u32) -> &Slot<T> {
        // SAFETY: the mask keeps the index inside the array.
        let slot = unsafe { self.entries.add((cursor & self.mask) as usize) };
        // SAFETY: points into the live mapping, aligned by the kernel; a slot
        // allows that the other side writes it behind the reference.
        unsafe { slot.as_ref() }
    }
}

/// This side writes entries: fill and transmit rings.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    shared: Shared<T>,
    /// Next entry to write; the kernel sees it after [`Producer::publish`].
    head: u32,
    /// The kernel's cursor as last read.
    tail: u32,
}

impl<T: Copy> Producer<T> {
    /// Maps a ring in which this side produces.
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Producer<T>> {
        Ok(Self::over(Shared::map(socket, page_offset, offsets, size)?))
    }

    fn over(shared: Shared<T>) -> Producer<T> {
        // Relaxed: nobody else produces; Acquire: pairs with the consumer's
        // release when it gave entries back.
        let head = shared.producer().load(Ordering::Relaxed);
        let tail = shared.consumer().load(Ordering::Acquire);
        Producer { shared, head, tail }
    }

    /// Entries that can be written; reads the kernel's cursor only when fewer
    /// than `wanted` are known to be free.
    #[inline]
    pub(crate) fn room(&mut self, wanted: u32) -> u32 {
        let size = self.shared.mask + 1;
        let known = size - self.head.wrapping_sub(self.tail);
        if known >= wanted {
            return known;
        }
        size - self.pending()
    }

    /// Entries written and not yet consumed, by the kernel's cursor now.
    #[inline]
    pub(crate) fn pending(&mut self) -> u32 {
        // Acquire: the kernel has read the entries before it moved its cursor.
        self.tail = self.shared.consumer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.tail)
    }

    /// The entries that [`Producer::pending`] counts, oldest first.
    pub(crate) fn pending_entries(&mut self) -> impl Iterator<Item = T> + '_ {
        let count = self.pending();
        let first = self.head.wrapping_sub(count);
        (0..count).map(move |ahead| {
            let slot = self.shared.slot(first.wrapping_add(ahead));
            // SAFETY: this side wrote the entry; the kernel only reads it.
            unsafe { slot.read() }
        })
    }

    /// Writes the next entry. The caller asked [`Producer::room`] first.
    #[inline]
    pub(crate) fn push(&mut self, entry: T) {
        debug_assert!(
            self.head.wrapping_sub(self.tail) <= self.shared.mask,
            "ring overrun"
        );
        // SAFETY: the entry lies between the cursors of this side, which the
        // kernel does not read before publish().
        unsafe { self.shared.slot(self.head).write(entry) };
        self.head = self.head.wrapping_add(1);
    }

    /// Whether the kernel waits for a system call before it goes on with this
    /// ring.
    pub(crate) fn needs_wakeup(&self) -> bool {
        // Relaxed: a hint that is looked at again and again.
        self.shared.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Makes the written entries visible to the kernel.
    #[inline]
    pub(crate) fn publish(&mut self) {
        // Release: the entries are written before the cursor says so.
        self.shared.producer().store(self.head, Ordering::Release);
    }
}

/// This side reads entries: receive and completion rings.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    shared: Shared<T>,
    /// Next entry to read; given back by [`Consumer::release`].
    tail: u32,
    /// The kernel's cursor as last read.
    head: u32,
}

impl<T: Copy> Consumer<T> {
    /// Maps a ring in which this side consumes.
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Consumer<T>> {
        Ok(Self::over(Shared::map(socket, page_offset, offsets, size)?))
    }

    fn over(shared: Shared<T>) -> Consumer<T> {
        // Relaxed: nobody else consumes; Acquire: see available().
        let tail = shared.consumer().load(Ordering::Relaxed);
        let head = shared.producer().load(Ordering::Acquire);
        Consumer { shared, tail, head }
    }

    /// Entries that wait, by the kernel's cursor now.
    #[inline]
    pub(crate) fn available(&mut self) -> u32 {
        // Acquire: the kernel wrote the entries before it moved its cursor.
        self.head = self.shared.producer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.tail)
    }

    /// The entry `ahead` places from the next, of those that
    /// [`Consumer::available`] counted.
    #[inline]
    pub(crate) fn peek(&self, ahead: u32) -> T {
        debug_assert!(ahead < self.head.wrapping_sub(self.tail), "ring underrun");
        // SAFETY: the entry lies between the cursors, where the kernel does
        // not write until release().
        unsafe { self.shared.slot(self.tail.wrapping_add(ahead)).read() }
    }

    /// Gives the next `count` entries back.
    #[inline]
    pub(crate) fn release(&mut self, count: u32) {
        self.tail = self.tail.wrapping_add(count);
        // Release: the entries were read before the kernel may reuse them.
        self.shared.consumer().store(self.tail, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A ring in plain memory, with both ends on this side.
    struct Memory {
        producer: Box<AtomicU32>,
        consumer: Box<AtomicU32>,
        flags: Box<AtomicU32>,
        entries: Vec<u64>,
    }

    impl Memory {
        fn at(cursor: u32, size: usize) -> Memory {
            Memory {
                producer: Box::new(AtomicU32::new(cursor)),
                consumer: Box::new(AtomicU32::new(cursor)),
                flags: Box::new(AtomicU32::new(0)),
                entries: vec![0; size],
            }
        }

        fn ends(&mut self) -> (Producer<u64>, Consumer<u64>) {
            let shared = |memory: &mut Memory| Shared {
                producer: NonNull::from(&*memory.producer),
                consumer: NonNull::from(&*memory.consumer),
                flags: NonNull::from(&*memory.flags),
                entries: NonNull::from(memory.entries.as_mut_slice()).cast(),
                mask: memory.entries.len() as u32 - 1,
                _map: None,
            };
            (Producer::over(shared(self)), Consumer::over(shared(self)))
        }
    }

    #[test]
    fn cursors_wrap_at_two_to_the_32() {
        for start in [0, u32::MAX - 5, u32::MAX] {
            let mut memory = Memory::at(start, 8);
            let (mut tx, mut rx) = memory.ends();
            let mut next = 0u64;
            for round in 0..5u64 {
                assert_eq!(tx.room(8), 8, "start {start} round {round}");
                for value in 0..6 {
                    tx.push(round * 6 + value);
                }
                assert_eq!(rx.available(), 0, "unpublished entries are invisible");
                tx.publish();
                assert_eq!(tx.pending(), 6);
                assert_eq!(rx.available(), 6);
                for ahead in 0..6 {
                    assert_eq!(rx.peek(ahead), next);
                    next += 1;
                }
                rx.release(6);
                assert_eq!(tx.pending(), 0);
            }
        }
    }

    #[test]
    fn room_shrinks_to_nothing_when_the_consumer_stands_still() {
        let mut memory = Memory::at(u32::MAX - 2, 4);
        let (mut tx, mut rx) = memory.ends();
        for value in 0..4 {
            assert!(tx.room(1) >= 1);
            tx.push(value);
        }
        tx.publish();
        assert_eq!(tx.room(1), 0);
        assert_eq!(rx.available(), 4);
        rx.release(1);
        assert_eq!(tx.room(1), 1);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    /// Entries of two words, so that half an entry would show.
    type Entry = [u32; 2];

    const SIZE: usize = 2;
    const PUSHED: u32 = 3;

    /// A ring in plain memory, one end for each of two threads.
    struct Memory {
        producer: Box<AtomicU32>,
        consumer: Box<AtomicU32>,
        flags: Box<AtomicU32>,
        slots: Box<[Slot<Entry>]>,
    }

    impl Memory {
        fn at(cursor: u32) -> Memory {
            let slot = |_| Slot(UnsafeCell::new([0; 2]));
            Memory {
                producer: Box::new(AtomicU32::new(cursor)),
                consumer: Box::new(AtomicU32::new(cursor)),
                flags: Box::new(AtomicU32::new(0)),
                slots: (0..SIZE).map(slot).collect(),
            }
        }

        /// Both are used up before the memory goes.
        fn ends(&self) -> (Producer<Entry>, Consumer<Entry>) {
            let shared = || Shared {
                producer: NonNull::from(&*self.producer),
                consumer: NonNull::from(&*self.consumer),
                flags: NonNull::from(&*self.flags),
                entries: NonNull::from(&*self.slots).cast(),
                mask: SIZE as u32 - 1,
                _map: None,
            };
            (Producer::over(shared()), Consumer::over(shared()))
        }
    }

    fn drain(rx: &mut Consumer<Entry>, seen: &mut Vec<Entry>) {
        let count = rx.available();
        seen.extend((0..count).map(|ahead| rx.peek(ahead)));
        if count > 0 {
            rx.release(count);
        }
    }

    /// Every order of steps: what is published is seen whole, once and in
    /// order, and a place is written again only after it was read.
    #[test]
    fn entries_arrive_whole_and_once_across_the_wrap() {
        // Whether the orders that matter came up at all.
        let went_round = Arc::new(AtomicBool::new(false));
        let was_full = Arc::new(AtomicBool::new(false));
        let (round, full) = (Arc::clone(&went_round), Arc::clone(&was_full));
        loom::model(move || {
            let memory = Memory::at(u32::MAX);
            let (mut tx, mut rx) = memory.ends();
            let producer = loom::thread::spawn(move || {
                let mut pushed = 0;
                while pushed < PUSHED && tx.room(1) > 0 {
                    pushed += 1;
                    tx.push([pushed; 2]);
                    tx.publish();
                }
                pushed
            });
            let mut seen = Vec::new();
            drain(&mut rx, &mut seen);
            drain(&mut rx, &mut seen);
            let pushed = producer.join().unwrap();
            drain(&mut rx, &mut seen);
            let expected: Vec<Entry> = (1..=pushed).map(|value| [value; 2]).collect();
            assert_eq!(seen, expected);
            let flag = if pushed == PUSHED { &round } else { &full };
            flag.store(true, SeqCst);
        });
        assert!(went_round.load(SeqCst), "no order reused a place");
        assert!(was_full.load(SeqCst), "no order found the ring full");
    }

    /// Several entries behind one publish, as a lane writes chains.
    #[test]
    fn a_chain_appears_as_one() {
        loom::model(|| {
            let memory = Memory::at(u32::MAX);
            let (mut tx, mut rx) = memory.ends();
            let producer = loom::thread::spawn(move || {
                tx.push([1; 2]);
                tx.push([2; 2]);
                tx.publish();
            });
            let mut seen = Vec::new();
            drain(&mut rx, &mut seen);
            assert!(
                seen.is_empty() || seen.len() == SIZE,
                "half a chain: {seen:?}"
            );
            producer.join().unwrap();
            drain(&mut rx, &mut seen);
            assert_eq!(seen, [[1; 2], [2; 2]]);
        });
    }
}
