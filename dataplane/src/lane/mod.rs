//! A lane: one pinned thread, one queue of every port, one round after the
//! other.
//!
//! The walk of a packet is [`Lane::breathe`]. Everything a lane touches per
//! packet is its own; it shares the snapshot (read), padded counters
//! (written), the owner table (its own chunks' entries), and bounded queues
//! with control.

mod capture;
mod emit;
mod nap;
mod ports;
mod rest;
mod streams;
#[cfg(test)]
mod tests;
mod together;
mod waiting;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;

use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::frame::{Batch, Frame, MAX_FRAMES};
use crate::pipeline::apart::Parting;
use crate::pipeline::coalesce::Coalescer;
use crate::pipeline::{self, FlowRecord, LaneState};
use crate::port::LanePort;
use crate::snapshot::Snapshot;
use crate::types::{Nanos, PortId};
use crate::umem::{FramePool, OwnerTable, OwnerTag, Umem};
use crate::xsk::queue::Queue;

pub(crate) use capture::CaptureQueue;
use capture::Copies;
pub use capture::{CaptureSpec, CapturedPacket, Direction};
use emit::Emitter;
use nap::{Brought, Naps};
use ports::{LanePorts, Waits};
pub(crate) use rest::Alarm;
pub use rest::PollMode;
use rest::Rest;
pub(crate) use streams::Streams;
use waiting::Waiting;

/// How often a lane looks after its gauges and fill levels.
const HOUSEKEEPING_NANOS: u64 = 1_000_000_000;

/// What control asks of a lane.
pub(crate) enum Command {
    /// Poll this port from now on.
    AddPort(Box<LanePort>, Sender<Joined>),
    /// Forget the port and hand its part over; `None` when unknown.
    RemovePort(PortId, Sender<Option<Box<LanePort>>>),
    /// List the flow tables.
    Flows(Sender<Vec<FlowRecord>>),
    /// Copy packets there from now on, or stop copying.
    Capture(Vec<Arc<CaptureQueue>>),
    /// Leave the loop.
    Stop,
    /// Do as the test says.
    #[cfg(test)]
    Run(Box<dyn FnOnce(&mut Lane) + Send>),
}

/// How a lane took a port.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Chunks that are posted on it.
    pub(crate) posted: u32,
    /// Why its stream socket is asked by itself.
    pub(crate) unwatched: Option<io::Error>,
}

/// A lane's report that the kernel refuses to serve a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wedged {
    pub(crate) port: PortId,
    /// The lane's queue, which tells this socket from a later one.
    pub(crate) tag: OwnerTag,
}

/// What a lane and control have in common.
#[derive(Debug)]
pub(crate) struct LaneShared {
    pub(crate) commands: SegQueue<Command>,
    pub(crate) alarm: Alarm,
    pub(crate) counters: Arc<CachePadded<LaneCounters>>,
    /// Origin of the lanes' [`Nanos`].
    pub(crate) epoch: Instant,
}

impl LaneShared {
    /// Asks something of the lane and wakes it.
    pub(crate) fn tell(&self, command: Command) {
        self.commands.push(command);
        self.alarm.ring();
    }
}

/// What a lane is made of.
pub(crate) struct LaneParts {
    pub(crate) poll: PollMode,
    pub(crate) umem: Arc<Umem>,
    pub(crate) owners: Arc<OwnerTable>,
    pub(crate) pool: FramePool,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) state: LaneState,
    pub(crate) shared: Arc<LaneShared>,
    pub(crate) events: Arc<Alarm>,
    pub(crate) wedged: Sender<Wedged>,
    pub(crate) streams: Streams,
}

/// The poll loop's own state.
pub(crate) struct Lane {
    umem: Arc<Umem>,
    owners: Arc<OwnerTable>,
    pub(crate) pool: FramePool,
    snapshot: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    state: LaneState,
    shared: Arc<LaneShared>,
    events: Arc<Alarm>,
    pub(crate) ports: LanePorts,
    batch: Batch,
    scratch: Batch,
    together: Vec<u8>,
    parting: Parting,
    coalescer: Coalescer,
    copies: Vec<Frame>,
    waiting: Waiting,
    captures: Vec<Arc<CaptureQueue>>,
    wedged: Sender<Wedged>,
    streams: Streams,
    rest: Rest,
    naps: Naps,
    frames_low: u64,
    housekeeping_due: Nanos,
    window: Window,
}

