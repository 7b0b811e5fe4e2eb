//! What fuzzers call, and the bounded test that calls it too.
//!
//! An input of [`process_packets`] is a run of packets, each a byte for its
//! port, two for its length, and its bytes; the last one may be cut short.

use std::cell::Cell;

use super::FlowCapacity;
use super::parse::{self, Parsed};
use super::plain::Ingress;
use super::reply::HOPS;
use super::segment::segment;
use super::world::{
    NEIGHBOR_MAC, NODE_V4, NODE_V6, REMOTE_V4, REMOTE_V6, UPLINK, UPLINK_MAC, World,
};
use crate::frame::{Batch, FRAME_SIZE, HEADROOM, TX_METADATA_BYTES, TxChecksum, Verdict};
use crate::snapshot::{Role, Snapshot};
use crate::types::PortId;
use crate::wire::{checksum, ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol, tunnel};

/// Everything that walks bytes of a stranger, on bytes of a stranger. Every
/// offset that comes out lies where it should.
pub fn parse_bytes(data: &[u8]) {
    if let Some((ethertype, at)) = ethernet::payload(data) {
        assert!(at <= data.len());
        if let Some(partial) = tunnel::partial_checksum(data, data.len(), ethertype, at) {
            assert_inside(partial.field, data.len());
        }
    }
    if let Ok(upper) = ipv6::walk(data) {
        assert!(upper.offset <= data.len() && upper.offset >= ipv6::HEADER_LEN);
    }
    for wanted in [icmpv6::OPTION_SOURCE, icmpv6::OPTION_TARGET] {
        let _ = icmpv6::link_layer_option(data, wanted);
    }
    let _ = ipv4::options_allowed(data);
    let (front, back) = data.split_at(data.len() / 2);
    let sum = checksum::Sum::ZERO.bytes(front);
    let sum = match front.len() % 2 {
        0 => sum.bytes(back),
        _ => sum.odd_bytes(back),
    };
    assert_eq!(sum.checksum(), checksum::checksum(data));
}

thread_local! {
    /// Its memory serves the next input, too.
    static WORLD: Cell<Option<World>> = const { Cell::new(None) };
}

/// A lane of its own, one batch.
pub fn process_packets(data: &[u8]) {
    let few = FlowCapacity {
        v4: 64,
        v6: 64,
        l2: 64,
    };
    let mut world = WORLD.take().unwrap_or_else(|| World::with_capacity(few));
    world.begin_again(few);
    let mut world = world.with_ways_out();
    process_in(&mut world, data);
    WORLD.set(Some(world));
}

/// One batch in a lane that has seen others.
fn process_in(world: &mut World, mut data: &[u8]) {
    let mut packets = Vec::new();
    while let [port, high, low, rest @ ..] = data {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        if packets.len() < Batch::MAX_PACKETS && bytes.len() < 60_000 {
            packets.push((u16::from(*port % 32), bytes));
        }
        data = rest;
    }
    let total: usize = packets
        .iter()
        .map(|(_, bytes)| bytes.len() / 3000 + 1)
        .sum();
    if total > 400 {
        return;
    }
    for (port, bytes) in &packets {
        goes_straight(&world.snapshot, PortId(*port), bytes);
    }
    let mut batch = world.decide(packets.iter().copied());
    for (index, (port, bytes)) in packets.iter().enumerate() {
        check(world, &batch, index, *port, bytes);
    }
    world.free(&mut batch);
    assert_eq!(world.outstanding(), 0, "frames in = frames accounted");
}

/// Whether a packet goes the straight way through parse, which then leaves
/// what the long way leaves.
fn goes_straight(snapshot: &Snapshot, port: PortId, packet: &[u8]) -> bool {
    let head = &packet[..packet.len().min(FRAME_SIZE - HEADROOM)];
    let mut straight = Parsed::NONE;
    let goes = Ingress::of(port, snapshot).read(head, packet.len(), &mut straight);
    if goes {
        let mut long = Parsed::NONE;
        let entry = snapshot.port(port).expect("a port that is there");
        let done = parse::inside(head, packet.len(), entry, snapshot, &mut long);
        assert_eq!((done, straight), (Ok(()), long));
    }
    goes
}

