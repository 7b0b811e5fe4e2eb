//! VXLAN (RFC 7348): outer headers put before a packet, and taken off.
//!
//! ```text
//! | Ethernet | IPv4 or IPv6 | UDP | VXLAN | Ethernet | IP … |
//! ```
//!
//! [`unwrap`] runs in parse: what comes off is checked there, and the inner
//! frame is then a packet like any other, known by the remote end it came
//! from. [`wrap`] runs last, on a packet whose checksums are complete. DSCP is
//! copied outwards and not back (RFC 2983, section 4.1: the inner one is the
//! pods'), ECN is treated by RFC 6040 in normal mode.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::chain;
use crate::drops::DropReason;
use crate::frame::{Batch, Frame};
use crate::snapshot::{Network, OuterHeader, Template, Underlay, Vtep};
use crate::types::VtepId;
use crate::umem::Umem;
use crate::wire::checksum::{self, Sum, pseudo_header};
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::udp::{self, UdpHeader};
use crate::wire::vxlan::{self, VxlanHeader};
use crate::wire::{ecn, protocol};

/// Bytes of UDP and VXLAN header.
const TUNNEL_LEN: usize = udp::HEADER_LEN + vxlan::HEADER_LEN;

/// Where the network header lies in outer and inner frames alike.
const L3: usize = ethernet::HEADER_LEN;

/// The UDP source port of a flow's outer packets: in the dynamic range, by the
/// flow's hash, so that the underlay spreads flows and keeps each in order
/// (RFC 7348, section 5).
#[inline]
pub(super) fn source_port(hash: u64) -> u16 {
    0xc000 | (hash >> 32) as u16 & 0x3fff
}

/// The source port of a frame that belongs to no known flow.
pub(crate) fn source_port_of(frame: &[u8]) -> u16 {
    let words = frame.chunks_exact(2).take(6);
    let sum = words.fold(0u64, |sum, word| {
        (sum << 3) ^ u64::from(u16::from_be_bytes([word[0], word[1]]))
    });
    source_port(sum << 32)
}

/// Longest inner frame that IPv4's outer headers can tell the length of.
const LONGEST_INNER: usize = u16::MAX as usize - ipv4::HEADER_LEN - TUNNEL_LEN;

/// Puts the outer headers before packet `index`, whose checksums are complete.
/// Part of its caller down to the last store, as a call costs a third of it.
#[inline(always)]
pub(crate) fn wrap(
    umem: &Umem,
    batch: &mut Batch,
    index: usize,
    vtep: &Vtep,
    source_port: u16,
) -> Result<(), DropReason> {
    let outer = &vtep.outer;
    let len = batch.packets()[index].len as usize;
    if len > LONGEST_INNER {
        return Err(DropReason::Oversize);
    }
    // Only an IPv6 outer packet has a checksum over its payload.
    let payload = match outer.is_v6() {
        true => chain::sum(umem, batch, index, 0),
        false => Sum::ZERO,
    };
    let head = batch.push_front(index, outer.bytes().len());
    let bytes = umem.bytes_mut(head.ok_or(DropReason::NoHeadroom)?);
    finish(bytes, outer, len, payload, source_port);
    Ok(())
}

/// As [`wrap`], for an answer that is in the head frame alone.
pub(super) fn wrap_reply(umem: &Umem, frame: &mut Frame, vtep: &Vtep) -> Result<(), DropReason> {
    let inner = umem.bytes(frame);
    let (len, payload) = (inner.len(), Sum::ZERO.bytes(inner));
    let source_port = source_port_of(inner);
    if !frame.push_front(vtep.outer.bytes().len()) {
        return Err(DropReason::NoHeadroom);
    }
    finish(
        umem.bytes_mut(frame),
        &vtep.outer,
        len,
        payload,
        source_port,
    );
    Ok(())
}

