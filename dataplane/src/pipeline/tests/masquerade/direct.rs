//! Somebody outside talks to a pod by its own address.

use super::*;

fn arrive(world: &mut World, kind: Kind) -> Outcome {
    world.send(UPLINK, &packet(kind, Leg::FromWire, pod(40_000)))
}

fn answer(world: &mut World, kind: Kind) -> Outcome {
    world.send(A, &packet(kind, Leg::FromPod, pod(40_000)))
}

/// Both legs of a packet that comes and of one that goes, untouched but for
/// the hop.
fn cross(world: &mut World, come: Kind, go: Kind) {
    let came = arrive(world, come);
    assert_eq!(
        came.bytes,
        packet(come, Leg::ToPod, pod(40_000)),
        "{come:?}"
    );
    assert!(matches!(came.verdict, Verdict::Forward { out, .. } if out == PortId(A)));
    let went = answer(world, go);
    assert_eq!(went.bytes, packet(go, Leg::ToWire, pod(40_000)), "{go:?}");
    assert!(matches!(went.verdict, Verdict::Forward { out, .. } if out == PortId(UPLINK)));
}

#[test]
fn a_caller_hears_from_whom_it_called() {
    for kind in [
        Kind::Udp,
        Kind::Tcp(ACK),
        Kind::Asked,
        Kind::UdpV6,
        Kind::TcpV6,
        Kind::AskedV6,
    ] {
        let mut world = world();
        for _ in 0..4 {
            cross(&mut world, kind, kind);
        }
        let record = connection(&world);
        assert_eq!(record.origin, Origin::Outside, "{kind:?}");
        assert_eq!(record.reply, record.original.reversed());
        assert_eq!(record.pod, PortId(A));
        assert!(world.counters.flow_hits.get() >= 4, "{kind:?}");
    }
}

#[test]
fn a_call_by_tcp_is_followed_and_its_flows_keep_it() {
    let mut world = world();
    cross(&mut world, Kind::Tcp(SYN), Kind::Tcp(SYN | ACK));
    assert_eq!(connection(&world).state, State::SynReceived);
    assert_eq!(world.counters.flow_entries.get(), 0, "not settled");
    for second in 0..100 {
        world.now.0 += 1_000_000_000;
        cross(&mut world, Kind::Tcp(ACK), Kind::Tcp(ACK));
        assert_eq!(connection(&world).state, State::Established, "{second}");
    }
    assert!(world.counters.flow_hits.get() >= 190);
    let record = connection(&world);
    assert!(record.packets >= 195, "{record:?}");
    assert_eq!(record.idle_ms, 0);
    cross(&mut world, Kind::Tcp(FIN), Kind::Tcp(FIN));
    assert_eq!(connection(&world).state, State::TimeWait);
    cross(&mut world, Kind::Tcp(SYN), Kind::Tcp(RST | ACK));
    assert_eq!(connection(&world).state, State::Closed);
}

/// A flow of datagrams that goes on is not forgotten under it.
#[test]
fn datagrams_that_go_on_keep_their_connection() {
    let mut world = world();
    for _ in 0..300 {
        world.now.0 += 1_000_000_000;
        cross(&mut world, Kind::Udp, Kind::Udp);
    }
    assert_eq!(connection(&world).state, State::Stream);
    assert!(world.counters.flow_hits.get() >= 590);
}

#[test]
fn answers_to_nobody_begin_nothing() {
    let mut world = world();
    for kind in [Kind::Tcp(SYN | ACK), Kind::Asked, Kind::AskedV6] {
        let dropped = answer(&mut world, kind).dropped();
        assert_eq!(dropped, Some(DropReason::NoConnection), "{kind:?}");
    }
    // Nor do those from outside, which are delivered; and no flow answers for
    // what may begin after them.
    for kind in [Kind::Tcp(SYN | ACK), Kind::Tcp(RST), Kind::Echo] {
        assert!(arrive(&mut world, kind).dropped().is_none(), "{kind:?}");
    }
    assert!(world.connections.is_empty());
    assert_eq!(world.counters.flow_entries.get(), 0);
    cross(&mut world, Kind::Tcp(SYN), Kind::Tcp(SYN | ACK));
}

