//! Super-frames: delivered whole, cut into segments, or refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4Extensions, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Batch, LONGEST_SUPER_FRAME, MAX_CHAIN, TxChecksum, Verdict};
use crate::pipeline::segment::segment;
use crate::pipeline::world::*;
use crate::types::PortId;

/// What a TCP super-frame is made of.
#[derive(Debug, Clone)]
pub(super) struct Super {
    pub(super) is_v6: bool,
    pub(super) payload: Vec<u8>,
    pub(super) sequence: u32,
    pub(super) identification: u16,
    pub(super) timestamps: bool,
    pub(super) fin: bool,
}

impl Super {
    pub(super) fn of(len: usize, is_v6: bool) -> Super {
        Super {
            is_v6,
            payload: (0..len).map(|i| (i % 251) as u8).collect(),
            sequence: u32::MAX - 2000,
            identification: 0xfffe,
            timestamps: true,
            fin: true,
        }
    }

    /// The packet as a pod sends it: partial checksum.
    pub(super) fn packet(&self, from: u16, to: u16) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(mac(from).0, GATEWAY_MAC.0);
        let ip = match self.is_v6 {
            true => ethernet.ipv6(v6(from).octets(), v6(to).octets(), 64),
            false => {
                let mut header = etherparse::Ipv4Header::new(
                    0,
                    64,
                    IpNumber::TCP,
                    v4(from).octets(),
                    v4(to).octets(),
                )
                .unwrap();
                header.identification = self.identification;
                ethernet.ip(etherparse::IpHeaders::Ipv4(
                    header,
                    Ipv4Extensions::default(),
                ))
            }
        };
        let mut tcp = ip.tcp(4000, 80, self.sequence, 500).ack(99).psh().cwr();
        if self.fin {
            tcp = tcp.fin();
        }
        if self.timestamps {
            tcp = tcp
                .options(&[etherparse::TcpOptionElement::Timestamp(5, 6)])
                .unwrap();
        }
        let mut packet = Vec::new();
        if self.payload.len() > usize::from(u16::MAX) {
            tcp.write(&mut packet, &[]).unwrap();
            packet.extend(&self.payload);
            make_longest(&mut packet);
            return packet;
        }
        tcp.write(&mut packet, &self.payload).unwrap();
        match self.is_v6 {
            true => make_partial_v6(&mut packet, 54, 16),
            false => make_partial_v4(&mut packet, 34, 16),
        }
        packet
    }
}

/// Makes an IPv4 packet one that is too long for its length field, as Linux's
/// TCP sends it: the length 0, the pseudo-header's of 32 bits.
fn make_longest(packet: &mut [u8]) {
    packet[16..18].fill(0);
    packet[24..26].fill(0);
    let sum = !naive_sum(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    let mut pseudo = packet[26..34].to_vec();
    pseudo.extend((packet.len() as u32 - 34).to_be_bytes());
    pseudo.extend([0, 6]);
    packet[50..52].copy_from_slice(&naive_sum(&pseudo).to_be_bytes());
}

/// Cuts a packet and checks every segment by etherparse.
fn check(frame: &Super, mtu: u32) {
    let mut world = World::new();
    let bytes = frame.packet(A, B);
    let frames = world.frames(&bytes);
    let mut batch = Batch::new();
    batch.push(PortId(A), frames);
    let mut out = Batch::new();
    segment(&world.umem, &mut world.pool, &batch, 0, mtu, &mut out).unwrap();
    let mut stream = Vec::new();
    for index in 0..out.len() {
        let bytes = world.bytes(&out, index);
        assert_eq!(out.packets()[index].len as usize, bytes.len());
        assert_eq!(out.packets()[index].in_port, PortId(A));
        assert!(out.chain(index).count() <= MAX_CHAIN);
        assert!(bytes.len() <= mtu as usize + 14, "fits the path");
        let is_last = index + 1 == out.len();
        let at = frame.sequence.wrapping_add(stream.len() as u32);
        let payload = check_segment(frame, &bytes, (index, is_last), at);
        assert!(
            is_last || bytes.len() == mtu as usize + 14,
            "only the last is short"
        );
        stream.extend(payload);
    }
    assert_eq!(stream, frame.payload);
    world.free(&mut out);
    world.free(&mut batch);
}

fn check_segment(frame: &Super, bytes: &[u8], (index, is_last): (usize, bool), at: u32) -> Vec<u8> {
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("no TCP");
    };
    let header = tcp.to_header();
    let sum = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            let expect = frame.identification.wrapping_add(index as u16);
            assert_eq!(ip.identification(), expect);
            assert_eq!(ip.total_len() as usize, bytes.len() - 14);
            tcp.calc_checksum_ipv4(ip.source(), ip.destination())
        }
        NetSlice::Ipv6(ip) => {
            assert_eq!(ip.header().payload_length() as usize, bytes.len() - 54);
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(header.checksum, sum.unwrap());
    assert_eq!(header.sequence_number, at);
    assert_eq!(header.acknowledgment_number, 99);
    assert!(header.ack);
    assert_eq!(header.psh, is_last);
    assert_eq!(header.fin, is_last && frame.fin);
    assert_eq!(header.cwr, index == 0);
    assert_eq!(header.options.len(), if frame.timestamps { 12 } else { 0 });
    tcp.payload().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn segments_keep_the_byte_stream(
        payload in proptest::collection::vec(any::<u8>(), 0..20_000),
        is_v6: bool,
        sequence: u32,
        identification: u16,
        timestamps: bool,
        fin: bool,
        mtu in 200u32..9001,
    ) {
        check(&Super { is_v6, payload, sequence, identification, timestamps, fin }, mtu);
    }
}

