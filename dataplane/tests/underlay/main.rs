//! The engine between a pod and plain Linux on the underlay: namespaces, a
//! veth as uplink, and the kernel's own VXLAN device and routes at the other
//! end. The outcome is the kernel's to judge.

#![allow(clippy::unwrap_used)] // a test's own plumbing

mod bridged;
mod cutting;
mod lab;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use spinlane_dataplane::drops::DropReason;
use spinlane_dataplane::engine::{Engine, XdpChoice, XdpMode};
use spinlane_dataplane::event::Event;
use spinlane_dataplane::snapshot::{
    FdbTarget, Location, Masquerade, Network, NextHop, Role, RouteTable, RouteTarget, Segment,
    Snapshot, Underlay,
};
use spinlane_dataplane::types::{MacAddr, NextHopId, SegmentId, Vni, VtepId};

use lab::*;

#[test]
fn the_kernel_keeps_the_uplink() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("keep");
    let engine = engine(&lab);
    engine.publish(with_overlay(snapshot(), "172.31.0.1", "172.31.0.2"));
    // ARP, echo and neighbour discovery are the node's own.
    lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 172.31.0.1");
    lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 fd00:31::1");
    engine.stop();
    lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 172.31.0.1");
}

/// The peer as a plain Linux VXLAN router with an address of its own.
fn linux_vxlan(lab: &Lab, local: &str, remote: &str, mtu: u32) {
    let family = if local.contains(':') {
        "udp6zerocsumrx"
    } else {
        ""
    };
    lab.ip(
        "peer",
        &format!("link add vx0 address {PEER_VTEP_MAC} type vxlan id 7 dstport 4789 local {local} remote {remote} dev eth0 nolearning {family}"),
    );
    lab.ip("peer", &format!("link set vx0 mtu {mtu} up"));
    lab.ip("peer", "address add 10.244.2.2/32 dev lo");
    lab.ip("peer", "address add fd00:2::2/128 dev lo nodad");
    lab.ip(
        "peer",
        "route add 10.244.1.0/24 via 10.244.1.1 dev vx0 onlink src 10.244.2.2",
    );
    lab.ip(
        "peer",
        "route add fd00:1::/64 via fd00:1::1 dev vx0 onlink src fd00:2::2",
    );
}

/// Both directions, both inner families, small and as long as the path takes,
/// and longer.
fn converse(lab: &Lab, mtu: u32) {
    for (address, header) in [("10.244.2.2", 28), ("fd00:2::2", 48)] {
        let longest = mtu - header;
        let gateway = if header == 28 {
            "10.244.1.1"
        } else {
            "fd00:1::1"
        };
        lab.ip(
            "pod",
            &format!("route change default via {gateway} dev eth0 mtu {mtu}"),
        );
        lab.succeeds("pod", &format!("ping -c 3 -i 0.1 -W 10 {address}"));
        lab.succeeds(
            "pod",
            &format!("ping -c 2 -i 0.1 -W 10 -M do -s {longest} {address}"),
        );
        lab.succeeds(
            "pod",
            &format!("ping -c 2 -i 0.1 -W 10 -M dont -s 4000 {address}"),
        );
    }
    lab.succeeds("peer", "ping -c 2 -i 0.1 -W 10 -I 10.244.2.2 10.244.1.2");
    lab.succeeds("peer", "ping -c 2 -i 0.1 -W 10 -I fd00:2::2 fd00:1::2");
    // The gateway, and what the overlay's own neighbours ask for.
    lab.succeeds("peer", "ping -c 2 -i 0.1 -W 10 -I 10.244.2.2 10.244.1.1");
}

