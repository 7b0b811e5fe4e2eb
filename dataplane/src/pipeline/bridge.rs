//! Layer-2 segments: a learning switch for each.
//!
//! Frames pass unchanged. A station's place is learned by control from
//! [`Event::Station`]; the forwarding database is part of the snapshot, so a
//! station that moves makes every flow decide anew. Ports of one segment reach
//! each other and nobody else: the key holds the port a frame came by, and
//! ways out are taken from that port's segment only.

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::classify::Ingress;
use super::parse::L3;
use super::{Lane, Round, apart, narrow, uplink};
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Awaited, Batch, Verdict};
use crate::snapshot::{Location, PortEntry, Role, Segment};
use crate::tables::flow::{Actions, Hint, Inserted, KeyL2};
use crate::types::{MacAddr, NextHopId, PortId, SegmentId, VtepId};
use crate::wire::arp::ArpPacket;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::icmpv6::{self, NeighborMessage};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::{protocol, tunnel};

/// How often control hears of a station that it knows, so that a live flow
/// keeps the station's entry, and of one that it does not know yet.
const REFRESH_MS: u32 = 10_000;
const RETELL_MS: u32 = 1_000;

/// A telling so long ago that the lane's first moment may tell again.
pub(super) const NEVER_MS: u32 = 0u32.wrapping_sub(RETELL_MS);

/// A frame of a segment.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) segment: SegmentId,
    pub(super) key: &'a KeyL2,
    pub(super) hash: u64,
    pub(super) hint: Hint,
    pub(super) is_partial_port: bool,
}

impl Frame<'_> {
    fn from(&self) -> Location {
        Location::from_key(self.key.in_port)
    }

    fn destination(&self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = self.key.addresses;
        MacAddr([a, b, c, d, e, f])
    }

    fn source(&self) -> MacAddr {
        let [.., a, b, c, d, e, f] = self.key.addresses;
        MacAddr([a, b, c, d, e, f])
    }
}

/// Switches one frame.
pub(super) fn switch(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    frame: Frame<'_>,
    lane: &mut Lane,
) -> Verdict {
    let Some(segment) = round.snapshot.segment(frame.segment) else {
        return Verdict::Drop(DropReason::NoSegment);
    };
    let Some(from) = Ingress::of(round.snapshot, frame.key.in_port) else {
        return Verdict::Drop(DropReason::PortRemoved);
    };
    if segment.guard
        && let Ingress::Port(port) = from
        && matches!(port.role, Role::SegmentPod(_))
    {
        let bytes = round.umem.bytes(batch.head(index));
        if let Err(reason) = guard(port, frame.source(), bytes) {
            return Verdict::Drop(reason);
        }
        if !trim(batch, index, apart::frame_len(bytes)) {
            return Verdict::Drop(DropReason::BadLength);
        }
    }
    let bytes = u64::from(batch.packets()[index].len);
    let actions = match lane.hit_l2(&frame, bytes, round) {
        Some(actions) => actions,
        None => {
            lane.tally.misses += 1;
            match classify(round, segment, from, &frame) {
                Ok(Decision::Wait(next_hop)) => {
                    lane.tell_missing(next_hop, round.now_ms);
                    return Verdict::Wait(Awaited::NextHop(next_hop));
                }
                Ok(Decision::Go(actions)) => {
                    if actions.has(Actions::FLOOD) {
                        ask_for_neighbors(round, segment, lane);
                    }
                    lane.install_l2(&frame, actions, bytes, round);
                    actions
                }
                Err(reason) => {
                    if reason == DropReason::BadSourceMac && frame.source().is_unicast() {
                        lane.tell_misplaced(&frame, round.now_ms);
                    }
                    return Verdict::Drop(reason);
                }
            }
        }
    };
    if !actions.leaves_node() {
        narrow::overhear(round, batch, index, (from, actions.mtu));
    }
    send(round, batch, index, &frame, &actions)
}

