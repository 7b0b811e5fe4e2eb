//! Every case of `vectors.txt`, which scapy wrote: what goes in, and what
//! must come out.

use crate::drops::DropReason;
use crate::frame::{Awaited, Verdict};
use crate::pipeline::world::*;

pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) request: Vec<u8>,
    pub(super) verdict: &'a str,
    pub(super) expect: Vec<u8>,
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The cases of a file as scapy writes them.
pub(super) fn cases(text: &str) -> impl Iterator<Item = Case<'_>> {
    text.lines().map(|line| {
        let fields: Vec<_> = line.split('|').map(str::trim).collect();
        let [name, port, request, verdict, expect] = fields[..] else {
            panic!("not a case: {line}");
        };
        Case {
            name,
            port: port.parse().unwrap(),
            request: hex(request),
            verdict,
            expect: hex(expect),
        }
    })
}

fn vectors() -> impl Iterator<Item = Case<'static>> {
    cases(include_str!("vectors.txt"))
}

/// A verdict in the words of the table.
pub(super) fn words(verdict: Verdict) -> String {
    match verdict {
        Verdict::Forward { out, checksum } => match checksum {
            Some(c) => format!("forward {} {}+{}", out.0, c.start, c.offset),
            None => format!("forward {} -", out.0),
        },
        Verdict::Reply { dropped: None } => "reply".to_owned(),
        Verdict::Reply { dropped: Some(r) } => format!("reply {}", r.name()),
        Verdict::Drop(reason) => format!("drop {}", reason.name()),
        Verdict::Wait(Awaited::NextHop(next_hop)) => format!("wait {}", next_hop.0),
        Verdict::Flood { segment, .. } => format!("flood {}", segment.0),
        other => format!("{other:?}"),
    }
}

pub(super) fn show(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_vector_comes_out_as_scapy_says() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in vectors() {
        count += 1;
        let mut world = World::new();
        // The second time the flow is known; what a packet gets is the same.
        for round in ["miss", "hit"] {
            let outcome = world.send(case.port, &case.request);
            let said = words(outcome.verdict);
            if said != case.verdict {
                failed.push(format!(
                    "{} ({round}): {said}, expected {}",
                    case.name, case.verdict
                ));
            } else if !matches!(outcome.verdict, Verdict::Drop(_)) && outcome.bytes != case.expect {
                let (got, expect) = (show(&outcome.bytes), show(&case.expect));
                failed.push(format!(
                    "{} ({round}):\n  got    {got}\n  expect {expect}",
                    case.name
                ));
            }
        }
    }
    assert!(count > 150, "{count} cases");
    assert!(
        failed.is_empty(),
        "{} of {count} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn a_mixed_batch_decides_each_packet_as_if_alone() {
    let cases: Vec<_> = vectors().filter(|c| c.port == A).collect();
    for chunk in cases.chunks(50) {
        let mut together = World::new();
        let requests: Vec<_> = chunk.iter().map(|c| c.request.clone()).collect();
        let outcomes = together.send_all(A, &requests);
        for (case, outcome) in chunk.iter().zip(outcomes) {
            let alone = World::new().send(A, &case.request);
            assert_eq!(outcome, alone, "{}", case.name);
        }
    }
}

#[test]
fn vectors_reach_every_reason_that_routed_packets_can_have() {
    let reached: std::collections::HashSet<_> = vectors()
        .filter_map(|case| World::new().send(case.port, &case.request).dropped())
        .collect();
    let routed = [
        DropReason::Runt,
        DropReason::BadLength,
        DropReason::BadChecksum,
        DropReason::BadHeader,
        DropReason::BadOptions,
        DropReason::BadExtension,
        DropReason::BadFragment,
        DropReason::Martian,
        DropReason::SelfAddressed,
        DropReason::Spoofed,
        DropReason::SpoofedMac,
        DropReason::SpoofedNeighbor,
        DropReason::WrongMac,
        DropReason::UnknownEthertype,
        DropReason::Multicast,
        DropReason::NeighborIgnored,
        DropReason::TtlExceeded,
        DropReason::NoRoute,
        DropReason::NoEndpoint,
        DropReason::GatewayUnserved,
        DropReason::GatewayFragment,
        DropReason::TooBig,
        DropReason::SamePort,
        DropReason::PortRemoved,
    ];
    for reason in routed {
        let name = reason.name();
        assert!(reached.contains(&reason), "{name} is reached by no vector");
    }
}
