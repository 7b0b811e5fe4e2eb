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

pub(crate) mod apart;
mod bridge;
mod chain;
mod classify;
pub(crate) mod coalesce;
pub(crate) mod datagrams;
mod fragment;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub(crate) mod gather;
mod limit;
mod masquerade;
mod narrow;
mod neighbor;
mod overlay;
mod parse;
mod pieces;
mod plain;
pub(crate) mod portions;
mod record;
mod refuse;
mod reply;
mod route;
pub mod segment;
#[cfg(test)]
mod tests;
mod translate;
mod uplink;
#[cfg(any(test, fuzzing))]
mod world;

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::counters::LaneCounters;
use crate::event::Event;
use crate::frame::{Awaited, Batch, Packet, Verdict};
use crate::snapshot::Snapshot;
use crate::tables::connection::{self, Connections, Side};
use crate::tables::flow::{
    Actions, FlowTable, Hint, Inserted, KeyL2, KeyV4, KeyV6, SlotIndex, Translation,
};
use crate::types::{Generation, LaneId, MacAddr, Nanos, PortId};
use crate::umem::Umem;

use classify::{Decision, RoutedKey};
use limit::ErrorLimit;
use masquerade::{Decided, Exhausted, Subject};
use parse::{Kind, Parsed};
use pieces::Pieces;
use plain::Ingress;
use route::Hop;

pub(crate) use chain::complete;
pub(crate) use overlay::{source_port_of, wrap};
pub use record::{FlowRecord, protocol_name};

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
    connections: Arc<Connections>,
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
    pieces_v4: Pieces<KeyV4>,
    pieces_v6: Pieces<KeyV6>,
    exhausted: Exhausted,
    /// When a connection's packets last had to become shorter; flows that
    /// asked before ask again.
    shortened_ms: u32,
    /// Where the connections' timers go on.
    turn: usize,
    errors: ErrorLimit,
    news: narrow::News,
    tally: Tally,
    /// Missing neighbours that control was told of.
    told_missing: uplink::Told,
    /// Stations that it is to find.
    told_wanted: uplink::Told,
    /// The same for stations that should be elsewhere, by their MAC address.
    told_misplaced_ms: [u32; uplink::Told::PLACES],
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

/// What is done with a packet: its flow's actions, and what it is translated
/// to when they say so.
#[derive(Debug, Clone, Copy)]
struct Answer {
    actions: Actions,
    translation: Option<Translation>,
}

/// What every stage reads.
#[derive(Clone, Copy)]
struct Round<'a> {
    umem: &'a Umem,
    snapshot: &'a Snapshot,
    connections: &'a Connections,
    /// What flows have to have been decided by.
    generation: Generation,
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
        connections: Arc<Connections>,
    ) -> LaneState {
        let none = LookedUp {
            parsed: Parsed::NONE,
            hash: 0,
            hint: Hint::NONE,
        };
        LaneState {
            looked_up: Box::new([none; Batch::MAX_PACKETS]),
            connections,
            lane: Lane {
                id: lane,
                counters,
                events,
                flows_v4: FlowTable::new(flows.v4.min(FlowCapacity::LIMIT)),
                flows_v6: FlowTable::new(flows.v6.min(FlowCapacity::LIMIT)),
                flows_l2: FlowTable::new(flows.l2.min(FlowCapacity::LIMIT)),
                pieces_v4: Pieces::new(),
                pieces_v6: Pieces::new(),
                exhausted: Exhausted::default(),
                shortened_ms: 0,
                turn: usize::from(lane.0),
                errors: ErrorLimit::new(),
                news: narrow::News::default(),
                tally: Tally::default(),
                told_missing: uplink::Told::nothing(),
                told_wanted: uplink::Told::nothing(),
                told_misplaced_ms: [bridge::NEVER_MS; uplink::Told::PLACES],
                events_pending: false,
            },
        }
    }

    /// The flows that the lane knows, for `spinlane flows`. Takes time by the
    /// number of flows; call it between rounds, on request.
    pub fn flows(&self, snapshot: &Snapshot, now: Nanos) -> Vec<FlowRecord> {
        record::records(&self.lane, snapshot, now)
    }

    /// The node's connections.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
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
    let LaneState {
        looked_up,
        connections,
        lane,
    } = state;
    let round = Round {
        umem,
        snapshot,
        connections,
        generation: snapshot.generation.with_epoch(connections.paths().epoch()),
        now,
        now_ms: (now.0 / 1_000_000) as u32,
    };
    let mut first = 0;
    while first < batch.len() {
        let count = (batch.len() - first).min(looked_up.len());
        let packets = &mut looked_up[..count];
        parse_all(&round, batch, first, packets);
        lane.look_up_all(packets);
        masquerade::ask_all(&round, packets);
        for (offset, packet) in packets.iter().enumerate() {
            decide(&round, batch, first + offset, packet, lane);
        }
        first += count;
    }
    connections.advance(&mut lane.turn, round.millis());
    lane.tell_narrowed(&round);
    lane.finish(round.now_ms);
}

