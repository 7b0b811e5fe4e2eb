//! A small node in memory, for tests and fuzzers: routed pods, a host port,
//! layer-2 segments.
#![allow(dead_code, clippy::unwrap_used)] // tests use all of it, fuzzers some

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::counters::LaneCounters;
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Batch, FRAME_SIZE, Frame, HEADROOM, Verdict};
use crate::pipeline::{FlowCapacity, LaneState, process};
use crate::snapshot::{
    AddressMap, Destination, FdbTarget, Gateway, Location, Masquerade, Network, NextHop,
    OuterHeader, OuterPath, PortEntry, Prefix, Role, RouteTable, RouteTarget, Segment, Snapshot,
    Underlay, Vtep,
};
use crate::tables::connection::Connections;
use crate::types::{Generation, LaneId, MacAddr, Nanos, NextHopId, PortId, SegmentId, Vni, VtepId};
use crate::umem::{FramePool, Umem, in_memory};
pub(super) use crate::wire::checksum::naive_sum;

pub(super) const GATEWAY_MAC: MacAddr = MacAddr([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x01]);
pub(super) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
pub(super) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
pub(super) const GATEWAY_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Two pods that take super-frames, one that does not, and the host.
pub(super) const A: u16 = 1;
pub(super) const B: u16 = 2;
pub(super) const SMALL: u16 = 3;
pub(super) const HOST: u16 = 9;
/// Segment 0: two stations and one that takes no super-frames.
pub(super) const BLUE_A: u16 = 10;
pub(super) const BLUE_B: u16 = 11;
pub(super) const BLUE_SMALL: u16 = 12;
/// Segment 1, guarded.
pub(super) const RED_A: u16 = 20;
pub(super) const RED_B: u16 = 21;

pub(super) const MTU: u32 = 1450;
pub(super) const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
pub(super) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 31, 0, 0, 0, 0, 0, 1);

/// The pod's IPv4 address.
pub(super) fn v4(port: u16) -> Ipv4Addr {
    match port {
        HOST => NODE_V4,
        10..30 => Ipv4Addr::new(10, 50, 0, port as u8),
        _ => Ipv4Addr::new(10, 244, 1, port as u8 + 1),
    }
}

/// The pod's IPv6 address.
pub(super) fn v6(port: u16) -> Ipv6Addr {
    match port {
        HOST => NODE_V6,
        10..30 => Ipv6Addr::new(0xfd00, 50, 0, 0, 0, 0, 0, port),
        _ => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, port + 1),
    }
}

/// The MAC address of the port's far end.
pub(super) fn mac(port: u16) -> MacAddr {
    MacAddr::from_ipv4(v4(port))
}

fn entry(port: u16, role: Role) -> PortEntry {
    PortEntry {
        id: PortId(port),
        role,
        mac: mac(port),
        addresses: vec![IpAddr::V4(v4(port)), IpAddr::V6(v6(port))],
        mtu: MTU,
        super_frames: port != SMALL && port != BLUE_SMALL,
        device_mtu: 65535,
        segment_mtu: MTU,
        partial_checksums: true,
    }
}

