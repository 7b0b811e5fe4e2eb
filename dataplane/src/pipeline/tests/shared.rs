//! The segment that uplink, pods and the node share.

use std::sync::Arc;

use etherparse::PacketBuilder;

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

#[test]
fn pods_reach_the_wire_and_the_node() {
    let mut world = world();
    let flood = Verdict::Flood {
        segment: SegmentId(1),
        checksum: None,
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
