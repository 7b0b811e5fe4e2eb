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
use crate::sync::Ordering;

/// Cells of a bucket.
const CELLS: usize = 8;

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

#[inline]
fn tag(hash: u64) -> u64 {
    hash & (!0 << 34)
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

    /// The first cell of the hash that `is_it` confirms. Lockless: a cell that
    /// is put in or taken out meanwhile may or may not be seen.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, is_it: impl Fn(Cell) -> Option<T>) -> Option<T> {
        for bucket in self.buckets(hash) {
            for at in bucket..bucket + CELLS {
                // Acquire: the entry that the cell names was written before.
                let cell = self.cells.at(at).load(Ordering::Acquire);
                if cell & (!0 << 34) == tag(hash)
                    && cell as u32 != 0
                    && let Some(found) = is_it(Cell(cell))
                {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Puts a cell in, unless `is_it` confirms one of the same hash.
    pub(super) fn insert<T>(
        &self,
        hash: u64,
        cell: Cell,
        is_it: impl Fn(Cell) -> Option<T>,
    ) -> Result<(), NoCell<T>> {
        let _guard = self.locks.lock(self.shard(hash) * LOCK_WORDS);
        if let Some(found) = self.find(hash, is_it) {
            return Err(NoCell::Taken(found));
        }
        let free = |bucket: usize| {
            let mut cells = bucket..bucket + CELLS;
            cells.find(|&at| self.cells.get(at) == 0)
        };
        let used = |bucket: usize| {
            let cells = bucket..bucket + CELLS;
            cells.filter(|&at| self.cells.get(at) != 0).count()
        };
        let [first, second] = self.buckets(hash);
        let emptier = match used(first) <= used(second) {
            true => first,
            false => second,
        };
        let at = free(emptier).ok_or(NoCell::Full)?;
        // Release: who sees the cell sees the entry.
        self.cells.at(at).store(cell.0, Ordering::Release);
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
