//! The ports of one lane: by number for sending, in a list for polling.

use crate::frame::{Batch, FRAME_SIZE};
use crate::lane::Wedged;
use crate::port::LanePort;
use crate::stream_socket::{Came, Spares, StreamSocket};
use crate::types::{Nanos, PortId};
use crate::umem::{FramePool, OwnerTable, Umem};
use crate::xsk::queue::{Flush, Queue};

/// What still keeps a lane from sleeping long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing.
    Nothing,
    /// Sent frames will be completed without a wake-up.
    Completions,
    /// A port did not take all descriptors.
    Transmit,
}

/// A lane's ports.
#[derive(Debug, Default)]
pub(crate) struct LanePorts {
    by_id: Vec<Option<Box<LanePort>>>,
    polled: Vec<PortId>,
    dirty: Vec<PortId>,
    /// The bridged uplink, on the lane that takes its group frames.
    bridged: Option<PortId>,
    groups_due: Nanos,
}

/// How often a busy lane looks for group frames; they wake one that sleeps.
const GROUPS_NANOS: u64 = 500_000;

/// Frames of streams after which a lane looks after other things: a round's
/// share of the second-level cache.
const STREAM_BURST_FRAMES: u32 = 48;

/// Group frames that are taken at once.
const GROUPS_BURST: usize = 32;

impl LanePorts {
    pub(super) fn len(&self) -> usize {
        self.polled.len()
    }

    pub(crate) fn get(&mut self, id: PortId) -> Option<&mut LanePort> {
        self.by_id.get_mut(id.index())?.as_deref_mut()
    }

    pub(super) fn insert(&mut self, port: Box<LanePort>) {
        let id = port.id;
        if self.by_id.len() <= id.index() {
            self.by_id.resize_with(id.index() + 1, || None);
        }
        debug_assert!(self.by_id[id.index()].is_none(), "port numbers are unique");
        if port.groups.is_some() {
            self.bridged = Some(id);
        }
        self.by_id[id.index()] = Some(port);
        self.polled.push(id);
    }

    pub(super) fn remove(&mut self, id: PortId) -> Option<Box<LanePort>> {
        let port = self.by_id.get_mut(id.index())?.take()?;
        self.polled.retain(|&other| other != id);
        self.bridged.take_if(|bridged| *bridged == id);
        self.dirty.retain(|&other| other != id);
        Some(port)
    }

    pub(super) fn take_all(&mut self, pool: &mut FramePool) -> Vec<LanePort> {
        for port in self.by_id.iter_mut().flatten() {
            port.behind.release(pool);
        }
        self.polled.clear();
        self.dirty.clear();
        self.by_id.drain(..).flatten().map(|port| *port).collect()
    }

    /// Takes packets from the port in place `at` of the list; `None` when it
    /// has none.
    pub(super) fn receive(
        &mut self,
        at: usize,
        batch: &mut Batch,
        umem: &Umem,
        owners: &OwnerTable,
        (pool, spares): (&mut FramePool, &mut Spares),
    ) -> Option<PortId> {
        let id = self.polled[at];
        let port = self.by_id[id.index()].as_deref_mut()?;
        // With room for what waits behind it.
        let room = Batch::MAX_PACKETS - usize::from(!port.behind.is_empty());
        let mut frames = port.queue.receive(batch, id, umem, owners, room);
        if let Some(kept) = port.behind.follow(frames) {
            frames += kept.len() as u32;
            batch.push(id, kept);
        }
        if !port.more.is_empty() {
            frames += receive_more(&mut port.more, batch, id, umem, owners);
        }
        if std::mem::take(&mut port.stream_waits) && port.behind.is_empty() {
            frames += receive_streams(port, batch, (umem, owners), pool, spares);
        }
        if frames == 0 {
            return None;
        }
        port.active = true;
        port.counters.rx_packets.add(batch.len() as u64);
        port.counters
            .rx_bytes
            .add(batch.packets().iter().map(|p| u64::from(p.len)).sum());
        (!batch.is_empty()).then_some(id)
    }