/// Takes off what is behind the packet that the guard looked at: where
/// datagrams of the overlay arrive together it could pass for a frame of its
/// own. Packets longer than their header can tell have nothing behind them.
fn trim(batch: &mut Batch, index: usize, end: Option<usize>) -> bool {
    let len = batch.packets()[index].len as usize;
    match end {
        Some(end) if end < len && len <= L3 + usize::from(u16::MAX) => batch.trim(index, end),
        _ => true,
    }
}

/// Has the neighbours resolved that a flooded frame could not be sent to.
fn ask_for_neighbors(round: &Round<'_>, segment: &Segment, lane: &mut Lane) {
    for &id in segment.vteps.iter() {
        let vtep = round.snapshot.vtep(id);
        if let Some(Err(Some(next_hop))) = vtep.map(|vtep| uplink::resolved(round.snapshot, vtep)) {
            lane.tell_missing(next_hop, round.now_ms);
        }
    }
}

/// What classify decides.
enum Decision {
    Go(Actions),
    /// Waits for a neighbour on the underlay.
    Wait(NextHopId),
}

/// Where the frame goes, by the forwarding database.
fn classify(
    round: &Round<'_>,
    segment: &Segment,
    from: Ingress<'_>,
    frame: &Frame<'_>,
) -> Result<Decision, DropReason> {
    let (source, destination) = (frame.source(), frame.destination());
    if !source.is_unicast() {
        return Err(DropReason::BadSourceMac);
    }
    let mtu = match from {
        Ingress::Port(port) => port.mtu,
        Ingress::Overlay(_) => u32::MAX,
    };
    let mut flags = 0;
    match segment.fdb.get(&source) {
        Some(target) if target.at == frame.from() => flags |= Actions::STATION_KNOWN,
        Some(target) if target.is_static => return Err(DropReason::BadSourceMac),
        Some(target) if target.is_held => return Err(DropReason::StationHeld),
        Some(_) | None => {}
    }
    if ethernet::is_reserved_group(destination) {
        return Err(DropReason::ReservedGroup);
    }
    let target = match destination.is_multicast() {
        true => None,
        false => segment.fdb.get(&destination),
    };
    let Some(target) = target else {
        return Ok(Decision::Go(Actions {
            mtu: mtu.min(u32::from(u16::MAX)) as u16,
            flags: flags | Actions::FLOOD,
            ..Actions::default()
        }));
    };
    let to = match target.at {
        to if to == frame.from() => return Err(DropReason::SamePort),
        Location::Vtep(id) => {
            return match from {
                Ingress::Port(_) => through(round, id, mtu, flags),
                Ingress::Overlay(_) => Err(DropReason::SplitHorizon),
            };
        }
        Location::Port(to) => to,
    };
    let out = round
        .snapshot
        .port(to)
        .filter(|out| round.snapshot.segment_of(out) == Some(frame.segment))
        .ok_or(DropReason::PortGone)?;
    if let Ingress::Port(port) = from
        && !round.snapshot.may_bridge(port.id, to)
    {
        return Err(DropReason::SplitHorizon);
    }
    if out.role == Role::Uplink {
        flags |= Actions::UPLINK;
    }
    if out.super_frames {
        flags |= Actions::SUPER_FRAMES;
    }
    let mtu = mtu.min(out.mtu).min(u32::from(u16::MAX));
    Ok(Decision::Go(Actions {
        out: out.id.0,
        mtu: mtu as u16,
        segment_mtu: out.segment_mtu.min(mtu) as u16,
        flags,
        ..Actions::default()
    }))
}

/// To a station behind a remote end.
fn through(round: &Round<'_>, id: VtepId, mtu: u32, flags: u16) -> Result<Decision, DropReason> {
    let vtep = round.snapshot.vtep(id).ok_or(DropReason::PortGone)?;
    if let Err(missing) = uplink::resolved(round.snapshot, vtep) {
        return missing.map(Decision::Wait).ok_or(DropReason::PortGone);
    }
    let mtu = mtu.min(vtep.mtu).min(u32::from(u16::MAX)) as u16;
    Ok(Decision::Go(Actions {
        out: id.0,
        mtu,
        segment_mtu: mtu,
        flags: flags | Actions::ENCAPSULATE,
        ..Actions::default()
    }))
}

