//! The packets that are measured, and the node that they cross: two pods and
//! the gateway between them.
//!
//! Both pods and the gateway have one MAC address, so that a routed packet
//! can be routed again; its hop count is put back now and then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use spinlane_dataplane::snapshot::{
    AddressMap, Destination, Gateway, Masquerade, Network, NextHop, OuterHeader, OuterPath,
    PortEntry, Prefix, Role, RouteTable, RouteTarget, Segment, Snapshot, Underlay, Vtep,
};
use spinlane_dataplane::types::{Generation, MacAddr, NextHopId, PortId, SegmentId, Vni, VtepId};
use spinlane_dataplane::wire::checksum::{checksum, pseudo_header};

use crate::packet::{
    FCS_BYTES, MAX_FRAME_BYTES, Mac, PacketError, Sizes, Template, Traffic, VXLAN_PORT,
};

/// The port that packets come by, and the one that they leave by.
pub(super) const IN_PORT: PortId = PortId(0);
const OUT_PORT: PortId = PortId(1);
/// The port to other nodes, where there are some.
pub(super) const UPLINK: PortId = PortId(2);

/// Path MTU: longest IP packet that is no super-frame.
pub(super) const MTU: u32 = 1450;
/// Bytes of a super-frame's IP packet.
const SUPER_FRAME: usize = 65_000;
/// Source ports of the pod that opens connections, fewer than masquerade has.
pub(super) const ENDS: u32 = 2000;
/// Shortest Ethernet frame without its check sequence.
const SHORTEST: usize = 60;

const MAC: MacAddr = MacAddr([0x0a, 0x58, 10, 244, 1, 1]);
const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 1, 3)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3),
];
/// The nodes' own addresses.
const UNDERLAY_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)];
const UNDERLAY_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 31, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 31, 0, 0, 0, 0, 0, 2),
];
const VNI: u32 = 1;

/// The two pods, routed or in a segment; the second takes super-frames or not.
pub(super) fn node(in_segment: bool, takes_super_frames: bool) -> Snapshot {
    let role = match in_segment {
        true => Role::SegmentPod(SegmentId(0)),
        false => Role::Pod,
    };
    let port = |id: PortId| {
        Some(PortEntry {
            role,
            super_frames: takes_super_frames,
            ..pod(id)
        })
    };
    let mut hosts_v4 = AddressMap::default();
    hosts_v4.insert(V4[1], Destination::Pod(OUT_PORT));
    let mut hosts_v6 = AddressMap::default();
    hosts_v6.insert(V6[1], Destination::Pod(OUT_PORT));
    Snapshot {
        generation: Generation(1),
        ports: Arc::new(vec![port(IN_PORT), port(OUT_PORT)]),
        hosts_v4: Arc::new(hosts_v4),
        hosts_v6: Arc::new(hosts_v6),
        gateway: Arc::new(Gateway {
            mac: MAC,
            ..Gateway::default()
        }),
        segments: Arc::new(vec![Some(Segment::default())]),
        ..Snapshot::default()
    }
}

/// A pod's port on the routed network.
fn pod(id: PortId) -> PortEntry {
    PortEntry {
        id,
        role: Role::Pod,
        mac: MAC,
        addresses: vec![V4[id.index()].into(), V6[id.index()].into()],
        mtu: MTU,
        super_frames: true,
        device_mtu: 65_535,
        segment_mtu: MTU,
        partial_checksums: true,
    }
}

/// How the other pod is reached from a [`half`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through VXLAN.
    Overlay,
    /// As an outside address, with the node's own address.
    Masquerade,
}

