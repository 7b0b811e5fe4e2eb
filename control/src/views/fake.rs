//! A switch made of values, for the tests of what looks at one.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;

pub(crate) struct FakeSwitch {
    pub(crate) status: view::Status,
    pub(crate) ports: Vec<view::Port>,
    pub(crate) packets: Mutex<VecDeque<Packet>>,
}

impl Views for FakeSwitch {
    fn status(&self) -> view::Status {
        self.status.clone()
    }

    fn ports(&self) -> Vec<view::Port> {
        self.ports.clone()
    }

    fn flows(&self) -> Vec<view::Flow> {
        vec![view::Flow {
            lane: 0,
            in_port: "sl1".to_owned(),
            key: view::FlowKey {
                src: "10.244.1.2".to_owned(),
                dst: "10.244.1.3".to_owned(),
                proto: "tcp".to_owned(),
                sport: 40000,
                dport: 80,
            },
            actions: vec!["decrement-ttl".to_owned(), "output".to_owned()],
            out: "sl2".to_owned(),
            packets: 7,
            bytes: 900,
            idle_s: 0.5,
        }]
    }

    fn connections(&self) -> Vec<view::Connection> {
        vec![view::Connection {
            proto: "tcp".to_owned(),
            src: "10.244.1.2".to_owned(),
            sport: 40_000,
            dst: "203.0.113.9".to_owned(),
            dport: 443,
            state: "established".to_owned(),
            backend: None,
            snat: Some("172.31.0.1:61007".to_owned()),
            idle_s: 0.25,
            packets: 12,
        }]
    }

    fn fdb(&self) -> Vec<view::FdbEntry> {
        vec![view::FdbEntry {
            segment: "blue".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            port: Some("sl1".to_owned()),
            vtep: None,
            age_s: 1.25,
            is_static: false,
            is_held: false,
        }]
    }

    fn routes(&self) -> Vec<view::Route> {
        vec![
            view::Route {
                prefix: "10.244.1.2/32".to_owned(),
                via: view::RouteVia::Local,
                port: Some("sl1".to_owned()),
                vtep: None,
                gateway: None,
                mac: None,
                mtu: Some(1450),
            },
            view::Route {
                prefix: "10.244.2.0/24".to_owned(),
                via: view::RouteVia::Vtep,
                port: Some("eth0".to_owned()),
                vtep: Some("172.31.0.2".to_owned()),
                gateway: Some("172.31.0.254".to_owned()),
                mac: None,
                mtu: Some(1450),
            },
        ]
    }

    fn drops(&self) -> view::Drops {
        [("runt".to_owned(), 0), ("spoofed".to_owned(), 3)].into()
    }

    fn capture(&self, port: Option<&str>, snaplen: usize) -> Option<Box<dyn Packets>> {
        let mut packets: VecDeque<_> = std::mem::take(&mut *self.packets.lock().unwrap());
        packets.retain(|packet| port.is_none_or(|port| packet.port == port));
        for packet in &mut packets {
            packet.data.truncate(snaplen);
        }
        Some(Box::new(FakePackets(packets)))
    }
}

struct FakePackets(VecDeque<Packet>);

impl Packets for FakePackets {
    fn next(&mut self, timeout: Duration) -> Option<Packet> {
        let packet = self.0.pop_front();
        if packet.is_none() {
            std::thread::sleep(timeout);
        }
        packet
    }

    fn lost(&self) -> u64 {
        0
    }

    fn is_over(&self) -> bool {
        false
    }
}

pub(crate) fn port(name: &str, namespace: &str, pod: &str) -> view::Port {
    view::Port {
        name: name.to_owned(),
        kind: view::PortKind::Pod,
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container_id: "0123456789abcdef".to_owned(),
        ifname: "eth0".to_owned(),
        network: "pods".to_owned(),
        segment: None,
        addresses: vec!["10.244.1.2".to_owned(), "fd00:10:244:1::2".to_owned()],
        mac: "0a:58:0a:f4:01:02".to_owned(),
        ifindex: 12,
        xdp_mode: view::XdpMode::Generic,
        zero_copy: false,
        lanes: vec![0],
        queues: 1,
        super_frames: true,
        mtu: 1450,
        rx_packets: 1_234_567,
        rx_bytes: 98_765_432,
        tx_packets: 12,
        tx_bytes: 3456,
        drops: 3,
        fault: None,
    }
}

