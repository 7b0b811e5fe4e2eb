//! Every case of `overlay.txt`, which scapy wrote, and what holds of all of
//! them: what is put on comes off again.

use super::vectors::{Case, cases, show, words};
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::Verdict;
use crate::pipeline::world::*;

fn overlay_cases() -> impl Iterator<Item = Case<'static>> {
    cases(include_str!("overlay.txt"))
}

/// Outer headers of the overlay: where UDP is, and whether over IPv6.
fn outer(frame: &[u8]) -> Option<(usize, bool)> {
    let (udp, is_v6, is_udp) = match frame.get(12..14)? {
        [0x08, 0x00] => (34, false, frame[23] == 17),
        [0x86, 0xdd] => (54, true, frame[20] == 17),
        _ => return None,
    };
    (is_udp && frame.get(udp + 2..udp + 4)? == [0x12, 0xb5]).then_some((udp, is_v6))
}

/// Puts the source port of `got` into what scapy expects, and makes the UDP
/// checksum follow where there is one.
fn with_port_of(expect: &[u8], got: &[u8]) -> Vec<u8> {
    let mut expect = expect.to_vec();
    let Some((udp, is_v6)) = outer(&expect) else {
        return expect;
    };
    let port = u16::from_be_bytes([got[udp], got[udp + 1]]);
    assert!(port >= 49152, "{port}");
    expect[udp..udp + 2].copy_from_slice(&port.to_be_bytes());
    if is_v6 {
        expect[udp + 6..udp + 8].fill(0);
        let len = (expect.len() - udp) as u16;
        let mut covered = expect[22..54].to_vec();
        covered.extend([0, 17]);
        covered.extend(len.to_be_bytes());
        covered.extend(&expect[udp..]);
        let sum = !naive_sum(&covered);
        expect[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }
    expect
}

#[test]
fn every_vector_crosses_the_border_as_scapy_says() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in overlay_cases() {
        count += 1;
        let mut world = World::with_underlay();
        // The second time the flow is known; what a packet gets is the same.
        for round in ["miss", "hit"] {
            let outcome = world.send(case.port, &case.request);
            let said = words(outcome.verdict);
            if said != case.verdict {
                let (name, verdict) = (case.name, case.verdict);
                failed.push(format!("{name} ({round}): {said}, expected {verdict}"));
                continue;
            }
            if matches!(outcome.verdict, Verdict::Drop(_)) {
                continue;
            }
            let expect = match outcome.bytes.len() == case.expect.len() {
                true => with_port_of(&case.expect, &outcome.bytes),
                false => case.expect.clone(),
            };
            if outcome.bytes != expect {
                let (got, expect) = (show(&outcome.bytes), show(&expect));
                let name = case.name;
                failed.push(format!(
                    "{name} ({round}):\n  got    {got}\n  expect {expect}"
                ));
            }
        }
    }
    assert!(count > 100, "{count} cases");
    let failures = failed.len();
    assert!(
        failures == 0,
        "{failures} of {count}:\n{}",
        failed.join("\n")
    );
}

#[test]
fn control_hears_of_narrow_paths_and_missing_neighbors() {
    let mut world = World::with_underlay();
    for case in overlay_cases() {
        world.send(case.port, &case.request);
    }
    let mut events = Vec::new();
    while let Ok(event) = world.events.pop() {
        events.push(event);
    }
    for (destination, mtu) in [(REMOTE_V4.into(), 1400), (REMOTE_V6.into(), 1380)] {
        assert!(events.contains(&Event::PathMtu { destination, mtu }));
    }
    let next_hop = crate::types::NextHopId(2);
    assert!(events.contains(&Event::NeighborMissing { next_hop }));
}

