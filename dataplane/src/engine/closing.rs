//! Taking a port back: from the lanes, from the kernel, and its frames home.
//! And all of them, at the end.

use std::any::Any;
use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Instant;

use super::error::PortError;
use super::lanes::{ANSWER_TIMEOUT, Answer};
use super::{Inner, lock};
use crate::lane::Command;
use crate::port::{LanePort, PortHandle};
use crate::types::PortId;
use crate::umem::{FramePool, OwnerTag};

/// Threads that close sockets side by side; each close waits for the kernel's
/// readers, and those that wait at the same time wait for the same.
const CLOSERS: usize = 32;

/// Something that is closed when it is dropped.
type Held = Box<dyn Any + Send>;

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
        self.close_all(vec![closing]);
        Ok(())
    }

    /// Closes ports that no lane has a part of any more, all of them side by
    /// side.
    fn close_all(&self, closings: Vec<Closing>) {
        let mut tags = Vec::new();
        let mut held = Vec::new();
        for closing in closings {
            let kernel = closing.handle.kernel_drops();
            let mut gone = lock(&self.kernel_drops);
            gone.fill_empty += kernel.fill_empty;
            gone.ring_full += kernel.ring_full;
            drop(gone);
            tags.extend(closing.take_apart(&mut held));
        }
        drop_side_by_side(held);
        let mut pool = FramePool::new(Arc::clone(&self.depot));
        for tag in tags {
            self.owners.reclaim(tag).for_each(|frame| pool.free(frame));
        }
    }

    /// Stops the lanes and closes every port.
    pub(super) fn stop(&self) {
        let _change = lock(&self.changes);
        for lane in &self.lanes {
            lane.tell(Command::Stop);
        }
        let parts: Vec<_> = lock(&self.threads)
            .drain(..)
            .filter_map(|thread| thread.join().ok())
            .flatten()
            .collect();
        let ports = std::mem::take(&mut *lock(&self.ports));
        let ports = ports.into_iter().map(|(id, handle)| {
            let closing = Closing {
                handle,
                parts: Vec::new(),
                waiting: Vec::new(),
            };
            (id, closing)
        });
        let mut closings: HashMap<PortId, Closing> = ports.collect();
        for part in parts {
            if let Some(closing) = closings.get_mut(&part.id) {
                closing.parts.push(part);
            }
        }
        let late = std::mem::take(&mut *lock(&self.closing));
        let late = late.into_iter().map(|mut closing| {
            // Every lane has ended: what it did not hand over it has closed.
            self.gather(&mut closing, Instant::now());
            closing.waiting.clear();
            closing
        });
        self.close_all(closings.into_values().chain(late).collect());
    }
}

impl Closing {
    /// Its sockets and its program, each for itself, and the queues whose
    /// frames come home.
    fn take_apart(self, held: &mut Vec<Held>) -> Vec<OwnerTag> {
        let PortHandle {
            program,
            sockets,
            tags,
            ..
        } = self.handle;
        // The lanes' parts have them, too.
        drop(sockets);
        held.push(Box::new(program));
        for part in self.parts {
            let LanePort {
                queue,
                more,
                bulk,
                overlay,
                segments,
                groups,
                stream,
                ..
            } = part;
            held.push(Box::new(queue));
            held.extend(more.into_iter().map(|queue| Box::new(queue) as Held));
            held.push(Box::new(bulk));
            held.push(Box::new((overlay, segments)));
            held.push(Box::new((groups, stream)));
        }
        tags
    }
}

/// Drops everything, each on one of a few threads; the calling thread is one of
/// them, and the only one when no other can be had.
fn drop_side_by_side(held: Vec<Held>) {
    let threads = CLOSERS.min(held.len());
    let waiting = Mutex::new(held);
    let drop_some = || {
        loop {
            let next = lock(&waiting).pop();
            match next {
                Some(one) => drop(one),
                None => return,
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let thread = Builder::new().name("closer".to_owned());
            if thread.spawn_scoped(scope, drop_some).is_err() {
                break;
            }
        }
        drop_some();
    });
}