/// A node with one of the pods, the other one beyond the uplink: in the
/// overlay, or by the neighbour and with the node's own address.
pub(super) fn half(has_first: bool, v6_underlay: bool, way: Way) -> Option<Snapshot> {
    let mut node = node(false, true);
    let [own, other] = match has_first {
        true => [0, 1],
        false => [1, 0],
    };
    let ports = Arc::make_mut(&mut node.ports);
    let uplink = PortEntry {
        id: UPLINK,
        role: Role::Uplink,
        addresses: Vec::new(),
        super_frames: false,
        partial_checksums: false,
        ..pod(IN_PORT)
    };
    ports[own] = Some(pod(PortId(own as u16)));
    ports[other] = None;
    ports.push(Some(uplink));
    let hosts = Destination::Pod(PortId(own as u16));
    node.hosts_v4 = Arc::new(AddressMap::from_iter([(V4[own], hosts)]));
    node.hosts_v6 = Arc::new(AddressMap::from_iter([(V6[own], hosts)]));
    let address = |end: usize| -> IpAddr {
        match v6_underlay {
            true => UNDERLAY_V6[end].into(),
            false => UNDERLAY_V4[end].into(),
        }
    };
    node.next_hops = Arc::new(vec![Some(NextHop {
        address: address(other),
        port: UPLINK,
        mac: Some(MAC),
        mtu: 1500,
    })]);
    let vni = Vni::new(VNI)?;
    let path = OuterPath {
        source_mac: MAC,
        destination_mac: MAC,
        source: address(own),
        destination: address(other),
    };
    node.vteps = Arc::new(vec![Some(Vtep {
        address: address(other),
        vni,
        mac: MAC,
        mtu: MTU,
        next_hop: NextHopId(0),
        outer: OuterHeader::new(&path, VXLAN_PORT, vni)?,
    })]);
    node.underlay = Arc::new(Underlay {
        uplink: Some(UPLINK),
        mac: MAC,
        addresses: vec![address(own)],
        vxlan_port: VXLAN_PORT,
        vtep_mac: MAC,
        networks: AddressMap::from_iter([(vni, Network::Routed)]),
        peers: AddressMap::from_iter([((vni, address(other)), VtepId(0))]),
        is_routed: true,
        ..Underlay::default()
    });
    let target = match way {
        Way::Overlay => RouteTarget::Vtep(VtepId(0)),
        Way::Masquerade => RouteTarget::NextHop(NextHopId(0)),
    };
    let mut routes = RouteTable::default();
    for address in [IpAddr::from(V4[other]), V6[other].into()] {
        let len = if address.is_ipv4() { 32 } else { 128 };
        routes.insert(Prefix { address, len }, target);
    }
    node.routes = Arc::new(routes);
    if way == Way::Masquerade {
        node.masquerade = Arc::new(Masquerade {
            is_on: true,
            egress_v4: vec![UNDERLAY_V4[own]],
            egress_v6: vec![UNDERLAY_V6[own]],
            ..Masquerade::default()
        });
    }
    Some(node)
}

/// The shortest frame that holds the headers of a UDP packet: 60 bytes with
/// IPv4, 64 with IPv6.
///
/// # Errors
/// Never for these addresses.
pub(super) fn datagram(v6: bool) -> Result<Vec<u8>, PacketError> {
    let (source, destination): (IpAddr, IpAddr) = match v6 {
        true => (V6[0].into(), V6[1].into()),
        false => (V4[0].into(), V4[1].into()),
    };
    let device_bytes = if v6 { SHORTEST + 4 } else { SHORTEST };
    let traffic = Traffic::udp(
        [Mac(MAC.0); 2],
        [source, destination],
        [1, 2],
        Sizes::one(device_bytes + FCS_BYTES),
    );
    let template = Template::new(&traffic, MAX_FRAME_BYTES)?;
    let mut frame = vec![0; device_bytes];
    template.write(0, 0, &mut frame);
    Ok(frame)
}

/// Leaves the checksum of a [`datagram`] to the receiver, as a pod does.
pub(super) fn make_partial(frame: &mut [u8], v6: bool) {
    let transport = transport(v6);
    let len = (frame.len() - transport) as u16;
    let addresses = match v6 {
        true => &frame[22..54],
        false => &frame[26..34],
    };
    let sum = pseudo_header(addresses, 17, len).fold();
    frame[transport + 6..transport + 8].copy_from_slice(&sum.to_be_bytes());
}

/// A TCP packet of 65,000 bytes, its checksum and its cutting left to the
/// switch.
///
/// # Errors
/// Never for these addresses.
pub(super) fn super_frame(v6: bool) -> Result<Vec<u8>, PacketError> {
    let mut frame = datagram(v6)?;
    let transport = transport(v6);
    frame.resize(14 + SUPER_FRAME, 0x5a);
    let tcp_len = (frame.len() - transport) as u16;
    match v6 {
        true => {
            frame[18..20].copy_from_slice(&tcp_len.to_be_bytes());
            frame[20] = 6;
        }
        false => {
            frame[16..18].copy_from_slice(&(SUPER_FRAME as u16).to_be_bytes());
            frame[23] = 6;
            frame[24..26].fill(0);
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let header = &mut frame[transport..transport + 20];
    header[4..].fill(0);
    header[12] = 0x50;
    header[13] = 0x18; // ACK, PSH
    let addresses = match v6 {
        true => &frame[22..54],
        false => &frame[26..34],
    };
    let sum = pseudo_header(addresses, 6, tcp_len).fold();
    frame[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
    Ok(frame)
}

/// Makes a frame one of flow `number`. An odd multiplier visits every flow
/// once, in no order that the processor could foresee.
#[inline]
pub(super) fn set_flow(frame: &mut [u8], layer2: bool, v6: bool, number: u32) {
    let word = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
    let at = match layer2 {
        true => 1, // of the destination's address, its group bit left alone
        false => transport(v6),
    };
    frame[at..at + 4].copy_from_slice(&word);
}

/// Makes a frame the first one of connection `number`: each of [`ENDS`] source
/// ports in turn, then towards the next port.
#[inline]
pub(super) fn set_connection(frame: &mut [u8], v6: bool, number: u32) {
    let (source, destination) = (number % ENDS, number / ENDS);
    let ports = (1024 + source) << 16 | destination & 0xffff;
    let at = transport(v6);
    frame[at..at + 4].copy_from_slice(&ports.to_be_bytes());
}

const fn transport(v6: bool) -> usize {
    if v6 { 54 } else { 34 }
}
