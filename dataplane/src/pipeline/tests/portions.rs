//! What a device makes of portions are the segments that are cut here.

use proptest::prelude::*;

use super::super_frames::Super;
use crate::frame::{Batch, LONGEST_SUPER_FRAME};
use crate::pipeline::portions::Portions;
use crate::pipeline::segment::{Segments, segment, segment_from};
use crate::pipeline::world::*;
use crate::types::PortId;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Cuts a portion as the kernel does (`tcp_gso_segment`, net/ipv4/tcp_offload.c).
fn cut(portion: &[u8], (payload, most): (usize, usize), is_v6: bool) -> Vec<Vec<u8>> {
    assert!(portion.len() < 65_536, "devices take no longer one");
    assert!(
        portion.len() - payload <= most.max(65_215),
        "no room for headers on the way"
    );
    let tcp = if is_v6 { 54 } else { 34 };
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let addresses = if is_v6 { 22..54 } else { 26..34 };
    let pseudo = |segment: &[u8]| {
        let mut pseudo = segment[addresses.clone()].to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend(((segment.len() - tcp) as u16).to_be_bytes());
        pseudo
    };
    assert_eq!(word(portion, tcp + 16), naive_sum(&pseudo(portion)));
    match is_v6 {
        true => assert_eq!(usize::from(word(portion, 18)), portion.len() - 54),
        false => {
            assert_eq!(usize::from(word(portion, 16)), portion.len() - 14);
            assert_eq!(naive_sum(&portion[14..34]), 0xffff);
        }
    }
    let (headers, data) = portion.split_at(payload);
    let last = data.len().div_ceil(most) - 1;
    let segments = data.chunks(most).enumerate().map(|(number, data)| {
        let mut segment = [headers, data].concat();
        let length = segment.len();
        match is_v6 {
            true => segment[18..20].copy_from_slice(&((length - 54) as u16).to_be_bytes()),
            false => {
                segment[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
                let identification = word(headers, 18).wrapping_add(number as u16);
                segment[18..20].copy_from_slice(&identification.to_be_bytes());
                segment[24..26].fill(0);
                let sum = !naive_sum(&segment[14..34]);
                segment[24..26].copy_from_slice(&sum.to_be_bytes());
            }
        }
        let sequence = u32::from_be_bytes(headers[tcp + 4..tcp + 8].try_into().unwrap());
        let sequence = sequence.wrapping_add((number * most) as u32);
        segment[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        if number < last {
            segment[tcp + 13] &= !FIN_PSH;
        }
        if number > 0 {
            segment[tcp + 13] &= !CWR;
        }
        segment[tcp + 16..tcp + 18].fill(0);
        let sum = !naive_sum(&[pseudo(&segment), segment[tcp..].to_vec()].concat());
        segment[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        segment
    });
    segments.collect()
}

fn check(frame: &Super, mtu: u32) {
    let mut world = World::new();
    let mut batch = Batch::new();
    let frames = world.frames(&frame.packet(A, B));
    batch.push(PortId(A), frames);
    let mut out = Batch::new();
    segment(&world.umem, &mut world.pool, &batch, 0, mtu, &mut out).unwrap();
    let expect: Vec<Vec<u8>> = (0..out.len()).map(|at| world.bytes(&out, at)).collect();
    let mut portions = Portions::of(&world.umem, &batch, 0, mtu).unwrap();
    let offload = *portions.offload();
    let how = offload.cut.unwrap();
    let segments = Segments::Tcp {
        is_v6: frame.is_v6,
        is_congestion_window_reduced: true,
    };
    assert_eq!(how.segments, segments);
    assert_eq!(offload.checksum.offset, 16);
    let lengths = (usize::from(how.header_len), usize::from(how.segment_len));
    let (mut memory, mut seen, mut left) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(portion) = portions.next(&mut memory) {
        let bytes: Vec<u8> = portion.pieces().flatten().copied().collect();
        let segments = cut(&bytes, lengths, frame.is_v6);
        assert_eq!(segments.len(), portion.packets);
        let total: usize = segments.iter().map(Vec::len).sum();
        assert_eq!(total as u64, portion.bytes);
        seen.extend(segments);
        left.push((portions.sent(), seen.len()));
    }
    assert_eq!(seen.len(), expect.len());
    assert!(seen == expect, "what leaves is not what is cut here");
    for (from, segments) in left {
        rest(&mut world, &batch, (from, mtu), &expect[segments..]);
    }
    world.free(&mut out);
    world.free(&mut batch);
}

/// What a device did not take any more is cut here from there on.
fn rest(world: &mut World, batch: &Batch, (from, mtu): (usize, u32), expect: &[Vec<u8>]) {
    if expect.is_empty() {
        return;
    }
    let mut out = Batch::new();
    let part = (batch, 0, from);
    segment_from(&world.umem, &mut world.pool, part, mtu, &mut out).unwrap();
    let cut: Vec<Vec<u8>> = (0..out.len()).map(|at| world.bytes(&out, at)).collect();
    assert!(cut == expect, "from byte {from}");
    world.free(&mut out);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn segments_of_portions_are_those_cut_one_by_one(
        payload in proptest::collection::vec(any::<u8>(), 1..30_000),
        is_v6: bool,
        sequence: u32,
        identification: u16,
        timestamps: bool,
        fin: bool,
        mtu in 576u32..9001,
    ) {
        let frame = Super { is_v6, payload, sequence, identification, timestamps, fin };
        check(&frame, mtu);
    }
}

#[test]
fn the_longest_super_frames_leave_in_portions() {
    for mtu in [576, 1430, 1500, 8950, 65_000] {
        check(&Super::of(65_535 - 52, false), mtu);
        check(&Super::of(65_535 - 32, true), mtu);
        check(&Super::of(LONGEST_SUPER_FRAME - 66, false), mtu);
    }
}

#[test]
fn what_is_no_plain_super_frame_is_not_divided() {
    let mut world = World::new();
    let mut refused = |packet: &[u8]| {
        let mut batch = Batch::new();
        let frames = world.frames(packet);
        batch.push(PortId(A), frames);
        let is_refused = Portions::of(&world.umem, &batch, 0, 1500).is_none();
        world.free(&mut batch);
        is_refused
    };
    let plain = Super::of(20_000, false).packet(A, B);
    assert!(!refused(&plain));
    let mut finished = plain.clone();
    finished[50] ^= 1;
    assert!(refused(&finished), "its checksum is not left to a device");
    let mut urgent = plain;
    urgent[47] |= 0x20;
    assert!(refused(&urgent), "the urgent pointer moves");
}
