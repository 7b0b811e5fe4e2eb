//! A running capture, as its reader holds it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use crate::lane::{CaptureQueue, CapturedPacket};

/// Copies of packets, as they come.
pub struct Capture {
    pub(super) queue: Arc<CaptureQueue>,
    pub(super) inner: Arc<Inner>,
}

impl Capture {
    /// The next copy, when one waits.
    pub fn next(&self) -> Option<CapturedPacket> {
        self.queue.packets.pop()
    }

    /// Readable when copies may wait; [`Capture::acknowledge`] silences it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queue.alarm.fd()
    }

    /// Silences [`Capture::fd`]; call it before taking copies.
    pub fn acknowledge(&self) {
        self.queue.alarm.clear();
    }

    /// Copies that were lost because the reader did not keep up.
    pub fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.inner.change_captures(|captures| {
            captures.retain(|other| !Arc::ptr_eq(other, &self.queue));
        });
    }
}
