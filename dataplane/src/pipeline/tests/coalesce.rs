//! Segments from the uplink, merged; and cut again, which must give back what
//! came. Packets are built by etherparse.

use std::sync::Arc;

use etherparse::{
    IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6Header, PacketBuilder, TcpHeader, TcpOptionElement,
};
use proptest::prelude::*;

use crate::frame::{Batch, MAX_CHAIN, TxChecksum, Verdict};
use crate::pipeline::coalesce::Coalescer;
use crate::pipeline::segment::{offload, segment};
use crate::pipeline::world::*;
use crate::snapshot::Role;
use crate::types::PortId;

/// The node's interface to the world.
const UPLINK: u16 = 20;

/// A TCP segment as it leaves for pod B.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    is_v6: bool,
    pub(super) port: u16,
    pub(super) sequence: u32,
    pub(super) payload: Vec<u8>,
    identification: u16,
    dont_fragment: bool,
    pub(super) ecn: u8,
    pub(super) hops: u8,
    flow_label: u32,
    pub(super) tcp: TcpHeader,
    pub(super) is_corrupt: bool,
    pub(super) is_partial: bool,
}

impl Segment {
    /// Segment `number` of a connection that sends `len` bytes each time.
    pub(super) fn of(is_v6: bool, number: usize, len: usize) -> Segment {
        let mut tcp = TcpHeader::new(0, 80, 0, 500);
        tcp.ack = true;
        tcp.acknowledgment_number = 99;
        tcp.set_options(&[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(5, 6),
        ])
        .unwrap();
        Segment {
            is_v6,
            port: 4000,
            // Across the end of the sequence space.
            sequence: (u32::MAX - 2000).wrapping_add((number * len) as u32),
            payload: (0..len).map(|i| ((number * len + i) % 251) as u8).collect(),
            identification: 0xfffe_u16.wrapping_add(number as u16),
            dont_fragment: true,
            ecn: 0,
            hops: 63,
            flow_label: 7,
            tcp,
            is_corrupt: false,
            is_partial: false,
        }
    }

    pub(super) fn run(is_v6: bool, count: usize, len: usize) -> Vec<Segment> {
        let numbers = 0..count;
        numbers.map(|n| Segment::of(is_v6, n, len)).collect()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let ip = match self.is_v6 {
            true => {
                let header = Ipv6Header {
                    traffic_class: self.ecn,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap(),
                    hop_limit: self.hops,
                    next_header: IpNumber::TCP,
                    source: v6(A).octets(),
                    destination: v6(B).octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Ipv6Extensions::default())
            }
            false => {
                let (from, to) = (v4(A).octets(), v4(B).octets());
                let mut header = Ipv4Header::new(0, self.hops, IpNumber::TCP, from, to).unwrap();
                header.identification = self.identification;
                header.dont_fragment = self.dont_fragment;
                header.ecn = IpEcn::try_new(self.ecn).unwrap();
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
        };
        let mut tcp = self.tcp.clone();
        tcp.source_port = self.port;
        tcp.sequence_number = self.sequence;
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(GATEWAY_MAC.0, mac(B).0)
            .ip(ip)
            .tcp_header(tcp)
            .write(&mut packet, &self.payload)
            .unwrap();
        match (self.is_partial, self.is_v6) {
            (false, _) => {}
            (true, true) => make_partial_v6(&mut packet, 54, 16),
            (true, false) => make_partial_v4(&mut packet, 34, 16),
        }
        if self.is_corrupt {
            *packet.last_mut().unwrap() ^= 0x10;
        }
        packet
    }

    fn verdict(&self) -> Verdict {
        let start = if self.is_v6 { 54 } else { 34 };
        let checksum = TxChecksum { start, offset: 16 };
        Verdict::Forward {
            out: PortId(B),
            checksum: self.is_partial.then_some(checksum),
        }
    }
}

fn world() -> World {
    let mut world = World::new();
    world.publish(|snapshot| {
        let ports = Arc::make_mut(&mut snapshot.ports);
        let mut uplink = ports[usize::from(A)].clone().unwrap();
        uplink.id = PortId(UPLINK);
        uplink.role = Role::Uplink;
        ports.resize(usize::from(UPLINK) + 1, None);
        ports[usize::from(UPLINK)] = Some(uplink);
    });
    world.change_port(B, |port| {
        port.super_frames = true;
        port.device_mtu = 65535;
    });
    world
}

/// A decided batch of the uplink, merged.
fn merge(world: &mut World, segments: &[Segment]) -> Batch {
    let mut batch = Batch::new();
    for (index, segment) in segments.iter().enumerate() {
        let frames = world.frames(&segment.bytes());
        batch.push(PortId(UPLINK), frames);
        batch.decide(index, segment.verdict());
    }
    Coalescer::new().merge(&world.umem, &mut batch, &world.snapshot);
    batch
}

/// What leaves for the pod's device when a merged batch is cut again.
fn cut(world: &mut World, batch: &Batch) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for index in 0..batch.len() {
        let packet = batch.packets()[index];
        assert_eq!(packet.len as usize, world.bytes(batch, index).len());
        assert!(packet.len <= 14 + 65535);
        assert!(batch.chain(index).count() <= MAX_CHAIN);
        match packet.verdict {
            Verdict::Forward { .. } => packets.push(world.bytes(batch, index)),
            Verdict::Segment { mtu, .. } => {
                let mut out = Batch::new();
                // What the kernel is told says the same.
                let kernel = offload(&world.umem, batch, index, mtu)
                    .unwrap()
                    .cut
                    .unwrap();
                assert_eq!(u32::from(kernel.segment_len + kernel.header_len), mtu + 14);
                segment(&world.umem, &mut world.pool, batch, index, mtu, &mut out).unwrap();
                packets.extend((0..out.len()).map(|at| world.bytes(&out, at)));
                world.free(&mut out);
            }
            other => panic!("{other:?}"),
        }
    }
    packets
}