/// Sends from the peer to the pod over TCP, by two scripts that say what they
/// sent and got.
fn download(lab: &Lab, address: &str, len: usize) {
    const SERVE: &str = "
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
s = socket.create_server((sys.argv[1], 9), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
print('ready', flush=True)
s.accept()[0].sendall(data)
print(hashlib.sha256(data).hexdigest())";
    const FETCH: &str = "
import hashlib, socket, sys
h, s = hashlib.sha256(), socket.create_connection((sys.argv[1], 9), timeout=60)
while data := s.recv(1 << 20): h.update(data)
print(h.hexdigest())";
    let len = len.to_string();
    let python = |end: &str, script: &str, arguments: &[&str]| {
        let namespace = lab.namespace(end);
        let words = [
            "netns",
            "exec",
            &namespace,
            "/usr/bin/python3",
            "-c",
            script,
        ];
        let mut command = Command::new("ip");
        command.args(words).args(arguments).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut server = python("peer", SERVE, &[address, &len]);
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    let got = python("pod", FETCH, &[address]).wait_with_output().unwrap();
    let got = String::from_utf8(got.stdout).unwrap();
    assert_eq!(got.trim(), said.next().unwrap().unwrap());
    server.wait().unwrap();
}

#[test]
fn segments_from_the_uplink_reach_a_pod_merged() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("gro");
    let engine = engine(&lab);
    let mut snapshot = with_overlay(snapshot(), "172.31.0.1", "172.31.0.2");
    if let Some(pod) = &mut Arc::make_mut(&mut snapshot.ports)[0] {
        pod.device_mtu = 65535;
    }
    engine.publish(snapshot);
    lab.ip("node", "link set p0 mtu 65535");
    lab.ip("pod", "link set eth0 mtu 65535");
    linux_vxlan(&lab, "172.31.0.2", "172.31.0.1", 1450);
    for device in ["eth0", "vx0"] {
        // What a wire carries: segments with complete checksums.
        let off = format!("ethtool -K {device} tso off gso off tx off sg off");
        lab.succeeds("peer", &off);
    }
    for (gateway, address) in [("10.244.1.1", "10.244.2.2"), ("fd00:1::1", "fd00:2::2")] {
        let route = format!("route change default via {gateway} dev eth0 mtu 1450");
        lab.ip("pod", &route);
        let before = (engine.port_stats(POD), engine.port_stats(UPLINK));
        download(&lab, address, 20_000_000);
        let after = (engine.port_stats(POD), engine.port_stats(UPLINK));
        let came = after.1.unwrap().rx_packets - before.1.unwrap().rx_packets;
        let went = after.0.unwrap().tx_packets - before.0.unwrap().tx_packets;
        assert!(came > 10_000, "{came} packets are no segments");
        assert!(went * 3 < came, "{came} segments came, {went} packets went");
    }
    engine.stop();
}

/// A pod and a Linux VXLAN device, over an underlay of either family.
fn vxlan_device(name: &str, local: &str, remote: &str, mtu: u32) {
    if !is_root() {
        return;
    }
    let lab = Lab::new(name);
    let engine = engine(&lab);
    engine.publish(with_overlay(snapshot(), local, remote));
    linux_vxlan(&lab, remote, local, mtu);
    converse(&lab, mtu);
    engine.stop();
}

#[test]
fn a_linux_vxlan_device_talks_with_a_pod_over_ipv4() {
    vxlan_device("vx4", "172.31.0.1", "172.31.0.2", 1450);
}

#[test]
fn a_linux_vxlan_device_talks_with_a_pod_over_ipv6() {
    vxlan_device("vx6", "fd00:31::1", "fd00:31::2", 1430);
}

/// A TCP stream each way, in super-frames as the pod's stack makes them.
pub(crate) fn stream(lab: &Lab, engine: &Engine) {
    let mut server = lab.iperf_server("peer");
    let before = engine.port_stats(POD).unwrap();
    lab.succeeds("pod", "timeout 120 iperf3 -c 10.244.2.2 -n 20M");
    server.wait().unwrap();
    let after = engine.port_stats(POD).unwrap();
    let (packets, bytes) = (
        after.rx_packets - before.rx_packets,
        after.rx_bytes - before.rx_bytes,
    );
    assert!(
        bytes / packets > 3000,
        "the pod sent {bytes} bytes in {packets} packets: no super-frames"
    );
}

#[test]
fn super_frames_leave_through_the_overlay_in_segments() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("tcp");
    let engine = engine(&lab);
    engine.publish(with_overlay(snapshot(), "172.31.0.1", "172.31.0.2"));
    linux_vxlan(&lab, "172.31.0.2", "172.31.0.1", 1450);
    lab.ip(
        "pod",
        "route change default via 10.244.1.1 dev eth0 mtu 1450",
    );
    stream(&lab, &engine);
    engine.stop();
}

