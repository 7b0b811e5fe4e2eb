//! The addresses that packets leave with: several, changing, none; and many
//! connections by one.

use std::collections::{HashMap, HashSet};

use etherparse::{TcpHeader, TcpOptionElement};

use super::*;
use crate::pipeline::FlowCapacity;
use crate::tables::connection::Connections;

const SECOND_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 77);

fn exits(world: &mut World, egress_v4: &[Ipv4Addr]) {
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.egress_v4 = egress_v4.to_vec();
    });
}

/// The source of what a pod's packet became.
fn source(world: &mut World, port: u16) -> (Ipv4Addr, u16) {
    let out = world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(port)));
    assert!(out.dropped().is_none(), "{out:?}");
    let bytes = out.bytes;
    let address: [u8; 4] = bytes[26..30].try_into().unwrap();
    (address.into(), u16::from_be_bytes([bytes[34], bytes[35]]))
}

#[test]
fn a_pod_leaves_by_one_address_of_several() {
    let mut world = world();
    exits(&mut world, &[NODE_V4, SECOND_V4]);
    let first: HashSet<_> = (1024..1224).map(|p| source(&mut world, p).0).collect();
    assert_eq!(first.len(), 1);
    // Another pod may leave by the other one; answers to both come in.
    let mut bytes = packet(Kind::Udp, Leg::FromPod, (v4(B), v6(B), 9));
    bytes[6..12].copy_from_slice(&mac(B).0);
    assert!(world.send(B, &bytes).dropped().is_none());
    for record in world.connections.records(world.now.0 / 1_000_000) {
        let outside = record.reply.destination;
        let std::net::IpAddr::V4(address) = outside.address.ip() else {
            panic!("{record:?}")
        };
        let answer = packet(Kind::Udp, Leg::FromWire, (address, NODE_V6, outside.port));
        assert!(world.send(UPLINK, &answer).dropped().is_none());
    }
}

#[test]
fn the_next_address_serves_when_ports_of_one_are_gone() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.egress_v4 = vec![NODE_V4, SECOND_V4];
        masquerade.ports = 61_000..=61_015;
    });
    let seen: Vec<_> = (0..32).map(|p| source(&mut world, 1024 + p)).collect();
    let distinct: HashSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), 32, "{seen:?}");
    let out = world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(2000)));
    assert_eq!(out.dropped(), Some(DropReason::NoMasqueradePort));
}

#[test]
fn an_address_that_is_gone_is_left_at_once() {
    let mut world = world();
    let (_, port) = source(&mut world, 40_000);
    exits(&mut world, &[SECOND_V4]);
    assert_eq!(source(&mut world, 40_000).0, SECOND_V4);
    assert_eq!(source(&mut world, 40_001).0, SECOND_V4);
    assert_eq!(world.connections.len(), 2, "the old one is gone");
    // What still comes to the old address is not for a pod.
    let late = packet(Kind::Udp, Leg::FromWire, node(port));
    assert!(world.send(UPLINK, &late).dropped().is_some());
    // One that is added changes nothing for who has another.
    exits(&mut world, &[NODE_V4, SECOND_V4]);
    assert_eq!(source(&mut world, 40_000).0, SECOND_V4);
}

#[test]
fn without_an_address_nothing_leaves() {
    let mut world = world();
    exits(&mut world, &[]);
    let out = world.send(A, &packet(Kind::Udp, Leg::FromPod, pod(40_000)));
    assert_eq!(out.dropped(), Some(DropReason::NoMasqueradeAddress));
    // The other family is not touched by it.
    let out = world.send(A, &packet(Kind::UdpV6, Leg::FromPod, pod(40_000)));
    assert!(out.dropped().is_none());
}

#[test]
fn two_pods_with_one_echo_identifier_are_told_apart() {
    let mut world = world();
    let from_b = |id: u16| {
        let mut bytes = packet(Kind::Echo, Leg::FromPod, (v4(B), v6(B), id));
        bytes[6..12].copy_from_slice(&mac(B).0);
        bytes
    };
    // 62 000 is in the range: the first one keeps it, the second gets another.
    let a = world.send(A, &packet(Kind::Echo, Leg::FromPod, pod(62_000)));
    let b = world.send(B, &from_b(62_000));
    let id = |bytes: &[u8]| u16::from_be_bytes([bytes[38], bytes[39]]);
    assert_eq!(id(&a.bytes), 62_000);
    assert_ne!(id(&b.bytes), 62_000);
    for (outside, to) in [(id(&a.bytes), A), (id(&b.bytes), B)] {
        let back = world.send(UPLINK, &packet(Kind::Echo, Leg::FromWire, node(outside)));
        let out = PortId(to);
        assert!(matches!(back.verdict, Verdict::Forward { out: o, .. } if o == out));
        assert_eq!(back.bytes[30..34], v4(to).octets());
        assert_eq!(id(&back.bytes), 62_000, "as it asked");
    }
}