/// Busy time of the current housekeeping window.
#[derive(Debug, Default)]
struct Window {
    began: Nanos,
    busy_nanos: u64,
}

impl Lane {
    pub(crate) fn new(parts: LaneParts) -> Lane {
        let mut rest = Rest::new(parts.poll, &parts.shared.alarm);
        rest.watch(parts.streams.fd());
        // It has not been away: its clock may count from long ago.
        let now = parts.shared.epoch.elapsed().as_nanos() as u64;
        parts.shared.counters.last_round.set(now);
        Lane {
            frames_low: parts.umem.chunks() as u64 / 4,
            umem: parts.umem,
            owners: parts.owners,
            pool: parts.pool,
            snapshot: Cache::new(parts.snapshot),
            state: parts.state,
            shared: parts.shared,
            events: parts.events,
            ports: LanePorts::default(),
            batch: Batch::new(),
            scratch: Batch::new(),
            together: Vec::new(),
            parting: Parting::new(),
            coalescer: Coalescer::new(),
            copies: Vec::with_capacity(MAX_FRAMES),
            waiting: Waiting::new(),
            captures: Vec::new(),
            wedged: parts.wedged,
            streams: parts.streams,
            rest,
            naps: Naps::default(),
            housekeeping_due: Nanos(0),
            window: Window::default(),
        }
    }

    /// Runs until told to stop; returns the ports.
    pub(crate) fn run(mut self) -> Vec<LanePort> {
        self.rest.prepare();
        loop {
            let now = self.now();
            if !self.shared.commands.is_empty() && self.obey(now) {
                // Old and young.
                self.give_up_waiting();
                self.give_up_waiting();
                self.streams.release(&mut self.pool);
                return self.ports.take_all(&mut self.pool);
            }
            let packets = self.breathe(now);
            if packets > 0 {
                let spent = self.now().since(now);
                self.window.busy_nanos += spent;
                self.shared.counters.busy_nanos.add(spent);
            }
            if now >= self.housekeeping_due {
                self.keep_house(now);
            }
            if self.rest.is_due(packets, now) {
                self.streams.release(&mut self.pool);
                self.update_gauges();
                let waits = match self.waiting.is_empty() {
                    true => self.ports.waits(),
                    // Nothing wakes the lane for a snapshot.
                    false => Waits::Transmit,
                };
                self.rest
                    .sleep(&self.shared.alarm, &self.shared.counters, waits);
            } else if packets < Batch::MAX_PACKETS && self.rest.may_nap() {
                self.nap(now);
            }
        }
    }

    /// Naps if a flood is all there is to do, and the lane has caught up with
    /// it.
    fn nap(&mut self, now: Nanos) {
        let Some(port) = self.naps.port().and_then(|id| self.ports.get(id)) else {
            return;
        };
        let brought = Brought {
            packets: port.counters.rx_packets.get(),
            bytes: port.counters.rx_bytes.get(),
            posted: port.queues().map(Queue::posted).min().unwrap_or(0),
        };
        let nap = self.naps.due(brought, now);
        if let Some(wanted) = self.naps.wanted() {
            let queues = port.queues().count() as u32;
            port.queues_mut()
                .for_each(|queue| queue.expect(wanted / queues));
        }
        // A batch that is not full may leave some in the rings.
        let has_all = port.queues().all(|queue| queue.waiting() == 0);
        // Nothing wakes the lane for what these wait for.
        let is_free = !self.ports.stall() && self.waiting.is_empty();
        let Some(nap) = nap.filter(|_| has_all && is_free) else {
            return;
        };
        if let Some(port) = self.ports.get(nap.port) {
            let (alarm, counters) = (&self.shared.alarm, &self.shared.counters);
            let flooding = port.queues().map(Queue::fd);
            self.rest.nap(alarm, counters, nap.nanos, flooding);
        }
    }