/// The node's snapshot.
pub(super) fn snapshot() -> Snapshot {
    let roles = [
        (A, Role::Pod),
        (B, Role::Pod),
        (SMALL, Role::Pod),
        (HOST, Role::Host),
        (BLUE_A, Role::SegmentPod(SegmentId(0))),
        (BLUE_B, Role::SegmentPod(SegmentId(0))),
        (BLUE_SMALL, Role::SegmentPod(SegmentId(0))),
        (RED_A, Role::SegmentPod(SegmentId(1))),
        (RED_B, Role::SegmentPod(SegmentId(1))),
    ];
    let mut ports = vec![None; 32];
    let mut hosts_v4 = AddressMap::default();
    let mut hosts_v6 = AddressMap::default();
    hosts_v4.insert(GATEWAY_V4, Destination::Gateway);
    hosts_v6.insert(GATEWAY_V6, Destination::Gateway);
    hosts_v6.insert(GATEWAY_LINK, Destination::Gateway);
    for (port, role) in roles {
        ports[usize::from(port)] = Some(entry(port, role));
        let destination = match role {
            Role::Pod => Destination::Pod(PortId(port)),
            Role::Host => Destination::Host(PortId(port)),
            Role::SegmentPod(_) | Role::Uplink => continue,
        };
        hosts_v4.insert(v4(port), destination);
        hosts_v6.insert(v6(port), destination);
    }
    Snapshot {
        generation: Generation(1),
        ports: Arc::new(ports),
        hosts_v4: Arc::new(hosts_v4),
        hosts_v6: Arc::new(hosts_v6),
        gateway: Arc::new(Gateway {
            mac: GATEWAY_MAC,
            addresses_v4: vec![GATEWAY_V4],
            addresses_v6: vec![GATEWAY_V6, GATEWAY_LINK],
            pod_cidrs: vec![
                Prefix {
                    address: Ipv4Addr::new(10, 244, 1, 0).into(),
                    len: 24,
                },
                Prefix {
                    address: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0).into(),
                    len: 64,
                },
            ],
        }),
        segments: Arc::new(vec![
            Some(segment(&[BLUE_A, BLUE_B, BLUE_SMALL], false)),
            Some(segment(&[RED_A, RED_B], true)),
        ]),
        ..Snapshot::default()
    }
}

/// The node's uplink, and two remote ends over IPv4 and IPv6.
pub(super) const UPLINK: u16 = 25;
pub(super) const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(super) const NEIGHBOR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(super) const VTEP_MAC: MacAddr = MacAddr([0x0a, 0x58, 172, 31, 0, 1]);
pub(super) const REMOTE_MAC: MacAddr = MacAddr([0x0a, 0x58, 172, 31, 0, 2]);
pub(super) const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
pub(super) const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 31, 0, 0, 0, 0, 0, 2);
/// The routed network, and segment 0.
pub(super) const VNI: u32 = 7;
pub(super) const BLUE_VNI: u32 = 100;