#[test]
fn the_longest_super_frame_is_cut() {
    for is_v6 in [false, true] {
        let most = if is_v6 { 65535 - 32 } else { 65535 - 52 };
        check(&Super::of(most, is_v6), MTU);
        check(&Super::of(MTU as usize - 52, is_v6), MTU);
        check(&Super::of(1, is_v6), MTU);
    }
    for len in [65_536, 131_072, LONGEST_SUPER_FRAME - 66] {
        check(&Super::of(len, false), MTU);
    }
}

#[test]
fn a_super_frame_beyond_the_length_field_passes_whole() {
    let mut world = World::new();
    let mut packet = Super::of(200_000, false).packet(A, B);
    let (out, checksum) = (
        PortId(B),
        Some(TxChecksum {
            start: 34,
            offset: 16,
        }),
    );
    for _ in 0..2 {
        let outcome = world.send(A, &packet);
        assert_eq!(outcome.verdict, Verdict::Forward { out, checksum });
        assert_eq!(outcome.bytes[60..], packet[60..], "payload is not touched");
    }
    let to_small = Super::of(200_000, false).packet(A, SMALL);
    let (out, mtu) = (PortId(SMALL), MTU);
    assert_eq!(
        world.send(A, &to_small).verdict,
        Verdict::Segment { out, mtu }
    );
    // Not left to a device, so of no use to anybody.
    packet[51] ^= 1;
    assert_eq!(
        world.send(A, &packet).dropped(),
        Some(DropReason::BadLength)
    );
    let mut udp = Super::of(200_000, false).packet(A, B);
    udp[23] = 17;
    make_longest(&mut udp);
    assert_eq!(world.send(A, &udp).dropped(), Some(DropReason::BadLength));
}

#[test]
fn running_out_of_frames_leaves_nothing_behind() {
    let mut world = World::new();
    let bytes = Super::of(60_000, false).packet(A, B);
    let frames = world.frames(&bytes);
    let mut batch = Batch::new();
    batch.push(PortId(A), frames);
    let mut held = Vec::new();
    while world.pool.total_free() > 20 {
        held.push(world.pool.alloc().unwrap());
    }
    let mut out = Batch::new();
    let extra = world.frames(b"was here before");
    out.push(PortId(B), extra);
    let free = world.pool.total_free();
    let done = segment(&world.umem, &mut world.pool, &batch, 0, MTU, &mut out);
    assert_eq!(done, Err(DropReason::NoFrames));
    assert_eq!(world.pool.total_free(), free);
    assert_eq!(out.len(), 1);
    assert_eq!(world.bytes(&out, 0), b"was here before");
    for frame in held {
        world.pool.free(frame);
    }
    world.free(&mut out);
    world.free(&mut batch);
}

