//! From a tuple to the connection and the direction that it names.
//!
//! Two buckets of eight cells, a cache line each, are where a tuple's hash
//! lets it lie; both are in one shard, whose lock whoever writes takes. A cell
//! is one word:
//!
//! ```text
//! | tag 30 | side 2 | entry + 1, 32 |   0 = empty
//! ```

use super::state::Side;
use super::words::Words;
use crate::sync::{AtomicU64, Ordering};

/// Cells of a bucket.
const CELLS: usize = 8;

/// Cells that are looked at together. A bucket is filled from its beginning,
/// so the others are mostly empty, which one test tells.
const HALF: usize = CELLS / 2;

/// Words of a shard's lock: a cache line, so that lanes do not wait for each
/// other's neighbours.
const LOCK_WORDS: usize = 8;

/// A cell that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell(u64);

impl Cell {
    #[inline]
    pub(super) fn new(hash: u64, side: Side, entry: u32) -> Cell {
        Cell(tag(hash) | (side as u64) << 32 | u64::from(entry + 1))
    }

    #[inline]
    pub(super) fn entry(self) -> u32 {
        self.0 as u32 - 1
    }

    #[inline]
    pub(super) fn side(self) -> Side {
        match self.0 >> 32 & 1 {
            0 => Side::Original,
            _ => Side::Reply,
        }
    }
}

/// Bits of a cell below its tag.
const BELOW_TAG: u32 = 34;

#[inline]
fn tag(hash: u64) -> u64 {
    hash & (!0 << BELOW_TAG)
}

/// What a look at a bucket's cells, from the last to the first, saw of them.
struct Filling {
    /// Cells in use.
    used: usize,
    /// The first that is empty.
    free: usize,
}

impl Filling {
    /// Looks at half a bucket, whose cells are counted from `first` on; ends at
    /// one with the hash's tag that `is_it` confirms.
    #[inline(always)]
    fn look<T>(
        &mut self,
        (words, first): (&[AtomicU64; HALF], usize),
        hash: u64,
        is_it: &impl Fn(Cell) -> Option<T>,
    ) -> Option<T> {
        for (number, word) in words.iter().enumerate().rev() {
            // Acquire: the entry that the cell names was written before.
            let cell = word.load(Ordering::Acquire);
            if (cell ^ hash) >> BELOW_TAG == 0
                && let Some(found) = nonempty(cell).and_then(is_it)
            {
                return Some(found);
            }
            self.used += usize::from(cell != 0);
            self.free = if cell == 0 { first + number } else { self.free };
        }
        None
    }
}

/// Out of line, so that it is asked of cells with the right tag alone.
#[inline(never)]
fn nonempty(cell: u64) -> Option<Cell> {
    (cell as u32 != 0).then_some(Cell(cell))
}

/// Whether no cell is in use.
#[inline(always)]
fn are_empty(words: &[AtomicU64; HALF]) -> bool {
    // Relaxed: who finds one in use loads it again.
    let cells = words.iter().map(|word| word.load(Ordering::Relaxed));
    cells.fold(0, |all, cell| all | cell) == 0
}

/// Why a cell was not put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoCell<T> {
    /// The tuple is there already.
    Taken(T),
    /// Both buckets are full.
    Full,
}

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    cells: Words,
    locks: Words,
    /// Buckets of a shard, a power of two.
    buckets: usize,
    shards: usize,
}

impl Index {
    /// An index for `capacity` connections, half full when all are in it.
    pub(super) fn new(capacity: usize, shards: usize) -> Index {
        let buckets = (4 * capacity / CELLS / shards).next_power_of_two().max(1);
        Index {
            cells: Words::scattered(buckets * shards * CELLS),
            locks: Words::new(shards * LOCK_WORDS),
            buckets,
            shards,
        }
    }

    fn shard(&self, hash: u64) -> usize {
        (hash >> 50) as usize & (self.shards - 1)
    }

    /// Where the two buckets of a hash begin.
    #[inline]
    fn buckets(&self, hash: u64) -> [usize; 2] {
        let base = self.shard(hash) * self.buckets;
        let place = |bits: u64| (base + (bits as usize & (self.buckets - 1))) * CELLS;
        [place(hash), place(hash >> 17)]
    }

    /// Asks for the cells that a lookup of the hash will read.
    #[inline]
    pub(super) fn ask(&self, hash: u64) {
        for bucket in self.buckets(hash) {
            self.cells.prefetch(bucket);
        }
    }