/// Adds the uplink: remote pods 10.244.2.0/24 and fd00:2::/64 through the
/// overlay over IPv4, 10.244.3.0/24 over IPv6, 10.244.4.0/24 by a neighbour,
/// 10.244.5.0/24 by one that is not resolved; segment 0 reaches both ends.
pub(super) fn with_underlay(mut snapshot: Snapshot) -> Snapshot {
    let uplink = PortEntry {
        super_frames: false,
        mtu: 1500,
        segment_mtu: 1500,
        device_mtu: 1500,
        addresses: Vec::new(),
        mac: UPLINK_MAC,
        ..entry(UPLINK, Role::Uplink)
    };
    Arc::make_mut(&mut snapshot.ports)[usize::from(UPLINK)] = Some(uplink);
    let neighbor = |address: IpAddr, mac| {
        Some(NextHop {
            address,
            port: PortId(UPLINK),
            mac,
            mtu: 1500,
        })
    };
    snapshot.next_hops = Arc::new(vec![
        neighbor(REMOTE_V4.into(), Some(NEIGHBOR_MAC)),
        neighbor(REMOTE_V6.into(), Some(NEIGHBOR_MAC)),
        neighbor(Ipv4Addr::new(172, 31, 0, 9).into(), None),
    ]);
    let ends = [
        (REMOTE_V4.into(), NODE_V4.into(), VNI, 0),
        (REMOTE_V6.into(), NODE_V6.into(), VNI, 1),
        (REMOTE_V4.into(), NODE_V4.into(), BLUE_VNI, 0),
        (REMOTE_V6.into(), NODE_V6.into(), BLUE_VNI, 1),
    ];
    let mut underlay = Underlay {
        uplink: Some(PortId(UPLINK)),
        mac: UPLINK_MAC,
        addresses: vec![NODE_V4.into(), NODE_V6.into()],
        vxlan_port: 4789,
        vtep_mac: VTEP_MAC,
        is_routed: true,
        ..Underlay::default()
    };
    let mut vteps = Vec::new();
    for (address, source, vni, next_hop) in ends {
        let vni = Vni::new(vni).unwrap();
        let path = OuterPath {
            source_mac: UPLINK_MAC,
            destination_mac: NEIGHBOR_MAC,
            source,
            destination: address,
        };
        let id = VtepId(vteps.len() as u16);
        underlay.peers.insert((vni, address), id);
        vteps.push(Some(Vtep {
            address,
            vni,
            mac: REMOTE_MAC,
            mtu: if address.is_ipv4() { 1450 } else { 1430 },
            next_hop: NextHopId(next_hop),
            outer: OuterHeader::new(&path, 4789, vni).unwrap(),
        }));
    }
    snapshot.vteps = Arc::new(vteps);
    let blue = SegmentId(0);
    let networks = [(VNI, Network::Routed), (BLUE_VNI, Network::Segment(blue))];
    underlay.networks = networks
        .into_iter()
        .map(|(vni, network)| (Vni::new(vni).unwrap(), network))
        .collect();
    snapshot.underlay = Arc::new(underlay);
    let mut routes = RouteTable::default();
    let v4 = |third| Prefix {
        address: Ipv4Addr::new(10, 244, third, 0).into(),
        len: 24,
    };
    routes.insert(v4(2), RouteTarget::Vtep(VtepId(0)));
    routes.insert(v4(3), RouteTarget::Vtep(VtepId(1)));
    routes.insert(v4(4), RouteTarget::NextHop(NextHopId(0)));
    routes.insert(v4(5), RouteTarget::NextHop(NextHopId(2)));
    let v6 = Prefix {
        address: Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0).into(),
        len: 64,
    };
    routes.insert(v6, RouteTarget::Vtep(VtepId(0)));
    snapshot.routes = Arc::new(routes);
    let segments = Arc::make_mut(&mut snapshot.segments);
    segments[0].as_mut().unwrap().vteps = Arc::new(vec![VtepId(2), VtepId(3)]);
    snapshot
}

/// Adds ways to everywhere, where pods have the node's address.
fn with_masquerade(mut snapshot: Snapshot) -> Snapshot {
    let routes = Arc::make_mut(&mut snapshot.routes);
    let anywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for (address, by) in anywhere.into_iter().zip([NextHopId(0), NextHopId(1)]) {
        routes.insert(Prefix { address, len: 0 }, RouteTarget::NextHop(by));
    }
    snapshot.masquerade = Arc::new(Masquerade {
        excluded: vec![Prefix {
            address: Ipv4Addr::new(10, 244, 0, 0).into(),
            len: 16,
        }],
        nodes: [REMOTE_V4.into(), REMOTE_V6.into()].into_iter().collect(),
        is_on: true,
        egress_v4: vec![NODE_V4],
        egress_v6: vec![NODE_V6],
        ports: 61_000..=65_535,
    });
    snapshot
}

fn segment(members: &[u16], guard: bool) -> Segment {
    Segment {
        fdb: Arc::default(),
        members: Arc::new(members.iter().map(|&p| PortId(p)).collect()),
        vteps: Arc::default(),
        guard,
    }
}

/// What came of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    /// The bytes that leave: of the head frame for a reply, else of all.
    pub(super) bytes: Vec<u8>,
}

impl Outcome {
    /// The reason, for a packet that got no further.
    pub(super) fn dropped(&self) -> Option<DropReason> {
        match self.verdict {
            Verdict::Drop(reason) => Some(reason),
            Verdict::Reply { dropped } => dropped,
            _ => None,
        }
    }
}

