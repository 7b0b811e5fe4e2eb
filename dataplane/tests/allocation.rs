//! The packet logic allocates nothing for packets, known or new.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etherparse::PacketBuilder;

use spinlane_dataplane::bench::Rig;
use spinlane_dataplane::frame::{Batch, Verdict};
use spinlane_dataplane::pipeline::FlowCapacity;
use spinlane_dataplane::snapshot::{
    AddressMap, Destination, Gateway, PortEntry, Role, Segment, Snapshot,
};
use spinlane_dataplane::types::{Generation, MacAddr, PortId, SegmentId};

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
    let mut rig = Rig::new(snapshot(), FlowCapacity::default()).unwrap();
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
    for round in 0..6u8 {
        rig.unload();
        for (index, (port, bytes)) in templates.iter().enumerate() {
            assert!(rig.load(PortId(*port), bytes));
            // A new flow each round, for every kind but ICMP's.
            rig.head(index)[if bytes[12] == 8 { 36 } else { 56 }] ^= round / 2;
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        rig.process();
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(allocated, 0, "in round {round}");
        let is_answered =
            |&index: &usize| matches!(rig.verdict(index), Verdict::Reply { dropped: Some(_) });
        assert_eq!((0..rig.batch_len()).filter(is_answered).count(), 16);
        rig.advance(1_000_000_000);
    }
    assert!(rig.counters().flow_misses.get() > 100);
    assert!(rig.counters().flow_hits.get() > 100);
}