fn assert_inside(field: TxChecksum, len: usize) {
    assert!(field.start as usize >= parse::L3);
    assert!(usize::from(field.start) + usize::from(field.offset) + 2 <= len);
}

/// What holds of every verdict.
fn check(world: &mut World, batch: &Batch, index: usize, port: u16, before: &[u8]) {
    let packet = batch.packets()[index];
    let head = batch.head(index);
    assert!(head.headroom() >= TX_METADATA_BYTES);
    // Outer headers may be gone.
    assert!(head.headroom() <= HEADROOM || packet.vtep.is_some());
    let after = world.bytes(batch, index);
    let role = world.snapshot.port(PortId(port)).map(|port| port.role);
    match packet.verdict {
        Verdict::Forward { out, checksum } => {
            assert_eq!(packet.len as usize, after.len());
            if port == UPLINK || out.0 == UPLINK {
                return check_border(world, port, out, &after);
            }
            assert!(after.len() <= before.len());
            if out == PortId(port) {
                return check_echo(world, role, before, &after);
            }
            check_way(world, role, port, out);
            if let Some(field) = checksum {
                assert_inside(field, head.len());
            }
            if !matches!(role, Some(Role::SegmentPod(_))) {
                check_hop(before, &after);
            } else {
                assert_eq!(after[..], before[..after.len()]);
            }
        }
        Verdict::Segment { out, mtu } => {
            if port != UPLINK && out.0 != UPLINK {
                check_way(world, role, port, out);
            }
            let mut out = Batch::new();
            if segment(&world.umem, &mut world.pool, batch, index, mtu, &mut out).is_ok() {
                for segment in out.packets() {
                    assert!(segment.len <= mtu + 14 + 8);
                }
            } else {
                assert!(out.is_empty());
            }
            world.free(&mut out);
        }
        Verdict::Flood {
            segment, checksum, ..
        } => {
            let from = packet
                .vtep
                .map_or(role, |_| Some(Role::SegmentPod(segment)));
            assert_eq!(from, Some(Role::SegmentPod(segment)));
            if let Some(field) = checksum {
                assert_inside(field, head.len());
            }
        }
        Verdict::Tunnel { vtep, mtu, .. } => {
            assert!(world.snapshot.vtep(vtep).is_some() && mtu <= 1500);
            assert_ne!(port, UPLINK, "never back into the overlay");
        }
        Verdict::Wait(_) => assert!(before.starts_with(&after), "as it came"),
        Verdict::Reply { .. } if port == UPLINK => {
            let reply = world.umem.bytes(head);
            assert!(reply.len() >= 42);
            if packet.vtep.is_some() {
                check_outer(reply);
            }
        }
        Verdict::Reply { dropped } => {
            let reply = world.umem.bytes(head);
            assert!(matches!(role, Some(Role::Pod | Role::Host)));
            // Everybody hears who asks for an address that is taken.
            let is_dad = before[12..14] == [0x86, 0xdd] && before[22..38] == [0; 16];
            let hearer = match is_dad {
                true => &[0x33, 0x33, 0, 0, 0, 1],
                false => &before[6..12],
            };
            assert_eq!(&reply[..6], hearer, "back to the sender");
            assert!(reply.len() >= 42);
            if reply[12..14] == [0x08, 0x00] && dropped.is_some() {
                assert_eq!(checksum::checksum(&reply[14..34]), 0);
                assert_eq!(checksum::checksum(&reply[34..]), 0);
                assert!(reply.len() <= 14 + 576);
            }
            assert!(reply.len() <= 14 + 1280 || dropped.is_none());
        }
        Verdict::Drop(_) => {}
    }
}

/// A packet that came into the node or leaves it, and never both.
fn check_border(world: &World, port: u16, out: PortId, after: &[u8]) {
    let to = world.snapshot.port(out).map(|port| port.role);
    assert!(to.is_some());
    assert_ne!(PortId(port), out);
    if out.0 == UPLINK {
        assert_eq!(after[6..12], UPLINK_MAC.0);
        assert_eq!(after[..6], NEIGHBOR_MAC.0);
        check_outer(after);
    }
}

