//! The entries of one shard: which are free, when the others are due, and
//! which go first under pressure.
//!
//! A *wheel* of one-second slots holds every connection where it falls due,
//! or at the wheel's far side when that is later; it is looked at there and
//! moves on. Two *queues* hold the expendable ones, oldest first: those that
//! pods began, and those that somebody outside did. All are doubly linked
//! through the entries by index. Everything here is guarded by the shard's
//! lock, which is taken before any lock of the index, never after.
//!
//! Connections that begin outside have half of the entries at most, so that
//! whoever floods from there leaves the other half to the pods.
//!
//! ```text
//! 0 lock | 1 free | 2 fresh | 3 second | 4 backed
//! 8 head | 9 tail of the pods' queue | 10 head | 11 tail of the outside's
//! 12 live, begun by pods | 13 live, begun outside
//! 16..144 heads of the wheel's slots
//! ```

use super::entry::{Entries, QUEUE, WHEEL};
use super::state::Origin;
use super::words::{Guard, Words};
use crate::sync::{AtomicU64, Ordering};

/// Slots of the wheel.
#[cfg(not(loom))]
const SLOTS: u64 = 128;
#[cfg(loom)]
const SLOTS: u64 = 2;

const LOCK: usize = 0;
const FREE: usize = 1;
const FRESH: usize = 2;
const SECOND: usize = 3;
const BACKED: usize = 4;
const QUEUES: usize = 8;
const LIVE: usize = QUEUES + 2 * Origin::COUNT;
const WHEEL_HEADS: usize = 16;
const WORDS: usize = WHEEL_HEADS + SLOTS as usize;

/// Entries, some 60 KiB, that memory is asked for at once: no dearer than the
/// page faults that it spares.
const STEP: u32 = 320;

/// No entry. Kept apart from 0, which is what fresh memory holds, by one:
/// links and heads are stored plus one.
const NONE: u32 = 0;

/// The link of an entry that stands in no list.
const UNLINKED: u64 = 0;

/// Marks a "previous" that is a list's head and not an entry.
const IS_HEAD: u32 = 1 << 31;

/// Where a queue's oldest and youngest entry stand.
const fn head(origin: Origin) -> usize {
    QUEUES + 2 * origin as usize
}

const fn tail(origin: Origin) -> usize {
    head(origin) + 1
}

const fn live(origin: Origin) -> usize {
    LIVE + origin as usize
}

/// All shards.
#[derive(Debug)]
pub(super) struct Shards {
    words: Words,
    per_shard: u32,
}

/// One shard, locked.
pub(super) struct Shard<'a> {
    words: &'a [AtomicU64; WORDS],
    first: u32,
    count: u32,
    entries: &'a Entries,
    _guard: Guard<'a>,
}

impl Shards {
    pub(super) fn new(shards: usize, per_shard: u32) -> Shards {
        Shards {
            words: Words::new(shards * WORDS),
            per_shard,
        }
    }

    /// The shard that an entry belongs to.
    pub(super) fn of(&self, entry: u32) -> usize {
        (entry / self.per_shard) as usize
    }

    fn with<'a>(&'a self, shard: usize, entries: &'a Entries, guard: Guard<'a>) -> Shard<'a> {
        Shard {
            words: self.words.run(shard * WORDS),
            first: shard as u32 * self.per_shard,
            count: self.per_shard,
            entries,
            _guard: guard,
        }
    }

    #[inline]
    pub(super) fn lock<'a>(&'a self, shard: usize, entries: &'a Entries) -> Shard<'a> {
        let guard = self.words.lock(shard * WORDS + LOCK);
        self.with(shard, entries, guard)
    }

    /// The shard, when its wheel has not reached `second` and nobody else is
    /// at it.
    pub(super) fn lock_due<'a>(
        &'a self,
        shard: usize,
        entries: &'a Entries,
        second: u64,
    ) -> Option<Shard<'a>> {
        if self.words.get(shard * WORDS + SECOND) >= second {
            return None;
        }
        let guard = self.words.try_lock(shard * WORDS + LOCK)?;
        Some(self.with(shard, entries, guard))
    }

    /// Live connections of a shard.
    pub(super) fn live(&self, shard: usize, origin: Origin) -> u64 {
        self.words.get(shard * WORDS + live(origin))
    }

    /// Entries of a shard that were ever used.
    pub(super) fn used(&self, shard: usize) -> std::ops::Range<u32> {
        let first = shard as u32 * self.per_shard;
        first..first + self.words.get(shard * WORDS + FRESH) as u32
    }
}

