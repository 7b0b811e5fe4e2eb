//! Datagrams that leave together. Packets are built by etherparse.

use etherparse::{IpFragOffset, PacketBuilder};

use crate::frame::{Batch, TxChecksum, Verdict};
use crate::pipeline::datagrams::{self, Taken};
use crate::pipeline::segment::{Cut, Segments};
use crate::pipeline::world::*;
use crate::types::PortId;

/// A datagram as it leaves for pod B.
#[derive(Debug, Clone)]
struct Datagram {
    is_v6: bool,
    port: u16,
    payload: Vec<u8>,
    hops: u8,
    identification: u16,
    may_fragment: bool,
    has_more: bool,
    has_checksum: bool,
    is_partial: bool,
    is_corrupt: bool,
    is_tunnel: bool,
    out: u16,
}

impl Datagram {
    fn run(is_v6: bool, count: usize) -> Vec<Datagram> {
        (0..count)
            .map(|number| Datagram {
                is_v6,
                port: 4000,
                payload: vec![number as u8 + 1; 101],
                hops: 63,
                identification: 7,
                may_fragment: false,
                has_more: false,
                has_checksum: true,
                is_partial: false,
                is_corrupt: false,
                is_tunnel: false,
                out: B,
            })
            .collect()
    }

    fn transport(&self) -> usize {
        if self.is_v6 { 54 } else { 34 }
    }

    fn bytes(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(GATEWAY_MAC.0, mac(B).0);
        let builder = if self.is_v6 {
            builder.ipv6(v6(A).octets(), v6(B).octets(), self.hops)
        } else {
            let (from, to) = (v4(A).octets(), v4(B).octets());
            let mut ip = etherparse::Ipv4Header::new(0, self.hops, 17.into(), from, to).unwrap();
            ip.identification = self.identification;
            ip.dont_fragment = !self.may_fragment;
            ip.more_fragments = self.has_more;
            ip.fragment_offset = IpFragOffset::ZERO;
            builder.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        };
        let mut packet = Vec::new();
        let builder = builder.udp(self.port, 53);
        builder.write(&mut packet, &self.payload).unwrap();
        let transport = self.transport();
        match (self.is_partial, self.is_v6) {
            (false, _) => {}
            (true, true) => make_partial_v6(&mut packet, transport, 6),
            (true, false) => make_partial_v4(&mut packet, transport, 6),
        }
        if !self.has_checksum {
            packet[transport + 6..transport + 8].fill(0);
        }
        if self.is_corrupt {
            *packet.last_mut().unwrap() ^= 0x10;
        }
        packet
    }

    fn verdict(&self) -> Verdict {
        let start = if self.is_tunnel { 90 } else { self.transport() };
        let checksum = TxChecksum {
            start: start as u16,
            offset: 6,
        };
        Verdict::Forward {
            out: PortId(self.out),
            checksum: (self.is_partial || self.is_tunnel).then_some(checksum),
        }
    }
}

fn batch(world: &mut World, datagrams: &[Datagram]) -> Batch {
    let mut batch = Batch::new();
    for (index, datagram) in datagrams.iter().enumerate() {
        let frames = world.frames(&datagram.bytes());
        batch.push(PortId(A), frames);
        batch.decide(index, datagram.verdict());
    }
    batch
}

/// How many datagrams leave in each go.
fn shape(datagrams: &[Datagram]) -> Vec<usize> {
    let mut world = World::new();
    let mut batch = batch(&mut world, datagrams);
    let (mut at, mut shape) = (0, Vec::new());
    while at < batch.len() {
        let run = datagrams::run(&world.umem, &batch, at, (PortId(B), Taken::Any));
        let packets = run.map_or(1, |run| run.packets);
        shape.push(packets);
        at += packets;
    }
    world.free(&mut batch);
    shape
}

