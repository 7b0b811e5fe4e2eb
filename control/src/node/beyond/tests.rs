use std::collections::HashMap;

use super::*;
use crate::node::bound::{Binding, BoundPort, Offer};
use crate::node::kernel::{Kernel, Neighbour};
use crate::node::netlink::Link;
use crate::node::routes::{Hop, How, Refused};
use crate::node::samples::{self, link, route};
use crate::node::setup::Setup;
use spinlane_dataplane::types::PortId;

const UPLINK: u32 = 2;
const OTHER: u32 = 3;
const DOWN: u32 = 4;
const HOST_SIDE: u32 = 9;
const HOST: PortId = PortId(0);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

fn kernel() -> Kernel {
    Kernel {
        links: vec![link(UPLINK), link(OTHER), link(HOST_SIDE)],
        routes: vec![
            route("172.31.0.0/16", None, UPLINK),
            route("0.0.0.0/0", Some("172.31.255.254"), UPLINK),
            route("192.168.5.0/24", None, OTHER),
            route("10.244.0.0/16", None, HOST_SIDE),
        ],
        neighbours: HashMap::from([(
            (UPLINK, "172.31.0.2".parse().unwrap()),
            Neighbour {
                mac: MAC,
                is_stale: false,
            },
        )]),
        ..Kernel::default()
    }
}

fn node(number: u32) -> Arc<source::Node> {
    let (a, b) = (number / 256, number % 256);
    Arc::new(source::Node {
        name: format!("node-{number}"),
        addresses: vec![format!("172.31.{a}.{b}").parse().unwrap()],
        pod_cidrs: vec![format!("10.{}.{b}.0/24", 100 + a).parse().unwrap()],
        vtep_mac: None,
    })
}

fn setup(mode: &str) -> Setup {
    Setup {
        name: "node-1".into(),
        addresses: vec!["172.31.0.1".parse().unwrap()],
        pod_cidrs: vec!["10.100.1.0/24".parse().unwrap()],
        uplink: crate::config::Uplink::Named("eth2".into()),
        network: samples::network(&format!(
            "mode = \"{mode}\"\ncluster-cidrs = [\"10.96.0.0/11\"]"
        )),
        ..samples::setup()
    }
}

fn follow(
    beyond: &mut Beyond,
    setup: &Setup,
    nodes: &[Arc<source::Node>],
    kernel: &Kernel,
) -> bool {
    let binding = Binding {
        native: false,
        zero_copy: false,
        lanes: 1,
    };
    let port = BoundPort {
        id: PortId(1),
        ifindex: UPLINK,
        binding,
    };
    beyond.follow(&Inputs {
        setup,
        nodes,
        kernel,
        uplink: Some(BoundUplink {
            port,
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
            is_veth: false,
            offer: Offer {
                queues: 1,
                cuts_datagrams: false,
                cuts_segments: false,
            },
        }),
        host: Some((HOST, HOST_SIDE)),
        path_mtus: &HashMap::new(),
    })
}

fn target(beyond: &Beyond, address: &str) -> Option<RouteTarget> {
    beyond.tables().routes.lookup(address.parse().unwrap())
}

#[test]
fn through_the_overlay_to_nodes_and_by_the_kernels_routes_to_the_rest() {
    let (setup, kernel) = (setup("vxlan"), kernel());
    let mut beyond = Beyond::default();
    assert!(follow(&mut beyond, &setup, &[node(1), node(2)], &kernel));
    let Some(RouteTarget::Vtep(id)) = target(&beyond, "10.100.2.7") else {
        panic!("{:?}", target(&beyond, "10.100.2.7"));
    };
    assert_eq!(target(&beyond, "172.31.0.2"), Some(RouteTarget::Vtep(id)));
    let tables = beyond.tables();
    let vtep = tables.vteps[id.index()].as_ref().unwrap();
    assert_eq!(vtep.mac.to_string(), "0a:58:ac:1f:00:02");
    assert_eq!(vtep.mtu, 1450);
    assert_eq!(
        tables.next_hops[vtep.next_hop.index()]
            .as_ref()
            .unwrap()
            .mac,
        Some(MAC)
    );
    assert_eq!(&vtep.outer.bytes()[..6], &MAC.0);
    assert_eq!(
        target(&beyond, "10.101.0.1"),
        Some(RouteTarget::Unreachable)
    );
    assert_eq!(
        target(&beyond, "192.168.5.9"),
        Some(RouteTarget::Host(HOST))
    );
    assert_eq!(target(&beyond, "172.31.9.9"), Some(RouteTarget::OnLink));
    assert!(matches!(
        target(&beyond, "8.8.8.8"),
        Some(RouteTarget::NextHop(_))
    ));
    assert!(!follow(&mut beyond, &setup, &[node(1), node(2)], &kernel));
}