/// Writes the outer headers into the room before an inner frame of `len`
/// bytes, whose sum is `payload`.
#[inline(always)]
pub(super) fn finish(
    bytes: &mut [u8],
    outer: &OuterHeader,
    len: usize,
    payload: Sum,
    source_port: u16,
) {
    match outer.template() {
        Template::V4(template) => finish_v4(bytes, template, len, source_port),
        Template::V6(template) => finish_v6(bytes, template, len, (payload, source_port)),
    }
}

// Both copy arrays of a known length: a call of memcpy costs more than all the
// rest.

#[inline(always)]
fn finish_v4(bytes: &mut [u8], template: &[u8; OuterHeader::LEN_V4], len: usize, source_port: u16) {
    const UDP: usize = L3 + ipv4::HEADER_LEN;
    let Some((front, inner)) = bytes.split_first_chunk_mut() else {
        return;
    };
    let class = traffic_class(inner);
    let udp_len = (TUNNEL_LEN + len) as u16;
    let total = udp_len + ipv4::HEADER_LEN as u16;
    // Length and class were zero when the template was summed (RFC 1624,
    // equation 3).
    let sum = u16::from_be_bytes([template[L3 + 10], template[L3 + 11]]);
    let sum = Sum::ZERO.word(!sum).word(total).word(class.into());
    *front = *template;
    front[L3 + 1] = class;
    front[L3 + 2..L3 + 4].copy_from_slice(&total.to_be_bytes());
    front[L3 + 10..L3 + 12].copy_from_slice(&sum.checksum().to_be_bytes());
    front[UDP..UDP + 2].copy_from_slice(&source_port.to_be_bytes());
    front[UDP + 4..UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
}

#[inline(never)]
fn finish_v6(
    bytes: &mut [u8],
    template: &[u8; OuterHeader::LEN_V6],
    len: usize,
    (payload, source_port): (Sum, u16),
) {
    const UDP: usize = L3 + ipv6::HEADER_LEN;
    let Some((front, inner)) = bytes.split_first_chunk_mut() else {
        return;
    };
    *front = *template;
    let class = traffic_class(inner);
    let udp_len = (TUNNEL_LEN + len) as u16;
    front[L3] |= class >> 4;
    front[L3 + 1] |= class << 4;
    front[L3 + 4..L3 + 6].copy_from_slice(&udp_len.to_be_bytes());
    front[UDP..UDP + 2].copy_from_slice(&source_port.to_be_bytes());
    front[UDP + 4..UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
    let pseudo = pseudo_header(&front[L3 + 8..L3 + 40], protocol::UDP, udp_len);
    let sum = pseudo.bytes(&front[UDP..]).sum(payload).udp_checksum();
    front[UDP + 6..UDP + 8].copy_from_slice(&sum.to_be_bytes());
}

/// DSCP and ECN of a frame's IP packet; 0 for others.
#[inline(always)]
fn traffic_class(frame: &[u8]) -> u8 {
    // Nearly always.
    if let &[_, _, _, _, _, _, _, _, _, _, _, _, t0, t1, high, low, ..] = frame {
        let ethertype = EtherType([t0, t1]);
        if ethertype == EtherType::IPV4 {
            return low;
        }
        if ethertype == EtherType::IPV6 {
            return high << 4 | low >> 4;
        }
    }
    class_behind_tags(frame)
}

#[cold]
fn class_behind_tags(frame: &[u8]) -> u8 {
    let Some((ethertype, at)) = ethernet::payload(frame) else {
        return 0;
    };
    match (ethertype, frame.get(at..at + 2)) {
        (EtherType::IPV4, Some(&[_, class])) => class,
        (EtherType::IPV6, Some(&[high, low])) => high << 4 | low >> 4,
        _ => 0,
    }
}

/// An inner frame that came out of the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unwrapped {
    /// The remote end that it came from.
    pub(super) vtep: VtepId,
    /// The network that it belongs to.
    pub(super) network: Network,
}

/// Takes the outer headers off packet `index` of the uplink; `None` and
/// unchanged when it is no packet of the overlay to this node.
pub(super) fn unwrap(
    umem: &Umem,
    batch: &mut Batch,
    index: usize,
    underlay: &Underlay,
) -> Result<Option<Unwrapped>, DropReason> {
    let bytes = umem.bytes(batch.head(index));
    let Some(outer) = outer(bytes, underlay)? else {
        return Ok(None);
    };
    let len = batch.packets()[index].len as usize;
    if outer.end > len || outer.udp_len < TUNNEL_LEN || outer.tunnel + outer.udp_len != outer.end {
        return Err(DropReason::BadOuterLength);
    }
    let header = bytes.get(outer.tunnel + udp::HEADER_LEN..);
    let (header, inner) = header
        .and_then(|bytes| VxlanHeader::ref_from_prefix(bytes).ok())
        .ok_or(DropReason::BadOuterLength)?;
    let vni = header.vni().ok_or(DropReason::BadVxlan)?;
    let network = *underlay.networks.get(&vni).ok_or(DropReason::WrongVni)?;
    let vtep = underlay.peers.get(&(vni, outer.source));
    let vtep = *vtep.ok_or(DropReason::UnknownVtep)?;
    if outer.udp_len - TUNNEL_LEN < L3 || inner.len() < L3 {
        return Err(DropReason::BadInnerLength);
    }
    let taken = outer.tunnel + TUNNEL_LEN;
    let is_padded = outer.end < len;
    if is_padded && !batch.trim(index, outer.end) || !batch.pull_front(index, taken) {
        return Err(DropReason::BadOuterLength);
    }
    batch.came_from(index, vtep);
    // Most packets carry no mark.
    if outer.ecn != ecn::NOT_CAPABLE {
        mark(umem.bytes_mut(batch.head_mut(index)), outer.ecn)?;
    }
    Ok(Some(Unwrapped { vtep, network }))
}

/// The remote end that sent what is behind a VXLAN header, if it is one of the
/// network's.
pub(super) fn peer(tunnel: &[u8], source: IpAddr, underlay: &Underlay) -> Option<VtepId> {
    let (header, _) = VxlanHeader::ref_from_prefix(tunnel).ok()?;
    underlay.peers.get(&(header.vni()?, source)).copied()
}

/// What the outer headers say.
pub(super) struct Outer {
    pub(super) source: IpAddr,
    ecn: u8,
    /// Where the UDP header is.
    pub(super) tunnel: usize,
    /// What the UDP header says of its length.
    pub(super) udp_len: usize,
    /// Where the outer IP packet ends.
    pub(super) end: usize,
}

/// The outer headers of a packet of the overlay to this node.
pub(super) fn outer(bytes: &[u8], underlay: &Underlay) -> Result<Option<Outer>, DropReason> {
    if underlay.vxlan_port == 0 {
        return Ok(None);
    }
    let (ethernet, packet) =
        EthernetHeader::ref_from_prefix(bytes).map_err(|_| DropReason::Runt)?;
    match ethernet.ethertype {
        EtherType::IPV4 => outer_v4(packet, underlay),
        EtherType::IPV6 => outer_v6(packet, underlay),
        _ => Ok(None),
    }
}

fn outer_v4(packet: &[u8], underlay: &Underlay) -> Result<Option<Outer>, DropReason> {
    let (ip, _) = Ipv4Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
    let header_len = ip.header_len();
    let destination = Ipv4Addr::from(ip.destination);
    let is_other = ip.version() != 4
        || ip.protocol != protocol::UDP
        || header_len < ipv4::HEADER_LEN
        || ip.more_fragments()
        || ip.fragment_offset() != 0
        || !underlay.addresses.contains(&destination.into());
    let Some(udp) = udp_to(packet, header_len, underlay).filter(|_| !is_other) else {
        return Ok(None);
    };
    if checksum::checksum(&packet[..header_len]) != 0 {
        return Err(DropReason::BadChecksum);
    }
    Ok(Some(Outer {
        source: ip.source().into(),
        ecn: ip.tos & ecn::MASK,
        tunnel: L3 + header_len,
        udp_len: usize::from(udp.length.get()),
        end: L3 + usize::from(ip.total_length.get()),
    }))
}

fn outer_v6(packet: &[u8], underlay: &Underlay) -> Result<Option<Outer>, DropReason> {
    let (ip, _) = Ipv6Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
    let destination = Ipv6Addr::from(ip.destination);
    let is_other = ip.version() != 6
        || ip.next_header != protocol::UDP
        || !underlay.addresses.contains(&destination.into());
    let Some(udp) = udp_to(packet, ipv6::HEADER_LEN, underlay).filter(|_| !is_other) else {
        return Ok(None);
    };
    Ok(Some(Outer {
        source: ip.source().into(),
        ecn: ip.version_class_flow[1] >> 4 & ecn::MASK,
        tunnel: L3 + ipv6::HEADER_LEN,
        udp_len: usize::from(udp.length.get()),
        end: L3 + ipv6::HEADER_LEN + usize::from(ip.payload_length.get()),
    }))
}

/// The UDP header at `at`, when it is to the overlay's port.
fn udp_to<'a>(packet: &'a [u8], at: usize, underlay: &Underlay) -> Option<&'a UdpHeader> {
    let (udp, _) = UdpHeader::ref_from_prefix(packet.get(at..)?).ok()?;
    (udp.destination.get() == underlay.vxlan_port).then_some(udp)
}

