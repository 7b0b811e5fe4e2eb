//! The packet logic of a lane: a pure function of the batch, the snapshot,
//! the lane's state and the time.
//!
//! [`process`] is the walk of a packet, stage by stage:
//!
//! 1. **parse** every packet of the batch into offsets and a key;
//! 2. **look up**: hash every key, ask for the flow table's lines, so that
//!    the cache misses of a batch overlap;
//! 3. for each packet in order: a **hit** whose generation holds gives the
//!    actions at once; a **miss** is **classified** over the snapshot and
//!    installed;
//! 4. **apply** the actions to the head frame, and give the verdict.
//!
//! It does no I/O and reads no clock. It neither transmits nor frees frames,
//! and it counts no drops: both are the lane's, when it carries the verdict
//! out. Per packet of a known flow nothing is allocated.

mod bridge;
mod chain;
mod classify;
pub(crate) mod coalesce;
mod fragment;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod limit;
mod neighbor;
mod overlay;
mod parse;
mod record;
mod refuse;
mod reply;
mod route;
pub mod segment;
#[cfg(test)]
mod tests;
mod uplink;
#[cfg(any(test, fuzzing))]
mod world;

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::counters::LaneCounters;
use crate::event::Event;
use crate::frame::{Batch, Packet, Verdict};
use crate::snapshot::Snapshot;
use crate::tables::flow::{Actions, FlowTable, Hint, Inserted, KeyL2, KeyV4, KeyV6};
use crate::types::{LaneId, MacAddr, Nanos};
use crate::umem::Umem;

use classify::{Decision, RoutedKey};
use limit::ErrorLimit;
use parse::{Kind, Parsed};

pub(crate) use chain::complete;
pub(crate) use overlay::{source_port_of, wrap};
pub use record::FlowRecord;

/// Flows that each table of a lane holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowCapacity {
    /// Routed IPv4 flows.
    pub v4: usize,
    /// Routed IPv6 flows.
    pub v6: usize,
    /// Pairs of stations in layer-2 segments.
    pub l2: usize,
}

impl FlowCapacity {
    /// Most flows that a table can be given.
    pub const LIMIT: usize = 1 << 21;
}

impl Default for FlowCapacity {
    fn default() -> Self {
        FlowCapacity {
            v4: 1 << 17,
            v6: 1 << 16,
            l2: 1 << 15,
        }
    }
}

/// What the packet logic keeps between batches; private to one lane.
#[derive(Debug)]
pub struct LaneState {
    looked_up: Box<[LookedUp; Batch::MAX_PACKETS]>,
    lane: Lane,
}

/// A packet on its way through the stages.
#[derive(Debug, Clone, Copy)]
struct LookedUp {
    parsed: Parsed,
    hash: u64,
    hint: Hint,
}

/// The parts of the state that stages change.
#[derive(Debug)]
struct Lane {
    id: LaneId,
    counters: Arc<CachePadded<LaneCounters>>,
    events: rtrb::Producer<Event>,
    flows_v4: FlowTable<KeyV4>,
    flows_v6: FlowTable<KeyV6>,
    flows_l2: FlowTable<KeyL2>,
    errors: ErrorLimit,
    tally: Tally,
    /// When control was last told of a missing neighbour, by its number.
    told_missing_ms: [u32; uplink::TOLD],
    /// Events were queued since [`LaneState::take_events_pending`].
    events_pending: bool,
}

/// What one batch adds to the counters.
#[derive(Debug, Default)]
struct Tally {
    hits: u64,
    misses: u64,
    evictions: u64,
    events_lost: u64,
}

/// What every stage reads.
#[derive(Clone, Copy)]
struct Round<'a> {
    umem: &'a Umem,
    snapshot: &'a Snapshot,
    now: Nanos,
    now_ms: u32,
}

impl LaneState {
    /// The state of a lane that has seen nothing. Capacities beyond
    /// [`FlowCapacity::LIMIT`] are cut to it.
    pub fn new(
        lane: LaneId,
        counters: Arc<CachePadded<LaneCounters>>,
        events: rtrb::Producer<Event>,
        flows: FlowCapacity,
    ) -> LaneState {
        let none = LookedUp {
            parsed: Parsed::NONE,
            hash: 0,
            hint: Hint::NONE,
        };
        LaneState {
            looked_up: Box::new([none; Batch::MAX_PACKETS]),
            lane: Lane {
                id: lane,
                counters,
                events,
                flows_v4: FlowTable::new(flows.v4.min(FlowCapacity::LIMIT)),
                flows_v6: FlowTable::new(flows.v6.min(FlowCapacity::LIMIT)),
                flows_l2: FlowTable::new(flows.l2.min(FlowCapacity::LIMIT)),
                errors: ErrorLimit::new(),
                tally: Tally::default(),
                told_missing_ms: [0; uplink::TOLD],
                events_pending: false,
            },
        }
    }

