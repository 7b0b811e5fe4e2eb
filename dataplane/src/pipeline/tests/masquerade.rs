//! Pods reach the outside with the node's address. Expected bytes are built by
//! etherparse, with full checksums.

mod direct;
mod echo;
mod exits;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};

use crate::drops::DropReason;
use crate::frame::{TxChecksum, Verdict};
use crate::pipeline::world::*;
use crate::snapshot::{Prefix, RouteTarget};
use crate::tables::connection::{ConnectionRecord, Origin, State};
use crate::types::{NextHopId, PortId};

const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 17;
const RST: u8 = 4;

/// The node with a way to everywhere, over its uplink.
fn world() -> World {
    World::new().with_ways_out()
}

/// Where a packet is on its way: its addresses on the wire and its hops.
#[derive(Clone, Copy)]
enum Leg {
    FromPod,
    ToWire,
    FromWire,
    ToPod,
}

impl Leg {
    fn ethernet(self) -> [[u8; 6]; 2] {
        match self {
            Leg::FromPod => [mac(A).0, GATEWAY_MAC.0],
            Leg::ToWire => [UPLINK_MAC.0, NEIGHBOR_MAC.0],
            Leg::FromWire => [NEIGHBOR_MAC.0, UPLINK_MAC.0],
            Leg::ToPod => [GATEWAY_MAC.0, mac(A).0],
        }
    }

    fn hops(self) -> u8 {
        match self {
            Leg::FromPod | Leg::FromWire => 60,
            Leg::ToWire | Leg::ToPod => 59,
        }
    }

    fn is_out(self) -> bool {
        matches!(self, Leg::FromPod | Leg::ToWire)
    }
}

/// Kinds of packets that are translated.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Udp,
    Tcp(u8),
    Echo,
    /// An echo that the server asks for.
    Asked,
    UdpV6,
    TcpV6,
    EchoV6,
    AskedV6,
}

/// The packet of a conversation between `near` (address and port of the pod,
/// or what stands for it) and the server's port 53.
fn packet(kind: Kind, leg: Leg, near: (Ipv4Addr, Ipv6Addr, u16)) -> Vec<u8> {
    let [from, to] = leg.ethernet();
    let (near_v4, near_v6, port) = near;
    let ends = |near: u16, far: u16| {
        if leg.is_out() {
            (near, far)
        } else {
            (far, near)
        }
    };
    let (sport, dport) = ends(port, 53);
    let ethernet = PacketBuilder::ethernet2(from, to);
    let v4 = match leg.is_out() {
        true => (near_v4.octets(), SERVER.octets()),
        false => (SERVER.octets(), near_v4.octets()),
    };
    let v6 = match leg.is_out() {
        true => (near_v6.octets(), SERVER_V6.octets()),
        false => (SERVER_V6.octets(), near_v6.octets()),
    };
    let echo = IcmpEchoHeader { id: port, seq: 1 };
    let payload = b"what is it?";
    let mut bytes = Vec::new();
    match kind {
        Kind::Udp => {
            let builder = ethernet.ipv4(v4.0, v4.1, leg.hops()).udp(sport, dport);
            builder.write(&mut bytes, payload).unwrap();
        }
        Kind::UdpV6 => {
            let builder = ethernet.ipv6(v6.0, v6.1, leg.hops()).udp(sport, dport);
            builder.write(&mut bytes, payload).unwrap();
        }
        Kind::Tcp(flags) => {
            let tcp = ethernet
                .ipv4(v4.0, v4.1, leg.hops())
                .tcp(sport, dport, 7, 1000);
            with_flags(tcp, flags).write(&mut bytes, payload).unwrap();
        }
        Kind::TcpV6 => {
            let tcp = ethernet
                .ipv6(v6.0, v6.1, leg.hops())
                .tcp(sport, dport, 7, 1000);
            with_flags(tcp, ACK).write(&mut bytes, payload).unwrap();
        }
        Kind::Echo | Kind::Asked => {
            let builder = ethernet.ipv4(v4.0, v4.1, leg.hops());
            let kind = match leg.is_out() == matches!(kind, Kind::Echo) {
                true => Icmpv4Type::EchoRequest(echo),
                false => Icmpv4Type::EchoReply(echo),
            };
            builder.icmpv4(kind).write(&mut bytes, payload).unwrap();
        }
        Kind::EchoV6 | Kind::AskedV6 => {
            let builder = ethernet.ipv6(v6.0, v6.1, leg.hops());
            let kind = match leg.is_out() == matches!(kind, Kind::EchoV6) {
                true => Icmpv6Type::EchoRequest(echo),
                false => Icmpv6Type::EchoReply(echo),
            };
            builder.icmpv6(kind).write(&mut bytes, payload).unwrap();
        }
    }
    bytes
}

