//! Datagrams of the overlay that came as one packet, taken apart. Packets are
//! built by etherparse.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::coalesce::Segment;
use crate::frame::{Batch, Verdict};
use crate::pipeline::apart::Parting;
use crate::pipeline::datagrams::{self, Taken};
use crate::pipeline::world::*;
use crate::types::PortId;

/// Outer headers before these datagrams, without UDP checksum.
fn together(is_v6: bool, frames: &[Vec<u8>]) -> Vec<u8> {
    let [a, b, c] = VNI.to_be_bytes()[1..] else {
        panic!("four bytes");
    };
    let vxlan = [8, 0, 0, 0, a, b, c, 0];
    let payload: Vec<u8> = frames
        .iter()
        .flat_map(|frame| [&vxlan, frame.as_slice()].concat())
        .collect();
    let ethernet = PacketBuilder::ethernet2(NEIGHBOR_MAC.0, UPLINK_MAC.0);
    let ip = match is_v6 {
        true => ethernet.ipv6(REMOTE_V6.octets(), NODE_V6.octets(), 64),
        false => ethernet.ipv4(REMOTE_V4.octets(), NODE_V4.octets(), 64),
    };
    let mut packet = Vec::new();
    ip.udp(50000, 4789).write(&mut packet, &payload).unwrap();
    let checksum = if is_v6 { 60 } else { 40 };
    packet[checksum..checksum + 2].fill(0);
    packet
}

/// What a batch of these packets becomes.
fn apart(world: &mut World, packets: &[Vec<u8>], may_merge: bool) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    for packet in packets {
        let frames = world.frames(packet);
        batch.push(PortId(UPLINK), frames);
    }
    let (mut parting, mut parts) = (Parting::new(), Vec::new());
    loop {
        let snapshot = world.snapshot.clone();
        let (umem, pool) = (&world.umem, &mut world.pool);
        let parted = parting.take(umem, pool, &mut batch, &snapshot, may_merge);
        assert_eq!(parted.lost, 0);
        for index in 0..batch.len() {
            let bytes = world.bytes(&batch, index);
            assert_eq!(batch.packets()[index].len as usize, bytes.len());
            parts.push(bytes);
        }
        world.free(&mut batch);
        if !parted.more {
            return parts;
        }
    }
}

fn frames(segments: &[Segment]) -> Vec<Vec<u8>> {
    segments.iter().map(Segment::bytes).collect()
}

/// Each datagram as it was sent.
fn alone(is_v6: bool, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let each = frames.iter();
    each.map(|frame| together(is_v6, std::slice::from_ref(frame)))
        .collect()
}

#[test]
fn datagrams_leave_as_they_were_sent() {
    for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::with_underlay();
        // Frame borders lie within headers and payloads alike; more than a
        // batch holds, among packets that came by themselves.
        let mut sent: Vec<Vec<Vec<u8>>> = Vec::new();
        for (count, len) in [(40, 1378), (1, 200), (40, 900), (3, 1), (64, 700)] {
            sent.push(frames(&Segment::run(inner_v6, count, len)));
        }
        let packets: Vec<_> = sent.iter().map(|f| together(outer_v6, f)).collect();
        let expect: Vec<_> = sent.iter().flat_map(|f| alone(outer_v6, f)).collect();
        assert_eq!(apart(&mut world, &packets, false), expect);
    }
}

#[test]
fn segments_become_what_their_sender_had() {
    for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut segments = Segment::run(inner_v6, 40, 1378);
        segments[0].tcp.cwr = true;
        segments[39].payload.truncate(301);
        segments[39].tcp.psh = true;
        segments[39].tcp.fin = true;
        let mut whole = segments[0].clone();
        whole.payload = segments.iter().flat_map(|s| s.payload.clone()).collect();
        whole.tcp.psh = true;
        whole.tcp.fin = true;
        whole.is_partial = true;
        let mut world = World::with_underlay();
        let packet = together(outer_v6, &frames(&segments));
        assert_eq!(
            apart(&mut world, &[packet], true),
            alone(outer_v6, &[whole.bytes()])
        );
    }
}

/// Changes the third of five segments.
type Change = fn(&mut Segment);

#[test]
fn what_differs_is_not_merged() {
    let cases: &[(&str, Change, &[usize])] = &[
        ("nothing", |_| {}, &[5]),
        ("push ends a run", |s| s.tcp.psh = true, &[3, 2]),
        ("reset", |s| s.tcp.rst = true, &[2, 1, 2]),
        ("window reduced begins a run", |s| s.tcp.cwr = true, &[2, 3]),
        ("congestion echoed", |s| s.tcp.ece = true, &[2, 1, 2]),
        ("window", |s| s.tcp.window_size += 1, &[2, 1, 2]),
        (
            "acknowledgment",
            |s| s.tcp.acknowledgment_number += 1,
            &[2, 1, 2],
        ),
        (
            "a hole",
            |s| s.sequence = s.sequence.wrapping_add(1),
            &[2, 1, 2],
        ),
        ("congestion experienced", |s| s.ecn = 3, &[2, 1, 2]),
        ("hops", |s| s.hops -= 1, &[2, 1, 2]),
        ("corrupt", |s| s.is_corrupt = true, &[2, 1, 2]),
        ("another connection", |s| s.port += 1, &[2, 1, 2]),
    ];
    for is_v6 in [false, true] {
        for (name, change, shape) in cases {
            let mut segments = Segment::run(is_v6, 5, 1000);
            change(&mut segments[2]);
            let mut world = World::with_underlay();
            let packet = together(false, &frames(&segments));
            let parts = apart(&mut world, &[packet], true);
            let header = segments[0].bytes().len() - 1000 + 50;
            let got: Vec<usize> = parts.iter().map(|p| (p.len() - header) / 1000).collect();
            assert_eq!(&got, shape, "{name}");
            // What stayed by itself is as it was sent.
            let mut at = 0;
            for (part, &count) in parts.iter().zip(*shape) {
                if count == 1 {
                    assert_eq!(
                        *part,
                        alone(false, &frames(&segments[at..=at]))[0],
                        "{name}"
                    );
                }
                at += count;
            }
        }
    }
}