    /// Looks at a bucket, at its latter half only when that is not empty.
    #[inline(always)]
    fn look<T>(
        &self,
        bucket: usize,
        hash: u64,
        is_it: &impl Fn(Cell) -> Option<T>,
    ) -> (Filling, Option<T>) {
        let (front, back) = (self.cells.run(bucket), self.cells.run(bucket + HALF));
        let mut filling = Filling {
            used: 0,
            free: HALF,
        };
        if !are_empty(back) {
            let found = filling.look((back, HALF), hash, is_it);
            if found.is_some() {
                return (filling, found);
            }
        }
        let found = filling.look((front, 0), hash, is_it);
        (filling, found)
    }

    /// A cell of the hash that `is_it` confirms; of several, any. Lockless: one
    /// that is put in or taken out meanwhile may or may not be seen.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, is_it: impl Fn(Cell) -> Option<T>) -> Option<T> {
        let [first, second] = self.buckets(hash);
        match self.look(first, hash, &is_it) {
            (_, None) => self.look(second, hash, &is_it).1,
            (_, found) => found,
        }
    }

    /// Puts a cell in, unless `is_it` confirms one of the same hash.
    pub(super) fn insert<T>(
        &self,
        hash: u64,
        cell: Cell,
        is_it: impl Fn(Cell) -> Option<T>,
    ) -> Result<(), NoCell<T>> {
        let _guard = self.locks.lock(self.shard(hash) * LOCK_WORDS);
        // The emptier bucket, the first when both are as full.
        let (mut least, mut place) = (CELLS, 0);
        for bucket in self.buckets(hash) {
            let (filling, found) = self.look(bucket, hash, &is_it);
            if let Some(found) = found {
                return Err(NoCell::Taken(found));
            }
            if filling.used < least {
                (least, place) = (filling.used, bucket + filling.free);
            }
        }
        if least == CELLS {
            return Err(NoCell::Full);
        }
        debug_assert_eq!(self.cells.get(place), 0);
        // Release: who sees the cell sees the entry.
        self.cells.at(place).store(cell.0, Ordering::Release);
        Ok(())
    }

    /// Takes a cell out.
    pub(super) fn remove(&self, hash: u64, cell: Cell) {
        let _guard = self.locks.lock(self.shard(hash) * LOCK_WORDS);
        for bucket in self.buckets(hash) {
            for at in bucket..bucket + CELLS {
                if self.cells.get(at) == cell.0 {
                    self.cells.set(at, 0);
                    return;
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Its buckets are the first and the second one.
    const HASH: u64 = 5 << 40 | 1 << 17;
    const ALL: u32 = 2 * CELLS as u32;

    fn cell(entry: u32) -> Cell {
        Cell::new(HASH, Side::Original, entry)
    }

    fn put(index: &Index, entry: u32) -> Result<(), NoCell<u32>> {
        let is_it = |other: Cell| (other == cell(entry)).then_some(entry);
        index.insert(HASH, cell(entry), is_it)
    }

    fn has(index: &Index, entry: u32) -> bool {
        let is_it = |other: Cell| (other == cell(entry)).then_some(());
        index.find(HASH, is_it).is_some()
    }

    #[test]
    fn holes_anywhere_are_looked_past_and_filled() {
        let index = Index::new(4, 1);
        assert_eq!(index.buckets(HASH), [0, CELLS]);
        for entry in 0..ALL {
            assert!(!has(&index, entry), "{entry}");
            assert_eq!(put(&index, entry), Ok(()), "{entry}");
        }
        // Every pattern of holes in one bucket, and its mirror image in the
        // other.
        for holes in 0..=u8::MAX {
            let both = u16::from_le_bytes([holes, holes.reverse_bits()]);
            let places = (0..2 * CELLS).filter(|place| both >> place & 1 != 0);
            let gone: Vec<u32> = places
                .map(|place| Cell(index.cells.get(place)).entry())
                .collect();
            for &entry in &gone {
                index.remove(HASH, cell(entry));
            }
            for entry in 0..ALL {
                let is_there = !gone.contains(&entry);
                assert_eq!(has(&index, entry), is_there, "{entry} of {both:#018b}");
            }
            for &entry in &gone {
                assert_eq!(put(&index, entry), Ok(()), "{entry} of {both:#018b}");
            }
            for entry in 0..ALL {
                assert!(has(&index, entry), "{entry} of {both:#018b}");
                assert_eq!(put(&index, entry), Err(NoCell::Taken(entry)));
            }
            assert_eq!(put(&index, ALL), Err(NoCell::Full), "{both:#018b}");
        }
    }
}