/// The IP header of a packet on the underlay, and the overlay's when it is one
/// of those.
fn check_outer(frame: &[u8]) {
    let is_v6 = frame[14] >> 4 == 6;
    let (udp, len) = match is_v6 {
        true => (
            54,
            40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
        ),
        false => (34, usize::from(u16::from_be_bytes([frame[16], frame[17]]))),
    };
    assert_eq!(len + 14, frame.len());
    if !is_v6 && frame[14] == 0x45 {
        assert_eq!(checksum::checksum(&frame[14..34]), 0);
    }
    // From this node to a remote end, which sees pods' own addresses otherwise.
    let is_overlay = match is_v6 {
        true => frame[20] == 17 && frame[22..54] == [NODE_V6.octets(), REMOTE_V6.octets()].concat(),
        false => {
            let ends = [NODE_V4.octets(), REMOTE_V4.octets()].concat();
            (frame[14], frame[23]) == (0x45, 17) && frame[26..34] == ends
        }
    };
    if is_overlay && frame[udp + 2..udp + 4] == 4789u16.to_be_bytes() && frame[udp] >= 0xc0 {
        let claimed = u16::from_be_bytes([frame[udp + 4], frame[udp + 5]]);
        assert_eq!(usize::from(claimed) + udp, frame.len());
    }
}

/// A way out exists, is another port, and is of the same network.
fn check_way(world: &World, role: Option<Role>, port: u16, out: PortId) {
    let to = world.snapshot.port(out).map(|port| port.role);
    assert_ne!(out, PortId(port));
    match (role, to) {
        (Some(Role::SegmentPod(from)), Some(Role::SegmentPod(to))) => assert_eq!(from, to),
        (Some(Role::Pod | Role::Host), Some(Role::Pod | Role::Host)) => {}
        other => panic!("from and to {other:?}"),
    }
}

/// An echo, or a piece of one, that the gateway turned round as it is.
fn check_echo(world: &World, role: Option<Role>, before: &[u8], after: &[u8]) {
    assert!(matches!(role, Some(Role::Pod | Role::Host)));
    assert!(after.len() > FRAME_SIZE - HEADROOM, "one frame is a reply");
    let word = |at: usize| usize::from(u16::from_be_bytes([before[at], before[at + 1]]));
    let is_v6 = before[14] >> 4 == 6;
    let (len, source, destination) = match is_v6 {
        false => (4, 26, 30),
        true => (16, 22, 38),
    };
    let to = &before[destination..][..len];
    assert_eq!(after[..6], before[6..12]);
    assert_eq!(&after[source..][..len], to);
    assert_eq!(after[destination..][..len], before[source..][..len]);
    let gateway = &world.snapshot.gateway;
    let (ip_len, hops, transport, is_later) = if is_v6 {
        assert!(gateway.addresses_v6.iter().any(|own| own.octets() == to));
        let upper = ipv6::walk(&before[14..]).expect("headers that were walked");
        assert_eq!(upper.protocol, protocol::ICMPV6);
        let is_later = upper.fragment.is_some_and(|piece| piece.offset > 0);
        (word(18) + 40, after[21], upper.offset + 14, is_later)
    } else {
        assert!(gateway.addresses_v4.iter().any(|own| own.octets() == to));
        assert_eq!(before[23], protocol::ICMP);
        let transport = 14 + usize::from(before[14] & 15) * 4;
        assert_eq!(checksum::checksum(&after[14..transport]), 0);
        (word(16), after[22], transport, word(20) & 0x1fff > 0)
    };
    assert_eq!(after.len(), ip_len + 14, "without what is behind it");
    assert_eq!(hops, HOPS);
    let (request, reply) = match is_v6 {
        true => (icmpv6::kind::ECHO_REQUEST, icmpv6::kind::ECHO_REPLY),
        false => (icmpv4::kind::ECHO_REQUEST, icmpv4::kind::ECHO_REPLY),
    };
    let same = match is_later {
        true => transport,
        false => {
            assert_eq!((before[transport], after[transport]), (request, reply));
            transport + 4
        }
    };
    assert_eq!(after[same..], before[same..after.len()]);
}

