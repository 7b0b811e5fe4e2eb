//! First stage: reads the head frame once, into offsets and a key.
//!
//! Everything that depends on the one packet and not on its flow is checked
//! here: the port's MAC guard, lengths, header checksum, options, fragments.
//! What passes is well formed; later stages index by these offsets.

use zerocopy::FromBytes;

use super::plain::Ingress;
use super::{Round, overlay};
use crate::drops::DropReason;
use crate::frame::Batch;
use crate::snapshot::{Location, Network, PortEntry, Role, Snapshot};
use crate::tables::flow::{KeyL2, KeyV4, KeyV6, UpperKey};
use crate::types::{MacAddr, SegmentId};
use crate::umem::Umem;
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::{icmpv4, icmpv6, protocol, tcp, tunnel, udp};

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
    /// Whether a transport checksum may be partial: a whole packet of a port
    /// that has partial checksums.
    pub(super) may_be_partial: bool,
}

impl Headers {
    const NONE: Headers = Headers {
        ip_len: 0,
        transport: 0,
        protocol: 0,
        part: Part::Whole,
        icmp_kind: 255,
        to_group: false,
        may_be_partial: false,
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

/// Parses packet `index` into `parsed`. `ingress` is of the port that the
/// packet before came by, and then of this one's.
#[inline(always)]
pub(super) fn parse(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    ingress: &mut Ingress,
    parsed: &mut Parsed,
) {
    let packet = &batch.packets()[index];
    let (in_port, len) = (packet.in_port, packet.len as usize);
    if in_port != ingress.port() {
        *ingress = Ingress::of(in_port, round.snapshot);
    }
    let bytes = round.umem.bytes(batch.head(index));
    match ingress.read(bytes, len, parsed) {
        true => trim(batch, index, len, parsed),
        false => parse_any(round.umem, batch, index, round.snapshot, parsed),
    }
}

/// The long way, for any packet.
#[inline(never)]
fn parse_any(
    umem: &Umem,
    batch: &mut Batch,
    index: usize,
    snapshot: &Snapshot,
    parsed: &mut Parsed,
) {
    let packet = &batch.packets()[index];
    let Some(port) = snapshot.port(packet.in_port) else {
        return *parsed = Parsed::bad(DropReason::PortRemoved);
    };
    let len = packet.len as usize;
    let done = match port.role {
        Role::Uplink => uplink(umem, batch, index, snapshot, parsed),
        _ => inside(umem.bytes(batch.head(index)), len, port, snapshot, parsed).map(|()| len),
    };
    match done {
        Ok(len) => trim(batch, index, len, parsed),
        Err(reason) => *parsed = Parsed::bad(reason),
    }
}

/// Parses a packet of `len` bytes, whose head frame is `bytes`, of a port of
/// this node.
pub(super) fn inside(
    bytes: &[u8],
    len: usize,
    port: &PortEntry,
    snapshot: &Snapshot,
    parsed: &mut Parsed,
) -> Result<(), DropReason> {
    let seen = Seen {
        bytes,
        len,
        port,
        may_be_partial: port.partial_checksums,
        in_port: port.id.0,
    };
    match (port.role, snapshot.underlay.segment) {
        (Role::SegmentPod(segment), _) | (Role::Host, Some(segment)) => {
            seen.segment(segment, parsed)
        }
        (Role::Pod | Role::Host | Role::Uplink, _) => seen.routed(snapshot, parsed),
    }
}

/// The IP packet in a frame of a segment of `len` bytes, whoever it is for;
/// [`Kind::Bad`] where there is none behind the Ethernet header.
pub(super) fn within(bytes: &[u8], len: usize, port: &PortEntry) -> Parsed {
    let mut parsed = Parsed::NONE;
    let seen = Seen {
        bytes,
        len,
        port,
        may_be_partial: false,
        in_port: port.id.0,
    };
    let found = match ethernet::payload(bytes) {
        Some((EtherType::IPV4, L3)) => seen.v4(false, &mut parsed),
        Some((EtherType::IPV6, L3)) => seen.v6(false, &mut parsed),
        _ => Ok(()),
    };
    found.map_or_else(Parsed::bad, |()| parsed)
}

/// Parses a packet of the uplink, out of the overlay when it came through
/// that; gives its length.
#[inline(never)]
fn uplink(
    umem: &Umem,
    batch: &mut Batch,
    index: usize,
    snapshot: &Snapshot,
    parsed: &mut Parsed,
) -> Result<usize, DropReason> {
    let underlay = &snapshot.underlay;
    let unwrapped = overlay::unwrap(umem, batch, index, underlay)?;
    let packet = &batch.packets()[index];
    let port = snapshot.port(packet.in_port);
    let port = port.ok_or(DropReason::PortRemoved)?;
    let location = match unwrapped {
        Some(unwrapped) => Location::Vtep(unwrapped.vtep),
        None => Location::Port(port.id),
    };
    let seen = Seen {
        bytes: umem.bytes(batch.head(index)),
        len: packet.len as usize,
        port,
        may_be_partial: port.partial_checksums || packet.is_merged,
        in_port: location.to_key(),
    };
    match (unwrapped.map(|u| u.network), underlay.segment) {
        (Some(Network::Segment(segment)), _) => seen.segment(segment, parsed)?,
        (Some(Network::Routed), _) => seen.addressed_to(underlay.vtep_mac, parsed)?,
        (None, Some(segment)) if seen.bytes.get(..6) != Some(&underlay.mac.0) => {
            seen.segment(segment, parsed)?;
        }
        (None, _) => seen.addressed_to(underlay.mac, parsed)?,
    }
    Ok(seen.len)
}

/// Cuts padding off a packet of `len` bytes of frame.
#[inline]
fn trim(batch: &mut Batch, index: usize, len: usize, parsed: &mut Parsed) {
    // Short frames come padded to 60 bytes; what follows the IP packet is not
    // part of it.
    let is_ip = matches!(parsed.kind, Kind::V4(_) | Kind::V6(_));
    let frame_len = parsed.headers.ip_len as usize + L3;
    if is_ip && len > frame_len && !batch.trim(index, frame_len) {
        *parsed = Parsed::bad(DropReason::BadLength);
    }
}

/// A packet as parse sees it: its head frame, its whole length, its port.
#[derive(Clone, Copy)]
struct Seen<'a> {
    bytes: &'a [u8],
    len: usize,
    port: &'a PortEntry,
    /// Whether checksums may be partial.
    may_be_partial: bool,
    /// Where it came from, as the key has it.
    in_port: u16,
}

impl Seen<'_> {
    fn segment(&self, segment: SegmentId, parsed: &mut Parsed) -> Result<(), DropReason> {
        let bytes = self.bytes.get(..L3).ok_or(DropReason::Runt)?;
        let mut addresses = [0; 12];
        addresses.copy_from_slice(&bytes[..12]);
        let key = KeyL2 {
            addresses,
            in_port: self.in_port,
            reserved: 0,
        };
        parsed.kind = Kind::Segment(segment, key);
        parsed.headers = Headers {
            to_group: bytes[0] & 1 == 1,
            may_be_partial: self.may_be_partial,
            ..Headers::NONE
        };
        parsed.is_cacheable = true;
        Ok(())
    }

