//! Layer-2 segments: learning, flooding, isolation, guard.

use etherparse::PacketBuilder;

use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{TxChecksum, Verdict};
use crate::pipeline::world::*;
use crate::snapshot::Location;
use crate::types::{MacAddr, Nanos, PortId, SegmentId};

const BROADCAST: MacAddr = MacAddr::BROADCAST;

fn udp(source: MacAddr, destination: MacAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4(v4(BLUE_A).octets(), v4(BLUE_B).octets(), 1)
        .udp(1, 2)
        .write(&mut packet, b"hello")
        .unwrap();
    packet
}

fn station(segment: u16, mac: MacAddr, port: u16) -> Event {
    Event::Station {
        segment: SegmentId(segment),
        mac,
        at: Location::Port(PortId(port)),
    }
}

fn flood(segment: u16) -> Verdict {
    Verdict::Flood {
        segment: SegmentId(segment),
        checksum: None,
        mtu: u16::MAX,
    }
}

fn forward(port: u16) -> Verdict {
    Verdict::Forward {
        out: PortId(port),
        checksum: None,
    }
}

#[test]
fn an_unknown_station_is_flooded_and_a_learned_one_is_not() {
    let mut world = World::new();
    let packet = udp(mac(BLUE_A), mac(BLUE_B));
    let outcome = world.send(BLUE_A, &packet);
    assert_eq!(outcome.verdict, flood(0));
    assert_eq!(outcome.bytes, packet, "a switch changes nothing");
    assert_eq!(world.events.pop(), Ok(station(0, mac(BLUE_A), BLUE_A)));
    world.learn(0, mac(BLUE_A), BLUE_A, false);
    world.learn(0, mac(BLUE_B), BLUE_B, false);
    for _ in 0..2 {
        let outcome = world.send(BLUE_A, &packet);
        assert_eq!(outcome.verdict, forward(BLUE_B));
        assert_eq!(outcome.bytes, packet);
    }
}

#[test]
fn groups_are_flooded_but_for_reserved_ones() {
    let mut world = World::new();
    let groups = [BROADCAST, "33:33:00:00:00:01".parse().unwrap()];
    for group in groups {
        let verdict = world.send(BLUE_A, &udp(mac(BLUE_A), group)).verdict;
        assert_eq!(verdict, flood(0));
    }
    let reserved = "01:80:c2:00:00:00".parse().unwrap();
    let outcome = world.send(BLUE_A, &udp(mac(BLUE_A), reserved));
    assert_eq!(outcome.dropped(), Some(DropReason::ReservedGroup));
}

#[test]
fn a_station_that_moves_is_told_and_followed() {
    let mut world = World::new();
    world.learn(0, mac(BLUE_A), BLUE_A, false);
    world.learn(0, mac(BLUE_B), BLUE_B, false);
    let there = udp(mac(BLUE_A), mac(BLUE_B));
    assert_eq!(world.send(BLUE_A, &there).verdict, forward(BLUE_B));
    while world.events.pop().is_ok() {}
    // B sends from another port.
    world.send(BLUE_SMALL, &udp(mac(BLUE_B), BROADCAST));
    assert_eq!(world.events.pop(), Ok(station(0, mac(BLUE_B), BLUE_SMALL)));
    world.learn(0, mac(BLUE_B), BLUE_SMALL, false);
    assert_eq!(world.send(BLUE_A, &there).verdict, forward(BLUE_SMALL));
}

#[test]
fn a_static_station_cannot_be_taken_over() {
    let mut world = World::new();
    world.learn(0, mac(BLUE_B), BLUE_B, true);
    let outcome = world.send(BLUE_A, &udp(mac(BLUE_B), BROADCAST));
    assert_eq!(outcome.dropped(), Some(DropReason::BadSourceMac));
    assert_eq!(world.events.pop(), Ok(station(0, mac(BLUE_B), BLUE_A)));
    assert_eq!(
        world.send(BLUE_B, &udp(mac(BLUE_B), BROADCAST)).verdict,
        flood(0)
    );
}