/// Pods' packets as they are, to and from the peer.
pub(crate) fn with_routes(mut snapshot: Snapshot, mac: Option<MacAddr>) -> Snapshot {
    let next_hop = |address: &str| {
        Some(NextHop {
            address: address.parse().unwrap(),
            port: UPLINK,
            mac,
            mtu: 1500,
        })
    };
    snapshot.next_hops = Arc::new(vec![next_hop("172.31.0.2"), next_hop("fd00:31::2")]);
    let mut routes = RouteTable::default();
    routes.insert(prefix("10.244.2.0/24"), RouteTarget::NextHop(NextHopId(0)));
    routes.insert(prefix("fd00:2::/64"), RouteTarget::NextHop(NextHopId(1)));
    snapshot.routes = Arc::new(routes);
    snapshot.underlay = Arc::new(Underlay {
        is_routed: true,
        ..(*snapshot.underlay).clone()
    });
    snapshot
}

pub(crate) fn linux_router(lab: &Lab) {
    lab.ip("peer", "address add 10.244.2.2/32 dev lo");
    lab.ip("peer", "address add fd00:2::2/128 dev lo nodad");
    lab.ip(
        "peer",
        "route add 10.244.1.0/24 via 172.31.0.1 src 10.244.2.2",
    );
    lab.ip("peer", "route add fd00:1::/64 via fd00:31::1 src fd00:2::2");
}

#[test]
fn a_routed_peer_talks_with_a_pod() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("rt");
    let engine = engine(&lab);
    engine.publish(with_routes(snapshot(), Some(PEER_MAC)));
    linux_router(&lab);
    converse(&lab, 1500);
    stream(&lab, &engine);
    engine.stop();
}

#[test]
fn a_packet_waits_until_its_neighbor_is_resolved() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("wait");
    let engine = engine(&lab);
    engine.publish(with_routes(snapshot(), None));
    linux_router(&lab);
    std::thread::scope(|scope| {
        // One request, and it is answered.
        let ping = scope.spawn(|| lab.succeeds("pod", "ping -c 1 -W 30 10.244.2.2"));
        let mut events = Vec::new();
        let missing = Event::NeighborMissing {
            next_hop: NextHopId(0),
        };
        eventually("somebody asks for the neighbour", || {
            engine.drain_events(&mut events);
            events.contains(&missing)
        });
        engine.publish(with_routes(snapshot(), Some(PEER_MAC)));
        ping.join().unwrap();
    });
    // Nobody comes to know this one: what waits is dropped, and counted.
    engine.publish(with_routes(snapshot(), None));
    lab.inside("pod", "ping -c 20 -i 0.002 -W 1 10.244.2.2");
    let counted = |reason: DropReason| engine.stats().drops[reason.index()];
    eventually("all that waited is dropped", || {
        counted(DropReason::NeighborUnresolved) >= 8
    });
    assert_eq!(counted(DropReason::NeighborUnresolved), 8);
    assert_eq!(counted(DropReason::NeighborQueueFull), 12);
    engine.stop();
}