impl Shard<'_> {
    #[inline]
    fn get(&self, word: usize) -> u64 {
        // Relaxed: ordered by the lock.
        self.words[word].load(Ordering::Relaxed)
    }

    #[inline]
    fn set(&self, word: usize, value: u64) {
        // Relaxed: as in `get`.
        self.words[word].store(value, Ordering::Relaxed);
    }

    /// Whether one more may begin there.
    fn has_room(&self, origin: Origin) -> bool {
        match origin {
            Origin::Pod => true,
            Origin::Outside => self.get(live(origin)) < u64::from(self.count / 2),
        }
    }

    /// A free entry, which counts as live from now on.
    #[inline]
    pub(super) fn take(&self, origin: Origin) -> Option<u32> {
        if !self.has_room(origin) {
            return None;
        }
        let free = self.get(FREE) as u32;
        let entry = match free.checked_sub(1) {
            Some(entry) => {
                let next = self.entries.get(entry, WHEEL);
                self.set(FREE, next);
                if let Some(next) = (next as u32).checked_sub(1) {
                    self.entries.ask(next);
                }
                self.entries.set(entry, WHEEL, UNLINKED);
                entry
            }
            None => {
                let fresh = self.get(FRESH) as u32;
                if fresh == self.count || !self.is_backed(fresh) {
                    return None;
                }
                self.set(FRESH, u64::from(fresh + 1));
                self.entries.ask(self.first + fresh + 1);
                self.first + fresh
            }
        };
        self.set(live(origin), self.get(live(origin)) + 1);
        Some(entry)
    }

    /// Whether there is memory for an entry that was never used.
    fn is_backed(&self, fresh: u32) -> bool {
        if u64::from(fresh) < self.get(BACKED) {
            return true;
        }
        let more = STEP.min(self.count - fresh);
        let is_done = self.entries.back(self.first + fresh, more);
        if is_done {
            self.set(BACKED, u64::from(fresh + more));
        }
        is_done
    }

    /// Gives an entry back that stands in no list, its share written.
    pub(super) fn give(&self, entry: u32) {
        self.entries.set(entry, WHEEL, self.get(FREE));
        self.set(FREE, u64::from(entry + 1));
        let live = live(self.entries.origin(entry));
        self.set(live, self.get(live) - 1);
    }

    /// The second that the wheel has done.
    pub(super) fn second(&self) -> u64 {
        self.get(SECOND)
    }

    /// Starts a wheel at `second` that has nothing on it or missed a whole turn.
    pub(super) fn catch_up(&self, second: u64) {
        let from = match self.get(live(Origin::Pod)) + self.get(live(Origin::Outside)) {
            0 => second,
            _ => second.saturating_sub(SLOTS - 1),
        };
        self.set(SECOND, self.get(SECOND).max(from));
    }

    /// Takes one entry that the next second holds; `None` ends that second.
    pub(super) fn next_due(&self) -> Option<u32> {
        let second = self.get(SECOND) + 1;
        let head = WHEEL_HEADS + (second % SLOTS) as usize;
        match (self.get(head) as u32).checked_sub(1) {
            Some(entry) => {
                self.unlink(entry, WHEEL);
                Some(entry)
            }
            None => {
                self.set(SECOND, second);
                None
            }
        }
    }

    /// Puts an entry on the wheel, where it is due or as far off as goes.
    #[inline]
    pub(super) fn schedule(&self, entry: u32, due_ms: u64) {
        self.unlink(entry, WHEEL);
        let done = self.get(SECOND);
        let due = (due_ms / 1000 + 1).clamp(done + 1, done + SLOTS - 1);
        let head = WHEEL_HEADS + (due % SLOTS) as usize;
        let next = self.get(head) as u32;
        self.link(entry, WHEEL, IS_HEAD | head as u32, next);
        self.set(head, u64::from(entry + 1));
        if next != NONE {
            self.set_previous(next - 1, WHEEL, entry + 1);
        }
    }

    pub(super) fn unschedule(&self, entry: u32) {
        self.unlink(entry, WHEEL);
    }

    /// Puts an entry at the queue's end, or takes it out of it.
    #[inline]
    pub(super) fn set_expendable(&self, entry: u32, is_expendable: bool) {
        let is_queued = self.entries.get(entry, QUEUE) != UNLINKED;
        if is_queued == is_expendable {
            return;
        }
        if is_queued {
            return self.unlink(entry, QUEUE);
        }
        let origin = self.entries.origin(entry);
        let (head, tail) = (head(origin), tail(origin));
        let youngest = self.get(tail) as u32;
        match youngest.checked_sub(1) {
            Some(last) => {
                self.link(entry, QUEUE, youngest, NONE);
                self.set_next(last, QUEUE, entry + 1);
            }
            None => {
                self.link(entry, QUEUE, IS_HEAD | head as u32, NONE);
                self.set(head, u64::from(entry + 1));
            }
        }
        self.set(tail, u64::from(entry + 1));
    }

    /// The expendable entries, oldest first.
    pub(super) fn expendable(&self, origin: Origin) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.get(head(origin)) as u32;
        std::iter::from_fn(move || {
            let entry = at.checked_sub(1)?;
            at = self.entries.get(entry, QUEUE) as u32;
            Some(entry)
        })
    }

    fn link(&self, entry: u32, list: usize, previous: u32, next: u32) {
        let link = u64::from(previous) << 32 | u64::from(next);
        self.entries.set(entry, list, link);
    }

    fn set_previous(&self, entry: u32, list: usize, previous: u32) {
        let next = self.entries.get(entry, list) as u32;
        self.link(entry, list, previous, next);
    }

    fn set_next(&self, entry: u32, list: usize, next: u32) {
        let previous = (self.entries.get(entry, list) >> 32) as u32;
        self.link(entry, list, previous, next);
    }

    #[inline]
    fn unlink(&self, entry: u32, list: usize) {
        let link = self.entries.get(entry, list);
        if link != UNLINKED {
            self.unlink_from(link, entry, list);
        }
    }

    fn unlink_from(&self, link: u64, entry: u32, list: usize) {
        let (previous, next) = ((link >> 32) as u32, link as u32);
        match previous & IS_HEAD != 0 {
            true => self.set((previous & !IS_HEAD) as usize, u64::from(next)),
            false => self.set_next(previous - 1, list, next),
        }
        match next.checked_sub(1) {
            Some(next) => self.set_previous(next, list, previous),
            // Only queues have an end that is kept.
            None if list == QUEUE => {
                let last = match previous & IS_HEAD != 0 {
                    true => NONE,
                    false => previous,
                };
                self.set(tail(self.entries.origin(entry)), u64::from(last));
            }
            None => {}
        }
        self.entries.set(entry, list, UNLINKED);
    }
}
