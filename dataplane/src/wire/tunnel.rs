//! Where a packet's partial checksum is, also inside the sender's own tunnel.
//!
//! A sender that leaves checksums to its device writes the folded
//! pseudo-header sum into the field and nothing else. When the sender itself
//! encapsulates (VXLAN, Geneve, GRE, IP in IP), the *inner* field is the
//! partial one: the outer one, if there is any, was computed from it. A
//! complete checksum that happens to equal the pseudo-header's sum is
//! computed again to the same value, so the test cannot do harm.

use zerocopy::FromBytes;

use super::checksum::{self, pseudo_header};
use super::ethernet::{self, EtherType};
use super::ipv4::Ipv4Header;
use super::ipv6::{self, Ipv6Header};
use super::{protocol, tcp, udp};
use crate::frame::TxChecksum;

/// Network headers that are looked behind: the packet's own and two tunnels.
const MAX_DEPTH: usize = 3;

/// UDP ports of VXLAN (IANA's and Linux's).
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// UDP port of Geneve.
const GENEVE_PORT: u16 = 6081;

/// A partial checksum that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where it is.
    pub field: TxChecksum,
    /// Where the outermost network packet ends, from the frame's start.
    pub end: usize,
    /// Whether it is the outermost transport's and that is TCP.
    pub is_own_tcp: bool,
}

/// The transport behind one network header.
struct Transport<'a> {
    protocol: u8,
    start: usize,
    len: usize,
    addresses: &'a [u8],
}

/// Where the checksum field is, from the transport header's start.
pub const fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(tcp::CHECKSUM_OFFSET),
        protocol::UDP => Some(udp::CHECKSUM_OFFSET),
        _ => None,
    }
}

/// The partial checksum of the transport that begins at `start` of `frame`
/// and is `len` bytes long, of which `frame` may hold only the first;
/// `addresses` are both, as they lie in the network header.
#[inline]
pub fn partial_field(
    frame: &[u8],
    addresses: &[u8],
    protocol: u8,
    start: usize,
    len: usize,
) -> Option<TxChecksum> {
    let offset = checksum_offset(protocol)?;
    let field = frame.get(start + offset..start + offset + 2)?;
    // In ones' complement a length of more than 16 bits is the sum of its halves.
    let len = (len & 0xffff) + (len >> 16);
    let len = (len & 0xffff) + (len >> 16);
    let pseudo = pseudo_header(addresses, protocol, len as u16).fold();
    (field == pseudo.to_be_bytes()).then_some(TxChecksum {
        start: start as u16,
        offset: offset as u16,
    })
}

/// Whether a packet of this protocol, whose transport header and payload are
/// `transport`, may hold another network header that is worth looking at.
#[inline]
pub fn may_encapsulate(protocol: u8, transport: &[u8]) -> bool {
    match protocol {
        protocol::UDP => udp_tunnel(transport).is_some(),
        protocol::GRE | protocol::IPIP | protocol::IPV6 => true,
        _ => false,
    }
}

/// A tunnel over UDP.
enum UdpTunnel {
    Vxlan,
    Geneve,
}

/// Which tunnel a UDP packet belongs to: by its port, and VXLAN on any port by
/// its header too, because people choose ports for it (RFC 7348, section 5:
/// the I flag, a VNI, and zeros).
#[inline]
fn udp_tunnel(transport: &[u8]) -> Option<UdpTunnel> {
    let &[
        _,
        _,
        high,
        low,
        _,
        _,
        _,
        _,
        flags,
        r1,
        r2,
        r3,
        _,
        _,
        _,
        r4,
        ..,
    ] = transport
    else {
        return None;
    };
    match u16::from_be_bytes([high, low]) {
        GENEVE_PORT => Some(UdpTunnel::Geneve),
        port if VXLAN_PORTS.contains(&port) => Some(UdpTunnel::Vxlan),
        _ if (flags, r1, r2, r3, r4) == (0x08, 0, 0, 0, 0) => Some(UdpTunnel::Vxlan),
        _ => None,
    }
}

/// The partial checksum of the packet whose network header of type
/// `ethertype` begins at `at`: its own transport's, or that of one inside.
/// `frame` may hold only the first of the frame's `total` bytes.
pub fn partial_checksum(
    mut frame: &[u8],
    total: usize,
    mut ethertype: EtherType,
    mut at: usize,
) -> Option<Partial> {
    let mut end = 0;
    for depth in 0..MAX_DEPTH {
        let Transport {
            protocol,
            start,
            len,
            addresses,
        } = transport(frame, total, ethertype, at)?;
        if depth == 0 {
            end = start + len;
            // Nothing inside lies in the frame's padding.
            frame = &frame[..end.min(frame.len())];
        }
        if let Some(field) = partial_field(frame, addresses, protocol, start, len) {
            return Some(Partial {
                field,
                end,
                is_own_tcp: depth == 0 && protocol == protocol::TCP,
            });
        }
        (ethertype, at) = inner(frame, protocol, start)?;
    }
    None
}

