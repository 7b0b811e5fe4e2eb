//! What fuzzers call, and the bounded test that calls it too.
//!
//! An input of [`process_packets`] is a run of packets, each a byte for its
//! port, two for its length, and its bytes; the last one may be cut short.

use super::segment::segment;
use super::world::World;
use super::{FlowCapacity, parse};
use crate::frame::{Batch, HEADROOM, TX_METADATA_BYTES, TxChecksum, Verdict};
use crate::snapshot::Role;
use crate::types::PortId;
use crate::wire::{checksum, ethernet, icmpv6, ipv4, ipv6, tunnel};

/// Everything that walks bytes of a stranger, on bytes of a stranger. Every
/// offset that comes out lies where it should.
pub fn parse_bytes(data: &[u8]) {
    if let Some((ethertype, at)) = ethernet::payload(data) {
        assert!(at <= data.len());
        if let Some(partial) = tunnel::partial_checksum(data, ethertype, at) {
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

/// A lane of its own, one batch.
pub fn process_packets(data: &[u8]) {
    let few = FlowCapacity {
        v4: 64,
        v6: 64,
        l2: 64,
    };
    let mut world = World::with_capacity(few);
    process_in(&mut world, data);
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
    let mut batch = world.decide(packets.iter().copied());
    for (index, (port, bytes)) in packets.iter().enumerate() {
        check(world, &batch, index, *port, bytes);
    }
    world.free(&mut batch);
    assert_eq!(world.outstanding(), 0, "frames in = frames accounted");
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
    assert!(head.headroom() <= HEADROOM);
    let after = world.bytes(batch, index);
    let role = world.snapshot.port(PortId(port)).map(|port| port.role);
    match packet.verdict {
        Verdict::Forward { out, checksum } => {
            assert_eq!(packet.len as usize, after.len());
            assert!(after.len() <= before.len());
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
            check_way(world, role, port, out);
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
        Verdict::Flood { segment, checksum } => {
            assert_eq!(role, Some(Role::SegmentPod(segment)));
            if let Some(field) = checksum {
                assert_inside(field, head.len());
            }
        }
        Verdict::Reply { dropped } => {
            let reply = world.umem.bytes(head);
            assert!(matches!(role, Some(Role::Pod | Role::Host)));
            assert_eq!(reply[..6], before[6..12], "back to the sender");
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
        for (port, mut seed) in long.into_iter().step_by(7) {
            seed.resize(seed.len() + 9000, 0x5a);
            if seed[12..14] == [8, 0] {
                let len = (seed.len() - 14) as u16;
                seed[16..18].copy_from_slice(&len.to_be_bytes());
            } else {
                let len = (seed.len() - 54) as u16;
                seed[18..20].copy_from_slice(&len.to_be_bytes());
            }
            seeds.push((port, seed));
        }
        seeds
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
        let mut random = Random(0x5119_1a9e);
        let mut world = World::new();
        for round in 0..4_000u64 {
            let mut input = Vec::new();
            for _ in 0..10 {
                let packet = mutate(&mut random, &seeds);
                parse_bytes(&packet[3..]);
                input.extend(packet);
            }
            world.now.0 += 5_000_000;
            process_in(&mut world, &input);
            if round % 97 == 0 {
                world.publish(|_| {});
                process_packets(&input);
            }
        }
        assert!(world.counters.flow_hits.get() > 1000);
        assert!(world.counters.flow_misses.get() > 1000);
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