    /// One round: `rx → parse → flow lookup → (miss: classify) → apply → tx →
    /// reclaim`, port by port, and one flush for each port written to.
    /// Returns how many packets it moved.
    fn breathe(&mut self, now: Nanos) -> usize {
        let snapshot = self.snapshot.load();
        let frames_short = self.pool.depot_free() < self.frames_low;
        let mut packets = 0;
        self.streams.look(&mut self.ports, now);
        // What waited for a neighbour goes first, or copies of group frames,
        // then port by port.
        for at in 0..=self.ports.len() {
            let in_port = match at.checked_sub(1) {
                Some(at) => self.ports.receive(
                    at,
                    &mut self.batch,
                    &self.umem,
                    &self.owners,
                    (&mut self.pool, &mut self.streams.spares),
                ),
                None if self.waiting.release(&mut self.batch, snapshot.generation) => None,
                None => self
                    .ports
                    .receive_groups(&mut self.batch, &self.umem, &mut self.pool, now),
            };
            if self.batch.is_empty() {
                continue;
            }
            packets += self.batch.len();
            if let Some(in_port) = in_port {
                self.naps.came(in_port);
            }
            // What waited was counted when it came.
            if in_port.is_some() {
                self.shared.counters.rx_packets.add(self.batch.len() as u64);
            }
            let mut merged = false;
            loop {
                // Who captures sees single packets.
                let may_merge = self.captures.is_empty();
                let (batch, pool) = (&mut self.batch, &mut self.pool);
                let parted = self
                    .parting
                    .take(&self.umem, pool, batch, snapshot, may_merge);
                if parted.lost > 0 {
                    self.shared.counters.drops[DropReason::NoFrames.index()].add(parted.lost);
                }
                let mut copies = Copies::before(&self.captures, &self.umem, &self.batch);
                pipeline::process(&self.umem, &mut self.batch, snapshot, &mut self.state, now);
                match &mut copies {
                    // Who captures sees the packets as they came.
                    Some(copies) => copies.after(&self.umem, &self.batch, snapshot),
                    None => merged |= self.coalescer.merge(&self.umem, &mut self.batch, snapshot),
                }
                Emitter {
                    umem: &self.umem,
                    snapshot,
                    owners: &self.owners,
                    pool: &mut self.pool,
                    ports: &mut self.ports,
                    counters: &self.shared.counters,
                    scratch: &mut self.scratch,
                    together: &mut self.together,
                    now,
                    copies: &mut self.copies,
                    waiting: &mut self.waiting,
                    captured: copies.as_mut(),
                }
                .emit(&mut self.batch);
                if let Some(copies) = copies {
                    copies.deliver(&self.captures);
                }
                if !parted.more {
                    break;
                }
            }
            if let Some(in_port) = in_port {
                if merged && let Some(port) = self.ports.get(in_port) {
                    port.queues_mut().for_each(Queue::expect_stream);
                }
                self.ports
                    .refill(in_port, &mut self.pool, &self.owners, frames_short);
            }
        }
        self.ports.flush(&mut self.pool, &self.owners);
        if packets > 0 && self.state.take_events_pending() {
            self.events.ring();
        }
        self.shared.counters.rounds.add(1);
        self.shared.counters.last_round.set(now.0);
        packets
    }

    /// Carries out what control asked; `true` when it asked to stop.
    #[cold]
    fn obey(&mut self, now: Nanos) -> bool {
        while let Some(command) = self.shared.commands.pop() {
            match command {
                Command::AddPort(port, reply) => {
                    let posted = self.add_port(port);
                    // The asker may have given up, and takes the port back.
                    let _ = reply.send(posted);
                }
                Command::RemovePort(id, reply) => {
                    let removed = self.remove_port(id);
                    // The asker keeps listening, however long it takes.
                    let _ = reply.send(removed);
                }
                Command::Flows(reply) => {
                    let _ = reply.send(self.state.flows(&self.snapshot.load().clone(), now));
                }
                Command::Capture(captures) => self.captures = captures,
                Command::Stop => return true,
                #[cfg(test)]
                Command::Run(work) => work(self),
            }
        }
        false
    }

