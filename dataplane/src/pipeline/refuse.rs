//! Tells a sender by ICMP that its packet got no further.
//!
//! The error is written over the packet, in the headroom before its network
//! header, which it quotes (RFC 1812 section 4.3.2, RFC 4443 section 2.4):
//!
//! ```text
//! before            | Ethernet | IP … payload …
//! after  | Ethernet | IP | ICMP | IP … payload, cut |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::classify::RoutedKey;
use super::parse::{Headers, L3, Part};
use super::{Lane, Round, chain, route};
use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::snapshot::Gateway;
use crate::types::is_routable;
use crate::wire::checksum::{self, pseudo_header};
use crate::wire::icmpv4::{self, Icmpv4Header};
use crate::wire::icmpv6::{self, Icmpv6Header};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;

/// What a sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Hops ran out.
    TimeExceeded,
    /// No route.
    NetUnreachable,
    /// A route forbids it.
    Prohibited,
    /// Nobody has the address.
    HostUnreachable,
    /// Nobody listens.
    PortUnreachable,
    /// Longer than this many bytes.
    TooBig(u16),
}

const V4_BYTES: usize = ipv4::HEADER_LEN + icmpv4::HEADER_LEN;
const V6_BYTES: usize = ipv6::HEADER_LEN + icmpv6::HEADER_LEN;

/// Writes the error over the packet. Where none may be sent, the packet is
/// dropped all the same, silently.
pub(super) fn refuse<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
    refusal: Refusal,
    reason: DropReason,
    lane: &mut Lane,
) -> Verdict {
    let silent = Verdict::Drop(reason);
    let in_port = batch.packets()[index].in_port;
    if !may_answer(batch, round, index, headers, K::IS_V6) {
        return silent;
    }
    if !lane.errors.allow(in_port, round.now) {
        return silent;
    }
    complete_checksum::<K>(round, batch, index, headers);
    let written = match K::IS_V6 {
        true => write_v6(round, batch, index, headers, refusal),
        false => write_v4(round, batch, index, headers, refusal),
    };
    match written {
        Some(()) => Verdict::Reply {
            dropped: Some(reason),
        },
        None => silent,
    }
}

/// Never about ICMP errors, later fragments, groups, or to a source that is
/// no single host (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
fn may_answer(
    batch: &Batch,
    round: &Round<'_>,
    index: usize,
    headers: &Headers,
    is_v6: bool,
) -> bool {
    let is_error = match headers.protocol {
        protocol::ICMP if !is_v6 => !icmpv4::is_query(headers.icmp_kind),
        protocol::ICMPV6 if is_v6 => icmpv6::is_error(headers.icmp_kind),
        _ => false,
    };
    let bytes = round.umem.bytes(batch.head(index));
    let source = match is_v6 {
        true => Ipv6Header::ref_from_prefix(&bytes[L3..])
            .ok()
            .map(|(h, _)| IpAddr::V6(h.source())),
        false => Ipv4Header::ref_from_prefix(&bytes[L3..])
            .ok()
            .map(|(h, _)| IpAddr::V4(h.source())),
    };
    !is_error && headers.part != Part::Later && !headers.to_group && source.is_some_and(is_routable)
}

/// Finishes a partial checksum, so that the quote shows what the sender's
/// device would have sent.
fn complete_checksum<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
) {
    if !headers.may_be_partial {
        return;
    }
    let bytes = round.umem.bytes(batch.head(index));
    if let Some(field) = route::partial_checksum::<K>(bytes, headers) {
        chain::complete(round.umem, batch, index, field);
    }
}

/// Makes room for `added` bytes before the network header, cuts the quote so
/// that the IP packet has at most `limit` bytes, and addresses the frame back
/// to its sender. Gives the bytes from the new network header on.
fn reframe<'a>(
    round: &Round<'a>,
    batch: &'a mut Batch,
    index: usize,
    headers: &Headers,
    (added, limit): (usize, usize),
) -> Option<&'a mut [u8]> {
    let own_mac = round.own_mac(&batch.packets()[index]);
    let frame = batch.head_mut(index);
    let quoted = (frame.len() - L3)
        .min(headers.ip_len as usize)
        .min(limit - added);
    if !frame.push_front(added) || !frame.resize(L3 + added + quoted) {
        return None;
    }
    let bytes = round.umem.bytes_mut(frame);
    bytes.copy_within(added + 6..added + 12, 0);
    bytes[6..12].copy_from_slice(&own_mac.0);
    bytes.copy_within(added + 12..added + 14, 12);
    Some(&mut bytes[L3..])
}