type Tcp = etherparse::PacketBuilderStep<etherparse::TcpHeader>;

fn with_flags(tcp: Tcp, flags: u8) -> Tcp {
    let tcp = if flags & SYN != 0 { tcp.syn() } else { tcp };
    let tcp = if flags & ACK != 0 { tcp.ack(9) } else { tcp };
    let tcp = if flags & 1 != 0 { tcp.fin() } else { tcp };
    if flags & RST != 0 { tcp.rst() } else { tcp }
}

fn pod(port: u16) -> (Ipv4Addr, Ipv6Addr, u16) {
    (v4(A), v6(A), port)
}

fn node(port: u16) -> (Ipv4Addr, Ipv6Addr, u16) {
    (NODE_V4, NODE_V6, port)
}

fn connection(world: &World) -> ConnectionRecord {
    let records = world.connections.records(world.now.0 / 1_000_000);
    assert_eq!(records.len(), 1);
    records[0]
}

/// The port outside of the only connection.
fn outside(world: &World) -> u16 {
    connection(world).reply.destination.port
}

/// Sends a first packet of the pod; gives the port outside.
fn open(world: &mut World, kind: Kind) -> u16 {
    let out = world.send(A, &packet(kind, Leg::FromPod, pod(40_000)));
    assert!(out.dropped().is_none(), "{out:?}");
    outside(world)
}

#[test]
fn both_directions_are_rewritten_whole() {
    for kind in [
        Kind::Udp,
        Kind::Tcp(ACK),
        Kind::Echo,
        Kind::UdpV6,
        Kind::TcpV6,
        Kind::EchoV6,
    ] {
        let mut world = world();
        // A miss, and hits once both ends were heard.
        for round in 0..4 {
            let out = world.send(A, &packet(kind, Leg::FromPod, pod(40_000)));
            let port = outside(&world);
            assert!((61_000..=65_535).contains(&port));
            let expect = packet(kind, Leg::ToWire, node(port));
            assert_eq!(out.bytes, expect, "{kind:?} {round}");
            let to = PortId(UPLINK);
            assert!(matches!(out.verdict, Verdict::Forward { out, .. } if out == to));
            let back = world.send(UPLINK, &packet(kind, Leg::FromWire, node(port)));
            let expect = packet(kind, Leg::ToPod, pod(40_000));
            assert_eq!(back.bytes, expect, "{kind:?} {round}");
            assert!(matches!(back.verdict, Verdict::Forward { out, .. } if out == PortId(A)));
        }
        assert!(world.counters.flow_hits.get() >= 4, "{kind:?}");
    }
}

#[test]
fn a_port_in_range_is_kept() {
    let mut world = world();
    world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(62_345)));
    assert_eq!(outside(&world), 62_345);
}

#[test]
fn a_port_that_is_masquerades_no_more_is_left() {
    for kind in [Kind::Udp, Kind::Tcp(SYN), Kind::Echo] {
        let mut world = world();
        let before = open(&mut world, kind);
        world.publish(|snapshot| {
            let masquerade = Arc::make_mut(&mut snapshot.masquerade);
            masquerade.ports = 50_000..=50_999;
        });
        let after = open(&mut world, kind);
        match kind {
            // The program knows the very identifiers.
            Kind::Echo => assert_eq!(after, before),
            _ => assert!((50_000..=50_999).contains(&after), "{kind:?}: {after}"),
        }
    }
}

#[test]
fn nobody_else_gets_in() {
    let mut world = world();
    let port = open(&mut world, Kind::Udp);
    let good = packet(Kind::Udp, Leg::FromWire, node(port));
    let from_elsewhere = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes[24..26].fill(0);
        let sum = !naive_sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    for (name, bytes) in [
        ("another address", from_elsewhere(29, 8)),
        ("another port", from_elsewhere(35, 54)),
        (
            "to another port",
            from_elsewhere(37, port.to_be_bytes()[1] ^ 1),
        ),
    ] {
        let outcome = world.send(UPLINK, &bytes);
        assert_eq!(outcome.dropped(), Some(DropReason::NoConnection), "{name}");
    }
    assert!(world.send(UPLINK, &good).dropped().is_none());
}

