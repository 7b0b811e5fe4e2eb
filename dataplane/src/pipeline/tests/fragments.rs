//! IPv4 packets longer than the path whose senders allow fragments.

use etherparse::defrag::{IpDefragPayloadVec, IpDefragPool};
use etherparse::{IpNumber, Ipv4Extensions, PacketBuilder, SlicedPacket};
use proptest::prelude::*;

use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::pipeline::segment::segment;
use crate::pipeline::world::*;
use crate::types::PortId;

fn udp(len: usize, options: &[u8]) -> Vec<u8> {
    let (from, to) = (v4(A).octets(), v4(B).octets());
    let mut header = etherparse::Ipv4Header::new(0, 64, IpNumber::UDP, from, to).unwrap();
    header.dont_fragment = false;
    header.identification = 4711;
    header.options = options.try_into().unwrap();
    let ip = etherparse::IpHeaders::Ipv4(header, Ipv4Extensions::default());
    let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0)
        .ip(ip)
        .udp(1, 2)
        .write(&mut packet, &payload)
        .unwrap();
    packet
}

fn cut(world: &mut World, packet: &[u8], mtu: u32) -> Vec<Vec<u8>> {
    let frames = world.frames(packet);
    let mut batch = Batch::new();
    batch.push(PortId(A), frames);
    let mut out = Batch::new();
    segment(&world.umem, &mut world.pool, &batch, 0, mtu, &mut out).unwrap();
    let pieces = (0..out.len()).map(|i| world.bytes(&out, i)).collect();
    world.free(&mut out);
    world.free(&mut batch);
    pieces
}

/// What etherparse puts together of fragments; checks each header.
fn join(pieces: &[Vec<u8>], mtu: u32) -> Option<IpDefragPayloadVec> {
    let mut pool = IpDefragPool::<u32, ()>::new();
    let mut whole = None;
    for piece in pieces {
        assert!(piece.len() <= mtu as usize + 14);
        let sliced = SlicedPacket::from_ethernet(piece).unwrap();
        let header = sliced.net.as_ref().unwrap().ipv4_ref().unwrap().header();
        let expect = header.to_header().calc_header_checksum();
        assert_eq!(header.header_checksum(), expect);
        assert_eq!(header.total_len() as usize + 14, piece.len());
        assert!(whole.is_none(), "the last fragment comes last");
        whole = pool.process_sliced_packet(&sliced, 0, ()).unwrap();
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn fragments_join_to_the_datagram(len in 0usize..20_000, mtu in 68u32..9001) {
        let mut world = World::new();
        let packet = udp(len, &[]);
        prop_assume!(packet.len() - 14 > mtu as usize && len / mtu as usize <= 100);
        let pieces = cut(&mut world, &packet, mtu);
        let whole = join(&pieces, mtu).expect("nothing is missing");
        prop_assert_eq!(&whole.payload[..], &packet[34..]);
    }
}

#[test]
fn an_oversized_packet_without_dont_fragment_leaves_in_pieces() {
    let mut world = World::new();
    let out = PortId(B);
    for _ in 0..2 {
        let verdict = world.send(A, &udp(5000, &[])).verdict;
        assert_eq!(verdict, Verdict::Segment { out, mtu: MTU });
    }
}

#[test]
fn a_partial_checksum_is_finished() {
    let mut world = World::new();
    let full = udp(5001, &[]);
    let mut partial = full.clone();
    make_partial_v4(&mut partial, 34, 6);
    assert_ne!(full, partial);
    let whole = join(&cut(&mut world, &partial, MTU), MTU).unwrap();
    assert_eq!(whole.payload, full[34..]);
}

#[test]
fn a_fragment_can_be_cut_again() {
    let mut world = World::new();
    let first = cut(&mut world, &udp(5000, &[]), 3000);
    let pieces: Vec<_> = first
        .iter()
        .flat_map(|piece| cut(&mut world, piece, 700))
        .collect();
    assert!(pieces.len() > 7);
    let whole = join(&pieces, 700).unwrap();
    assert_eq!(whole.payload, udp(5000, &[])[34..]);
}

#[test]
fn options_are_copied_when_they_say_so() {
    let mut world = World::new();
    // Record route (not copied), router alert (copied), end.
    let options = [7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0];
    let pieces = cut(&mut world, &udp(3000, &options), 1000);
    assert_eq!(pieces[0][34..46], options);
    for piece in &pieces[1..] {
        assert_eq!(piece[34..46], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0]);
    }
    let whole = join(&pieces, 1000).unwrap();
    assert_eq!(whole.payload, udp(3000, &options)[46..]);
}

#[test]
fn dont_fragment_is_obeyed() {
    let mut world = World::new();
    let mut packet = udp(5000, &[]);
    packet[20] |= 0x40;
    let frames = world.frames(&packet);
    let mut batch = Batch::new();
    batch.push(PortId(A), frames);
    let mut out = Batch::new();
    let done = segment(&world.umem, &mut world.pool, &batch, 0, MTU, &mut out);
    assert_eq!(done, Err(DropReason::Oversize));
    assert!(out.is_empty());
    world.free(&mut batch);
}

