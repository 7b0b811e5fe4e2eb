//! The straight way through parse: a whole TCP or UDP packet, of a port on
//! the routed network to the gateway, with neither IPv4 options nor extension
//! headers.
//!
//! Nearly all packets are so. What every packet of one port has in common is
//! compared as one word, and the headers are read through an array, whose
//! length is checked once. What is refused here goes the long way through
//! [`super::parse`], which alone gives reasons; both leave the same behind.

use super::parse::{Headers, Kind, L3, Parsed, Part};
use crate::snapshot::{Role, Snapshot};
use crate::tables::flow::{KeyV4, KeyV6, UpperKey};
use crate::types::PortId;
use crate::wire::checksum::checksum;
use crate::wire::ethernet::EtherType;
use crate::wire::{ipv4, ipv6, protocol, tcp, udp};

/// Headers of the shortest packets that go this way.
const UDP_V4: usize = L3 + ipv4::HEADER_LEN + udp::HEADER_LEN;
const UDP_V6: usize = L3 + ipv6::HEADER_LEN + udp::HEADER_LEN;

/// Bits of the first 16 bytes that tell: both MAC addresses, the EtherType,
/// and the version with, for IPv4, the header's length.
const TELLING_V4: u128 = first_bytes([0xff; 14], 0xff);
const TELLING_V6: u128 = first_bytes([0xff; 14], 0xf0);

/// What the packets of one port have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ingress {
    port: PortId,
    v4: u128,
    v6: u128,
    is_routed: bool,
    may_be_partial: bool,
}

impl Ingress {
    /// Of a port, which may be one that is not there.
    pub(super) fn of(id: PortId, snapshot: &Snapshot) -> Ingress {
        let port = snapshot.port(id);
        let mut ethernet = [0; 14];
        ethernet[..6].copy_from_slice(&snapshot.gateway.mac.0);
        ethernet[6..12].copy_from_slice(&port.map_or([0; 6], |port| port.mac.0));
        let mut first = |ethertype: EtherType, version| {
            ethernet[12..].copy_from_slice(&ethertype.0);
            first_bytes(ethernet, version)
        };
        let is_routed = match port.map(|port| port.role) {
            Some(Role::Pod) => true,
            Some(Role::Host) => snapshot.underlay.segment.is_none(),
            Some(Role::SegmentPod(_) | Role::Uplink) | None => false,
        };
        Ingress {
            port: id,
            v4: first(EtherType::IPV4, 0x45),
            v6: first(EtherType::IPV6, 0x60),
            is_routed,
            may_be_partial: port.is_some_and(|port| port.partial_checksums),
        }
    }

    /// Whose it is.
    #[inline(always)]
    pub(super) fn port(&self) -> PortId {
        self.port
    }

    /// Reads a packet of `len` bytes whose head frame is `bytes`. `false` when
    /// it is to go the long way; `parsed` is then as it was.
    #[inline(always)]
    pub(super) fn read(&self, bytes: &[u8], len: usize, parsed: &mut Parsed) -> bool {
        let Some(first) = bytes.first_chunk::<16>() else {
            return false;
        };
        let first = u128::from_ne_bytes(*first);
        if (first ^ self.v4) & TELLING_V4 == 0 {
            self.is_routed && self.v4(bytes, len, parsed)
        } else if (first ^ self.v6) & TELLING_V6 == 0 {
            self.is_routed && self.v6(bytes, len, parsed)
        } else {
            false
        }
    }

    #[inline(always)]
    fn v4(&self, bytes: &[u8], len: usize, parsed: &mut Parsed) -> bool {
        let Some(head) = bytes.first_chunk::<UDP_V4>() else {
            return false;
        };
        let ip_len = usize::from(u16::from_be_bytes([head[16], head[17]]));
        let flags = u16::from_be_bytes([head[20], head[21]]);
        let protocol = head[23];
        let transport = L3 + ipv4::HEADER_LEN;
        let is_plain = flags & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET) == 0
            && ip_len + L3 <= len
            && checksum(&head[L3..L3 + ipv4::HEADER_LEN]) == 0
            && has_transport(protocol, bytes, transport, ip_len + L3);
        if is_plain {
            let mut addresses = [0; 8];
            addresses.copy_from_slice(&head[26..34]);
            let ports = [head[34], head[35], head[36], head[37]];
            let upper = self.upper(ports, protocol);
            parsed.kind = Kind::V4(KeyV4 { addresses, upper });
            parsed.headers = self.headers(ip_len, transport, protocol);
            parsed.is_cacheable = true;
        }
        is_plain
    }

    #[inline(always)]
    fn v6(&self, bytes: &[u8], len: usize, parsed: &mut Parsed) -> bool {
        let Some(head) = bytes.first_chunk::<UDP_V6>() else {
            return false;
        };
        let ip_len = ipv6::HEADER_LEN + usize::from(u16::from_be_bytes([head[18], head[19]]));
        let protocol = head[20];
        let transport = L3 + ipv6::HEADER_LEN;
        let to_multicast = head[38] == 0xff;
        let is_plain = !to_multicast
            && ip_len + L3 <= len
            && has_transport(protocol, bytes, transport, ip_len + L3);
        if is_plain {
            let mut addresses = [0; 32];
            addresses.copy_from_slice(&head[22..54]);
            let ports = [head[54], head[55], head[56], head[57]];
            let upper = self.upper(ports, protocol);
            parsed.kind = Kind::V6(KeyV6 { addresses, upper });
            parsed.headers = self.headers(ip_len, transport, protocol);
            parsed.is_cacheable = true;
        }
        is_plain
    }

    #[inline(always)]
    fn upper(&self, ports: [u8; 4], protocol: u8) -> UpperKey {
        UpperKey::new(ports, self.port.0, protocol, false)
    }

    #[inline(always)]
    fn headers(&self, ip_len: usize, transport: usize, protocol: u8) -> Headers {
        Headers {
            ip_len: ip_len as u32,
            transport: transport as u16,
            protocol,
            part: Part::Whole,
            icmp_kind: 255,
            to_group: false,
            may_be_partial: self.may_be_partial,
        }
    }
}

/// Whether a UDP or TCP header begins at `transport`, whole in the head frame
/// and before the IP packet's `end`.
#[inline(always)]
fn has_transport(protocol: u8, bytes: &[u8], transport: usize, end: usize) -> bool {
    match protocol {
        protocol::UDP => end >= transport + udp::HEADER_LEN,
        protocol::TCP => {
            let need = transport + tcp::HEADER_LEN;
            end >= need && bytes.len() >= need && bytes[transport + 12] >= tcp::SHORTEST_OFFSET
        }
        _ => false,
    }
}

/// Fourteen bytes and the one behind them, as they lie in a frame; the
/// sixteenth is 0.
const fn first_bytes(ethernet: [u8; 14], version: u8) -> u128 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = ethernet;
    u128::from_ne_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, version, 0])
}
