//! Echoes of nothing but zeros, whose checksum has only one right zero.

use super::*;

fn zeros(leg: Leg, near: Ipv4Addr, id: u16) -> Vec<u8> {
    let [from, to] = leg.ethernet();
    let (near, far) = (near.octets(), SERVER.octets());
    let echo = IcmpEchoHeader { id, seq: 0 };
    let (source, destination, kind) = match leg.is_out() {
        true => (near, far, Icmpv4Type::EchoRequest(echo)),
        false => (far, near, Icmpv4Type::EchoReply(echo)),
    };
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .ipv4(source, destination, leg.hops())
        .icmpv4(kind)
        .write(&mut bytes, &[0; 8])
        .unwrap();
    bytes
}

#[test]
fn a_reply_of_nothing_but_zeros_has_a_right_checksum() {
    let mut world = world();
    // A miss, and hits once both ends were heard.
    for round in 0..4 {
        let out = world.send(A, &zeros(Leg::FromPod, v4(A), 0));
        let id = outside(&world);
        assert_ne!(id, 0);
        assert_eq!(out.bytes, zeros(Leg::ToWire, NODE_V4, id), "{round}");
        let back = world.send(UPLINK, &zeros(Leg::FromWire, NODE_V4, id));
        assert_eq!(naive_sum(&back.bytes[34..]), 0xffff, "{round}");
        assert_eq!(back.bytes, zeros(Leg::ToPod, v4(A), 0), "{round}");
    }
}
