//! Datagrams that are gathered leave as those that are cut and wrapped one by
//! one.

use proptest::prelude::*;

use super::super_frames::Super;
use crate::frame::{Batch, LONGEST_SUPER_FRAME};
use crate::pipeline::datagrams::MAX_DATAGRAMS;
use crate::pipeline::gather::{SuperFrame, Together};
use crate::pipeline::segment::{Segments, segment};
use crate::pipeline::world::*;
use crate::pipeline::wrap;
use crate::snapshot::{OuterHeader, OuterPath, Vtep};
use crate::types::{NextHopId, PortId, Vni};

const SOURCE_PORT: u16 = 0xc123;

/// The other end, `A` and `B` being nodes here.
fn vtep(is_v6: bool) -> Vtep {
    let ends = match is_v6 {
        true => [v6(A).into(), v6(B).into()],
        false => [v4(A).into(), v4(B).into()],
    };
    let [source, destination] = ends;
    let path = OuterPath {
        source_mac: mac(A),
        destination_mac: mac(B),
        source,
        destination,
    };
    Vtep {
        address: destination,
        vni: Vni::new(7).unwrap(),
        mac: mac(B),
        mtu: 1450,
        next_hop: NextHopId(0),
        outer: OuterHeader::new(&path, 4789, Vni::new(7).unwrap()).unwrap(),
    }
}

/// Cuts what leaves together as the kernel does (`__udp_gso_segment`).
fn cut(together: &Together<'_, '_>, is_v6: bool) -> Vec<Vec<u8>> {
    let whole: Vec<u8> = together.pieces().flatten().copied().collect();
    let cut = together.offload.cut.unwrap();
    assert_eq!(cut.segments, Segments::Udp);
    let (headers, payload) = whole.split_at(usize::from(cut.header_len));
    let udp = usize::from(together.offload.checksum.start);
    assert_eq!(together.offload.checksum.offset, 6);
    assert_eq!(headers.len(), udp + 8);
    assert!(whole.len() - 14 <= 65535, "fits an IP packet");
    let word = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
    let length = 8 + payload.len();
    assert_eq!(usize::from(word(udp + 4)), length);
    let addresses = match is_v6 {
        true => {
            assert_eq!(usize::from(word(18)), length);
            &headers[22..54]
        }
        false => {
            assert_eq!(usize::from(word(16)), 20 + length);
            assert_eq!(naive_sum(&headers[14..34]), 0xffff);
            &headers[26..34]
        }
    };
    let mut pseudo = addresses.to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend((length as u16).to_be_bytes());
    assert_eq!(word(udp + 6), naive_sum(&pseudo));
    let parts = payload.chunks(usize::from(cut.segment_len));
    let datagrams: Vec<Vec<u8>> = parts.map(|part| [headers, part].concat()).collect();
    assert_eq!(datagrams.len(), together.packets);
    let bytes = datagrams.iter().map(|datagram| datagram.len() as u64);
    assert_eq!(bytes.sum::<u64>(), together.bytes);
    datagrams
}

/// Blanks what differs between datagrams that leave together and by
/// themselves, until the kernel has cut them.
fn blank(datagram: &mut [u8], is_v6: bool) {
    match is_v6 {
        true => {
            datagram[18..20].fill(0);
            datagram[58..62].fill(0);
        }
        false => {
            datagram[16..18].fill(0);
            datagram[24..26].fill(0);
            datagram[38..42].fill(0);
        }
    }
}

fn check(frame: &Super, outer_v6: bool, mtu: u32) {
    let mut world = World::new();
    let mut batch = Batch::new();
    let frames = world.frames(&frame.packet(A, B));
    batch.push(PortId(A), frames);
    let vtep = vtep(outer_v6);
    let mut out = Batch::new();
    segment(&world.umem, &mut world.pool, &batch, 0, mtu, &mut out).unwrap();
    let expect: Vec<Vec<u8>> = (0..out.len())
        .map(|at| {
            wrap(&world.umem, &mut out, at, &vtep, SOURCE_PORT).unwrap();
            let mut datagram = world.bytes(&out, at);
            blank(&mut datagram, outer_v6);
            datagram
        })
        .collect();
    let over = (&vtep.outer, SOURCE_PORT);
    let gathered = SuperFrame::of(&world.umem, &batch, 0, mtu, over);
    assert_eq!(gathered.is_some(), expect.len() > 1, "one stays as it is");
    if let Some(mut gathered) = gathered {
        let (mut memory, mut seen) = (Vec::new(), Vec::new());
        while let Some(together) = gathered.next(&mut memory) {
            assert!(together.packets <= MAX_DATAGRAMS);
            for mut datagram in cut(&together, outer_v6) {
                blank(&mut datagram, outer_v6);
                seen.push(datagram);
            }
        }
        assert!(seen == expect, "{} of {}", seen.len(), expect.len());
    }
    world.free(&mut out);
    world.free(&mut batch);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn gathered_datagrams_are_those_cut_one_by_one(
        payload in proptest::collection::vec(any::<u8>(), 1..30_000),
        is_v6: bool,
        outer_v6: bool,
        sequence: u32,
        identification: u16,
        timestamps: bool,
        fin: bool,
        mtu in 576u32..9001,
    ) {
        let frame = Super { is_v6, payload, sequence, identification, timestamps, fin };
        check(&frame, outer_v6, mtu);
    }
}

#[test]
fn the_longest_super_frames_are_gathered() {
    for outer_v6 in [false, true] {
        for mtu in [576, 1430, 1450, 8950] {
            check(&Super::of(65_535 - 52, false), outer_v6, mtu);
            check(&Super::of(65_535 - 32, true), outer_v6, mtu);
            check(&Super::of(LONGEST_SUPER_FRAME - 66, false), outer_v6, mtu);
        }
    }
}

#[test]
fn what_is_no_plain_super_frame_is_not_gathered() {
    let mut world = World::new();
    let vtep = vtep(false);
    let mut refused = |packet: &[u8]| {
        let mut batch = Batch::new();
        let frames = world.frames(packet);
        batch.push(PortId(A), frames);
        let over = (&vtep.outer, SOURCE_PORT);
        let is_refused = SuperFrame::of(&world.umem, &batch, 0, 1450, over).is_none();
        world.free(&mut batch);
        is_refused
    };
    let plain = Super::of(20_000, false).packet(A, B);
    assert!(!refused(&plain));
    let with_flag = |flag: u8| {
        let mut packet = plain.clone();
        packet[47] |= flag;
        packet
    };
    assert!(refused(&with_flag(0x02)), "SYN takes a sequence number");
    assert!(refused(&with_flag(0x20)), "the urgent pointer moves");
    let mut finished = plain.clone();
    finished[50] ^= 1;
    assert!(refused(&finished), "its checksum is not left to a device");
    let padded = [&plain[..], &[0; 4]].concat();
    assert!(refused(&padded), "bytes behind the packet");
}
