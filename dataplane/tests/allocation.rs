//! The packet logic allocates nothing for packets, known or new.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etherparse::PacketBuilder;

use spinlane_dataplane::counters::LaneCounters;
use spinlane_dataplane::frame::{Batch, Verdict};
use spinlane_dataplane::pipeline::{FlowCapacity, LaneState, process};
use spinlane_dataplane::snapshot::{
    AddressMap, Destination, Gateway, PortEntry, Role, Segment, Snapshot,
};
use spinlane_dataplane::types::{Generation, LaneId, MacAddr, Nanos, PortId, SegmentId};
use spinlane_dataplane::umem::in_memory;

/// The system's allocator, with a count.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps alloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps dealloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Pods and gateway share it, so that a routed packet can be routed again.
const MAC: MacAddr = MacAddr([0x0a, 0x58, 10, 244, 1, 1]);
const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 1, 3)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3),
];

fn snapshot() -> Snapshot {
    let port = |id: u16, role, address: usize| {
        Some(PortEntry {
            id: PortId(id),
            role,
            mac: MAC,
            addresses: vec![V4[address].into(), V6[address].into()],
            mtu: 1450,
            super_frames: true,
            device_mtu: 65535,
            segment_mtu: 1450,
            partial_checksums: true,
        })
    };
    let segment = Role::SegmentPod(SegmentId(0));
    let mut hosts_v4 = AddressMap::default();
    hosts_v4.insert(V4[1], Destination::Pod(PortId(1)));
    let mut hosts_v6 = AddressMap::default();
    hosts_v6.insert(V6[1], Destination::Pod(PortId(1)));
    Snapshot {
        generation: Generation(1),
        ports: Arc::new(vec![
            port(0, Role::Pod, 0),
            port(1, Role::Pod, 1),
            port(2, segment, 0),
        ]),
        hosts_v4: Arc::new(hosts_v4),
        hosts_v6: Arc::new(hosts_v6),
        gateway: Arc::new(Gateway {
            mac: MAC,
            addresses_v4: vec![Ipv4Addr::new(10, 244, 1, 1)],
            ..Gateway::default()
        }),
        segments: Arc::new(vec![Some(Segment::default())]),
        ..Snapshot::default()
    }
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    let (umem, mut pool) = in_memory(512).unwrap();
    let (events, _keep) = rtrb::RingBuffer::new(64);
    let counters = Arc::new(LaneCounters::new());
    let capacity = FlowCapacity::default();
    let mut state = LaneState::new(
        LaneId(0),
        Arc::clone(&counters),
        events,
        capacity,
        Arc::default(),
    );
    let snapshot = snapshot();
    let mut templates: Vec<(u16, Vec<u8>)> = Vec::new();
    let ethernet = || PacketBuilder::ethernet2(MAC.0, MAC.0);
    for number in 0..20u16 {
        let (mut v4, mut v6, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let (from, to) = (V4[0].octets(), V4[1].octets());
        let udp = ethernet().ipv4(from, to, 9).udp(number, 2);
        udp.write(&mut v4, b"hello").unwrap();
        let tcp = ethernet().ipv6(V6[0].octets(), V6[1].octets(), 9);
        tcp.tcp(number, 2, 3, 4).write(&mut v6, b"hello").unwrap();
        // Each of these is classified, and answered by ICMP.
        let lost_way = ethernet().ipv4(from, [192, 0, 2, 1], 9).udp(number, 2);
        lost_way.write(&mut lost, b"hello").unwrap();
        templates.extend([(0, v4.clone()), (0, v6), (0, lost), (2, v4)]);
    }
    let templates = &templates[..Batch::MAX_PACKETS];
    let fill = |pool: &mut spinlane_dataplane::umem::FramePool, number: u16| {
        let mut batch = Batch::new();
        for (port, bytes) in templates {
            let mut frame = pool.alloc().unwrap();
            assert!(frame.resize(bytes.len()));
            let into = umem.bytes_mut(&mut frame);
            into.copy_from_slice(bytes);
            // A new flow each round, for every kind but ICMP's.
            into[if bytes[12] == 8 { 36 } else { 56 }] ^= number as u8;
            batch.push(PortId(*port), [frame]);
        }
        batch
    };
    for round in 0..6 {
        let mut batch = fill(&mut pool, round / 2);
        let now = Nanos(u64::from(round) * 1_000_000_000);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        process(&umem, &mut batch, &snapshot, &mut state, now);
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(allocated, 0, "in round {round}");
        let replies = |p: &&spinlane_dataplane::frame::Packet| {
            matches!(p.verdict, Verdict::Reply { dropped: Some(_) })
        };
        assert_eq!(batch.packets().iter().filter(replies).count(), 16);
    }
    assert!(counters.flow_misses.get() > 100);
    assert!(counters.flow_hits.get() > 100);
}