#[test]
fn excluded_destinations_see_the_pod() {
    let mut world = world();
    let mut bytes = packet(Kind::Udp, Leg::FromPod, pod(40_000));
    // 10.244.4.7: by the neighbour, inside the cluster.
    bytes[30..34].copy_from_slice(&[10, 244, 4, 7]);
    bytes[24..26].fill(0);
    let sum = !naive_sum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes[40..42].fill(0);
    let out = world.send(A, &bytes);
    assert_eq!(out.bytes[26..30], v4(A).octets());
    assert!(world.connections.is_empty());
}

#[test]
fn checksums_keep_their_kind() {
    let mut world = world();
    // None stays none.
    let mut bytes = packet(Kind::Udp, Leg::FromPod, pod(40_000));
    bytes[40..42].fill(0);
    for _ in 0..2 {
        assert_eq!(world.send(A, &bytes).bytes[40..42], [0, 0]);
    }
    let port = outside(&world);
    let mut bytes = packet(Kind::Udp, Leg::FromWire, node(port));
    bytes[40..42].fill(0);
    assert_eq!(world.send(UPLINK, &bytes).bytes[40..42], [0, 0]);
    // A partial one is finished for the wire.
    let mut bytes = packet(Kind::Udp, Leg::FromPod, pod(40_000));
    make_partial_v4(&mut bytes, 34, 6);
    let expect = packet(Kind::Udp, Leg::ToWire, node(port));
    assert_eq!(world.send(A, &bytes).bytes, expect);
    // And stays one towards a pod, for its own addresses.
    let mut bytes = packet(Kind::Udp, Leg::FromWire, node(port));
    make_partial_v4(&mut bytes, 34, 6);
    let mut expect = packet(Kind::Udp, Leg::ToPod, pod(40_000));
    make_partial_v4(&mut expect, 34, 6);
    let back = world.send(UPLINK, &bytes);
    assert_eq!(back.bytes, expect);
    let checksum = Some(TxChecksum {
        start: 34,
        offset: 6,
    });
    let out = PortId(A);
    assert_eq!(back.verdict, Verdict::Forward { out, checksum });
}

/// An ICMP error of `router` to `to` that quotes an IP packet.
fn unreachable(ethernet: [[u8; 6]; 2], to: Ipv4Addr, hops: u8, quoted: &[u8]) -> Vec<u8> {
    let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
    let kind = Icmpv4Type::DestinationUnreachable(header);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(ethernet[0], ethernet[1])
        .ipv4(ROUTER.octets(), to.octets(), hops)
        .icmpv4(kind)
        .write(&mut bytes, quoted)
        .unwrap();
    bytes
}

#[test]
fn errors_about_what_left_reach_the_pod() {
    for kind in [Kind::Udp, Kind::Tcp(ACK), Kind::Echo] {
        for quoted_len in [28, 39, 200] {
            let mut world = world();
            let port = open(&mut world, kind);
            let cut = |bytes: Vec<u8>| bytes[14..bytes.len().min(14 + quoted_len)].to_vec();
            let left = cut(packet(kind, Leg::ToWire, node(port)));
            let sent = cut(packet(kind, Leg::ToWire, pod(40_000)));
            let ways = [Leg::FromWire, Leg::ToPod];
            let error = unreachable(ways[0].ethernet(), NODE_V4, 60, &left);
            let outcome = world.send(UPLINK, &error);
            let expect = unreachable(ways[1].ethernet(), v4(A), 59, &sent);
            assert_eq!(outcome.bytes, expect, "{kind:?} {quoted_len}");
        }
    }
}

#[test]
fn errors_about_nothing_known_are_not_delivered() {
    let mut world = world();
    let port = open(&mut world, Kind::Udp);
    for quoted in [
        packet(Kind::Udp, Leg::ToWire, node(port ^ 1)),
        packet(Kind::Tcp(ACK), Leg::ToWire, node(port)),
        packet(Kind::Udp, Leg::FromWire, node(port)),
    ] {
        let error = unreachable(Leg::FromWire.ethernet(), NODE_V4, 60, &quoted[14..]);
        let outcome = world.send(UPLINK, &error);
        assert!(outcome.dropped().is_some(), "{outcome:?}");
    }
}

