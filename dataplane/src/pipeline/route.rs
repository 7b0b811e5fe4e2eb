//! Last stage for routed packets: what the flow decided, applied to this one.
//!
//! Hop count, length and checksum differ from packet to packet of a flow, so
//! they are looked at here, each time.

use zerocopy::FromBytes;

use super::classify::RoutedKey;
use super::parse::{Headers, L3, Part};
use super::refuse::Refusal;
use super::translate;
use super::{Answer, Lane, Round, narrow};
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Batch, TxChecksum};
use crate::snapshot::{Destination, Role};
use crate::tables::flow::Actions;
use crate::wire::ethernet::EtherType;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::{protocol, tunnel};

/// What a hop makes of a packet.
pub(super) enum Hop {
    /// It goes on as it is; its checksum may be left to the receiver.
    Whole(Option<TxChecksum>),
    /// It goes on in pieces of at most so many bytes.
    Pieces(u16),
    /// It goes back to its sender, as an error.
    Refused(Refusal, DropReason),
}

/// Takes a hop: checks, and rewrites the head frame.
#[inline(always)]
pub(super) fn take_hop<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
    answer: &Answer,
) -> Hop {
    let actions = &answer.actions;
    let bytes = round.umem.bytes_mut(batch.head_mut(index));
    let hops = bytes[if K::IS_V6 { L3 + 7 } else { L3 + 8 }];
    if hops <= 1 {
        return Hop::Refused(Refusal::TimeExceeded, DropReason::TtlExceeded);
    }
    let checksum = match headers.may_be_partial {
        true => partial_checksum::<K>(bytes, headers),
        false => None,
    };
    let hop = match headers.ip_len <= u32::from(actions.mtu) {
        true => Hop::Whole(checksum),
        false => fit::<K>(bytes, headers, actions, checksum),
    };
    if let Hop::Refused(..) = hop {
        return hop;
    }
    if let Some(translation) = &answer.translation {
        let is_partial = checksum.is_some_and(|field| field.start == headers.transport);
        translate::apply(bytes, headers, K::IS_V6, translation, is_partial);
    }
    bytes[..6].copy_from_slice(&actions.destination.0);
    bytes[6..12].copy_from_slice(&actions.source.0);
    count_hop::<K>(bytes);
    hop
}

#[inline(always)]
fn count_hop<K: RoutedKey>(bytes: &mut [u8]) {
    if K::IS_V6 {
        bytes[L3 + 7] -= 1;
    } else if let Ok((header, _)) = Ipv4Header::mut_from_prefix(&mut bytes[L3..]) {
        header.decrement_ttl();
    }
}

/// The packet's partial checksum, its own or that of a packet inside.
#[inline(always)]
pub(super) fn partial_checksum<K: RoutedKey>(
    bytes: &[u8],
    headers: &Headers,
) -> Option<TxChecksum> {
    let transport = usize::from(headers.transport);
    let addresses = match K::IS_V6 {
        true => &bytes[L3 + 8..L3 + 40],
        false => &bytes[L3 + 12..L3 + 20],
    };
    let own = tunnel::partial_field(
        bytes,
        addresses,
        headers.protocol,
        transport,
        headers.transport_len(),
    );
    if own.is_some() || headers.protocol == protocol::TCP {
        return own;
    }
    if !tunnel::may_encapsulate(headers.protocol, bytes.get(transport..).unwrap_or_default()) {
        return None;
    }
    let ethertype = match K::IS_V6 {
        true => EtherType::IPV6,
        false => EtherType::IPV4,
    };
    tunnel::partial_checksum(bytes, L3 + headers.ip_len as usize, ethertype, L3)
        .map(|partial| partial.field)
}

/// A packet longer than the path. A TCP super-frame, which its sender left for
/// a device to cut, shows by its partial checksum; any other IPv4 packet is
/// fragmented where its sender allows (RFC 1812, section 5.2.6).
fn fit<K: RoutedKey>(
    bytes: &[u8],
    headers: &Headers,
    actions: &Actions,
    checksum: Option<TxChecksum>,
) -> Hop {
    let own_field = usize::from(headers.transport);
    let is_super_frame = headers.protocol == protocol::TCP
        && checksum.is_some_and(|field| usize::from(field.start) == own_field);
    if is_super_frame {
        return match actions.has(Actions::SUPER_FRAMES) {
            true => Hop::Whole(checksum),
            false => Hop::Pieces(actions.segment_mtu),
        };
    }
    let may_fragment = !K::IS_V6
        && Ipv4Header::ref_from_prefix(&bytes[L3..]).is_ok_and(|(h, _)| !h.dont_fragment());
    match may_fragment {
        true => Hop::Pieces(actions.mtu),
        false => Hop::Refused(Refusal::TooBig(actions.mtu), DropReason::TooBig),
    }
}

/// Notices a pod, or the node's kernel, that forwards for others: it answers
/// fragmentation-needed to a super-frame that the switch delivered, which the
/// path itself never carries. Its sender must not hear of it, unless the quoted
/// MTU is below what the segments will have. What the kernel only passes on,
/// anybody may have sent: it speaks for itself by an address of the node.
pub(super) fn notice_forwarder<K: RoutedKey>(
    round: &Round<'_>,
    batch: &Batch,
    index: usize,
    headers: &Headers,
    key: &K,
    lane: &mut Lane,
) -> Option<DropReason> {
    let port = round.snapshot.port(batch.packets()[index].in_port)?;
    if !matches!(port.role, Role::Pod | Role::Host) || headers.part != Part::Whole {
        return None;
    }
    let is_passed_on = || round.snapshot.host(key.source()) != Some(Destination::Host(port.id));
    if port.role == Role::Host && is_passed_on() {
        return None;
    }
    let bytes = round.umem.bytes(batch.head(index));
    let (mtu, quoted) = narrow::too_big::<K>(bytes, headers)?;
    if quoted.len <= port.mtu || quoted.source != key.destination() {
        return None;
    }
    lane.tell(Event::Forwarder {
        port: port.id,
        mtu,
        destination: quoted.destination,
    });
    (mtu == 0 || mtu >= port.segment_mtu).then_some(DropReason::SuperFrameRefused)
}