#[test]
fn an_mtu_below_the_headers_is_refused() {
    let mut world = World::new();
    let frames = world.frames(&Super::of(3000, false).packet(A, B));
    let mut batch = Batch::new();
    batch.push(PortId(A), frames);
    let mut out = Batch::new();
    let done = segment(&world.umem, &mut world.pool, &batch, 0, 52, &mut out);
    assert_eq!(done, Err(DropReason::Oversize));
    world.free(&mut batch);
}

#[test]
fn a_super_frame_passes_whole_between_pods_that_take_it() {
    for (is_v6, start) in [(false, 34), (true, 54)] {
        let mut world = World::new();
        let packet = Super::of(60_000, is_v6).packet(A, B);
        for _ in 0..2 {
            let outcome = world.send(A, &packet);
            let out = PortId(B);
            let checksum = Some(TxChecksum { start, offset: 16 });
            assert_eq!(outcome.verdict, Verdict::Forward { out, checksum });
            assert_eq!(outcome.bytes[60..], packet[60..], "payload is not touched");
        }
    }
}

#[test]
fn a_pod_that_takes_none_gets_segments() {
    for is_v6 in [false, true] {
        let mut world = World::new();
        let packet = Super::of(60_000, is_v6).packet(A, SMALL);
        for _ in 0..2 {
            let out = PortId(SMALL);
            let verdict = world.send(A, &packet).verdict;
            assert_eq!(verdict, Verdict::Segment { out, mtu: MTU });
        }
        let short = Super::of(1000, is_v6).packet(A, SMALL);
        let verdict = world.send(A, &short).verdict;
        assert!(
            matches!(
                verdict,
                Verdict::Forward {
                    checksum: Some(_),
                    ..
                }
            ),
            "{verdict:?}"
        );
    }
}

#[test]
fn a_port_without_partial_checksums_sends_no_super_frames() {
    let mut world = World::new();
    world.change_port(A, |port| port.partial_checksums = false);
    // etherparse sets don't-fragment.
    let packet = Super::of(3000, false).packet(A, B);
    assert_eq!(world.send(A, &packet).dropped(), Some(DropReason::TooBig));
    let short = Super::of(100, false).packet(A, B);
    let verdict = world.send(A, &short).verdict;
    let out = PortId(B);
    let checksum = None;
    assert_eq!(verdict, Verdict::Forward { out, checksum });
}

#[test]
fn the_smaller_mtu_of_both_ends_counts() {
    let mut world = World::new();
    world.change_port(B, |port| {
        port.mtu = 1300;
        port.super_frames = false;
        port.segment_mtu = 1200;
    });
    let packet = Super::of(1400, false).packet(A, B);
    let out = PortId(B);
    assert_eq!(
        world.send(A, &packet).verdict,
        Verdict::Segment { out, mtu: 1200 }
    );
}

/// Fragmentation-needed from a port, about a TCP packet of `len` bytes.
fn frag_needed(from: u16, len: u16, mtu: u16) -> Vec<u8> {
    frag_needed_by(from, v4(from), (len, mtu))
}

/// The same by any address.
fn frag_needed_by(from: u16, source: Ipv4Addr, (len, mtu): (u16, u16)) -> Vec<u8> {
    let mut quoted = Vec::new();
    PacketBuilder::ipv4(v4(A).octets(), v4(B).octets(), 63)
        .tcp(4000, 80, 1, 500)
        .write(&mut quoted, &[])
        .unwrap();
    quoted[2..4].copy_from_slice(&len.to_be_bytes());
    let mut packet = Vec::new();
    let [high, low] = mtu.to_be_bytes();
    PacketBuilder::ethernet2(mac(from).0, GATEWAY_MAC.0)
        .ipv4(source.octets(), v4(A).octets(), 64)
        .icmpv4_raw(3, 4, [0, 0, high, low])
        .write(&mut packet, &quoted)
        .unwrap();
    packet
}

