//! Which echo identifiers are given out, so that the uplink's program takes
//! their replies and leaves the node's own to the kernel.
//!
//! A count for each identifier, changed by any thread with atomic additions.
//! After a change from or to 0 the program's byte is set, and set again as
//! long as the count says otherwise: two threads that cross leave it right.

use super::words::Words;
#[cfg(not(loom))]
use crate::mapped_bytes::MappedBytes;
use crate::sync::Ordering;

/// Identifiers that there are.
pub(crate) const IDENTIFIERS: usize = 1 << 16;

/// The counts, and where the program reads.
#[derive(Debug)]
pub(super) struct Echoes {
    counts: Words,
    #[cfg(not(loom))]
    program: arc_swap::ArcSwapOption<MappedBytes>,
}

impl Echoes {
    pub(super) fn new() -> Echoes {
        Echoes {
            counts: Words::new(if cfg!(loom) { 0 } else { IDENTIFIERS }),
            #[cfg(not(loom))]
            program: arc_swap::ArcSwapOption::empty(),
        }
    }

    /// One connection more or less has the identifier.
    pub(super) fn count(&self, identifier: u16, is_more: bool) {
        let word = self.counts.at(usize::from(identifier));
        let before = match is_more {
            true => word.fetch_add(1, Ordering::AcqRel),
            false => word.fetch_sub(1, Ordering::AcqRel),
        };
        if before <= 1 {
            self.tell(identifier);
        }
    }

    pub(super) fn is_given(&self, identifier: u16) -> bool {
        // Acquire: pairs with `count`, so that of two who cross the later
        // sees what the earlier did.
        let word = self.counts.at(usize::from(identifier));
        word.load(Ordering::Acquire) > 0
    }

    #[cfg(not(loom))]
    fn tell(&self, identifier: u16) {
        let program = self.program.load();
        let Some(program) = program.as_ref() else {
            return;
        };
        loop {
            let is_given = self.is_given(identifier);
            program.set(usize::from(identifier), u8::from(is_given));
            if self.is_given(identifier) == is_given {
                return;
            }
        }
    }

    #[cfg(loom)]
    fn tell(&self, _identifier: u16) {}

    /// A program begins to read: it gets to know all that is given out.
    #[cfg(not(loom))]
    pub(super) fn show(&self, program: MappedBytes) {
        self.program.store(Some(std::sync::Arc::new(program)));
        for identifier in 0..=u16::MAX {
            if self.is_given(identifier) {
                self.tell(identifier);
            }
        }
    }
}