fn transport(frame: &[u8], total: usize, ethertype: EtherType, at: usize) -> Option<Transport<'_>> {
    let packet = frame.get(at..)?;
    match ethertype {
        EtherType::IPV4 => {
            let (header, _) = Ipv4Header::ref_from_prefix(packet).ok()?;
            let header_len = header.header_len();
            let whole = header.fragment_offset() == 0 && !header.more_fragments();
            if header.version() != 4 || header_len < 20 || !whole {
                return None;
            }
            if checksum::checksum(packet.get(..header_len)?) != 0 {
                return None;
            }
            Some(Transport {
                protocol: header.protocol,
                start: at + header_len,
                len: header
                    .packet_len(total.saturating_sub(at))
                    .checked_sub(header_len)?,
                addresses: &packet[12..20],
            })
        }
        EtherType::IPV6 => {
            let (header, _) = Ipv6Header::ref_from_prefix(packet).ok()?;
            let upper = ipv6::walk(packet).ok()?;
            if header.version() != 6 || upper.fragment.is_some() {
                return None;
            }
            let end = ipv6::HEADER_LEN + usize::from(header.payload_length.get());
            Some(Transport {
                protocol: upper.protocol,
                start: at + upper.offset,
                len: end.checked_sub(upper.offset)?,
                addresses: &packet[8..40],
            })
        }
        _ => None,
    }
}

/// The network header inside a tunnel's packet whose transport begins at
/// `start`.
fn inner(frame: &[u8], protocol: u8, start: usize) -> Option<(EtherType, usize)> {
    let header = frame.get(start..)?;
    match protocol {
        protocol::IPIP => Some((EtherType::IPV4, start)),
        protocol::IPV6 => Some((EtherType::IPV6, start)),
        protocol::GRE => {
            // RFC 2784 and 2890: checksum, key and sequence are optional.
            let flags = *header.first()?;
            if *header.get(1)? & 0x07 != 0 {
                return None;
            }
            let options = [0x80, 0x20, 0x10].iter().filter(|&bit| flags & bit != 0);
            let at = start + 4 + 4 * options.count();
            within(frame, EtherType([*header.get(2)?, *header.get(3)?]), at)
        }
        protocol::UDP => {
            let tunnel = start + udp::HEADER_LEN;
            match udp_tunnel(header)? {
                UdpTunnel::Vxlan => within(frame, EtherType::TRANSPARENT_ETHERNET, tunnel + 8),
                UdpTunnel::Geneve => {
                    let geneve = frame.get(tunnel..tunnel + 8)?;
                    let options = usize::from(geneve[0] & 0x3f) * 4;
                    let ethertype = EtherType([geneve[2], geneve[3]]);
                    within(frame, ethertype, tunnel + 8 + options)
                }
            }
        }
        _ => None,
    }
}

/// Steps over an inner Ethernet header, when there is one.
fn within(frame: &[u8], ethertype: EtherType, at: usize) -> Option<(EtherType, usize)> {
    if ethertype != EtherType::TRANSPARENT_ETHERNET {
        return Some((ethertype, at));
    }
    let (ethertype, payload) = ethernet::payload(frame.get(at..)?)?;
    Some((ethertype, at + payload))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::wire::ethernet::HEADER_LEN as L3;

    /// A TCP packet whose checksum is left to a device, as frame bytes, and
    /// where the checksum's coverage starts.
    fn unfinished(payload: &[u8]) -> (Vec<u8>, usize) {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 0, 1], [192, 168, 0, 2], 64)
            .tcp(1000, 2000, 7, 1000)
            .write(&mut frame, payload)
            .unwrap();
        let start = L3 + 20;
        let len = (frame.len() - start) as u16;
        let pseudo = pseudo_header(&frame[L3 + 12..L3 + 20], protocol::TCP, len).fold();
        frame[start + 16..start + 18].copy_from_slice(&pseudo.to_be_bytes());
        (frame, start)
    }

    fn over_udp(port: u16, tunnel_header: [u8; 8], inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([6; 6], [8; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(50_000, port)
            .write(&mut frame, &[&tunnel_header[..], inner].concat())
            .unwrap();
        frame
    }

    #[test]
    fn the_inner_field_is_found_in_tunnels_over_udp() {
        let (inner, start) = unfinished(b"payload");
        let outer = L3 + 20 + 8 + 8;
        let vxlan = [0x08, 0, 0, 0, 0, 0, 7, 0];
        let policy = [0x88, 0, 0, 9, 0, 0, 7, 0];
        let geneve = [0, 0, 0x65, 0x58, 0, 0, 7, 0];
        for (name, port, header, found) in [
            ("VXLAN, IANA's port", 4789, vxlan, true),
            ("VXLAN, Linux's port", 8472, vxlan, true),
            ("VXLAN with more flags", 4789, policy, true),
            ("VXLAN, a port of one's own", 4790, vxlan, true),
            ("more flags on any port", 4790, policy, false),
            ("Geneve", 6081, geneve, true),
            ("Geneve's header elsewhere", 53, geneve, false),
        ] {
            let frame = over_udp(port, header, &inner);
            let partial = partial_checksum(&frame, frame.len(), EtherType::IPV4, L3);
            assert_eq!(
                partial.map(|partial| usize::from(partial.field.start)),
                found.then_some(outer + start),
                "{name}"
            );
            assert_eq!(
                may_encapsulate(protocol::UDP, &frame[L3 + 20..]),
                found,
                "{name}"
            );
        }
    }

    #[test]
    fn a_finished_inner_checksum_is_left_alone() {
        let mut inner = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 0, 1], [192, 168, 0, 2], 64)
            .tcp(1000, 2000, 7, 1000)
            .write(&mut inner, b"payload")
            .unwrap();
        let frame = over_udp(4790, [0x08, 0, 0, 0, 0, 0, 7, 0], &inner);
        assert_eq!(
            partial_checksum(&frame, frame.len(), EtherType::IPV4, L3),
            None
        );
        for len in 0..frame.len() {
            // Cut off anywhere: nothing found, nothing read outside.
            assert_eq!(
                partial_checksum(&frame[..len], frame.len(), EtherType::IPV4, L3),
                None
            );
        }
    }
}