#[test]
fn a_pod_that_forwards_is_noticed() {
    let mut world = World::new();
    let outcome = world.send(B, &frag_needed(B, 40_000, 1450));
    assert_eq!(outcome.dropped(), Some(DropReason::SuperFrameRefused));
    let event = Event::Forwarder {
        port: PortId(B),
        mtu: 1450,
        destination: v4(B).into(),
    };
    assert_eq!(world.events.pop(), Ok(event));
    // A smaller path behind the pod is the sender's business all the same.
    let outcome = world.send(B, &frag_needed(B, 40_000, 1400));
    assert!(matches!(outcome.verdict, Verdict::Forward { .. }));
    assert!(world.events.pop().is_ok());
    // About a packet of the path's own size it is plain path MTU discovery.
    let outcome = world.send(B, &frag_needed(B, 1450, 1400));
    assert!(matches!(outcome.verdict, Verdict::Forward { .. }));
    assert!(world.events.pop().is_err());
}

#[test]
fn a_kernel_that_forwards_is_noticed() {
    let mut world = World::new();
    let outcome = world.send(HOST, &frag_needed(HOST, 40_000, 1450));
    assert_eq!(outcome.dropped(), Some(DropReason::SuperFrameRefused));
    let event = Event::Forwarder {
        port: PortId(HOST),
        mtu: 1450,
        destination: v4(B).into(),
    };
    assert_eq!(world.events.pop(), Ok(event));
}

/// Packet-too-big from a port by any address.
fn too_big_by(from: u16, source: Ipv6Addr, (len, mtu): (u16, u32)) -> Vec<u8> {
    let mut quoted = Vec::new();
    PacketBuilder::ipv6(v6(A).octets(), v6(B).octets(), 63)
        .tcp(4000, 80, 1, 500)
        .write(&mut quoted, &[])
        .unwrap();
    quoted[4..6].copy_from_slice(&(len - 40).to_be_bytes());
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(from).0, GATEWAY_MAC.0)
        .ipv6(source.octets(), v6(A).octets(), 64)
        .icmpv6_raw(2, 0, mtu.to_be_bytes())
        .write(&mut packet, &quoted)
        .unwrap();
    packet
}

#[test]
fn one_that_forwards_ipv6_is_noticed() {
    for port in [B, HOST] {
        let mut world = World::new();
        let outcome = world.send(port, &too_big_by(port, v6(port), (30_040, 1450)));
        assert_eq!(outcome.dropped(), Some(DropReason::SuperFrameRefused));
        assert!(matches!(
            world.events.pop(),
            Ok(Event::Forwarder { mtu: 1450, .. })
        ));
    }
}

#[test]
fn what_the_kernel_passes_on_does_not_say_that_it_forwards() {
    let (by_v4, by_v6) = (
        Ipv4Addr::new(198, 51, 100, 7),
        "2001:db8::7".parse().unwrap(),
    );
    let mut world = World::new();
    for packet in [
        frag_needed_by(HOST, by_v4, (65_000, 0)),
        frag_needed_by(HOST, by_v4, (65_000, 1500)),
        too_big_by(HOST, by_v6, (65_000, 0)),
        too_big_by(HOST, by_v6, (65_000, 1500)),
    ] {
        let outcome = world.send(HOST, &packet);
        assert!(matches!(outcome.verdict, Verdict::Forward { .. }));
        assert!(world.events.pop().is_err());
    }
}

#[test]
fn a_finished_checksum_of_zero_is_a_zero_in_tcp_alone() {
    let to = [10, 244, 4, 7];
    for (is_tcp, field, expect) in [(true, 50, [0, 0]), (false, 40, [0xff, 0xff])] {
        let packet = |word: [u8; 2]| {
            let mut bytes = Vec::new();
            let ends =
                PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0).ipv4(v4(A).octets(), to, 60);
            match is_tcp {
                true => ends.tcp(1, 2, 3, 4).write(&mut bytes, &word),
                false => ends.udp(1, 2).write(&mut bytes, &word),
            }
            .unwrap();
            bytes
        };
        // Filled up with its own checksum, a packet's sum is zero.
        let filling = packet([0, 0])[field..field + 2].try_into().unwrap();
        let mut bytes = packet(filling);
        make_partial_v4(&mut bytes, 34, field - 34);
        let mut world = World::with_underlay();
        let outcome = world.send(A, &bytes);
        assert!(outcome.dropped().is_none());
        assert_eq!(outcome.bytes[field..field + 2], expect);
    }
}