#[test]
fn errors_over_ipv6_reach_the_pod() {
    let error = |leg: Leg, to: Ipv6Addr, quoted: &[u8]| {
        let [from, dst] = leg.ethernet();
        let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(from, dst)
            .ipv6(SERVER_V6.octets(), to.octets(), leg.hops())
            .icmpv6(kind)
            .write(&mut bytes, quoted)
            .unwrap();
        bytes
    };
    for kind in [Kind::UdpV6, Kind::TcpV6, Kind::EchoV6] {
        let mut world = world();
        let port = open(&mut world, kind);
        let left = packet(kind, Leg::ToWire, node(port));
        let sent = packet(kind, Leg::ToWire, pod(40_000));
        let outcome = world.send(UPLINK, &error(Leg::FromWire, NODE_V6, &left[14..]));
        assert_eq!(
            outcome.bytes,
            error(Leg::ToPod, v6(A), &sent[14..]),
            "{kind:?}"
        );
    }
}

#[test]
fn a_pods_error_about_an_answer_leaves_translated() {
    let mut world = world();
    let port = open(&mut world, Kind::Udp);
    let answer = packet(Kind::Udp, Leg::ToPod, pod(40_000));
    let shown = packet(Kind::Udp, Leg::ToPod, node(port));
    let error = |leg: Leg, from: Ipv4Addr, quoted: &[u8]| {
        let [source, destination] = leg.ethernet();
        let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(source, destination)
            .ipv4(from.octets(), SERVER.octets(), leg.hops())
            .icmpv4(kind)
            .write(&mut bytes, quoted)
            .unwrap();
        bytes
    };
    let outcome = world.send(A, &error(Leg::FromPod, v4(A), &answer[14..]));
    assert_eq!(outcome.bytes, error(Leg::ToWire, NODE_V4, &shown[14..]));
    let strange = packet(Kind::Udp, Leg::ToPod, pod(40_001));
    let outcome = world.send(A, &error(Leg::FromPod, v4(A), &strange[14..]));
    assert_eq!(outcome.dropped(), Some(DropReason::NoConnection));
}

/// A packet cut into its first 24 bytes of payload and the rest.
fn pieces(whole: &[u8]) -> [Vec<u8>; 2] {
    let make = |from: usize, to: usize, offset: u16| {
        let mut bytes = whole[..34].to_vec();
        bytes.extend(&whole[34 + from..34 + to]);
        bytes[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        bytes[18..20].copy_from_slice(&[0x12, 0x34]);
        bytes[20..22].copy_from_slice(&offset.to_be_bytes());
        bytes[24..26].fill(0);
        let sum = !naive_sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    [make(0, 16, 0x2000), make(16, whole.len() - 34, 2)]
}

#[test]
fn later_fragments_follow_the_first() {
    for kind in [Kind::Udp, Kind::Echo] {
        let mut world = world();
        let [first, later] = pieces(&packet(kind, Leg::FromPod, pod(40_000)));
        let early = world.send(A, &later);
        assert_eq!(early.dropped(), Some(DropReason::FirstFragmentMissing));
        let outcomes = [world.send(A, &first), world.send(A, &later)];
        let port = outside(&world);
        let expect = pieces(&packet(kind, Leg::ToWire, node(port)));
        for (outcome, expect) in outcomes.iter().zip(&expect) {
            assert_eq!(outcome.bytes, *expect, "{kind:?}");
        }
        let back = pieces(&packet(kind, Leg::FromWire, node(port)));
        let expect = pieces(&packet(kind, Leg::ToPod, pod(40_000)));
        for (piece, expect) in back.iter().zip(&expect) {
            assert_eq!(world.send(UPLINK, piece).bytes, *expect, "{kind:?}");
        }
    }
}

#[test]
fn a_tcp_header_is_in_one_piece() {
    let split = |kind, leg, near| pieces(&packet(kind, leg, near));
    let mut world = world();
    let port = open(&mut world, Kind::Tcp(SYN));
    for (from, [first, later]) in [
        (A, split(Kind::Tcp(SYN), Leg::FromPod, pod(40_000))),
        (A, split(Kind::Tcp(ACK), Leg::FromPod, pod(40_001))),
        (UPLINK, split(Kind::Tcp(ACK), Leg::FromWire, node(port))),
    ] {
        let dropped = world.send(from, &first).dropped();
        assert_eq!(dropped, Some(DropReason::BadFragment));
        let dropped = world.send(from, &later).dropped();
        assert_eq!(dropped, Some(DropReason::FirstFragmentMissing));
    }
}

#[test]
fn what_cannot_be_translated_is_refused_by_name() {
    let mut world = world();
    let mut sctp = packet(Kind::Udp, Leg::FromPod, pod(40_000));
    sctp[23] = 132;
    sctp[24..26].fill(0);
    let sum = !naive_sum(&sctp[14..34]);
    sctp[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(
        world.send(A, &sctp).dropped(),
        Some(DropReason::MasqueradeUnsupported)
    );
    let reset = world.send(A, &packet(Kind::Tcp(RST), Leg::FromPod, pod(40_000)));
    assert_eq!(reset.dropped(), Some(DropReason::NoConnection));
}

#[test]
fn exhaustion_is_named_and_ends() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 61_000..=61_009;
    });
    for port in 0..10 {
        let out = world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(40_000 + port)));
        assert!(out.dropped().is_none(), "{port}");
    }
    let eleventh = packet(Kind::Udp, Leg::FromPod, pod(40_010));
    for _ in 0..3 {
        let out = world.send(A, &eleventh);
        assert_eq!(out.dropped(), Some(DropReason::NoMasqueradePort));
    }
    // Time passes; each batch looks after a part of the timers.
    world.now.0 += 40_000_000_000;
    for _ in 0..200 {
        world.decide([]);
    }
    assert!(world.send(A, &eleventh).dropped().is_none());
}