fn write_v4(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
    refusal: Refusal,
) -> Option<()> {
    let bytes = round.umem.bytes(batch.head(index));
    let (original, _) = Ipv4Header::read_from_prefix(&bytes[L3..]).ok()?;
    let own = own_address(round, batch, index, original.destination().into());
    let source = match own {
        Some(IpAddr::V4(own)) => own,
        Some(IpAddr::V6(_)) | None => *round.snapshot.gateway.addresses_v4.first()?,
    };
    let packet = reframe(
        round,
        batch,
        index,
        headers,
        (V4_BYTES, icmpv4::MAX_ERROR_LEN),
    )?;
    let mut header = Ipv4Header {
        version_ihl: 0x45,
        // Internetwork control (RFC 1812, section 4.3.2.5).
        tos: 0xc0,
        total_length: U16::new(packet.len() as u16),
        identification: U16::ZERO,
        flags_fragment: U16::new(ipv4::DONT_FRAGMENT),
        ttl: 64,
        protocol: protocol::ICMP,
        checksum: U16::ZERO,
        source: Ipv4Addr::octets(&source),
        destination: original.source,
    };
    header.fill_checksum();
    let (kind, code, mtu) = match refusal {
        Refusal::TimeExceeded => (icmpv4::kind::TIME_EXCEEDED, 0, 0),
        Refusal::NetUnreachable => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::NET, 0),
        Refusal::Prohibited => (
            icmpv4::kind::UNREACHABLE,
            icmpv4::unreachable::PROHIBITED,
            0,
        ),
        Refusal::HostUnreachable => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::HOST, 0),
        Refusal::PortUnreachable => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::PORT, 0),
        Refusal::TooBig(mtu) => (
            icmpv4::kind::UNREACHABLE,
            icmpv4::unreachable::FRAGMENTATION_NEEDED,
            mtu,
        ),
    };
    let icmp = Icmpv4Header {
        kind,
        code,
        checksum: U16::ZERO,
        identifier: U16::ZERO,
        sequence: U16::new(mtu),
    };
    let (ip_bytes, message) = packet.split_at_mut(ipv4::HEADER_LEN);
    ip_bytes.copy_from_slice(header.as_bytes());
    message[..icmpv4::HEADER_LEN].copy_from_slice(icmp.as_bytes());
    let sum = checksum::checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn write_v6(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
    refusal: Refusal,
) -> Option<()> {
    let (original, _) =
        Ipv6Header::read_from_prefix(&round.umem.bytes(batch.head(index))[L3..]).ok()?;
    let own = own_address(round, batch, index, original.destination().into());
    let source = match own {
        Some(IpAddr::V6(own)) => own,
        Some(IpAddr::V4(_)) | None => gateway_v6(&round.snapshot.gateway, original.source())?,
    };
    let packet = reframe(
        round,
        batch,
        index,
        headers,
        (V6_BYTES, icmpv6::MAX_ERROR_LEN),
    )?;
    let message_len = (packet.len() - ipv6::HEADER_LEN) as u16;
    let header = Ipv6Header {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: U16::new(message_len),
        next_header: protocol::ICMPV6,
        hop_limit: 64,
        source: source.octets(),
        destination: original.source,
    };
    let (kind, code, body) = match refusal {
        Refusal::TimeExceeded => (icmpv6::kind::TIME_EXCEEDED, 0, 0),
        Refusal::NetUnreachable => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::NO_ROUTE, 0),
        Refusal::Prohibited => (
            icmpv6::kind::UNREACHABLE,
            icmpv6::unreachable::PROHIBITED,
            0,
        ),
        Refusal::HostUnreachable => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::ADDRESS, 0),
        Refusal::PortUnreachable => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::PORT, 0),
        Refusal::TooBig(mtu) => (icmpv6::kind::PACKET_TOO_BIG, 0, u32::from(mtu)),
    };
    let icmp = Icmpv6Header {
        kind,
        code,
        checksum: U16::ZERO,
        body: U32::new(body),
    };
    let (ip_bytes, message) = packet.split_at_mut(ipv6::HEADER_LEN);
    ip_bytes.copy_from_slice(header.as_bytes());
    message[..icmpv6::HEADER_LEN].copy_from_slice(icmp.as_bytes());
    let pseudo = pseudo_header(&ip_bytes[8..40], protocol::ICMPV6, message_len);
    let sum = pseudo.bytes(message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// The node's address that somebody on the underlay is answered from, as the
/// kernel would: the one that the packet was sent to when masquerade uses it
/// (`nf_nat_icmp_reply_translation`), else the node's own of the family. `None`
/// for what came from a pod or out of the overlay.
fn own_address(
    round: &Round<'_>,
    batch: &Batch,
    index: usize,
    destination: IpAddr,
) -> Option<IpAddr> {
    let packet = &batch.packets()[index];
    let underlay = &round.snapshot.underlay;
    if packet.vtep.is_some() || underlay.uplink != Some(packet.in_port) {
        return None;
    }
    if round.snapshot.masquerade.leaves_with(destination) {
        return Some(destination);
    }
    let mut own = underlay.addresses.iter();
    own.find(|own| own.is_ipv4() == destination.is_ipv4())
        .copied()
}

/// The gateway's address of the same scope as `peer`.
fn gateway_v6(gateway: &Gateway, peer: Ipv6Addr) -> Option<Ipv6Addr> {
    let scope = ipv6::is_link_local(peer);
    let mut addresses = gateway.addresses_v6.iter();
    addresses
        .find(|a| ipv6::is_link_local(**a) == scope)
        .or(gateway.addresses_v6.first())
        .copied()
}
