//! First stage: reads the head frame once, into offsets and a key.
//!
//! Everything that depends on the one packet and not on its flow is checked
//! here: the port's MAC guard, lengths, header checksum, options, fragments.
//! What passes is well formed; later stages index by these offsets.

use zerocopy::FromBytes;

use crate::drops::DropReason;
use crate::frame::Batch;
use crate::snapshot::{PortEntry, Role, Snapshot};
use crate::tables::flow::{KeyL2, KeyV4, KeyV6, UpperKey};
use crate::types::{PortId, SegmentId};
use crate::umem::Umem;
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header, WalkError};
use crate::wire::{icmpv4, icmpv6, protocol, tcp, udp};

/// Where the network header begins in a routed packet.
pub(super) const L3: usize = ethernet::HEADER_LEN;

/// Which part of a datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// A later fragment: no transport header.
    Later,
}

/// What parse found in an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    /// Bytes of the IP packet.
    pub(super) ip_len: u32,
    /// Where the transport begins, from the Ethernet header.
    pub(super) transport: u16,
    /// Transport protocol.
    pub(super) protocol: u8,
    /// Which part of its datagram it is.
    pub(super) part: Part,
    /// ICMP type; 255 for other protocols.
    pub(super) icmp_kind: u8,
    /// Whether the frame's destination is a group address.
    pub(super) to_group: bool,
}

impl Headers {
    const NONE: Headers = Headers {
        ip_len: 0,
        transport: 0,
        protocol: 0,
        part: Part::Whole,
        icmp_kind: 255,
        to_group: false,
    };

    /// Bytes from the transport header on.
    pub(super) fn transport_len(&self) -> usize {
        self.ip_len as usize + L3 - usize::from(self.transport)
    }
}

/// What kind of packet it is, with the key that its flow is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Dropped by parse.
    Bad(DropReason),
    /// Routed IPv4.
    V4(KeyV4),
    /// Routed IPv6.
    V6(KeyV6),
    /// ARP on a routed port.
    Arp,
    /// Any frame of a layer-2 segment.
    Segment(SegmentId, KeyL2),
}

/// A packet as parse leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) kind: Kind,
    pub(super) headers: Headers,
    /// Whether its flow may stand in the flow table.
    pub(super) is_cacheable: bool,
}

impl Parsed {
    pub(super) const NONE: Parsed = Parsed::bad(DropReason::Runt);

    const fn bad(reason: DropReason) -> Parsed {
        Parsed {
            kind: Kind::Bad(reason),
            headers: Headers::NONE,
            is_cacheable: false,
        }
    }
}

/// Parses packet `index`.
#[inline]
pub(super) fn parse(umem: &Umem, batch: &mut Batch, index: usize, snapshot: &Snapshot) -> Parsed {
    let packet = &batch.packets()[index];
    let (in_port, len) = (packet.in_port, packet.len);
    let Some(port) = snapshot.port(in_port) else {
        return Parsed::bad(DropReason::PortRemoved);
    };
    let bytes = umem.bytes(batch.head(index));
    let parsed = match port.role {
        Role::SegmentPod(segment) => parse_segment(bytes, in_port, segment),
        Role::Pod | Role::Host => parse_routed(bytes, len, in_port, port, snapshot),
    };
    match parsed {
        Ok(parsed) => {
            let frame_len = parsed.headers.ip_len as usize + L3;
            let is_ip = matches!(parsed.kind, Kind::V4(_) | Kind::V6(_));
            if is_ip && (len as usize) > frame_len && !batch.trim(index, frame_len) {
                return Parsed::bad(DropReason::BadLength);
            }
            parsed
        }
        Err(reason) => Parsed::bad(reason),
    }
}

fn parse_segment(bytes: &[u8], in_port: PortId, segment: SegmentId) -> Result<Parsed, DropReason> {
    let (header, _) = EthernetHeader::ref_from_prefix(bytes).map_err(|_| DropReason::Runt)?;
    let mut addresses = [0; 12];
    addresses.copy_from_slice(&bytes[..12]);
    let key = KeyL2 {
        addresses,
        in_port: in_port.0,
        reserved: 0,
    };
    Ok(Parsed {
        kind: Kind::Segment(segment, key),
        headers: Headers {
            to_group: header.destination.is_multicast(),
            ..Headers::NONE
        },
        is_cacheable: true,
    })
}

