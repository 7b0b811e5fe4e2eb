//! What receivers and paths say of the longest packet, read off the packets
//! that say it: the MSS option of a SYN, and fragmentation-needed or
//! packet-too-big.
//!
//! Senders obey by themselves, but a super-frame does not say how its sender
//! wants it cut. For flows that nobody translates, [`Lane::narrowed`] keeps the
//! limit between two addresses in `tables::paths`, and flows that are decided
//! anew obey it. A SYN that leaves the node installs no flow, so that the next
//! packet asks again and hears what the answer said. An ICMP error has all
//! flows ask again, at most once in [`EPOCH_MS`].
//!
//! Flows of a segment know stations, not addresses: there the same things are
//! overheard in frames that pass ([`overhear`]), and each super-frame that has
//! to be cut asks for itself ([`between`]).

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::classify::{Ingress, RoutedKey};
use super::masquerade::tcp_flags;
use super::parse::{Headers, Kind, L3, Parsed, Part};
use super::{Lane, Round, parse};
use crate::frame::Batch;
use crate::snapshot::Role;
use crate::tables::flow::Actions;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::icmpv4::{self, Icmpv4Header};
use crate::wire::icmpv6::{self, Icmpv6Header};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;
use crate::wire::tcp::{self, flags, option::MAX_SEGMENT_SIZE};

/// Least time between two epochs that a lane begins, in milliseconds.
const EPOCH_MS: u32 = 10;

/// What a lane still has to say of narrower paths.
#[derive(Debug, Default)]
pub(super) struct News {
    is_pending: bool,
    told_ms: u32,
}

impl Lane {
    /// Learns from a packet that is forwarded as it is, by `actions`, and makes
    /// those obey what is known. Whether later packets of its flow may get the
    /// same unasked.
    pub(super) fn narrowed<K: RoutedKey>(
        &mut self,
        round: &Round<'_>,
        batch: &Batch,
        (index, headers, key): (usize, &Headers, &K),
        actions: &mut Actions,
    ) -> bool {
        let bytes = round.umem.bytes(batch.head(index));
        let paths = round.connections.paths();
        let (source, destination) = (key.source(), key.destination());
        if headers.protocol != protocol::TCP {
            self.learn::<K>(round, bytes, headers, (destination, actions));
            return true;
        }
        let now_ms = round.millis();
        let tcp_flags = tcp_flags(bytes, headers);
        if tcp_flags & flags::SYN != 0 && is_from_beyond(round, key) {
            let longest = accepted::<K>(bytes, headers).filter(|mtu| *mtu < actions.mtu);
            paths.accept(destination, source, longest, now_ms);
        }
        // What takes super-frames whole needs no cutting.
        if actions.has(Actions::SUPER_FRAMES) {
            return true;
        }
        if let Some(mtu) = paths.limit(source, destination, now_ms) {
            actions.limit(mtu);
        }
        tcp_flags & (flags::SYN | flags::ACK) != flags::SYN
    }

    /// Learns from an ICMP error to somebody on this node.
    fn learn<K: RoutedKey>(
        &mut self,
        round: &Round<'_>,
        bytes: &[u8],
        headers: &Headers,
        (sender, actions): (IpAddr, &Actions),
    ) {
        if headers.part != Part::Whole || actions.leaves_node() {
            return;
        }
        let Some((_, quoted)) = too_big::<K>(bytes, headers) else {
            return;
        };
        let mtu = passes::<K>(bytes, headers).filter(|mtu| *mtu < actions.mtu);
        if let Some(mtu) = mtu.filter(|_| quoted.source == sender) {
            let paths = round.connections.paths();
            self.news.is_pending |= paths.narrow(sender, quoted.destination, mtu, round.millis());
        }
    }

    /// Has flows ask again when a path became narrower.
    pub(super) fn tell_narrowed(&mut self, round: &Round<'_>) {
        let news = &mut self.news;
        if news.is_pending && round.now_ms.wrapping_sub(news.told_ms) >= EPOCH_MS {
            *news = News {
                is_pending: false,
                told_ms: round.now_ms,
            };
            round.connections.paths().begin_epoch();
        }
    }
}