/// What depends on the one frame: its length and its checksum.
fn send(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    frame: &Frame<'_>,
    actions: &Actions,
) -> Verdict {
    let len = batch.packets()[index].len as usize;
    let bytes = round.umem.bytes(batch.head(index));
    let Some((ethertype, payload)) = ethernet::payload(bytes) else {
        return Verdict::Drop(DropReason::Runt);
    };
    let partial = match frame.is_partial_port {
        true => tunnel::partial_checksum(bytes, len, ethertype, payload),
        false => None,
    };
    let is_super_frame = partial.is_some_and(|p| p.is_own_tcp);
    let limit = match is_super_frame && !actions.has(Actions::SUPER_FRAMES) {
        true => narrow::between(round, bytes).unwrap_or(u16::MAX),
        false => u16::MAX,
    };
    let is_oversize = len - payload > usize::from(actions.mtu.min(limit));
    if is_oversize && !is_super_frame {
        return Verdict::Drop(DropReason::Oversize);
    }
    // The kernel sums to the end of the frame: padding must not be there.
    if let Some(partial) = partial
        && partial.end < len
        && !batch.trim(index, partial.end)
    {
        return Verdict::Drop(DropReason::BadLength);
    }
    let checksum = partial.map(|p| p.field);
    if actions.has(Actions::FLOOD) {
        return Verdict::Flood {
            segment: frame.segment,
            checksum,
            mtu: limit,
        };
    }
    if is_oversize && !actions.has(Actions::SUPER_FRAMES) {
        return uplink::in_pieces(actions.segment_mtu.min(limit), actions, frame.hash);
    }
    if !actions.leaves_node() {
        let out = PortId(actions.out);
        return Verdict::Forward { out, checksum };
    }
    match uplink::leave(round, batch, index, (checksum, actions, frame.hash)) {
        Ok(out) => {
            let checksum = None;
            Verdict::Forward { out, checksum }
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The source guard of a guarded segment: a frame must come from the port's
/// own MAC address, and what it says of IP addresses must be true. Unspecified
/// addresses pass, for DHCP and address probes. A port without any address is
/// held to its MAC address alone: what is behind it finds its own.
fn guard(port: &PortEntry, source: MacAddr, bytes: &[u8]) -> Result<(), DropReason> {
    if source != port.mac {
        return Err(DropReason::BadSourceMac);
    }
    let may_use = |address: IpAddr| address.is_unspecified() || has(port, address);
    let (ethertype, at) = ethernet::payload(bytes).ok_or(DropReason::Runt)?;
    let packet = &bytes[at..];
    match ethertype {
        EtherType::ARP => {
            let (arp, _) = ArpPacket::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
            match arp.sender_mac == port.mac && may_use(arp.sender_ip().into()) {
                true => Ok(()),
                false => Err(DropReason::SpoofedNeighbor),
            }
        }
        EtherType::IPV4 => {
            let (ip, _) = Ipv4Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
            match may_use(ip.source().into()) {
                true => Ok(()),
                false => Err(DropReason::Spoofed),
            }
        }
        EtherType::IPV6 => {
            let (ip, _) = Ipv6Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
            if !may_use(ip.source().into()) {
                return Err(DropReason::Spoofed);
            }
            guard_discovery(port, packet)
        }
        _ => Ok(()),
    }
}

fn has(port: &PortEntry, address: IpAddr) -> bool {
    port.addresses.is_empty() || port.may_use(address)
}

/// What a guarded port says in neighbour discovery: only of its own addresses.
fn guard_discovery(port: &PortEntry, packet: &[u8]) -> Result<(), DropReason> {
    let Ok(upper) = ipv6::walk(packet) else {
        return Err(DropReason::BadExtension);
    };
    let Some(message) = packet.get(upper.offset..) else {
        return Err(DropReason::Runt);
    };
    let kind = message.first().copied().unwrap_or_default();
    if upper.protocol != protocol::ICMPV6 || !icmpv6::is_neighbor_discovery(kind) {
        return Ok(());
    }
    let (option, claims_target) = match kind {
        icmpv6::kind::NEIGHBOR_ADVERTISEMENT => (icmpv6::OPTION_TARGET, true),
        icmpv6::kind::NEIGHBOR_SOLICITATION => (icmpv6::OPTION_SOURCE, false),
        icmpv6::kind::ROUTER_SOLICITATION => return Ok(()),
        _ => return Err(DropReason::SpoofedNeighbor),
    };
    let (view, options) =
        NeighborMessage::ref_from_prefix(message).map_err(|_| DropReason::Runt)?;
    let mac =
        icmpv6::link_layer_option(options, option).map_err(|_| DropReason::SpoofedNeighbor)?;
    let is_own = !claims_target || has(port, view.target().into());
    match is_own && mac.is_none_or(|mac| mac == port.mac) {
        true => Ok(()),
        false => Err(DropReason::SpoofedNeighbor),
    }
}

impl Lane {
    /// As [`Lane::hit`], and tells control of the station now and then.
    #[inline]
    fn hit_l2(&mut self, frame: &Frame<'_>, bytes: u64, round: &Round<'_>) -> Option<Actions> {
        let slot = self
            .flows_l2
            .find_hinted(frame.hint, frame.hash, frame.key)?;
        let flow = self.flows_l2.flow(slot);
        if !flow.is_current(round.generation) {
            return None;
        }
        flow.count(bytes, round.now_ms);
        let actions = flow.actions;
        let every = match actions.has(Actions::STATION_KNOWN) {
            true => REFRESH_MS,
            false => RETELL_MS,
        };
        let is_due = round.now_ms.wrapping_sub(flow.told_ms) >= every;
        if is_due {
            flow.told_ms = round.now_ms;
            self.tell_station(frame);
        }
        self.tally.hits += 1;
        Some(actions)
    }

    /// As [`Lane::install`]. A station that control does not know is told at
    /// once; a known one when its flow was not told of lately.
    fn install_l2(&mut self, frame: &Frame<'_>, actions: Actions, bytes: u64, round: &Round<'_>) {
        let generation = round.generation;
        let table = &mut self.flows_l2;
        let slot = match table.find(frame.hash, frame.key) {
            Some(slot) => {
                table.redecide(slot, actions, generation);
                Some((slot, false))
            }
            None => match table.insert(frame.hash, frame.key, actions, generation, round.now_ms) {
                Inserted::Free(slot) => Some((slot, true)),
                Inserted::Evicted(slot) => {
                    self.tally.evictions += 1;
                    Some((slot, true))
                }
                Inserted::Refused => None,
            },
        };
        let mut is_due = true;
        if let Some((slot, is_new)) = slot {
            let flow = self.flows_l2.flow(slot);
            flow.count(bytes, round.now_ms);
            let known = actions.has(Actions::STATION_KNOWN);
            let told_lately = round.now_ms.wrapping_sub(flow.told_ms) < REFRESH_MS;
            is_due = !known || is_new || !told_lately;
            if is_due {
                flow.told_ms = round.now_ms;
            }
        }
        if is_due {
            self.tell_station(frame);
        }
    }

    /// Tells control, now and then, of a station that should be elsewhere.
    fn tell_misplaced(&mut self, frame: &Frame<'_>, now_ms: u32) {
        let MacAddr([.., last]) = frame.source();
        let told = &mut self.told_misplaced_ms[usize::from(last) % uplink::Told::PLACES];
        if now_ms.wrapping_sub(*told) >= RETELL_MS {
            *told = now_ms;
            self.tell_station(frame);
        }
    }

    fn tell_station(&mut self, frame: &Frame<'_>) {
        self.tell(Event::Station {
            segment: frame.segment,
            mac: frame.source(),
            at: frame.from(),
        });
    }
}
