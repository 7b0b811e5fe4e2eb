//! A pod in the uplink's own segment, beside the node: the kernel goes on using
//! the uplink, and all three reach each other.

use std::sync::Arc;

use spinlane_dataplane::engine::{HostSide, PortSpec, UplinkSpec, XdpChoice};
use spinlane_dataplane::snapshot::{Role, Segment, Snapshot, Underlay};
use spinlane_dataplane::types::{MacAddr, PortId, SegmentId};

use super::lab::*;
use super::{learning, segment_pod};

const HOST: PortId = PortId(2);
const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);

/// Makes the pod, the uplink and what else is named members of one segment.
fn share(lab: &Lab, members: &[PortId]) -> Snapshot {
    let mut snapshot = snapshot();
    segment_pod(lab, &mut snapshot, "172.31.0.77/24");
    lab.ip("pod", "address add fd00:31::77/64 dev eth0 nodad");
    snapshot.segments = Arc::new(vec![Some(Segment {
        members: Arc::new(members.to_vec()),
        ..Segment::default()
    })]);
    snapshot.underlay = Arc::new(Underlay {
        segment: Some(SegmentId(0)),
        ..(*snapshot.underlay).clone()
    });
    snapshot
}

#[test]
fn a_bridged_pod_shares_the_underlay_with_the_node() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("l2");
    let engine = engine_with(&lab, true);
    let snapshot = share(&lab, &[POD, UPLINK]);
    learning(&engine, snapshot, || {
        // The pod asks, then the peer, whose ARP reaches node and pod alike.
        lab.succeeds("pod", "ping -c 3 -i 0.2 -W 10 172.31.0.2");
        lab.ip("peer", "neighbor flush dev eth0");
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 172.31.0.77");
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 fd00:31::77");
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 172.31.0.1");
        lab.succeeds("pod", "ping -c 3 -i 0.2 -W 10 fd00:31::2");
    });
    frames_come_home(&engine);
    engine.stop();
    // The kernel has the uplink to itself, and no longer in promiscuous mode.
    lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 172.31.0.1");
    let link = lab.succeeds("node", "ip -d link show up0");
    assert!(link.contains("promiscuity 0"), "{link}");
}

#[test]
fn the_node_is_a_station_of_the_segment_by_the_uplinks_address() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("join");
    lab.veth("node", "host1", GATEWAY_MAC, ("node", "host0", HOST_MAC));
    for end in ["host0", "host1"] {
        let silent = format!("sysctl -qw net.ipv6.conf.{end}.disable_ipv6=1");
        lab.succeeds("node", &silent);
    }
    for key in ["all", "up0", "host0"] {
        let strict = format!("sysctl -qw net.ipv4.conf.{key}.rp_filter=1");
        lab.succeeds("node", &strict);
    }
    let engine = start(&lab, 1);
    let spec = |id, device: &str| PortSpec {
        id,
        ifindex: lab.ifindex("node", device),
        name: device.to_owned(),
    };
    engine.attach(spec(POD, "p0")).unwrap();
    engine.attach(spec(HOST, "host1")).unwrap();
    let host_side = HostSide {
        port_ifindex: lab.ifindex("node", "host1"),
        far_end: "host0".to_owned(),
    };
    let uplink = UplinkSpec {
        port: spec(UPLINK, "up0"),
        queues: 4,
        receive_ring: 0,
        zero_copy: false,
        xdp: XdpChoice::Auto,
        cuts_datagrams: true,
        cuts_segments: true,
        is_bridged: true,
        host_side: Some(host_side),
    };
    engine.attach_uplink(uplink).unwrap();
    let mut snapshot = share(&lab, &[POD, UPLINK, HOST]);
    let mut ports = (*snapshot.ports).clone();
    ports.push(port(HOST, Role::Host, HOST_MAC, &[]));
    snapshot.ports = Arc::new(ports);
    let ((), snapshot) = learning(&engine, snapshot, || {
        for address in ["172.31.0.77", "fd00:31::77"] {
            lab.succeeds("node", &format!("ping -c 3 -i 0.2 -W 10 {address}"));
        }
        for address in ["172.31.0.1", "fd00:31::1", "172.31.0.2", "fd00:31::2"] {
            lab.succeeds("pod", &format!("ping -c 3 -i 0.2 -W 10 {address}"));
        }
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 172.31.0.1");
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 fd00:31::77");
        // One station with one MAC address, wherever the kernel answers.
        let neighbors = lab.succeeds("pod", "ip neighbor show 172.31.0.1");
        assert!(neighbors.contains(&UPLINK_MAC.to_string()), "{neighbors}");
        let neighbors = lab.succeeds("node", "ip neighbor show 172.31.0.77");
        assert!(neighbors.contains("dev up0"), "{neighbors}");
    });
    // What the switch handed to the node did not come back as the wire's.
    let segment = snapshot.segment(SegmentId(0)).unwrap();
    let target = segment.fdb.get(&POD_MAC).unwrap();
    assert_eq!(target.at, spinlane_dataplane::snapshot::Location::Port(POD));
    frames_come_home(&engine);
    engine.stop();
    lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 172.31.0.1");
}