/// A first packet of TCP from the pod's `port` to a server.
fn syn(port: u16, server: u8, leg: Leg) -> Vec<u8> {
    let mut bytes = Vec::new();
    let [from, to] = leg.ethernet();
    PacketBuilder::ethernet2(from, to)
        .ipv4(v4(A).octets(), [203, 0, 113, server], leg.hops())
        .tcp(port, 443, 7, 1000)
        .syn()
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

/// 100 000 TCP connections to eight ends from one address, by whole packets:
/// an end keeps its port towards everybody while ports last; then ports serve
/// again for each destination; no two packets outside look alike.
#[test]
fn a_hundred_thousand_connections_leave_by_one_address() {
    let flows = FlowCapacity::default();
    let mut world = World::with_connections(flows, Connections::default()).with_ways_out();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 49_152..=65_535;
    });
    let mut outside = HashSet::new();
    let mut by_end: HashMap<u16, HashSet<u16>> = HashMap::new();
    for number in 0..100_000u32 {
        let (port, server) = (1024 + (number / 8) as u16, (number % 8) as u8 + 1);
        let out = world.send(A, &syn(port, server, Leg::FromPod));
        assert!(out.dropped().is_none(), "{number}: {out:?}");
        let bytes = &out.bytes;
        assert_eq!(bytes[26..30], NODE_V4.octets());
        let sport = u16::from_be_bytes([bytes[34], bytes[35]]);
        assert!(sport >= 49_152);
        assert!(outside.insert((sport, server)), "{number}: two look alike");
        by_end.entry(port).or_default().insert(sport);
    }
    let kept = by_end.values().filter(|ports| ports.len() == 1).count();
    assert!(kept * 100 > by_end.len() * 97, "{kept} of {}", by_end.len());
    assert_eq!(world.connections.len(), 100_000);
}

#[test]
fn the_switch_answers_the_outside_from_the_address_that_was_asked() {
    let mut world = world();
    exits(&mut world, &[SECOND_V4, NODE_V4]);
    let (address, port) = source(&mut world, 40_000);
    let mut answer = packet(Kind::Udp, Leg::FromWire, (address, NODE_V6, port));
    // Its last hop.
    answer[22] = 1;
    answer[24..26].fill(0);
    let sum = !naive_sum(&answer[14..34]);
    answer[24..26].copy_from_slice(&sum.to_be_bytes());
    let outcome = world.send(UPLINK, &answer);
    assert!(matches!(
        outcome.verdict,
        Verdict::Reply {
            dropped: Some(DropReason::TtlExceeded)
        }
    ));
    let [from, to] = [UPLINK_MAC.0, NEIGHBOR_MAC.0];
    let mut expect = Vec::new();
    let code = icmpv4::TimeExceededCode::TtlExceededInTransit;
    PacketBuilder::ethernet2(from, to)
        .ipv4(address.octets(), SERVER.octets(), 64)
        .icmpv4(Icmpv4Type::TimeExceeded(code))
        .write(&mut expect, &answer[14..])
        .unwrap();
    // DSCP CS6 for what keeps the network going.
    expect[15] = 0xc0;
    expect[24..26].fill(0);
    let sum = !naive_sum(&expect[14..34]);
    expect[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(outcome.bytes, expect);
}

/// A port that is used again at once: flows of the connection that had it
/// translate nothing more.
#[test]
fn a_port_that_is_used_again_is_the_new_ones_alone() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 61_000..=61_000;
    });
    let talk = |world: &mut World, inside: u16, flags: [u8; 2]| {
        let out = world.send(A, &packet(Kind::Tcp(flags[0]), Leg::FromPod, pod(inside)));
        let expect = packet(Kind::Tcp(flags[0]), Leg::ToWire, node(61_000));
        assert_eq!(out.bytes, expect, "{inside}: {flags:?}");
        let back = world.send(
            UPLINK,
            &packet(Kind::Tcp(flags[1]), Leg::FromWire, node(61_000)),
        );
        let expect = packet(Kind::Tcp(flags[1]), Leg::ToPod, pod(inside));
        assert_eq!(back.bytes, expect, "{inside}: {flags:?}");
    };
    for inside in 40_000..40_010 {
        // The server first minds that it knew the port by another.
        talk(&mut world, inside, [SYN, ACK]);
        talk(&mut world, inside, [SYN, SYN | ACK]);
        for _ in 0..3 {
            talk(&mut world, inside, [ACK, ACK]);
        }
        // It closes first.
        let fin = packet(Kind::Tcp(FIN), Leg::FromWire, node(61_000));
        assert!(world.send(UPLINK, &fin).dropped().is_none());
        talk(&mut world, inside, [ACK, ACK]);
        talk(&mut world, inside, [FIN, ACK]);
    }
}