    fn add_port(&mut self, mut port: Box<LanePort>) -> Joined {
        // What the queue with the fewest chunks got.
        let mut posted = u32::MAX;
        for queue in port.queues_mut() {
            queue.refill(&mut self.pool, &self.owners, false);
            posted = posted.min(queue.posted());
            self.rest.watch(queue.fd());
        }
        if let Some(groups) = &port.groups {
            self.rest.watch(groups.fd());
        }
        let stream = port.stream.as_ref();
        let unwatched = stream.and_then(|stream| {
            let error = self.streams.watch(port.id, stream).err()?;
            self.rest.watch(stream.fd());
            Some(error)
        });
        self.ports.insert(port);
        Joined { posted, unwatched }
    }

    fn remove_port(&mut self, id: PortId) -> Option<Box<LanePort>> {
        let mut port = self.ports.remove(id)?;
        port.queues().for_each(|queue| self.rest.forget(queue.fd()));
        if let Some(groups) = &port.groups {
            self.rest.forget(groups.fd());
        }
        if let Some(stream) = &port.stream {
            self.streams.forget(port.id, stream);
            self.rest.forget(stream.fd());
        }
        let abandoned: u32 = port.queues_mut().map(Queue::abandoned).sum();
        let abandoned = abandoned + u32::from(port.behind.release(&mut self.pool));
        self.shared.counters.drops[DropReason::PortRemoved.index()].add(u64::from(abandoned));
        Some(port)
    }

    fn keep_house(&mut self, now: Nanos) {
        self.housekeeping_due = Nanos(now.0 + HOUSEKEEPING_NANOS);
        self.ports.relax_idle();
        let broken = self.ports.count_broken();
        self.shared.counters.drops[DropReason::BrokenChain.index()].add(broken);
        let lost = self.ports.count_lost();
        self.shared.counters.drops[DropReason::RxRingFull.index()].add(lost);
        self.streams.release(&mut self.pool);
        self.ports.refill_all(&mut self.pool, &self.owners);
        for wedged in self.ports.take_wedged() {
            // Nobody listens only while the engine stops.
            let _ = self.wedged.send(wedged);
        }
        let span = now.since(self.window.began).max(1);
        let ppm = (self.window.busy_nanos.saturating_mul(1_000_000) / span).min(1_000_000);
        self.shared.counters.busy_ppm.set(ppm);
        self.window = Window {
            began: now,
            busy_nanos: 0,
        };
        self.give_up_waiting();
        self.update_gauges();
    }

    /// Drops packets whose neighbour was not resolved in time.
    fn give_up_waiting(&mut self) {
        let expired = self.waiting.expire();
        let count = expired.len() as u64;
        for index in 0..expired.len() {
            let packet = expired.packets()[index];
            if let Some(port) = self.ports.get(packet.in_port) {
                port.counters.drops.add(1);
            }
            expired.take(index).for_each(|frame| self.pool.free(frame));
        }
        expired.clear();
        let counters = &self.shared.counters;
        counters.drops[DropReason::NeighborUnresolved.index()].add(count);
    }

    fn update_gauges(&mut self) {
        let counters = &self.shared.counters;
        counters.frames_free.set(self.pool.len() as u64);
        counters.frames_filling.set(self.ports.filling());
    }

    /// Sends a frame that the kernel refuses for ever: its checksum would lie
    /// behind its end.
    #[cfg(test)]
    pub(crate) fn send_spoiled(&mut self, id: PortId, mut frame: Frame) {
        assert!(frame.resize(64));
        let checksum = crate::frame::TxChecksum {
            start: 1000,
            offset: 0,
        };
        if let Some(port) = self.ports.get(id) {
            let frames = std::iter::once(frame);
            port.queue
                .send(&self.umem, &self.owners, frames, Some(checksum));
            self.ports.mark_dirty(id);
        }
    }

    fn now(&self) -> Nanos {
        Nanos(self.shared.epoch.elapsed().as_nanos() as u64)
    }
}