    #[inline]
    fn routed(&self, snapshot: &Snapshot, parsed: &mut Parsed) -> Result<(), DropReason> {
        let (header, _) =
            EthernetHeader::ref_from_prefix(self.bytes).map_err(|_| DropReason::Runt)?;
        if header.source != self.port.mac {
            return Err(DropReason::SpoofedMac);
        }
        self.network(header, snapshot.gateway.mac, parsed)
    }

    /// A packet of another node, to one of this node's own MAC addresses.
    fn addressed_to(&self, own: MacAddr, parsed: &mut Parsed) -> Result<(), DropReason> {
        let (header, _) =
            EthernetHeader::ref_from_prefix(self.bytes).map_err(|_| DropReason::Runt)?;
        self.network(header, own, parsed)
    }

    #[inline(always)]
    fn network(
        &self,
        header: &EthernetHeader,
        own: MacAddr,
        parsed: &mut Parsed,
    ) -> Result<(), DropReason> {
        let to_group = header.destination.is_multicast();
        if !to_group && header.destination != own {
            return Err(DropReason::WrongMac);
        }
        match header.ethertype {
            EtherType::IPV4 => self.v4(to_group, parsed),
            EtherType::IPV6 => self.v6(to_group, parsed),
            EtherType::ARP => {
                parsed.kind = Kind::Arp;
                parsed.is_cacheable = false;
                Ok(())
            }
            _ => Err(DropReason::UnknownEthertype),
        }
    }