/// Whether a packet does not come from a pod of this node.
fn is_from_beyond<K: RoutedKey>(round: &Round<'_>, key: &K) -> bool {
    match Ingress::of(round.snapshot, key.upper().in_port) {
        Some(Ingress::Port(port)) => port.role != Role::Pod,
        Some(Ingress::Overlay(_)) => true,
        None => false,
    }
}

/// Learns from a frame of a segment to a station of this node, of which `path`
/// bytes may be an IP packet.
#[inline]
pub(super) fn overhear(
    round: &Round<'_>,
    batch: &Batch,
    index: usize,
    (from, path): (Ingress<'_>, u16),
) {
    let bytes = round.umem.bytes(batch.head(index));
    if !says_something(bytes) {
        return;
    }
    let packet = &batch.packets()[index];
    let Some(port) = round.snapshot.port(packet.in_port) else {
        return;
    };
    let is_from_pod =
        matches!(from, Ingress::Port(port) if matches!(port.role, Role::SegmentPod(_)));
    let Parsed { kind, headers, .. } = parse::within(bytes, packet.len as usize, port);
    match kind {
        Kind::V4(key) => heard(round, bytes, (&headers, &key), (is_from_pod, path)),
        Kind::V6(key) => heard(round, bytes, (&headers, &key), (is_from_pod, path)),
        Kind::Bad(_) | Kind::Arp | Kind::Segment(..) => {}
    }
}

/// Whether a frame looks like a SYN, or like an ICMP error about a packet that
/// was too long.
#[inline]
fn says_something(bytes: &[u8]) -> bool {
    let at = |index: usize| bytes.get(index).copied().unwrap_or_default();
    let (protocol, transport) = match ethernet::payload(bytes) {
        Some((EtherType::IPV4, L3)) => (at(L3 + 9), L3 + usize::from(at(L3) & 15) * 4),
        Some((EtherType::IPV6, L3)) => (at(L3 + 6), L3 + ipv6::HEADER_LEN),
        _ => return false,
    };
    match protocol {
        protocol::TCP => at(transport + 13) & flags::SYN != 0,
        protocol::ICMP => {
            let needed = icmpv4::unreachable::FRAGMENTATION_NEEDED;
            (at(transport), at(transport + 1)) == (icmpv4::kind::UNREACHABLE, needed)
        }
        protocol::ICMPV6 => at(transport) == icmpv6::kind::PACKET_TOO_BIG,
        _ => false,
    }
}

#[cold]
fn heard<K: RoutedKey>(
    round: &Round<'_>,
    bytes: &[u8],
    (headers, key): (&Headers, &K),
    (is_from_pod, path): (bool, u16),
) {
    let (paths, now_ms) = (round.connections.paths(), round.millis());
    if headers.part != Part::Whole {
        return;
    }
    if headers.protocol == protocol::TCP {
        // A pod's own port says how long its packets may be.
        if !is_from_pod {
            let longest = accepted::<K>(bytes, headers).filter(|mtu| *mtu < path);
            paths.accept(key.destination(), key.source(), longest, now_ms);
        }
        return;
    }
    let mtu = passes::<K>(bytes, headers).filter(|mtu| *mtu < path);
    if let (Some(mtu), Some((_, quoted))) = (mtu, too_big::<K>(bytes, headers))
        && quoted.source == key.destination()
    {
        paths.narrow(quoted.source, quoted.destination, mtu, now_ms);
    }
}

/// The longest packet between the two whom a frame of a segment names.
pub(super) fn between(round: &Round<'_>, bytes: &[u8]) -> Option<u16> {
    let (source, destination): (IpAddr, IpAddr) = match ethernet::payload(bytes)? {
        (EtherType::IPV4, at) => {
            let (header, _) = Ipv4Header::ref_from_prefix(bytes.get(at..)?).ok()?;
            (header.source().into(), header.destination().into())
        }
        (EtherType::IPV6, at) => {
            let (header, _) = Ipv6Header::ref_from_prefix(bytes.get(at..)?).ok()?;
            (header.source().into(), header.destination().into())
        }
        _ => return None,
    };
    let paths = round.connections.paths();
    paths.limit(source, destination, round.millis())
}

/// Least MTU that is believed: what every link carries (RFC 8200, section 5),
/// or every IPv4 host takes (RFC 791).
const fn least_mtu(is_v6: bool) -> u16 {
    match is_v6 {
        true => 1280,
        false => 576,
    }
}

/// The longest packet that the sender of a SYN accepts, by its MSS option; by
/// the default where it has none (RFC 9293, section 3.7.1). A super-frame does
/// not say how its sender would cut it, and that must not be longer.
pub(super) fn accepted<K: RoutedKey>(bytes: &[u8], headers: &Headers) -> Option<u16> {
    if tcp_flags(bytes, headers) & flags::SYN == 0 {
        return None;
    }
    let transport = bytes.get(usize::from(headers.transport)..)?;
    let said = tcp::options(transport).find(|(kind, _)| *kind == MAX_SEGMENT_SIZE);
    let Some((_, &[high, low])) = said else {
        return Some(least_mtu(K::IS_V6));
    };
    let fixed = if K::IS_V6 { 60 } else { 40 };
    let mtu = u16::from_be_bytes([high, low]).saturating_add(fixed);
    Some(mtu.max(least_mtu(K::IS_V6)))
}

/// What fragmentation-needed or packet-too-big says that passes (RFC 1191, RFC
/// 8201).
pub(super) fn passes<K: RoutedKey>(bytes: &[u8], headers: &Headers) -> Option<u16> {
    let message = bytes.get(usize::from(headers.transport)..)?;
    let &[kind, code, _, _, a, b, c, d, ..] = message else {
        return None;
    };
    let is_too_big = match K::IS_V6 {
        true => kind == icmpv6::kind::PACKET_TOO_BIG && (a, b) == (0, 0),
        false => {
            (kind, code)
                == (
                    icmpv4::kind::UNREACHABLE,
                    icmpv4::unreachable::FRAGMENTATION_NEEDED,
                )
        }
    };
    let mtu = u16::from_be_bytes([c, d]);
    (is_too_big && mtu > 0).then(|| mtu.max(least_mtu(K::IS_V6)))
}

/// The TCP packet that an ICMP error quotes.
pub(super) struct Quoted {
    pub(super) len: u32,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// What fragmentation-needed or packet-too-big says of a TCP packet: the MTU,
/// 0 when it names none, and the packet.
pub(super) fn too_big<K: RoutedKey>(bytes: &[u8], headers: &Headers) -> Option<(u32, Quoted)> {
    let message = bytes.get(usize::from(headers.transport)..)?;
    match (K::IS_V6, headers.protocol) {
        (false, protocol::ICMP) => quoted_v4(message),
        (true, protocol::ICMPV6) => quoted_v6(message),
        _ => None,
    }
}

fn quoted_v4(message: &[u8]) -> Option<(u32, Quoted)> {
    let (icmp, quote) = Icmpv4Header::ref_from_prefix(message).ok()?;
    let (header, _) = Ipv4Header::ref_from_prefix(quote).ok()?;
    let wanted = (
        icmpv4::kind::UNREACHABLE,
        icmpv4::unreachable::FRAGMENTATION_NEEDED,
    );
    let is_tcp = header.version() == 4 && header.protocol == protocol::TCP;
    ((icmp.kind, icmp.code) == wanted && is_tcp).then(|| {
        let quoted = Quoted {
            len: u32::from(header.total_length.get()),
            source: header.source().into(),
            destination: header.destination().into(),
        };
        (u32::from(icmp.sequence.get()), quoted)
    })
}

fn quoted_v6(message: &[u8]) -> Option<(u32, Quoted)> {
    let (icmp, quote) = Icmpv6Header::ref_from_prefix(message).ok()?;
    let (header, _) = Ipv6Header::ref_from_prefix(quote).ok()?;
    let is_tcp = header.version() == 6 && header.next_header == protocol::TCP;
    (icmp.kind == icmpv6::kind::PACKET_TOO_BIG && is_tcp).then(|| {
        let quoted = Quoted {
            len: u32::from(header.payload_length.get()) + 40,
            source: header.source().into(),
            destination: header.destination().into(),
        };
        (icmp.body.get(), quoted)
    })
}
