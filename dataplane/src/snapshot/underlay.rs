//! The network between nodes: neighbours, remote ends of the overlay, and this
//! node's own end.
//!
//! Control serialises the outer headers of a VTEP once; a lane copies them
//! before the packet and patches what differs from packet to packet.
//!
//! ```text
//! | Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | VXLAN 8 |  then the inner frame
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

use super::{AddressMap, RouteTable};
use crate::types::{MacAddr, NextHopId, PortId, SegmentId, Vni, VtepId};
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::Ipv6Header;
use crate::wire::udp::UdpHeader;
use crate::wire::{protocol, vxlan};

/// Hops that outer packets start with.
const OUTER_HOPS: u8 = 64;

/// A neighbour on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// Port it is reached by: the uplink.
    pub port: PortId,
    /// Its MAC address; `None` until the kernel has resolved it. Packets wait
    /// for it, a few and for a moment.
    pub mac: Option<MacAddr>,
    /// Longest IP packet on the way there.
    pub mtu: u32,
}

/// The remote end of the overlay in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vtep {
    /// Its address on the underlay.
    pub address: IpAddr,
    /// The network.
    pub vni: Vni,
    /// MAC that inner frames of the routed network are addressed to. Without
    /// meaning in a segment.
    pub mac: MacAddr,
    /// Longest inner IP packet.
    pub mtu: u32,
    /// The neighbour that outer packets go to.
    pub next_hop: NextHopId,
    /// What stands before each inner frame.
    pub outer: OuterHeader,
}

/// From where to where outer packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterPath {
    /// MAC of the uplink.
    pub source_mac: MacAddr,
    /// MAC of the next hop; [`MacAddr::ZERO`] while it is unknown.
    pub destination_mac: MacAddr,
    /// This node's address, of the same family as the remote one.
    pub source: IpAddr,
    /// The remote end's address.
    pub destination: IpAddr,
}

/// Outer headers, serialised. Lengths, the IPv4 identification, DSCP and ECN,
/// the UDP source port and checksum are zero; the IPv4 header checksum is
/// right for that state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OuterHeader {
    bytes: [u8; OuterHeader::LEN_V6],
    is_v6: bool,
}

impl OuterHeader {
    /// Bytes over IPv4.
    pub const LEN_V4: usize = 50;
    /// Bytes over IPv6.
    pub const LEN_V6: usize = 70;

    /// Serialises; `None` when the addresses are of different families.
    pub fn new(path: &OuterPath, vxlan_port: u16, vni: Vni) -> Option<OuterHeader> {
        let mut bytes = [0; OuterHeader::LEN_V6];
        let (network, is_v6) = match (path.source, path.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (network_v4(source, destination), false)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (network_v6(source, destination), true)
            }
            _ => return None,
        };
        let ethernet = EthernetHeader {
            destination: path.destination_mac,
            source: path.source_mac,
            ethertype: match is_v6 {
                true => EtherType::IPV6,
                false => EtherType::IPV4,
            },
        };
        let udp = UdpHeader {
            source: U16::ZERO,
            destination: U16::new(vxlan_port),
            length: U16::ZERO,
            checksum: U16::ZERO,
        };
        let vxlan = vxlan::VxlanHeader::new(vni);
        let parts = [
            ethernet.as_bytes(),
            &network,
            udp.as_bytes(),
            vxlan.as_bytes(),
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Some(OuterHeader { bytes, is_v6 })
    }

    /// Whether the underlay is IPv6.
    #[inline]
    pub fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// The bytes, as long as they are.
    #[inline]
    pub(crate) fn template(&self) -> Template<'_> {
        match (self.is_v6, self.bytes.first_chunk()) {
            (false, Some(bytes)) => Template::V4(bytes),
            _ => Template::V6(&self.bytes),
        }
    }

    /// The bytes that stand before an inner frame.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self.is_v6 {
            true => &self.bytes,
            false => &self.bytes[..OuterHeader::LEN_V4],
        }
    }
}

/// Serialised outer headers of known length.
pub(crate) enum Template<'a> {
    V4(&'a [u8; OuterHeader::LEN_V4]),
    V6(&'a [u8; OuterHeader::LEN_V6]),
}

impl std::fmt::Debug for OuterHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OuterHeader({:02x?})", self.bytes())
    }
}

/// Fragmentation is forbidden (RFC 7348, section 4.3): who cannot carry the
/// packet says so.
fn network_v4(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut header = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_length: U16::ZERO,
        identification: U16::ZERO,
        flags_fragment: U16::new(ipv4::DONT_FRAGMENT),
        ttl: OUTER_HOPS,
        protocol: protocol::UDP,
        checksum: U16::ZERO,
        source: source.octets(),
        destination: destination.octets(),
    };
    header.fill_checksum();
    header.as_bytes().to_vec()
}

fn network_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let header = Ipv6Header {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: U16::ZERO,
        next_header: protocol::UDP,
        hop_limit: OUTER_HOPS,
        source: source.octets(),
        destination: destination.octets(),
    };
    header.as_bytes().to_vec()
}

/// What a VNI stands for at this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The pods' routed network.
    Routed,
    /// A layer-2 segment.
    Segment(SegmentId),
}

/// The uplink, and this node's own end of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// The uplink's port; `None` without one.
    pub uplink: Option<PortId>,
    /// The uplink's MAC address.
    pub mac: MacAddr,
    /// This node's addresses that tunnels end at, one for each family in use.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the overlay; 0 without an overlay.
    pub vxlan_port: u16,
    /// MAC that inner frames of the routed network reach this node by, and
    /// that its own carry as source.
    pub vtep_mac: MacAddr,
    /// VNIs that this node takes part in.
    pub networks: AddressMap<Vni, Network>,
    /// Remote ends by network and underlay address: whose packets are taken.
    pub peers: AddressMap<(Vni, IpAddr), VtepId>,
    /// Who may be behind a remote end though packets for them go another way:
    /// where nodes reach each other without the overlay too, each chooses by its
    /// own routes.
    pub sources: RouteTable,
    /// The segment that uplink and pods share (mode `l2`).
    pub segment: Option<SegmentId>,
    /// Whether packets for this node's pod ranges are taken as they are
    /// (mode `routed`).
    pub is_routed: bool,
}