/// How many segments each packet of the merged batch holds.
fn shape(segments: &[Segment]) -> Vec<usize> {
    let mut world = world();
    let mut batch = merge(&mut world, segments);
    let shape = (0..batch.len())
        .map(|index| batch.chain(index).count())
        .collect();
    assert_eq!(
        cut(&mut world, &batch),
        segments.iter().map(Segment::bytes).collect::<Vec<_>>()
    );
    world.free(&mut batch);
    shape
}

#[test]
fn a_run_becomes_what_its_sender_had() {
    for is_v6 in [false, true] {
        let mut segments = Segment::run(is_v6, 5, 1000);
        segments[0].tcp.cwr = true;
        segments[4].payload.truncate(300);
        segments[4].tcp.psh = true;
        segments[4].tcp.fin = true;
        let mut whole = segments[0].clone();
        whole.payload = segments.iter().flat_map(|s| s.payload.clone()).collect();
        whole.tcp.psh = true;
        whole.tcp.fin = true;
        whole.is_partial = true;
        let mut world = world();
        let mut batch = merge(&mut world, &segments);
        assert_eq!(batch.len(), 1);
        assert_eq!(world.bytes(&batch, 0), whole.bytes());
        let mtu = segments[0].bytes().len() as u32 - 14;
        let out = PortId(B);
        assert_eq!(batch.packets()[0].verdict, Verdict::Segment { out, mtu });
        world.free(&mut batch);
    }
}

/// Changes the second of three segments.
type Change = fn(&mut Segment);