#[test]
fn a_live_flow_refreshes_its_station_every_ten_seconds() {
    let mut world = World::new();
    world.learn(0, mac(BLUE_A), BLUE_A, false);
    world.learn(0, mac(BLUE_B), BLUE_B, false);
    let packet = udp(mac(BLUE_A), mac(BLUE_B));
    world.send(BLUE_A, &packet);
    while world.events.pop().is_ok() {}
    let start = world.now.0;
    let mut told = 0;
    for second in 0..35 {
        world.now = Nanos(start + second * 1_000_000_000);
        for _ in 0..5 {
            world.send(BLUE_A, &packet);
        }
        while let Ok(event) = world.events.pop() {
            assert_eq!(event, station(0, mac(BLUE_A), BLUE_A));
            told += 1;
        }
    }
    assert_eq!(told, 3);
}

#[test]
fn frames_that_go_nowhere() {
    let group: MacAddr = "03:00:00:00:00:01".parse().unwrap();
    let mut world = World::new();
    world.learn(0, mac(BLUE_A), BLUE_A, false);
    world.learn(0, mac(BLUE_B), 31, false);
    let cases = [
        (
            "behind its own port",
            udp(mac(BLUE_B), mac(BLUE_A)),
            DropReason::SamePort,
        ),
        (
            "group as source",
            udp(group, BROADCAST),
            DropReason::BadSourceMac,
        ),
        (
            "zero as source",
            udp(MacAddr::ZERO, BROADCAST),
            DropReason::BadSourceMac,
        ),
        (
            "port gone",
            udp(mac(BLUE_A), mac(BLUE_B)),
            DropReason::PortGone,
        ),
        ("runt", vec![0; 13], DropReason::Runt),
    ];
    for (name, packet, reason) in cases {
        for _ in 0..2 {
            assert_eq!(
                world.send(BLUE_A, &packet).dropped(),
                Some(reason),
                "{name}"
            );
        }
    }
    world.publish(|snapshot| snapshot.segments = std::sync::Arc::default());
    let outcome = world.send(BLUE_A, &udp(mac(BLUE_A), BROADCAST));
    assert_eq!(outcome.dropped(), Some(DropReason::NoSegment));
}

#[test]
fn a_port_of_another_network_is_never_a_way_out() {
    let mut world = World::new();
    for (other, name) in [(RED_B, "another segment"), (A, "a routed pod")] {
        world.learn(0, mac(BLUE_B), other, false);
        let outcome = world.send(BLUE_A, &udp(mac(BLUE_A), mac(BLUE_B)));
        assert_eq!(outcome.dropped(), Some(DropReason::PortGone), "{name}");
    }
}

#[test]
fn vlan_and_unknown_types_pass() {
    let mut world = World::new();
    world.learn(0, mac(BLUE_B), BLUE_B, false);
    for ethertype in [[0x81, 0x00], [0x88, 0xb5], [0x00, 0x26]] {
        let mut packet = udp(mac(BLUE_A), mac(BLUE_B));
        packet[12..14].copy_from_slice(&ethertype);
        assert_eq!(world.send(BLUE_A, &packet).verdict, forward(BLUE_B));
    }
}

fn tcp(len: usize, vlan: bool, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(BLUE_A).0, mac(to).0)
        .ipv4(v4(BLUE_A).octets(), v4(to).octets(), 64)
        .tcp(1, 2, 3, 4)
        .write(&mut packet, &vec![7; len])
        .unwrap();
    make_partial_v4(&mut packet, 34, 16);
    if vlan {
        packet.splice(12..12, [0x81, 0x00, 0, 9]);
    }
    packet
}

#[test]
fn partial_checksums_and_super_frames_pass() {
    let mut world = World::new();
    world.learn(0, mac(BLUE_B), BLUE_B, false);
    world.learn(0, mac(BLUE_SMALL), BLUE_SMALL, false);
    for (len, vlan, start) in [
        (3, false, 34),
        (3, true, 38),
        (40_000, false, 34),
        (40_000, true, 38),
    ] {
        let checksum = Some(TxChecksum { start, offset: 16 });
        let verdict = world.send(BLUE_A, &tcp(len, vlan, BLUE_B)).verdict;
        let out = PortId(BLUE_B);
        assert_eq!(verdict, Verdict::Forward { out, checksum });
    }
    let verdict = world.send(BLUE_A, &tcp(40_000, false, BLUE_SMALL)).verdict;
    let out = PortId(BLUE_SMALL);
    assert_eq!(verdict, Verdict::Segment { out, mtu: MTU });
    // Padding would be summed by the receiver's kernel.
    let mut padded = tcp(3, false, BLUE_B);
    padded.resize(60, 0);
    assert_eq!(world.send(BLUE_A, &padded).bytes.len(), 57);
    // A frame that nobody can cut.
    let mut big = tcp(40_000, false, BLUE_B);
    big[50] ^= 1;
    assert_eq!(
        world.send(BLUE_A, &big).dropped(),
        Some(DropReason::Oversize)
    );
}