/// One hop less, and a right IPv4 header.
fn check_hop(before: &[u8], after: &[u8]) {
    let at = match after[14] >> 4 {
        4 => 22,
        _ => 21,
    };
    assert_eq!(after[at], before[at] - 1);
    if at == 22 {
        let header_len = usize::from(after[14] & 15) * 4;
        assert_eq!(checksum::checksum(&after[14..14 + header_len]), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: [u8; 4] = [203, 0, 113, 9];

    /// xorshift64*, so that every run is the same.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
        }
    }

    fn seeds() -> Vec<(u8, Vec<u8>)> {
        let lines = include_str!("tests/vectors.txt").lines();
        let mut seeds: Vec<(u8, Vec<u8>)> = lines
            .map(|line| {
                let mut fields = line.split('|').map(str::trim).skip(1);
                let port = fields.next().unwrap().parse().unwrap();
                let hex = fields.next().unwrap().as_bytes();
                let byte = |pair: &[u8]| {
                    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
                };
                (port, hex.chunks(2).map(byte).collect())
            })
            .collect();
        // Long ones, of several frames.
        let long: Vec<_> = seeds
            .iter()
            .filter(|(_, s)| s.len() > 50)
            .cloned()
            .collect();
        // Echoes to the gateway among them, which come back in their frames.
        let is_echo = |s: &[u8]| s[12..14] == [8, 0] && s[23] == 1 && s[30..34] == [10, 244, 1, 1];
        let long = long.into_iter().enumerate();
        let long = long.filter(|(index, (_, seed))| index % 7 == 0 || is_echo(seed));
        for (_, (port, mut seed)) in long {
            seed.resize(seed.len() + 9000, 0x5a);
            if seed[12..14] == [8, 0] {
                // Not what the gateway's own packets have.
                seed[22] = 9;
                let len = (seed.len() - 14) as u16;
                seed[16..18].copy_from_slice(&len.to_be_bytes());
            } else {
                let len = (seed.len() - 54) as u16;
                seed[18..20].copy_from_slice(&len.to_be_bytes());
            }
            seeds.push((port, seed));
        }
        let world = World::new().with_ways_out();
        // Out of the overlay, and to other nodes.
        let inner: Vec<_> = seeds
            .iter()
            .filter(|(_, s)| s.len() < 1400)
            .cloned()
            .collect();
        for (port, seed) in inner {
            seeds.push((UPLINK as u8, wrapped(&seed)));
            let mut away = seed;
            if away.len() > 34 && away[12..14] == [8, 0] {
                away[32] = 2 + port % 4;
                mend(&mut away);
                seeds.push((port, away.clone()));
                // Some to the outside, and back.
                if !seeds.len().is_multiple_of(3) {
                    continue;
                }
                away[30..34].copy_from_slice(&SERVER);
                mend(&mut away);
                seeds.push((port, away.clone()));
                away[..6].copy_from_slice(&UPLINK_MAC.0);
                away[26..30].copy_from_slice(&SERVER);
                away[30..34].copy_from_slice(&NODE_V4.octets());
                let ports = *world.snapshot.masquerade.ports.start();
                if away.len() > 38 {
                    away.copy_within(36..38, 34);
                    away[36..38].copy_from_slice(&ports.to_be_bytes());
                }
                mend(&mut away);
                seeds.push((UPLINK as u8, away));
            }
        }
        seeds
    }

    /// A frame behind outer headers from a remote end of the routed network
    /// or of a segment, turned about: what goes to a pod comes from afar.
    fn wrapped(inner: &[u8]) -> Vec<u8> {
        let world = World::with_underlay();
        let vni = usize::from(inner.len().is_multiple_of(2)) * 2;
        let vtep = world.snapshot.vteps[vni].as_ref().unwrap();
        let mut bytes = vtep.outer.bytes().to_vec();
        bytes[..6].copy_from_slice(&UPLINK_MAC.0);
        for at in 26..30 {
            bytes.swap(at, at + 4);
        }
        let len = (inner.len() + 36) as u16;
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        bytes[38..40].copy_from_slice(&(len - 20).to_be_bytes());
        bytes.extend(inner);
        if vni == 0 && inner.len() > 34 {
            bytes[50..56].copy_from_slice(&super::super::world::VTEP_MAC.0);
            // From a pod of the remote end.
            bytes[50 + 28] = 2;
            mend(&mut bytes[50..]);
        }
        mend(&mut bytes);
        bytes
    }

    /// Changes a few bytes, cuts, or joins two packets; then makes the sums
    /// right again that would stop most of them at the door.
    fn mutate(random: &mut Random, seeds: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let (mut port, mut bytes) = seeds[random.below(seeds.len())].clone();
        if random.below(20) == 0 {
            port = random.below(32) as u8;
        }
        for _ in 0..random.below(4) {
            if bytes.is_empty() {
                break;
            }
            // Mostly in the headers.
            let headers = if random.below(4) == 0 { 4000 } else { 80 };
            let at = random.below(bytes.len().min(headers));
            match random.below(5) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => {
                    bytes[at] = [0, 1, 4, 6, 17, 41, 44, 47, 58, 0x7f, 0x80, 0xff][random.below(12)]
                }
                2 => bytes.truncate(at),
                3 => bytes[at] = random.below(256) as u8,
                _ => {
                    let (_, other) = &seeds[random.below(seeds.len())];
                    bytes.truncate(at);
                    bytes.extend(&other[at.min(other.len())..]);
                }
            }
        }
        if random.below(4) > 0 {
            mend(&mut bytes);
        }
        let mut packet = vec![port];
        packet.extend((bytes.len() as u16).to_be_bytes());
        packet.extend(bytes);
        packet
    }

    /// Makes an IPv4 header's checksum right, and sometimes the TCP one
    /// partial.
    fn mend(bytes: &mut [u8]) {
        if bytes.len() < 60 || bytes[12..14] != [8, 0] {
            return;
        }
        let header_len = usize::from(bytes[14] & 15) * 4;
        if header_len < 20 || 14 + header_len + 20 > bytes.len() {
            return;
        }
        bytes[24..26].fill(0);
        let sum = checksum::checksum(&bytes[14..14 + header_len]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        if bytes[23] == 6 && sum & 1 == 0 {
            let len = u16::from_be_bytes([bytes[16], bytes[17]]);
            let len = len.wrapping_sub(header_len as u16);
            let pseudo = checksum::pseudo_header(&bytes[26..34], 6, len).fold();
            let at = 14 + header_len + 16;
            bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        }
    }

    #[test]
    fn fuzz_smoke() {
        let seeds = seeds();
        let mut straight = 0;
        let mut random = Random(0x5119_1a9e);
        let mut world = World::new();
        let mut beyond = World::with_underlay();
        let mut outside = World::new().with_ways_out();
        for round in 0..5_000u64 {
            let mut input = Vec::new();
            for _ in 0..10 {
                let packet = mutate(&mut random, &seeds);
                let port = PortId(packet[0].into());
                straight += u32::from(goes_straight(&world.snapshot, port, &packet[3..]));
                parse_bytes(&packet[3..]);
                input.extend(packet);
            }
            world.now.0 += 5_000_000;
            process_in(&mut world, &input);
            beyond.now.0 += 5_000_000;
            process_in(&mut beyond, &input);
            outside.now.0 += 5_000_000;
            process_in(&mut outside, &input);
            if round % 97 == 0 {
                world.publish(|_| {});
                process_packets(&input);
            }
        }
        assert!(straight > 1000, "{straight}");
        assert!(world.counters.flow_hits.get() > 1000);
        assert!(world.counters.flow_misses.get() > 1000);
        assert!(beyond.counters.flow_hits.get() > 1000);
        assert!(outside.connections.records(0).len() > 10);
    }

    #[test]
    fn the_seed_corpus_is_sound() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
        for (target, run) in [
            ("parse", parse_bytes as fn(&[u8])),
            ("process", process_packets),
        ] {
            let files = std::fs::read_dir(format!("{corpus}/{target}")).unwrap();
            let count = files
                .map(|file| run(&std::fs::read(file.unwrap().path()).unwrap()))
                .count();
            assert!(count > 5, "{target} has {count} seeds");
        }
    }
}
