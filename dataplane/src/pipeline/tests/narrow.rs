//! Super-frames are cut to what the receiver and the path take, where nobody
//! translates. Packets are built by etherparse.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::TcpOptionElement::MaximumSegmentSize;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, TcpHeader, icmpv4};

use crate::event::Event;
use crate::frame::{Awaited, Verdict};
use crate::pipeline::world::*;
use crate::snapshot::{Prefix, RouteTarget};
use crate::types::NextHopId;

const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 4, 7);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 0, 0, 0, 0, 7);
const OUT: [[u8; 6]; 2] = [mac_of_a(), GATEWAY_MAC.0];
const BACK: [[u8; 6]; 2] = [NEIGHBOR_MAC.0, UPLINK_MAC.0];

const fn mac_of_a() -> [u8; 6] {
    [0x0a, 0x58, 10, 244, 1, A as u8 + 1]
}

fn world() -> World {
    let mut world = World::with_underlay();
    world.publish(|snapshot| {
        let prefix = Prefix {
            address: Ipv6Addr::new(0xfd00, 4, 0, 0, 0, 0, 0, 0).into(),
            len: 64,
        };
        let target = RouteTarget::NextHop(NextHopId(1));
        Arc::make_mut(&mut snapshot.routes).insert(prefix, target);
    });
    world
}

/// A TCP packet between pod A and the peer.
fn tcp(is_v6: bool, is_out: bool) -> PacketBuilderStep<TcpHeader> {
    let [from, to] = if is_out { OUT } else { BACK };
    let (near, far) = if is_out { (80, 90) } else { (90, 80) };
    let ends = PacketBuilder::ethernet2(from, to);
    match (is_v6, is_out) {
        (false, true) => ends.ipv4(v4(A).octets(), PEER_V4.octets(), 60),
        (false, false) => ends.ipv4(PEER_V4.octets(), v4(A).octets(), 60),
        (true, true) => ends.ipv6(v6(A).octets(), PEER_V6.octets(), 60),
        (true, false) => ends.ipv6(PEER_V6.octets(), v6(A).octets(), 60),
    }
    .tcp(near, far, 7, 1000)
}

fn written(builder: PacketBuilderStep<TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// How long the pieces are that a super-frame of the pod is cut into; its own
/// length when it is not.
fn cut(world: &mut World, is_v6: bool, payload: usize) -> u32 {
    let mut bytes = written(tcp(is_v6, true).ack(9), &vec![7; payload]);
    match is_v6 {
        true => make_partial_v6(&mut bytes, 54, 16),
        false => make_partial_v4(&mut bytes, 34, 16),
    }
    match world.send(A, &bytes).verdict {
        Verdict::Segment { mtu, .. } => mtu,
        Verdict::Forward { .. } => bytes.len() as u32 - 14,
        other => panic!("{other:?}"),
    }
}

/// Both opening packets, the peer's with that maximum segment size.
fn open(world: &mut World, is_v6: bool, mss: u16) {
    let syn = written(tcp(is_v6, true).syn(), &[]);
    assert!(world.send(A, &syn).dropped().is_none());
    let options = [MaximumSegmentSize(mss)];
    let answer = tcp(is_v6, false).syn().ack(8).options(&options).unwrap();
    let answer = written(answer, &[]);
    assert!(world.send(UPLINK, &answer).dropped().is_none());
}

/// The path says that a packet of the pod was too big.
fn too_big(world: &mut World, is_v6: bool, mtu: u16) {
    let quoted = written(tcp(is_v6, true).ack(9), &[7; 100])[14..].to_vec();
    let mut bytes = Vec::new();
    let ends = PacketBuilder::ethernet2(BACK[0], BACK[1]);
    match is_v6 {
        true => ends
            .ipv6(PEER_V6.octets(), v6(A).octets(), 60)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() })
            .write(&mut bytes, &quoted),
        false => {
            let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            ends.ipv4([172, 31, 0, 254], v4(A).octets(), 60)
                .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
                .write(&mut bytes, &quoted)
        }
    }
    .unwrap();
    assert!(world.send(UPLINK, &bytes).dropped().is_none());
    // The next batch begins with the news.
    world.now.0 += 20_000_000;
    world.send(UPLINK, &bytes);
}

#[test]
fn the_peers_segment_size_is_kept() {
    for (is_v6, headers) in [(false, 40), (true, 60)] {
        let mut world = world();
        open(&mut world, is_v6, 1300);
        let expect = 1300 + headers;
        assert_eq!(cut(&mut world, is_v6, 4000), expect);
        assert_eq!(cut(&mut world, is_v6, 4000), expect, "the flow, too");
        // Two segments that together were one packet of the path.
        assert_eq!(cut(&mut world, is_v6, 1350), expect);
        // The snapshot's changes do not undo it.
        world.publish(|_| {});
        assert_eq!(cut(&mut world, is_v6, 4000), expect);
        // What the path does not carry anyway is no limit.
        let mut world = self::world();
        open(&mut world, is_v6, 8000);
        assert_eq!(cut(&mut world, is_v6, 4000), MTU);
    }
}

#[test]
fn the_paths_word_reaches_flows_that_were_decided_before() {
    for is_v6 in [false, true] {
        let mut world = world();
        open(&mut world, is_v6, 1460);
        assert_eq!(cut(&mut world, is_v6, 4000), MTU);
        too_big(&mut world, is_v6, 1380);
        assert_eq!(cut(&mut world, is_v6, 4000), 1380);
        // A longer one is no news, a shorter one is; an absurd one is not
        // believed.
        too_big(&mut world, is_v6, 1420);
        assert_eq!(cut(&mut world, is_v6, 4000), 1380);
        too_big(&mut world, is_v6, 100);
        let least = if is_v6 { 1280 } else { 576 };
        assert_eq!(cut(&mut world, is_v6, 4000), least);
        // Not for ever.
        world.now.0 += 11 * 60_000_000_000;
        world.publish(|_| {});
        assert_eq!(cut(&mut world, is_v6, 4000), MTU);
    }
}

#[test]
fn a_packet_waits_for_a_station_of_the_uplinks_network() {
    let mut world = world();
    world.publish(|snapshot| {
        let prefix = Prefix {
            address: Ipv4Addr::new(10, 244, 4, 0).into(),
            len: 24,
        };
        Arc::make_mut(&mut snapshot.routes).insert(prefix, RouteTarget::OnLink);
    });
    let packet = written(tcp(false, true).syn(), &[]);
    let verdict = world.send(A, &packet).verdict;
    assert!(
        matches!(verdict, Verdict::Wait(Awaited::Station(_))),
        "{verdict:?}"
    );
    let address = PEER_V4.into();
    assert_eq!(world.events.pop(), Ok(Event::StationWanted { address }));
}
