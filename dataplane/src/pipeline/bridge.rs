//! Layer-2 segments: a learning switch for each.
//!
//! Frames pass unchanged. A station's place is learned by control from
//! [`Event::Station`]; the forwarding database is part of the snapshot, so a
//! station that moves makes every flow decide anew. Ports of one segment reach
//! each other and nobody else: the key holds the port a frame came by, and
//! ways out are taken from that port's segment only.

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::{Lane, Round};
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Batch, Verdict};
use crate::snapshot::{Location, PortEntry, Role, Segment};
use crate::tables::flow::{Actions, Hint, Inserted, KeyL2};
use crate::types::{MacAddr, PortId, SegmentId};
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
    let Some(port) = round.snapshot.port(PortId(frame.key.in_port)) else {
        return Verdict::Drop(DropReason::PortRemoved);
    };
    if segment.guard {
        let bytes = round.umem.bytes(batch.head(index));
        if let Err(reason) = guard(port, frame.source(), bytes) {
            return Verdict::Drop(reason);
        }
    }
    let bytes = u64::from(batch.packets()[index].len);
    let actions = match lane.hit_l2(&frame, bytes, round) {
        Some(actions) => actions,
        None => {
            lane.tally.misses += 1;
            match classify(round, segment, port, &frame) {
                Ok(actions) => {
                    lane.install_l2(&frame, actions, bytes, round);
                    actions
                }
                Err(reason) => return Verdict::Drop(reason),
            }
        }
    };
    send(round, batch, index, &frame, &actions)
}

/// Where the frame goes, by the forwarding database.
fn classify(
    round: &Round<'_>,
    segment: &Segment,
    port: &PortEntry,
    frame: &Frame<'_>,
) -> Result<Actions, DropReason> {
    let (source, destination) = (frame.source(), frame.destination());
    if !source.is_unicast() {
        return Err(DropReason::BadSourceMac);
    }
    let mut flags = 0;
    match segment.fdb.get(&source) {
        Some(target) if target.at == Location::Port(port.id) => flags |= Actions::STATION_KNOWN,
        Some(target) if target.is_static => return Err(DropReason::BadSourceMac),
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
        return Ok(Actions {
            mtu: port.mtu.min(u32::from(u16::MAX)) as u16,
            flags: flags | Actions::FLOOD,
            ..Actions::default()
        });
    };
    let Location::Port(to) = target.at else {
        return Err(DropReason::PortGone);
    };
    if to == port.id {
        return Err(DropReason::SamePort);
    }
    let out = round
        .snapshot
        .port(to)
        .filter(|out| out.role == Role::SegmentPod(frame.segment))
        .ok_or(DropReason::PortGone)?;
    if out.super_frames {
        flags |= Actions::SUPER_FRAMES;
    }
    let mtu = port.mtu.min(out.mtu).min(u32::from(u16::MAX));
    Ok(Actions {
        out: out.id.0,
        mtu: mtu as u16,
        segment_mtu: out.segment_mtu.min(mtu) as u16,
        flags,
        ..Actions::default()
    })
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
        true => tunnel::partial_checksum(bytes, ethertype, payload),
        false => None,
    };
    let is_oversize = len - payload > usize::from(actions.mtu);
    let is_super_frame = partial.is_some_and(|p| p.is_own_tcp);
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
        let segment = frame.segment;
        return Verdict::Flood { segment, checksum };
    }
    let out = PortId(actions.out);
    match is_oversize && !actions.has(Actions::SUPER_FRAMES) {
        true => Verdict::Segment {
            out,
            mtu: u32::from(actions.segment_mtu),
        },
        false => Verdict::Forward { out, checksum },
    }
}

/// The source guard of a guarded segment: a frame must come from the port's
/// own MAC address, and what it says of IP addresses must be true. Unspecified
/// addresses pass, for DHCP and address probes.
fn guard(port: &PortEntry, source: MacAddr, bytes: &[u8]) -> Result<(), DropReason> {
    if source != port.mac {
        return Err(DropReason::BadSourceMac);
    }
    let may_use = |address: IpAddr| address.is_unspecified() || port.may_use(address);
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
    let is_own = !claims_target || port.may_use(view.target().into());
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
        if !flow.is_current(round.snapshot.generation) {
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
        let generation = round.snapshot.generation;
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

    fn tell_station(&mut self, frame: &Frame<'_>) {
        self.tell(Event::Station {
            segment: frame.segment,
            mac: frame.source(),
            at: Location::Port(PortId(frame.key.in_port)),
        });
    }
}
