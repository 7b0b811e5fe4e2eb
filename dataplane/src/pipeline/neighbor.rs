//! Address resolution on routed ports: ARP and neighbour discovery.
//!
//! Every pod sees one neighbour, the gateway, whatever address it asks for:
//! the gateway's own addresses, other pods' (proxied), the node's. What a pod
//! says of its own addresses is taken note of by nobody, since control knows
//! them; a claim to somebody else's is dropped and counted. Who probes for an
//! address (RFC 5227, RFC 4862 section 5.4) is told of the gateway's own that
//! they are taken, and of no other; gratuitous ARP is never answered.

use std::net::{IpAddr, Ipv6Addr};

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::Round;
use super::classify::{Ingress, may_send};
use super::parse::{Headers, L3};
use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::snapshot::{Destination, PortEntry, Role, Snapshot};
use crate::types::MacAddr;
use crate::wire::arp::{self, ArpPacket, Operation};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::icmpv6::{self, Icmpv6Header, LinkLayerOption, NeighborMessage};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;

/// Answers or drops an ARP packet of a routed port.
pub(super) fn arp(round: &Round<'_>, batch: &mut Batch, index: usize, to_group: bool) -> Verdict {
    let Some(from) = Ingress::of_packet(round.snapshot, &batch.packets()[index]) else {
        return Verdict::Drop(DropReason::PortRemoved);
    };
    let bytes = round.umem.bytes(batch.head(index));
    let Ok((packet, _)) = ArpPacket::read_from_prefix(&bytes[L3..]) else {
        return Verdict::Drop(DropReason::Runt);
    };
    if let Err(reason) = judge_arp(round.snapshot, from, &packet, to_group) {
        return Verdict::Drop(reason);
    }
    let own_mac = round.own_mac(&batch.packets()[index]);
    let frame = batch.head_mut(index);
    if !frame.resize(L3 + arp::PACKET_LEN) {
        return Verdict::Drop(DropReason::Runt);
    }
    let bytes = round.umem.bytes_mut(frame);
    bytes[..6].copy_from_slice(&packet.sender_mac.0);
    bytes[6..12].copy_from_slice(&own_mac.0);
    bytes[L3..].copy_from_slice(packet.answer(own_mac).as_bytes());
    Verdict::Reply { dropped: None }
}

fn judge_arp(
    snapshot: &Snapshot,
    from: Ingress<'_>,
    packet: &ArpPacket,
    _to_group: bool,
) -> Result<(), DropReason> {
    let (sender, target) = (packet.sender_ip(), packet.target_ip());
    if !packet.is_ipv4_on_ethernet() {
        return Err(DropReason::NeighborIgnored);
    }
    if !is_own_mac(from, packet.sender_mac) {
        return Err(DropReason::SpoofedNeighbor);
    }
    let is_probe = sender.is_unspecified();
    if !is_probe && !may_send(snapshot, from, sender.into()) {
        return Err(DropReason::SpoofedNeighbor);
    }
    let is_asked = packet.operation == Operation::REQUEST && sender != target;
    let is_known = match is_probe {
        true => is_taken(snapshot, from, target.into()),
        false => answers_for(snapshot, from, target.into()),
    };
    match is_asked && is_known {
        true => Ok(()),
        false => Err(DropReason::NeighborIgnored),
    }
}

/// Whether a neighbour there has this MAC address. What other nodes' pods
/// have is not known here.
fn is_own_mac(from: Ingress<'_>, mac: MacAddr) -> bool {
    match from.local() {
        Some(port) => mac == port.mac,
        None => mac.is_unicast(),
    }
}

/// Whether the switch answers there for the address: the gateway's own, and
/// all that is reached through it, but never the asker's own. Through the
/// overlay it answers for what this node holds.
fn answers_for(snapshot: &Snapshot, from: Ingress<'_>, target: IpAddr) -> bool {
    let Some(port) = from.local() else {
        return matches!(from, Ingress::Overlay(_)) && snapshot.host(target).is_some();
    };
    if port.may_use(target) {
        return false;
    }
    match snapshot.host(target) {
        Some(Destination::Gateway) => true,
        Some(Destination::Pod(out) | Destination::Host(out)) => out != port.id,
        None => snapshot.is_pod_address(target) || snapshot.routes.lookup(target).is_some(),
    }
}

/// Whether somebody there who wants the address for himself is told that it is
/// taken.
fn is_taken(snapshot: &Snapshot, from: Ingress<'_>, wanted: IpAddr) -> bool {
    from.local().is_some() && snapshot.host(wanted) == Some(Destination::Gateway)
}