#[test]
fn what_the_kernel_refuses_is_out_of_reach() {
    let refused = |to: &str, priority| Refused {
        to: to.parse().unwrap(),
        priority,
        how: How::Unreachable,
    };
    let so = |how, to| Refused {
        how,
        ..refused(to, 0)
    };
    let kernel = Kernel {
        refused: vec![
            refused("203.0.113.0/24", 0),
            so(How::Prohibited, "203.0.113.64/26"),
            so(How::Blackhole, "203.0.113.128/26"),
            // A better route to the same stands beside it.
            refused("192.168.5.0/24", 5),
            // Pods are none of the kernel's business.
            refused("10.100.2.0/24", 0),
            refused("10.100.2.64/26", 0),
            // They begin where wider routes do.
            refused("0.0.0.0/8", 0),
            refused("192.168.0.0/24", 0),
            // Only a route whose interface is down stands beside it.
            refused("198.51.100.0/24", 9),
        ],
        routes: [
            kernel().routes,
            vec![
                route("192.168.0.0/16", None, OTHER),
                route("198.51.100.0/24", None, DOWN),
            ],
        ]
        .concat(),
        links: [
            kernel().links,
            vec![Link {
                up: false,
                ..link(DOWN)
            }],
        ]
        .concat(),
        ..kernel()
    };
    let mut beyond = Beyond::default();
    follow(&mut beyond, &setup("vxlan"), &[node(1), node(2)], &kernel);
    let how = |to| target(&beyond, to);
    assert_eq!(how("203.0.113.9"), Some(RouteTarget::Unreachable));
    assert_eq!(how("203.0.113.65"), Some(RouteTarget::Prohibited));
    assert_eq!(how("203.0.113.130"), Some(RouteTarget::Blackhole));
    assert_eq!(
        target(&beyond, "192.168.5.9"),
        Some(RouteTarget::Host(HOST))
    );
    for pod in ["10.100.2.7", "10.100.2.70"] {
        let far = target(&beyond, pod);
        assert!(matches!(far, Some(RouteTarget::Vtep(_))), "{pod}: {far:?}");
    }
    let outside = target(&beyond, "8.8.8.8");
    assert!(
        matches!(outside, Some(RouteTarget::NextHop(_))),
        "{outside:?}"
    );
    let wide = target(&beyond, "192.168.77.1");
    assert_eq!(wide, Some(RouteTarget::Host(HOST)));
    for nowhere in ["0.0.0.9", "192.168.0.9", "198.51.100.9"] {
        let target = target(&beyond, nowhere);
        assert_eq!(target, Some(RouteTarget::Unreachable), "{nowhere}");
    }
}

#[test]
fn nodes_out_of_reach_are_named_with_the_cause() {
    let with = |number: u32, addresses: &[&str]| {
        Arc::new(source::Node {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..source::Node::clone(&node(number))
        })
    };
    let nodes = [
        node(1),
        node(2),
        with(3, &[]),
        with(4, &["fd31::4"]),
        with(5, &["203.0.113.5"]),
        with(6, &["192.168.5.6"]),
    ];
    let mut kernel = kernel();
    kernel.routes.remove(1);
    let mut beyond = Beyond::default();
    for mode in ["vxlan", "routed"] {
        follow(&mut beyond, &setup(mode), &nodes, &kernel);
        let notices: Vec<_> = beyond.tables().unreached.notices().collect();
        let expected = match mode {
            "vxlan" => [
                "no address:",
                "no address of a family",
                "no route",
                "interface",
            ]
            .as_slice(),
            // By another interface they are reached through the host.
            _ => ["no address:", "no route"].as_slice(),
        };
        assert_eq!(notices.len(), expected.len(), "{notices:?}");
        for (notice, cause) in notices.iter().zip(expected) {
            assert!(notice.contains(cause), "{mode}: {notice}");
        }
        assert!(notices[0].contains(" node-3 "), "{}", notices[0]);
        assert!(!notices.concat().contains("node-2"), "{notices:?}");
    }
}

/// `node(number)` with other ranges.
fn claiming(number: u32, ranges: &[&str]) -> Arc<source::Node> {
    Arc::new(source::Node {
        pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        ..source::Node::clone(&node(number))
    })
}