/// A lane's packet logic over frame memory.
pub(super) struct World {
    pub(super) umem: Arc<Umem>,
    pub(super) pool: FramePool,
    pub(super) snapshot: Snapshot,
    pub(super) state: LaneState,
    pub(super) connections: Arc<Connections>,
    pub(super) counters: Arc<crossbeam::utils::CachePadded<LaneCounters>>,
    pub(super) events: rtrb::Consumer<Event>,
    pub(super) now: Nanos,
}

const BEGINNING: Nanos = Nanos(1_000_000_000_000);

/// A lane's state, its counters, and where its events come out.
fn lane(
    capacity: FlowCapacity,
    connections: &Arc<Connections>,
) -> (
    LaneState,
    Arc<crossbeam::utils::CachePadded<LaneCounters>>,
    rtrb::Consumer<Event>,
) {
    let counters = Arc::new(LaneCounters::new());
    let (producer, events) = rtrb::RingBuffer::new(64);
    let state = LaneState::new(
        LaneId(0),
        Arc::clone(&counters),
        producer,
        capacity,
        Arc::clone(connections),
    );
    (state, counters, events)
}

impl World {
    pub(super) fn new() -> World {
        let capacity = FlowCapacity {
            v4: 1 << 10,
            v6: 1 << 10,
            l2: 1 << 10,
        };
        World::with_capacity(capacity)
    }

    pub(super) fn with_capacity(capacity: FlowCapacity) -> World {
        World::with_connections(capacity, Connections::new(1 << 12, 1))
    }

    pub(super) fn with_connections(capacity: FlowCapacity, connections: Connections) -> World {
        let (umem, pool) = in_memory(1024).unwrap();
        let connections = Arc::new(connections);
        let (state, counters, events) = lane(capacity, &connections);
        World {
            umem,
            pool,
            snapshot: snapshot(),
            state,
            connections,
            counters,
            events,
            now: BEGINNING,
        }
    }

    /// Forgets everything but its memory, whose pages cost the most.
    pub(super) fn begin_again(&mut self, capacity: FlowCapacity) {
        self.connections = Arc::new(Connections::new(1 << 10, 1));
        (self.state, self.counters, self.events) = lane(capacity, &self.connections);
        self.snapshot = snapshot();
        self.now = BEGINNING;
    }

    /// A node with an uplink.
    pub(super) fn with_underlay() -> World {
        let mut world = World::new();
        world.snapshot = with_underlay(world.snapshot.clone());
        world
    }

    /// As it is, with an uplink and ways to everywhere.
    pub(super) fn with_ways_out(mut self) -> World {
        self.publish(|snapshot| *snapshot = with_masquerade(with_underlay(snapshot.clone())));
        self
    }