/// Answers or drops a neighbour discovery message of a routed port.
pub(super) fn discovery(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
) -> Verdict {
    let Some(from) = Ingress::of_packet(round.snapshot, &batch.packets()[index]) else {
        return Verdict::Drop(DropReason::PortRemoved);
    };
    let bytes = round.umem.bytes(batch.head(index));
    match judge_discovery(round.snapshot, from, bytes, headers) {
        Ok((solicitor, target)) => advertise(round, batch, index, solicitor, target),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Who asks for which address, when it is to be answered.
fn judge_discovery(
    snapshot: &Snapshot,
    from: Ingress<'_>,
    bytes: &[u8],
    headers: &Headers,
) -> Result<(Ipv6Addr, Ipv6Addr), DropReason> {
    let (ip, _) = Ipv6Header::ref_from_prefix(&bytes[L3..]).map_err(|_| DropReason::Runt)?;
    let start = usize::from(headers.transport);
    let message = bytes
        .get(start..start + headers.transport_len())
        .ok_or(DropReason::Runt)?;
    let pseudo = pseudo_header(
        &bytes[L3 + 8..L3 + 40],
        protocol::ICMPV6,
        message.len() as u16,
    );
    if pseudo.sum(Sum::ZERO.bytes(message)).checksum() != 0 {
        return Err(DropReason::BadChecksum);
    }
    // Only a neighbour's own message still has all its hops (RFC 4861,
    // section 7.1).
    if ip.hop_limit != 255 || message[1] != 0 {
        return Err(DropReason::NeighborIgnored);
    }
    match headers.icmp_kind {
        icmpv6::kind::ROUTER_SOLICITATION => return Err(DropReason::NeighborIgnored),
        icmpv6::kind::ROUTER_ADVERTISEMENT | icmpv6::kind::REDIRECT => {
            return Err(DropReason::SpoofedNeighbor);
        }
        _ => {}
    }
    let (view, options) =
        NeighborMessage::ref_from_prefix(message).map_err(|_| DropReason::Runt)?;
    let (source, target) = (ip.source(), view.target());
    if headers.icmp_kind == icmpv6::kind::NEIGHBOR_ADVERTISEMENT {
        return Err(match may_claim(snapshot, from, target) {
            true => DropReason::NeighborIgnored,
            false => DropReason::SpoofedNeighbor,
        });
    }
    if target.is_multicast() {
        return Err(DropReason::NeighborIgnored);
    }
    let mac = icmpv6::link_layer_option(options, icmpv6::OPTION_SOURCE)
        .map_err(|_| DropReason::NeighborIgnored)?;
    if source.is_unspecified() {
        // RFC 4861, section 7.1.1.
        let is_probe = ip.destination() == ipv6::solicited_node(target) && mac.is_none();
        return match is_probe && is_taken(snapshot, from, target.into()) {
            true => Ok((source, target)),
            false => Err(DropReason::NeighborIgnored),
        };
    }
    if !may_claim(snapshot, from, source) || mac.is_some_and(|mac| !is_own_mac(from, mac)) {
        return Err(DropReason::SpoofedNeighbor);
    }
    match answers_for(snapshot, from, target.into()) {
        true => Ok((source, target)),
        false => Err(DropReason::NeighborIgnored),
    }
}

fn may_claim(snapshot: &Snapshot, from: Ingress<'_>, address: Ipv6Addr) -> bool {
    match from {
        // The link-local addresses of the host on its port, and of remote
        // ends, are not known here.
        Ingress::Port(PortEntry {
            role: Role::Host, ..
        })
        | Ingress::Overlay(_)
            if ipv6::is_link_local(address) =>
        {
            snapshot.host(address.into()) != Some(Destination::Gateway)
        }
        _ => may_send(snapshot, from, address.into()),
    }
}

/// Bytes of an advertisement with its one option.
const ADVERTISEMENT_LEN: usize = size_of::<NeighborMessage>() + size_of::<LinkLayerOption>();

/// Tells the solicitor that the target is here; everybody, when it has no
/// address yet (RFC 4861, section 7.2.4).
fn advertise(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    solicitor: Ipv6Addr,
    target: Ipv6Addr,
) -> Verdict {
    let gateway = &round.snapshot.gateway;
    let own_mac = round.own_mac(&batch.packets()[index]);
    let frame = batch.head_mut(index);
    if !frame.resize(L3 + ipv6::HEADER_LEN + ADVERTISEMENT_LEN) {
        return Verdict::Drop(DropReason::Runt);
    }
    let is_own = gateway.addresses_v6.contains(&target);
    // A proxy leaves Override clear (RFC 4861, section 7.2.8).
    let overrides = if is_own { icmpv6::NA_OVERRIDE } else { 0 };
    let (destination, is_solicited) = match solicitor.is_unspecified() {
        true => (ipv6::ALL_NODES, 0),
        false => (solicitor, icmpv6::NA_SOLICITED),
    };
    let header = Ipv6Header {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: U16::new(ADVERTISEMENT_LEN as u16),
        next_header: protocol::ICMPV6,
        hop_limit: 255,
        source: target.octets(),
        destination: destination.octets(),
    };
    let message = NeighborMessage {
        header: Icmpv6Header {
            kind: icmpv6::kind::NEIGHBOR_ADVERTISEMENT,
            code: 0,
            checksum: U16::ZERO,
            body: U32::new(icmpv6::NA_ROUTER | is_solicited | overrides),
        },
        target: target.octets(),
    };
    let option = LinkLayerOption {
        kind: icmpv6::OPTION_TARGET,
        units: 1,
        mac: own_mac,
    };
    let bytes = round.umem.bytes_mut(frame);
    match solicitor.is_unspecified() {
        true => bytes[..6].copy_from_slice(&ipv6::ALL_NODES_MAC.0),
        false => bytes.copy_within(6..12, 0),
    }
    bytes[6..12].copy_from_slice(&own_mac.0);
    let (ip_bytes, rest) = bytes[L3..].split_at_mut(ipv6::HEADER_LEN);
    ip_bytes.copy_from_slice(header.as_bytes());
    rest[..24].copy_from_slice(message.as_bytes());
    rest[24..].copy_from_slice(option.as_bytes());
    let pseudo = pseudo_header(&ip_bytes[8..40], protocol::ICMPV6, ADVERTISEMENT_LEN as u16);
    let sum = pseudo.bytes(rest).checksum();
    rest[2..4].copy_from_slice(&sum.to_be_bytes());
    Verdict::Reply { dropped: None }
}