#[test]
fn ranges_that_cannot_be_another_nodes_are_refused_by_name() {
    let nodes = [
        node(1),
        claiming(2, &["10.100.1.0/25", "10.100.2.0/24"]),
        claiming(3, &["0.0.0.0/0"]),
        claiming(4, &["172.31.0.0/16", "10.100.4.0/24"]),
        claiming(5, &["10.100.2.0/24"]),
    ];
    let mut beyond = Beyond::default();
    follow(&mut beyond, &setup("vxlan"), &nodes, &kernel());
    let tables = beyond.tables();
    let ranges = ["10.100.2.0/24", "10.100.4.0/24"].map(|range| range.parse().unwrap());
    assert_eq!(*tables.pods, BTreeSet::from(ranges));
    let notices: Vec<_> = tables.unreached.notices().collect();
    let expected = [
        (" node-2 ", "this node's own pods"),
        (" node-3, node-4 ", "own address"),
        (" node-5 ", "another node has, too"),
    ];
    assert_eq!(notices.len(), expected.len(), "{notices:?}");
    for (notice, (names, cause)) in notices.iter().zip(expected) {
        assert!(notice.contains(names) && notice.contains(cause), "{notice}");
    }
    // The first one keeps it, and the way out stays what it was.
    let Some(RouteTarget::Vtep(id)) = target(&beyond, "10.100.2.7") else {
        panic!("{:?}", target(&beyond, "10.100.2.7"));
    };
    let vtep = tables.vteps[id.index()].as_ref().unwrap();
    assert_eq!(vtep.address, node(2).addresses[0]);
    assert!(matches!(
        target(&beyond, "203.0.113.9"),
        Some(RouteTarget::NextHop(_))
    ));
}

#[test]
fn other_nodes_pods_see_pods_whatever_the_clusters_ranges_are() {
    let setup = Setup {
        network: samples::network("mode = \"routed\""),
        ..setup("routed")
    };
    // Neighbouring ranges make one.
    let nodes: Vec<_> = (1..=255).map(node).collect();
    let mut beyond = Beyond::default();
    follow(&mut beyond, &setup, &nodes, &kernel());
    let masquerade = &beyond.tables().masquerade;
    assert!(masquerade.is_on && masquerade.excluded.len() < 10);
    for (to, is_excluded) in [
        ("10.100.1.9", true),
        ("10.100.2.9", true),
        ("10.100.255.9", true),
        ("10.100.0.9", false),
        ("10.101.0.9", false),
        ("203.0.113.9", false),
    ] {
        assert_eq!(
            masquerade.excludes(to.parse().unwrap()),
            is_excluded,
            "{to}"
        );
    }
}

#[test]
fn pods_leave_with_wide_addresses_before_local_ones() {
    let egress = |sources: &[&str]| {
        let sources = sources.iter().map(|at| (UPLINK, at.parse().unwrap()));
        let kernel = Kernel {
            sources: sources.collect(),
            ..kernel()
        };
        let mut beyond = Beyond::default();
        follow(&mut beyond, &setup("vxlan"), &[], &kernel);
        let masquerade = Arc::clone(&beyond.tables().masquerade);
        let v6: Vec<_> = masquerade
            .egress_v6
            .iter()
            .map(ToString::to_string)
            .collect();
        (masquerade.egress_v4.len(), v6)
    };
    let both = [
        "172.31.0.1",
        "172.31.0.2",
        "fe80::1",
        "fd31::1",
        "2001:db8::1",
    ];
    assert_eq!(egress(&both), (2, vec!["2001:db8::1".to_owned()]));
    assert_eq!(egress(&both[..4]), (2, vec!["fd31::1".to_owned()]));
}

#[test]
fn the_own_end_is_what_others_take_from_the_own_object() {
    let v6 = |number: u32| {
        Arc::new(source::Node {
            addresses: vec![format!("fd31::{number}").parse().unwrap()],
            ..source::Node::clone(&node(number))
        })
    };
    let mut beyond = Beyond::default();
    let own = v6(1);
    follow(
        &mut beyond,
        &setup("vxlan"),
        &[own.clone(), v6(2)],
        &kernel(),
    );
    assert_eq!(beyond.tables().underlay.vtep_mac, vtep_mac(&own));
    // Without an object, or one that says nothing, by the addresses it has.
    for nodes in [vec![], vec![claiming(2, &[])]] {
        follow(&mut beyond, &setup("vxlan"), &nodes, &kernel());
        let mac = beyond.tables().underlay.vtep_mac.to_string();
        assert_eq!(mac, "0a:58:ac:1f:00:01");
    }
}