#[inline]
fn parse_routed(
    bytes: &[u8],
    len: u32,
    in_port: PortId,
    port: &PortEntry,
    snapshot: &Snapshot,
) -> Result<Parsed, DropReason> {
    let (header, _) = EthernetHeader::ref_from_prefix(bytes).map_err(|_| DropReason::Runt)?;
    if header.source != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    let to_group = header.destination.is_multicast();
    if !to_group && header.destination != snapshot.gateway.mac {
        return Err(DropReason::WrongMac);
    }
    match header.ethertype {
        EtherType::IPV4 => parse_v4(bytes, len, in_port, to_group),
        EtherType::IPV6 => parse_v6(bytes, len, in_port, to_group),
        EtherType::ARP => Ok(Parsed {
            kind: Kind::Arp,
            headers: Headers {
                to_group,
                ..Headers::NONE
            },
            is_cacheable: false,
        }),
        _ => Err(DropReason::UnknownEthertype),
    }
}

#[inline]
fn parse_v4(bytes: &[u8], len: u32, in_port: PortId, to_group: bool) -> Result<Parsed, DropReason> {
    let Some(header) = bytes.get(L3..L3 + ipv4::HEADER_LEN) else {
        return Err(DropReason::Runt);
    };
    let view = Ipv4Header::ref_from_bytes(header).map_err(|_| DropReason::Runt)?;
    let header_len = view.header_len();
    if view.version() != 4 || header_len < ipv4::HEADER_LEN {
        return Err(DropReason::BadHeader);
    }
    let ip_len = usize::from(view.total_length.get());
    if ip_len < header_len || ip_len + L3 > len as usize {
        return Err(DropReason::BadLength);
    }
    check_v4_header(bytes, header, header_len)?;
    let payload_len = ip_len - header_len;
    let part = v4_part(view, payload_len)?;
    let mut addresses = [0; 8];
    addresses.copy_from_slice(&header[12..20]);
    let transport = L3 + header_len;
    let (upper, icmp_kind) =
        upper_key(bytes, transport, payload_len, view.protocol, part, in_port)?;
    Ok(Parsed {
        kind: Kind::V4(KeyV4 { addresses, upper }),
        headers: Headers {
            ip_len: ip_len as u32,
            transport: transport as u16,
            protocol: view.protocol,
            part,
            icmp_kind,
            to_group,
        },
        is_cacheable: !to_group
            && (view.protocol != protocol::ICMP || is_echo_v4(icmp_kind) && part == Part::Whole),
    })
}

#[inline(always)]
fn check_v4_header(bytes: &[u8], header: &[u8], header_len: usize) -> Result<(), DropReason> {
    use crate::wire::checksum::checksum;
    if header_len == ipv4::HEADER_LEN {
        return match checksum(header) {
            0 => Ok(()),
            _ => Err(DropReason::BadChecksum),
        };
    }
    let header = bytes.get(L3..L3 + header_len).ok_or(DropReason::Runt)?;
    if checksum(header) != 0 {
        return Err(DropReason::BadChecksum);
    }
    match ipv4::options_allowed(&header[ipv4::HEADER_LEN..]) {
        true => Ok(()),
        false => Err(DropReason::BadOptions),
    }
}

/// Which part of its datagram an IPv4 packet is, with the checks of RFC 1858:
/// no fragment may reach beyond 65535 bytes, none but the last may be odd or
/// empty, and a TCP header may not be split so that flags hide.
#[inline(always)]
fn v4_part(header: &Ipv4Header, payload_len: usize) -> Result<Part, DropReason> {
    if header.flags_fragment.get() & !ipv4::DONT_FRAGMENT == 0 {
        return Ok(Part::Whole);
    }
    // The reserved bit must be 0 (RFC 791, section 3.1); forwarding it is harmless.
    part(
        header.protocol,
        header.fragment_offset(),
        header.more_fragments(),
        payload_len,
    )
}

fn part(protocol: u8, offset: usize, more: bool, payload_len: usize) -> Result<Part, DropReason> {
    if offset == 0 && !more {
        return Ok(Part::Whole);
    }
    let odd = more && (payload_len == 0 || payload_len % 8 != 0);
    let too_far = offset + payload_len > usize::from(u16::MAX);
    let hidden = match protocol {
        protocol::TCP => offset == 8 || offset == 0 && payload_len < 16,
        protocol::UDP => offset == 0 && payload_len < udp::HEADER_LEN,
        _ => false,
    };
    match () {
        () if odd || too_far || hidden => Err(DropReason::BadFragment),
        () if offset == 0 => Ok(Part::First),
        () => Ok(Part::Later),
    }
}