/// An echo request to the gateway, cut by etherparse's rules.
fn echo_pieces() -> (Vec<u8>, Vec<Vec<u8>>) {
    let data: Vec<u8> = (0..4000).map(|i| (i % 249) as u8).collect();
    let mut message = Vec::new();
    etherparse::Icmpv4Header::with_checksum(
        etherparse::Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 5, seq: 6 }),
        &data,
    )
    .write(&mut message)
    .unwrap();
    message.extend(&data);
    let pieces = message.chunks(1424).enumerate().map(|(number, part)| {
        let (from, to) = (v4(A).octets(), [10, 244, 1, 1]);
        let len = part.len() as u16;
        let mut header = etherparse::Ipv4Header::new(len, 64, IpNumber::ICMP, from, to).unwrap();
        header.dont_fragment = false;
        header.identification = 99;
        header.more_fragments = number < 2;
        header.fragment_offset = (number as u16 * 1424 / 8).try_into().unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut packet = [&GATEWAY_MAC.0[..], &mac(A).0, &[8, 0]].concat();
        header.write_raw(&mut packet).unwrap();
        packet.extend(part);
        packet
    });
    (data, pieces.collect())
}

#[test]
fn an_echo_in_pieces_is_answered_piece_by_piece() {
    let mut world = World::new();
    let (data, pieces) = echo_pieces();
    // What the first piece did not come of is nobody's.
    let early = world.send(A, &pieces[1]);
    assert_eq!(early.verdict, Verdict::Drop(DropReason::GatewayFragment));
    let replies: Vec<_> = pieces.iter().map(|piece| world.send(A, piece)).collect();
    let is_reply = |outcome: &Outcome| outcome.verdict == Verdict::Reply { dropped: None };
    assert!(replies.iter().all(is_reply), "{replies:?}");
    let bytes: Vec<_> = replies.into_iter().map(|outcome| outcome.bytes).collect();
    let whole = join(&bytes, 1444).expect("all pieces");
    let (header, payload) = etherparse::Icmpv4Slice::from_slice(&whole.payload)
        .map(|message| (message.header(), message.payload()))
        .unwrap();
    let reply = etherparse::IcmpEchoHeader { id: 5, seq: 6 };
    assert_eq!(header.icmp_type, etherparse::Icmpv4Type::EchoReply(reply));
    assert_eq!(header.checksum, header.icmp_type.calc_checksum(payload));
    assert_eq!(payload, data);
    // Nor is another datagram's.
    let mut other = pieces[1].clone();
    other[19] = 100;
    other[24..26].fill(0);
    let sum = crate::wire::checksum::checksum(&other[14..34]);
    other[24..26].copy_from_slice(&sum.to_be_bytes());
    let other = world.send(A, &other);
    assert_eq!(other.verdict, Verdict::Drop(DropReason::GatewayFragment));
}

/// An echo of `data`, of IPv4 and of IPv6.
fn echoes(is_reply: bool, data: &[u8]) -> [Vec<u8>; 2] {
    let (from, to, hops) = match is_reply {
        true => (GATEWAY_MAC, mac(A), 64),
        false => (mac(A), GATEWAY_MAC, 9),
    };
    let ether = || PacketBuilder::ethernet2(from.0, to.0);
    let (pod_v4, pod_v6) = (v4(A).octets(), v6(A).octets());
    let (own_v4, own_v6) = (GATEWAY_V4.octets(), GATEWAY_V6.octets());
    let mut packets = [Vec::new(), Vec::new()];
    let [over_v4, over_v6] = &mut packets;
    let done = match is_reply {
        true => [
            ether()
                .ipv4(own_v4, pod_v4, hops)
                .icmpv4_echo_reply(5, 6)
                .write(over_v4, data),
            ether()
                .ipv6(own_v6, pod_v6, hops)
                .icmpv6_echo_reply(5, 6)
                .write(over_v6, data),
        ],
        false => [
            ether()
                .ipv4(pod_v4, own_v4, hops)
                .icmpv4_echo_request(5, 6)
                .write(over_v4, data),
            ether()
                .ipv6(pod_v6, own_v6, hops)
                .icmpv6_echo_request(5, 6)
                .write(over_v6, data),
        ],
    };
    assert!(done.iter().all(Result::is_ok));
    packets
}

#[test]
fn an_echo_of_several_frames_goes_back_in_them() {
    let mut world = World::new();
    let data = [0x5a; 8000];
    for (mut request, reply) in echoes(false, &data).into_iter().zip(echoes(true, &data)) {
        // What stands behind the IP packet does not come back.
        request.extend([1; 7]);
        let outcome = world.send(A, &request);
        let back = Verdict::Forward {
            out: PortId(A),
            checksum: None,
        };
        assert_eq!(outcome.verdict, back);
        assert!(outcome.bytes == reply);
    }
}