#[test]
fn what_the_node_forwards_is_a_call_too() {
    let mut world = world();
    let mut bytes = packet(Kind::Udp, Leg::FromWire, pod(40_000));
    bytes[..6].copy_from_slice(&GATEWAY_MAC.0);
    bytes[6..12].copy_from_slice(&mac(HOST).0);
    let came = world.send(HOST, &bytes);
    assert!(matches!(came.verdict, Verdict::Forward { out, .. } if out == PortId(A)));
    // It may have translated what it forwarded, so it sees the answer.
    let went = answer(&mut world, Kind::Udp);
    let mut back = packet(Kind::Udp, Leg::ToWire, pod(40_000));
    back[..6].copy_from_slice(&mac(HOST).0);
    back[6..12].copy_from_slice(&GATEWAY_MAC.0);
    assert_eq!(went.bytes, back);
    assert!(matches!(went.verdict, Verdict::Forward { out, .. } if out == PortId(HOST)));
}

/// The first packet of a neighbour comes before the switch knows where that
/// is.
#[test]
fn a_neighbour_may_call_before_it_is_found() {
    let mut world = world();
    let place = |world: &mut World, target| {
        world.publish(|snapshot| {
            let neighbour = Prefix {
                address: SERVER.into(),
                len: 32,
            };
            Arc::make_mut(&mut snapshot.routes).insert(neighbour, target);
        });
    };
    place(&mut world, RouteTarget::OnLink);
    arrive(&mut world, Kind::Asked);
    assert!(matches!(
        answer(&mut world, Kind::Asked).verdict,
        Verdict::Wait(_)
    ));
    place(&mut world, RouteTarget::NextHop(NextHopId(0)));
    let went = answer(&mut world, Kind::Asked);
    assert_eq!(went.bytes, packet(Kind::Asked, Leg::ToWire, pod(40_000)));
    // Who is behind another of the node's interfaces is answered by the node.
    place(&mut world, RouteTarget::Host(PortId(HOST)));
    arrive(&mut world, Kind::Udp);
    assert_eq!(connection(&world).original.protocol, 1);
}

#[test]
fn those_who_see_the_pods_address_anyway_are_not_followed() {
    let mut world = world();
    for source in [Ipv4Addr::new(10, 244, 4, 7), REMOTE_V4] {
        let mut bytes = packet(Kind::Udp, Leg::FromWire, pod(40_000));
        readdress(&mut bytes, 26, source);
        assert!(world.send(UPLINK, &bytes).dropped().is_none(), "{source}");
        // The node itself, by its port.
        readdress(&mut bytes, 26, NODE_V4);
        bytes[..6].copy_from_slice(&GATEWAY_MAC.0);
        bytes[6..12].copy_from_slice(&mac(HOST).0);
        assert!(world.send(HOST, &bytes).dropped().is_none());
    }
    assert!(world.connections.is_empty());
    world.publish(|snapshot| Arc::make_mut(&mut snapshot.masquerade).is_on = false);
    assert!(arrive(&mut world, Kind::Udp).dropped().is_none());
    assert!(world.connections.is_empty());
}

/// Writes another address at `at`, and the header's checksum.
fn readdress(bytes: &mut [u8], at: usize, address: Ipv4Addr) {
    bytes[at..at + 4].copy_from_slice(&address.octets());
    bytes[24..26].fill(0);
    let sum = !naive_sum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes[40..42].fill(0);
}

#[test]
fn calls_need_no_address_to_leave_with() {
    let mut world = world();
    world.publish(|snapshot| {
        let masquerade = Arc::make_mut(&mut snapshot.masquerade);
        masquerade.egress_v4.clear();
    });
    cross(&mut world, Kind::Udp, Kind::Udp);
}

#[test]
fn a_pods_error_about_a_call_leaves_as_it_is() {
    let mut world = world();
    arrive(&mut world, Kind::Udp);
    let called = packet(Kind::Udp, Leg::ToPod, pod(40_000));
    let error = |leg: Leg, from: Ipv4Addr| {
        let [source, destination] = leg.ethernet();
        let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(source, destination)
            .ipv4(from.octets(), SERVER.octets(), leg.hops())
            .icmpv4(kind)
            .write(&mut bytes, &called[14..])
            .unwrap();
        bytes
    };
    let outcome = world.send(A, &error(Leg::FromPod, v4(A)));
    assert_eq!(outcome.bytes, error(Leg::ToWire, v4(A)));
}