#[test]
fn padding_counts_where_frames_are_short() {
    let mut world = World::with_underlay();
    let padded = |n: usize| {
        let mut segment = Segment::of(false, n, 1);
        segment.tcp.set_options(&[]).unwrap();
        let mut bytes = segment.bytes();
        assert_eq!(bytes.len(), 55);
        bytes.resize(60, 0);
        bytes
    };
    let sent: Vec<_> = (0..3).map(padded).collect();
    let packet = together(false, &sent);
    assert_eq!(
        apart(&mut world, std::slice::from_ref(&packet), false),
        alone(false, &sent)
    );
    // Padding behind one datagram is none of another.
    let single = together(false, &sent[..1]);
    assert_eq!(
        apart(&mut world, std::slice::from_ref(&single), true),
        [single]
    );
}

#[test]
fn what_is_no_company_stays_whole() {
    let run = frames(&Segment::run(false, 4, 500));
    let mut other_network = together(false, &run);
    // The VNI of the third datagram.
    let third = 42 + 2 * (8 + run[0].len());
    other_network[third + 6] ^= 1;
    let mut foreign = together(false, &run);
    foreign[30..34].copy_from_slice(&[192, 0, 2, 1]);
    let mut cut_off = together(false, &run);
    cut_off.truncate(1500);
    // From nobody's end, and in a network that nobody there is in.
    let mut stranger = together(false, &run);
    stranger[26..30].copy_from_slice(&[192, 0, 2, 77]);
    stranger[24..26].fill(0);
    let sum = !naive_sum(&stranger[14..34]);
    stranger[24..26].copy_from_slice(&sum.to_be_bytes());
    let mut elsewhere = together(false, &run);
    for datagram in 0..4 {
        elsewhere[42 + datagram * (8 + run[0].len()) + 6] ^= 0x40;
    }
    for packet in [other_network, foreign, cut_off, stranger, elsewhere] {
        let mut world = World::with_underlay();
        let packets = [packet];
        assert_eq!(apart(&mut world, &packets, true), packets);
    }
}

/// The run that single datagrams make on their way out by the uplink: what
/// leaves, its UDP checksum zeroed.
fn run(frames: &[Vec<u8>], taken: Taken) -> Option<Vec<u8>> {
    let mut world = World::with_underlay();
    let mut batch = Batch::new();
    for (index, packet) in alone(false, frames).iter().enumerate() {
        let frames = world.frames(packet);
        batch.push(PortId(A), frames);
        let (out, checksum) = (PortId(UPLINK), None);
        batch.decide(index, Verdict::Forward { out, checksum });
    }
    let run = datagrams::run(&world.umem, &batch, 0, (PortId(UPLINK), taken));
    let bytes = run.map(|run| {
        assert_eq!(run.packets, frames.len());
        let payloads = (0..run.packets).map(|at| run.payload(&world.umem, &batch, at));
        let mut bytes = run.headers().to_vec();
        bytes.extend(payloads.flatten());
        let addresses = [&bytes[26..34], &[0, 17], &bytes[38..40]].concat();
        let partial = u16::from_be_bytes([bytes[40], bytes[41]]);
        assert_eq!(partial, naive_sum(&addresses), "a partial checksum");
        bytes[40..42].fill(0);
        bytes
    });
    world.free(&mut batch);
    bytes
}

#[test]
fn what_can_be_taken_apart_leaves_together() {
    let mut sent = frames(&Segment::run(false, 40, 1000));
    let last = &mut Segment::of(false, 40, 1000);
    last.payload.truncate(10);
    sent.push(last.bytes());
    assert_eq!(
        run(&sent, Taken::Overlay(4789)),
        Some(together(false, &sent))
    );
    assert_eq!(run(&sent, Taken::Overlay(8472)), None);
    assert_eq!(run(&sent, Taken::Any), None);
    // Nothing in it says how long it is.
    let mut foreign = sent.clone();
    foreign
        .iter_mut()
        .for_each(|frame| frame[12..14].copy_from_slice(&[0x88, 0xcc]));
    assert_eq!(run(&foreign, Taken::Overlay(4789)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_or_added(
        is_v6: bool,
        outer_v6: bool,
        count in 2..40usize,
        len in 8..1378usize,
        last in 1..1378usize,
        bytes in proptest::collection::vec(any::<(u16, u8)>(), 0..4),
    ) {
        let mut segments = Segment::run(is_v6, count, len);
        segments[count - 1].payload.truncate(last);
        let mut packet = together(outer_v6, &frames(&segments));
        let headers = if outer_v6 { 62 } else { 42 };
        for (at, value) in bytes {
            let at = headers + usize::from(at) % (packet.len() - headers);
            packet[at] = value;
        }
        let mut world = World::with_underlay();
        let packets = [packet];
        let parts = apart(&mut world, &packets, false);
        // Behind the outer headers, the very same bytes.
        let payload: Vec<u8> = parts.iter().flat_map(|p| p[headers..].to_vec()).collect();
        prop_assert_eq!(&payload, &packets[0][headers..]);
        let merged = apart(&mut world, &packets, true);
        prop_assert!(merged.len() <= parts.len());
    }
}
