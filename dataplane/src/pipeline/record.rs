//! The flow table as people read it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Lane;
use crate::snapshot::{Location, Snapshot};
use crate::tables::flow::{Actions, Flow, IDLE_LIMIT_MS, KeyL2, KeyV4, KeyV6, UpperKey};
use crate::types::{MacAddr, Nanos, PortId, VtepId};
use crate::wire::protocol;

/// One flow of one lane, ready to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Lane whose table holds it.
    pub lane: usize,
    /// Port that its packets enter by.
    pub in_port: PortId,
    /// Remote end of the overlay that they come from.
    pub in_vtep: Option<VtepId>,
    /// Source address; a MAC address in a segment.
    pub src: String,
    /// Destination address; a MAC address in a segment.
    pub dst: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmp6`, `l2` or the protocol's number.
    pub proto: String,
    /// Source port, or the identifier of an echo; 0 without one.
    pub sport: u16,
    /// Destination port; 0 without one.
    pub dport: u16,
    /// What is done with its packets, in order.
    pub actions: Vec<String>,
    /// Port that they leave by; none when they are flooded.
    pub out: Option<PortId>,
    /// Remote end of the overlay that they go to.
    pub out_vtep: Option<VtepId>,
    /// Packets that it counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nanoseconds since the last one.
    pub idle_ns: u64,
}

pub(super) fn records(lane: &Lane, snapshot: &Snapshot, now: Nanos) -> Vec<FlowRecord> {
    let now_ms = (now.0 / 1_000_000) as u32;
    let maker = Maker {
        lane: usize::from(lane.id.0),
        uplink: snapshot.underlay.uplink,
        now_ms,
    };
    let v4 = lane.flows_v4.iter().map(|(key, flow)| maker.v4(key, flow));
    let v6 = lane.flows_v6.iter().map(|(key, flow)| maker.v6(key, flow));
    let l2 = lane.flows_l2.iter().map(|(key, flow)| maker.l2(key, flow));
    v4.chain(v6).chain(l2).flatten().collect()
}

struct Maker {
    lane: usize,
    uplink: Option<PortId>,
    now_ms: u32,
}

impl Maker {
    fn v4(&self, key: &KeyV4, flow: &Flow) -> Option<FlowRecord> {
        let [a, b, c, d, e, f, g, h] = key.addresses;
        let src = Ipv4Addr::new(a, b, c, d).to_string();
        let dst = Ipv4Addr::new(e, f, g, h).to_string();
        self.ip(src, dst, &key.upper, flow)
    }

    fn v6(&self, key: &KeyV6, flow: &Flow) -> Option<FlowRecord> {
        let (src, dst) = key.addresses.split_at(16);
        let text = |octets: &[u8]| {
            let octets: [u8; 16] = octets.try_into().unwrap_or_default();
            Ipv6Addr::from(octets).to_string()
        };
        self.ip(text(src), text(dst), &key.upper, flow)
    }

    fn l2(&self, key: &KeyL2, flow: &Flow) -> Option<FlowRecord> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = key.addresses;
        Some(FlowRecord {
            src: MacAddr([g, h, i, j, k, l]).to_string(),
            dst: MacAddr([a, b, c, d, e, f]).to_string(),
            proto: "l2".to_owned(),
            ..self.record(key.in_port, flow)?
        })
    }

    fn ip(&self, src: String, dst: String, upper: &UpperKey, flow: &Flow) -> Option<FlowRecord> {
        let is_icmp = matches!(upper.protocol, protocol::ICMP | protocol::ICMPV6);
        let [a, b, c, d] = upper.ports;
        Some(FlowRecord {
            src,
            dst,
            proto: protocol_name(upper.protocol),
            sport: u16::from_be_bytes([a, b]),
            dport: if is_icmp {
                0
            } else {
                u16::from_be_bytes([c, d])
            },
            ..self.record(upper.in_port, flow)?
        })
    }

    /// The part that is the same for all; `None` for a flow that is only
    /// still there because nobody needed its place.
    fn record(&self, in_port: u16, flow: &Flow) -> Option<FlowRecord> {
        let uplink = self.uplink.unwrap_or(PortId(0));
        let (in_port, in_vtep) = match Location::from_key(in_port) {
            Location::Port(port) => (port, None),
            Location::Vtep(vtep) => (uplink, Some(vtep)),
        };
        let actions = &flow.actions;
        let (out, out_vtep) = match () {
            () if actions.has(Actions::FLOOD) => (None, None),
            () if actions.has(Actions::ENCAPSULATE) => (self.uplink, Some(VtepId(actions.out))),
            () => (Some(PortId(actions.out)), None),
        };
        let idle_ms = self.now_ms.wrapping_sub(flow.used_ms);
        (idle_ms <= IDLE_LIMIT_MS).then(|| FlowRecord {
            lane: self.lane,
            in_port,
            in_vtep,
            src: String::new(),
            dst: String::new(),
            proto: String::new(),
            sport: 0,
            dport: 0,
            actions: words(&flow.actions),
            out,
            out_vtep,
            packets: flow.packets,
            bytes: flow.bytes,
            idle_ns: u64::from(idle_ms) * 1_000_000,
        })
    }
}

/// The name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmp6".to_owned(),
        other => other.to_string(),
    }
}

fn words(actions: &Actions) -> Vec<String> {
    let mut words = Vec::new();
    if actions.has(Actions::ROUTE) {
        words.push(format!("set-dmac {}", actions.destination));
        words.push(format!("set-smac {}", actions.source));
        words.push("dec-ttl".to_owned());
    }
    words.push(match actions.leaves_node() {
        true => "checksum".to_owned(),
        false => "checksum-offload".to_owned(),
    });
    if !actions.has(Actions::SUPER_FRAMES | Actions::FLOOD) {
        words.push(format!("segment {}", actions.segment_mtu));
    }
    if actions.has(Actions::ENCAPSULATE) {
        words.push(format!("encapsulate {}", actions.out));
    }
    words.push(match actions.has(Actions::FLOOD) {
        true => "flood".to_owned(),
        false => "output".to_owned(),
    });
    words
}