#[test]
fn a_tcp_connection_is_followed_and_its_flows_carry_it() {
    let mut world = world();
    let out = |world: &mut World, flags| {
        let outcome = world.send(A, &packet(Kind::Tcp(flags), Leg::FromPod, pod(40_000)));
        assert!(outcome.dropped().is_none());
        connection(world).state
    };
    assert_eq!(out(&mut world, SYN), State::SynSent);
    let port = outside(&world);
    let back = |world: &mut World, flags| {
        let outcome = world.send(UPLINK, &packet(Kind::Tcp(flags), Leg::FromWire, node(port)));
        assert!(outcome.dropped().is_none());
        connection(world).state
    };
    assert_eq!(back(&mut world, SYN | ACK), State::SynReceived);
    assert_eq!(world.counters.flow_entries.get(), 0, "not settled");
    assert_eq!(out(&mut world, ACK), State::Established);
    back(&mut world, ACK);
    let hits = world.counters.flow_hits.get();
    for second in 0..100 {
        world.now.0 += 1_000_000_000;
        out(&mut world, ACK);
        assert_eq!(back(&mut world, ACK), State::Established, "{second}");
    }
    assert_eq!(world.counters.flow_hits.get(), hits + 200);
    let record = connection(&world);
    // Each flow tells of its last packet with the next one.
    assert_eq!((record.packets, record.idle_ms), (202, 0));
    assert_eq!(out(&mut world, FIN), State::FinWait);
    assert_eq!(back(&mut world, FIN), State::TimeWait);
    assert_eq!(out(&mut world, ACK), State::TimeWait);
    assert_eq!(out(&mut world, SYN), State::SynSent, "begun anew");
    assert_eq!(back(&mut world, RST | ACK), State::Reset);
}

#[test]
fn a_flow_does_not_outlive_its_connection() {
    let mut world = world();
    let port = open(&mut world, Kind::Udp);
    let answer = packet(Kind::Udp, Leg::FromWire, node(port));
    assert!(world.send(UPLINK, &answer).dropped().is_none());
    world.connections.forget(PortId(A));
    world.now.0 += 1_100_000_000;
    let stranger = packet(Kind::Udp, Leg::FromWire, node(port));
    for _ in 0..2 {
        let outcome = world.send(UPLINK, &stranger);
        assert_eq!(outcome.dropped(), Some(DropReason::NoConnection));
    }
    world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(40_000)));
    assert_eq!(world.connections.len(), 1, "opened again");
}

