//! The plain case: unicast between pods and with the node, and what the
//! gateway answers.

use etherparse::PacketBuilder;

use crate::frame::{TxChecksum, Verdict};
use crate::pipeline::world::*;
use crate::types::PortId;

#[test]
fn udp_between_pods_is_routed_with_one_hop_less() {
    let mut world = World::new();
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0)
        .ipv4(v4(A).octets(), v4(B).octets(), 64)
        .udp(1000, 2000)
        .write(&mut packet, b"hello")
        .unwrap();
    let mut expect = Vec::new();
    PacketBuilder::ethernet2(GATEWAY_MAC.0, mac(B).0)
        .ipv4(v4(A).octets(), v4(B).octets(), 63)
        .udp(1000, 2000)
        .write(&mut expect, b"hello")
        .unwrap();
    for round in 0..3 {
        let outcome = world.send(A, &packet);
        let out = PortId(B);
        assert_eq!(
            outcome.verdict,
            Verdict::Forward {
                out,
                checksum: None
            },
            "{round}"
        );
        assert_eq!(outcome.bytes, expect, "{round}");
    }
    assert_eq!(world.counters.flow_misses.get(), 1);
    assert_eq!(world.counters.flow_hits.get(), 2);
    let flows = world.state.flows(&world.snapshot, world.now);
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].packets, 3);
    assert_eq!(flows[0].proto, "udp");
    assert_eq!((flows[0].sport, flows[0].dport), (1000, 2000));
}

#[test]
fn tcp_over_ipv6_keeps_its_partial_checksum() {
    let mut world = World::new();
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(A).0, GATEWAY_MAC.0)
        .ipv6(v6(A).octets(), v6(B).octets(), 64)
        .tcp(1000, 80, 7, 1024)
        .write(&mut packet, b"hello")
        .unwrap();
    let full = world.send(A, &packet);
    let out = PortId(B);
    assert_eq!(
        full.verdict,
        Verdict::Forward {
            out,
            checksum: None
        }
    );
    make_partial_v6(&mut packet, 54, 16);
    let outcome = world.send(A, &packet);
    let checksum = Some(TxChecksum {
        start: 54,
        offset: 16,
    });
    assert_eq!(outcome.verdict, Verdict::Forward { out, checksum });
    assert_eq!(outcome.bytes[..6], mac(B).0);
    assert_eq!(outcome.bytes[21], 63);
}