    /// The flows that the lane knows, for `spinlane flows`. Takes time by the
    /// number of flows; call it between rounds, on request.
    pub fn flows(&self, snapshot: &Snapshot, now: Nanos) -> Vec<FlowRecord> {
        record::records(&self.lane, snapshot, now)
    }

    /// Whether control has events to fetch since the last time of asking.
    pub fn take_events_pending(&mut self) -> bool {
        std::mem::take(&mut self.lane.events_pending)
    }
}

/// Decides every packet of the batch: sets its verdict, and rewrites its head
/// frame in place. Answers of the switch itself are written over the request.
pub fn process(
    umem: &Umem,
    batch: &mut Batch,
    snapshot: &Snapshot,
    state: &mut LaneState,
    now: Nanos,
) {
    let round = Round {
        umem,
        snapshot,
        now,
        now_ms: (now.0 / 1_000_000) as u32,
    };
    let LaneState { looked_up, lane } = state;
    let mut first = 0;
    while first < batch.len() {
        let count = (batch.len() - first).min(looked_up.len());
        let packets = &mut looked_up[..count];
        parse_all(&round, batch, first, packets);
        lane.look_up_all(packets);
        for (offset, packet) in packets.iter().enumerate() {
            let mut verdict = decide(&round, batch, first + offset, packet, lane);
            if let Verdict::Reply { dropped } = verdict {
                verdict = uplink::answer(&round, batch, first + offset, dropped);
            }
            batch.decide(first + offset, verdict);
        }
        first += count;
    }
    lane.finish(round.now_ms);
}

fn parse_all(round: &Round<'_>, batch: &mut Batch, first: usize, packets: &mut [LookedUp]) {
    for (offset, packet) in packets.iter_mut().enumerate() {
        parse::parse(
            round.umem,
            batch,
            first + offset,
            round.snapshot,
            &mut packet.parsed,
        );
    }
}

/// Hit or miss, then apply.
#[inline]
fn decide(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    lane: &mut Lane,
) -> Verdict {
    match &packet.parsed.kind {
        Kind::Bad(reason) => Verdict::Drop(*reason),
        Kind::V4(key) => routed(round, batch, index, packet, key, lane),
        Kind::V6(key) => routed(round, batch, index, packet, key, lane),
        Kind::Arp => neighbor::arp(round, batch, index, packet.parsed.headers.to_group),
        Kind::Segment(segment, key) => bridge::switch(
            round,
            batch,
            index,
            bridge::Frame {
                segment: *segment,
                key,
                hash: packet.hash,
                hint: packet.hint,
                is_partial_port: packet.parsed.headers.may_be_partial,
            },
            lane,
        ),
    }
}

#[inline]
fn routed<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    key: &K,
    lane: &mut Lane,
) -> Verdict {
    let headers = &packet.parsed.headers;
    let bytes = u64::from(batch.packets()[index].len);
    let known = match packet.parsed.is_cacheable {
        true => lane.hit(packet, key, bytes, round),
        false => None,
    };
    let actions = match known {
        Some(actions) => actions,
        None => {
            lane.tally.misses += 1;
            match classify::classify(round.snapshot, key, headers) {
                Decision::Forward(actions) => {
                    if packet.parsed.is_cacheable {
                        lane.install(packet.hash, key, actions, bytes, round);
                    } else if let Some(reason) =
                        route::notice_forwarder(round, batch, index, headers, key, lane)
                    {
                        return Verdict::Drop(reason);
                    }
                    actions
                }
                Decision::Drop(reason) => return Verdict::Drop(reason),
                Decision::News => return uplink::news(round, batch, index, headers, lane),
                Decision::Wait(next_hop) => {
                    lane.tell_missing(next_hop, round.now_ms);
                    return Verdict::Wait { next_hop };
                }
                Decision::Neighbor => return neighbor::discovery(round, batch, index, headers),
                Decision::Echo => return reply::echo(round, batch, index, headers, K::IS_V6),
                Decision::Refuse(refusal, reason) => {
                    return refuse::refuse::<K>(
                        round, batch, index, headers, refusal, reason, lane,
                    );
                }
            }
        }
    };
    let verdict = route::forward::<K>(round, batch, index, headers, &actions, lane);
    match actions.leaves_node() {
        true => uplink::leave(round, batch, index, (verdict, &actions, packet.hash)),
        false => verdict,
    }
}

