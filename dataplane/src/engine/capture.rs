//! A running capture, as its reader holds it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, lock};
use crate::lane::{CaptureQueue, CapturedPacket};
use crate::types::PortId;

/// Copies of packets, as they come.
pub struct Capture {
    pub(super) queue: Arc<CaptureQueue>,
    pub(super) inner: Arc<Inner>,
}

impl Capture {
    /// The next copy, when one waits.
    pub fn next(&self) -> Option<CapturedPacket> {
        self.queue.pop()
    }

    /// Readable when copies may wait; [`Capture::acknowledge`] silences it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queue.alarm.fd()
    }

    /// Silences [`Capture::fd`]; call it before taking copies.
    pub fn acknowledge(&self) {
        self.queue.alarm.clear();
    }

    /// Whether the one port that it is of was detached, and every copy is taken.
    pub fn is_over(&self) -> bool {
        // Acquire: sees what lanes added before it ended. That is why the
        // queue is looked at after.
        self.queue.is_over.load(Ordering::Acquire) && self.queue.packets.is_empty()
    }

    /// Copies that were lost because the reader did not keep up.
    pub fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Ends the captures of a port that every lane was asked to let go of. Lanes
    /// obey in order: whoever has the number next is not in them.
    pub(super) fn end_captures(&self, id: PortId) {
        let is_of = |queue: &Arc<CaptureQueue>| queue.spec.port == Some(id);
        if !lock(&self.captures).iter().any(is_of) {
            return;
        }
        self.change_captures(|captures| {
            for ended in captures.extract_if(.., |queue| is_of(queue)) {
                // Release: after the last copy of it.
                ended.is_over.store(true, Ordering::Release);
                ended.alarm.ring();
            }
        });
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.inner.change_captures(|captures| {
            captures.retain(|other| !Arc::ptr_eq(other, &self.queue));
        });
    }
}