/// The pod in a segment: with the peer's Linux bridge through the overlay, or
/// with the uplink itself.
pub(crate) fn segment_pod(lab: &Lab, snapshot: &mut Snapshot, address: &str) {
    let mut ports = (*snapshot.ports).clone();
    let pod = ports[POD.index()].as_mut().unwrap();
    pod.role = Role::SegmentPod(SegmentId(0));
    snapshot.ports = Arc::new(ports);
    lab.ip("pod", "route flush dev eth0");
    lab.ip("pod", "address flush dev eth0");
    lab.ip("pod", &format!("address add {address} dev eth0"));
}

/// Publishes what the lanes learn, as control does, until the work is done.
pub(crate) fn learning<T: Send>(
    engine: &Engine,
    mut snapshot: Snapshot,
    work: impl FnOnce() -> T + Send,
) -> (T, Snapshot) {
    engine.publish(snapshot.clone());
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            let mut events = Vec::new();
            engine.drain_events(&mut events);
            for event in events {
                let Event::Station { segment, mac, at } = event else {
                    continue;
                };
                let segments = Arc::make_mut(&mut snapshot.segments);
                let segment = segments[segment.index()].as_mut().unwrap();
                let is_static = false;
                let is_held = false;
                let target = FdbTarget {
                    at,
                    is_static,
                    is_held,
                };
                Arc::make_mut(&mut segment.fdb).insert(mac, target);
                engine.publish(snapshot.clone());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        (work.join().unwrap(), snapshot)
    })
}

#[test]
fn a_segment_reaches_a_linux_bridge_through_the_overlay() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("seg");
    let engine = engine(&lab);
    let mut snapshot = with_overlay(snapshot(), "172.31.0.1", "172.31.0.2");
    segment_pod(&lab, &mut snapshot, "10.50.0.1/24");
    let mut underlay = (*snapshot.underlay).clone();
    let segment = Network::Segment(SegmentId(0));
    underlay.networks = [(Vni::new(7).unwrap(), segment)].into_iter().collect();
    snapshot.underlay = Arc::new(underlay);
    snapshot.segments = Arc::new(vec![Some(Segment {
        members: Arc::new(vec![POD]),
        vteps: Arc::new(vec![VtepId(0)]),
        ..Segment::default()
    })]);
    lab.ip(
        "peer",
        "link add vx0 type vxlan id 7 dstport 4789 local 172.31.0.2 remote 172.31.0.1 dev eth0",
    );
    lab.ip("peer", "link add br0 type bridge");
    lab.ip("peer", "link set vx0 master br0 up");
    lab.ip("peer", "link set br0 up");
    lab.ip("peer", "address add 10.50.0.2/24 dev br0");
    let (_, after) = learning(&engine, snapshot, || {
        lab.succeeds("pod", "ping -c 3 -i 0.2 -W 10 10.50.0.2");
        lab.succeeds("peer", "ping -c 3 -i 0.2 -W 10 10.50.0.1");
    });
    let segment = after.segment(SegmentId(0)).unwrap();
    let places: Vec<Location> = segment.fdb.values().map(|target| target.at).collect();
    assert!(places.contains(&Location::Vtep(VtepId(0))), "{places:?}");
    assert!(places.contains(&Location::Port(POD)), "{places:?}");
    engine.stop();
}

/// Sends packets from the peer that scapy writes, and says how many of them
/// the switch took; waits for as many as `expect`.
fn taken(lab: &Lab, engine: &Engine, packets: &str, expect: u64) -> u64 {
    let before = engine.port_stats(UPLINK).unwrap().rx_packets;
    let script = format!(
        "from scapy.all import *\n\
         import logging\n\
         conf.verb = 0\n\
         E = Ether(src=\"{PEER_MAC}\", dst=\"{UPLINK_MAC}\")\n\
         I = IP(src=\"172.31.0.2\", dst=\"172.31.0.1\")\n\
         S = IPv6(src=\"fd00:31::2\", dst=\"fd00:31::1\")\n\
         Q = IP(src=\"172.31.0.1\", dst=\"198.51.100.9\")\n\
         V = IPv6(src=\"fd00:31::1\", dst=\"2001:db8::9\")\n\
         sendp([E / p for p in {packets}], iface=\"eth0\")\n"
    );
    let namespace = lab.namespace("peer");
    let sent = Command::new("ip")
        .args([
            "netns",
            "exec",
            &namespace,
            "/usr/bin/python3",
            "-c",
            &script,
        ])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&sent.stderr).into_owned();
    assert!(sent.status.success(), "{errors}");
    let taken = || engine.port_stats(UPLINK).unwrap().rx_packets - before;
    eventually("the switch takes its packets", || taken() >= expect);
    // And nothing else.
    std::thread::sleep(std::time::Duration::from_millis(100));
    taken()
}