#[test]
fn what_one_node_wraps_the_other_unwraps() {
    let away = overlay_cases().filter(|case| {
        case.port == A && case.verdict == "forward 25 -" && outer(&case.expect).is_some()
    });
    let mut count = 0;
    for case in away {
        count += 1;
        let mut left = World::with_underlay().send(A, &case.request).bytes;
        let (udp, is_v6) = outer(&left).unwrap();
        // The other node sees it from its side: addresses turned about, and
        // the pods' too, so that the world of this node can stand for it.
        let inner = udp + 16;
        left[..6].copy_from_slice(&UPLINK_MAC.0);
        turn(&mut left, if is_v6 { (22, 16) } else { (26, 4) });
        left[inner..inner + 6].copy_from_slice(&VTEP_MAC.0);
        let is_inner_v6 = left[inner + 12] == 0x86;
        let at = if is_inner_v6 {
            (inner + 22, 16)
        } else {
            (inner + 26, 4)
        };
        turn(&mut left, at);
        let outcome = World::with_underlay().send(UPLINK, &left);
        // Sums do not mind addresses that changed places.
        let mut expect = left[inner..].to_vec();
        expect[..6].copy_from_slice(&mac(A).0);
        expect[6..12].copy_from_slice(&GATEWAY_MAC.0);
        let hops = if is_inner_v6 { 21 } else { 22 };
        expect[hops] -= 1;
        if !is_inner_v6 {
            expect[24..26].fill(0);
            let sum = !naive_sum(&expect[14..34]);
            expect[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        assert_eq!(words(outcome.verdict), "forward 1 -", "{}", case.name);
        assert_eq!(show(&outcome.bytes), show(&expect), "{}", case.name);
    }
    assert!(count > 15, "{count}");
}

/// Swaps two neighbouring fields of `len` bytes at `at`.
fn turn(bytes: &mut [u8], (at, len): (usize, usize)) {
    let (one, other) = bytes[at..at + 2 * len].split_at_mut(len);
    one.swap_with_slice(other);
}

#[test]
fn a_super_frame_leaves_through_the_overlay_in_pieces() {
    let mut world = World::with_underlay();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0)
        .ipv4(v4(A).octets(), [10, 244, 2, 9], 64)
        .tcp(1000, 80, 1, 1000)
        .write(&mut frame, &[7; 20_000])
        .unwrap();
    make_partial_v4(&mut frame, 34, 16);
    let outcome = world.send(A, &frame);
    let Verdict::Tunnel {
        vtep,
        mtu,
        source_port,
    } = outcome.verdict
    else {
        panic!("{:?}", outcome.verdict);
    };
    assert_eq!((vtep.0, mtu), (0, 1450));
    assert!(source_port >= 49152);
    // What no sender left to be cut is refused, with the inner MTU.
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0)
        .ipv6(
            v6(A).octets(),
            [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            64,
        )
        .udp(1000, 80)
        .write(&mut frame, &[7; 1450])
        .unwrap();
    let outcome = world.send(A, &frame);
    assert_eq!(outcome.dropped(), Some(DropReason::TooBig));
    assert_eq!(outcome.bytes[58..62], 1450u32.to_be_bytes());
}

#[test]
fn an_echo_of_several_frames_from_afar_is_not_served() {
    let case = overlay_cases().find(|case| case.name == "in: echo to the gateway");
    let request = case.unwrap().request;
    let mut world = World::with_underlay();
    for (more, verdict) in [(1000, "reply"), (8000, "drop gateway_unserved")] {
        let mut longer = request.clone();
        longer.resize(request.len() + more, 7);
        // Both IP headers, and UDP between them.
        for at in [16, 38, 66] {
            let len = u16::from_be_bytes([longer[at], longer[at + 1]]) + more as u16;
            longer[at..at + 2].copy_from_slice(&len.to_be_bytes());
        }
        for header in [14, 64] {
            longer[header + 10..header + 12].fill(0);
            let sum = !naive_sum(&longer[header..header + 20]);
            longer[header + 10..header + 12].copy_from_slice(&sum.to_be_bytes());
        }
        assert_eq!(words(world.send(UPLINK, &longer).verdict), verdict);
    }
}