    /// Takes copies of group frames from a bridged uplink, now and then;
    /// `None` when there are none.
    pub(super) fn receive_groups(
        &mut self,
        batch: &mut Batch,
        umem: &Umem,
        pool: &mut FramePool,
        now: Nanos,
    ) -> Option<PortId> {
        let id = self.bridged?;
        if now < self.groups_due {
            return None;
        }
        self.groups_due = Nanos(now.0 + GROUPS_NANOS);
        let port = self.by_id[id.index()].as_deref_mut()?;
        let groups = port.groups.as_ref()?;
        for _ in batch.len()..GROUPS_BURST {
            let Some(mut frame) = pool.alloc() else { break };
            let room = frame.resize(FRAME_SIZE - frame.headroom());
            let came = groups.receive(umem, &mut frame).filter(|_| room);
            match came {
                Some(len) if len <= frame.len() && frame.resize(len) => {
                    batch.push(id, [frame]);
                    port.counters.rx_packets.add(1);
                    port.counters.rx_bytes.add(len as u64);
                }
                // Longer than a chunk: no group of this network sends that.
                Some(_) => {
                    pool.free(frame);
                    port.counters.drops.add(1);
                }
                None => {
                    pool.free(frame);
                    break;
                }
            }
        }
        (!batch.is_empty()).then_some(id)
    }

    pub(super) fn refill(
        &mut self,
        id: PortId,
        pool: &mut FramePool,
        owners: &OwnerTable,
        short: bool,
    ) {
        if let Some(port) = self.get(id) {
            port.queue.refill(pool, owners, short);
            for queue in &mut port.more {
                queue.refill(pool, owners, short);
            }
        }
    }