impl Round<'_> {
    /// The MAC address that the switch has where a packet came from.
    fn own_mac(&self, packet: &Packet) -> MacAddr {
        let underlay = &self.snapshot.underlay;
        match packet.vtep {
            Some(_) => underlay.vtep_mac,
            None if underlay.uplink == Some(packet.in_port) => underlay.mac,
            None => self.snapshot.gateway.mac,
        }
    }
}

impl Lane {
    /// Hashes every key once and asks for what the lookups will read.
    #[inline]
    fn look_up_all(&self, packets: &mut [LookedUp]) {
        for packet in packets.iter_mut() {
            packet.hash = match &packet.parsed.kind {
                Kind::V4(key) => self.flows_v4.ask_tags(key),
                Kind::V6(key) => self.flows_v6.ask_tags(key),
                Kind::Segment(_, key) => self.flows_l2.ask_tags(key),
                Kind::Arp | Kind::Bad(_) => 0,
            };
        }
        for packet in packets.iter_mut() {
            packet.hint = match &packet.parsed.kind {
                Kind::V4(_) => self.flows_v4.ask_slot(packet.hash),
                Kind::V6(_) => self.flows_v6.ask_slot(packet.hash),
                Kind::Segment(..) => self.flows_l2.ask_slot(packet.hash),
                Kind::Arp | Kind::Bad(_) => Hint::NONE,
            };
        }
    }

    /// The actions of a known flow, which counts the packet. None when the
    /// flow is unknown or was decided by another snapshot.
    #[inline]
    fn hit<K: RoutedKey>(
        &mut self,
        packet: &LookedUp,
        key: &K,
        bytes: u64,
        round: &Round<'_>,
    ) -> Option<Actions> {
        let table = K::table(self);
        let slot = table.find_hinted(packet.hint, packet.hash, key)?;
        let flow = table.flow(slot);
        if !flow.is_current(round.snapshot.generation) {
            return None;
        }
        flow.count(bytes, round.now_ms);
        let actions = flow.actions;
        self.tally.hits += 1;
        Some(actions)
    }

    /// Remembers what classify decided, over the stale flow when there is one.
    fn install<K: RoutedKey>(
        &mut self,
        hash: u64,
        key: &K,
        actions: Actions,
        bytes: u64,
        round: &Round<'_>,
    ) {
        let generation = round.snapshot.generation;
        let table = K::table(self);
        let slot = match table.find(hash, key) {
            Some(slot) => {
                table.redecide(slot, actions, generation);
                slot
            }
            None => match table.insert(hash, key, actions, generation, round.now_ms) {
                Inserted::Free(slot) => slot,
                Inserted::Evicted(slot) => {
                    table.flow(slot).count(bytes, round.now_ms);
                    self.tally.evictions += 1;
                    return;
                }
                Inserted::Refused => return,
            },
        };
        table.flow(slot).count(bytes, round.now_ms);
    }

    /// Tells control; when its queue is full the next packet says it again.
    fn tell(&mut self, event: Event) {
        if self.events.push(event).is_err() {
            self.tally.events_lost += 1;
        }
        self.events_pending = true;
    }

    /// Ends a batch: ages a little, and adds to the counters.
    fn finish(&mut self, now_ms: u32) {
        self.flows_v4.sweep(now_ms);
        self.flows_v6.sweep(now_ms);
        self.flows_l2.sweep(now_ms);
        let tally = std::mem::take(&mut self.tally);
        self.counters.flow_hits.add(tally.hits);
        self.counters.flow_misses.add(tally.misses);
        self.counters.flow_evictions.add(tally.evictions);
        self.counters.events_lost.add(tally.events_lost);
        let entries = self.flows_v4.len() + self.flows_v6.len() + self.flows_l2.len();
        self.counters.flow_entries.set(entries as u64);
    }
}
