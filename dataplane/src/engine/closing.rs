//! Taking a port back: from the lanes, from the kernel, and its frames home.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::error::PortError;
use super::{ANSWER_TIMEOUT, Answer, Inner, lock};
use crate::lane::Command;
use crate::port::{LanePort, PortHandle};
use crate::types::PortId;
use crate::umem::FramePool;

/// A port on its way out.
pub(super) struct Closing {
    pub(super) handle: PortHandle,
    pub(super) parts: Vec<LanePort>,
    /// Lanes that have not handed their part over.
    pub(super) waiting: Vec<(usize, Receiver<Option<Box<LanePort>>>)>,
}

impl Inner {
    /// Takes a port from the lanes, as far as they answer.
    pub(super) fn remove(&self, id: PortId) -> Option<Closing> {
        let handle = lock(&self.ports).remove(&id)?;
        let waiting = self.ask(|reply| Command::RemovePort(id, reply));
        let mut closing = Closing {
            handle,
            parts: Vec::new(),
            waiting: waiting.into_iter().enumerate().collect(),
        };
        self.gather(&mut closing, Instant::now() + ANSWER_TIMEOUT);
        Some(closing)
    }

    /// Takes what lanes hand over until the deadline. A lane that ended has
    /// closed its part with its thread.
    pub(super) fn gather(&self, closing: &mut Closing, deadline: Instant) {
        let Closing { parts, waiting, .. } = closing;
        waiting.retain(
            |(lane, answer)| match self.answer(*lane, answer, deadline) {
                Answer::Got(part) => {
                    parts.extend(part.map(|part| *part));
                    false
                }
                Answer::Dead => false,
                Answer::Late => true,
            },
        );
    }

    /// Closes what lanes gave back, then takes its frames home: after the
    /// sockets are closed the kernel touches none of them. While a lane still
    /// has a part of it, the port is kept for the mender instead.
    pub(super) fn close(&self, closing: Closing) -> Result<(), PortError> {
        if !closing.waiting.is_empty() {
            let name = closing.handle.spec.name.clone();
            lock(&self.closing).push(closing);
            return Err(PortError::Lane(name));
        }
        let kernel = closing.handle.kernel_drops();
        let mut gone = lock(&self.kernel_drops);
        gone.fill_empty += kernel.fill_empty;
        gone.ring_full += kernel.ring_full;
        drop(gone);
        let tags = closing.handle.tags.clone();
        drop(closing);
        let mut pool = FramePool::new(Arc::clone(&self.depot));
        for tag in tags {
            self.owners.reclaim(tag).for_each(|frame| pool.free(frame));
        }
        Ok(())
    }
}
