//! The segment that uplink, pods and the node share.

use std::sync::Arc;

use etherparse::TcpOptionElement::MaximumSegmentSize;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, TcpHeader, icmpv4};

use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::Verdict;
use crate::pipeline::world::*;
use crate::snapshot::{Location, Underlay};
use crate::types::{MacAddr, PortId, SegmentId};

const NEIGHBOR: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

/// Segment 1 with its guard, shared with the uplink and the node, which is
/// there under the uplink's MAC address.
fn world() -> World {
    let mut world = World::with_underlay();
    world.publish(|snapshot| {
        snapshot.underlay = Arc::new(Underlay {
            segment: Some(SegmentId(1)),
            ..(*snapshot.underlay).clone()
        });
    });
    world.learn(1, UPLINK_MAC, HOST, true);
    world.learn(1, mac(RED_A), RED_A, true);
    world.learn(1, NEIGHBOR, UPLINK, false);
    world
}

fn udp(source: MacAddr, destination: MacAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4(v4(RED_A).octets(), v4(RED_B).octets(), 9)
        .udp(1, 2)
        .write(&mut packet, b"hello")
        .unwrap();
    packet
}

fn forward(port: u16) -> Verdict {
    Verdict::Forward {
        out: PortId(port),
        checksum: None,
    }
}

/// Nobody knows any more where that station is.
fn forget(world: &mut World, station: MacAddr) {
    world.publish(|snapshot| {
        let segments = Arc::make_mut(&mut snapshot.segments);
        let segment = segments[1].as_mut().unwrap();
        Arc::make_mut(&mut segment.fdb).remove(&station);
    });
}

#[test]
fn pods_reach_the_wire_and_the_node() {
    let mut world = world();
    let flood = Verdict::Flood {
        segment: SegmentId(1),
        checksum: None,
        mtu: u16::MAX,
    };
    let cases = [
        (RED_A, mac(RED_A), NEIGHBOR, forward(UPLINK)),
        (RED_A, mac(RED_A), UPLINK_MAC, forward(HOST)),
        (UPLINK, NEIGHBOR, mac(RED_A), forward(RED_A)),
        (HOST, UPLINK_MAC, mac(RED_A), forward(RED_A)),
        (UPLINK, NEIGHBOR, MacAddr::BROADCAST, flood),
        (HOST, UPLINK_MAC, MacAddr::BROADCAST, flood),
        // The kernel has the wire for itself.
        (
            HOST,
            UPLINK_MAC,
            NEIGHBOR,
            Verdict::Drop(DropReason::SplitHorizon),
        ),
    ];
    for (port, source, destination, expect) in cases {
        let outcome = world.send(port, &udp(source, destination));
        assert_eq!(outcome.verdict, expect, "{port}: {source} to {destination}");
    }
}

#[test]
fn a_station_of_the_node_that_comes_by_the_wire_is_dropped_and_told_now_and_then() {
    let mut world = world();
    for _ in 0..20 {
        let outcome = world.send(UPLINK, &udp(mac(RED_A), MacAddr::BROADCAST));
        assert_eq!(outcome.dropped(), Some(DropReason::BadSourceMac));
    }
    let told = Event::Station {
        segment: SegmentId(1),
        mac: mac(RED_A),
        at: Location::Port(PortId(UPLINK)),
    };
    assert_eq!(world.events.pop(), Ok(told));
    assert!(world.events.pop().is_err());
}

#[test]
fn a_pod_without_addresses_is_held_to_its_mac_alone() {
    let mut world = world();
    world.change_port(RED_B, |port| port.addresses.clear());
    let any = world.send(RED_B, &udp(mac(RED_B), NEIGHBOR));
    assert_eq!(any.verdict, forward(UPLINK));
    let outcome = world.send(RED_B, &udp(mac(RED_A), NEIGHBOR));
    assert_eq!(outcome.dropped(), Some(DropReason::BadSourceMac));
}

/// A TCP packet between the pod and its neighbour.
fn tcp(is_v6: bool, is_out: bool) -> PacketBuilderStep<TcpHeader> {
    let (from, to) = if is_out {
        (RED_A, RED_B)
    } else {
        (RED_B, RED_A)
    };
    let (near, far) = (mac(RED_A).0, NEIGHBOR.0);
    let ends = match is_out {
        true => PacketBuilder::ethernet2(near, far),
        false => PacketBuilder::ethernet2(far, near),
    };
    match is_v6 {
        true => ends.ipv6(v6(from).octets(), v6(to).octets(), 60),
        false => ends.ipv4(v4(from).octets(), v4(to).octets(), 60),
    }
    .tcp(80, 90, 7, 1000)
}

fn written(builder: PacketBuilderStep<TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// How long the pieces are that a super-frame to the wire is cut into.
fn cut(world: &mut World, is_v6: bool) -> u32 {
    let mut bytes = written(tcp(is_v6, true).ack(9), &[7; 4000]);
    match is_v6 {
        true => make_partial_v6(&mut bytes, 54, 16),
        false => make_partial_v4(&mut bytes, 34, 16),
    }
    match world.send(RED_A, &bytes).verdict {
        Verdict::Segment { mtu, .. } => mtu,
        Verdict::Flood { mtu, .. } => mtu.into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn super_frames_are_cut_to_what_stations_and_paths_take() {
    for (is_v6, headers) in [(false, 40), (true, 60)] {
        let mut world = world();
        let whole = cut(&mut world, is_v6);
        let options = [MaximumSegmentSize(1380)];
        let answer = tcp(is_v6, false).syn().ack(8).options(&options).unwrap();
        assert_eq!(
            world.send(UPLINK, &written(answer, &[])).verdict,
            forward(RED_A)
        );
        assert_eq!(cut(&mut world, is_v6), 1380 + headers);
        assert!(1380 + headers < whole);
        // Also while nobody knows where the station is.
        forget(&mut world, NEIGHBOR);
        assert_eq!(cut(&mut world, is_v6), 1380 + headers);
        world.learn(1, NEIGHBOR, UPLINK, false);

        let quoted = written(tcp(is_v6, true).ack(9), &[7; 100])[14..].to_vec();
        let mut bytes = Vec::new();
        let ends = PacketBuilder::ethernet2(NEIGHBOR.0, mac(RED_A).0);
        match is_v6 {
            true => ends
                .ipv6(v6(RED_B).octets(), v6(RED_A).octets(), 60)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1300 })
                .write(&mut bytes, &quoted),
            false => {
                let needed =
                    icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1300 };
                ends.ipv4([172, 31, 0, 254], v4(RED_A).octets(), 60)
                    .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
                    .write(&mut bytes, &quoted)
            }
        }
        .unwrap();
        assert_eq!(world.send(UPLINK, &bytes).verdict, forward(RED_A));
        assert_eq!(cut(&mut world, is_v6), 1300);
        // Other packets are for whoever is on the way to refuse.
        let plain = written(tcp(is_v6, true).ack(9), &[7; 1300]);
        assert_eq!(world.send(RED_A, &plain).verdict, forward(UPLINK));
    }
}

#[test]
fn what_frames_only_seem_to_say_is_passed_by() {
    let mut world = world();
    let whole = cut(&mut world, false);
    let options = [MaximumSegmentSize(1300)];
    let syn = written(tcp(false, false).syn().options(&options).unwrap(), &[]);
    // Cut off anywhere, and in another's name.
    for len in 14..syn.len() {
        world.send(UPLINK, &syn[..len]);
    }
    let mut other = syn.clone();
    other[29] ^= 1;
    world.send(UPLINK, &other);
    assert_eq!(cut(&mut world, false), whole);
}