    /// Notes that a port has descriptors to flush.
    pub(crate) fn mark_dirty(&mut self, id: PortId) {
        if let Some(port) = self.by_id[id.index()].as_deref_mut()
            && !std::mem::replace(&mut port.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Flushes every port written to, and takes completed frames back from
    /// all that have frames out. Ports that could not send all stay dirty.
    pub(super) fn flush(&mut self, pool: &mut FramePool, owners: &OwnerTable) {
        let LanePorts {
            by_id,
            polled,
            dirty,
            ..
        } = self;
        dirty.retain(|id| {
            let Some(port) = by_id[id.index()].as_deref_mut() else {
                return false;
            };
            let flushed = port.queue.flush();
            port.gone = flushed == Flush::Gone;
            port.wedged |= flushed == Flush::Wedged;
            port.dirty = flushed == Flush::Stalled;
            port.dirty
        });
        for id in polled {
            if let Some(port) = by_id[id.index()].as_deref_mut()
                && port.queue.outstanding() > 0
            {
                port.queue.complete(pool, owners);
            }
        }
    }

    /// Sockets that have to be rebuilt; each is named once.
    pub(super) fn take_wedged(&mut self) -> impl Iterator<Item = Wedged> + '_ {
        let ports = self.by_id.iter_mut().flatten();
        ports.filter_map(|port| {
            std::mem::take(&mut port.wedged).then(|| Wedged {
                port: port.id,
                tag: port.queue.tag(),
            })
        })
    }

    /// Tops every port up: one that found no chunk to post receives nothing
    /// that would make it try again.
    pub(super) fn refill_all(&mut self, pool: &mut FramePool, owners: &OwnerTable) {
        for port in self.by_id.iter_mut().flatten() {
            for queue in port.queues_mut() {
                queue.refill(pool, owners, true);
                // It may have run out just after the last look.
                queue.wake_receiver();
            }
        }
    }

    /// Lets the fill levels of ports without traffic sink.
    pub(super) fn relax_idle(&mut self) {
        for port in self.by_id.iter_mut().flatten() {
            if !std::mem::take(&mut port.active) {
                port.queues_mut().for_each(Queue::relax);
            }
        }
    }

    /// Counts the chains that could not be used at their ports, and says how
    /// many there were since the last time.
    pub(super) fn count_broken(&mut self) -> u64 {
        let ports = self.by_id.iter_mut().flatten();
        ports
            .map(|port| {
                let broken = port.queues_mut().map(|q| u64::from(q.take_broken())).sum();
                port.counters.drops.add(broken);
                broken
            })
            .sum()
    }

    /// Counts what found a stream socket's buffer full at its port, and says
    /// how much there was since the last time.
    pub(super) fn count_lost(&mut self) -> u64 {
        let ports = self.by_id.iter_mut().flatten();
        ports
            .map(|port| {
                let lost = port.stream.as_ref().map_or(0, StreamSocket::take_lost);
                port.counters.drops.add(u64::from(lost));
                u64::from(lost)
            })
            .sum()
    }

    /// Chunks posted for filling on all ports.
    pub(super) fn filling(&self) -> u64 {
        self.by_id
            .iter()
            .flatten()
            .flat_map(|port| port.queues())
            .map(|queue| u64::from(queue.posted()))
            .sum()
    }

    /// Whether a port did not take all descriptors.
    pub(super) fn stall(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn waits(&self) -> Waits {
        if self.stall() {
            return Waits::Transmit;
        }
        let out = self
            .by_id
            .iter()
            .flatten()
            .any(|port| port.queue.outstanding() > 0 && !port.gone);
        if out {
            Waits::Completions
        } else {
            Waits::Nothing
        }
    }
}

/// Fills a batch from a port's stream socket. What comes in is still in this
/// CPU's cache when it goes out. It asks for as many packets as there were the
/// last time, and for more when they are there: asking in vain costs a
/// conversation of single packets half a microsecond.
pub(super) fn receive_streams(
    port: &mut LanePort,
    batch: &mut Batch,
    (umem, owners): (&Umem, &OwnerTable),
    pool: &mut FramePool,
    spares: &mut Spares,
) -> u32 {
    let LanePort {
        stream,
        queue,
        behind,
        ..
    } = port;
    let Some(stream) = stream else { return 0 };
    let (id, mut frames, mut packets) = (port.id, 0, 0);
    while packets < port.stream_burst
        && batch.len() < Batch::MAX_PACKETS
        && behind.is_empty()
        && frames < STREAM_BURST_FRAMES
    {
        let came = spares.receive(stream, umem, pool, |chain| {
            frames += chain.len() as u32;
            packets += 1;
            // What a connection sent by the ring before it began to come this
            // way may have come since the ring was read.
            queue.receive(batch, id, umem, owners, Batch::MAX_PACKETS - 1);
            match queue.waiting() {
                0 => batch.push(id, chain),
                ahead => behind.keep(ahead, chain),
            }
        });
        match came {
            Came::Packet => {}
            // A look, too: nobody can keep the lane here by what it has no
            // frames for.
            Came::Lost => {
                port.counters.drops.add(1);
                packets += 1;
            }
            Came::Nothing => break,
        }
    }
    port.stream_burst = match packets == port.stream_burst || batch.len() == Batch::MAX_PACKETS {
        true => (port.stream_burst * 2).min(Batch::MAX_PACKETS),
        false => packets.max(1),
    };
    frames
}

/// Fills a batch from further queues. The first one leads by turns, so that a
/// busy one cannot starve the others.
pub(super) fn receive_more(
    queues: &mut [Queue],
    batch: &mut Batch,
    id: PortId,
    umem: &Umem,
    owners: &OwnerTable,
) -> u32 {
    queues.rotate_left(1);
    let mut frames = 0;
    for queue in queues {
        // Also once the batch is full: a look notes how many wait.
        frames += queue.receive(batch, id, umem, owners, Batch::MAX_PACKETS);
    }
    frames
}