    /// Changes the snapshot, as a publication does.
    pub(super) fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.snapshot.generation.0 += 1;
    }

    /// Changes one port's entry.
    pub(super) fn change_port(&mut self, port: u16, change: impl FnOnce(&mut PortEntry)) {
        self.publish(|snapshot| {
            let ports = Arc::make_mut(&mut snapshot.ports);
            change(ports[usize::from(port)].as_mut().unwrap());
        });
    }

    /// Adds to the forwarding database of a segment.
    pub(super) fn learn(&mut self, segment: usize, mac: MacAddr, port: u16, is_static: bool) {
        self.publish(|snapshot| {
            let segments = Arc::make_mut(&mut snapshot.segments);
            let fdb = Arc::make_mut(&mut segments[segment].as_mut().unwrap().fdb);
            let at = Location::Port(PortId(port));
            fdb.insert(
                mac,
                FdbTarget {
                    at,
                    is_static,
                    is_held: false,
                },
            );
        });
    }

    /// Lays bytes into frames as the kernel does: each frame full before the
    /// next begins.
    pub(super) fn frames(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let room = FRAME_SIZE - HEADROOM;
        let mut pieces: Vec<&[u8]> = bytes.chunks(room).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let mut frames = Vec::new();
        for piece in pieces {
            let mut frame = self.pool.alloc().unwrap();
            assert!(frame.resize(piece.len()));
            self.umem.bytes_mut(&mut frame).copy_from_slice(piece);
            frames.push(frame);
        }
        frames
    }

    /// All bytes of a packet.
    pub(super) fn bytes(&self, batch: &Batch, index: usize) -> Vec<u8> {
        let frames = batch.chain(index).map(|frame| self.umem.bytes(frame));
        frames.collect::<Vec<_>>().concat()
    }

    /// Frees every frame of a batch, and checks that none was lost.
    pub(super) fn free(&mut self, batch: &mut Batch) {
        for index in 0..batch.len() {
            for frame in batch.take(index) {
                self.pool.free(frame);
            }
        }
        batch.clear();
    }

    /// One packet through [`process`].
    pub(super) fn send(&mut self, port: u16, bytes: &[u8]) -> Outcome {
        self.send_all(port, &[bytes.to_vec()]).remove(0)
    }

    /// A batch of packets through [`process`].
    pub(super) fn decide<'a>(
        &mut self,
        packets: impl IntoIterator<Item = (u16, &'a [u8])>,
    ) -> Batch {
        let mut batch = Batch::new();
        for (port, bytes) in packets {
            let frames = self.frames(bytes);
            batch.push(PortId(port), frames);
        }
        let umem = Arc::clone(&self.umem);
        let (snapshot, state) = (&self.snapshot, &mut self.state);
        process(&umem, &mut batch, snapshot, state, self.now);
        batch
    }

    /// Packets of one port through one call of [`process`].
    pub(super) fn send_all(&mut self, port: u16, packets: &[Vec<u8>]) -> Vec<Outcome> {
        let mut batch = self.decide(packets.iter().map(|bytes| (port, bytes.as_slice())));
        let outcomes = (0..batch.len())
            .map(|index| {
                let packet = batch.packets()[index];
                let bytes = match packet.verdict {
                    Verdict::Reply { .. } => self.umem.bytes(batch.head(index)).to_vec(),
                    _ => self.bytes(&batch, index),
                };
                if !matches!(packet.verdict, Verdict::Reply { .. } | Verdict::Drop(_)) {
                    assert_eq!(packet.len as usize, bytes.len());
                }
                Outcome {
                    verdict: packet.verdict,
                    bytes,
                }
            })
            .collect();
        self.free(&mut batch);
        outcomes
    }

    /// Frames that are in no pool: 0 between calls.
    pub(super) fn outstanding(&self) -> usize {
        1024 - self.pool.total_free()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.outstanding(), 0, "frames in = frames accounted");
        }
    }
}

/// Puts the pseudo-header's sum into the checksum field, as a sender does
/// that leaves the rest to its device. IPv4 at 14.
pub(super) fn make_partial_v4(packet: &mut [u8], transport: usize, field: usize) {
    let len = u16::from_be_bytes([packet[16], packet[17]]) as usize + 14 - transport;
    let mut pseudo = packet[26..34].to_vec();
    pseudo.extend([0, packet[23]]);
    pseudo.extend((len as u16).to_be_bytes());
    let at = transport + field;
    packet[at..at + 2].copy_from_slice(&naive_sum(&pseudo).to_be_bytes());
}

/// As [`make_partial_v4`], for IPv6 at 14 without extension headers.
pub(super) fn make_partial_v6(packet: &mut [u8], transport: usize, field: usize) {
    let len = u16::from_be_bytes([packet[18], packet[19]]) as usize + 54 - transport;
    let mut pseudo = packet[22..54].to_vec();
    pseudo.extend((len as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, packet[20]]);
    let at = transport + field;
    packet[at..at + 2].copy_from_slice(&naive_sum(&pseudo).to_be_bytes());
}