#[inline]
fn parse_v6(bytes: &[u8], len: u32, in_port: PortId, to_group: bool) -> Result<Parsed, DropReason> {
    let Some(header) = bytes.get(L3..L3 + ipv6::HEADER_LEN) else {
        return Err(DropReason::Runt);
    };
    let view = Ipv6Header::ref_from_bytes(header).map_err(|_| DropReason::Runt)?;
    if view.version() != 6 {
        return Err(DropReason::BadHeader);
    }
    let ip_len = ipv6::HEADER_LEN + usize::from(view.payload_length.get());
    if ip_len + L3 > len as usize {
        return Err(DropReason::BadLength);
    }
    let seen = bytes.len().min(L3 + ip_len);
    let upper = ipv6::walk(&bytes[L3..seen]).map_err(|error| match error {
        // The chain of headers must be whole in the first fragment (RFC 7112);
        // where it is cut off, nobody behind could filter it either.
        WalkError::Truncated | WalkError::Refused => DropReason::BadExtension,
    })?;
    let payload_len = ip_len
        .checked_sub(upper.offset)
        .ok_or(DropReason::BadExtension)?;
    let part = match upper.fragment {
        None => Part::Whole,
        Some(f) => part(upper.protocol, f.offset, f.more, payload_len)?,
    };
    let mut addresses = [0; 32];
    addresses.copy_from_slice(&header[8..40]);
    let transport = L3 + upper.offset;
    let (key, icmp_kind) = upper_key(bytes, transport, payload_len, upper.protocol, part, in_port)?;
    let to_multicast = addresses[16] == 0xff;
    Ok(Parsed {
        kind: Kind::V6(KeyV6 {
            addresses,
            upper: key,
        }),
        headers: Headers {
            ip_len: ip_len as u32,
            transport: transport as u16,
            protocol: upper.protocol,
            part,
            icmp_kind,
            to_group,
        },
        is_cacheable: !to_group
            && !to_multicast
            && (upper.protocol != protocol::ICMPV6 || is_echo_v6(icmp_kind) && part == Part::Whole),
    })
}

fn is_echo_v4(kind: u8) -> bool {
    matches!(kind, icmpv4::kind::ECHO_REQUEST | icmpv4::kind::ECHO_REPLY)
}

fn is_echo_v6(kind: u8) -> bool {
    matches!(kind, icmpv6::kind::ECHO_REQUEST | icmpv6::kind::ECHO_REPLY)
}

/// The transport's share of the key, and the ICMP type. A whole packet's
/// transport header must be there; a fragment is known by addresses alone, so
/// that all pieces of a datagram share one flow.
#[inline(always)]
fn upper_key(
    bytes: &[u8],
    transport: usize,
    payload_len: usize,
    protocol: u8,
    part: Part,
    in_port: PortId,
) -> Result<(UpperKey, u8), DropReason> {
    let mut upper = UpperKey {
        ports: [0; 4],
        in_port: in_port.0,
        protocol,
        is_fragment: u8::from(part != Part::Whole),
    };
    let need = match protocol {
        _ if part == Part::Later => return Ok((upper, 255)),
        protocol::TCP => tcp::HEADER_LEN,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        protocol::SCTP | protocol::DCCP => 12,
        protocol::UDP_LITE => 8,
        _ => return Ok((upper, 255)),
    };
    // A first fragment of TCP may end within the header (RFC 1858 asks for 16).
    let need = if part == Part::First { 8 } else { need };
    let header = match bytes.get(transport..transport + need) {
        Some(header) if payload_len >= need => header,
        _ => return Err(DropReason::Runt),
    };
    if protocol == protocol::TCP && part == Part::Whole && header[12] < 0x50 {
        return Err(DropReason::BadHeader);
    }
    let is_icmp = matches!(protocol, protocol::ICMP | protocol::ICMPV6);
    if part == Part::Whole {
        upper.ports = match is_icmp {
            false => [header[0], header[1], header[2], header[3]],
            true => [header[4], header[5], header[0], 0],
        };
    }
    Ok((upper, if is_icmp { header[0] } else { 255 }))
}