#[test]
fn what_differs_is_not_merged() {
    let cases: &[(&str, Change, &[usize])] = &[
        ("nothing", |_| {}, &[3]),
        ("push ends a run", |s| s.tcp.psh = true, &[2, 1]),
        ("so does the end", |s| s.tcp.fin = true, &[2, 1]),
        ("reset", |s| s.tcp.rst = true, &[1, 1, 1]),
        ("opening", |s| s.tcp.syn = true, &[1, 1, 1]),
        ("urgent data", |s| s.tcp.urg = true, &[1, 1, 1]),
        (
            "an urgent pointer",
            |s| s.tcp.urgent_pointer = 1,
            &[1, 1, 1],
        ),
        ("window reduced begins a run", |s| s.tcp.cwr = true, &[1, 2]),
        ("congestion echoed", |s| s.tcp.ece = true, &[1, 1, 1]),
        ("nothing acknowledged", |s| s.tcp.ack = false, &[1, 1, 1]),
        ("accurate congestion", |s| s.tcp.ns = true, &[1, 1, 1]),
        (
            "acknowledgment",
            |s| s.tcp.acknowledgment_number += 1,
            &[1, 1, 1],
        ),
        ("window", |s| s.tcp.window_size += 1, &[1, 1, 1]),
        ("a hole", |s| s.sequence += 1, &[1, 1, 1]),
        ("sent again", |s| s.sequence -= 1000, &[1, 1, 1]),
        ("congestion experienced", |s| s.ecn = 3, &[1, 1, 1]),
        ("hops", |s| s.hops -= 1, &[1, 1, 1]),
        ("empty", |s| s.payload.clear(), &[1, 1, 1]),
        ("longer", |s| s.payload.push(1), &[1, 1, 1]),
        ("shorter", |s| s.payload.truncate(999), &[2, 1]),
        ("corrupt", |s| s.is_corrupt = true, &[1, 1, 1]),
        ("partial", |s| s.is_partial = true, &[1, 1, 1]),
        (
            "other timestamp",
            |s| {
                options(
                    s,
                    &[
                        TcpOptionElement::Noop,
                        TcpOptionElement::Noop,
                        TcpOptionElement::Timestamp(6, 6),
                    ],
                )
            },
            &[1, 1, 1],
        ),
        ("no timestamp", |s| options(s, &[]), &[1, 1, 1]),
        (
            "selective acknowledgment",
            |s| {
                options(
                    s,
                    &[
                        TcpOptionElement::Noop,
                        TcpOptionElement::Noop,
                        TcpOptionElement::SelectiveAcknowledgement((1, 2), [None; 3]),
                    ],
                )
            },
            &[1, 1, 1],
        ),
    ];
    for is_v6 in [false, true] {
        for (name, change, expect) in cases {
            let mut segments = Segment::run(is_v6, 3, 1000);
            change(&mut segments[1]);
            if *name == "partial" {
                // Merged with complete ones, it comes out complete.
                let mut world = world();
                let mut batch = merge(&mut world, &segments);
                assert_eq!(batch.len(), 1, "{name}");
                let complete = Segment::run(is_v6, 3, 1000);
                let expect: Vec<_> = complete.iter().map(Segment::bytes).collect();
                assert_eq!(cut(&mut world, &batch), expect);
                world.free(&mut batch);
                continue;
            }
            assert_eq!(shape(&segments), *expect, "{name}, IPv6: {is_v6}");
        }
    }
}

fn options(segment: &mut Segment, options: &[TcpOptionElement]) {
    segment.tcp.set_options(options).unwrap();
}

#[test]
fn selective_acknowledgments_are_not_merged_even_when_alike() {
    let mut segments = Segment::run(false, 3, 1000);
    for segment in &mut segments {
        let ranges = TcpOptionElement::SelectiveAcknowledgement((1, 2), [None; 3]);
        options(
            segment,
            &[TcpOptionElement::Noop, TcpOptionElement::Noop, ranges],
        );
    }
    assert_eq!(shape(&segments), [1, 1, 1]);
}

#[test]
fn identifications_count_or_stand_still_where_they_mean_nothing() {
    let with = |ids: [u16; 4], dont_fragment| {
        let mut segments = Segment::run(false, 4, 1000);
        for (segment, id) in segments.iter_mut().zip(ids) {
            segment.identification = id;
            segment.dont_fragment = dont_fragment;
        }
        let mut world = world();
        let mut batch = merge(&mut world, &segments);
        let shape: Vec<_> = (0..batch.len()).map(|i| batch.chain(i).count()).collect();
        world.free(&mut batch);
        shape
    };
    assert_eq!(with([65535, 0, 1, 2], false), [4]);
    assert_eq!(with([9, 9, 9, 9], true), [4]);
    assert_eq!(with([9, 9, 9, 9], false), [1, 1, 1, 1]);
    assert_eq!(with([9, 9, 9, 10], true), [3, 1]);
    assert_eq!(with([9, 10, 10, 11], true), [2, 2]);
    assert_eq!(with([9, 11, 12, 13], true), [1, 3]);
    assert_eq!(with([9, 8, 7, 6], true), [1, 1, 1, 1]);
}

#[test]
fn ipv6_flow_labels_keep_runs_apart() {
    let mut segments = Segment::run(true, 4, 1000);
    segments[2].flow_label = 8;
    segments[3].flow_label = 8;
    assert_eq!(shape(&segments), [2, 2]);
}

#[test]
fn a_run_holds_as_many_frames_as_a_port_takes() {
    assert_eq!(
        shape(&Segment::run(false, 40, 1000)),
        [MAX_CHAIN, MAX_CHAIN, 4]
    );
}

#[test]
fn a_run_is_no_longer_than_the_device_takes() {
    let mut world = world();
    world.change_port(B, |port| port.device_mtu = 3100);
    let mut batch = merge(&mut world, &Segment::run(false, 6, 1000));
    let lens: Vec<_> = batch.packets().iter().map(|packet| packet.len).collect();
    assert_eq!(lens, [14 + 52 + 3000; 2]);
    world.free(&mut batch);
}