/// Carries the outer header's congestion mark into the inner packet.
fn mark(frame: &mut [u8], outer: u8) -> Result<(), DropReason> {
    let Some((ethertype, at)) = ethernet::payload(frame) else {
        return Ok(());
    };
    let Some(packet) = frame.get_mut(at..) else {
        return Ok(());
    };
    match ethertype {
        EtherType::IPV4 => {
            let Ok((ip, _)) = Ipv4Header::mut_from_prefix(packet) else {
                return Ok(());
            };
            let combined = ecn::combine(outer, ip.tos & ecn::MASK);
            let tos = ip.tos & !ecn::MASK | combined.ok_or(DropReason::EcnNotCapable)?;
            let word = |tos: u8| u16::from_be_bytes([ip.version_ihl, tos]);
            let sum = checksum::update(ip.checksum.get(), word(ip.tos), word(tos));
            if ip.tos != tos {
                ip.tos = tos;
                ip.checksum = U16::new(sum);
            }
        }
        EtherType::IPV6 => {
            let Ok((ip, _)) = Ipv6Header::mut_from_prefix(packet) else {
                return Ok(());
            };
            let byte = &mut ip.version_class_flow[1];
            let combined = ecn::combine(outer, *byte >> 4 & ecn::MASK);
            let combined = combined.ok_or(DropReason::EcnNotCapable)?;
            *byte = *byte & !(ecn::MASK << 4) | combined << 4;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_found_behind_tags_too() {
        const MACS: [u8; 12] = [2; 12];
        let tag = [0x81, 0x00, 0, 5];
        let outer_tag = [0x88, 0xa8, 0, 6];
        let v4 = [0x08, 0x00, 0x45, 0xbb];
        let v6 = [0x86, 0xdd, 0x6b, 0xb1];
        let arp = [0x08, 0x06, 0, 1];
        for (name, rest, class) in [
            ("IPv4", &[v4][..], 0xbb),
            ("IPv6", &[v6], 0xbb),
            ("IPv4 in a tag", &[tag, v4], 0xbb),
            ("IPv6 in two tags", &[outer_tag, tag, v6], 0xbb),
            ("a third tag", &[tag, tag, tag, v4], 0),
            ("ARP", &[arp], 0),
        ] {
            let frame = [&MACS[..], rest.as_flattened()].concat();
            assert_eq!(traffic_class(&frame), class, "{name}");
            // Cut off anywhere: nothing found, nothing read outside.
            for len in 0..frame.len() {
                assert_eq!(traffic_class(&frame[..len]), 0, "{name}, {len} bytes");
            }
        }
    }
}