#[test]
fn a_guarded_segment_holds_stations_to_their_addresses() {
    let packet = |source: MacAddr, ip: [u8; 4]| {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(source.0, BROADCAST.0)
            .ipv4(ip, [10, 50, 0, 99], 64)
            .udp(1, 2)
            .write(&mut packet, b"x")
            .unwrap();
        packet
    };
    let arp = |sender: MacAddr, ip: [u8; 4]| {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(mac(RED_A).0, BROADCAST.0)
            .arp(
                etherparse::ArpPacket::new(
                    etherparse::ArpHardwareId::ETHERNET,
                    etherparse::EtherType::IPV4,
                    etherparse::ArpOperation::REQUEST,
                    &sender.0,
                    &ip,
                    &[0; 6],
                    &[10, 50, 0, 99],
                )
                .unwrap(),
            )
            .write(&mut packet)
            .unwrap();
        packet
    };
    let (own, other) = (v4(RED_A).octets(), v4(RED_B).octets());
    let cases = [
        ("own", packet(mac(RED_A), own), None),
        ("dhcp", packet(mac(RED_A), [0; 4]), None),
        (
            "mac",
            packet(mac(RED_B), own),
            Some(DropReason::BadSourceMac),
        ),
        (
            "address",
            packet(mac(RED_A), other),
            Some(DropReason::Spoofed),
        ),
        ("own arp", arp(mac(RED_A), own), None),
        ("arp probe", arp(mac(RED_A), [0; 4]), None),
        (
            "arp address",
            arp(mac(RED_A), other),
            Some(DropReason::SpoofedNeighbor),
        ),
        (
            "arp mac",
            arp(mac(RED_B), own),
            Some(DropReason::SpoofedNeighbor),
        ),
    ];
    let mut world = World::new();
    for (name, packet, reason) in cases {
        for _ in 0..2 {
            let outcome = world.send(RED_A, &packet);
            assert_eq!(outcome.dropped(), reason, "{name}");
            // What the guard did not look at goes nowhere.
            let with_more = [&packet[..], &[0xee; 60]].concat();
            let outcome = world.send(RED_A, &with_more);
            assert_eq!(outcome.dropped(), reason, "{name} and more");
            assert!(
                reason.is_some() || outcome.bytes == packet,
                "{name} and more"
            );
        }
    }
}

#[test]
fn a_guarded_segment_holds_neighbour_discovery_to_the_truth() {
    let message = |kind: u8, target: u16, option: MacAddr| {
        let mut body = Vec::from(v6(target).octets());
        body.extend([if kind == 135 { 1 } else { 2 }, 1]);
        body.extend(option.0);
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(mac(RED_A).0, BROADCAST.0)
            .ipv6(v6(RED_A).octets(), v6(RED_B).octets(), 255)
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut packet, &body)
            .unwrap();
        packet
    };
    let spoofed = Some(DropReason::SpoofedNeighbor);
    let cases = [
        ("solicits", message(135, RED_B, mac(RED_A)), None),
        (
            "solicits for another",
            message(135, RED_B, mac(RED_B)),
            spoofed,
        ),
        ("advertises", message(136, RED_A, mac(RED_A)), None),
        (
            "advertises another",
            message(136, RED_B, mac(RED_A)),
            spoofed,
        ),
        (
            "advertises another's mac",
            message(136, RED_A, mac(RED_B)),
            spoofed,
        ),
        (
            "advertises a router",
            message(134, RED_A, mac(RED_A)),
            spoofed,
        ),
    ];
    let mut world = World::new();
    for (name, packet, reason) in cases {
        assert_eq!(world.send(RED_A, &packet).dropped(), reason, "{name}");
    }
}