#[test]
fn one_pods_connections_do_not_starve_another() {
    let mut world = world();
    let limit = world.connections.pod_limit(Origin::Pod) as u16;
    let mut refused = 0;
    for port in 0..limit + 100 {
        let bytes = packet(Kind::Udp, Leg::FromPod, pod(1024 + port));
        if world.send(A, &bytes).dropped() == Some(DropReason::ConnectionLimit) {
            refused += 1;
        }
    }
    assert_eq!(refused, 100);
    let mut other = packet(Kind::Echo, Leg::FromPod, (v4(B), v6(B), 9));
    other[6..12].copy_from_slice(&mac(B).0);
    assert!(world.send(B, &other).dropped().is_none());
}

/// What a pod sends to the server for a device to cut.
fn super_frame() -> Vec<u8> {
    let mut bytes = Vec::new();
    let [from, to] = Leg::FromPod.ethernet();
    PacketBuilder::ethernet2(from, to)
        .ipv4(v4(A).octets(), SERVER.octets(), 60)
        .tcp(40_000, 53, 7, 1000)
        .ack(9)
        .write(&mut bytes, &[7; 4000])
        .unwrap();
    make_partial_v4(&mut bytes, 34, 16);
    bytes
}

#[test]
fn super_frames_are_cut_to_what_the_path_and_the_peer_take() {
    let mut world = world();
    let port = open(&mut world, Kind::Tcp(SYN));
    let mut answer = Vec::new();
    let [from, to] = Leg::FromWire.ethernet();
    PacketBuilder::ethernet2(from, to)
        .ipv4(SERVER.octets(), NODE_V4.octets(), 60)
        .tcp(53, port, 7, 1000)
        .syn()
        .ack(9)
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1310)])
        .unwrap()
        .write(&mut answer, &[])
        .unwrap();
    assert!(world.send(UPLINK, &answer).dropped().is_none());
    let cut = |world: &mut World| match world.send(A, &super_frame()).verdict {
        Verdict::Segment { mtu, .. } => mtu,
        other => panic!("{other:?}"),
    };
    assert_eq!([cut(&mut world), cut(&mut world)], [1350, 1350]);
    // A narrower link on the way: known at once, by flows too.
    let left = packet(Kind::Tcp(ACK), Leg::ToWire, node(port));
    let mut error = unreachable(Leg::FromWire.ethernet(), NODE_V4, 60, &left[14..]);
    error[40..42].copy_from_slice(&1280u16.to_be_bytes());
    world.now.0 += 2_000_000;
    world.send(UPLINK, &error);
    assert_eq!([cut(&mut world), cut(&mut world)], [1280, 1280]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Packets with bytes changed and ends cut: nothing is read or written
    /// outside them, from either side, quoted or not.
    #[test]
    fn broken_packets_do_no_harm(
        changes in proptest::collection::vec((14usize..120, proptest::prelude::any::<u8>()), 1..6),
        cut in 14usize..140,
    ) {
        let mut world = world();
        for kind in [Kind::Udp, Kind::Tcp(ACK), Kind::Echo, Kind::UdpV6, Kind::TcpV6, Kind::EchoV6] {
            world.send(A, &packet(kind, Leg::FromPod, pod(40_000)));
        }
        let port = world.connections.records(0)[0].reply.destination.port;
        let left = packet(Kind::Udp, Leg::ToWire, node(port));
        let mut packets = vec![
            (UPLINK, unreachable(Leg::FromWire.ethernet(), NODE_V4, 60, &left[14..])),
            (A, unreachable(Leg::FromPod.ethernet(), SERVER, 60, &left[14..])),
        ];
        for kind in [Kind::Udp, Kind::Tcp(SYN), Kind::Echo, Kind::UdpV6, Kind::TcpV6, Kind::EchoV6] {
            packets.push((A, packet(kind, Leg::FromPod, pod(40_000))));
            packets.push((UPLINK, packet(kind, Leg::FromWire, node(port))));
        }
        for (from, mut bytes) in packets {
            for &(at, value) in &changes {
                let at = at % bytes.len();
                if at >= 14 {
                    bytes[at] = value;
                }
            }
            bytes.truncate(cut.max(20));
            if bytes.len() >= 34 && bytes[12..14] == [8, 0] && bytes[14] == 0x45 {
                bytes[24..26].fill(0);
                let sum = !naive_sum(&bytes[14..34]);
                bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            world.send(from, &bytes);
        }
    }
}