#[test]
fn the_uplink_takes_what_is_the_switchs_and_nothing_else() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("take");
    let engine = engine(&lab);
    let mut snapshot = with_overlay(snapshot(), "172.31.0.1", "172.31.0.2");
    snapshot.masquerade = Arc::new(Masquerade {
        is_on: true,
        egress_v4: vec![Ipv4Addr::new(172, 31, 0, 1)],
        egress_v6: vec!["fd00:31::1".parse().unwrap()],
        ports: 61_000..=65_535,
        ..Masquerade::default()
    });
    let mut underlay = (*snapshot.underlay).clone();
    underlay.is_routed = true;
    snapshot.underlay = Arc::new(underlay);
    engine.publish(snapshot);
    // No echo of either stack's own in between.
    lab.ip("peer", "link set eth0 arp off");
    let cases: [(&str, u64); 18] = [
        (
            "[I / UDP(sport=5, dport=61000), I / TCP(dport=65535), S / UDP(dport=62000)]",
            3,
        ),
        (
            "[I / UDP(dport=60999), I / TCP(dport=22), S / TCP(dport=10250)]",
            0,
        ),
        (
            "[I / UDP(dport=4789) / b'x', I / UDP(dport=4789) / b'12345678']",
            2,
        ),
        ("[S / UDP(dport=4789) / b'x']", 0),
        (
            "[IP(src='172.31.0.2', dst='10.244.1.2') / UDP(), IPv6(src='fd00:31::2', dst='fd00:1::2') / TCP()]",
            2,
        ),
        (
            "[IP(src='172.31.0.2', dst='10.244.9.2') / UDP(), I / GRE()]",
            0,
        ),
        (
            "[I / ICMP(type=8, id=61005), I / ICMP(type=0, id=61005), S / ICMPv6EchoReply(id=61005)]",
            0,
        ),
        (
            "[I / ICMP(type=3, code=3) / Q / UDP(sport=61007, dport=53), I / ICMP(type=11) / Q / TCP(sport=61008, dport=80)]",
            2,
        ),
        (
            "[I / ICMP(type=3, code=3) / Q / UDP(sport=4000, dport=53), I / ICMP(type=5) / Q / UDP(sport=61007)]",
            0,
        ),
        (
            "[I / ICMP(type=3, code=4, nexthopmtu=1400) / Q / UDP(sport=50000, dport=4789)]",
            1,
        ),
        (
            "[S / ICMPv6PacketTooBig(mtu=1400) / V / UDP(sport=61009, dport=53), S / ICMPv6TimeExceeded() / V / TCP(sport=61010)]",
            2,
        ),
        (
            "[S / ICMPv6DestUnreach() / V / UDP(sport=4000, dport=53), S / ICMPv6ND_NS(tgt='fd00:31::1')]",
            0,
        ),
        // Later fragments go where their first one went.
        (
            "fragment(IP(src='172.31.0.2', dst='172.31.0.1', id=7) / UDP(dport=61001) / Raw(b'a' * 3000), fragsize=1000)",
            4,
        ),
        (
            "fragment(IP(src='172.31.0.2', dst='172.31.0.1', id=8) / UDP(dport=53) / Raw(b'a' * 3000), fragsize=1000)",
            0,
        ),
        (
            "fragment6(S / IPv6ExtHdrFragment(id=9) / UDP(dport=61002) / Raw(b'a' * 3000), 1280)",
            3,
        ),
        // Its identification comes again, for the node.
        (
            "fragment(IP(src='172.31.0.2', dst='172.31.0.1', id=7) / UDP(dport=53) / Raw(b'a' * 3000), fragsize=1000)",
            0,
        ),
        (
            "fragment6(S / IPv6ExtHdrFragment(id=9) / UDP(dport=53) / Raw(b'a' * 3000), 1280)",
            0,
        ),
        (
            "fragment(IP(src='172.31.0.2', dst='172.31.0.1', id=10) / UDP(dport=4789) / Raw(b'a' * 3000), fragsize=1000)",
            0,
        ),
    ];
    for (packets, expect) in cases {
        assert_eq!(taken(&lab, &engine, packets, expect), expect, "{packets}");
    }
    assert_eq!(engine.outer_fragments(), 1);
    engine.stop();
}