#[test]
fn a_run_is_one_datagram_of_all_payloads() {
    for (is_v6, is_partial) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut sent = Datagram::run(is_v6, 5);
        sent[4].payload.truncate(30);
        for (number, datagram) in sent.iter_mut().enumerate() {
            datagram.is_partial = is_partial;
            // The identification means nothing where nothing is cut.
            datagram.identification += number as u16 * 3;
        }
        let mut whole = sent[0].clone();
        whole.payload = sent.iter().flat_map(|d| d.payload.clone()).collect();
        whole.is_partial = true;
        let mut world = World::new();
        let mut batch = batch(&mut world, &sent);
        let run = datagrams::run(&world.umem, &batch, 0, (PortId(B), Taken::Any)).unwrap();
        assert_eq!(run.packets, 5);
        let mut bytes = run.headers().to_vec();
        for index in 0..5 {
            bytes.extend_from_slice(run.payload(&world.umem, &batch, index));
        }
        assert_eq!(bytes, whole.bytes());
        let transport = whole.transport() as u16;
        let checksum = TxChecksum {
            start: transport,
            offset: 6,
        };
        let cut = Cut {
            segments: Segments::Udp,
            header_len: transport + 8,
            segment_len: 101,
        };
        assert_eq!(run.offload.checksum, checksum);
        assert_eq!(run.offload.cut, Some(cut));
        world.free(&mut batch);
    }
}

/// Changes the second of three datagrams.
type Change = fn(&mut Datagram);

#[test]
fn what_differs_leaves_by_itself() {
    let cases: &[(&str, Change, &[usize])] = &[
        ("nothing", |_| {}, &[3]),
        ("shorter ends a run", |d| d.payload.truncate(50), &[2, 1]),
        ("longer begins one", |d| d.payload.push(0), &[1, 2]),
        ("empty", |d| d.payload.clear(), &[1, 1, 1]),
        ("another flow", |d| d.port = 4001, &[1, 1, 1]),
        ("fewer hops", |d| d.hops = 62, &[1, 1, 1]),
        ("another port", |d| d.out = A, &[1, 1, 1]),
        ("wrong checksum", |d| d.is_corrupt = true, &[1, 1, 1]),
        ("no checksum", |d| d.has_checksum = false, &[1, 1, 1]),
        ("partial checksum", |d| d.is_partial = true, &[1, 1, 1]),
        ("a tunnel's inner one", |d| d.is_tunnel = true, &[1, 1, 1]),
    ];
    for is_v6 in [false, true] {
        for (name, change, expect) in cases {
            let mut sent = Datagram::run(is_v6, 3);
            change(&mut sent[1]);
            assert_eq!(shape(&sent), *expect, "{name}, IPv6: {is_v6}");
        }
    }
    let v4_only: &[(&str, Change)] = &[
        ("may be cut on its way", |d| d.may_fragment = true),
        ("a fragment", |d| d.has_more = true),
    ];
    for (name, change) in v4_only {
        let mut sent = Datagram::run(false, 3);
        change(&mut sent[1]);
        assert_eq!(shape(&sent), [1, 1, 1], "{name}");
    }
    // What may be cut keeps its number only where the numbers count up.
    let mut sent = Datagram::run(false, 4);
    for (number, datagram) in sent.iter_mut().enumerate() {
        datagram.may_fragment = true;
        datagram.identification = 0xfffe_u16.wrapping_add(number as u16);
    }
    assert_eq!(shape(&sent), [4]);
    sent[2].identification = 7;
    assert_eq!(shape(&sent), [2, 1, 1]);
    let mut mixed = Datagram::run(false, 2);
    mixed.extend(Datagram::run(true, 2));
    assert_eq!(shape(&mixed), [2, 2]);
}

#[test]
fn a_wrong_first_checksum_takes_nobody_along() {
    let mut sent = Datagram::run(false, 3);
    sent[0].is_corrupt = true;
    assert_eq!(shape(&sent), [1, 2]);
}

#[test]
fn no_run_is_longer_than_a_length_field_says() {
    let mut sent = Datagram::run(false, 60);
    for datagram in &mut sent {
        datagram.payload.resize(1400, 3);
    }
    // 8 + 46 × 1400 = 64 408; one more would not fit 65 535.
    assert_eq!(shape(&sent), [46, 14]);
}