fn parse_all(round: &Round<'_>, batch: &mut Batch, first: usize, packets: &mut [LookedUp]) {
    let mut ingress = Ingress::of(batch.packets()[first].in_port, round.snapshot);
    for (offset, packet) in packets.iter_mut().enumerate() {
        let parsed = &mut packet.parsed;
        parse::parse(round, batch, first + offset, &mut ingress, parsed);
    }
}

/// Hit or miss, then apply. What becomes of a packet of a routed flow is written
/// where it belongs at once: read back from where it was put together, it would
/// wait until the stores before it are done, and those go to headers that
/// another CPU wrote.
#[inline(always)]
fn decide(round: &Round<'_>, batch: &mut Batch, index: usize, packet: &LookedUp, lane: &mut Lane) {
    let verdict = match &packet.parsed.kind {
        Kind::V4(key) => return routed(round, batch, index, packet, key, lane),
        Kind::V6(key) => return routed(round, batch, index, packet, key, lane),
        Kind::Bad(reason) => Verdict::Drop(*reason),
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
    };
    conclude(round, batch, index, verdict);
}

/// Sets a verdict that may be an answer of the switch itself.
fn conclude(round: &Round<'_>, batch: &mut Batch, index: usize, verdict: Verdict) {
    let verdict = match verdict {
        Verdict::Reply { dropped } => uplink::answer(round, batch, index, dropped),
        other => other,
    };
    batch.decide(index, verdict);
}

#[inline(always)]
fn routed<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    key: &K,
    lane: &mut Lane,
) {
    let known = match packet.parsed.is_cacheable {
        true => lane.hit(packet, key, round),
        false => None,
    };
    if let Some(slot) = known {
        let flow = K::table(lane).flow(slot);
        if !flow.actions.has(Actions::TRANSLATE) {
            flow.count(u64::from(batch.packets()[index].len), round.now_ms);
            let actions = flow.actions;
            lane.tally.hits += 1;
            let answer = Answer {
                actions,
                translation: None,
            };
            return send::<K>(round, batch, index, packet, &answer, lane);
        }
    }
    routed_otherwise(round, batch, index, packet, (key, known), lane);
}

/// As [`routed`], for a packet that is translated or that no flow answers for.
#[inline(never)]
fn routed_otherwise<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    (key, known): (&K, Option<SlotIndex>),
    lane: &mut Lane,
) {
    let headers = &packet.parsed.headers;
    let bytes = u64::from(batch.packets()[index].len);
    let answer = known.and_then(|slot| lane.translated::<K>(slot, bytes, round));
    let is_edge =
        answer.is_some() && masquerade::is_edge(round.umem.bytes(batch.head(index)), headers);
    let answer = match answer.filter(|_| !is_edge) {
        Some(answer) => answer,
        None => {
            // Its connection may be gone, and its ports another's by now.
            if let Some(slot) = known {
                K::table(lane).void(slot);
            }
            match ask(round, batch, index, packet, key, lane) {
                Ok(answer) => answer,
                Err(verdict) => return conclude(round, batch, index, verdict),
            }
        }
    };
    send::<K>(round, batch, index, packet, &answer, lane);
}

/// Carries out what was decided.
#[inline(always)]
fn send<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    answer: &Answer,
    lane: &mut Lane,
) {
    let (headers, actions) = (&packet.parsed.headers, &answer.actions);
    match route::take_hop::<K>(round, batch, index, headers, answer) {
        Hop::Whole(checksum) if !actions.leaves_node() => {
            let out = PortId(actions.out);
            batch.decide(index, Verdict::Forward { out, checksum });
        }
        Hop::Whole(checksum) => {
            match uplink::leave(round, batch, index, (checksum, actions, packet.hash)) {
                Ok(out) => {
                    let checksum = None;
                    batch.decide(index, Verdict::Forward { out, checksum });
                }
                Err(reason) => batch.decide(index, Verdict::Drop(reason)),
            }
        }
        Hop::Pieces(mtu) => {
            batch.decide(index, uplink::in_pieces(mtu, actions, packet.hash));
        }
        Hop::Refused(refusal, reason) => {
            let refused = refuse::refuse::<K>(round, batch, index, headers, refusal, reason, lane);
            conclude(round, batch, index, refused);
        }
    }
}

