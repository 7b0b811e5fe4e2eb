//! How many connections each pod has, of those that it began and of those that
//! somebody outside did.
//!
//! Any lane counts at any time; the counts publish nothing, so every access is
//! relaxed.

use super::state::Origin;
use super::words::Words;
use crate::sync::{AtomicU64, Ordering};
use crate::types::PortId;

/// Pods that connections are counted for, by port.
#[cfg(not(loom))]
const PODS: usize = PortId::LIMIT + 1;
#[cfg(loom)]
const PODS: usize = 2;

/// Whose share of the table a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) origin: Origin,
    /// The pod's port.
    pub(super) pod: PortId,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Shares {
    counts: Words,
    capacity: usize,
}

impl Shares {
    /// Of a table for so many connections.
    pub(super) fn new(capacity: usize) -> Shares {
        Shares {
            counts: Words::new(Origin::COUNT * PODS),
            capacity,
        }
    }

    /// Connections that one pod may have, of those that began there: half of
    /// the table by itself, a quarter of it by others.
    pub(super) fn limit(&self, origin: Origin) -> usize {
        let part = match origin {
            Origin::Pod => 2,
            Origin::Outside => 4,
        };
        (self.capacity / part).max(1)
    }

    fn counter(&self, share: Share) -> &AtomicU64 {
        let index = share.origin as usize * PODS + share.pod.index() % PODS;
        self.counts.at(index)
    }

    /// Counts one more; whether the share had room for it, without which it is
    /// not counted.
    pub(super) fn take(&self, share: Share) -> bool {
        let before = self.counter(share).fetch_add(1, Ordering::Relaxed);
        let has_room = (before as usize) < self.limit(share.origin);
        if !has_room {
            self.uncount(share);
        }
        has_room
    }

    /// Counts one more, whatever the limit.
    pub(super) fn count(&self, share: Share) {
        self.counter(share).fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn are_all_free(&self) -> bool {
        (0..Origin::COUNT * PODS).all(|share| self.counts.get(share) == 0)
    }

    /// Counts one less.
    pub(super) fn uncount(&self, share: Share) {
        self.counter(share).fetch_sub(1, Ordering::Relaxed);
    }
}