#[test]
fn answers_in_fragments_follow_their_first_piece() {
    for kind in [Kind::Udp, Kind::Asked] {
        let mut world = world();
        let came = pieces(&packet(kind, Leg::FromWire, pod(40_000)));
        let expect = pieces(&packet(kind, Leg::ToPod, pod(40_000)));
        for (piece, expect) in came.iter().zip(&expect) {
            assert_eq!(world.send(UPLINK, piece).bytes, *expect, "{kind:?}");
        }
        let went = pieces(&packet(kind, Leg::FromPod, pod(40_000)));
        let expect = pieces(&packet(kind, Leg::ToWire, pod(40_000)));
        for (piece, expect) in went.iter().zip(&expect) {
            assert_eq!(world.send(A, piece).bytes, *expect, "{kind:?}");
        }
        assert_eq!(world.connections.len(), 1);
    }
}

#[test]
fn partial_checksums_are_finished_for_the_wire() {
    let mut world = world();
    arrive(&mut world, Kind::Udp);
    for _ in 0..2 {
        let mut bytes = packet(Kind::Udp, Leg::FromPod, pod(40_000));
        make_partial_v4(&mut bytes, 34, 6);
        let expect = packet(Kind::Udp, Leg::ToWire, pod(40_000));
        assert_eq!(world.send(A, &bytes).bytes, expect);
    }
}

#[test]
fn whoever_was_silent_for_long_is_a_stranger() {
    let mut world = world();
    cross(&mut world, Kind::Tcp(SYN), Kind::Tcp(SYN | ACK));
    world.now.0 += 61_000_000_000;
    // The pod begins now, and hides its address.
    let went = answer(&mut world, Kind::Tcp(ACK));
    let record = connection(&world);
    assert_eq!(record.origin, Origin::Pod);
    let outside = record.reply.destination.port;
    let expect = packet(Kind::Tcp(ACK), Leg::ToWire, node(outside));
    assert_eq!(went.bytes, expect);
    // Until it is called again: in the middle of a talk, as after a restart
    // that lost the connections.
    cross(&mut world, Kind::Tcp(ACK), Kind::Tcp(ACK));
    let record = connection(&world);
    assert_eq!(record.origin, Origin::Outside);
    assert_eq!(record.state, State::Established);
    // One that is over by time begins anew at the same place.
    cross(&mut world, Kind::Tcp(FIN), Kind::Tcp(FIN));
    world.now.0 += 121_000_000_000;
    cross(&mut world, Kind::Tcp(SYN), Kind::Tcp(SYN | ACK));
    assert_eq!(connection(&world).state, State::SynReceived);
}

#[test]
fn a_talk_by_the_nodes_address_goes_on_beside_a_call() {
    let mut world = world();
    let port = open(&mut world, Kind::Udp);
    world.send(UPLINK, &packet(Kind::Udp, Leg::FromWire, node(port)));
    let came = arrive(&mut world, Kind::Udp);
    assert_eq!(came.bytes, packet(Kind::Udp, Leg::ToPod, pod(40_000)));
    let went = answer(&mut world, Kind::Udp);
    assert_eq!(went.bytes, packet(Kind::Udp, Leg::ToWire, node(port)));
}

#[test]
fn super_frames_are_cut_to_what_the_caller_and_the_path_take() {
    let mut world = world();
    let mut syn = Vec::new();
    let [from, to] = Leg::FromWire.ethernet();
    PacketBuilder::ethernet2(from, to)
        .ipv4(SERVER.octets(), v4(A).octets(), 60)
        .tcp(53, 40_000, 7, 1000)
        .syn()
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1310)])
        .unwrap()
        .write(&mut syn, &[])
        .unwrap();
    assert!(world.send(UPLINK, &syn).dropped().is_none());
    answer(&mut world, Kind::Tcp(SYN | ACK));
    arrive(&mut world, Kind::Tcp(ACK));
    let cut = |world: &mut World| match world.send(A, &super_frame()).verdict {
        Verdict::Segment { mtu, .. } => mtu,
        other => panic!("{other:?}"),
    };
    assert_eq!([cut(&mut world), cut(&mut world)], [1350, 1350]);
    let left = packet(Kind::Tcp(ACK), Leg::ToWire, pod(40_000));
    let mut error = unreachable(Leg::FromWire.ethernet(), v4(A), 60, &left[14..]);
    error[40..42].copy_from_slice(&1280u16.to_be_bytes());
    error[36..38].fill(0);
    let sum = !naive_sum(&error[34..]);
    error[36..38].copy_from_slice(&sum.to_be_bytes());
    world.now.0 += 20_000_000;
    assert!(world.send(UPLINK, &error).dropped().is_none());
    assert_eq!([cut(&mut world), cut(&mut world)], [1280, 1280]);
}