/// Classifies a packet that no flow answers for, and installs the answer;
/// `Err` for what is not forwarded.
fn ask<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    packet: &LookedUp,
    key: &K,
    lane: &mut Lane,
) -> Result<Answer, Verdict> {
    let headers = &packet.parsed.headers;
    let bytes = u64::from(batch.packets()[index].len);
    lane.tally.misses += 1;
    let subject = Subject {
        index,
        headers,
        key,
        hash: packet.hash,
    };
    let Decided {
        decision,
        translation,
        is_settled,
    } = masquerade::classify(round, batch, subject, lane);
    match decision {
        Decision::Forward(mut actions) => {
            let may_stay = match translation {
                Some(Translation {
                    is_none: 0, mtu, ..
                }) => {
                    if mtu > 0 {
                        actions.limit(mtu);
                    }
                    true
                }
                Some(_) | None => lane.narrowed(round, batch, (index, headers, key), &mut actions),
            };
            let answer = Answer {
                actions,
                translation,
            };
            if !packet.parsed.is_cacheable {
                let reason = route::notice_forwarder(round, batch, index, headers, key, lane);
                return reason.map_or(Ok(answer), |reason| Err(Verdict::Drop(reason)));
            }
            if is_settled && may_stay {
                lane.install(packet.hash, key, &answer, bytes, round);
            }
            Ok(answer)
        }
        Decision::Drop(reason) => Err(Verdict::Drop(reason)),
        Decision::News => Err(uplink::news(round, batch, index, headers, lane)),
        Decision::Wait(next_hop) => {
            lane.tell_missing(next_hop, round.now_ms);
            Err(Verdict::Wait(Awaited::NextHop(next_hop)))
        }
        Decision::Find(address) => {
            let awaited = lane.tell_wanted(address, round.now_ms);
            Err(Verdict::Wait(awaited))
        }
        Decision::Neighbor => Err(neighbor::discovery(round, batch, index, headers)),
        Decision::Echo => Err(reply::echo(round, batch, subject, lane)),
        Decision::Refuse(refusal, reason) => Err(refuse::refuse::<K>(
            round, batch, index, headers, refusal, reason, lane,
        )),
    }
}

/// The translation of a flow whose connection still lives. Now and then the
/// connection is told that it is used.
fn translation<K: RoutedKey>(
    table: &mut FlowTable<K>,
    slot: SlotIndex,
    round: &Round<'_>,
    shortened_ms: u32,
) -> Option<Translation> {
    let translation = *table.translation(slot);
    let flow = table.flow(slot);
    let told_ago_ms = round.now_ms.wrapping_sub(flow.told_ms);
    let is_news = told_ago_ms >= round.now_ms.wrapping_sub(shortened_ms);
    if told_ago_ms < connection::REFRESH_MS && !is_news {
        return Some(translation);
    }
    flow.told_ms = round.now_ms;
    let packets = flow.packets as u32;
    table.translation(slot).reported = packets;
    let side = match translation.is_reply {
        0 => Side::Original,
        _ => Side::Reply,
    };
    let state = round.connections.follow(
        translation.connection_id(),
        side,
        0,
        u64::from(packets.wrapping_sub(translation.reported)),
        round.millis(),
    )?;
    let is_same = side == Side::Reply
        || round.connections.mtu(translation.connection_id()) == translation.mtu;
    (state.is_settled(side) && is_same).then_some(translation)
}

impl Round<'_> {
    /// The time in milliseconds.
    fn millis(&self) -> u64 {
        self.now.0 / 1_000_000
    }

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

    /// A known flow. None when the flow is unknown or was decided by another
    /// snapshot.
    #[inline(always)]
    fn hit<K: RoutedKey>(
        &mut self,
        packet: &LookedUp,
        key: &K,
        round: &Round<'_>,
    ) -> Option<SlotIndex> {
        let table = K::table(self);
        let slot = table.find_hinted(packet.hint, packet.hash, key)?;
        let flow = table.flow(slot);
        flow.is_current(round.generation).then_some(slot)
    }

    /// What a known flow that is translated answers, which counts the packet.
    fn translated<K: RoutedKey>(
        &mut self,
        slot: SlotIndex,
        bytes: u64,
        round: &Round<'_>,
    ) -> Option<Answer> {
        let shortened_ms = self.shortened_ms;
        let table = K::table(self);
        let translation = Some(translation(table, slot, round, shortened_ms)?);
        let flow = table.flow(slot);
        flow.count(bytes, round.now_ms);
        let actions = flow.actions;
        self.tally.hits += 1;
        Some(Answer {
            actions,
            translation,
        })
    }

    /// Remembers what classify decided, over the stale flow when there is one.
    fn install<K: RoutedKey>(
        &mut self,
        hash: u64,
        key: &K,
        answer: &Answer,
        bytes: u64,
        round: &Round<'_>,
    ) {
        let generation = round.generation;
        let mut actions = answer.actions;
        if answer.translation.is_some() {
            actions.flags |= Actions::TRANSLATE;
        }
        let table = K::table(self);
        let (slot, is_eviction) = match table.find(hash, key) {
            Some(slot) => {
                table.redecide(slot, actions, generation);
                (slot, false)
            }
            None => match table.insert(hash, key, actions, generation, round.now_ms) {
                Inserted::Free(slot) => (slot, false),
                Inserted::Evicted(slot) => (slot, true),
                Inserted::Refused => return,
            },
        };
        let flow = table.flow(slot);
        flow.count(bytes, round.now_ms);
        if let Some(translation) = answer.translation {
            // The connection knows of this packet already.
            flow.told_ms = round.now_ms;
            let reported = flow.packets as u32;
            *table.translation(slot) = Translation {
                reported,
                ..translation
            };
        }
        self.tally.evictions += u64::from(is_eviction);
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