/// A TCP packet of a pod's `port` to the server, with its number and clock.
fn stamped(port: u16, flags: u8, (sequence, clock): (u32, u32)) -> Vec<u8> {
    let mut tcp = TcpHeader::new(port, 53, sequence, 1000);
    tcp.syn = flags == SYN;
    tcp.fin = flags == FIN;
    tcp.rst = flags == RST;
    tcp.ack = flags != SYN;
    let nothing = TcpOptionElement::Noop;
    let clock = TcpOptionElement::Timestamp(clock, 0);
    tcp.set_options(&[nothing.clone(), nothing, clock]).unwrap();
    let mut bytes = Vec::new();
    let [from, to] = Leg::FromPod.ethernet();
    PacketBuilder::ethernet2(from, to)
        .ipv4(v4(A).octets(), SERVER.octets(), 60)
        .tcp_header(tcp)
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

/// Senders begin their numbers and clocks anywhere. A port whose connection is
/// over goes to one whose SYN the server takes for a new one.
#[test]
fn a_port_that_is_used_again_goes_to_whom_the_server_believes() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 61_000..=61_255;
    });
    let mut anywhere = (1u32..).map(|n| n.wrapping_mul(0x9e37_79b9));
    let mut last: HashMap<u16, u32> = HashMap::new();
    for inside in 10_000..14_000 {
        let (number, clock) = (anywhere.next().unwrap(), anywhere.next().unwrap());
        let send = |world: &mut World, flags: u8, later: u32| {
            let at = (number.wrapping_add(later), clock.wrapping_add(later));
            let out = world.send(A, &stamped(inside, flags, at));
            assert!(out.dropped().is_none(), "{inside}: {out:?}");
            u16::from_be_bytes([out.bytes[34], out.bytes[35]])
        };
        let outside = send(&mut world, SYN, 0);
        let is_later = |last: &u32| (clock.wrapping_sub(*last) as i32) > 0;
        let is_believed = last.get(&outside).is_none_or(is_later);
        assert!(is_believed, "{inside} by {outside}: {clock}, {last:?}");
        // The server closes first.
        for (flags, later) in [(SYN | ACK, 1), (ACK, 2), (FIN, 3)] {
            let answer = packet(Kind::Tcp(flags), Leg::FromWire, node(outside));
            assert!(world.send(UPLINK, &answer).dropped().is_none());
            assert_eq!(send(&mut world, ACK, later), outside);
        }
        send(&mut world, FIN, 4);
        last.insert(outside, clock.wrapping_add(4));
    }
    assert!(last.len() > 240, "{}", last.len());
}

/// A late packet of a connection whose port serves another takes no port, so
/// that what servers remember is not forgotten.
#[test]
fn what_is_left_of_a_connection_takes_no_port_from_one_that_is_over() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 61_000..=61_000;
    });
    let send = |world: &mut World, inside, flags, clock| {
        let out = world.send(A, &stamped(inside, flags, (clock, clock)));
        out.dropped()
    };
    for (inside, clock) in [(40_000, 1000), (40_001, 2000)] {
        assert_eq!(send(&mut world, inside, SYN, clock), None);
        for flags in [SYN | ACK, FIN] {
            let answer = packet(Kind::Tcp(flags), Leg::FromWire, node(61_000));
            assert!(world.send(UPLINK, &answer).dropped().is_none());
            assert_eq!(send(&mut world, inside, ACK, clock), None);
        }
        assert_eq!(send(&mut world, inside, FIN, clock + 1), None);
    }
    // The first one's FIN again, and what begins.
    let refused = Some(DropReason::NoMasqueradePort);
    assert_eq!(send(&mut world, 40_000, FIN, 1001), refused);
    assert_eq!(
        send(&mut world, 40_000, RST, 1001),
        Some(DropReason::NoConnection)
    );
    assert_eq!(send(&mut world, 40_002, SYN, 3000), None);
}

/// The search for such a packet's port is not repeated either, and shuts
/// nobody out who begins.
#[test]
fn what_is_left_of_connections_is_searched_for_now_and_then() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.ports = 61_000..=61_000;
    });
    let send = |world: &mut World, inside, flags| {
        let out = world.send(A, &stamped(inside, flags, (1000, 1000)));
        out.dropped()
    };
    assert_eq!(send(&mut world, 40_000, SYN), None);
    for flags in [SYN | ACK, FIN] {
        let answer = packet(Kind::Tcp(flags), Leg::FromWire, node(61_000));
        assert!(world.send(UPLINK, &answer).dropped().is_none());
        assert_eq!(send(&mut world, 40_000, ACK), None);
    }
    assert_eq!(send(&mut world, 40_000, FIN), None);
    let refused = Some(DropReason::NoMasqueradePort);
    assert_eq!(send(&mut world, 40_001, FIN), refused);
    // A search would find this one.
    world.connections.forget(PortId(A));
    assert_eq!(send(&mut world, 40_001, FIN), refused);
    assert_eq!(send(&mut world, 40_002, ACK), refused, "nor for another");
    assert_eq!(send(&mut world, 40_003, SYN), None);
    world.connections.forget(PortId(A));
    world.now.0 += 100_000_000;
    assert_eq!(send(&mut world, 40_002, ACK), None);
}