    #[inline]
    fn v4(&self, to_group: bool, parsed: &mut Parsed) -> Result<(), DropReason> {
        let bytes = self.bytes;
        let header = bytes
            .get(L3..L3 + ipv4::HEADER_LEN)
            .ok_or(DropReason::Runt)?;
        let view = Ipv4Header::ref_from_bytes(header).map_err(|_| DropReason::Runt)?;
        let header_len = view.header_len();
        if view.version() != 4 || header_len < ipv4::HEADER_LEN {
            return Err(DropReason::BadHeader);
        }
        let ip_len = view.packet_len(self.len.saturating_sub(L3));
        if ip_len < header_len || ip_len + L3 > self.len {
            return Err(DropReason::BadLength);
        }
        check_v4_header(bytes, header, header_len)?;
        let payload_len = ip_len - header_len;
        let part = v4_part(view, payload_len)?;
        let transport = L3 + header_len;
        let (upper, icmp_kind) = self.upper_key(transport, payload_len, view.protocol, part)?;
        let mut addresses = [0; 8];
        addresses.copy_from_slice(&header[12..20]);
        if ip_len > usize::from(u16::MAX) && !self.is_longest_super_frame(transport, ip_len) {
            return Err(DropReason::BadLength);
        }
        parsed.kind = Kind::V4(KeyV4 { addresses, upper });
        parsed.headers = Headers {
            ip_len: ip_len as u32,
            transport: transport as u16,
            protocol: view.protocol,
            part,
            icmp_kind,
            to_group,
            may_be_partial: self.may_be_partial && part == Part::Whole,
        };
        let is_plain =
            view.protocol != protocol::ICMP || (is_echo_v4(icmp_kind) && part == Part::Whole);
        parsed.is_cacheable = is_plain && !to_group;
        Ok(())
    }

    /// Whether a packet that is too long for its length field is one that its
    /// sender left to a device to cut: nobody could make anything else of it.
    #[cold]
    fn is_longest_super_frame(&self, transport: usize, ip_len: usize) -> bool {
        let (addresses, len) = (&self.bytes[L3 + 12..L3 + 20], ip_len + L3 - transport);
        self.port.partial_checksums
            && tunnel::partial_field(self.bytes, addresses, protocol::TCP, transport, len).is_some()
    }