#[test]
fn gateways_of_one_route_share_what_leaves_by_the_uplink() {
    let hop = |via: &str, oif, weight| Hop {
        via: Some(via.parse().unwrap()),
        oif,
        weight,
    };
    let mut kernel = kernel();
    let mut follows = |hops: Vec<Hop>| {
        kernel.routes[1].hops = hops;
        let mut beyond = Beyond::default();
        follow(&mut beyond, &setup("vxlan"), &[node(1)], &kernel);
        let next_hops = &beyond.tables().next_hops;
        let address = |id: NextHopId| next_hops[id.index()].as_ref().unwrap().address.to_string();
        match target(&beyond, "8.8.8.8") {
            Some(RouteTarget::Spread(spread)) => {
                spread.slots().iter().map(|id| address(*id)).collect()
            }
            Some(RouteTarget::NextHop(id)) => vec![address(id)],
            other => panic!("{other:?}"),
        }
    };
    let (a, b, c) = ("172.31.0.8", "172.31.0.9", "192.168.5.1");
    assert_eq!(follows(vec![]), ["172.31.255.254"]);
    assert_eq!(follows(vec![hop(a, UPLINK, 1)]), [a]);
    assert_eq!(
        follows(vec![hop(a, UPLINK, 1), hop(b, UPLINK, 2)]),
        [a, b, b]
    );
    // By another interface goes nothing while there is one by the uplink.
    for oif in [OTHER, DOWN] {
        let mixed = vec![hop(c, oif, 200), hop(a, UPLINK, 1), hop(b, UPLINK, 1)];
        assert_eq!(follows(mixed), [a, b]);
    }
    assert_eq!(follows(vec![hop(c, OTHER, 200), hop(a, UPLINK, 1)]), [a]);
}

#[test]
fn routed_nodes_are_neighbours_or_behind_a_gateway() {
    let mut kernel = kernel();
    kernel
        .routes
        .push(route("172.31.0.3/32", Some("172.31.0.9"), UPLINK));
    let mut beyond = Beyond::default();
    let nodes = [node(1), node(2), node(3)];
    follow(&mut beyond, &setup("routed"), &nodes, &kernel);
    let by = |beyond: &Beyond, to: &str| match target(beyond, to) {
        Some(RouteTarget::NextHop(id)) => {
            let next_hop = beyond.tables().next_hops[id.index()].clone();
            next_hop.unwrap().address.to_string()
        }
        other => format!("{other:?}"),
    };
    assert_eq!(by(&beyond, "10.100.2.7"), "172.31.0.2");
    assert_eq!(by(&beyond, "10.100.3.7"), "172.31.0.9");
    assert_eq!(beyond.tables().direct.len(), 2);
    let mut crossing = setup("routed");
    crossing.network.cross_subnet = true;
    follow(&mut beyond, &crossing, &nodes, &kernel);
    assert_eq!(by(&beyond, "10.100.2.7"), "172.31.0.2");
    let Some(RouteTarget::Vtep(far)) = target(&beyond, "10.100.3.7") else {
        panic!("{:?}", target(&beyond, "10.100.3.7"));
    };
    // A neighbour may see this node behind a gateway.
    let tables = beyond.tables();
    let behind = |source: &str| tables.underlay.sources.lookup(source.parse().unwrap());
    let end = behind("10.100.2.7");
    let Some(RouteTarget::Vtep(near)) = end else {
        panic!("{end:?}");
    };
    assert_eq!(behind("172.31.0.2"), end);
    assert_eq!(behind("10.100.3.7"), None);
    let vni = tables.vteps[far.index()].as_ref().unwrap().vni;
    let peer = |number: u32| tables.underlay.peers.get(&(vni, node(number).addresses[0]));
    assert_eq!((peer(2), peer(3)), (Some(&near), Some(&far)));
}

#[test]
fn a_thousand_nodes_keep_their_numbers_when_one_goes() {
    let (setup, kernel) = (setup("vxlan"), kernel());
    let mut nodes: Vec<_> = (1..=1000).map(node).collect();
    let mut beyond = Beyond::default();
    follow(&mut beyond, &setup, &nodes, &kernel);
    let before = beyond.tables().clone();
    nodes.remove(499);
    assert!(follow(&mut beyond, &setup, &nodes, &kernel));
    let after = beyond.tables().clone();
    let differing = before
        .vteps
        .iter()
        .zip(after.vteps.iter())
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(differing, 1);
    assert!(Arc::ptr_eq(&before.direct, &after.direct));
    let gone = before
        .routes
        .iter()
        .filter(|(prefix, target)| after.routes.lookup(prefix.address) != Some(*target));
    assert_eq!(gone.count(), 2, "its pods and its address");
}
