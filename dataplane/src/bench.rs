//! A lane's packet logic on ports in memory: what microbenchmarks drive.
//!
//! A [`Rig`] holds what a lane holds, but for sockets. [`Rig::process`] is the
//! call that the poll loop makes; everything else loads packets and looks at
//! what became of them. Ports are entries of the snapshot, no more.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Batch, FRAME_SIZE, Frame, HEADROOM, Verdict};
use crate::pipeline::coalesce::Coalescer;
use crate::pipeline::segment::segment;
use crate::pipeline::{FlowCapacity, LaneState, process};
use crate::snapshot::Snapshot;
use crate::types::{LaneId, Nanos, PortId};
use crate::umem::{FramePool, Umem, UmemError, in_memory};

/// Room for a full batch of the longest packets, and for the pieces of one.
const CHUNKS: usize = 2048;

/// Bytes of data that one chunk takes.
const CHUNK_ROOM: usize = FRAME_SIZE - HEADROOM;

/// Events that are kept for nobody.
const EVENTS: usize = 64;

/// A lane without sockets.
#[derive(Debug)]
pub struct Rig {
    umem: Arc<Umem>,
    pool: FramePool,
    batch: Batch,
    pieces: Batch,
    coalescer: Coalescer,
    snapshot: Snapshot,
    state: LaneState,
    counters: Arc<CachePadded<LaneCounters>>,
    _events: rtrb::Consumer<Event>,
    now: Nanos,
}

impl Rig {
    /// A lane that has seen nothing.
    ///
    /// # Errors
    /// When the frame memory cannot be mapped.
    pub fn new(snapshot: Snapshot, flows: FlowCapacity) -> Result<Rig, UmemError> {
        let (umem, pool) = in_memory(CHUNKS)?;
        let counters = Arc::new(LaneCounters::new());
        let (producer, events) = rtrb::RingBuffer::new(EVENTS);
        Ok(Rig {
            umem,
            pool,
            batch: Batch::new(),
            pieces: Batch::new(),
            coalescer: Coalescer::new(),
            snapshot,
            state: LaneState::new(
                LaneId(0),
                Arc::clone(&counters),
                producer,
                flows,
                Arc::default(),
            ),
            counters,
            _events: events,
            now: Nanos(1_000_000_000),
        })
    }

    /// Adds a packet to the batch, in as many frames as it takes. `false` and
    /// nothing added when the frames ran out.
    #[must_use]
    pub fn load(&mut self, port: PortId, packet: &[u8]) -> bool {
        let mut chain = Vec::new();
        for piece in packet.chunks(CHUNK_ROOM) {
            let Some(mut frame) = self.pool.alloc() else {
                free(&mut self.pool, chain);
                return false;
            };
            if frame.resize(piece.len()) {
                self.umem.bytes_mut(&mut frame).copy_from_slice(piece);
            }
            chain.push(frame);
        }
        self.batch.push(port, chain);
        true
    }

    /// Empties the batch.
    pub fn unload(&mut self) {
        free(&mut self.pool, self.batch.frames.drain(..).flatten());
        self.batch.clear();
    }

    /// Packets in the batch.
    pub fn batch_len(&self) -> usize {
        self.batch.len()
    }

    /// The head frame of packet `index`, to write it anew.
    pub fn head(&mut self, index: usize) -> &mut [u8] {
        self.umem.bytes_mut(self.batch.head_mut(index))
    }

    /// One call of the batch function on the whole batch.
    #[inline]
    pub fn process(&mut self) {
        process(
            &self.umem,
            &mut self.batch,
            &self.snapshot,
            &mut self.state,
            self.now,
        );
    }

    /// Lets time pass, in nanoseconds.
    pub fn advance(&mut self, nanos: u64) {
        self.now.0 += nanos;
    }

    /// What became of packet `index`.
    pub fn verdict(&self, index: usize) -> Verdict {
        self.batch.packets()[index].verdict
    }

    /// Cuts packet `index` into pieces of at most `mtu` bytes of IP packet,
    /// frees them, and says how many they were.
    ///
    /// # Errors
    /// Why it cannot be cut.
    #[inline]
    pub fn segment(&mut self, index: usize, mtu: u32) -> Result<usize, DropReason> {
        let (umem, pool) = (&self.umem, &mut self.pool);
        segment(umem, pool, &self.batch, index, mtu, &mut self.pieces)?;
        let count = self.pieces.len();
        free(pool, self.pieces.frames.drain(..).flatten());
        self.pieces.clear();
        Ok(count)
    }

    /// The bytes of the pieces that packet `index` is to be cut into; none
    /// when its verdict does not say so.
    ///
    /// # Errors
    /// Why it cannot be cut.
    pub fn pieces(&mut self, index: usize) -> Result<Vec<Vec<u8>>, DropReason> {
        let Verdict::Segment { mtu, .. } = self.verdict(index) else {
            return Ok(Vec::new());
        };
        let (umem, pool) = (&self.umem, &mut self.pool);
        segment(umem, pool, &self.batch, index, mtu, &mut self.pieces)?;
        let bytes = |first: usize, count: usize| -> Vec<u8> {
            let frames = self.pieces.frames[first..first + count].iter().flatten();
            frames
                .flat_map(|frame| umem.bytes(frame))
                .copied()
                .collect()
        };
        let packets = self.pieces.packets().iter();
        let pieces = packets
            .map(|packet| bytes(packet.first as usize, packet.frames.into()))
            .collect();
        free(pool, self.pieces.frames.drain(..).flatten());
        self.pieces.clear();
        Ok(pieces)
    }

    /// Merges what the uplink brought in neighbouring segments.
    #[inline]
    pub fn coalesce(&mut self) {
        self.coalescer
            .merge(&self.umem, &mut self.batch, &self.snapshot);
    }

    /// Publishes the snapshot anew: every flow decides again.
    pub fn publish(&mut self) {
        self.snapshot.generation.0 = self.snapshot.generation.0.wrapping_add(1).max(1);
    }

    /// Removes every connection of a pod.
    pub fn forget(&mut self, pod: PortId) {
        self.state.connections().forget(pod);
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.state.connections().len()
    }

    /// What the lane counted.
    pub fn counters(&self) -> &LaneCounters {
        &self.counters
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.unload();
    }
}

fn free(pool: &mut FramePool, frames: impl IntoIterator<Item = Frame>) {
    for frame in frames {
        pool.free(frame);
    }
}