#[test]
fn only_what_comes_from_the_uplink_for_a_port_that_takes_it_is_merged() {
    let segments = Segment::run(false, 3, 1000);
    let mut world = world();
    world.change_port(B, |port| port.super_frames = false);
    let mut batch = merge(&mut world, &segments);
    assert_eq!(batch.len(), 3);
    world.free(&mut batch);
    world.change_port(B, |port| port.super_frames = true);
    world.change_port(UPLINK, |port| port.role = Role::Pod);
    let mut batch = merge(&mut world, &segments);
    assert_eq!(batch.len(), 3);
    world.free(&mut batch);
}

#[test]
fn runs_of_several_connections_are_untangled_in_order() {
    let mut segments = Vec::new();
    for number in 0..6 {
        for port in [4000, 4001, 4002] {
            let mut segment = Segment::of(port == 4001, number, 900);
            segment.port = port;
            segments.push(segment);
        }
    }
    let mut world = world();
    let mut batch = merge(&mut world, &segments);
    assert_eq!(batch.len(), 3);
    let expect: Vec<_> = [4000, 4001, 4002]
        .iter()
        .flat_map(|&port| segments.iter().filter(move |s| s.port == port))
        .map(Segment::bytes)
        .collect();
    assert_eq!(cut(&mut world, &batch), expect);
    world.free(&mut batch);
}

#[test]
fn an_empty_segment_overtakes_nothing() {
    let mut segments = Segment::run(false, 4, 1000);
    segments[2].payload.clear();
    segments[3].sequence = segments[2].sequence;
    // The last continues the first two, but an acknowledgment stands between.
    assert_eq!(shape(&segments), [2, 1, 1]);
}

/// One step of a connection's sender.
#[derive(Debug, Clone)]
struct Step {
    connection: u16,
    len: usize,
    oddity: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![6 => Just(1398usize), 2 => 0usize..1399];
    let oddity = prop_oneof![12 => Just(0u8), 3 => 1u8..12];
    let step = (0u16..4, len, oddity).prop_map(|(connection, len, oddity)| Step {
        connection,
        len,
        oddity,
    });
    proptest::collection::vec(step, 2..Batch::MAX_PACKETS)
}

/// What four senders send by these steps: the first two over IPv4, the second
/// of them without counting identifications.
fn play(steps: &[Step]) -> Vec<Segment> {
    let mut sent = [u32::MAX - 5000; 4];
    let mut number = [u16::MAX - 3; 4];
    let mut segments = Vec::new();
    for step in steps {
        let at = usize::from(step.connection);
        let mut segment = Segment::of(at > 1, 0, step.len);
        segment.port = 4000 + step.connection;
        segment.sequence = sent[at];
        segment.identification = number[at];
        match step.oddity {
            1 => segment.tcp.psh = true,
            2 => segment.tcp.fin = true,
            3 => segment.tcp.window_size = 9,
            4 => segment.tcp.acknowledgment_number = 7,
            5 => segment.ecn = 3,
            6 => segment.hops = 9,
            7 if step.len > 0 => segment.is_corrupt = true,
            8 => segment.sequence = segment.sequence.wrapping_add(1398),
            9 => segment.tcp.cwr = true,
            10 => options(&mut segment, &[]),
            11 => segment.identification = segment.identification.wrapping_add(5),
            _ => {}
        }
        sent[at] = segment.sequence.wrapping_add(step.len as u32);
        if at != 1 {
            number[at] = segment.identification.wrapping_add(1);
        }
        segments.push(segment);
    }
    segments
}

/// A packet's connection, and its bytes but for an identification that means
/// nothing and the checksum over it.
fn comparable(mut packet: Vec<u8>) -> (u16, Vec<u8>) {
    let transport = if packet[12] == 8 { 34 } else { 54 };
    let port = u16::from_be_bytes([packet[transport], packet[transport + 1]]);
    if port == 4001 {
        packet[18..20].fill(0);
        packet[24..26].fill(0);
    }
    (port, packet)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Merged and cut again, every connection's packets are as they came, in
    /// the order in which they came.
    #[test]
    fn cutting_undoes_merging(steps in steps()) {
        let segments = play(&steps);
        let mut world = world();
        let mut batch = merge(&mut world, &segments);
        prop_assert!(batch.len() <= segments.len());
        let mut after: Vec<_> = cut(&mut world, &batch).into_iter().map(comparable).collect();
        world.free(&mut batch);
        let mut before: Vec<_> = segments.iter().map(|s| comparable(s.bytes())).collect();
        // Stable: the order within a connection stays.
        after.sort_by_key(|(port, _)| *port);
        before.sort_by_key(|(port, _)| *port);
        prop_assert_eq!(after, before);
    }
}
