//! Packets that wait for a neighbour on the underlay.
//!
//! They are kept as they came and decided anew with the next snapshot, which
//! may know the neighbour. Few may wait, for at least one housekeeping and at
//! most two; a packet that the next snapshot does not help waits again.

use crate::drops::DropReason;
use crate::frame::{Awaited, Batch, Frame, Packet, Verdict};
use crate::types::Generation;

/// Packets that wait at most, for all neighbours and for one.
const LIMIT: usize = 32;
const PER_NEIGHBOR: usize = 8;

/// The packets of one lane.
#[derive(Debug)]
pub(super) struct Waiting {
    young: Batch,
    old: Batch,
    /// The snapshot that did not know their neighbours.
    generation: Generation,
}

impl Waiting {
    pub(super) fn new() -> Waiting {
        Waiting {
            young: Batch::new(),
            old: Batch::new(),
            generation: Generation(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// Whether another packet may wait for this neighbour.
    pub(super) fn admit(&self, awaited: Awaited) -> Result<(), DropReason> {
        let packets = self.young.packets().iter().chain(self.old.packets());
        let same = packets.filter(|p| p.verdict == Verdict::Wait(awaited));
        let is_full = self.young.len() + self.old.len() >= LIMIT || same.count() >= PER_NEIGHBOR;
        match is_full {
            true => Err(DropReason::NeighborQueueFull),
            false => Ok(()),
        }
    }

    /// Keeps a packet that [`Waiting::admit`] let in.
    pub(super) fn keep(
        &mut self,
        packet: &Packet,
        frames: impl Iterator<Item = Frame>,
        generation: Generation,
    ) {
        self.generation = generation;
        let index = self.young.len();
        self.young.push(packet.in_port, frames);
        self.young.decide(index, packet.verdict);
    }

    /// Moves what waits into an empty batch when another snapshot is in force;
    /// whether there is something.
    pub(super) fn release(&mut self, batch: &mut Batch, now: Generation) -> bool {
        if self.is_empty() || self.generation == now {
            return false;
        }
        for from in [&mut self.old, &mut self.young] {
            for index in 0..from.len() {
                let in_port = from.packets()[index].in_port;
                batch.push(in_port, from.take(index));
            }
            from.clear();
        }
        true
    }

    /// What has waited too long; the caller empties it.
    pub(super) fn expire(&mut self) -> &mut Batch {
        // `old` is empty: it was given out last time.
        std::mem::swap(&mut self.young, &mut self.old);
        &mut self.young
    }
}
