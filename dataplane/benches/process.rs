//! What the packet logic costs for packets of known flows: nanoseconds per
//! packet of the batch function, by size of batch and by number of flows.
//!
//! The frames stay in the cache, as frames do that were just received. Both
//! pods and the gateway have one MAC address here, so that a routed packet
//! can be routed again; only its hop count is put back now and then.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;

use spinlane_dataplane::bench::Rig;
use spinlane_dataplane::frame::Verdict;
use spinlane_dataplane::pipeline::FlowCapacity;
use spinlane_dataplane::snapshot::{
    AddressMap, Destination, Gateway, PortEntry, Role, Segment, Snapshot,
};
use spinlane_dataplane::types::{Generation, MacAddr, PortId, SegmentId};

const MAC: MacAddr = MacAddr([0x0a, 0x58, 10, 244, 1, 1]);
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const SOURCE_V6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const DESTINATION_V6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

/// Rounds before hop counts are put back.
const ROUNDS: u64 = 200;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    V4,
    V6,
    Segment,
}

fn snapshot(role: Role) -> Snapshot {
    let port = |id, address: Ipv4Addr, v6: [u8; 16]| PortEntry {
        id: PortId(id),
        role,
        mac: MAC,
        addresses: vec![address.into(), std::net::Ipv6Addr::from(v6).into()],
        mtu: 1450,
        super_frames: true,
        device_mtu: 65535,
        segment_mtu: 1450,
        partial_checksums: true,
    };
    let mut hosts_v4 = AddressMap::default();
    hosts_v4.insert(DESTINATION, Destination::Pod(PortId(1)));
    let mut hosts_v6 = AddressMap::default();
    hosts_v6.insert(DESTINATION_V6.into(), Destination::Pod(PortId(1)));
    Snapshot {
        generation: Generation(1),
        ports: Arc::new(vec![
            Some(port(0, SOURCE, SOURCE_V6)),
            Some(port(1, DESTINATION, DESTINATION_V6)),
        ]),
        hosts_v4: Arc::new(hosts_v4),
        hosts_v6: Arc::new(hosts_v6),
        gateway: Arc::new(Gateway {
            mac: MAC,
            ..Gateway::default()
        }),
        segments: Arc::new(vec![Some(Segment::default())]),
        ..Snapshot::default()
    }
}

fn packet(kind: Kind) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ethernet = PacketBuilder::ethernet2(MAC.0, MAC.0);
    let payload = [0; 18];
    match kind {
        Kind::V6 => ethernet
            .ipv6(SOURCE_V6, DESTINATION_V6, 255)
            .udp(1, 2)
            .write(&mut bytes, &payload),
        Kind::V4 | Kind::Segment => ethernet
            .ipv4(SOURCE.octets(), DESTINATION.octets(), 255)
            .udp(1, 2)
            .write(&mut bytes, &payload),
    }
    .expect("writing to memory");
    bytes
}

/// Writes each packet of the batch anew, for the flows from `flow` on.
fn refresh(rig: &mut Rig, template: &[u8], kind: Kind, flow: &mut u32, flows: u32) {
    for index in 0..rig.batch_len() {
        let bytes = rig.head(index);
        bytes.copy_from_slice(template);
        // An odd multiplier visits every flow once, in no order a prefetcher
        // of the processor could follow.
        let ports = (*flow).wrapping_mul(0x9e37_79b1).to_be_bytes();
        match kind {
            Kind::V4 => bytes[34..38].copy_from_slice(&ports),
            Kind::V6 => bytes[54..58].copy_from_slice(&ports),
            Kind::Segment => bytes[1..5].copy_from_slice(&ports),
        }
        *flow = (*flow + 1) % flows;
    }
}

fn measure(kind: Kind, flows: u32, size: usize, iterations: u64) -> Duration {
    let snapshot = snapshot(match kind {
        Kind::Segment => Role::SegmentPod(SegmentId(0)),
        Kind::V4 | Kind::V6 => Role::Pod,
    });
    let mut rig = Rig::new(snapshot, FlowCapacity::default()).expect("8 MiB");
    let template = packet(kind);
    for _ in 0..size {
        assert!(rig.load(PortId(0), &template));
    }
    let mut flow = 0;
    for _ in 0..(flows as usize).div_ceil(size) * 2 {
        refresh(&mut rig, &template, kind, &mut flow, flows);
        rig.process();
    }
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < iterations {
        // With many flows every round has other packets; the clock's own cost
        // (some 25 ns) is spread over the batch.
        refresh(&mut rig, &template, kind, &mut flow, flows);
        let rounds = match flows {
            1 => ROUNDS.min(iterations - done),
            _ => 1,
        };
        let start = Instant::now();
        for _ in 0..rounds {
            rig.process();
        }
        spent += start.elapsed();
        done += rounds;
        let is_sent = |index| !matches!(rig.verdict(index), Verdict::Drop(_));
        assert!((0..size).all(is_sent));
    }
    spent
}

fn hits(c: &mut Criterion) {
    for (name, kind) in [
        ("hit_v4", Kind::V4),
        ("hit_v6", Kind::V6),
        ("hit_l2", Kind::Segment),
    ] {
        let mut group = c.benchmark_group(name);
        for (flows, size) in [
            (1, 1),
            (1, 32),
            (1, 64),
            (1_000, 32),
            (100_000, 32),
            (100_000, 64),
        ] {
            if kind != Kind::V4 && flows > 1_000 {
                continue;
            }
            group.throughput(Throughput::Elements(size as u64));
            let id = BenchmarkId::new(format!("{flows}_flows"), format!("batch_{size}"));
            group.bench_function(id, |b| {
                b.iter_custom(|iterations| measure(kind, flows, size, iterations));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = hits
}
criterion_main!(benches);