pub(crate) fn switch() -> FakeSwitch {
    FakeSwitch {
        status: view::Status {
            version: "0.1.0".to_owned(),
            node: "node-a".to_owned(),
            mode: "routed".to_owned(),
            ready: true,
            uptime_s: 3725.5,
            snapshot_generation: 42,
            poll: "adaptive".to_owned(),
            lanes: vec![view::Lane {
                id: 0,
                core: 1,
                busy_ratio: 0.125,
                rx_packets: 1_234_579,
                tx_packets: 1_234_576,
                flow_entries: 17,
                flow_hits: 1_234_500,
                flow_misses: 79,
                flow_evictions: 0,
                sleeps: 5,
                naps: 6,
                events_lost: 0,
                last_round_age_s: 0.9,
                has_ended: false,
            }],
            frames: view::Frames {
                total: 16384,
                free: 16380,
                in_use: 4,
            },
            endpoints: 2,
            connections: 3,
            connections_from_outside: 1,
            connection_limit: 262_144,
            port_rebuilds: 1,
            outer_fragments: 2,
            uplink: Some(view::Uplink {
                name: "eth0".to_owned(),
                state: "up".to_owned(),
                mtu: 1500,
                addresses: vec!["172.31.0.1".to_owned()],
            }),
            vteps: 4,
            stations: view::Stations { known: 7, held: 1 },
            next_hops: view::NextHops {
                resolved: 2,
                unresolved: 1,
            },
            source: Some(view::Source {
                path: "/etc/spinlane/manifests".to_owned(),
                objects: [("Node".to_owned(), 5), ("Pod".to_owned(), 40)].into(),
                last_good_read_s: 1_700_000_000.5,
                read_errors: 2,
                errors: Vec::new(),
            }),
            ended: Vec::new(),
            notices: Vec::new(),
        },
        ports: vec![
            port("sl1", "default", "web"),
            port("sl2", "default", "client"),
            port("sl3", "other", "web"),
        ],
        packets: Mutex::default(),
    }
}

#[test]
fn ports_are_found_by_what_people_call_them() {
    let ports = switch().ports;
    let found = |name| find_port(&ports, name).map(|port| port.name.clone());
    assert_eq!(found("sl2"), Ok("sl2".to_owned()));
    assert_eq!(found("default/web"), Ok("sl1".to_owned()));
    assert_eq!(found("other/web"), Ok("sl3".to_owned()));
    assert_eq!(found("client"), Ok("sl2".to_owned()));
    assert_eq!(
        found("web"),
        Err("\"web\" means several ports: choose one of sl1, sl3".to_owned())
    );
    assert_eq!(
        found("default/nobody"),
        Err("no port is named \"default/nobody\": `spinlane ports` lists them".to_owned())
    );
}

#[test]
fn a_port_that_carries_nothing_is_named_with_its_pod() {
    let mut ports = switch().ports;
    assert_eq!(port_notices(&ports), [""; 0]);
    ports[1].fault = Some("no frames are left".to_owned());
    assert_eq!(
        port_notices(&ports),
        ["port sl2 of pod default/client carries nothing and is tried again: no frames are left"]
    );
}

#[test]
fn a_lane_stalls_only_after_its_time() {
    let mut status = switch().status;
    assert_eq!(unwell(&status), None);
    status.lanes[0].last_round_age_s = LANE_STALL_S + 0.1;
    assert_eq!(
        unwell(&status).as_deref(),
        Some("lanes [0] have not gone round for 5 s")
    );
    status.ended = vec!["watch".to_owned()];
    assert_eq!(
        unwell(&status).as_deref(),
        Some("watch ended: restart the agent")
    );
    status.ended.clear();
    // One that has ended is known at once.
    status.lanes[0].last_round_age_s = 0.1;
    status.lanes[0].has_ended = true;
    assert_eq!(
        unwell(&status).as_deref(),
        Some("lanes [0] have ended: restart the agent")
    );
}