    #[inline]
    fn v6(&self, to_group: bool, parsed: &mut Parsed) -> Result<(), DropReason> {
        let bytes = self.bytes;
        let header = bytes
            .get(L3..L3 + ipv6::HEADER_LEN)
            .ok_or(DropReason::Runt)?;
        let view = Ipv6Header::ref_from_bytes(header).map_err(|_| DropReason::Runt)?;
        if view.version() != 6 {
            return Err(DropReason::BadHeader);
        }
        let ip_len = ipv6::HEADER_LEN + usize::from(view.payload_length.get());
        if ip_len + L3 > self.len {
            return Err(DropReason::BadLength);
        }
        let seen = bytes.len().min(L3 + ip_len);
        // The chain of headers must be whole in the first fragment (RFC 7112);
        // where it is cut off, nobody behind could filter it either.
        let upper = ipv6::walk(&bytes[L3..seen]).map_err(|_| DropReason::BadExtension)?;
        let payload_len = ip_len - upper.offset;
        let part = match upper.fragment {
            None => Part::Whole,
            Some(f) => part(upper.protocol, f.offset, f.more, payload_len)?,
        };
        let transport = L3 + upper.offset;
        let (key, icmp_kind) = self.upper_key(transport, payload_len, upper.protocol, part)?;
        let mut addresses = [0; 32];
        addresses.copy_from_slice(&header[8..40]);
        let to_multicast = addresses[16] == 0xff;
        parsed.kind = Kind::V6(KeyV6 {
            addresses,
            upper: key,
        });
        parsed.headers = Headers {
            ip_len: ip_len as u32,
            transport: transport as u16,
            protocol: upper.protocol,
            part,
            icmp_kind,
            to_group,
            may_be_partial: self.may_be_partial && part == Part::Whole,
        };
        let is_plain =
            upper.protocol != protocol::ICMPV6 || (is_echo_v6(icmp_kind) && part == Part::Whole);
        parsed.is_cacheable = is_plain && !to_group && !to_multicast;
        Ok(())
    }

    /// The transport's share of the key, and the ICMP type. A whole packet's
    /// transport header must be there; a fragment is known by addresses alone,
    /// so that all pieces of a datagram share one flow.
    #[inline(always)]
    fn upper_key(
        &self,
        transport: usize,
        payload_len: usize,
        protocol: u8,
        part: Part,
    ) -> Result<(UpperKey, u8), DropReason> {
        let mut upper = UpperKey {
            ports: [0; 4],
            in_port: self.in_port,
            protocol,
            is_fragment: u8::from(part != Part::Whole),
        };
        let need = match (protocol, part) {
            (_, Part::Later) => return Ok((upper, 255)),
            (protocol::TCP, _) => tcp::HEADER_LEN,
            (protocol::SCTP | protocol::DCCP, Part::Whole) => 12,
            (protocol::ICMP | protocol::ICMPV6, _) => 8,
            (protocol, _) if protocol::has_ports(protocol) => 8,
            _ => return Ok((upper, 255)),
        };
        let header = match self.bytes.get(transport..transport + need) {
            Some(header) if payload_len >= need => header,
            _ => return Err(DropReason::Runt),
        };
        if matches!(protocol, protocol::ICMP | protocol::ICMPV6) {
            if part == Part::Whole {
                upper.ports = [header[4], header[5], header[0], 0];
            }
            return Ok((upper, header[0]));
        }
        if part == Part::Whole {
            // A TCP header of less than five words (RFC 9293, section 3.1).
            if protocol == protocol::TCP && header[12] < tcp::SHORTEST_OFFSET {
                return Err(DropReason::BadHeader);
            }
            upper.ports = [header[0], header[1], header[2], header[3]];
        }
        Ok((upper, 255))
    }
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
/// empty, and a TCP header may not be split: no link is that narrow (RFC 791
/// has 68 bytes at least), so it is done to hide flags or the checksum.
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
    let odd = more && (payload_len == 0 || !payload_len.is_multiple_of(8));
    let too_far = offset + payload_len > usize::from(u16::MAX);
    let hidden = match protocol {
        protocol::TCP => offset == 8 || offset == 0 && payload_len < tcp::HEADER_LEN,
        protocol::UDP => offset == 0 && payload_len < udp::HEADER_LEN,
        _ => false,
    };
    match () {
        () if odd || too_far || hidden => Err(DropReason::BadFragment),
        () if offset == 0 => Ok(Part::First),
        () => Ok(Part::Later),
    }
}

fn is_echo_v4(kind: u8) -> bool {
    matches!(kind, icmpv4::kind::ECHO_REQUEST | icmpv4::kind::ECHO_REPLY)
}

fn is_echo_v6(kind: u8) -> bool {
    matches!(kind, icmpv6::kind::ECHO_REQUEST | icmpv6::kind::ECHO_REPLY)
}