/// Many flows from the pod to the peer; each is whole when this returns.
fn many_flows(lab: &Lab) {
    let mut server = lab.iperf_server("peer");
    lab.succeeds("pod", "timeout 120 iperf3 -c 10.244.2.2 -n 20M -P 8");
    server.wait().unwrap();
}

/// Detaches both ports; every frame is home then.
fn ends_with_all_frames(engine: &Engine) {
    engine.detach(UPLINK).unwrap();
    engine.detach(POD).unwrap();
    frames_come_home(engine);
    engine.stop();
}

#[test]
fn lanes_share_the_queues_of_the_uplink() {
    if !is_root() {
        return;
    }
    let lab = Lab::with_queues("few", 3, 3);
    let (engine, refused) = attach(&lab, (2, 1), false);
    // Each lane sends by a queue of its own.
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("1 queues are too few for 2 lanes"),
        "{refused}"
    );
    engine.stop();
    drop(lab);
    // One lane reads several queues, two share an odd number of them.
    for (lanes, pod_queues) in [(1, 1), (2, 3)] {
        let lab = Lab::with_queues(&format!("lanes{lanes}"), 3, pod_queues);
        linux_router(&lab);
        let (engine, attached) = attach(&lab, (lanes, 4), false);
        assert_eq!(attached.unwrap().lanes, lanes);
        engine.publish(with_routes(snapshot(), Some(PEER_MAC)));
        converse(&lab, 1500);
        many_flows(&lab);
        let lanes = engine.stats().lanes;
        assert!(lanes.iter().all(|lane| lane.rx_packets > 0), "{lanes:?}");
        ends_with_all_frames(&engine);
    }
}

#[test]
fn an_uplink_is_taken_in_the_best_way_that_its_driver_has() {
    if !is_root() {
        return;
    }
    let lab = Lab::with_queues("modes", 2, 3);
    linux_router(&lab);
    // A veth shares no frames, so they are copied; its driver runs programs.
    for (xdp, mode) in [
        (XdpChoice::Auto, XdpMode::Generic),
        (XdpChoice::Native, XdpMode::Native),
    ] {
        let (engine, attached) = attach_as(&lab, (2, 2), |uplink| {
            uplink.zero_copy = true;
            uplink.receive_ring = 4096;
            uplink.xdp = xdp;
        });
        let attached = attached.unwrap();
        assert!(!attached.zero_copy);
        assert_eq!(attached.xdp_mode, mode);
        engine.publish(with_routes(snapshot(), Some(PEER_MAC)));
        // The kernel goes on using it, and pods use it too.
        lab.succeeds("peer", "ping -c 2 -i 0.2 -W 10 172.31.0.1");
        converse(&lab, 1500);
        many_flows(&lab);
        ends_with_all_frames(&engine);
    }
}
